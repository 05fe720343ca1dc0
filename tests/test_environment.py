"""Faults of the environment around a command: proxies, certificates, folders, encodings, ports.

A local job works all the same. What can't work ends in one line that names the variable, and exit code 2.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import certifi
import httpx
import pytest

from classifier import environment
from classifier.errors import ClassifierError
from space import middleware, server
from space.validation import Refused
from tests.helpers.models import save_tiny_vit
from tests.helpers.paths import ROOT
from tests.helpers.pictures import encoded, noise, picture, write_images, write_pictures
from tests.helpers.running_app import running_app
from tests.helpers.training import training_command

DEAD = "http://127.0.0.1:9"  # a proxy at a port where nothing listens
GNOME = "socks://127.0.0.1:7891/"  # as GNOME writes it
BAD_PROXIES = {
    "http_proxy": DEAD,
    "HTTPS_PROXY": DEAD,
    "ALL_PROXY": GNOME,
    "SSL_CERT_FILE": "/nowhere/ca.pem",
    "SSL_CERT_DIR": "/nowhere",
    "REQUESTS_CA_BUNDLE": "/nowhere/ca.pem",
}
# None of these is needed by a job on local files.
HARMLESS = BAD_PROXIES | {"TMPDIR": "/nowhere/tmp", "LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
NO_HOME = {"HOME": "/dev/null/none", "HF_HOME": ""}
# A message, and the settings that it is about. Only the first two are tried by default.
ONE_LINE = {
    r"ALL_PROXY is socks://127.0.0.1:7891/, .*socks5://.*unset": {"ALL_PROXY": GNOME},
    r"HTTPS_PROXY, http://127.0.0.1:9: .*unset that, or add huggingface.co to no_proxy": {"HTTPS_PROXY": DEAD},
    r"all_proxy is socks5://127.0.0.1:9, .*pip install socksio": {"all_proxy": "socks5://127.0.0.1:9"},
    r"https_proxy is http://127.0.0.1:port, .*correct it, or unset": {"https_proxy": "http://127.0.0.1:port"},
    r"SSL_CERT_FILE is /nowhere/ca.pem, .*path, or unset": {"SSL_CERT_FILE": "/nowhere/ca.pem"},
}
VARIABLES = re.compile("(http|https|all|no)_proxy|SSL_CERT_.*|HF_.*", re.IGNORECASE)


def run(*words: str | Path, settings: dict[str, str], cwd: Path) -> subprocess.CompletedProcess:
    """A command of Python with no settings of the network but these."""
    others = {name: value for name, value in os.environ.items() if not VARIABLES.fullmatch(name)}
    others |= {"HF_HOME": str(cwd / "huggingface"), "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *map(str, words)], env=others | settings, cwd=cwd, capture_output=True, text=True
    )


def the_line(result: subprocess.CompletedProcess) -> str:
    """The one line of an error that a user can cause; a progress bar may stand before it."""
    assert result.returncode == 2 and "Traceback" not in result.stderr, result.stderr
    return [line for line in result.stderr.splitlines() if line.strip()][-1]


@pytest.fixture
def no_settings(monkeypatch) -> pytest.MonkeyPatch:
    for name in filter(VARIABLES.fullmatch, list(os.environ)):
        monkeypatch.delenv(name)
    return monkeypatch


@pytest.mark.parametrize(
    ("message", "settings"),
    [pytest.param(*case, marks=pytest.mark.slow if i > 1 else ()) for i, case in enumerate(ONE_LINE.items())],
)
def test_messages_of_the_hub_name_the_variable(message, settings, tmp_path):
    code = """
from classifier.data import sources
from classifier.errors import ClassifierError
from classifier.hub import check_login, pull
from classifier.publish.space import push_space

for call, *names in (
    (check_login,), (pull, "user/model"), (sources.load_source, "user/data"), (push_space, "user/app", [])
):
    try:
        call(*names)
    except ClassifierError as error:
        print(error)
"""
    done = run("-c", code, settings=settings | {"HF_TOKEN": "hf_" + "w" * 34}, cwd=tmp_path)
    assert done.returncode == 0 and not done.stderr, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(re.search(message, line) for line in lines), done.stdout


def test_usable_settings_are_not_blamed(no_settings, tmp_path):
    certificates = tmp_path / "ca.pem"
    shutil.copyfile(certifi.where(), certificates)
    for name, value in {
        "http_proxy": "proxy:3128",
        "HTTPS_PROXY": "http://user:secret@proxy:3128/",  # pragma: allowlist secret
        "all_proxy": "https://proxy",
        "SSL_CERT_FILE": str(certificates),
        "SSL_CERT_DIR": "/nowhere",  # clients do not read it where there is a file
    }.items():
        no_settings.setenv(name, value)
    assert environment.unusable_settings() == {}
    no_settings.setenv("ALL_PROXY", GNOME)  # lower case counts
    assert environment.unusable_settings() == {}
    certificates.write_text("no certificate")
    assert list(environment.unusable_settings()) == ["SSL_CERT_FILE"]


def test_a_password_of_a_proxy_is_not_shown(no_settings):
    no_settings.setenv("https_proxy", "http://user:p@ss@proxy:3128")
    assert "https_proxy, http://proxy:3128:" in environment.network_advice("https://huggingface.co/api")
    no_settings.setenv("all_proxy", "socks://user:p@ss@proxy:1080")
    [message] = environment.unusable_settings().values()
    assert "ss@" not in message and "socks://proxy:1080" in message


def test_advice_keeps_to_the_proxy_of_the_address(no_settings):
    no_settings.setenv("http_proxy", DEAD)
    assert environment.network_advice("https://huggingface.co") == ""
    no_settings.setenv("all_proxy", DEAD)
    assert "all_proxy" in environment.network_advice("https://huggingface.co")
    no_settings.setenv("no_proxy", "huggingface.co")
    assert environment.network_advice("https://huggingface.co") == ""


def test_the_own_server_is_not_behind_a_proxy(no_settings):
    for name, value in {"no_proxy": "intern.example, 10.0.0.1", "NO_PROXY": "not.read", "ALL_PROXY": GNOME}.items():
        no_settings.setenv(name, value)
    no_settings.setenv("https_proxy", DEAD)
    environment.prepare_own_server("192.0.2.7")
    assert os.environ["no_proxy"] == "intern.example,10.0.0.1,localhost,127.0.0.1,::1,192.0.2.7"
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"]
    assert "ALL_PROXY" not in os.environ and os.environ["https_proxy"] == DEAD
    with httpx.Client() as client:  # the client that gradio uses
        transports = [client._transport_for_url(httpx.URL(f"http://{host}")) for host in ("localhost", "192.0.2.7")]
        assert transports == [client._transport, client._transport]


def test_a_full_disk_and_a_closed_folder_are_named_by_their_variables(no_settings, tmp_path):
    no_settings.setenv("HF_HOME", str(tmp_path / "cache"))
    refused = PermissionError(13, "Permission denied", str(tmp_path / "cache/hub/models"))
    assert f"check {tmp_path / 'cache'}, or set HF_HOME" in environment.folder_advice(refused)
    no_settings.setattr(environment.tempfile, "tempdir", "/nowhere/tmp")
    full = OSError(28, "No space left on device", "/nowhere/tmp/tmpab/model.onnx")
    assert "free space in /nowhere/tmp, or set TMPDIR" in environment.folder_advice(full)
    copied = OSError(
        28, "No space left on device", "run/model.safetensors", None, "/nowhere/tmp/tmpab/model.safetensors"
    )
    assert "set TMPDIR" in environment.folder_advice(copied)
    assert environment.folder_advice(PermissionError(13, "Permission denied", "/elsewhere/file")) == ""
    assert environment.folder_advice(PermissionError(13, "Permission denied", "/nowhere/tmp/output/file")) == ""
    unnamed = OSError(28, "No space left on device")  # as write() raises it
    no_settings.setattr(environment, "LITTLE_SPACE", 0)
    assert environment.folder_advice(unnamed) == ""
    no_settings.setattr(environment, "LITTLE_SPACE", 2**60)
    assert f"free space in {tmp_path / 'cache'}, or set HF_HOME" in environment.folder_advice(unnamed)


@pytest.mark.parametrize("variable", ["PORT", "GRADIO_SERVER_PORT"])
def test_the_message_about_a_port_names_the_variable_that_counts(variable, monkeypatch):
    for name in ("PORT", "SPACE_ID", "GRADIO_SERVER_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GRADIO_SERVER_PORT", "1")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setenv(variable, str(port))
        with pytest.raises(ClassifierError, match=rf":{port}: Address already in use: set {variable} to another"):
            server.address()
    assert server.address()[1] == port
    for wrong in ("seven", "70000", "²"):
        monkeypatch.setenv(variable, wrong)
        with pytest.raises(ClassifierError, match=f"{variable} is '{wrong}'"):
            server.address()
    monkeypatch.setenv(variable, str(port))
    for host in ("192.0.2.7", "no.such.host.invalid"):
        monkeypatch.setenv("GRADIO_SERVER_NAME", host)
        with pytest.raises(ClassifierError, match=f"listen at {host}:{port}: set GRADIO_SERVER_NAME to"):
            server.address()


@pytest.mark.skipif(not hasattr(os, "setuid") or os.getuid() != 0, reason="only root may become another user")
def test_each_user_has_a_folder_for_uploads(tmp_path):
    code = "import os, classifier.environment; os.setuid(1234); import space; print(os.environ['GRADIO_TEMP_DIR'])"
    settings = {"TMPDIR": str(tmp_path), "GRADIO_TEMP_DIR": ""}
    tmp_path.chmod(0o777)
    assert run("-c", code, settings=settings, cwd=tmp_path).stdout.strip().endswith("classifier-uploads-1234")


def test_a_folder_that_can_not_be_written_to_refuses_uploads(tmp_path, caplog):
    middleware.check_uploads(tmp_path / "new")  # a folder that was deleted is made again
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="uploads can't be written") as refused:
        middleware.check_uploads(tmp_path / "file")
    assert refused.value.status == 503 and "GRADIO_TEMP_DIR" in caplog.text


def test_the_app_in_a_bad_environment(tmp_path):
    uploads = tmp_path / "uploads"
    model = save_tiny_vit(tmp_path / "tiny")
    with running_app([model], tmp_path, HARMLESS | {"HF_HUB_OFFLINE": "0"}) as (url, _):

        def upload() -> httpx.Response:
            return httpx.post(f"{url}/gradio_api/upload", files={"files": ("a.png", encoded(picture(0)))})

        assert upload().status_code == 200 and httpx.get(f"{url}/health").text == "ok"
        uploads.rename(tmp_path / "moved")
        uploads.touch()
        health, refused = httpx.get(f"{url}/health"), upload()
        assert (health.status_code, refused.status_code) == (503, 503)
        assert "uploads can't be written" in health.text and "uploads can't be written" in refused.json()["error"]
        uploads.unlink()
        assert upload().status_code == 200 and httpx.get(f"{url}/health").text == "ok"
    assert "Traceback" not in (tmp_path / "app.log").read_text()


def test_a_local_job_in_a_bad_environment(tiny_vit, tmp_path):
    pictures = write_pictures(tmp_path / "in/Bilder ö", 3).parent
    flags = ("--model", tiny_vit, "--output", tmp_path / "Tabelle 表.csv", "--top_k", "1")
    done = run("-m", "classifier.predict", pictures, *flags, settings=HARMLESS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert r"Tabelle \u8868.csv" in done.stdout
    assert "Bilder ö" in (tmp_path / "Tabelle 表.csv").read_text(encoding="utf-8")


# All commands, for .ci/run


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """A folder with a dataset whose labels and path are not ASCII, a model of it, and a backbone."""
    folder = tmp_path_factory.mktemp("local")
    data = folder / "Bilder ö"
    for seed, (split, n) in enumerate({"train": 48, "validation": 16, "test": 8}.items()):
        write_images(data, *noise(n, seed=seed), split=split)
        for old, new in {"blue": "bläulich", "red": "赤"}.items():
            (data / split / old).rename(data / split / new)
    save_tiny_vit(folder / "vit")
    command = training_command(data, folder / "run", "--num_train_epochs", "1")
    subprocess.run(command, check=True, capture_output=True)
    return folder


def commands(local: Path, output: Path) -> dict[str, list[str | Path]]:
    """A job on local files for each command."""
    data, model = local / "Bilder ö", local / "run"
    of_data, to = ("--dataset", data), ("--output_dir",)
    epoch = ("--num_train_epochs", "1")
    few = ("--format", "md", "--corrupted_samples", "0", "--ood_samples", "0")
    return {
        "train": training_command(data, output / "run", *epoch)[1:],
        "finetune_vit": [ROOT / "finetune_vit.py", *of_data, "--model", local / "vit", *epoch, *to, output / "run"],
        "evaluate": [ROOT / "evaluate.py", *of_data, "--model", model, *few, *to, output / "report"],
        "predict": ["-m", "classifier.predict", data / "test", "--model", model, "--output", output / "out.csv"],
        "clean": ["-m", "classifier.clean", data, "--model", model, *to, output / "clean"],
        "average": ["-m", "classifier.average", model, "--stages", model, *to, output / "mean"],
        "publish": ["-m", "classifier.publish", "push", model, "user/model"],
    }


NAMES = list(commands(Path(), Path()))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_help_in_a_bad_environment(name, tmp_path):
    words = commands(tmp_path, tmp_path)[name]
    done = run(*words[: 2 if words[0] == "-m" else 1], "--help", settings=HARMLESS | NO_HOME, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith("usage:"), done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_local_job_in_a_bad_environment(name, local, tmp_path):
    done = run(*commands(local, tmp_path)[name], settings=HARMLESS, cwd=tmp_path)
    if name == "publish":  # it needs the network
        assert re.search("SSL_CERT_FILE|ALL_PROXY", the_line(done))
    elif name == "average":  # refused in any environment, once the models are loaded
        assert "is a CNN of train.py" in the_line(done)
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_job_without_a_home(local, tmp_path):
    done = run(*commands(local, tmp_path)["finetune_vit"], settings=NO_HOME, cwd=tmp_path)
    assert done.returncode == 0 or "HF_HOME" in the_line(done), done.stderr
