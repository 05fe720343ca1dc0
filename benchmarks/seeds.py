"""Trains a recipe with several seeds and writes the mean and standard deviation of accuracy and time.

    python -m benchmarks.seeds --recipe fast --seeds 0 1 2 --dataset uoft-cs/cifar10

Writes benchmarks/seeds_fast.json. Each seed is a run of train.py on 98% of train (the other 2% is for validation) and
of evaluate.py on test. A seed whose run is finished is not run again.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from classifier.files import write_json
from classifier.runs import RunFolder

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Trains and measures each seed, then summarises."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="fast", help="recipe of train.py (%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to train with (%(default)s)")
    parser.add_argument("--dataset", default="uoft-cs/cifar10", help="as for train.py (%(default)s)")
    parser.add_argument("--output_dir", type=Path, default="runs/seeds", help="folder for the runs (%(default)s)")
    args = parser.parse_args()
    if len(args.seeds) < 2:
        parser.error("a standard deviation needs two seeds or more")

    runs = []
    for seed in args.seeds:
        folder = args.output_dir / f"{args.recipe}-{seed}"
        if not RunFolder(folder).is_finished:
            flags = ["--recipe", args.recipe, "--seed", seed, "--validation_fraction", 0.02]
            if (folder / "checkpoint.safetensors").exists():
                flags += ["--resume_from_checkpoint", "last"]
            command([ROOT / "train.py", "--dataset", args.dataset, "--output_dir", folder, *flags])
        if RunFolder(folder).evaluation is None:
            flags = ["--output_dir", args.output_dir / "report"]
            command([ROOT / "evaluate.py", "--model", folder, "--dataset", args.dataset, *flags])
        run, evaluation = RunFolder(folder).finished_run(), RunFolder(folder).evaluation.model
        one_view = evaluation.accuracy if evaluation.accuracy_one_view is None else evaluation.accuracy_one_view
        runs.append(
            {
                "seed": seed,
                "recipe": run.recipe,
                "accuracy": evaluation.accuracy,
                "accuracy_one_view": one_view,
                "train_seconds": run.train_seconds,
                "images_per_second": round(run.images_seen / run.train_seconds, 1),
                "train_flops": run.train_flops,
                "commit": run.commit,
                "machine": run.machine.to_json(),
            }
        )
    if len({json.dumps(run["recipe"]) for run in runs}) > 1:
        raise SystemExit(f"the runs in {args.output_dir} are of different versions of {args.recipe}: remove them")
    summary = {"recipe": args.recipe, "views": evaluation.views or 1, "n_parameters": evaluation.n_parameters}
    for name in ("accuracy", "accuracy_one_view", "train_seconds", "images_per_second"):
        values = [run[name] for run in runs]
        summary[name] = {"mean": statistics.mean(values), "std": statistics.stdev(values)}
    path = Path(__file__).parent / f"seeds_{args.recipe}.json"
    write_json(path, summary | {"runs": runs})
    print(f"accuracy {summary['accuracy']}, train seconds {summary['train_seconds']}; written to {path}")


def command(words: list) -> None:
    """Runs a script of this repository; exits with its code if it fails."""
    result = subprocess.run([sys.executable, *map(str, words)])
    if result.returncode:
        raise SystemExit(result.returncode)


if __name__ == "__main__":
    main()
