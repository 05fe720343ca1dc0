"""Command line: averages the weights of a fine-tuned model with those of earlier stages, or of the pre-trained model.

    python -m classifier.average runs/vit3 --stages runs/vit2 runs/vit --output_dir runs/vit4
    python -m classifier.average runs/vit3 --pretrained_share 0.3 --output_dir runs/vit4

The mean of the weights of several stages is often better than each of them, at the same inference cost: a greedy
model soup (Wortsman et al., arXiv:2203.05482). It starts with the model that has the lowest negative log-likelihood on
validation; each next model is added if the mean has a lower one with it.

A share of the pre-trained weights brings back some of what the backbone forgot in fine-tuning (WiSE-FT; Wortsman et
al., arXiv:2109.01903). This helps with pictures that are unlike the training images, and usually costs some accuracy on
validation. The command prints that accuracy; you choose the share. The weights of the head do not change.

The dataset and the validation cut are those of the model's own run. The output is a folder like that of any run,
calibrated again; its run.json lists what each model reached.
"""

import argparse
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from classifier import errors, runs
from classifier.data.splits import Splits, load_splits
from classifier.errors import ModelError
from classifier.evaluation import metrics
from classifier.files import check_writable, move_files
from classifier.models import backbone, processor
from classifier.models.cnn import CifarCnnConfig
from classifier.models.predictor import Predictor, load_predictor
from classifier.publish import export
from classifier.records import Averaged, AveragedModel, RunRecord, Validation
from classifier.reporting import card
from classifier.runs import RunFolder
from classifier.training import calibrate
from classifier.training.photographs import Photographs

COPIED = ("samples.png", "classes.png", "curves.png", "metrics.jsonl")  # of the model's own run


def main() -> None:
    """Load, measure each model, average, calibrate, save."""
    args = parse_args()
    run = RunFolder(args.model).finished_run()
    folders = [args.model, *args.stages]
    predictors = [load_predictor(folder) for folder in folders]
    digests = [runs.sha256(folder / "model.safetensors") for folder in folders]
    check_averageable(folders, predictors, digests, run)
    splits, photographs = load_validation(run), load_photographs(predictors[0], run)

    models = []
    for folder, predictor, digest in zip(folders, predictors, digests, strict=True):
        reached = validate(predictor, splits)
        assert reached.nll is not None  # as validate() measures it
        print(f"{folder}: {describe(reached)}", flush=True)
        models.append(
            AveragedModel(
                model=folder.resolve().name,
                model_sha256=digest,
                accuracy=reached.accuracy,
                nll=reached.nll,
                taken=False,
            )
        )
    predictor = predictors[0]
    states = [{name: tensor.clone() for name, tensor in each.model.state_dict().items()} for each in predictors]
    taken = choose(predictor, states, [model.nll for model in models], folders, splits)
    if len(taken) == 1 and not args.pretrained_share:
        raise ModelError(f"no mean is better than {folders[taken[0]]} alone: nothing was written, use that one")
    state = average([states[i] for i in taken])
    pretrained = None
    if args.pretrained_share:
        pretrained, weights = load_pretrained(predictor, run)
        state = interpolate(state, weights, args.pretrained_share)
    predictor.model.load_state_dict(state)
    reached = calibrate.calibrate(predictor.model, predictor.processor, splits, args.output_dir.name, photographs)

    averaged = Averaged(
        command=shlex.join(["-m", "classifier.average", *sys.argv[1:]]),
        commit=runs.commit(),
        models=[replace(model, taken=i in taken) for i, model in enumerate(models)],
        before=run.averaged,
        pretrained=pretrained,
        pretrained_share=args.pretrained_share if pretrained else None,
    )
    with TemporaryDirectory() as temporary:  # the folder gets all files in one step, or none
        folder = Path(temporary, args.output_dir.resolve().name)
        folder.mkdir()
        export.save(predictor.model, predictor.processor, folder)
        for name in COPIED:
            if (args.model / name).exists():
                shutil.copyfile(args.model / name, folder / name)
        RunFolder(folder).write_run(replace(run, averaged=averaged, validation=reached))
        card.write(folder)
        move_files({folder: args.output_dir})
    share = f"with {args.pretrained_share:.0%} of {pretrained}: " if pretrained else ""
    print(f"{share}{describe(reached)}; saved in {args.output_dir}")


def parse_args() -> argparse.Namespace:
    """The command's flags; ModelError if the output folder is in use."""
    parser = argparse.ArgumentParser(
        prog="python -m classifier.average", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="folder of finetune_vit.py, the last stage")
    parser.add_argument("--stages", type=Path, nargs="+", default=[], help="folders of stages that it came from")
    parser.add_argument(
        "--pretrained_share",
        type=float,
        default=0.0,
        help="share of the pre-trained backbone's weights in the mean, in [0, 1); 0.3 is a good start (%(default)s)",
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="folder for the mean; not one of these")
    args = parser.parse_args()
    if not 0 <= args.pretrained_share < 1:
        raise ModelError(f"--pretrained_share {args.pretrained_share} is no share: pass one in [0, 1)")
    if not args.stages and not args.pretrained_share:
        raise ModelError("nothing to average: name --stages, or a --pretrained_share above 0")
    if args.output_dir.resolve() in [folder.resolve() for folder in (args.model, *args.stages)]:
        raise ModelError(f"{args.output_dir} is one of the models: name another --output_dir")
    if RunFolder(args.output_dir).is_finished:
        raise ModelError(f"{args.output_dir} holds a finished run: name another --output_dir")
    check_writable(args.output_dir)
    return args


def check_averageable(folders: list[Path], predictors: list[Predictor], digests: list[str], run: RunRecord) -> None:
    """ModelError unless the models, the last one first, are stages of one fine-tuning with the same labels and shapes.

    `digests` are those of their weights; `run` is the record of the last stage.
    """
    first = predictors[0]
    if first.model.config.model_type == CifarCnnConfig.model_type:  # averages several views, and has one stage
        raise ModelError(f"{folders[0]} is a CNN of train.py: name a model of finetune_vit.py")
    earlier = run.stages[:-1]
    chain = ", ".join(stage.settings["output_dir"] for stage in earlier) or "none: it has one stage"
    for folder, digest in list(zip(folders, digests, strict=True))[1:]:
        if digest not in {stage.model_sha256 for stage in earlier}:
            raise ModelError(f"{folder} is no stage that {folders[0]} came from: name one of {chain}")
    shapes = [{name: tensor.shape for name, tensor in each.model.state_dict().items()} for each in predictors]
    for folder, predictor, shape in zip(folders, predictors, shapes, strict=True):
        if predictor.labels != first.labels or shape != shapes[0]:
            raise ModelError(f"{folder} has other labels, or another resolution, than {folders[0]}: leave it out")


def load_validation(run: RunRecord) -> Splits:
    """The dataset of a run with the same validation cut."""
    names = ("image_column", "label_column", "label_names", "max_eval_samples")
    settings: dict[str, Any] = {name: run.settings.get(name) for name in names}
    return load_splits(
        run.dataset,
        validation=run.settings["validation_fraction"],
        skip_unreadable=bool(run.settings.get("skip_unreadable")),
        **settings,
    )


def load_photographs(predictor: Predictor, run: RunRecord) -> Photographs | None:
    """The photographs that a run was trained on, of which some were held out for `calibrate`; None without such."""
    folder = run.settings.get("photographs")
    if not folder:
        return None
    size, bicubic = processor.size_of(predictor.processor), processor.is_bicubic(predictor.processor)
    mirror, skip = bool(run.settings["mirror"]), bool(run.settings.get("skip_unreadable"))
    return Photographs(
        folder,
        predictor.labels,
        size,
        mirror=mirror,
        bicubic=bicubic,
        reduce_to=predictor.reduce_to,
        skip_unreadable=skip,
    )


def choose(
    predictor: Predictor, states: list[dict], losses: list[float], folders: list[Path], splits: Splits
) -> list[int]:
    """Indices of the models whose mean is best: the best one, then each next one if the mean is better with it.

    `losses` are the models' negative log-likelihoods on validation. The weights of `predictor` are overwritten.
    """
    order = sorted(range(len(states)), key=lambda i: losses[i])
    taken, best = order[:1], losses[order[0]]
    for i in order[1:]:
        predictor.model.load_state_dict(average([states[j] for j in (*taken, i)]))
        reached = validate(predictor, splits)
        assert reached.nll is not None  # as validate() measures it
        if reached.nll < best:
            taken, best = [*taken, i], reached.nll
        print(f"{'with' if i in taken else 'not with'} {folders[i]}: {describe(reached)}", flush=True)
    return taken


def average(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The mean of models' parameters and buffers, by name.

    Integers, such as a batch norm's count of batches, are the first model's.
    """
    return {
        name: torch.stack([state[name] for state in states]).mean(dim=0) if first.is_floating_point() else first
        for name, first in states[0].items()
    }


def load_pretrained(predictor: Predictor, run: RunRecord) -> tuple[str, dict[str, torch.Tensor]]:
    """The name and the weights, without those of the head, of the model that the first stage of a run started from.

    Position embeddings are resampled to the resolution of the fine-tuned model. Errors as `backbone.load`.
    """
    start = backbone.load(run.stages[0].settings["model"], predictor.labels)
    model = backbone.resize(start.model, processor.size_of(predictor.processor))
    head = backbone.head_name(model)
    return start.name, {name: each for name, each in model.state_dict().items() if not name.startswith(f"{head}.")}


def interpolate(
    state: dict[str, torch.Tensor], pretrained: dict[str, torch.Tensor], share: float
) -> dict[str, torch.Tensor]:
    """The weights of `state`, with `share` of the pre-trained ones where there are such; integers stay."""
    return {
        name: tensor.lerp(pretrained[name].to(tensor), share)
        if name in pretrained and tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }


def validate(predictor: Predictor, splits: Splits) -> Validation:
    """Accuracy and negative log-likelihood (nats) on validation, at the best temperature."""
    _, logits, labels = calibrate.validate(predictor, splits)
    temperature = metrics.fit_temperature(logits, labels)
    logits = logits / temperature
    accuracy = float((logits.argmax(axis=1) == labels).mean())
    return Validation(accuracy=accuracy, nll=metrics.nll(logits, labels), temperature=temperature)


def describe(reached: Validation) -> str:
    """What a model reaches on validation, in words."""
    return f"{reached.accuracy:.2%} of validation, negative log-likelihood {reached.nll:.4f}"


def cli() -> None:
    """The command classifier-average: `main`, with an error of the user in one line."""
    errors.run(main)


if __name__ == "__main__":
    cli()
