"""Heat maps of the pixels that support a label, drawn over the image as the model received it.

    from classifier import load_predictor
    from classifier.models import explain
    predictor = load_predictor("models/cnn")
    explain.overlay(explain.preprocessed_image(predictor, "a.jpg"), explain.heatmap(predictor, "a.jpg")).save("a.png")

CNNs, and transformers whose last layer is a grid of tokens (Swin): Grad-CAM (arXiv:1610.02391) of the last feature map.
Transformers with attention over the whole image (ViT, DeiT, also of timm): attention weighted by its gradient and
multiplied through the layers (arXiv:2103.15679), which is attention roll-out (arXiv:2005.00928) for one label.

The model has no hooks and is not changed: a TorchFunctionMode, which is local to a thread, records the operations of
one forward pass, so that other threads can use the model meanwhile.
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
    """How much each pixel of the model's input supports a label, relative to the pixel that does most.

    Args:
        predictor: the model. If it averages views of an image (the scratch CNN), the unchanged view is explained.
        image: a path, encoded bytes or a PIL image.
        label: index of the class; by default the most probable one.

    Returns:
        float32 (H, W) in [0, 1], in the coordinates of `preprocessed_image`. All 0 if no pixel supports the label.

    Raises:
        ImageError: a file can't be read.
        ModelError: the model has neither a last feature map nor attention over the whole image, or its output has NaN
            or infinity.
    """
    pixel_values = predictor.pixel_values([image]).requires_grad_()  # (1, 3, H, W); weights may be frozen
    size = (pixel_values.shape[2], pixel_values.shape[3])
    if label is None:
        with torch.no_grad():
            label = int(predictor.model(pixel_values).logits.argmax())
    with torch.enable_grad(), Recorder(size) as recorded:
        logit = single_view_logits(predictor.model, pixel_values)[0, label]

    if recorded.attends_globally():
        *gradients, token_gradient = torch.autograd.grad(logit, [*recorded.attentions, recorded.tokens])
        attentions = [attention[0].detach() for attention in recorded.attentions]
        # (T,): positive for the tokens that the head reads, which are the class token or all patches
        readout = token_gradient[0].norm(dim=-1)
        readout = divide_or_zero(readout, readout.sum())
        heat = token_relevance(attentions, [gradient[0] for gradient in gradients], readout)
        rows, columns = grid_shape(len(heat), size)
        heat = heat[-rows * columns :].view(rows, columns)  # class and register tokens come first
    elif recorded.features is not None:
        (gradient,) = torch.autograd.grad(logit, [recorded.features])
        heat = grad_cam(recorded.channels_first(recorded.features.detach()), recorded.channels_first(gradient))
    else:
        raise ModelError(
            f"can't tell where {predictor.name} looks: {type(predictor.model).__name__} neither ends in a feature "
            "map nor attends over the whole image, choose a CNN or a ViT"
        )
    if not heat.isfinite().all():
        raise ModelError(
            f"{predictor.name} gave NaN or infinity: its weights may be damaged, fetch or train them again"
        )
    heat = upsample(heat.float(), size, stride_of(predictor.model))
    return divide_or_zero(heat, heat.max()).cpu().numpy()


def preprocessed_image(predictor: Predictor, image: ImageInput) -> np.ndarray:
    """The image after resizing and cropping, without normalisation: uint8 (H, W, 3). Errors as `Predictor.logits`."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in processor.mean_std(predictor.processor))
    pixels = predictor.pixel_values([image])[0].float().cpu() * std + mean  # (3, H, W) in units of 255
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()


def overlay(image: np.ndarray, heat: np.ndarray, alpha: float = 0.5) -> Image.Image:
    """The heat map blended with the image, in a perceptually uniform scale for the colour-blind too; dark means 0.

    Args:
        image: uint8 (H, W, 3), from `preprocessed_image`.
        heat: (H, W) in [0, 1], from `heatmap`.
        alpha: weight of the heat map, in [0, 1].
    """
    colours = matplotlib.colormaps["inferno"](heat)[..., :3] * 255  # (H, W, 3)
    return Image.fromarray(np.rint((1 - alpha) * image + alpha * colours).astype(np.uint8))


def single_view_logits(model: PreTrainedModel, pixel_values: torch.Tensor) -> torch.Tensor:
    """(N, 3, H, W) -> logits (N, C); for the scratch CNN, of the unchanged image and not averaged over views."""
    if isinstance(model, CifarCnnForImageClassification):
        return model.forward_view(pixel_values)
    return model(pixel_values).logits


def divide_or_zero(values: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    """`values / total`, or 0 if both are 0, as with a head of zeros. Neither is negative."""
    return values / total.clamp(min=torch.finfo(total.dtype).tiny)


def stride_of(model: PreTrainedModel) -> int | None:
    """Pixels between neighbouring cells of the last feature map; None if the map covers the whole image.

    Pooling in the scratch CNN leaves out odd rows and columns: of 32 pixels, its 3×3 map covers the upper left 24.
    """
    return 2 ** len(model.config.widths) if isinstance(model, CifarCnnForImageClassification) else None


def upsample(heat: torch.Tensor, size: tuple[int, int], stride: int | None = None) -> torch.Tensor:
    """(h, w) -> `size` (H, W), bilinear. Cells are `stride` pixels apart from the upper left; by default they fill the
    image.

    Pixels beyond the last row and column of cells get the values of these.
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

    Takes a feature map and the gradients of the label's logit with respect to it, (C, h, w) each; gives (h, w), at
    least 0.
    """
    return (gradients.mean(dim=(1, 2), keepdim=True) * features).sum(dim=0).relu()


def token_relevance(
    attentions: list[torch.Tensor], gradients: list[torch.Tensor], readout: torch.Tensor
) -> torch.Tensor:
    """Relevance of the first layer's tokens (arXiv:2103.15679, equations 5 and 6), without the path through the
    residual connections alone.

    Args:
        attentions: softmax weights of each layer, first to last, (heads, T, T); a row has the weights of one query.
        gradients: gradients of the label's logit with respect to these, in the same shapes.
        readout: weight of each token of the last layer in the input of the classifier, (T,); sums to 1.

    Returns:
        (T,), at least 0.
    """
    row = readout  # a vector times the layers, one after another, avoids products of T×T matrices
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        row = row + row @ (attention * gradient).relu().mean(dim=0)
    return row - readout


def grid_shape(n: int, size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of the largest grid of at most n cells with the aspect ratio of an image of `size` (H, W)."""
    height, width = size
    rows = math.isqrt(n * height // width)
    return rows, rows * width // height


class Recorder(TorchFunctionMode):
    """Records attention weights and feature maps of one image of `size` (H, W) in a `with` block of this thread.

    Attributes:
        attentions: softmax weights of each attention; (1, heads, T, T) if it is over all tokens of the image.
        tokens: output of the last layer norm over more than one position, None if there is none.
        features: the last feature map, None if attention follows it. Its shape is (1, C, h, w), or (1, h, w, C) or
            (1, h·w, C) for the output of a layer norm.
        channels_last: whether `features` is the output of a layer norm.
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
        """Fused attention in two steps, as it gives no weights: they are its output for the identity matrix."""
        identity = torch.eye(key.shape[-2], dtype=key.dtype, device=key.device).expand(*key.shape[:-1], -1)
        weights = F.scaled_dot_product_attention(query, key, identity, *args, **kwargs)
        self.attentions.append(weights)
        self.features = None
        return weights @ value

    def is_map(self, tokens: torch.Tensor) -> bool:
        """Whether the output of a layer norm is a feature map, (1, h, w, C) or (1, h·w, C)."""
        if tokens.ndim == 3:
            return math.prod(grid_shape(tokens.shape[1], self.size)) == tokens.shape[1] > 1
        return tokens.ndim == 4 and self.is_grid(*tokens.shape[1:3])

    def is_grid(self, rows: int, columns: int) -> bool:
        """Whether a grid has more than one cell and the aspect ratio of the image, up to one row or column."""
        height, width = self.size
        return rows * columns > 1 and abs(rows * width - columns * height) < max(height, width)

    def attends_globally(self) -> bool:
        """Whether every attention was over all tokens in the output of the last layer norm."""
        if not self.attentions or self.tokens is None or self.tokens.ndim != 3:
            return False
        n = self.tokens.shape[1]
        return all(len(weights) == 1 and weights.shape[2:] == (n, n) for weights in self.attentions)

    def channels_first(self, x: torch.Tensor) -> torch.Tensor:
        """A tensor in the layout of `features` -> (C, h, w)."""
        if not self.channels_last:
            return x[0]
        rows, columns = x.shape[1:3] if x.ndim == 4 else grid_shape(x.shape[1], self.size)
        return x.view(rows, columns, -1).permute(2, 0, 1)
