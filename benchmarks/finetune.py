"""Times fine-tuning against the plain recipe, on a fixed subset of 10,000 training and 2,000 validation images.

    python -m benchmarks.finetune --model facebook/deit-tiny-patch16-224 --dataset uoft-cs/cifar10

The plain recipe is one epoch of transformers' example: Trainer's defaults (float32, AdamW 5e-5, batches of 8) at the
model's own resolution, with Pillow transforms in workers. Its time covers training and one validation. "Ours" is
finetune_vit.py with the flags in OURS, or those given after `--`, once per seed. Its time covers the whole command,
from the start until everything is saved. The slowest and the least accurate seed are compared. Writes
benchmarks/finetune.json.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torchvision import transforms
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments

from classifier import runs as record
from classifier.data.loaders import DecodedSplit
from classifier.data.splits import Splits, load_splits
from classifier.files import write_json
from classifier.models import processor as processors
from classifier.models.loading import load_processor, locate

ROOT = Path(__file__).resolve().parent.parent
OURS = ("--image_size", "160", "--train_sizes", "1:1", "--num_train_epochs", "1")


def plain(model: str, splits: Splits, epochs: float) -> tuple[float, float]:
    """Trains by the plain recipe; returns validation accuracy (0 to 1) and seconds."""
    folder, *_ = locate(model)
    processor = load_processor(folder)
    size, normalize = processors.size_of(processor), transforms.Normalize(*processors.mean_std(processor))
    to_tensor = [transforms.ToTensor(), normalize]
    train = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *to_tensor])
    validate = transforms.Compose([transforms.Resize(size), transforms.CenterCrop(size), *to_tensor])
    network = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=len(splits.labels), ignore_mismatched_sizes=True, dtype=torch.float32
    )
    with tempfile.TemporaryDirectory() as output_dir:
        trainer = Trainer(
            network,
            TrainingArguments(
                output_dir=output_dir,
                use_cpu=not torch.cuda.is_available(),
                num_train_epochs=epochs,
                dataloader_num_workers=os.cpu_count(),
                save_strategy="no",
            ),
            data_collator=collate,
            train_dataset=Pairs("train", splits, train),
            eval_dataset=Pairs("validation", splits, validate),
            compute_metrics=lambda found: {
                "accuracy": float(np.mean(found.predictions.argmax(axis=1) == found.label_ids))
            },
        )
        began = time.perf_counter()
        trainer.train()
        accuracy = trainer.evaluate()["eval_accuracy"]
        return accuracy, time.perf_counter() - began


class Pairs(DecodedSplit):
    """A split whose items are dictionaries, as `collate` takes them."""

    def __getitem__(self, index: int) -> dict:
        """One image and its label."""
        pixels, label = super().__getitem__(index)
        return {"pixel_values": pixels, "labels": label}


def collate(items: list[dict]) -> dict:
    """Stacks items into a batch: pixel_values (N, 3, H, W) and labels (N,)."""
    labels = torch.tensor([item["labels"] for item in items])
    return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": labels}


def ours(model: str, dataset: str, settings: dict, flags: tuple[str, ...]) -> dict:
    """Runs finetune_vit.py with these flags; returns its validation accuracy and the seconds of the whole command."""
    with tempfile.TemporaryDirectory() as parent:
        output_dir = Path(parent) / "ours"
        words = ["--model", model, "--dataset", dataset, "--output_dir", output_dir, *flags]
        words += [word for name, value in settings.items() for word in (f"--{name}", value)]
        began = time.perf_counter()
        result = subprocess.run([sys.executable, ROOT / "finetune_vit.py", *map(str, words)])
        seconds = time.perf_counter() - began
        if result.returncode:
            raise SystemExit(result.returncode)
        run = record.RunFolder(output_dir).finished_run()
    return {
        "seed": settings["seed"],
        "validation_accuracy": run.validation.accuracy,
        "seconds": round(seconds, 1),
        "recipe": run.recipe,
    }


def main() -> None:
    """Runs the plain recipe, then ours with each seed, one after the other on the same machine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="facebook/deit-tiny-patch16-224", help="(%(default)s)")
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="as for finetune_vit.py (%(default)s)")
    parser.add_argument("--max_train_samples", type=int, default=10_000, help="images (%(default)s)")
    parser.add_argument("--max_eval_samples", type=int, default=2_000, help="images (%(default)s)")
    parser.add_argument("--epochs", type=float, default=1.0, help="epochs of the plain recipe (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds of our runs (%(default)s)")
    parser.add_argument("ours", nargs="*", default=OURS, metavar="-- FLAGS", help="of finetune_vit.py (default: OURS)")
    args = parser.parse_args()
    cut = {"max_train_samples": args.max_train_samples, "max_eval_samples": args.max_eval_samples}

    accuracy, seconds = plain(args.model, load_splits(args.dataset, **cut), args.epochs)
    print(f"plain: {accuracy:.2%} of validation in {seconds:.0f} s", flush=True)
    runs = []
    for seed in args.seeds:
        runs.append(ours(args.model, args.dataset, {**cut, "seed": seed}, args.ours))
        print(f"ours, seed {seed}: {runs[-1]['validation_accuracy']:.2%} in {runs[-1]['seconds']:.0f} s", flush=True)
    share = max(run["seconds"] for run in runs) / seconds
    found = {
        "model": args.model if not Path(args.model).is_dir() else Path(args.model).resolve().name,
        **cut,
        "plain": {"epochs": args.epochs, "validation_accuracy": accuracy, "seconds": round(seconds, 1)},
        "ours": {"flags": list(args.ours), "runs": runs},
        "share_of_time": round(share, 3),
        "is_as_accurate": min(run["validation_accuracy"] for run in runs) >= accuracy,
        "machine": record.machine(),
    }
    write_json(Path(__file__).parent / "finetune.json", found)
    print(f"the slowest takes {share:.2f} of the time; every seed is as accurate: {found['is_as_accurate']}")


if __name__ == "__main__":
    main()
