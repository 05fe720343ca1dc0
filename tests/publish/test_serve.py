"""serve.py as docs/serving.md starts it, in an environment of its own: `.venv-serve`, or the one whose Python
SERVE_PYTHON names.
"""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from classifier import load_predictor
from classifier.publish import export
from tests.helpers.models import save_tiny_cnn
from tests.helpers.paths import ROOT
from tests.helpers.pictures import picture

PYTHON = Path(os.environ.get("SERVE_PYTHON", ROOT / ".venv-serve/bin/python"))
STARTED_WITHIN_S = 300  # far more than the 10 s of an idle machine, for tests run beside a training

pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="needs requirements-serve.txt installed in .venv-serve")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A random CNN for 20 pixels a side, with its ONNX file."""
    folder = save_tiny_cnn(tmp_path_factory.mktemp("models") / "tiny.cnn", image_size=20)
    export.to_onnx(folder)
    return folder


@contextlib.contextmanager
def running_server(folder: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """serve.py on a free port of loopback; gives the model's address and the process once the model is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v2/models/{folder.name}"
    with log.open("w") as output:
        command = [PYTHON, ROOT / "serve.py", "--model", folder, "--port", str(port)]
        server = subprocess.Popen(command, cwd=log.parent, stdout=output, stderr=output)
    try:
        deadline = time.monotonic() + STARTED_WITHIN_S
        while not is_ready(url):
            assert server.poll() is None and time.monotonic() < deadline, f"no server:\n{log.read_text()}"
            time.sleep(0.1)
        yield url, server
    finally:
        if server.poll() is None:
            server.send_signal(signal.SIGTERM)  # killed, it would leave Triton running
        server.wait(60)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/ready").status_code == 200
    return False


def infer(url: str, pixel_values: np.ndarray) -> httpx.Response:
    tensor = {
        "name": "pixel_values",
        "shape": pixel_values.shape,
        "datatype": "FP32",
        "data": pixel_values.ravel().tolist(),
    }
    return httpx.post(f"{url}/infer", json={"inputs": [tensor]}, timeout=60)


def test_gives_the_predictors_probabilities_and_stops_on_sigterm(folder, tmp_path):
    predictor = load_predictor(folder, device="cpu")
    images = [picture(i) for i in range(3)]
    pixel_values = predictor.processor(images=images, return_tensors="np")["pixel_values"]  # (3, 3, 20, 20)
    with running_server(folder, tmp_path / "serve.log") as (url, server):
        assert httpx.get(url.partition("/v2/")[0] + "/v2/health/ready").status_code == 200
        for n in (3, 1):  # any batch size
            [output] = infer(url, pixel_values[:n]).raise_for_status().json()["outputs"]
            assert (output["name"], output["shape"], output["datatype"]) == ("logits", [n, 10], "FP32")
            probabilities = torch.tensor(output["data"]).reshape(n, 10).softmax(dim=1).numpy()
            np.testing.assert_allclose(probabilities, predictor.probabilities(images[:n]), atol=1e-4, rtol=0)
        refused = infer(url, pixel_values[:, :, :16, :16])
        assert refused.status_code == 400 and "[-1,3,20,20]" in refused.json()["error"]

        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
        with pytest.raises(httpx.ConnectError):  # Triton, a process of its own, has gone as well
            httpx.get(f"{url}/ready")


def test_names_what_is_missing_and_the_next_step(tmp_path):
    command = [PYTHON, ROOT / "serve.py", "--model", tmp_path]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=STARTED_WITHIN_S)
    assert ran.returncode == 2 and len(ran.stderr.splitlines()) == 1
    assert f"no {tmp_path}/onnx/model.onnx: write it with `python -m classifier.publish onnx {tmp_path}`" in ran.stderr
