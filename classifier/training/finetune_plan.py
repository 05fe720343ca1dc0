"""The settings of a fine-tuning that follow from the flags, the model and the size of the images."""

import math
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedModel

from classifier.errors import ModelError
from classifier.models import backbone
from classifier.models import processor as processors


@dataclass
class Plan:
    """Image sizes and learning rates of a run."""

    image_size: int  # pixels a side that the model gets
    crop_pct: float  # fraction of the side that the centre crop keeps
    sizes: tuple[tuple[float, int], ...]  # stages of training, (share of the steps, pixels a side)
    layer_decay: float  # learning rate of a block, as a fraction of the next one's
    reduce_to: int  # pixels; the shorter side of a photograph is reduced to this before the processor
    # Pixels a side of small training images, at which photographs get a second out-of-distribution score; or None.
    ood_resize_to: int | None


def make_plan(flags: Any, start: backbone.Backbone, side: int | None) -> Plan:
    """The values of the flags, and the defaults of those left out.

    Args:
        flags: has `image_size`, `crop_pct`, `train_sizes` and `layer_decay`.
        start: the model that is fine-tuned.
        side: of the training images, pixels; None if they are large.

    Raises:
        ModelError: `train_sizes` can't be read.
    """
    own, patch = processors.size_of(start.processor), getattr(start.model.config, "patch_size", 32)
    patch = patch if isinstance(patch, int) and patch >= 8 else 32  # Swin's patches of 4 are merged three times
    is_small = side is not None and side < own
    size = flags.image_size or own
    crop_pct = flags.crop_pct or (1.0 if is_small else processors.crop_pct_of(start.processor))
    return Plan(
        image_size=size,
        crop_pct=crop_pct,
        sizes=train_sizes(flags.train_sizes, size, patch),
        layer_decay=flags.layer_decay or (0.75 if backbone.has_attention(start.model) else 1.0),
        reduce_to=math.ceil(size / crop_pct),  # a larger size is slower; at 0.6 of it, 4 of 87 labels change
        ood_resize_to=side if is_small else None,
    )


def fit_sizes(plan: Plan, model: PreTrainedModel) -> Plan:
    """The plan, with all steps at `image_size` if the model, which is for this size, refuses another one.

    Raises:
        ModelError: it refuses `image_size` too.
    """
    backbone.forward_flops(model, plan.image_size)
    try:
        for size in {size for _, size in plan.sizes} - {plan.image_size}:
            backbone.forward_flops(model, size)
    except ModelError:
        return replace(plan, sizes=((1.0, plan.image_size),))
    return plan


def train_sizes(text: str, size: int, multiple: int) -> tuple[tuple[float, int], ...]:
    """'0.6:0.5 1:0.5' -> ((share of the steps, pixels a side), …), pixels rounded to multiples of the patch size."""
    try:
        pairs = [tuple(float(number) for number in word.split(":")) for word in text.split()]
        sizes = [(share, max(multiple, round(size * fraction / multiple) * multiple)) for fraction, share in pairs]
    except ValueError:
        raise ModelError(f"--train_sizes {text!r} is no list of fraction:share: pass such as '0.6:0.5 1:0.5'") from None
    total = sum(share for share, _ in sizes)
    if not sizes or min(share for share, _ in sizes) <= 0:
        raise ModelError(f"--train_sizes {text!r} has no share above 0: pass such as '0.6:0.5 1:0.5'")
    return tuple((share / total, size if pixels > size else pixels) for share, pixels in sizes)
