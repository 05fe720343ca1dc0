"""Locates a model in a folder or on the Hub, and loads its weights and its processor without running its code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    BaseImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from classifier.errors import ModelError, first_sentence
from classifier.files import check_no_lfs_pointer
from classifier.hub import HUB_ID, Location, pull
from classifier.models import cnn  # noqa: F401  registers the scratch CNN with the Auto classes of transformers
from classifier.models.logit_scores import SCORES
from classifier.runs import PULLED

# Settings of a processor that are no switches: null stands for the default of its class. A switch that is null is off.
VALUES = ("size", "crop_size", "crop_pct", "resample", "rescale_factor", "image_mean", "image_std")
OLD_OOD_KEYS = ("known_threshold", "known_at")  # what models have that were trained before `ood` was one key


def locate(path_or_id: str | Path, files: Sequence[str] | None = None, *, patience: float | None = None) -> Location:
    """A local folder or, if there is none of this name, a Hub model, whose files are downloaded.

    A local folder with Git LFS pointers in place of its files is refused.

    Args:
        path_or_id: folder, Hub id or `id@revision`.
        files: patterns of the files to download, by default those that inference needs.
        patience: as in `load_predictor`, and so are the errors.
    """
    if Path(path_or_id).is_dir():
        for path in sorted(Path(path_or_id).iterdir()):
            check_no_lfs_pointer(path, ModelError)
        return Location(Path(path_or_id), Path(path_or_id).resolve().name, "local")
    if match := HUB_ID.fullmatch(str(path_or_id)):
        return pull(match["repo"], match["revision"], files=files or PULLED, patience=patience)
    raise ModelError(f"no model folder {path_or_id}: train one (train.py, finetune_vit.py), or name a Hub model")


class OodSettings(NamedTuple):
    """The key `ood` of config.json: how a model recognises images of none of its labels (out-of-distribution)."""

    threshold: float | None = None  # an image with a lower score is out-of-distribution; None: unknown
    resize_to: int | None = None  # pixels a side of the copy of a larger image that is scored too; None: no copy
    score: str = "energy"  # a key of logit_scores.SCORES


def read_ood(config: dict) -> OodSettings:
    """The settings in a config.json.

    Raises:
        ModelError: it names an unknown score.
    """
    if not (ood := config.get("ood")):
        threshold, resize_to = map(config.get, OLD_OOD_KEYS)
        return OodSettings(threshold, resize_to)
    settings = OodSettings(ood.get("threshold"), ood.get("resize_to"), ood.get("score", "energy"))
    if settings.score not in SCORES:
        raise ModelError(
            f"config.json has the unknown out-of-distribution score {settings.score!r}: choose from {', '.join(SCORES)}"
        )
    return settings


def update_ood(config: PreTrainedConfig, **changes: Any) -> None:
    """Changes some of the settings in a model's configuration; the others stay."""
    settings = read_ood(config.to_dict())._replace(**changes)
    for old in OLD_OOD_KEYS:
        if hasattr(config, old):
            delattr(config, old)
    config.ood = settings._asdict()


def default_device() -> torch.device:
    """CUDA if available, else MPS if available, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_weights(folder: Path, *, allow_pickle: bool = False, **options) -> tuple[PreTrainedModel, list[str]]:
    """The image classifier in `folder`, in float32, and the names of parameters that are missing or of another shape.

    Args:
        folder: with config.json and the weights.
        allow_pickle: whether weights may be in another format than safetensors.
        options: arguments of `from_pretrained`, such as a changed `config`.

    Raises:
        ModelError: the weights are missing or damaged, or `transformers` does not know the architecture.
    """
    if not allow_pickle and not any(
        (folder / n).exists() for n in ("model.safetensors", "model.safetensors.index.json")
    ):
        raise ModelError(f"no model.safetensors in {folder}: other formats may run code, save it as safetensors")
    try:
        with quiet():  # the caller reports missing parameters, in one line
            model, loaded = AutoModelForImageClassification.from_pretrained(
                folder,
                dtype=torch.float32,  # by default transformers computes in the dtype of the file
                use_safetensors=None if allow_pickle else True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except SafetensorError as error:
        raise ModelError(f"{folder}/model.safetensors is damaged ({error}): fetch or train it again") from error
    except UnpicklingError as error:  # torch refuses to unpickle unknown classes
        raise ModelError(
            f"{folder} has weights that hold code ({first_sentence(error)}): save them as safetensors"
        ) from error
    except (OSError, ValueError, KeyError, ImportError) as error:  # ImportError: an architecture unknown to timm
        raise ModelError(
            f"can't load the model in {folder} ({first_sentence(error)}): it has to be an image classifier that "
            "transformers knows, because code beside the weights is never run"
        ) from error
    return model, sorted({*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])})


@contextmanager
def quiet() -> Iterator[None]:
    """Suppresses progress bars and warnings of transformers."""
    bar_was_on, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar_was_on:
            logging.enable_progress_bar()


def load_processor(folder: Path) -> BaseImageProcessor:
    """The processor saved in `folder`, with the torchvision backend; the settings of timm's are in config.json.

    Files of old versions of transformers are read, too: null stands for the default of the processor's class, and the
    resampling filter may be a name or a number.

    Raises:
        ModelError: there is no usable processor.
    """
    try:
        with quiet():  # timm's processor has another backend only, and warns about it
            processor = AutoImageProcessor.from_pretrained(folder, backend="torchvision", trust_remote_code=False)
            settings = processor.to_dict()
            changes = {name: getattr(type(processor), name, None) for name in VALUES if settings.get(name, 0) is None}
            if (resample := settings.get("resample")) is not None:
                changes["resample"] = _resampling(resample)
            if any(settings.get(name) is not value for name, value in changes.items()):
                processor = type(processor).from_dict(settings | changes)
            processor(images=[Image.new("RGB", (10, 8))], return_tensors="pt")["pixel_values"]  # or it fails later
            return processor
    except (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise ModelError(
            f"no usable image processor in {folder} ({first_sentence(error)}): save preprocessor_config.json beside "
            "the weights, or correct the one that is there"
        ) from error


def _resampling(value: str | float) -> Image.Resampling:
    """The resampling filter of a processor's file: its number in Pillow or its name, such as "bicubic".

    Raises:
        ValueError: Pillow has no such filter.
    """
    name = str(value).rpartition(".")[2].upper() if isinstance(value, str) else ""
    if name in Image.Resampling.__members__:
        return Image.Resampling[name]
    try:
        return Image.Resampling(int(value))
    except ValueError:
        raise ValueError(f"resample is {value}, which is no filter of Pillow") from None
