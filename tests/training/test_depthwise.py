"""Gradients of depthwise convolutions against PyTorch's own."""

import copy

import pytest
import torch
from timm.layers import Conv2dSame
from torch import nn

from classifier.training import depthwise


@pytest.mark.parametrize("kind", [nn.Conv2d, Conv2dSame])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("k", "stride", "padding"), [(3, 2, 1), (3, 2, 0), (5, 1, 2), (5, 2, 2), (7, 1, 3), (3, 3, 1), (5, 2, 0)]
)
def test_gradients_are_pytorchs(kind, bias, k, stride, padding):
    torch.manual_seed(0)
    for height, width in ((12, 12), (13, 10)):
        plain = kind(6, 6, k, stride, padding, groups=6, bias=bias).double()
        fast = copy.deepcopy(plain)
        depthwise.speed_up(fast)
        assert type(fast) is not kind
        inputs = [torch.randn(2, 6, height, width, dtype=torch.double, requires_grad=True) for _ in range(2)]
        inputs[1].data.copy_(inputs[0].data)
        outputs = [module(x) for module, x in zip((plain, fast), inputs, strict=True)]
        torch.testing.assert_close(outputs[1], outputs[0])
        direction = torch.randn_like(outputs[0])
        for output in outputs:
            output.backward(direction)
        torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
        for (name, one), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
            torch.testing.assert_close(other.grad, one.grad, msg=name)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 4, 3, 1, 1, groups=4),  # oneDNN is fast at it
        nn.Conv2d(4, 4, 5, 1, 2),  # dense
        nn.Conv2d(4, 8, 5, 1, 2, groups=4),
        nn.Conv2d(4, 4, (5, 3), 1, 2, groups=4),
        nn.Conv2d(4, 4, 5, 1, 4, dilation=2, groups=4),
        nn.Conv2d(4, 4, 4, 2, 1, groups=4),
        nn.Conv2d(4, 4, 5, 1, 2, groups=4, padding_mode="reflect"),
    ],
    ids=str,
)
def test_others_are_left_alone(convolution):
    depthwise.speed_up(convolution)
    assert type(convolution) is nn.Conv2d


def test_under_autocast_it_computes_in_bfloat16_and_weights_stay():
    fast = nn.Conv2d(8, 8, 5, 2, 2, groups=8)
    depthwise.speed_up(fast)
    with torch.autocast("cpu", torch.bfloat16):
        output = fast(torch.randn(2, 8, 9, 9))
    output.float().sum().backward()
    assert output.dtype == torch.bfloat16 and fast.weight.grad.dtype == fast.weight.dtype == torch.float32
    with torch.no_grad():
        torch.testing.assert_close(fast(torch.ones(1, 8, 9, 9)), nn.Conv2d.forward(fast, torch.ones(1, 8, 9, 9)))
