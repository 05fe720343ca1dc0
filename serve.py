"""Serves a model folder's ONNX file with NVIDIA's Triton Inference Server: Open Inference Protocol over HTTP, on a CPU.

    python3 -m venv .venv-serve && .venv-serve/bin/pip install -r requirements-serve.txt
    python -m classifier.publish onnx runs/cnn
    .venv-serve/bin/python serve.py --model runs/cnn    # http://127.0.0.1:8000

Triton checks the names, types and shapes of the inputs and merges waiting requests into batches; onnxruntime computes.
The environment is separate and small, without torch. Linux only, because pytriton contains Triton as a Linux binary.
"""

import argparse
import ctypes.util
import os
import re
import signal
import socket
import sys
import sysconfig
from pathlib import Path

import numpy as np
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf
from pytriton.decorators import batch
from pytriton.model_config import ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from classifier.errors import ClassifierError, ModelError, run
from classifier.files import check_no_lfs_pointer


def main() -> None:
    """Reads the flags and serves."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", type=Path, default="models/cnn", help="model folder that holds onnx/model.onnx")
    parser.add_argument("--model_name", help="name in the address; the folder's name if not given")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 is open to the network")
    parser.add_argument("--port", type=int, default=8000, help="TCP port for HTTP")
    parser.add_argument("--max_batch_size", type=int, default=64, help="most images in one batch, and in one request")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    serve(args.model, args.model_name or args.model.resolve().name, args.host, args.port, args.max_batch_size)


def serve(model: Path, name: str, host: str, port: int, max_batch_size: int) -> None:
    """Serves `model`/onnx/model.onnx under `name` until Ctrl-C or SIGTERM."""
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise ModelError(f"{name!r} can't be part of an address: pass a --model_name of letters, digits, dots, _ and -")
    session = load(model / "onnx" / "model.onnx")

    @batch
    def infer(**inputs: np.ndarray) -> list[np.ndarray]:
        return session.run(None, inputs)

    use_own_libpython()
    try:
        socket.create_server((host, port)).close()  # fails now, not after waiting two minutes for Triton
    except OSError as error:
        raise ClassifierError(f"can't listen on {host}:{port} ({error.strerror}): choose another --port") from error
    config = TritonConfig(http_address=host, http_port=port, allow_grpc=False, allow_metrics=False)
    with Triton(config=config) as triton:
        triton.bind(
            model_name=name,
            infer_func=infer,
            inputs=[tensor(argument) for argument in session.get_inputs()],
            outputs=[tensor(argument) for argument in session.get_outputs()],
            config=ModelConfig(max_batch_size=max_batch_size),
        )
        triton.serve()


def load(file: Path) -> onnxruntime.InferenceSession:
    """The ONNX file, ready to compute on the CPU."""
    if not file.is_file():
        raise ModelError(
            f"no {file}: write it with `python -m classifier.publish onnx {file.parents[1]}`, or pass another --model"
        )
    check_no_lfs_pointer(file, ModelError)
    try:
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf) as error:
        raise ModelError(
            f"{file} is damaged ({error}): rewrite it with `python -m classifier.publish onnx {file.parents[1]}`"
        ) from error


def tensor(argument: onnxruntime.NodeArg) -> Tensor:
    """An input or output of the ONNX file as Triton describes it: without the batch, -1 for a size that may vary."""
    return Tensor(
        name=argument.name,
        dtype=np.float32,
        shape=tuple(size if isinstance(size, int) else -1 for size in argument.shape[1:]),
    )


def use_own_libpython() -> None:
    """Makes Triton load the shared library of the running Python, not of another patch release of the system."""
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    folder = sysconfig.get_config_var("LIBDIR")
    if (Path(folder) / f"libpython{version}.so.1.0").exists():
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("LD_LIBRARY_PATH")]))
    elif ctypes.util.find_library(f"python{version}") is None:
        raise ClassifierError(f"Triton needs libpython{version}.so.1.0: on Debian, apt-get install libpython{version}")


if __name__ == "__main__":
    run(main)
