"""A model's own image processor: changed to another resolution, and applied to a whole batch at once.

Every function takes a processor of `transformers` on torchvision, or timm's, whose settings live in config.json.
"""

import timm.data
import torch
from torchvision.transforms import Resize
from torchvision.transforms.v2.functional import resize, to_dtype
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor


def size_of(processor: BaseImageProcessor) -> int:
    """Pixels a side of what `processor` gives to the model."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return processor.data_config["input_size"][-1]
    settings = processor.to_dict()
    size = settings["crop_size"] if settings.get("do_center_crop") else settings["size"]
    return size.get("height") or size["shortest_edge"]


def crop_pct_of(processor: BaseImageProcessor) -> float:
    """The side that the centre crop keeps, as a fraction of the resized image's; 1 without a crop."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return processor.data_config["crop_pct"]
    settings = processor.to_dict()
    if "crop_pct" in settings:  # ConvNeXt's
        return settings["crop_pct"]
    if not settings.get("do_center_crop"):
        return 1.0
    size = settings["size"]
    return settings["crop_size"]["height"] / (size.get("height") or size["shortest_edge"])


def resized(processor: BaseImageProcessor, model: PreTrainedModel, size: int, crop_pct: float) -> BaseImageProcessor:
    """The processor for another resolution. timm's settings are part of `model.config`, and are changed there.

    Args:
        processor: what the pre-trained model came with. What it does to the aspect ratio stays.
        model: the model that will be saved beside it.
        size: pixels a side that the model gets.
        crop_pct: see `crop_pct_of`.
    """
    if isinstance(processor, TimmWrapperImageProcessor):
        settings = model.config.pretrained_cfg | {"input_size": [3, size, size], "crop_pct": crop_pct}
        model.config.pretrained_cfg = {
            k: v for k, v in settings.items() if k not in ("test_input_size", "test_crop_pct")
        }
        return TimmWrapperImageProcessor(model.config.pretrained_cfg, model.config.architecture)
    settings = processor.to_dict()
    if "crop_pct" in settings:
        return type(processor).from_dict(settings | {"size": {"shortest_edge": size}, "crop_pct": crop_pct})
    side = round(size / crop_pct)
    crop = bool(settings.get("do_center_crop")) or crop_pct < 1
    keeps_aspect = crop and "shortest_edge" in settings["size"]  # without a crop the images would differ in size
    settings["size"] = {"shortest_edge": side} if keeps_aspect else {"height": side, "width": side}
    if crop:
        settings |= {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    return type(processor).from_dict(settings)


def batch(processor: BaseImageProcessor, images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, H, W) -> pixel values (N, 3, size, size), on the images' device, as `processor` computes them.

    timm's processor resizes with Pillow, this with torchvision's kernel for 8 bits: of CIFAR-10, 1 pixel in 2,000
    differs.
    """
    if not isinstance(processor, TimmWrapperImageProcessor):
        return processor(images=images, return_tensors="pt")["pixel_values"]
    for transform in processor.val_transforms.transforms:
        if isinstance(transform, timm.data.transforms.MaybeToTensor | timm.data.transforms.ToTensor):
            images = to_dtype(images, torch.float32, scale=True)
        elif isinstance(transform, Resize):  # which would resize a tensor in float
            images = resize(images, transform.size, interpolation=transform.interpolation, antialias=True)
        else:
            images = transform(images)
    return images


def mean_std(processor: BaseImageProcessor) -> tuple[list[float], list[float]]:
    """What the processor subtracts and divides by, a number a channel, in units of 255."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return list(processor.data_config["mean"]), list(processor.data_config["std"])
    if hasattr(processor, "include_top"):  # EfficientNet's, which may divide twice and have 0 in the middle
        black, white = (
            batch(processor, torch.full((1, 3, 8, 8), value, dtype=torch.uint8))[0, :, 0, 0] for value in (0, 255)
        )
        std = 1 / (white - black)
        return (-black * std).tolist(), std.tolist()
    if not processor.do_normalize:
        return [0.0] * 3, [1.0] * 3
    return list(processor.image_mean), list(processor.image_std)


def is_bicubic(processor: BaseImageProcessor) -> bool:
    """Whether the processor resizes with a bicubic kernel, or a sharper one, rather than a bilinear one."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return processor.data_config["interpolation"] in ("bicubic", "lanczos")
    return int(processor.resample) in (1, 3)  # Pillow's LANCZOS and BICUBIC
