"""A model's forward pass on a CPU, compiled by OpenVINO: faster, with the same logits to 1e-5.

    predictor = load_predictor("models/vit")
    predictor.compile()

benchmarks/inference.json has the speed on one machine. The precision is float32 on every processor: OpenVINO would
choose bfloat16 on some, which changes logits by hundredths, and the app has to agree with the other ways of loading.
"""

import sys
import threading
import warnings
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel

from classifier.errors import ModelError, first_line
from classifier.models.loading import quiet

LOGIT_TOLERANCE = 1e-3  # largest difference of the logits of random images


class LogitsModel(nn.Module):
    """A model whose input and output are tensors, as tracing requires."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, C)."""
        return self.model(pixel_values=pixel_values).logits


def compile_model(model: PreTrainedModel, size: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """A function from pixel values (N, 3, H, W), for any N, to logits (N, C). Concurrent calls run one at a time.

    The model is on the CPU, in float32; H = W = `size` pixels.

    Raises:
        ModelError: the architecture can't be converted, or gives other logits when compiled.
    """
    # OpenVINO reports imports and conversions to Google Analytics, unless this module of its own is missing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino  # here, so that programs that don't compile need not wait for the import

    traced = LogitsModel(model).eval()
    try:
        with torch.inference_mode(), quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about untraceable code: the comparison below detects its effects
            graph = openvino.convert_model(
                traced, example_input=torch.zeros(2, 3, size, size), input=[-1, 3, size, size]
            )
    except RuntimeError as error:
        raise ModelError(
            f"OpenVINO can't convert {type(model).__name__} ({first_line(error)}): use it uncompiled"
        ) from error
    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # pinning would put the first thread of every process on the first core
    }
    compiled, lock = openvino.Core().compile_model(graph, "CPU", settings), threading.Lock()

    def forward(pixel_values: torch.Tensor) -> torch.Tensor:
        with lock:
            return torch.from_numpy(compiled(pixel_values.numpy())[0].copy())

    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, expected = forward(images), traced(images)
    if logits.shape != expected.shape or not (logits - expected).abs().max() < LOGIT_TOLERANCE:
        raise ModelError(f"{type(model).__name__} compiled by OpenVINO gives other logits: use it uncompiled")
    return forward
