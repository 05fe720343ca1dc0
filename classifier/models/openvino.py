"""A model's forward pass on a CPU by OpenVINO: the same logits to 1e-5, and faster, once it is compiled.

    predictor = load_predictor("models/vit")
    predictor.compile()

By how much, benchmarks/inference.json tells of one machine. In float32, though some processors would take bfloat16 by
themselves: that changes logits by hundredths, and the app has to agree with everyone else.
"""

import threading
import warnings
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from classifier.errors import ModelError
from classifier.models.loading import quiet

MOST = 1e-3  # difference of logits, on noise


class Logits(nn.Module):
    """A model that takes and gives a tensor, as tracing wants it."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, C)."""
        return self.model(pixel_values=pixel_values).logits


def compile_model(model: PreTrainedModel, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from pixel values (N, 3, H, W), any N, to logits (N, C). Calls from several threads take turns.

    Args:
        model: on the CPU, in float32.
        size: pixels a side.

    Raises:
        ModelError: the architecture can't be converted, or answers differently afterwards.
    """
    import openvino  # only here: who computes with torch alone does not wait for it

    model = Logits(model).eval()
    try:
        with torch.inference_mode(), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what tracing may miss: the comparison below finds it
            graph = openvino.convert_model(
                model, example_input=torch.zeros(2, 3, size, size), input=[-1, 3, size, size]
            )
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"OpenVINO can't convert {type(model.model).__name__} ({reason}): use it uncompiled"
        ) from error
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # which puts the first thread of every process on the first core
    }
    compiled, turn = openvino.Core().compile_model(graph, "CPU", settings), threading.Lock()

    def forward(pixel_values: torch.Tensor) -> torch.Tensor:
        with turn:
            return torch.from_numpy(compiled(pixel_values.numpy())[0].copy())

    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, expected = forward(images), model(images)
    if logits.shape != expected.shape or not (logits - expected).abs().max() < MOST:
        raise ModelError(f"{type(model.model).__name__} compiled by OpenVINO gives other logits: use it uncompiled")
    return forward
