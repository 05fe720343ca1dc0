"""Finds a model, in a folder or on the Hub, and loads its weights and its processor without running its code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForImageClassification, BaseImageProcessor, PreTrainedModel
from transformers.utils import logging

from classifier.errors import ModelError, first_sentence
from classifier.hub import HUB_ID, PULLED, pull
from classifier.models import cnn  # noqa: F401  registers the scratch CNN with the Auto classes of transformers


class Location(NamedTuple):
    """Where a model's files are, and what they are.

    Attributes:
        folder: with the files.
        name: the folder's, or the Hub id.
        revision: the Hub's commit, or "local".
        notice: why that is not the Hub's present one, "" when it is.
    """

    folder: Path
    name: str
    revision: str
    notice: str = ""


def locate(path_or_id: str | Path, files: Sequence[str] | None = None, *, patience: float | None = None) -> Location:
    """A folder here, else the Hub's, of which `files` (patterns) are fetched: by default what inference needs.

    Errors and `patience` as in `load_predictor`.
    """
    if Path(path_or_id).is_dir():
        return Location(Path(path_or_id), Path(path_or_id).resolve().name, "local")
    if match := HUB_ID.fullmatch(str(path_or_id)):
        folder, commit, notice = pull(match["repo"], match["revision"], files=files or PULLED, patience=patience)
        return Location(folder, match["repo"], commit, notice)
    raise ModelError(f"no model folder {path_or_id}: train one (train.py, finetune_vit.py), or name a Hub model")


def default_device() -> torch.device:
    """CUDA, then MPS, when present, the CPU otherwise."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def load_weights(folder: Path, *, allow_pickle: bool = False, **options) -> tuple[PreTrainedModel, list[str]]:
    """The image classifier in `folder`, in fp32, and the parameters that its files have not, or in another shape.

    Args:
        folder: of config.json and weights.
        allow_pickle: whether weights may be in another format than safetensors.
        options: for `from_pretrained`, such as a changed `config`.

    Raises:
        ModelError: no weights, damaged ones, or an architecture that `transformers` does not know.
    """
    if not allow_pickle and not any(
        (folder / n).exists() for n in ("model.safetensors", "model.safetensors.index.json")
    ):
        raise ModelError(f"no model.safetensors in {folder}: other formats may run code, save it as safetensors")
    try:
        with quiet():  # what is absent is the caller's to tell, in a line
            model, loaded = AutoModelForImageClassification.from_pretrained(
                folder,
                dtype=torch.float32,  # the default computes in the dtype of the file
                use_safetensors=None if allow_pickle else True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **options,
            )
    except SafetensorError as error:
        raise ModelError(f"{folder}/model.safetensors is damaged ({error}): fetch or train it again") from error
    except UnpicklingError as error:  # torch refuses to run what it does not know
        raise ModelError(
            f"{folder} has weights that hold code ({first_sentence(error)}): save them as safetensors"
        ) from error
    except (OSError, ValueError, KeyError, ImportError) as error:  # timm's unknown architecture is an ImportError
        raise ModelError(
            f"can't load the model in {folder} ({first_sentence(error)}): it has to be an image classifier that "
            "transformers knows, because code beside the weights is never run"
        ) from error
    return model, sorted({*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])})


@contextmanager
def quiet() -> Iterator[None]:
    """Neither bars nor warnings of transformers."""
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
    """The processor saved in `folder`, on torchvision; timm's is in config.json."""
    try:
        with quiet():  # timm's has but one backend, and warns that it isn't this one
            return AutoImageProcessor.from_pretrained(folder, backend="torchvision", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no usable image processor in {folder} ({first_sentence(error)}): save preprocessor_config.json beside "
            "the weights"
        ) from error
