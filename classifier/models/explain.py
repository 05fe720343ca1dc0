"""Where a model looks: a heat map of the pixels that speak for a label, over what the model saw of an image.

    from classifier import explain, load_predictor
    predictor = load_predictor("models/cnn")
    explain.overlay(explain.seen(predictor, "a.jpg"), explain.heatmap(predictor, "a.jpg")).save("a.png")

CNNs, and transformers that end in a grid of tokens (Swin): Grad-CAM (arXiv:1610.02391) of the last feature map.
Transformers that attend over the whole image (ViT, DeiT, timm's): attention weighted by its gradient and multiplied
through the layers (arXiv:2103.15679), which is attention roll-out (arXiv:2005.00928) for one label.

Nothing is hooked into the model nor changed in it: a mode that PyTorch keeps for each thread sees the operations of one
forward pass, so that other threads can use the model meanwhile.
"""

import math

import matplotlib
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from classifier.errors import ModelError
from classifier.models import processor
from classifier.models.cnn import CifarCnnForImageClassification
from classifier.models.predictor import ImageInput, Predictor

SOFTMAX = (F.softmax, torch.softmax, torch.Tensor.softmax)


def heatmap(predictor: Predictor, image: ImageInput, label: int | None = None) -> np.ndarray:
    """How much each pixel that the model saw speaks for a label, in proportion to the one that does most.

    Args:
        predictor: the model. Where it averages views of an image (the scratch CNN), the plain one is explained.
        image: a path, encoded bytes or a PIL image.
        label: index of the class; by default that of the highest probability.

    Returns:
        float32 (H, W) in [0, 1], in the coordinates of `seen`. All 0 where nothing speaks for the label.

    Raises:
        ImageError: a file can't be read.
        ModelError: the model has neither a last feature map nor attention over the whole image, or gave NaN or
            infinity.
    """
    pixel_values = predictor.pixel_values([image]).requires_grad_()  # (1, 3, H, W); weights may be frozen
    size = pixel_values.shape[2:]
    if label is None:
        with torch.no_grad():
            label = int(predictor.model(pixel_values).logits.argmax())
    with torch.enable_grad(), Recorder(size) as recorded:
        logit = one_view(predictor.model, pixel_values)[0, label]

    if recorded.attends_globally():
        *gradients, of_tokens = torch.autograd.grad(logit, [*recorded.attentions, recorded.tokens])
        attentions = [attention[0].detach() for attention in recorded.attentions]
        readout = of_tokens[0].norm(
            dim=-1
        )  # (T,): not 0 for the class token, or else for the patches that are averaged
        heat = relevance(attentions, [gradient[0] for gradient in gradients], shares(readout, readout.sum()))
        rows, columns = grid(len(heat), size)
        heat = heat[-rows * columns :].view(rows, columns)  # class and register tokens come first
    elif recorded.features is not None:
        (gradient,) = torch.autograd.grad(logit, [recorded.features])
        heat = grad_cam(recorded.channels_first(recorded.features.detach()), recorded.channels_first(gradient))
    else:
        raise ModelError(
            f"can't tell where {predictor.name} looks: {type(predictor.model).__name__} neither ends in a feature "
            "map nor "
            "attends over the whole image, choose a CNN or a ViT"
        )
    if not heat.isfinite().all():
        raise ModelError(
            f"{predictor.name} gave NaN or infinity: its weights may be damaged, fetch or train them again"
        )
    heat = enlarge(heat.float(), size, stride_of(predictor.model))
    return shares(heat, heat.max()).cpu().numpy()


def seen(predictor: Predictor, image: ImageInput) -> np.ndarray:
    """What the model saw of an image, its normalisation undone: uint8 (H, W, 3). Errors as `Predictor.logits`."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in processor.mean_std(predictor.processor))
    picture = predictor.pixel_values([image])[0].float().cpu() * std + mean  # (3, H, W) in units of 255
    return (picture * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def overlay(picture: np.ndarray, heat: np.ndarray, alpha: float = 0.5) -> Image.Image:
    """The heat map over the picture, in a perceptually uniform scale that the colour-blind can read: dark is cold.

    Args:
        picture: uint8 (H, W, 3), of `seen`.
        heat: (H, W) in [0, 1], of `heatmap`.
        alpha: share of the heat map, in [0, 1].
    """
    colours = matplotlib.colormaps["inferno"](heat)[..., :3] * 255  # (H, W, 3)
    return Image.fromarray(np.rint((1 - alpha) * picture + alpha * colours).astype(np.uint8))


def one_view(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> logits (N, C), of the image as it is where the scratch CNN would average several views of it."""
    if isinstance(model, CifarCnnForImageClassification):
        return model.forward_view(pixel_values)
    return model(pixel_values).logits


def shares(values: torch.Tensor, whole: torch.Tensor) -> torch.Tensor:
    """`values`, at least 0, as fractions of `whole`; 0 where that is 0, as with a head of zeros."""
    return values / whole.clamp(min=torch.finfo(whole.dtype).tiny)


def stride_of(model: PreTrainedModel) -> int | None:
    """Pixels from a cell of the last feature map to the next; None where the map covers the image to all sides.

    The scratch CNN's pooling leaves out odd rows and columns: of 32 pixels, its 3×3 map covers the upper left 24.
    """
    return 2 ** len(model.config.widths) if isinstance(model, CifarCnnForImageClassification) else None


def enlarge(heat: torch.Tensor, size: tuple[int, int], stride: int | None = None) -> torch.Tensor:
    """(h, w) -> `size` (H, W), bilinear: cells lie `stride` pixels apart from the upper left, or by default fill the
    image.

    What lies beyond the last row and column of cells gets their values.
    """
    (height, width), (rows, columns) = size, heat.shape
    heat = heat[None, None]
    if stride is None:
        return F.interpolate(heat, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
    below, right = max(math.ceil(height / stride) - rows, 0), max(math.ceil(width / stride) - columns, 0)
    heat = F.pad(heat, (0, right, 0, below), mode="replicate")
    heat = F.interpolate(heat, scale_factor=stride, mode="bilinear", align_corners=False)
    return heat[0, 0, :height, :width]


def grad_cam(features: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (arXiv:1610.02391, equations 1 and 2): each channel weighted by its mean gradient; below 0 becomes 0.

    Args:
        features: a feature map, (C, h, w).
        gradients: of the label's logit by it, (C, h, w).

    Returns:
        (h, w), at least 0.
    """
    return (gradients.mean(dim=(1, 2), keepdim=True) * features).sum(dim=0).relu()


def relevance(attentions: list[torch.Tensor], gradients: list[torch.Tensor], readout: torch.Tensor) -> torch.Tensor:
    """Relevance of the first layer's tokens (arXiv:2103.15679, equations 5 and 6), what residuals alone carry left out.

    Args:
        attentions: softmax weights of each layer, first to last, (heads, T, T): a row is what a token reads.
        gradients: of the label's logit by these, in the same shapes.
        readout: share of each of the last layer's tokens in what the classifier reads, (T,).

    Returns:
        (T,), at least 0.
    """
    row = readout  # of the product of all layers, so that no T×T matrices are multiplied
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        row = row + row @ (attention * gradient).relu().mean(dim=0)
    return row - readout


def grid(n: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the largest grid of at most n cells that is shaped like an image of `size` (H, W)."""
    height, width = size
    rows = math.isqrt(n * height // width)
    return rows, rows * width // height


class Recorder(TorchFunctionMode):
    """Within `with Recorder(size) as recorded:`, what this thread computes of one image of `size` (H, W).

    Attributes:
        attentions: softmax weights of each attention, (1, heads, T, T) where it is over all of the image's tokens.
        tokens: what the last layer norm of more than one position gave, None without one.
        features: the last feature map, None where attention follows it: (1, C, h, w), or a layer norm's (1, h, w, C) or
            (1, h·w, C), told apart by `channels_last`.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size
        self.attentions: list[torch.Tensor] = []
        self.tokens: torch.Tensor | None = None
        self.features: torch.Tensor | None = None
        self.channels_last = False

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self.attend(*args, **kwargs)
        out = func(*args, **kwargs)
        if not isinstance(out, torch.Tensor):
            return out
        if func in SOFTMAX and out.ndim == 4:
            self.attentions.append(out)
            self.features = None
        elif func is F.layer_norm and out.numel() > out.shape[-1]:
            self.tokens = out
            if self.is_map(out):
                self.features, self.channels_last = out, True
        elif out.ndim == 4 and self.is_grid(*out.shape[2:]):
            self.features, self.channels_last = out, False
        return out

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        """Fused attention, which does not give its weights, in two steps: applied to the identity matrix, it does."""
        identity = torch.eye(key.shape[-2], dtype=key.dtype, device=key.device).expand(*key.shape[:-1], -1)
        weights = F.scaled_dot_product_attention(query, key, identity, *args, **kwargs)
        self.attentions.append(weights)
        self.features = None
        return weights @ value

    def is_map(self, tokens: torch.Tensor) -> bool:
        """Whether a layer norm's output is a feature map, channels last, its rows and columns apart or in one."""
        if tokens.ndim == 3:
            return math.prod(grid(tokens.shape[1], self.size)) == tokens.shape[1] > 1
        return tokens.ndim == 4 and self.is_grid(*tokens.shape[1:3])

    def is_grid(self, rows: int, columns: int) -> bool:
        """Whether it has more than one cell, and the image's shape but for a row or column."""
        height, width = self.size
        return rows * columns > 1 and abs(rows * width - columns * height) < max(height, width)

    def attends_globally(self) -> bool:
        """Whether each attention was over all of the tokens that the last layer norm gave."""
        if not self.attentions or self.tokens is None or self.tokens.ndim != 3:
            return False
        n = self.tokens.shape[1]
        return all(len(weights) == 1 and weights.shape[2:] == (n, n) for weights in self.attentions)

    def channels_first(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor in the layout of `features` -> (C, h, w)."""
        if not self.channels_last:
            return x[0]
        rows, columns = x.shape[1:3] if x.ndim == 4 else grid(x.shape[1], self.size)
        return x.view(rows, columns, -1).permute(2, 0, 1)
