"""Logits and features of many images, computed once and then read from a cache.

test = compute(predictor, lambda: image_batches("test", splits, 64), images=digest)
metrics.nll(test.logits, test.labels)
"""

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import huggingface_hub
import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from classifier.errors import DataError
from classifier.files import replacing
from classifier.models import backbone
from classifier.models.loading import OLD_OOD_KEYS
from classifier.models.predictor import Predictor

NOT_PREDICTING = ("ood", *OLD_OOD_KEYS)  # keys of config.json that do not affect predictions
CACHE = Path(huggingface_hub.constants.HF_HOME) / "outputs"  # shared by all commands

Batches = Iterable[tuple[list[Image.Image], list[int]]]


@dataclass
class Predictions:
    """Predictions for N images."""

    logits: np.ndarray  # float32 (N, C), from `Predictor.logits`
    features: np.ndarray  # float32 (N, D), input of the last linear layer; the mean over the views of an image
    views: np.ndarray  # float32 (N, V, C), logits of each view; V is 1 if the model does not average several views
    labels: np.ndarray  # int64 (N,)


def compute(
    predictor: Predictor, batches: Callable[[], Batches], *, images: str, n: int | None = None, name: str = ""
) -> Predictions:
    """Predictions for some images, read from the cache if this very model has predicted them before.

    The name of a file in the cache is a digest of everything that its content depends on.

    Args:
        predictor: the model; no other thread may use it meanwhile.
        batches: returns batches of images and labels; not called if the predictions are cached.
        images: identifies the images and their labels, such as `loaders.fingerprint`.
        n: number of images, for the progress bar.
        name: name of the images, for the progress bar.

    Raises:
        DataError: there are no images.
        ModelError: the output has NaN or infinity.
    """
    path = CACHE / f"{digest(predictor, images)}.npz"
    if path.exists():
        with np.load(path) as arrays:
            return Predictions(**arrays)
    batch_views: list[tuple[np.ndarray, np.ndarray]] = []  # (features, logits) of each view of the current batch
    head = backbone.head(predictor.model)
    hook = head.register_forward_hook(lambda _, args, output: batch_views.append((to_numpy(args[0]), to_numpy(output))))
    logits, features, views, labels = [], [], [], []
    try:
        with tqdm(total=n, unit=" images", desc=", ".join(filter(None, (predictor.name, name))), leave=False) as bar:
            for batch, batch_labels in batches():
                batch_views.clear()
                logits.append(predictor.logits(batch, batch_size=len(batch)))
                features.append(np.mean([of_view for of_view, _ in batch_views], axis=0, dtype=np.float32))
                views.append(np.stack([of_view for _, of_view in batch_views], axis=1))
                labels.extend(batch_labels)
                bar.update(len(batch))
    finally:
        hook.remove()
    if not labels:
        raise DataError(f"none of the images{f' of {name}' if name else ''} is readable: check the files")
    result = Predictions(np.concatenate(logits), np.concatenate(features), np.concatenate(views), np.array(labels))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(result))
    return result


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same values as float32 on the CPU."""
    return tensor.float().cpu().numpy()


def digest(predictor: Predictor, images: str) -> str:
    """32 hex digits of SHA-256 over weights, settings of model and processor, images, and fields of `Predictions`.

    Settings that do not affect predictions are left out.
    """
    hashed = hashlib.sha256(" ".join([images, *(field.name for field in fields(Predictions))]).encode())
    for name, tensor in predictor.model.state_dict().items():
        hashed.update(name.encode())
        hashed.update(tensor.contiguous().cpu().numpy().tobytes())
    processor = {key: value for key, value in predictor.processor.to_dict().items() if key != "image_processor_type"}
    config = {key: value for key, value in predictor.model.config.to_dict().items() if key not in NOT_PREDICTING}
    config["_name_or_path"] = ""  # moving a model does not change it
    settings = [config, processor, predictor.reduce_to] + ["bf16"] * predictor.bf16
    hashed.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return hashed.hexdigest()[:32]
