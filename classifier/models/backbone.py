"""A pre-trained image classifier of the Hub, made ready for other labels and another resolution."""

import copy
import inspect
import math
import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AttentionInterface, AutoConfig, BaseImageProcessor, PreTrainedModel

from classifier import runs
from classifier.errors import ModelError, first_sentence
from classifier.files import read_json
from classifier.hub import PULLED
from classifier.models import processor as processors
from classifier.models.cnn import CifarCnnConfig
from classifier.models.loading import load_processor, load_weights, locate

# What transformers, and timm, call a model's blocks; a stage's blocks are numbered below the stage's number.
BLOCK = re.compile(r".*?(?:^|\.)(?:layers?|blocks?|stages?)\.?\d+(?:\.\d+)*(?:\.(?:layers?|blocks?)\.\d+)?(?=\.)")
PICKLES = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


@dataclass
class Backbone:
    """A model with its processor, and where they came from."""

    model: PreTrainedModel
    processor: BaseImageProcessor
    name: str  # the folder's name, or the Hub id
    revision: str  # the Hub's commit, or "local"
    initialized: list[str]  # parameters that the weights did not have, or had for other labels
    parent: dict | None  # run.json beside the weights, with their digest: the chain of stages


def load(path_or_id: str, labels: list[str], *, drop_path: float = 0.0, allow_pickle: bool = False) -> Backbone:
    """Loads a folder, a Hub id or `id@revision`, with a head for `labels`: zeros, unless it was trained for these.

    A head of zeros leaves the backbone alone in the first step (BiT, arXiv:1912.11370).

    Args:
        path_or_id: a folder wins over a Hub id of the same spelling.
        labels: names of the C classes.
        drop_path: highest rate of stochastic depth, where the architecture has such a setting.
        allow_pickle: whether weights may be in another format than safetensors.

    Raises:
        ModelError: something is missing or damaged, or is not an image classifier.
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
    if config.model_type == CifarCnnConfig.model_type:  # its head gets several views, and has no bias
        raise ModelError(f"{path_or_id} is a CNN of train.py: go on from it with train.py --init_from {path_or_id}")
    same_labels = list(config.id2label.values()) == labels
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    if config.model_type == "timm_wrapper":  # which keeps the number by itself
        names["num_labels"] = len(labels)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False, **names)
    set_drop_path(config, drop_path)
    if config.model_type in ("mobilenet_v1", "mobilenet_v2") and config.classifier_dropout_prob > 0.5:
        config.classifier_dropout_prob = round(1 - config.classifier_dropout_prob, 3)  # theirs is what TensorFlow keeps
    processor = load_processor(folder)
    model, absent = load_weights(folder, allow_pickle=allow_pickle, config=config)

    if getattr(processor, "do_flip_channel_order", False):
        convert_bgr_to_rgb(model, processor)
    classifier = head(model)
    if not gives_logits(model, classifier, processors.size_of(processor)):
        raise ModelError(
            f"{type(model).__name__} averages several heads: name a model that has one, such as one without teacher"
        )
    own = {f"{head_name(model)}.{key}" for key, _ in classifier.named_parameters()}
    if len(absent) > len(own) + 0.1 * len(model.state_dict()):
        raise ModelError(
            f"{len(absent)} parameters of {path_or_id} are missing or of another shape, first {absent[0]}: "
            "its weights don't fit its config.json, name another model"
        )
    if not same_labels or own & set(absent):
        for parameter in classifier.parameters():
            nn.init.zeros_(parameter)
        absent = sorted(own | set(absent))
    parent = None
    if (folder / "run.json").exists():
        parent = read_json(folder / "run.json") | {"model_sha256": runs.sha256(folder / "model.safetensors")}
    return Backbone(fix_batchnorm_momentum(model), processor, name, revision, absent, parent)


def convert_bgr_to_rgb(model: PreTrainedModel, processor: BaseImageProcessor) -> None:
    """Turns a model that wants blue first, such as MobileViT, into one that gives the same for red first, its processor
    too.
    """
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d) and module.in_channels == 3)
    with torch.no_grad():
        first.weight.copy_(first.weight.flip(1))
    processor.do_flip_channel_order = False


def gives_logits(model: PreTrainedModel, classifier: nn.Linear, size: int) -> bool:
    """Whether a model's logits are what its last linear layer gives; DeiT's and LeViT's with a teacher are a mean of
    two.

    Raises:
        ModelError: the model can't take `size` pixels.
    """
    hook = classifier.register_forward_hook(lambda module, args, output: torch.full_like(output, 7.0))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return bool((forward(model, torch.zeros(1, 3, size, size)) == 7.0).all())
    except (ValueError, RuntimeError, AssertionError) as error:
        raise refused(model, size, error) from error
    finally:
        model.train(was_training)
        hook.remove()


def fix_batchnorm_momentum(model: PreTrainedModel) -> PreTrainedModel:
    """The model, whose batch norms remember more than a batch: a momentum is the new batch's share, not the old mean's.

    transformers' MobileNets have TensorFlow's 0.997, which is the old mean's.
    """
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum and module.momentum > 0.5:
            module.momentum = 0.1
    return model


def set_drop_path(config, rate: float) -> None:
    """Sets the highest rate of stochastic depth (arXiv:1603.09382) in an architecture's configuration."""
    if hasattr(config, "drop_path_rate"):
        config.drop_path_rate = rate
    elif config.model_type == "timm_wrapper":
        config.model_args = (config.model_args or {}) | ({"drop_path_rate": rate} if rate else {})
    elif rate:
        raise ModelError(f"{config.model_type} has no drop path in transformers: leave out --drop_path")


def head_name(model: PreTrainedModel) -> str:
    """The name of the last linear layer, which gives the logits.

    Raises:
        ModelError: there is none with as many outputs as labels.
    """
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear or model.get_submodule(linear[-1]).out_features != model.config.num_labels:
        raise ModelError(f"{type(model).__name__} ends in no linear layer: name a model of another architecture")
    return linear[-1]


def head(model: PreTrainedModel) -> nn.Linear:
    """The last linear layer, which gives the logits. Errors as `head_name`."""
    return model.get_submodule(head_name(model))


def resize(model: PreTrainedModel, size: int) -> PreTrainedModel:
    """The same model for images of `size` pixels a side: position embeddings are resampled, all else is taken over.

    Raises:
        ModelError: the architecture can't have that resolution.
    """
    config = copy.deepcopy(model.config)
    patch = getattr(config, "patch_size", None)
    if isinstance(patch, int) and size % patch:
        near = max(patch, size // patch * patch)
        raise ModelError(f"{size} pixels are no multiple of the model's patches of {patch}: pass --image_size {near}")
    if config.model_type == "timm_wrapper" and config.pretrained_cfg.get("fixed_input_size"):
        config.model_args = (config.model_args or {}) | {"img_size": size}
    elif hasattr(config, "image_size"):
        config.image_size = size
    try:
        other = type(model)._from_config(config)
    except (ValueError, RuntimeError, AssertionError, ZeroDivisionError) as error:
        raise refused(model, size, error) from error
    state = model.state_dict()
    for name, tensor in other.state_dict().items():
        if state[name].shape == tensor.shape:
            continue
        if "pos" not in name or tensor.ndim != 3:
            raise refused(model, size, f"{name} would have another shape")
        state[name] = resample_positions(state[name], tensor.shape[1])
    other.load_state_dict(state)
    return fix_batchnorm_momentum(other)


def resample_positions(embeddings: torch.Tensor, n: int) -> torch.Tensor:
    """Position embeddings (1, prefix + old², D) -> (1, n, D), n = prefix + new²: bicubic, as ViT's own
    interpolation.
    """
    side = math.isqrt(embeddings.shape[1])
    prefix = embeddings.shape[1] - side * side  # class tokens and the like, which have no place
    new = math.isqrt(n - prefix)
    grid = embeddings[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2)  # (1, D, old, old)
    grid = F.interpolate(grid, size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([embeddings[:, :prefix], grid.flatten(2).transpose(1, 2)], dim=1)


def refused(model: PreTrainedModel, size: int, reason: Exception | str) -> ModelError:
    """The error of a resolution that the architecture can't have."""
    reason = first_sentence(reason) if isinstance(reason, Exception) else reason
    own = own_size(model)
    way = (
        "name another model" if own is None else f"pass --image_size {own}" if own != size else "pass --train_sizes 1:1"
    )
    return ModelError(f"{type(model).__name__} can't take {size} pixels ({reason}): {way}")


def own_size(model: PreTrainedModel) -> int | None:
    """Pixels a side that the model was trained at; None where its configuration does not say, as ResNet's."""
    config = getattr(model.config, "vision_config", model.config)  # of SigLIP and others that also read
    own = getattr(config, "image_size", None)
    if own is None and config.model_type == "timm_wrapper":
        own = config.pretrained_cfg["input_size"][-1]
    return own[0] if isinstance(own, list | tuple) else own


def depths(model: PreTrainedModel) -> dict[str, int]:
    """{parameter: its depth}: 0 before the first block, a block's number from 1, the head one more than the last block.

    Blocks are found by the names that transformers and timm give them (`layers.3`, `stages.1.layers.0`, `blocks.2.1`),
    in the order in which the model registers them. What comes after the last block, such as a norm, counts as the head.
    """
    top = head_name(model)
    found: dict[str, int] = {}
    result = {}
    for name, _ in model.named_parameters():
        block = BLOCK.match(name)
        if block and not name.startswith(f"{top}."):
            result[name] = found.setdefault(block[0], len(found) + 1)
        else:
            result[name] = -1 if found else 0
    return {name: len(found) + 1 if depth < 0 else depth for name, depth in result.items()}


def has_attention(model: PreTrainedModel) -> bool:
    """Whether the model is a transformer: layer-wise decay of the learning rate helps these, and harms CNNs less
    often.
    """
    return any("attention" in type(module).__name__.lower() for module in model.modules())


def use_matmul_attention(model: PreTrainedModel) -> None:
    """Computes attention as two matrix products and a softmax rather than by PyTorch's fused kernel.

    On a CPU the fused kernel's backward pass is slow: of DeiT-tiny at 96 pixels it was 44% of a training step.
    """
    if getattr(model.config, "_attn_implementation", None) == "sdpa":
        model.set_attn_implementation("products")
    for module in model.modules():
        if hasattr(module, "fused_attn"):  # timm's
            module.fused_attn = False


def products(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_,
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' "eager" attention with its softmax in the precision of the products.

    Under autocast the eager one goes to float32 and back, forward and backward: a sixth of DeiT-tiny's step at 224
    pixels. In bfloat16 PyTorch's softmax sums in float32 all the same.

    Args:
        module: who attends.
        query: (N, heads, T, D); so are `key` and `value`.
        key: what the queries are compared with.
        value: what is averaged.
        attention_mask: added to the scores, or none.
        scaling: of the scores; D ** -0.5 by default.
        dropout: of the weights.

    Returns:
        (N, T, heads, D), and the weights (N, heads, T, T).
    """
    with torch.autocast(query.device.type, enabled=False):
        scores = query * (query.shape[-1] ** -0.5 if scaling is None else scaling) @ key.transpose(2, 3)
        if attention_mask is not None:
            scores = scores + attention_mask
        weights = F.dropout(scores.softmax(-1), dropout, module.training)
        return (weights @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register("products", products)


def forward(model: nn.Module, pixels: torch.Tensor, own: PreTrainedModel | None = None) -> torch.Tensor:
    """Logits (N, C) of pixel values (N, 3, H, W), position embeddings interpolated if H is not the model's own size.

    Args:
        model: what to call.
        pixels: float, on the model's device.
        own: the model itself, where `model` is a wrapper of it (several devices, compiled).
    """
    own = own or model
    can_interpolate = "interpolate_pos_encoding" in inspect.signature(type(own).forward).parameters
    interpolate = can_interpolate and pixels.shape[-1] != own_size(own)
    return model(pixel_values=pixels, **({"interpolate_pos_encoding": True} if interpolate else {})).logits


def forward_flops(model: PreTrainedModel, size: int) -> int:
    """Floating-point operations of the forward pass of an image of `size` pixels a side.

    Raises:
        ModelError: the model can't take that size.
    """
    was_training = model.training
    pixels = torch.zeros(1, 3, size, size, device=model.device)
    model.eval()
    try:
        # Fused kernels, which are taken where no gradient is asked for, are not counted.
        with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            forward(model, pixels)
    except (ValueError, RuntimeError, AssertionError) as error:
        raise refused(model, size, error) from error
    finally:
        model.train(was_training)
    return counter.get_total_flops()
