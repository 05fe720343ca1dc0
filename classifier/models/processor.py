"""The image processor saved with a model: its settings, a copy for another resolution, and its use on a batch tensor.

Every function takes a processor of transformers with the torchvision backend, or the one of timm, whose settings are in
config.json.
"""

import re
from dataclasses import dataclass

import numpy as np
import timm.data
import torch
from PIL import Image
from torchvision.transforms import Resize
from torchvision.transforms.v2.functional import resize, to_dtype
from transformers import BaseImageProcessor, PreTrainedModel
from transformers.models.timm_wrapper.image_processing_timm_wrapper import TimmWrapperImageProcessor

# Processors that only resize, crop, rescale and normalise: a few lines of any language do the same.
PLAIN_PROCESSORS = {"ViTImageProcessor", "DeiTImageProcessor", "MobileNetV1ImageProcessor", "MobileNetV2ImageProcessor"}


def size_of(processor: BaseImageProcessor) -> int:
    """Pixels a side of the images that the model receives."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return processor.data_config["input_size"][-1]
    settings = processor.to_dict()
    size = settings["crop_size"] if settings.get("do_center_crop") else settings["size"]
    return size.get("height") or size["shortest_edge"]


def crop_pct_of(processor: BaseImageProcessor) -> float:
    """Side of the centre crop as a fraction of the side of the resized image; 1 without a crop."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return processor.data_config["crop_pct"]
    settings = processor.to_dict()
    if "crop_pct" in settings:  # ConvNeXt and PoolFormer
        return settings["crop_pct"]
    if not settings.get("do_center_crop"):
        return 1.0
    size = settings["size"]
    return settings["crop_size"]["height"] / (size.get("height") or size["shortest_edge"])


def timm_settings(pretrained_cfg: dict) -> dict | None:
    """What timm's processor does, with the names and values that preprocessor_config.json has for it.

    None if these can't express it: a crop other than timm's usual one, or an image that is no square.
    """
    _, height, width = pretrained_cfg["input_size"]
    resample = pretrained_cfg["interpolation"].upper()
    usual = pretrained_cfg.get("crop_mode", "center") == "center" and height == width
    if not usual or resample not in Image.Resampling.__members__:
        return None
    return {
        "do_resize": True,
        "size": {"shortest_edge": int(height / pretrained_cfg["crop_pct"])},
        "resample": int(Image.Resampling[resample]),
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(pretrained_cfg["mean"]),
        "image_std": list(pretrained_cfg["std"]),
    }


@dataclass(frozen=True)
class PixelSteps:
    """What a processor does with an RGB image, one step after the other."""

    size: tuple[int, int] | None  # (width, height) to which it resizes; None: it does not, or by the shortest edge
    shortest_edge: int | None  # pixels to which it resizes the shorter side
    resample: str  # a name of PIL.Image.Resampling
    crop: tuple[int, int] | None  # (width, height) of the middle that it keeps; None: all
    even_crop: bool  # whether a half of a pixel beside the middle is rounded to the even number, and not down
    scale: float  # by which it multiplies values in 0 ... 255
    mean: list[float]  # of each channel, which it then subtracts
    std: list[float]  # of each channel, by which it then divides


def pixel_steps(config: dict, settings: dict) -> PixelSteps | None:
    """The steps of a saved processor; None if it does more than these.

    Args:
        config: config.json, which has the settings of timm's processors.
        settings: preprocessor_config.json; {} without such a file.
    """
    is_timm = "pretrained_cfg" in config
    if is_timm:
        settings = timm_settings(config["pretrained_cfg"]) or {}
        if not settings:
            return None
    elif re.sub("(Fast|Pil)$", "", settings.get("image_processor_type", "")) not in PLAIN_PROCESSORS:
        return None
    size = settings["size"] if settings.get("do_resize", True) else {}
    crop = settings["crop_size"] if settings.get("do_center_crop") else None
    normalizes = settings.get("do_normalize", True)
    mean, std = (settings[name] if normalizes else value for name, value in (("image_mean", 0), ("image_std", 1)))
    return PixelSteps(
        size=(size["width"], size["height"]) if "width" in size else None,
        shortest_edge=size.get("shortest_edge"),
        resample=Image.Resampling(settings["resample"]).name,
        crop=(crop["width"], crop["height"]) if crop and crop != size else None,
        even_crop=is_timm,
        scale=settings["rescale_factor"] if settings.get("do_rescale", True) else 1.0,
        mean=np.broadcast_to(mean, 3).tolist(),
        std=np.broadcast_to(std, 3).tolist(),
    )


def resized(processor: BaseImageProcessor, model: PreTrainedModel, size: int, crop_pct: float) -> BaseImageProcessor:
    """A processor for another resolution. For timm, the settings in `model.config` are changed as well.

    Args:
        processor: of the pre-trained model. Its treatment of the aspect ratio is kept.
        model: the model that will be saved beside it.
        size: pixels a side of the images that the model receives.
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
        settings |= {"size": {"shortest_edge": size}, "crop_pct": crop_pct}
        if settings.get("do_center_crop"):  # PoolFormer
            settings["crop_size"] = {"height": size, "width": size}
        return type(processor).from_dict(settings)
    side = round(size / crop_pct)
    crop = bool(settings.get("do_center_crop")) or crop_pct < 1
    keeps_aspect = crop and "shortest_edge" in settings["size"]  # without a crop, images would differ in shape
    settings["size"] = {"shortest_edge": side} if keeps_aspect else {"height": side, "width": side}
    if crop:
        settings |= {"do_center_crop": True, "crop_size": {"height": size, "width": size}}
    return type(processor).from_dict(settings)


def process_batch(processor: BaseImageProcessor, images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, H, W) -> pixel values (N, 3, size, size) of `processor`, on the device of the images.

    The processor of timm resizes with Pillow and this function with torchvision's 8-bit kernel; 1 pixel in 2,000 of
    CIFAR-10 differs.
    """
    if not isinstance(processor, TimmWrapperImageProcessor):
        return processor(images=images, return_tensors="pt")["pixel_values"]
    for transform in processor.val_transforms.transforms:
        if isinstance(transform, timm.data.transforms.MaybeToTensor | timm.data.transforms.ToTensor):
            images = to_dtype(images, torch.float32, scale=True)
        elif isinstance(transform, Resize):  # applied to a tensor, it would resize in float
            images = resize(images, transform.size, interpolation=transform.interpolation, antialias=True)
        else:
            images = transform(images)
    return images


def mean_std(processor: BaseImageProcessor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation by which the processor normalises each channel, in units of 255."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return list(processor.data_config["mean"]), list(processor.data_config["std"])
    if hasattr(processor, "include_top"):  # EfficientNet: it may divide twice, and its rescaling may have an offset
        black, white = (
            process_batch(processor, torch.full((1, 3, 8, 8), value, dtype=torch.uint8))[0, :, 0, 0]
            for value in (0, 255)
        )
        std = 1 / (white - black)
        return (-black * std).tolist(), std.tolist()
    settings = processor.to_dict()
    if not settings.get("do_normalize"):
        return [0.0] * 3, [1.0] * 3
    mean, std = (np.broadcast_to(settings[name], 3).tolist() for name in ("image_mean", "image_std"))
    return mean, std


def is_bicubic(processor: BaseImageProcessor) -> bool:
    """Whether the processor resizes with a bicubic or Lanczos kernel, not a bilinear one."""
    if isinstance(processor, TimmWrapperImageProcessor):
        return processor.data_config["interpolation"] in ("bicubic", "lanczos")
    return int(processor.to_dict()["resample"]) in (Image.Resampling.LANCZOS, Image.Resampling.BICUBIC)
