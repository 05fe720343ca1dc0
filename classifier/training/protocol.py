"""The steps around training that train.py and finetune_vit.py share: data, resume check, stale files, record, push."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from classifier import runs
from classifier.data.splits import Splits, load_splits
from classifier.data.survey import Survey, survey_splits
from classifier.errors import ModelError, Stopped
from classifier.publish.upload import push
from classifier.records import DataRecord, RunRecord, Validation
from classifier.reporting import card, figures

SPLITS = ("train", "validation")


@dataclass
class TrainingData:
    """The images of a run."""

    splits: Splits  # train and validation
    # Images uint8 (N, 3, H, W) and labels int64 (N,) of each split; None if images are decoded as needed.
    tensors: dict[str, tuple[torch.Tensor, torch.Tensor]] | None

    @cached_property
    def counts(self) -> dict[str, torch.Tensor]:
        """Images of each class in each split, int64 (num_labels,)."""
        labels = {
            name: self.tensors[name][1] if self.tensors else torch.from_numpy(self.splits.class_indices[name])
            for name in SPLITS
        }
        return {name: indices.bincount(minlength=len(self.splits.labels)) for name, indices in labels.items()}


@dataclass
class TrainingResult:
    """What training gave, beside the model's weights."""

    history: list[dict]  # a dict an epoch, as in metrics.jsonl
    best_epoch: int | None  # the epoch whose weights were kept; None if those of the last one were
    train_seconds: float  # without validation
    images_seen: int  # in training steps
    train_flops: int  # floating-point operations of training
    inference_flops: int  # floating-point operations of a prediction for one image
    recipe: dict  # the settings that were used, for the record


def check_parent(flag: str, parent: str | Path, output_dir: Path) -> None:
    """Raises ModelError if the weights to start from are in `output_dir`, where they would be overwritten."""
    if Path(parent).resolve() == output_dir.resolve():
        raise ModelError(f"{flag} and --output_dir are both {output_dir}: give another --output_dir")


def checkpoint_to_resume(
    output_dir: Path, wanted: str | None, find: Callable[[Path], Path | None], *, overwrite: bool
) -> Path | None:
    """The checkpoint that --resume_from_checkpoint names; None without that flag.

    Args:
        output_dir: of the run.
        wanted: the flag's value: a checkpoint, a folder that has one, or 'last' for the one in `output_dir`.
        find: gives the newest complete checkpoint at a path, or None.
        overwrite: whether an earlier run in `output_dir` may be replaced.

    Raises:
        ModelError: there is no such checkpoint, or `output_dir` holds another run.
    """
    path = output_dir if wanted == "last" else Path(wanted or "")
    is_finished = runs.RunFolder(output_dir).is_finished
    continues = wanted is not None and path.resolve().is_relative_to(output_dir.resolve())
    if not overwrite and (is_finished or (find(output_dir) and not continues)):
        ways = "" if is_finished else "--resume_from_checkpoint last, "
        state = "a finished run" if is_finished else "a run"
        raise ModelError(f"{output_dir} holds {state}: pass {ways}--overwrite_output_dir or another --output_dir")
    if wanted is None:
        return None
    checkpoint = find(path)
    if checkpoint is None:
        raise ModelError(f"no checkpoint in {path}: leave out --resume_from_checkpoint to start from the beginning")
    return checkpoint


@contextmanager
def explaining_how_to_resume() -> Iterator[None]:
    """Adds the command that continues the run to the message of `Stopped`."""
    try:
        yield
    except Stopped as stopped:
        raise Stopped(f"{stopped}; go on with: python {runs.command_to_resume(sys.argv)}") from None


def load_data(flags: Any, output_dir: Path) -> tuple[Splits, Survey]:
    """Loads train and validation as the flags say, and surveys them; the main process first, which fills the caches.

    Prints what splits lack.

    Args:
        flags: has `dataset`, `validation_fraction`, `image_column`, `label_column`, `label_names`,
            `max_train_samples`, `max_eval_samples` and `skip_unreadable`.
        output_dir: unreadable files are listed there, in unreadable.txt.

    Raises:
        DataError: see `load_splits` and `survey_splits`.
    """
    with PartialState().main_process_first():
        splits = load_splits(
            flags.dataset,
            validation=flags.validation_fraction,
            image_column=flags.image_column,
            label_column=flags.label_column,
            label_names=flags.label_names,
            max_train_samples=flags.max_train_samples,
            max_eval_samples=flags.max_eval_samples,
            skip_unreadable=flags.skip_unreadable,
        )
        for note in splits.notes:
            PartialState().print(note)
        return splits, survey_splits(splits, output_dir / "unreadable.txt")


def prepare_folder(
    output_dir: Path, data: TrainingData, checkpoints: str, *, overwrite: bool, keep: Path | None
) -> None:
    """Makes `output_dir` and draws samples and class sizes; with `overwrite`, removes an earlier run's files first.

    Call it once data and model are known to be usable, so that a mistyped command removes nothing. Of the script's own
    checkpoints (the glob pattern `checkpoints`), `keep` stays.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if overwrite:
        runs.RunFolder(output_dir).remove_stale()
        remove_checkpoints(output_dir, checkpoints, keep)
    if data.tensors:
        figures.save_samples(output_dir / "samples.png", *data.tensors["train"], data.splits.labels)
    figures.save_classes(output_dir / "classes.png", data.counts, data.splits.labels)


def remove_checkpoints(output_dir: Path, checkpoints: str, keep: Path | None = None) -> None:
    """Removes the checkpoints that match a glob pattern, except `keep`."""
    for path in output_dir.glob(checkpoints):
        if keep is not None and path.resolve() == keep.resolve():
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def finish_run(
    output_dir: Path, data: TrainingData, checkpoints: str, run: dict, result: TrainingResult, validation: Validation
) -> None:
    """Completes the folder of a saved model: curves, run.json, card; removes checkpoints and prints the result.

    Args:
        output_dir: with weights, config and processor.
        data: of the run.
        checkpoints: glob pattern of the script's own checkpoints, which are no longer needed.
        run: what `runs.describe` gave.
        result: of training.
        validation: what the calibrated model reaches.
    """
    figures.save_curves(output_dir / "curves.png", result.history)
    record = RunRecord(
        **run,
        data=DataRecord(
            images=int(data.counts["train"].sum()),
            labels=data.splits.labels,
            counts={name: count.tolist() for name, count in data.counts.items()},
            skipped=len(data.splits.skipped),
            test_cut=data.splits.test_cut,
        ),
        recipe=result.recipe,
        train_seconds=round(result.train_seconds, 1),
        images_seen=result.images_seen,
        train_flops=result.train_flops,
        inference_flops=result.inference_flops,
        best_epoch=result.best_epoch,
        validation=validation,
    )
    runs.RunFolder(output_dir).write_run(record)
    card.write(output_dir)
    remove_checkpoints(output_dir, checkpoints)
    print(
        f"{validation.accuracy:.2%} of {data.counts['validation'].sum():,} validation images right after "
        f"{result.train_seconds:,.0f} s of training; saved in {output_dir}. "
        f"Measure it: python evaluate.py --model {output_dir} --dataset {record.settings['dataset']}"
    )


def push_result(output_dir: Path, flags: Any) -> None:
    """Sends a finished folder to the Hub, where `hub_model_id`, `hub_private_repo` and `hub_revision` say."""
    print(push(output_dir, flags.hub_model_id, private=bool(flags.hub_private_repo), revision=flags.hub_revision))
