"""Convolutions as matrix products compared with PyTorch's."""

import torch
from torch import nn
from torch.nn import functional as F

from classifier.training import small_grids


def test_values_and_gradients_are_those_of_the_convolution():
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(*shape, generator=generator).double() for shape in ((2, 3, 4, 5), (6, 3, 3, 3)))
    outputs, gradients = [], []
    for convolve in (lambda a, b: F.conv2d(a, b, padding=1), small_grids.Convolve.apply):
        inputs = [tensor.clone().requires_grad_() for tensor in (x, weight)]
        outputs.append(convolve(*inputs))
        gradients.append(torch.autograd.grad(outputs[-1].cos().sum(), inputs))
    assert torch.allclose(*outputs)
    for expected, found in zip(*gradients, strict=True):
        assert torch.allclose(expected, found)


def test_only_small_grids_in_bfloat16_are_replaced(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, bias=False))
    small_grids.speed_up(model)
    assert [type(module) for module in model] == [small_grids.SmallGridConv2d, nn.Conv2d]
    for size, autocast in ((5, False), (6, True), (5, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y = model[0](torch.randn(2, 3, size, size))
        assert ("ConvolveBackward" in type(y.grad_fn).__name__) == (autocast and size == 5)
