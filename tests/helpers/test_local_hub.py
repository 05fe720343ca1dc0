"""The unmodified clients against the Hub on loopback. What they do by themselves about a fault is what these tests
saw.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.helpers.local_hub import Exchange, LocalHub

MIRROR = os.environ.get("HUB_MIRROR")
MIB = 2**20
KEPT_STEP = 10 * MIB  # a client writes what it downloads in such pieces, and resumes after the last whole one
pytestmark = pytest.mark.filterwarnings(
    "ignore:Use 'content=:DeprecationWarning"
)  # huggingface_hub's own use of httpx2
needs_mirror = pytest.mark.skipif(not MIRROR, reason="needs HUB_MIRROR, a folder with the Hub's files")


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """This process may have been started offline, which the client reads when it is imported."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub(tmp_path) -> Iterator[LocalHub]:
    with LocalHub(tmp_path / "hub") as hub:
        yield hub


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model folder: text and binary files, nested and empty ones, and names that an address has to quote."""
    folder = tmp_path / "model"
    (folder / "onnx" / "fp 16").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [cifar10]\n---\n# Näme\n")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(os.urandom(3 * MIB))
    (folder / "onnx" / "fp 16" / "model#1.onnx").write_bytes(os.urandom(1000))
    (folder / "picture").write_bytes(b"\x89PNG\0" + os.urandom(1000))
    (folder / "empty.txt").touch()
    return folder


def contents(folder: str | Path) -> dict[str, bytes]:
    files = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.name != ".gitattributes"}


def push(api: HfApi, folder: Path, repo_id: str = "user/model", **how) -> str:
    api.create_repo(repo_id, exist_ok=True)
    return api.upload_folder(repo_id=repo_id, folder_path=folder, **how).oid


def sent_files(hub: LocalHub) -> list[Exchange]:
    return [exchange for exchange in hub.requests if exchange.method == "PUT"]


def downloads(hub: LocalHub) -> list[Exchange]:
    return [exchange for exchange in hub.requests if exchange.method == "GET" and "/resolve/" in exchange.path]


def test_a_pushed_folder_comes_back_as_it_was(hub, api, folder, tmp_path):
    oid = push(api, folder, commit_message="First")
    assert [commit.title for commit in api.list_repo_commits("user/model")] == ["First", "initial commit"]

    snapshot = Path(api.snapshot_download("user/model", cache_dir=tmp_path / "cache"))
    assert snapshot.name == oid == api.model_info("user/model").sha
    assert contents(snapshot) == contents(folder)

    listed = {file.path: file for file in api.list_repo_tree("user/model", recursive=True) if hasattr(file, "lfs")}
    large = {"model.safetensors", "onnx/fp 16/model#1.onnx", "picture"}
    assert {path for path, file in listed.items() if file.lfs} == large
    assert len(sent_files(hub)) == len(large)
    for path, content in contents(folder).items():
        assert listed[path].size == len(content)
        assert not listed[path].lfs or listed[path].lfs.sha256 == hashlib.sha256(content).hexdigest()
    assert [entry.path for entry in api.list_repo_tree("user/model", "onnx")] == ["onnx/fp 16"]
    assert api.model_info("user/model").card_data.license == "apache-2.0"


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_datasets_and_spaces_are_repositories_of_their_own(api, folder, tmp_path, kind):
    url = api.create_repo("user/model", repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    assert url.repo_type == kind and url.repo_id == "user/model"
    api.upload_folder(repo_id="user/model", repo_type=kind, folder_path=folder)
    assert contents(api.snapshot_download("user/model", repo_type=kind, cache_dir=tmp_path)) == contents(folder)
    assert not api.repo_exists("user/model")


def test_a_second_push_sends_no_file_again(hub, api, folder):
    first = push(api, folder)
    already = len(sent_files(hub))
    assert push(api, folder) == first, "nothing has changed, so there is nothing to commit"
    (folder / "model.safetensors").rename(folder / "renamed.safetensors")
    (folder / "config.json").write_text('{"changed": true}')
    assert push(api, folder, delete_patterns="*") != first
    assert len(sent_files(hub)) == already
    assert set(api.list_repo_files("user/model")) == {*contents(folder), ".gitattributes"}


def test_revisions_are_branches_tags_and_commits(api, folder, tmp_path):
    first = push(api, folder)
    api.create_tag("user/model", tag="v1")
    api.create_branch("user/model", branch="try/this")
    on_branch = api.upload_file(
        path_or_fileobj=b"new", path_in_repo="config.json", repo_id="user/model", revision="try/this"
    ).oid
    for revision, content in {"main": b"{}", "v1": b"{}", first: b"{}", "try/this": b"new", on_branch: b"new"}.items():
        path = api.hf_hub_download("user/model", "config.json", revision=revision, cache_dir=tmp_path)
        assert Path(path).read_bytes() == content, revision
    refs = api.list_repo_refs("user/model")
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": first, "try/this": on_branch}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    with pytest.raises(RevisionNotFoundError):
        api.upload_file(path_or_fileobj=b"new", path_in_repo="config.json", repo_id="user/model", revision="v1")


def test_what_is_not_there_has_the_class_of_the_hub(api, folder, tmp_path):
    push(api, folder)
    with pytest.raises(RepositoryNotFoundError):
        api.hf_hub_download("user/other", "config.json", cache_dir=tmp_path)
    with pytest.raises(RevisionNotFoundError):
        api.hf_hub_download("user/model", "config.json", revision="v2", cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download("user/model", "other.json", cache_dir=tmp_path)
    assert api.file_exists("user/model", "config.json") and not api.file_exists("user/model", "other.json")


def test_a_private_repository_needs_a_token(hub, api, folder, tmp_path):
    api.create_repo("user/model", private=True)
    push(api, folder)
    anybody, reader = HfApi(endpoint=hub.url, token=False), HfApi(endpoint=hub.url, token=hub.read_token)
    with pytest.raises(RepositoryNotFoundError):
        anybody.snapshot_download("user/model", cache_dir=tmp_path / "anybody")
    assert contents(reader.snapshot_download("user/model", cache_dir=tmp_path / "reader")) == contents(folder)
    api.create_repo("user/public")
    assert anybody.model_info("user/public").private is False


def test_a_seed_is_served_and_left_alone(tmp_path, folder):
    seed = tmp_path / "seed" / "models" / "alice" / "tiny"
    seed.parent.mkdir(parents=True)
    folder.rename(seed)
    before = contents(seed)

    def commit(name: str) -> str:
        with LocalHub(tmp_path / name, seed=tmp_path / "seed") as hub:
            api = HfApi(endpoint=hub.url, token=hub.token)
            snapshot = Path(api.snapshot_download("alice/tiny", cache_dir=tmp_path / "cache" / name))
            assert contents(snapshot) == contents(seed)
            with pytest.raises(HfHubHTTPError):
                api.upload_file(path_or_fileobj=b"", path_in_repo="config.json", repo_id="alice/tiny")
            push(api, seed, "user/copy")
            assert not sent_files(hub), "large files that any repository has need not be sent"
            return snapshot.name

    first = commit("first")
    assert commit("second") == first and contents(seed) == before
    (seed / "config.json").write_text("[]")
    assert commit("third") != first


# Faults. Each test says what the client does by itself.


@pytest.fixture
def pushed(hub, api, folder) -> LocalHub:
    push(api, folder)
    hub.requests.clear()
    return hub


def test_busy_for_a_moment(pushed, api, folder, tmp_path):
    fault = pushed.fail("/resolve/", method="HEAD", status=503)
    path = api.hf_hub_download("user/model", "config.json", cache_dir=tmp_path / "head")
    assert Path(path).read_text() == "{}" and fault.times == 0, "a HEAD is asked again"
    pushed.fail("/resolve/", method="GET", status=503)
    with pytest.raises(HfHubHTTPError):  # a GET is not
        api.hf_hub_download("user/model", "config.json", cache_dir=tmp_path / "get")
    pushed.fail("/revision/", status=503)
    with pytest.raises(LocalEntryNotFoundError, match="503"):
        api.snapshot_download("user/model", cache_dir=tmp_path / "snapshot")


def test_no_answer_at_all(pushed, api, tmp_path):
    pushed.fail("/resolve/", method="HEAD", cut=0)
    with pytest.raises(httpx2.RemoteProtocolError) as error:
        api.hf_hub_download("user/model", "config.json", cache_dir=tmp_path)
    assert not isinstance(error.value, OSError), "unlike what else the client raises"


def test_wrong_bytes_are_not_noticed_by_the_client(pushed, api, folder, tmp_path):
    pushed.fail("/resolve/", method="GET", corrupt=True)
    path = Path(api.hf_hub_download("user/model", "model.safetensors", cache_dir=tmp_path))
    sent, received = (folder / "model.safetensors").read_bytes(), path.read_bytes()
    assert len(received) == len(sent) and received[0] == sent[0] ^ 0xFF
    assert path.resolve().name == hashlib.sha256(sent).hexdigest(), "the cache calls it by the sha256 it does not have"


def test_a_slow_answer_takes_its_time(pushed, api, tmp_path):
    pushed.fail("/resolve/", method="GET", slow=0.02)
    began = time.monotonic()
    api.hf_hub_download("user/model", "model.safetensors", cache_dir=tmp_path)
    assert time.monotonic() - began >= 3 * MIB / 2**16 * 0.02


def test_an_expired_token(pushed, api, folder, tmp_path):
    pushed.fail("", expired=True, times=4)
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        api.whoami()
    with pytest.raises(RepositoryNotFoundError, match='User Access Token "tests" is expired'):
        api.snapshot_download("user/model", cache_dir=tmp_path)
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="expired"):
            api.create_repo("user/other")
    api.create_repo("user/other")  # the fault is used up


# Other processes, with what they need in the environment


def python(code: str, environment: dict[str, str], folder: Path) -> dict:
    """Runs `code` in another working directory and gives the JSON that it printed."""
    process = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


@needs_mirror
def test_load_dataset_takes_the_true_data_from_it(tmp_path):
    code = """
import json
from datasets import load_dataset
test = load_dataset("uoft-cs/cifar10", data_files={"test": "plain_text/test-*"}, split="test")
names = test.features["label"].names
print(json.dumps({"n": len(test), "size": test[0]["img"].size, "labels": [names[label] for label in
test[:5]["label"]]}))
"""
    with LocalHub(tmp_path / "hub", seed=MIRROR) as hub:
        got = python(code, hub.environment(tmp_path / "home"), tmp_path)
        assert sum(exchange.sent for exchange in downloads(hub)) > 20 * MIB
    assert got == {"n": 10_000, "size": [32, 32], "labels": ["cat", "ship", "ship", "airplane", "frog"]}


@needs_mirror
def test_from_pretrained_takes_true_weights_from_it(tmp_path):
    code = """
import json
from transformers import AutoModelForImageClassification
model = AutoModelForImageClassification.from_pretrained("facebook/deit-tiny-patch16-224")
print(json.dumps({"labels": model.config.num_labels, "parameters": model.num_parameters()}))
"""
    with LocalHub(tmp_path / "hub", seed=MIRROR) as hub:
        got = python(code, hub.environment(tmp_path / "home", token=""), tmp_path)
        commit = HfApi(endpoint=hub.url, token=False).model_info("facebook/deit-tiny-patch16-224").sha
    assert got == {"labels": 1000, "parameters": 5_717_416}
    assert [path.name for path in (tmp_path / "home").glob("hub/models--facebook--*/snapshots/*")] == [commit]
