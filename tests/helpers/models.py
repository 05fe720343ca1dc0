"""Tiny models with random weights, saved as folders."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from classifier.models import cnn
from classifier.publish import export

LABELS = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BACKBONES = [  # folders of HUB_MIRROR: one with a preprocessor_config.json that crops, one that squashes, one of timm's
    "facebook/deit-tiny-patch16-224",
    "google/mobilenet_v2_1.0_224",
    "timm/tf_efficientnet_lite0.in1k",
]


def save_tiny_vit(folder: Path, *, seed: int = 0, dtype: torch.dtype = torch.float32, **config) -> Path:
    """A model folder: a ViT of 10 labels and 30 thousand random weights, whose answers are worth nothing but differ."""
    torch.manual_seed(seed)
    names = dict(enumerate(LABELS))
    model = ViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            image_size=32,
            patch_size=8,
            id2label=names,
            label2id={name: i for i, name in names.items()},
        )
    )
    with torch.no_grad():
        model.classifier.weight *= 50  # random weights of the usual size give every label 10%
    model.to(dtype).save_pretrained(folder)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    edit_config(folder, **config)
    return folder


def edit_config(folder: Path, **entries) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def save_tiny_cnn(folder: Path, image_size: int = 32) -> Path:
    """A scratch CNN of 10 labels with random weights, saved as by train.py."""
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    config = cnn.CifarCnnConfig(
        image_size=image_size,
        widths=(16, 16),
        depths=(2, 3),
        views=2,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    model = cnn.CifarCnnForImageClassification(config).eval()
    with torch.no_grad():
        model.head.weight *= 20  # probabilities that differ
    folder.mkdir()
    export.save(model, ViTImageProcessor(size={"height": image_size, "width": image_size}), folder)
    return folder


def save_tiny_timm(folder: Path) -> Path:
    torch.manual_seed(0)
    pretrained = {"input_size": [3, 64, 64], "interpolation": "bicubic", "crop_pct": 0.875, "crop_mode": "center"}
    pretrained |= {
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "classifier": "head",
        "first_conv": "patch_embed.proj",
    }
    config = TimmWrapperConfig.from_dict(
        {"architecture": "test_vit", "label_names": LABELS, "num_classes": 10, "pretrained_cfg": pretrained}
        | {"model_args": {"img_size": 64}}
    )
    model = TimmWrapperForImageClassification(config)
    with torch.no_grad():
        model.timm_model.head.weight *= 20  # probabilities that differ
    model.save_pretrained(folder)
    # By timm's own names, as `transformers` saves what it had loaded from a checkpoint of timm's
    save_file(model.timm_model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def save_tiny_swin(folder: Path) -> Path:
    """A Swin, an architecture that torch can't export as ONNX."""
    torch.manual_seed(0)
    names = dict(enumerate(LABELS))
    config = SwinConfig(
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=(1, 1),
        num_heads=(2, 4),
        window_size=4,
        id2label=names,
        label2id={name: i for i, name in names.items()},
    )
    SwinForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def tiny_vit(**config) -> ViTForImageClassification:
    torch.manual_seed(0)
    settings = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    return ViTForImageClassification(ViTConfig(**settings, image_size=32, patch_size=8, **config))
