"""Checkpoints of the scratch CNN: everything that a run needs to continue as if it had not stopped."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from classifier.errors import ModelError
from classifier.files import replacing

CHECKPOINT = "checkpoint.safetensors"


@dataclass
class Progress:
    """Where a run is: all that a checkpoint holds beside tensors."""

    step: int = 0
    best_accuracy: float = -1.0  # on validation, a fraction
    best_epoch: int = 0
    improved_epoch: int = 0  # the last one that was better than all before, not as good
    train_seconds: float = 0.0  # spent in steps, without validation
    history: list[dict] = field(default_factory=list)  # a dict an epoch, as in metrics.jsonl


def copy_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The model's parameters and buffers, detached and copied."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def save_checkpoint(path: Path, model, optimizers, best, progress: Progress, settings: dict) -> None:
    """Writes all that `load_checkpoint` needs to one file, whole or not at all; ModelError on a full disk."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            tensors[f"optimizer.{i}.{j}"] = state["momentum_buffer"]
    metadata = {"progress": json.dumps(asdict(progress)), "settings": json.dumps(settings)}
    try:
        with replacing(path) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    except (OSError, SafetensorError) as error:
        go_on = "go on with --resume_from_checkpoint last" if path.exists() else "start again"
        raise ModelError(f"can't save {path} ({error}): free some space, then {go_on}") from error


def load_checkpoint(path: Path, model, optimizers, settings: dict) -> tuple[Progress, dict[str, torch.Tensor]]:
    """Restores model and optimizers in place; gives the progress and the best weights so far.

    Raises:
        ModelError: a damaged file, or one of a run with other settings (which are named).
    """
    try:
        with safe_open(path, framework="pt", device=str(next(model.parameters()).device)) as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged ({error}): delete it and start again") from error
    if not metadata or "settings" not in metadata:
        raise ModelError(f"{path} is not a checkpoint of train.py: give the folder of the run, or 'last'")
    saved, now = json.loads(metadata["settings"]), json.loads(json.dumps(settings))
    flat = [{**s.pop("recipe"), **s} for s in (saved, now)]
    if changed := [name for name in flat[1] if flat[0].get(name) != flat[1][name]]:
        was = ", ".join(f"{name} {flat[0].get(name)} (now {flat[1][name]})" for name in changed)
        raise ModelError(f"{path} was trained with {was}: give the same settings, or another --output_dir")

    def part(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}

    model.load_state_dict(part("model."))
    for i, optimizer in enumerate(optimizers):
        state = {int(j): {"momentum_buffer": tensor} for j, tensor in part(f"optimizer.{i}.").items()}
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**json.loads(metadata["progress"])), part("best.")


def data_digest(images: torch.Tensor, labels: torch.Tensor) -> str:
    """What tells one data set from another: 12 hex digits of SHA-256 over pixels and labels."""
    hashed = hashlib.sha256(images.cpu().numpy().tobytes())
    hashed.update(labels.cpu().numpy().tobytes())
    return hashed.hexdigest()[:12]
