"""What a model gives for many images, its logits and the features that its head gets: computed once, then read from a
cache.

found = compute(predictor, lambda: image_batches("test", splits, 64), images=digest, folder=cache)
metrics.nll(found.logits, found.labels)
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
from classifier.models.predictor import Predictor

JUDGING = ("known_threshold", "known_at")
CACHE = Path(huggingface_hub.constants.HF_HOME) / "outputs"  # of the commands

Batches = Iterable[tuple[list[Image.Image], list[int]]]


@dataclass
class Predictions:
    """Of N images."""

    logits: np.ndarray  # float32 (N, C), as `Predictor.logits` gives them
    features: np.ndarray  # float32 (N, D), what the last linear layer gets; the mean, where it sees several views
    views: (
        np.ndarray
    )  # float32 (N, V, C), logits of each view of an image; of one, where the model does not average several
    labels: np.ndarray  # int64 (N,)


def compute(
    predictor: Predictor,
    batches: Callable[[], Batches],
    *,
    images: str,
    folder: Path,
    n: int | None = None,
    name: str = "",
) -> Predictions:
    """The outputs for some images, from `folder` if this very model saw them before.

    Args:
        predictor: the model; no other thread may use it meanwhile.
        batches: gives the images, and their labels; not called if the outputs are there.
        images: tells these images and labels from all others, such as `data.fingerprint`.
        folder: of the cache; a file's name is the digest of all that its content depends on.
        n: how many images there will be, for the bar.
        name: of them, for the bar.

    Raises:
        DataError: there are none.
        ModelError: the model gave NaN or infinity.
    """
    path = folder / f"{digest(predictor, images)}.npz"
    if path.exists():
        with np.load(path) as found:
            return Predictions(**found)
    seen: list[tuple[np.ndarray, np.ndarray]] = []  # (features, logits) a view of the batch at hand
    head = backbone.head(predictor.model)
    hook = head.register_forward_hook(lambda _, args, output: seen.append((to_numpy(args[0]), to_numpy(output))))
    logits, features, views, labels = [], [], [], []
    try:
        with tqdm(total=n, unit=" images", desc=", ".join(filter(None, (predictor.name, name))), leave=False) as bar:
            for batch, batch_labels in batches():
                seen.clear()
                logits.append(predictor.logits(batch, batch_size=len(batch)))
                features.append(np.mean([view for view, _ in seen], axis=0, dtype=np.float32))
                views.append(np.stack([view for _, view in seen], axis=1))
                labels.extend(batch_labels)
                bar.update(len(batch))
    finally:
        hook.remove()
    if not labels:
        raise DataError(f"none of the images{f' of {name}' if name else ''} is readable: check the files")
    parts = (np.concatenate(each) for each in (logits, features, views))
    found = Predictions(*parts, np.array(labels))
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **vars(found))
    return found


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The same values as float32 on the CPU."""
    return tensor.float().cpu().numpy()


def digest(predictor: Predictor, images: str) -> str:
    """32 hex digits of SHA-256 over the weights, the settings of model and processor, the images, and what is kept of
    them.

    Settings that only judge what the model gave are left out.
    """
    hashed = hashlib.sha256(" ".join([images, *(field.name for field in fields(Predictions))]).encode())
    for name, tensor in predictor.model.state_dict().items():
        hashed.update(name.encode())
        hashed.update(tensor.contiguous().cpu().numpy().tobytes())
    processor = {key: value for key, value in predictor.processor.to_dict().items() if key != "image_processor_type"}
    config = {key: value for key, value in predictor.model.config.to_dict().items() if key not in JUDGING}
    config["_name_or_path"] = ""  # a model that was moved is the same one
    settings = [config, processor, predictor.reduce_to] + ["bf16"] * predictor.bf16
    hashed.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return hashed.hexdigest()[:32]
