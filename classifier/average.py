"""Command line: averages the weights of a fine-tuned model with those of earlier stages, where that is better on
validation.

    python -m classifier.average runs/vit3 --stages runs/vit2 runs/vit --output_dir runs/vit4

The mean of weights that lie on one path of training often beats each of them, and costs nothing when it answers: model
soups (Wortsman et al., arXiv:2203.05482), by their greedy recipe. From the model with the lowest negative
log-likelihood on validation images on, each next one is taken in if the mean's is lower with it. The dataset and its
validation cut are those of the model's own run. It becomes a folder like that of any run, calibrated anew; run.json
tells of each model what it reached.
"""

import argparse
import shlex
import shutil
import sys
from pathlib import Path

import torch

from classifier import runs
from classifier.data.splits import Splits, load_splits
from classifier.errors import ModelError, run
from classifier.evaluation import metrics
from classifier.files import read_json, write_json
from classifier.models.cnn import CifarCnnConfig
from classifier.models.predictor import Predictor, load_predictor
from classifier.publish import export
from classifier.reporting import card
from classifier.training import calibrate

BESIDE = ("samples.png", "classes.png", "curves.png", "metrics.jsonl")  # of the model's own run


def main() -> None:
    """Loads, measures each, averages, saves."""
    parser = argparse.ArgumentParser(
        prog="python -m classifier.average", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of finetune_vit.py, the last stage")
    parser.add_argument("--stages", type=Path, nargs="+", required=True, help="folders of stages that it came from")
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the mean; not one of these")
    args = parser.parse_args()
    folders = [args.model, *args.stages]
    if args.output_dir.resolve() in [folder.resolve() for folder in folders]:
        raise ModelError(f"{args.output_dir} is one of the models: name another --output_dir")
    if (args.output_dir / "run.json").exists():
        raise ModelError(f"{args.output_dir} holds a finished run: name another --output_dir")
    own = read_json(args.model / "run.json")
    predictors = [load_predictor(folder) for folder in folders]
    if predictors[0].model.config.model_type == CifarCnnConfig.model_type:  # which sees several views, and is one stage
        raise ModelError(f"{args.model} is a CNN of train.py: name a model of finetune_vit.py")
    digests = [runs.sha256(folder / "model.safetensors") for folder in folders]
    known = {stage.get("model_sha256") for stage in card.stages_of(own)}
    for folder, digest in list(zip(folders, digests, strict=True))[1:]:
        if digest not in known:
            raise ModelError(f"{folder} is no stage that {args.model} came from: name one of {tell_chain(own)}")
    shapes = [{name: tensor.shape for name, tensor in each.model.state_dict().items()} for each in predictors]
    for folder, predictor, shape in zip(folders, predictors, shapes, strict=True):
        if predictor.labels != predictors[0].labels or shape != shapes[0]:
            raise ModelError(f"{folder} has other labels, or another resolution, than {args.model}: leave it out")

    settings = own["settings"]
    columns = {name: settings.get(name) for name in ("image_column", "label_column", "label_names", "max_eval_samples")}
    splits = load_splits(
        settings["dataset"],
        validation=settings["validation_fraction"],
        skip_unreadable=bool(settings.get("skip_unreadable")),
        **columns,
    )
    rows = []
    for folder, predictor, digest in zip(folders, predictors, digests, strict=True):
        rows.append({"model": folder.resolve().name, "model_sha256": digest} | reached(predictor, splits))
        print(f"{folder}: {tell(rows[-1])}", flush=True)

    # Greedy: the best alone, then each next one if it helps.
    order = sorted(range(len(rows)), key=lambda i: rows[i]["nll"])
    states = [{name: tensor.clone() for name, tensor in each.model.state_dict().items()} for each in predictors]
    taken, best = order[:1], rows[order[0]]["nll"]
    mean = predictors[0]
    for i in order[1:]:
        mean.model.load_state_dict(average([states[j] for j in (*taken, i)]))
        found = reached(mean, splits)
        if found["nll"] < best:
            taken, best = [*taken, i], found["nll"]
        print(f"{'with' if i in taken else 'not with'} {folders[i]}: {tell(found)}", flush=True)
    if len(taken) == 1:
        raise ModelError(f"no mean is better than {folders[taken[0]]} alone: nothing was written, use that one")
    mean.model.load_state_dict(average([states[i] for i in taken]))
    calibrated = calibrate.calibrate(mean.model, mean.processor, splits, args.output_dir.name)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    export.save(mean.model, mean.processor, args.output_dir)
    for name in BESIDE:
        if (args.model / name).exists():
            shutil.copyfile(args.model / name, args.output_dir / name)
    command = shlex.join(["-m", "classifier.average", *sys.argv[1:]])
    models = [row | {"taken": i in taken} for i, row in enumerate(rows)]
    averaged = {"command": command, "commit": runs.commit(), "models": models}
    write_json(args.output_dir / "run.json", own | {"averaged": averaged, "validation": vars(calibrated)})
    card.write(args.output_dir)
    print(f"{tell(vars(calibrated))}; saved in {args.output_dir}")


def average(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of models' parameters and buffers, by name; of integers, such as a norm's count of batches, the first
    one's.
    """
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if first.is_floating_point() else first
        for name, first in states[0].items()
    }


def reached(predictor: Predictor, splits: Splits) -> dict[str, float]:
    """Accuracy, and NLL (nats) at the best temperature, on validation."""
    _, logits, labels = calibrate.validate(predictor, splits)
    logits = logits / metrics.fit_temperature(logits, labels)
    return {"accuracy": float((logits.argmax(axis=1) == labels).mean()), "nll": metrics.nll(logits, labels)}


def tell(found: dict) -> str:
    """What was reached, in words."""
    return f"{found['accuracy']:.2%} of validation, negative log-likelihood {found['nll']:.4f}"


def tell_chain(own: dict) -> str:
    """The commands' output folders of the stages before, in words."""
    return ", ".join(stage["settings"]["output_dir"] for stage in card.stages_of(own)[:-1]) or "none: it has one stage"


def cli() -> None:
    """The command classifier-average: `main`, with an error of the user in one line."""
    run(main)


if __name__ == "__main__":
    cli()
