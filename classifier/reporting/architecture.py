"""What a model is made of: its layers as one image passes them, blocks as one layer each, equal neighbours counted.

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
    """A block, or a layer outside of the blocks; or several of the same kind whose outputs have the same shape.

    Attributes:
        kind: the module's class.
        parts: what has weights in it, in words; of the first one, where there are several.
        shape: of the last output, without the batch; () if the module is not called in the forward pass.
        n_parameters: of all of them.
        repeats: how many, one after another.
    """

    kind: str
    parts: str
    shape: tuple[int, ...]
    n_parameters: int
    repeats: int = 1


@torch.no_grad()
def trace(predictor: Predictor) -> list[Layer]:
    """The layers with parameters of a model in the order in which they are done; their parameters sum up to the
    model's.

    The forward pass is of one image of zeros. No other thread may use the model meanwhile.

    Raises:
        ModelError: the model ends in no linear layer.
    """
    model, side = predictor.model, processor.size_of(predictor.processor)
    head = backbone.head_name(model)
    blocks = {match[0] for name, _ in model.named_modules() if (match := backbone.BLOCK.match(f"{name}."))}
    inside = {name for name in (*blocks, head) if name}
    apart = {name: module for name, module in model.named_modules() if any(i.startswith(f"{name}.") for i in inside)}
    apart[""] = model  # what holds blocks or the head, and is told by what it holds
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str, output: object) -> None:
        shapes.setdefault(name, _shape(output))  # of the first call: the scratch CNN sees several views

    hooks = [
        module.register_forward_hook(lambda _, __, output, name=name: note(name, output))
        for name, module in model.named_modules()
    ]
    try:
        backbone.forward(model, torch.zeros(1, 3, side, side, device=model.device))
    finally:
        for hook in hooks:
            hook.remove()

    units = [name for name, _ in model.named_modules() if name not in apart and name.rpartition(".")[0] in apart]
    called = [name for name in shapes if name in units]
    layers = []
    own = sum(p.numel() for module in apart.values() for p in module.parameters(recurse=False))
    if own:  # such as class tokens and position embeddings, which are of the model as a whole
        layers.append(Layer("parameters of the whole", "tokens, positions or scales", (), own))
    for name in [*called, *(name for name in units if name not in shapes)]:
        module = model.get_submodule(name)
        n = sum(parameter.numel() for parameter in module.parameters())
        if not n:
            continue
        layer = Layer(type(module).__name__, _parts(module), shapes.get(name, ()), n)
        last = layers[-1] if layers else None
        if last and (last.kind, last.shape) == (layer.kind, layer.shape) and name in blocks:
            layers[-1] = replace(last, n_parameters=last.n_parameters + n, repeats=last.repeats + 1)
        else:
            layers.append(layer)
    return layers


def _shape(output: object) -> tuple[int, ...]:
    """The shape, without the batch, of a module's output, or of the first tensor in it; () if there is none."""
    if isinstance(output, torch.Tensor):
        return tuple(output.shape[1:])
    parts = output.values() if isinstance(output, dict) else output if isinstance(output, tuple | list) else ()
    return next((_shape(part) for part in parts if part is not None), ())


def _parts(module: nn.Module) -> str:
    """The layers that hold a module's parameters, equal ones counted: "2 conv 3×3, 2 BatchNorm2d"."""
    found = Counter(_name(part) for part in module.modules() if next(part.parameters(recurse=False), None) is not None)
    return ", ".join(f"{n} {name}" if n > 1 else name for name, n in found.items())


def _name(layer: nn.Module) -> str:
    """A layer in words."""
    if isinstance(layer, nn.Conv2d):
        height, width = layer.kernel_size
        depthwise = "depthwise " if 1 < layer.groups == layer.in_channels else ""
        stride = f" stride {layer.stride[0]}" if layer.stride[0] > 1 else ""
        return f"{depthwise}conv {height}×{width}{stride}"
    if isinstance(layer, nn.Linear):
        return "linear"
    return type(layer).__name__
