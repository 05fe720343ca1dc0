"""3×3 convolutions of small grids as matrix products, for bfloat16 on processors with AMX.

oneDNN's kernels for bfloat16 are slow on the few pixels of the last layers of a small CNN, above all in the gradient
with respect to the weight. Matrix products take a fraction of the time; the values are the same, up to rounding.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LARGEST = 5  # pixels a side; at 6 and more, oneDNN's kernels are as fast


class Convolve(torch.autograd.Function):
    """A convolution of x (N, C, H, W) by a weight (O, C, 3, 3), with a padding of one pixel."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """(N, O, H, W)."""
        ctx.save_for_backward(x, weight)
        return convolve(x, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The gradients with respect to x and weight."""
        x, weight = ctx.saved_tensors
        of_weight = grad.permute(0, 2, 3, 1).flatten(0, 2).T @ neighbourhoods(x)  # (O, 9 C)
        of_x = convolve(grad, weight.flip(2, 3).transpose(0, 1))
        return of_x, of_weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)


def convolve(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) by (O, C, 3, 3) -> (N, O, H, W), channels last."""
    n, _, height, width = x.shape
    y = neighbourhoods(x) @ weight.permute(2, 3, 1, 0).reshape(-1, len(weight))  # (N H W, O)
    return y.view(n, height, width, -1).permute(0, 3, 1, 2)


def neighbourhoods(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) -> the nine pixels around each pixel, row by row, (N H W, 9 C); those outside are 0."""
    n, c, height, width = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # (N, H + 2, W + 2, C)
    of_image, of_row, of_pixel, of_channel = padded.stride()
    strides = (of_image, of_row, of_pixel, of_row, of_pixel, of_channel)
    return padded.as_strided((n, height, width, 3, 3, c), strides).reshape(n * height * width, 9 * c)


class SmallGridConv2d(nn.Conv2d):
    """An `nn.Conv2d` that trains by matrix products where the grid is small and autocast is on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, O, H, W)."""
        if not torch.is_grad_enabled() or not torch.is_autocast_enabled("cpu") or max(x.shape[2:]) > LARGEST:
            return super().forward(x)
        dtype = torch.get_autocast_dtype("cpu")
        return Convolve.apply(x.to(dtype), self.weight.to(dtype))


def speed_up(model: nn.Module) -> None:
    """Makes the 3×3 convolutions of a model on the CPU train by matrix products, if the processor has AMX."""
    if not torch.cpu.get_capabilities().get("amx_bf16"):
        return
    for module in model.modules():
        if type(module) is nn.Conv2d and is_plain(module):
            module.__class__ = SmallGridConv2d


def is_plain(convolution: nn.Conv2d) -> bool:
    """Whether `Convolve` computes it."""
    same = (convolution.kernel_size, convolution.padding) == ((3, 3), (1, 1)) and convolution.padding_mode == "zeros"
    dense = convolution.stride == convolution.dilation == (1, 1) and convolution.groups == 1
    return same and dense and convolution.bias is None
