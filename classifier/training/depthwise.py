"""Depthwise convolutions whose backward pass is fast on a CPU.

oneDNN lacks special kernels for two gradients of a depthwise convolution: with respect to the input where the stride is
2, and with respect to a weight wider than 3×3. Its fallback takes many times as long as the forward pass, and most of
the training time of an EfficientNet. Here both are computed by convolutions that oneDNN is fast at; the values are the
same.
"""

import torch
from timm.layers import Conv2dSame, pad_same
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Convolve(torch.autograd.Function):
    """A depthwise convolution of x (N, C, H, W) by a weight (C, 1, k, k), k = 3, 5, …, with a bias (C,) or None."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int, padding: int):
        """(N, C, H', W')."""
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.has_bias = stride, padding, bias is not None
        return F.conv2d(x, weight, bias, stride, padding, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: torch.Tensor) -> tuple:
        """The gradients with respect to x, weight and bias."""
        x, weight = ctx.saved_tensors
        grad = channels_last(grad)
        wanted_x, wanted_weight, *_ = ctx.needs_input_grad
        of_x = gradient_by_input(grad, x.shape, weight, ctx.stride, ctx.padding) if wanted_x else None
        of_weight = gradient_by_weight(grad, x, weight, ctx.stride, ctx.padding) if wanted_weight else None
        return of_x, of_weight, grad.sum((0, 2, 3)) if ctx.has_bias else None, None, None


def gradient_by_input(
    grad: torch.Tensor, shape: torch.Size, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """A convolution of the output's gradient, with zeros where the stride skipped, by the flipped weight."""
    n, c, height, width = shape
    k = weight.shape[-1]
    if stride > 1:
        rows, columns = height + 2 * padding - k + 1, width + 2 * padding - k + 1
        spread = grad.new_zeros(n, rows, columns, c).permute(0, 3, 1, 2)
        spread[:, :, ::stride, ::stride] = grad
        grad = spread
    return F.conv2d(grad, channels_last(weight.flip(2, 3)), padding=k - 1 - padding, groups=c)


def gradient_by_weight(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, stride: int, padding: int
) -> torch.Tensor:
    """Computes 3×3 taps at a time: those from (i, j) on are the gradient of a 3×3 weight for x shifted by (i, j)."""
    k, (rows, columns) = weight.shape[-1], grad.shape[2:]
    if k > 3:
        x, padding = F.pad(x, 4 * [padding]), 0
    part, gradient = channels_last(weight[:, :, :3, :3]), torch.empty_like(weight)
    for i in range(0, k - 2, 2):
        for j in range(0, k - 2, 2):
            seen = x[:, :, i : i + (rows - 1) * stride + 3, j : j + (columns - 1) * stride + 3] if k > 3 else x
            settings = 2 * [stride], 2 * [padding], [1, 1], False, [0, 0], len(weight), [False, True, False]
            _, taps, _ = torch.ops.aten.convolution_backward(grad, channels_last(seen), part, None, *settings)
            gradient[:, :, i : i + 3, j : j + 3] = taps
    return gradient


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """(N, C, H, W) in the memory layout in which a CPU's convolutions are fastest."""
    return x.contiguous(memory_format=torch.channels_last)


class DepthwiseConv2d(nn.Conv2d):
    """An `nn.Conv2d` with a fast backward pass, in autocast's precision where that is on."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        if not torch.is_grad_enabled():
            return super().forward(x)
        tensors = [x, self.weight, self.bias]
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            tensors = [tensor if tensor is None else tensor.to(dtype) for tensor in tensors]
        return Convolve.apply(*tensors, self.stride[0], self.padding[0])


class DepthwiseConv2dSame(DepthwiseConv2d):
    """The same for timm's, which pads as TensorFlow does."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) -> (N, C, ⌈H / stride⌉, ⌈W / stride⌉)."""
        return super().forward(pad_same(x, list(self.kernel_size), list(self.stride), list(self.dilation)))


def speed_up(model: nn.Module) -> None:
    """Replaces the backward pass of a model's depthwise convolutions where oneDNN's is slow; for models on the CPU."""
    classes = {nn.Conv2d: DepthwiseConv2d, Conv2dSame: DepthwiseConv2dSame}
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and type(module) in classes and is_slow(module):
            module.__class__ = classes[type(module)]


def is_slow(convolution: nn.Conv2d) -> bool:
    """Whether it is depthwise, oneDNN has no kernel for its gradients, and `Convolve` supports it."""
    c, (k, width) = convolution.in_channels, convolution.kernel_size
    stride, padding = convolution.stride[0], convolution.padding[0]
    is_depthwise = c == convolution.out_channels == convolution.groups > 1 and convolution.padding_mode == "zeros"
    is_regular = k == width and k % 2 == 1 and convolution.dilation == (1, 1)
    is_regular &= convolution.stride == (stride, stride) and convolution.padding == (padding, padding)
    is_regular &= isinstance(padding, int) and padding < k  # not "same" or "valid"
    return is_depthwise and is_regular and (k > 3 or (k == 3 and stride > 1))
