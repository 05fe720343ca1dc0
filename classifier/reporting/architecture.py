"""The layers of a model in the order of the forward pass, with equal consecutive blocks merged.

for layer in architecture.trace(predictor):
    print(layer.kind, layer.repeats, layer.shape, layer.n_parameters)
"""

from collections import Counter
from dataclasses import dataclass, replace

import torch
from torch import nn

from classifier.models import backbone, processor
from classifier.models.predictor import Predictor


@dataclass(frozen=True)
class Layer:
    """A block or a layer outside the blocks, or several consecutive ones of the same class and output shape.

    Attributes:
        kind: class of the module.
        parts: its layers with parameters, as text; of several blocks, those of the first.
        shape: output shape of the last one, without the batch; () if the forward pass does not call the module.
        n_parameters: total number of parameters.
        repeats: number of consecutive blocks.
    """

    kind: str
    parts: str
    shape: tuple[int, ...]
    n_parameters: int
    repeats: int = 1


@torch.no_grad()
def trace(predictor: Predictor) -> list[Layer]:
    """The layers of a model that have parameters, in the order of execution; their parameters sum up to the model's.

    Runs a forward pass on one image of zeros. No other thread may use the model at the same time.

    Raises:
        ModelError: the model does not end in a linear layer.
    """
    model, side = predictor.model, processor.size_of(predictor.processor)
    head = backbone.head_name(model)
    blocks = {match[0] for name, _ in model.named_modules() if (match := backbone.BLOCK.match(f"{name}."))}
    inside = {name for name in (*blocks, head) if name}
    containers = {
        name: module for name, module in model.named_modules() if any(i.startswith(f"{name}.") for i in inside)
    }
    containers[""] = model  # containers of blocks or of the head: their children are listed instead
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: object) -> None:
        shapes.setdefault(name, _shape(output))  # of the first call: the scratch CNN runs once per view

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
    ]
    try:
        backbone.forward(model, torch.zeros(1, 3, side, side, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()

    units = [
        name for name, _ in model.named_modules() if name not in containers and name.rpartition(".")[0] in containers
    ]
    called = [name for name in shapes if name in units]
    layers = []
    own = sum(p.numel() for module in containers.values() for p in module.parameters(recurse=False))
    if own:  # such as class tokens and position embeddings, which belong to no layer
        layers.append(Layer("model parameters", "tokens, positions or scales", (), own))
    for name in [*called, *(name for name in units if name not in shapes)]:
        module = model.get_submodule(name)
        n = sum(parameter.numel() for parameter in module.parameters())
        if not n:
            continue
        kind = "Linear" if isinstance(module, nn.Linear) else type(module).__name__  # not the predictor's fast subclass
        layer = Layer(kind, _parts(module), shapes.get(name, ()), n)
        last = layers[-1] if layers else None
        if last and (last.kind, last.shape) == (layer.kind, layer.shape) and name in blocks:
            layers[-1] = replace(last, n_parameters=last.n_parameters + n, repeats=last.repeats + 1)
        else:
            layers.append(layer)
    return layers


def _shape(output: object) -> tuple[int, ...]:
    """The shape, without the batch, of the first tensor in a module's output; () if there is none."""
    if isinstance(output, torch.Tensor):
        return tuple(output.shape[1:])
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((_shape(part) for part in parts if part is not None), ())


def _parts(module: nn.Module) -> str:
    """The layers that hold a module's parameters, with their number: "2 conv 3×3, 2 BatchNorm2d"."""
    counts = Counter(_name(part) for part in module.modules() if next(part.parameters(recurse=False), None) is not None)
    return ", ".join(f"{n} {name}" if n > 1 else name for name, n in counts.items())


def _name(layer: nn.Module) -> str:
    """The name of a layer, for convolutions with kernel size and stride."""
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        depthwise = "depthwise " if 1 < layer.groups == layer.in_channels else ""
        stride = f" stride {layer.stride[0]}" if layer.stride[0] > 1 else ""
        return f"{depthwise}conv {height}×{width}{stride}"
    if isinstance(layer, nn.Linear):
        return "linear"
    return type(layer).__name__
