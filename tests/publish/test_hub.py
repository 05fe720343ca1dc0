"""Up to the Hub and down again: real commands, the unmodified client, a real HTTP Hub on loopback, and its faults."""

import json
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from gradio_client import Client, handle_file
from huggingface_hub import HfApi, SpaceCard, constants
from PIL import Image
from transformers import AutoImageProcessor

from classifier import load_predictor
from classifier.errors import HubError, ModelError
from classifier.hub import pull
from classifier.publish import export, static_site
from classifier.publish.upload import push, send
from tests.helpers.local_hub import LocalHub
from tests.helpers.models import save_tiny_swin, save_tiny_timm, save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, picture
from tests.helpers.records import RUN
from tests.helpers.running_app import running_app

COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[LocalHub]:
    with LocalHub(tmp_path_factory.mktemp("hub")) as running:
        yield running


@pytest.fixture(scope="module")
def api(hub) -> Iterator[HfApi]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)  # what this process may have been started with
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture(scope="module")
def environment(hub, tmp_path_factory) -> dict[str, str]:
    """Of a process that uses the Hub as its user would."""
    return hub.environment(tmp_path_factory.mktemp("home")) | {"PYTHONUNBUFFERED": "1"}


@pytest.fixture(scope="module")
def call(environment) -> Iterator[Callable]:
    """Calls a function in a process that was started with the Hub's settings, since its client reads them at import."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            yield lambda function, *args, **kwargs: process.submit(function, *args, **kwargs).result()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """An image folder of three colours, easily told apart."""
    folder = tmp_path_factory.mktemp("colours")
    rng = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (folder / label).mkdir()
        for i in range(40):
            pixels = np.clip(rng.normal(colour, 40, (32, 32, 3)), 0, 255).astype(np.uint8)
            (folder / label / f"{i}.png").write_bytes(encoded(Image.fromarray(pixels)))
    return folder


def run(environment: dict[str, str], *words: str | Path) -> str:
    """What a command of ours prints; the test fails where the command does."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert environment["HF_TOKEN"] not in done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pushed(hub, environment, pictures, tmp_path_factory) -> Path:
    """The folder of a CNN that train.py trained and pushed to user/tiny, and evaluate.py measured and pushed again."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    flags = ["--dataset", pictures, "--push_to_hub", "--hub_model_id", "user/tiny"]
    run(
        environment,
        "train.py",
        *flags,
        "--output_dir",
        folder,
        "--num_train_epochs",
        "2",
        "--validation_fraction",
        "0.2",
    )
    run(environment, "evaluate.py", *flags, "--model", folder, "--output_dir", folder.parent / "report")
    return folder


def timm_settings(repo: str) -> dict:
    return AutoImageProcessor.from_pretrained(repo).data_config


def test_the_processor_of_timm_is_the_same_from_the_hub(api, call, tmp_path):
    """There, transformers looks at preprocessor_config.json first."""
    folder = save_tiny_timm(tmp_path / "timm")
    export.complete(folder)
    api.create_repo("user/timm")
    api.upload_folder(repo_id="user/timm", folder_path=folder)
    assert call(timm_settings, "user/timm") == AutoImageProcessor.from_pretrained(folder).data_config


def test_a_push_is_one_commit_that_says_how_good(pushed, api):
    evaluated, trained, *_ = api.list_repo_commits("user/tiny")
    run_json = json.loads((pushed / "run.json").read_text())
    evaluation = json.loads((pushed / "evaluation.json").read_text())
    [measured] = evaluation["models"]
    assert f"{run_json['validation']['accuracy']:.2%} of validation" in trained.title
    assert f"{measured['accuracy']:.2%} of {evaluation['n']} test images" in evaluated.title
    files = {f.rfilename for f in api.model_info("user/tiny").siblings} - {".gitattributes"}
    assert files == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "README.md", "cnn.py", "onnx/model.onnx"),
        *("run.json", "metrics.jsonl", "evaluation.json", "timing.json"),
        *("samples.png", "classes.png", "curves.png", "confusion_matrix.png"),
    }


@pytest.mark.slow
def test_a_push_goes_on_without_onnx(api, call, pictures, tmp_path):
    """Of an architecture that torch can't export."""
    folder = save_tiny_swin(tmp_path / "swin")
    settings = {"validation_fraction": 0.2, "image_column": None, "label_column": None}
    (folder / "run.json").write_text(json.dumps(RUN | {"settings": RUN["settings"] | settings}))
    call(push, folder, "user/swin", dataset=str(pictures))
    files = {f.rfilename for f in api.model_info("user/swin").siblings} - {".gitattributes"}
    assert files == {"config.json", "model.safetensors", "preprocessor_config.json", "run.json", "README.md"}
    text = (folder / "README.md").read_text()
    assert "no ONNX file" in text and "onnx/model.onnx" not in text and "onnxruntime" not in text
    assert "@huggingface/transformers" not in text


def test_a_push_removes_what_spoke_of_the_model_before(pushed, api, environment, tmp_path):
    """Trained anew and pushed before it is evaluated; what its owner added stays."""
    folder = tmp_path / "again"
    shutil.copytree(pushed, folder)
    run(environment, "-m", "classifier.publish", "push", folder, "user/again")
    api.upload_file(path_or_fileobj=b"notes", path_in_repo="notes.txt", repo_id="user/again")
    for name in ("evaluation.json", "timing.json", "confusion_matrix.png"):
        (folder / name).unlink()
    run(environment, "-m", "classifier.publish", "push", folder, "user/again")
    files = {f.rfilename for f in api.model_info("user/again").siblings}
    assert not files & {"evaluation.json", "timing.json", "confusion_matrix.png"}
    assert files >= {"notes.txt", "config.json", "model.safetensors", "samples.png", "README.md"}


def test_a_second_push_sends_no_weights_again(pushed, hub):
    """evaluate.py pushed the same weights after train.py: large files are those that come by PUT."""
    puts = [request.path for request in hub.requests if request.method == "PUT" and request.received > 0]
    assert len(puts) == len(set(puts)), "an object was sent twice"


@pytest.mark.parametrize("repo", ["user/tiny", "user/tiny-vit"])
def test_strangers_get_the_same_probabilities(repo, pushed, environment, tmp_path):
    """From another folder, without this project: pipeline, AutoModel and onnxruntime on what the Hub serves.

    The CNN needs trust_remote_code, a model that transformers knows needs no flag.
    """
    folder = pushed
    if repo == "user/tiny-vit":
        folder = save_tiny_vit(tmp_path / "vit")
        shutil.copy(pushed / "run.json", folder)
        run(environment, "-m", "classifier.publish", "push", folder, repo)
    image = picture(3, (32, 32))
    image.save(tmp_path / "picture.png")
    code = """
import json, sys
import numpy as np, onnxruntime, torch
from huggingface_hub import hf_hub_download
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

repo, image = sys.argv[1], Image.open("picture.png")
trust = {"trust_remote_code": True} if repo == "user/tiny" else {}
entries = pipeline("image-classification", model=repo, **trust)(image, top_k=10)
model = AutoModelForImageClassification.from_pretrained(repo, **trust)
pixel_values = AutoImageProcessor.from_pretrained(repo)(image, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    auto = model(pixel_values).logits.softmax(dim=1)[0].tolist()
session = onnxruntime.InferenceSession(hf_hub_download(repo, "onnx/model.onnx"))
[logits] = session.run(["logits"], {"pixel_values": pixel_values.numpy()})
onnx = torch.tensor(logits).softmax(dim=1)[0].tolist()
labels = [model.config.id2label[i] for i in range(len(auto))]
pipe = {entry["label"]: entry["score"] for entry in entries}
json.dump([[pipe[label] for label in labels], auto, onnx], sys.stdout)
"""
    command = [sys.executable, "-I", "-c", code, repo]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = load_predictor(folder).probabilities([image])[0]
    for way, probabilities in zip(("pipeline", "AutoModel", "onnxruntime"), json.loads(done.stdout), strict=True):
        np.testing.assert_allclose(probabilities, expected, atol=1e-4, err_msg=way)


def test_the_app_serves_a_commit_of_the_hub(pushed, api, environment, tmp_path):
    trained = api.list_repo_commits("user/tiny")[1].commit_id
    (tmp_path / "picture.png").write_bytes(encoded(picture(5)))
    with running_app([f"user/tiny@{trained}"], tmp_path, environment | {"HF_HOME": str(tmp_path / "home")}) as (url, _):
        client = Client(url, verbose=False)
        label, about = client.predict(handle_file(tmp_path / "picture.png"), top_k=3, api_name="/classify")
        example = api.hf_hub_download("user/tiny", "README.md", local_dir=tmp_path)
        [code] = [
            block for block in re.findall("```python\n(.*?)```", Path(example).read_text(), re.S) if "Client" in block
        ]
        ran = {}
        exec(code.replace("http://127.0.0.1:7860", url).replace("cat.jpg", str(tmp_path / "picture.png")), ran)
        assert ran["label"] == label and ran["about"] == about
    assert about["model"] == "user/tiny" and about["revision"] == trained
    expected = load_predictor(pushed)(tmp_path / "picture.png", top_k=3)
    assert {entry["label"]: pytest.approx(entry["confidence"], abs=1e-4) for entry in label["confidences"]} == {
        entry["label"]: entry["score"] for entry in expected
    }
    [cached] = (tmp_path / "home").glob("hub/models--user--tiny/snapshots/*")
    wanted = {"config.json", "model.safetensors", "preprocessor_config.json", "run.json"}  # not measured yet
    assert {path.name for path in cached.rglob("*")} == wanted


def test_the_app_stands_in_for_a_hub_that_is_down(environment, tmp_path):
    down = environment | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    with running_app(["user/tiny"], tmp_path, down) as (url, _):
        names = [model["name"] for model in Client(url, verbose=False).predict(api_name="/models")]
    assert sorted(names) == sorted(path.parent.name for path in ROOT.glob("models/*/config.json"))
    log = (tmp_path / "app.log").read_text()
    assert "The Hub did not give user/tiny" in log and "The models that come with the app are served instead" in log


@pytest.fixture
def repo(api, tmp_path) -> str:
    """A repository of its own for each test, with a ViT that transformers knows."""
    name = f"user/vit-{tmp_path.name}"
    api.create_repo(name)
    api.upload_folder(repo_id=name, folder_path=save_tiny_vit(tmp_path / "vit"), commit_message="First")
    return name


def update(api: HfApi, repo: str, folder: Path) -> str:
    """Pushes other weights, and gives their commit."""
    save_tiny_vit(folder, seed=1)
    return api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Second").oid


def test_what_was_fetched_last_is_served_while_the_hub_is_down(call, hub, api, repo, tmp_path):
    first = call(pull, repo)
    assert first.notice == "" and first.revision == api.model_info(repo).sha
    update(api, repo, tmp_path / "vit")
    fault = hub.fail(f"/api/models/{repo}", status=503, times=99)
    served = call(pull, repo)
    fault.times = 0
    assert served[:3] == first[:3] and "from the cache" in served.notice and first.revision[:7] in served.notice
    assert call(pull, repo).revision == api.model_info(repo).sha != first.revision


def test_a_half_fetched_update_does_not_replace_what_was_whole(call, hub, api, repo, tmp_path):
    first = call(pull, repo)
    second = update(api, repo, tmp_path / "vit")
    faults = [hub.fail(f"{repo}/resolve/.*safetensors", method="GET", status=403, times=99)]
    for _ in range(2):  # a start after the one that failed must not take the half for the whole either
        assert call(pull, repo)[:3] == first[:3]
    for fault in faults:
        fault.times = 0
    assert call(pull, repo).revision == second


def test_a_damaged_download_is_fetched_again(call, hub, repo, tmp_path):
    hub.fail(f"{repo}/resolve/.*safetensors", method="GET", corrupt=True)
    snapshot = call(pull, repo)
    assert snapshot.notice == ""
    assert (snapshot.folder / "model.safetensors").read_bytes() == (tmp_path / "vit/model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "how", [{"cut": 0.5}, {"status": 503}, {"status": 429, "retry_after": 1}], ids=["cut", "503", "429"]
)
def test_a_download_outlives(how, call, hub, repo, tmp_path):
    fault = hub.fail(f"{repo}/resolve/.*safetensors", method="GET", **how)
    snapshot = call(pull, repo)
    assert fault.times == 0 and snapshot.notice == ""
    assert (snapshot.folder / "model.safetensors").read_bytes() == (tmp_path / "vit/model.safetensors").read_bytes()


def test_a_download_that_stays_damaged_is_not_served(call, hub, repo):
    fault = hub.fail(f"{repo}/resolve/.*safetensors", method="GET", corrupt=True, times=99)
    with pytest.raises(HubError, match="damaged twice"):
        call(pull, repo)
    fault.times = 0
    assert call(pull, repo).notice == ""


def test_a_file_damaged_on_disk_is_fetched_again(call, repo, tmp_path):
    weights = call(pull, repo).folder / "model.safetensors"
    data = weights.read_bytes()
    weights.resolve().write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    call(pull, repo)
    assert weights.read_bytes() == data


def test_a_slow_hub_is_waited_for_only_so_long(call, hub, api, repo, tmp_path):
    first = call(pull, repo)
    update(api, repo, tmp_path / "vit")
    fault = hub.fail(f"{repo}/resolve/.*safetensors", method="GET", slow=5)
    served = call(pull, repo, patience=2)
    assert served[:3] == first[:3] and "more than 2 s" in served.notice
    assert fault.times == 0


def test_errors_tell_what_may_pass_from_what_will_not(call, hub, repo):
    with pytest.raises(ModelError, match=r"user/absent.*check the name") as wrong_name:
        call(pull, "user/absent")
    assert not isinstance(wrong_name.value, HubError)
    with pytest.raises(ModelError, match=r"v9.*check the name and the revision"):
        call(pull, repo, "v9")
    fault = hub.fail("/api/models/user/busy", status=500, times=99)
    with pytest.raises(HubError, match="try again later"):
        call(pull, "user/busy")
    fault.times = 0


def test_what_is_cached_outlives_an_expired_token(call, hub, repo):
    first = call(pull, repo)
    fault = hub.fail(f"/api/models/{repo}", expired=True, times=99)
    assert call(pull, repo)[:3] == first[:3]
    fault.times = 0


def test_private_models_need_the_token(api, environment, tmp_path):
    repo = "user/secret"
    api.create_repo(repo, private=True)
    api.upload_folder(repo_id=repo, folder_path=save_tiny_vit(tmp_path / "vit"))
    code = f"from classifier import load_predictor; print(load_predictor('{repo}').revision)"
    assert run(environment | {"HF_HOME": str(tmp_path / "a")}, "-c", code).strip() == api.model_info(repo).sha
    nobody = environment | {"HF_HOME": str(tmp_path / "b"), "HF_TOKEN": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=nobody, capture_output=True, text=True)
    assert "log in if it is private" in done.stderr.splitlines()[-1]


def refused(environment: dict[str, str], *words: str | Path) -> str:
    """The one line of a command that ends with exit code 2."""
    done = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert environment["HF_TOKEN"] not in done.stdout + done.stderr
    return done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_a_push_that_failed_is_repeated_without_sending_twice(pushed, hub, api, environment):
    dataset = json.loads((pushed / "run.json").read_text())["settings"]["dataset"]
    command = ["-m", "classifier.publish", "push", pushed, "user/again", "--dataset", dataset]
    fault = hub.fail("/api/models/user/again/commit/", status=403, times=99)
    first = len(hub.requests)
    line = refused(environment, *command)
    assert (
        f"{pushed} is complete" in line
        and f"python -m classifier.publish push {pushed} user/again --dataset {dataset}" in line
    )
    fault.times = 0
    again = re.search("python (-m classifier.publish push .*)", line)[1].split()
    assert run(environment, *again).strip().endswith(api.model_info("user/again").sha)
    assert not [r for r in hub.requests[first:] if r.method == "PUT" and r.received], (
        "user/tiny's weights are there already"
    )


PASSES = {
    "503 of large file storage": ("lfs/objects/batch", {"status": 503}),
    "429": ("/preupload/", {"status": 429, "retry_after": 1}),
    "a cut upload": ("/lfs/", {"method": "PUT", "cut": 0.5}),
    "a lost answer to an upload": ("/lfs/", {"method": "PUT", "cut": 1}),
    "slow": ("/", {"slow": 0.3, "times": 5}),
}
FAILS = {
    "503": ("/commit/", {"status": 503}, "try again later"),
    "a cut commit": ("/commit/", {"cut": 0.5}, "try again later"),
    "a lost answer to a commit": ("/commit/", {"cut": 1}, "try again later"),
    "damaged on the way": ("/lfs/", {"method": "PUT", "corrupt": True}, "uploading"),
    "an expired token": ("/preupload/", {"expired": True}, "hf auth login, or HF_TOKEN"),
}


@pytest.fixture
def finished(tmp_path, pushed) -> Path:
    """A folder with weights that the Hub does not have yet."""
    folder = save_tiny_vit(tmp_path / "finished", seed=int.from_bytes(os.urandom(3), "big"))
    shutil.copy(pushed / "run.json", folder)
    return folder


@pytest.mark.parametrize("fault", PASSES)
def test_a_push_outlives(fault, call, hub, api, finished):
    path, how = PASSES[fault]
    repo = f"user/{fault.replace(' ', '-')}"
    declared = hub.fail(path, **how)
    call(send, finished, repo)
    assert declared.times == 0
    weights = api.hf_hub_download(repo, "model.safetensors", cache_dir=finished.parent)
    assert Path(weights).read_bytes() == (finished / "model.safetensors").read_bytes()


@pytest.mark.parametrize("fault", FAILS)
def test_a_push_fails_in_one_line_and_can_be_repeated(fault, call, hub, api, finished):
    path, how, advice = FAILS[fault]
    repo = f"user/{fault.replace(' ', '-')}-2"
    declared = hub.fail(path, **how)
    with pytest.raises(HubError, match=f"{advice}.*: python -m classifier.publish push {finished} {repo}$") as error:
        call(send, finished, repo)
    assert "\n" not in str(error.value) and declared.times == 0
    first = len(hub.requests)
    call(send, finished, repo)
    puts = [request for request in hub.requests[first:] if request.method == "PUT" and request.received]
    assert len(puts) == (fault in ("damaged on the way", "an expired token")), "only what has not arrived is sent"
    assert len(api.list_repo_commits(repo)) == 2  # the first made the repository
    weights = api.hf_hub_download(repo, "model.safetensors", cache_dir=finished.parent)
    assert Path(weights).read_bytes() == (finished / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_a_push_that_is_killed_is_repeated(hub, api, environment, finished):
    dataset = json.loads((finished / "run.json").read_text())["settings"]["dataset"]
    command = ["-m", "classifier.publish", "push", finished, "user/killed", "--dataset", dataset]
    fault = hub.fail("/lfs/", method="PUT", slow=5)
    with subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=environment) as process:
        while fault.times:  # the weights are on their way
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
    assert len(api.list_repo_commits("user/killed")) == 1  # which made the repository: nothing half is to be seen
    run(environment, *command)
    assert len(api.list_repo_commits("user/killed")) == 2
    weights = api.hf_hub_download("user/killed", "model.safetensors", cache_dir=finished.parent)
    assert Path(weights).read_bytes() == (finished / "model.safetensors").read_bytes()


def test_an_expired_token_is_told_before_training(hub, environment, pictures, tmp_path):
    hub.fail("/api/whoami-v2", expired=True)
    flags = ["--dataset", pictures, "--push_to_hub", "--output_dir", tmp_path / "run"]
    assert "hf auth login, or HF_TOKEN" in refused(environment, "train.py", *flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_folder_that_loads_differently_elsewhere_is_neither_sent_nor_changed(pushed, api, environment, tmp_path):
    folder = save_tiny_vit(tmp_path / "half", dtype=torch.float16)  # and config.json has others compute in it
    shutil.copy(pushed / "run.json", folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    line = refused(environment, "-m", "classifier.publish", "push", folder, "user/half")
    assert re.search(r"differ by 0\.\d+ from this project's \(at most 0\.0001\)", line)
    assert not api.repo_exists("user/half")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_the_space_is_one_commit_that_starts_as_it_is(pushed, api, environment, call, tmp_path):
    run(environment, "-m", "classifier.publish", "space", "user/demo", "--models", "user/tiny")
    assert len(api.list_repo_commits("user/demo", repo_type="space")) == 2  # the first made the repository
    folder = Path(api.snapshot_download("user/demo", repo_type="space", local_dir=tmp_path / "space"))
    card = SpaceCard.load(folder / "README.md").data
    assert (card.sdk, card.app_file, card.models, card.datasets) == (
        "gradio",
        "app.py",
        ["user/tiny"],
        ["uoft-cs/cifar10"],
    )
    [preloaded] = card.preload_from_hub
    name, files = preloaded.split()
    assert name == "user/tiny" and {"config.json", "model.safetensors"} <= set(files.split(","))
    assert api.get_space_variables("user/demo")["MODELS"].value == "user/tiny"
    # 'Duplicate this Space' gives the files without variables and secrets: these have to be enough for the app to
    # start.
    code = "import app; print(*app.load_predictors()[0])"
    isolated = {name: value for name, value in os.environ.items() if name not in ("MODELS", "PYTHONPATH")}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=isolated, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.split()) == sorted(path.parent.name for path in ROOT.glob("models/*/config.json"))
    with pytest.raises(HubError, match="user/demo is a Space of the kind gradio"):  # which a site would replace
        call(static_site.push_site, tmp_path, [], "user/demo")


@pytest.mark.skipif(not static_site.ENGINE.is_dir(), reason="needs onnxruntime-web: npm ci")
def test_a_static_space_is_one_commit_too(api, environment, tmp_path):
    folder = save_tiny_vit(tmp_path / "tiny")
    site = tmp_path / "site"
    run(environment, "-m", "classifier.publish", "static", "user/offline", "--model", folder, "--output_dir", site)
    assert len(api.list_repo_commits("user/offline", repo_type="space")) == 2  # the first made the repository
    files = set(api.list_repo_files("user/offline", repo_type="space"))
    assert {"index.html", "worker.js", "offline.js", "model.json", "onnxruntime/ort.wasm.min.mjs"} <= files
    assert json.loads((site / "model.json").read_text())["weights"] in files
    card = SpaceCard.load(site / "README.md").data
    assert (card.title, card.sdk, card.app_file) == ("offline", "static", "index.html")
    assert card.custom_headers == static_site.HEADERS
