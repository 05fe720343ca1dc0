"""A loaded model and its own processor: images in, probabilities out, the same everywhere they are asked for.

    from classifier import load_predictor
    load_predictor("runs/cnn")(["a.jpg", image], top_k=3)

An image reaches the model by `pixels` (bytes to upright RGB) and by the processor saved beside the weights, and by nothing
else, so that app, API, evaluation and `transformers.pipeline` agree to 1e-4. Weights are read from safetensors, computed in
fp32, and no code from a model repository is ever run.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.utils import logging

from classifier import (
    cnn,  # noqa: F401  registers the scratch CNN with transformers' Auto classes
    pixels,
)
from classifier.errors import ModelError

Picture = str | Path | bytes | Image.Image

HUB_ID = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")


def load_predictor(
    path_or_id: str | Path, *, device: str | torch.device | None = None, patience: float | None = None
) -> "Predictor":
    """Loads a model folder, a Hub model (`user/name`) or a revision of one (`user/name@revision`).

    Args:
        path_or_id: a folder wins over a Hub id of the same spelling.
        device: where to compute; by default CUDA, then MPS, when present, the CPU otherwise.
        patience: seconds to wait for a slow Hub before what is cached is served; None waits.

    Raises:
        HubError: the Hub can't be reached, and nothing is cached.
        ModelError: something is missing, corrupted, or of an architecture that `transformers` does not know. The message
            is one line that names the folder and the next step.
    """
    if Path(path_or_id).is_dir():
        folder, name, revision, notice = Path(path_or_id), Path(path_or_id).resolve().name, "local", ""
    elif match := HUB_ID.fullmatch(str(path_or_id)):
        from classifier import hub  # a local folder needs no Hub client

        name = match["repo"]
        folder, revision, notice = hub.pull(name, match["revision"], patience=patience)
    else:
        raise ModelError(f"no model folder {path_or_id}: train one (train.py, finetune_vit.py), or name a Hub model")
    config = _read_json(folder / "config.json")
    return Predictor(
        _load_model(folder).to(device or default_device()),
        _load_processor(folder),
        name=name,
        revision=revision,
        notice=notice,
        evaluation=_read_json(folder / "evaluation.json") if (folder / "evaluation.json").exists() else {},
        known_threshold=config.get("known_threshold"),
        reduce_to=config.get("reduce_to"),
    )


def default_device() -> torch.device:
    """CUDA, then MPS, when present, the CPU otherwise."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


class Predictor:
    """A model in evaluation mode with its processor. Safe to call from several threads.

    Attributes:
        name: the folder's name, or the Hub id.
        revision: the Hub commit, or "local".
        notice: why the revision is not the Hub's present one, "" when it is.
        labels: names of the C classes, in the order of the logits.
        n_parameters: number of parameters of the model.
        evaluation: evaluation.json beside the weights, {} when there is none.
        known_threshold: an image whose highest probability is below looks like none of the labels; None when not set.
        reduce_to: pixels to which `pixels.decode` may shrink a large file first; None when not set.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor,
        *,
        name: str,
        revision: str | None = None,
        notice: str = "",
        evaluation: dict | None = None,
        known_threshold: float | None = None,
        reduce_to: int | None = None,
    ):
        self.model = model.eval()
        self.processor = processor
        self.name = name
        self.revision = revision
        self.notice = notice
        self.labels: list[str] = [model.config.id2label[i] for i in range(model.config.num_labels)]
        self.n_parameters = sum(parameter.numel() for parameter in model.parameters())
        self.evaluation = evaluation or {}
        self.known_threshold = known_threshold
        self.reduce_to = reduce_to

    @property
    def accuracy(self) -> float | None:
        """Share of the test images that the evaluation found right, None when it was not evaluated."""
        return self._measured.get("accuracy")

    @property
    def accuracy_ci95(self) -> list[float] | None:
        """The accuracy's 95% interval, [low, high], None when it was not evaluated."""
        return self._measured.get("accuracy_ci95")

    @property
    def _measured(self) -> dict:
        return next(iter(self.evaluation.get("models", [])), {})

    def __call__(self, images: Picture | Sequence[Picture], top_k: int = 5) -> list:
        """The `top_k` most probable labels of each image, best first, as `transformers.pipeline` gives them.

        Args:
            images: one or a list of paths, encoded bytes and PIL images.
            top_k: labels an image, all of them when there are fewer.

        Returns:
            `[{"label", "score"}, …]` for one image, a list of such lists for a list of images.
        """
        if isinstance(images, str | Path | bytes | Image.Image):
            return self([images], top_k)[0]
        return [self.top(row, top_k) for row in self.probabilities(images)]

    def top(self, probabilities: np.ndarray, top_k: int) -> list[dict]:
        """(C,) probabilities -> the `top_k` highest as `[{"label", "score"}, …]`, best first."""
        order = np.argsort(-probabilities, kind="stable")[:top_k]
        return [{"label": self.labels[i], "score": float(probabilities[i])} for i in order]

    def is_known(self, probabilities: np.ndarray) -> bool | None:
        """Whether (C,) probabilities are sure enough to be one of the labels; None when no threshold was set."""
        return None if self.known_threshold is None else bool(probabilities.max() >= self.known_threshold)

    def probabilities(self, images: Sequence[Picture], batch_size: int = 64) -> np.ndarray:
        """(N, C) float32 probabilities of N images. Arguments and errors as `logits`."""
        return torch.from_numpy(self.logits(images, batch_size)).softmax(dim=1).numpy()

    def logits(self, images: Sequence[Picture], batch_size: int = 64) -> np.ndarray:
        """(N, C) float32 logits of N paths, encoded bytes or PIL images.

        Raises:
            ImageError: a file can't be read. It is named.
            ModelError: the model gave NaN or infinity.
        """
        logits = [self._forward(batch) for batch in batches(self._decoded(images), batch_size)]
        return np.concatenate(logits) if logits else np.empty((0, len(self.labels)), np.float32)

    @torch.inference_mode()
    def _forward(self, images: list[Image.Image]) -> np.ndarray:
        """A batch of N RGB images -> (N, C) float32 logits."""
        pixel_values = self.processor(images=images, return_tensors="pt")["pixel_values"]  # (N, 3, H, W)
        parameter = next(self.model.parameters())
        logits = self.model(pixel_values.to(parameter.device, parameter.dtype)).logits.float().cpu()
        if not logits.isfinite().all():
            raise ModelError(f"{self.name} gave NaN or infinity: its weights may be damaged, fetch or train them again")
        return logits.numpy()

    def _decoded(self, images: Iterable[Picture]) -> Iterator[Image.Image]:
        """RGB images in order. Consecutive files are decoded together, by the decoder's worker processes."""
        images = list(images)
        files = pixels.decode_many([image for image in images if not isinstance(image, Image.Image)], reduce_to=self.reduce_to)
        for image in images:
            if isinstance(image, Image.Image):
                yield pixels.to_rgb(image)
            elif isinstance(decoded := next(files), Exception):
                raise decoded
            else:
                yield decoded


def batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` consecutive items, the last one shorter; items are taken only as they are needed."""
    items = iter(items)
    return iter(lambda: list(islice(items, size)), [])


def _read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ModelError(f"no {path.name} in {path.parent}: is it a model folder? Train one, or name another") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise ModelError(f"{path} is not valid JSON ({_first_sentence(error)}): fetch or train the model again") from error


def _load_model(folder: Path) -> torch.nn.Module:
    if not any((folder / name).exists() for name in ("model.safetensors", "model.safetensors.index.json")):
        raise ModelError(f"no model.safetensors in {folder}: other formats may run code, save it as safetensors")
    bar_was_on = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # tens of milliseconds need no bar
    try:
        model, loaded = AutoModelForImageClassification.from_pretrained(
            folder,
            dtype=torch.float32,  # the default computes in the dtype of the file
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, with a shorter message
            output_loading_info=True,
        )
    except SafetensorError as error:
        raise ModelError(f"{folder}/model.safetensors is damaged ({error}): fetch or train it again") from error
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"can't load the model in {folder} ({_first_sentence(error)}): it has to be an image classifier that "
            "transformers knows, because code beside the weights is never run"
        ) from error
    finally:
        if bar_was_on:
            logging.enable_progress_bar()
    # transformers would go on with random values in their place
    if absent := sorted({*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])}):
        raise ModelError(
            f"the weights in {folder} don't fit config.json ({len(absent)} missing or of another shape, first {absent[0]}): "
            "a backbone without a classifier has to be fine-tuned first"
        )
    return model


def _load_processor(folder: Path):
    try:
        return AutoImageProcessor.from_pretrained(folder, backend="torchvision", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no usable image processor in {folder} ({_first_sentence(error)}): "
            "save preprocessor_config.json beside the weights"
        ) from error


def _first_sentence(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0].rstrip(" .:")
