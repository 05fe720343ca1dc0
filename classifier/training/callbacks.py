"""Callbacks of fine-tuning: what a run has done so far, as its checkpoints keep it, and the progress bar."""

import json
import math
import time
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm import tqdm
from transformers import (
    PreTrainedModel,
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import sort_checkpoints

from classifier.errors import ModelError
from classifier.files import write_text
from classifier.training.finetune_data import Streamed
from classifier.training.runtime import StopSignal, any_process

CHECKPOINTS = "checkpoint-*"  # the folders in which Trainer saves checkpoints


class ProgressTracker(TrainerCallback, ExportableState):
    """Counts a run's images, losses and seconds, and writes a line of metrics an epoch; checkpoints store its state.

    Each process counts its own images. After a resume, the first process also holds the totals from the checkpoint.

    Attributes:
        settings: a checkpoint can only be resumed with the same ones.
        patience: epochs without better validation after which training stops; None never does.
        metric: of validation, by which an epoch is better: accuracy, f1 or nll.
        history: a dict an epoch, as in metrics.jsonl.
        train_seconds: without validation.
        images_seen: by this process.
        step_images: images of an optimiser step, on all processes.
        is_stopping: whether any process received a signal to stop; the same on all processes.
    """

    def __init__(
        self,
        output_dir: Path,
        settings: dict,
        stop: StopSignal,
        patience: int | None = None,
        metric: str = "accuracy",
    ):
        self.output_dir, self.settings, self.stop = output_dir, json.loads(json.dumps(settings)), stop
        self.patience, self.metric = patience, metric
        self.reset()

    def reset(self) -> None:
        """Sets everything to its value before the first step."""
        self.history: list[dict] = []
        self.train_seconds, self.epoch_seconds = 0.0, 0.0
        self.images_seen = self.epoch_images = 0
        self.sums = torch.zeros(2)  # of loss (nats) and of right predictions, in this epoch
        self.began: float | None = None
        self.size = self.step_images = 0
        self.is_stopping = False
        self.shared = {"sums": [0.0, 0.0], "images_seen": 0, "epoch_images": 0}  # totals, as a checkpoint keeps them

    def add(self, losses: torch.Tensor, right: torch.Tensor, n: int) -> None:
        """Adds a batch of n images: their summed loss, and how many were right. Does not wait for the device."""
        self.sums = self.sums.to(losses.device) + torch.stack([losses, right]).detach()
        self.images_seen += n
        self.epoch_images += n

    def totals(self) -> dict:
        """`sums`, `images_seen` and `epoch_images` over all processes; every process has to call this."""
        if PartialState().num_processes == 1:
            return {"sums": self.sums.tolist(), "images_seen": self.images_seen, "epoch_images": self.epoch_images}
        counts = torch.tensor([self.images_seen, self.epoch_images], dtype=torch.float64)
        mine = torch.cat([self.sums.cpu().double(), counts]).to(PartialState().device)  # NCCL needs it there
        loss, right, seen, of_epoch = reduce(mine, reduction="sum").tolist()
        return {"sums": [loss, right], "images_seen": int(seen), "epoch_images": int(of_epoch)}

    def share(self) -> None:
        """Adds up the totals that the checkpoint will store; called on all processes before it is written."""
        self.shared = self.totals()

    def clock(self) -> None:
        """Adds the time since the last call, while steps are running."""
        if self.began is not None:
            now = time.perf_counter()
            self.train_seconds += now - self.began
            self.epoch_seconds += now - self.began
            self.began = now

    def state(self) -> dict:
        """The state that a checkpoint stores, ready for JSON."""
        self.clock()
        names = ("history", "train_seconds", "epoch_seconds", "step_images", "settings")
        return {"args": {}, "attributes": {name: getattr(self, name) for name in names} | self.shared}

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Restores the state from the checkpoint, if the run was resumed."""
        self.reset()
        if state.global_step == 0:
            self.step_images = state.train_batch_size * args.gradient_accumulation_steps * args.world_size
            return
        for name, value in state.stateful_callbacks[type(self).__name__]["attributes"].items():
            if name not in self.shared:
                setattr(self, name, value)
            elif state.is_world_process_zero:
                setattr(self, name, torch.tensor(value) if name == "sums" else value)
        self.step_images = args.train_batch_size * args.gradient_accumulation_steps * args.world_size

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs) -> None:
        """Sets the epoch of a streamed data set, before workers get their copy of it."""
        dataset = train_dataloader.dataset
        if isinstance(dataset, Streamed):
            dataset.epoch = math.floor(state.epoch or 0)
        self.began = time.perf_counter()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """After a signal: saves and stops, unless the epoch ends at this step; then the epoch is finished first."""
        self.clock()
        self.is_stopping = any_process(self.stop.caught)  # all have to decide alike, or they would deadlock
        if self.is_stopping and state.epoch % 1 > 1e-9 and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs) -> None:
        """After a signal: clears `best_model_checkpoint`, so that rotation keeps the newest checkpoint.

        The checkpoint that was just saved still names the best one.
        """
        if self.is_stopping and state.global_step < state.max_steps:
            state.best_model_checkpoint = None

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """After a signal: skips validation and a second save if the epoch is incomplete."""
        self.clock()
        self.began = None
        if self.is_stopping:
            if control.should_training_stop and state.global_step < state.max_steps:
                control.should_evaluate = control.should_save = control.should_log = False
            control.should_training_stop = True

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Stops at a loss that is not finite."""
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise ModelError(
                f"the loss is {logs['loss']} before step {state.global_step}: "
                "start again with --overwrite_output_dir and a lower --learning_rate"
            )

    def on_evaluate(self, args, state, control, metrics=None, **kwargs) -> None:
        """Writes the epoch's line of metrics.jsonl."""
        totals = self.totals()
        if not totals["epoch_images"]:
            return
        loss, right = (each / totals["epoch_images"] for each in totals["sums"])
        line = {
            "epoch": len(self.history) + 1 if args.eval_strategy == "epoch" else round(state.epoch, 3),
            "step": state.global_step,
            "size": self.size,
            "train_loss": loss,
            "train_accuracy": right,
            "images_per_second": round(totals["epoch_images"] / self.epoch_seconds, 1),
            "train_seconds": round(self.train_seconds, 2),
            "validation_loss": metrics["eval_nll"],
            "validation_accuracy": metrics["eval_accuracy"],
            "validation_f1": metrics["eval_f1"],
        }
        self.history.append(line)
        self.sums, self.epoch_images, self.epoch_seconds = torch.zeros(2), 0, 0.0
        if state.is_world_process_zero:
            write_text(self.output_dir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))
            tqdm.write(" · ".join(f"{name} {value:g}" for name, value in line.items()))
        if self.began is not None:  # in the middle of an epoch: validation is not training
            self.began = time.perf_counter()
        if self.patience and self.evaluations_since_best >= self.patience:
            control.should_training_stop = True

    @property
    def evaluations_since_best(self) -> int:
        """The number of lines of the history after the best one."""
        scores = [self.score(line) for line in self.history]
        return len(scores) - 1 - scores.index(max(scores))

    @property
    def best_epoch(self) -> int:
        """The epoch whose weights were kept: the first of the best ones on validation."""
        return max(self.history, key=self.score)["epoch"]

    def score(self, line: dict) -> float:
        """What is highest in the best line of the history."""
        return -line["validation_loss"] if self.metric == "nll" else line[f"validation_{self.metric}"]


class ImageProgressBar(ProgressCallback):
    """Trainer's bar with the loss beside it, instead of lines of raw logs."""

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """Shows the mean loss since the last log."""
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix_str(f"loss {logs['loss']:.3f}")


def report(history: list[dict], args: TrainingArguments, model: PreTrainedModel) -> None:
    """Sends a history that was made without `Trainer` to the trackers of --report_to, under the names of `Trainer`."""
    trackers = [tracker() for tracker in get_reporting_integration_callbacks(args.report_to)]
    state, control = TrainerState(), TrainerControl()
    names = {"loss": "train_loss", "eval_loss": "validation_loss", "eval_accuracy": "validation_accuracy"}
    for tracker in trackers:
        tracker.on_train_begin(args, state, control, model=model)
        for line in history:
            state.epoch, state.global_step = line["epoch"], line["step"]
            tracker.on_log(args, state, control, logs={name: line[ours] for name, ours in names.items()}, model=model)
        tracker.on_train_end(args, state, control, model=model)


def progress_of(checkpoint: Path) -> dict:
    """The attributes of `ProgressTracker` in a checkpoint's folder; ModelError for one that has none."""
    callbacks = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))["stateful_callbacks"]
    if ProgressTracker.__name__ not in callbacks:
        raise ModelError("the checkpoint is not one of finetune_vit.py: give the folder of its run, or 'last'")
    return callbacks[ProgressTracker.__name__]["attributes"]


def check_resumable(checkpoint: Path, settings: dict) -> None:
    """Raises ModelError if the checkpoint's run had other settings than these; it names them."""
    before, now = progress_of(checkpoint)["settings"], json.loads(json.dumps(settings))
    if changed := [name for name in now if before.get(name) != now[name]]:
        was = ", ".join(f"{name} {before.get(name)} (now {now[name]})" for name in changed)
        raise ModelError(f"the checkpoint was trained with {was}: give the same settings, or another --output_dir")


def last_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint in a run's folder. trainer_state.json is written last, so it marks one."""
    folders = [Path(folder) for folder in sort_checkpoints(str(output_dir))]
    complete = [folder for folder in folders if (folder / "trainer_state.json").exists()]
    return max(complete, key=lambda folder: int(folder.name.partition("-")[2]), default=None)
