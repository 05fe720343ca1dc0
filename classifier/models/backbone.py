"""A pre-trained image classifier, adapted to other labels and another resolution."""

import copy
import inspect
import math
import re
from dataclasses import dataclass
from typing import cast

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AutoConfig, BaseImageProcessor, PreTrainedModel

from classifier.errors import ModelError, first_sentence
from classifier.files import read_json
from classifier.models import processor as processors
from classifier.models.cnn import CifarCnnConfig
from classifier.models.loading import load_processor, load_weights, locate
from classifier.records import RunRecord
from classifier.runs import PULLED, RunFolder

# Names of blocks in transformers and timm; where blocks are in stages, the match includes the number of the stage.
BLOCK = re.compile(r".*?(?:^|\.)(?:layers?|blocks?|stages?)\.?\d+(?:\.\d+)*(?:\.(?:layers?|blocks?)\.\d+)?(?=\.)")
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


@dataclass
class Backbone:
    """A model with its processor and its origin."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    name: str  # the folder's name, or the Hub id
    revision: str  # the Hub's commit, or "local"
    initialized: list[str]  # parameters that are missing in the weights, or belong to other labels
    parent: RunRecord | None  # of the run that made the weights; None where they have no run.json


def load(path_or_id: str, labels: list[str], *, drop_path: float = 0.0, allow_pickle: bool = False) -> Backbone:
    """Loads a folder, a Hub id or `id@revision`, with a head for `labels`.

    The head is set to zero unless it was trained for these very labels. A head of zeros sends no gradient into the
    backbone in the first step (BiT, arXiv:1912.11370).

    Args:
        path_or_id: if both a folder and a Hub id have this name, the folder is loaded.
        labels: names of the C classes.
        drop_path: highest rate of stochastic depth, for architectures that have this setting.
        allow_pickle: whether weights may be in another format than safetensors.

    Raises:
        ModelError: a file is missing or damaged, or the model is not an image classifier.
    """
    files = [*PULLED, *(PICKLES if allow_pickle else [])]
    folder, name, revision, _ = locate(path_or_id, files)
    read_json(folder / "config.json")
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            f"can't read {folder}/config.json ({first_sentence(error)}): name an image classifier"
        ) from error
    if config.model_type == CifarCnnConfig.model_type:  # its head is applied to several views, and has no bias
        raise ModelError(f"{path_or_id} is a CNN of train.py: go on from it with train.py --init_from {path_or_id}")
    same_labels = list((config.id2label or {}).values()) == labels
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    names["problem_type"] = "single_label_classification"  # else `pipeline` gives sigmoids of a multi-label model
    if config.model_type == "timm_wrapper":  # does not derive the number from id2label
        names["num_labels"] = len(labels)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **names)
    set_drop_path(config, drop_path)
    if config.model_type in ("mobilenet_v1", "mobilenet_v2") and config.classifier_dropout_prob > 0.5:
        config.classifier_dropout_prob = round(1 - config.classifier_dropout_prob, 3)  # a keep probability
    processor = load_processor(folder)
    model, absent = load_weights(folder, allow_pickle=allow_pickle, config=config)

    if getattr(processor, "do_flip_channel_order", False):
        convert_bgr_to_rgb(model, processor)
    classifier = head(model)
    if not head_gives_logits(model, classifier, trained_size(model) or processors.size_of(processor)):
        raise ModelError(
            f"{type(model).__name__} averages several heads: name a model that has one, such as one without teacher"
        )
    of_head = {f"{head_name(model)}.{key}" for key, _ in classifier.named_parameters()}
    if len(absent) > len(of_head) + 0.1 * len(model.state_dict()):
        raise ModelError(
            f"{len(absent)} parameters of {path_or_id} are missing or of another shape, first {absent[0]}: "
            "its weights don't fit its config.json, name another model"
        )
    if not same_labels or of_head & set(absent):
        for parameter in classifier.parameters():
            nn.init.zeros_(parameter)
        absent = sorted(of_head | set(absent))
    run_folder = RunFolder(folder)
    parent = run_folder.as_parent() if run_folder.is_finished else None
    return Backbone(fix_batchnorm_momentum(model), processor, name, revision, absent, parent)


def convert_bgr_to_rgb(model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Changes a model that expects BGR, such as MobileViT, and its processor so that RGB gives the same logits."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3)
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))
    processor.do_flip_channel_order = False  # type: ignore[attr-defined]


def head_gives_logits(model: PreTrainedModel, classifier: nn.Linear, size: int) -> bool:
    """Whether the output of the last linear layer is the model's logits. In DeiT and LeViT with a teacher it is not:
    their logits are the mean of two heads.

    Raises:
        ModelError: the model doesn't work at `size` pixels.
    """
    hook = classifier.register_forward_hook(lambda module, args, output: torch.full_like(output, 7.0))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return bool((forward(model, torch.zeros(1, 3, size, size)) == 7.0).all())
    except (ValueError, RuntimeError, AssertionError, AttributeError) as error:  # AttributeError: there are no logits
        raise size_error(model, size, error) from error
    finally:
        model.train(was_training)
        hook.remove()


def fix_batchnorm_momentum(model: PreTrainedModel) -> PreTrainedModel:
    """Sets the momentum of batch norms to 0.1 where it is above 0.5, and returns the model.

    In PyTorch the momentum is the weight of the new batch. The MobileNets of transformers have 0.997, TensorFlow's
    weight of the old mean, so that the running statistics would be those of the last batch.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum and module.momentum > 0.5:
            module.momentum = 0.1
    return model


def set_drop_path(config, rate: float) -> None:
    """Sets the highest rate of stochastic depth (arXiv:1603.09382) in an architecture's configuration."""
    if hasattr(config, "drop_path_rate"):
        old = config.drop_path_rate
        new = [rate] * len(old) if isinstance(old, list | tuple) else rate  # CvT has a rate for each stage
        try:
            config.drop_path_rate = old if new == old else new
        except StrictDataclassFieldValidationError as error:
            raise ModelError(f"{config.model_type} can't use a drop path of {rate}: leave out --drop_path") from error
    elif config.model_type == "timm_wrapper":
        config.model_args = (config.model_args or {}) | ({"drop_path_rate": rate} if rate else {})
    elif rate:
        raise ModelError(f"{config.model_type} has no drop path in transformers: leave out --drop_path")


def head_name(model: PreTrainedModel) -> str:
    """Name of the last linear layer, which computes the logits.

    Raises:
        ModelError: the model has no linear layer, or the last one has another number of outputs than there are labels.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear or model.get_submodule(linear[-1]).out_features != model.config.num_labels:
        raise ModelError(f"{type(model).__name__} ends in no linear layer: name a model of another architecture")
    return linear[-1]


def head(model: PreTrainedModel) -> nn.Linear:
    """The last linear layer, which computes the logits. Errors as `head_name`."""
    return cast(nn.Linear, model.get_submodule(head_name(model)))


def resize(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """A copy of the model for images of `size` pixels a side: position embeddings are resampled, the rest is copied.

    Raises:
        ModelError: the architecture does not support that resolution.
    """
    config = copy.deepcopy(model.config)
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and size % patch:
        near = max(patch, size // patch * patch)
        raise ModelError(f"{size} pixels are no multiple of the model's patches of {patch}: pass --image_size {near}")
    if config.model_type == "timm_wrapper" and config.pretrained_cfg.get("fixed_input_size"):
        config.model_args = (config.model_args or {}) | {"img_size": size}
    elif hasattr(config, "image_size"):
        config.image_size = [size, size] if isinstance(config.image_size, list | tuple) else size
    try:
        other = type(model)._from_config(config)
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise size_error(model, size, error) from error
    state = model.state_dict()
    for name, tensor in other.state_dict().items():
        if state[name].shape == tensor.shape:
            continue
        if "pos" not in name or tensor.ndim != 3:
            raise size_error(model, size, f"{name} would have another shape")
        state[name] = resample_positions(state[name], tensor.shape[1])
    other.load_state_dict(state)
    return fix_batchnorm_momentum(other)


def resample_positions(embeddings: torch.Tensor, n: int) -> torch.Tensor:
    """Position embeddings (1, prefix + old², D) -> (1, n, D) with n = prefix + new²; bicubic, as in ViT."""
    side = math.isqrt(embeddings.shape[1])
    prefix = embeddings.shape[1] - side * side  # tokens without a position, such as the class token
    new = math.isqrt(n - prefix)
    grid = embeddings[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([embeddings[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)


def size_error(model: PreTrainedModel, size: int, reason: Exception | str) -> ModelError:
    """The error for a resolution that the architecture does not support, with the flag to pass instead."""
    reason = first_sentence(reason) if isinstance(reason, Exception) else reason
    trained = trained_size(model)
    if trained is None:
        advice = "name another model"
    else:
        advice = f"pass --image_size {trained}" if trained != size else "name another model"
    return ModelError(f"{type(model).__name__} can't take {size} pixels ({reason}): {advice}")


def trained_size(model: PreTrainedModel) -> int | None:
    """Pixels a side at which the model was trained; None if its configuration doesn't say, as with ResNet."""
    config = getattr(model.config, "vision_config", model.config)  # SigLIP and other models of images and text
    size = getattr(config, "image_size", None)
    if size is None and config.model_type == "timm_wrapper":
        size = config.pretrained_cfg["input_size"][-1]
    return size[0] if isinstance(size, list | tuple) else size


def parameter_depths(model: PreTrainedModel) -> dict[str, int]:
    """{parameter: depth}: 0 before the first block, the block's number from 1, and the next number for the head.

    Blocks are recognised by their names in transformers and timm (`layers.3`, `stages.1.layers.0`, `blocks.2.1`) and
    numbered in the order in which the model registers them. Layers after the last block, such as a norm, have the depth
    of the head.
    """
    top = head_name(model)
    blocks: dict[str, int] = {}
    result = {}
    for name, _ in model.named_parameters():
        block = BLOCK.match(name)
        if block and not name.startswith(f"{top}."):
            result[name] = blocks.setdefault(block[0], len(blocks) + 1)
        else:
            result[name] = -1 if blocks else 0
    return {name: len(blocks) + 1 if depth < 0 else depth for name, depth in result.items()}


def has_attention(model: PreTrainedModel) -> bool:
    """Whether the model is a transformer. Layer-wise learning rate decay helps transformers, and rarely CNNs."""
    return any("attention" in type(module).__name__.lower() for module in model.modules())


def use_matmul_attention(model: PreTrainedModel) -> None:
    """Computes attention as two matrix products and a softmax instead of PyTorch's fused kernel.

    On a CPU the backward pass of the fused kernel is slow: it was 44% of a training step of DeiT-tiny at 96 pixels.
    """
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation("matmul")
    for module in model.modules():
        if hasattr(module, "fused_attn"):  # timm
            module.fused_attn = False  # type: ignore[assignment]


def matmul_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The "eager" attention of transformers, with the softmax in the precision of the matrix products.

    Under autocast the eager one converts to float32 and back in the forward and the backward pass, which took a sixth
    of a step of DeiT-tiny at 224 pixels. PyTorch's softmax of bfloat16 accumulates in float32 anyway. Masks and
    relative position biases are in float32 under autocast; where there is one, so is the softmax.

    Args:
        module: the attention layer.
        query, key, value: (N, heads, T, D) each.
        attention_mask: added to the scores, if given.
        scaling: factor of the scores; D ** -0.5 by default.
        dropout: rate of dropout on the attention weights.

    Returns:
        The output (N, T, heads, D) and the attention weights (N, heads, T, T).
    """
    with torch.autocast(query.device.type, enabled=False):
        scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(2, 3)
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = F.dropout(scores.softmax(-1).to(value.dtype), dropout, module.training)
        return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("matmul", matmul_attention)


def forward(model: nn.Module, pixels: torch.Tensor, unwrapped: PreTrainedModel | None = None) -> torch.Tensor:
    """Logits (N, C) of pixel values (N, 3, H, W) of any size, to which position embeddings are interpolated.

    Args:
        model: called with the pixels.
        pixels: float, on the model's device.
        unwrapped: the model itself, if `model` is a wrapper for several devices or a compiled module.
    """
    unwrapped = unwrapped or cast(PreTrainedModel, model)
    can_interpolate = "interpolate_pos_encoding" in inspect.signature(type(unwrapped).forward).parameters
    interpolate = can_interpolate and pixels.shape[-1] != trained_size(unwrapped)
    return model(pixel_values=pixels, **({"interpolate_pos_encoding": True} if interpolate else {})).logits


def forward_flops(model: PreTrainedModel, size: int) -> int:
    """Floating-point operations of a forward pass on one image of `size` pixels a side.

    Raises:
        ModelError: the model doesn't work at that size.
    """
    was_training = model.training
    pixels = torch.zeros(1, 3, size, size, device=model.device)
    model.eval()
    try:
        # FlopCounterMode does not count fused kernels, which PyTorch uses when no gradient is needed.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward(model, pixels)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise size_error(model, size, error) from error
    finally:
        model.train(was_training)
    return counter.get_total_flops()
