"""Tries settings of fine-tuning one at a time, on a subset of 10,000 training and 5,000 validation images.

    python -m benchmarks.ablations --dataset uoft-cs/cifar10 --seeds 0 1

Two epochs at 160 pixels, a few minutes per run. A gain smaller than the difference between seeds does not count. Adds
the results to benchmarks/ablations.json; a variant and seed that it already has is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from classifier import runs
from classifier.files import write_json

ROOT = Path(__file__).resolve().parent.parent
BASE = "--image_size 160 --train_sizes 1:1 --num_train_epochs 2 --max_train_samples 10000 --max_eval_samples 5000"
VARIANTS = {
    "defaults": "",
    "96 pixels, six epochs": "--image_size 96 --num_train_epochs 6",  # the same compute
    "224 pixels, one epoch": "--image_size 224 --num_train_epochs 1",
    "learning rate 5e-4": "--learning_rate 5e-4",
    "learning rate 2e-3": "--learning_rate 2e-3",
    "layer decay 0.65": "--layer_decay 0.65",
    "layer decay 0.85": "--layer_decay 0.85",
    "crops of 35% of the area or more": "--crop_scale 0.35",
    "crops of 80% or more": "--crop_scale 0.8",
    "no label smoothing": "--label_smoothing_factor 0",
    "weight decay 0.2": "--weight_decay 0.2",
    "mixup 0.2": "--mixup 0.2",
    "CutMix 1.0": "--cutmix 1.0",
    "RandAugment": "",
    "weights averaged over 100 steps": "",
    "batches of 128 at 1.4e-3": "--per_device_train_batch_size 128 --learning_rate 1.4e-3",
}
TUNERS = {"RandAugment": "RandAugment", "weights averaged over 100 steps": "Averaged"}  # of benchmarks/tuners.py
RESULTS = Path(__file__).parent / "ablations.json"


def main() -> None:
    """Runs each variant with each seed and prints a line per variant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="facebook/deit-tiny-patch16-224", help="(%(default)s)")
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="as for finetune_vit.py (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="(%(default)s)")
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS), help="(all)")
    args = parser.parse_args()
    for name in args.variants:
        for seed in args.seeds:
            if str(seed) not in results()["variants"].get(name, {}).get("validation_accuracy", {}):
                accuracy = run(args.model, args.dataset, name, seed)
                found = results()  # read again: another process may have added a variant
                variant = found["variants"].setdefault(name, {"flags": VARIANTS[name], "validation_accuracy": {}})
                variant["validation_accuracy"][str(seed)] = accuracy
                write_json(RESULTS, found | {"model": args.model, "machine": runs.machine()})
        values = list(results()["variants"][name]["validation_accuracy"].values())
        spread = f" ± {statistics.stdev(values):.2%}" if len(values) > 1 else ""
        print(f"{name}: {statistics.mean(values):.2%}{spread}", flush=True)


def results() -> dict:
    """The content of ablations.json."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"base": BASE, "variants": {}}


def run(model: str, dataset: str, name: str, seed: int) -> float:
    """Trains the variant and returns its validation accuracy, 0 to 1."""
    script = ["-m", "benchmarks.tuners", TUNERS[name]] if name in TUNERS else [ROOT / "finetune_vit.py"]
    with tempfile.TemporaryDirectory() as parent:
        output_dir = Path(parent) / "run"
        words = ["--model", model, "--dataset", dataset, "--seed", seed, "--output_dir", output_dir]
        command = [sys.executable, *script, *map(str, words), *BASE.split(), *VARIANTS[name].split()]
        result = subprocess.run(command, stdout=subprocess.DEVNULL)
        if result.returncode:
            raise SystemExit(result.returncode)
        return runs.RunFolder(output_dir).finished_run().validation.accuracy


if __name__ == "__main__":
    main()
