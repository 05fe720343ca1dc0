"""Measures models on a dataset's test split, which no training reads.

    python evaluate.py --model models/cnn models/vit --dataset uoft-cs/cifar10 --output_dir report
    python evaluate.py --model user/cifar10-vit@main --dataset path/to/images
    python evaluate.py --model runs/cnn --corrupted_samples 0 --bf16          # a quick look

Writes evaluation.json, timing.json and a report to --output_dir (report.md, report.pdf, slides.pptx, figures/), and
each model's own evaluation.json, timing.json and card beside its weights. If an embedded model was measured,
model_card.md, the card of the best one, is written again. All files are written at the end, in one step: a run that
fails or is stopped leaves the folders as they were. evaluation.json is the same on every run: random draws are seeded,
and timings are in timing.json. Predictions are cached, so a run that was stopped goes on.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from classifier import runs
from classifier.cli import add_hub_flags, positive_int
from classifier.data.splits import Splits, load_splits
from classifier.errors import DataError, ModelError, first_few, run
from classifier.evaluation import profiling
from classifier.evaluation.evaluate_model import compare_models, ensemble, evaluate_model, predictions_of
from classifier.evaluation.photographs import list_photographs
from classifier.files import check_writable, move_files, write_text
from classifier.hub import check_login
from classifier.models import explain
from classifier.models.predictor import Predictor, load_predictor
from classifier.publish.upload import push
from classifier.records import Evaluation, Machine, ModelEvaluation, ModelTiming, Timing
from classifier.reporting import card, figures, formatting
from classifier.reporting import report as pages
from classifier.runs import RunFolder
from classifier.training.runtime import keep_freed_memory

ROOT = Path(__file__).resolve().parent
EMBEDDED, MODEL_CARD = ROOT / "models", ROOT / "model_card.md"


def parse_args() -> argparse.Namespace:
    """The command's flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", default=["models/cnn"], help="folders, Hub ids or id@revision (%(default)s)")
    add(
        "--dataset",
        default="uoft-cs/cifar10",
        help="Hub id, id:configuration, id@revision, folder, or table of paths and labels (%(default)s)",
    )
    add("--output_dir", type=Path, default="report", help="folder for evaluation.json and the report (%(default)s)")
    add("--format", nargs="*", choices=pages.FORMATS, default=pages.FORMATS, help="of the report (all)")
    add("--max_eval_samples", type=positive_int, metavar="N", help="measure so many images only, drawn by class (all)")
    add(
        "--corrupted_samples",
        type=int,
        default=1000,
        metavar="N",
        help="images to corrupt, by class; 0: none (%(default)s)",
    )
    add(
        "--ood_samples",
        type=int,
        default=250,
        metavar="N",
        help="images of no label, of each set of them; 0: none (%(default)s)",
    )
    add("--ood_dataset", nargs="*", default=[], help="data sets of none of the labels, beside the sets that are made")
    add(
        "--photographs",
        nargs="*",
        type=Path,
        default=[],
        help="folders that each have folders of photographs named as labels, and one named none for other things",
    )
    add(
        "--bf16",
        action="store_true",
        help="compute in bfloat16, several times as fast where the processor has it; written to --output_dir alone",
    )
    add("--image_column", help="(the column whose type is Image)")
    add("--label_column", help="(the column whose type is ClassLabel)")
    add("--label_names", type=Path, metavar="JSON", help="a file of other names for labels, as in training")
    add("--skip_unreadable", action="store_true", help="leave out files that can't be read, and count them")
    add_hub_flags(parser)
    return parser.parse_args()


def main() -> None:
    """Load, measure, write the records, the cards and the report."""
    args = parse_args()
    check_push(args)
    check_writable(args.output_dir)
    keep_freed_memory()
    predictors = load_predictors(args.model, bf16=args.bf16)
    splits, ood_splits = load_data(args)
    for model, predictor in predictors.items():
        check_labels(model, predictor, splits)
        for folder in args.photographs:
            list_photographs(folder, predictor.labels)
        warn_of_another_cut(model, args.dataset, splits)

    models: list[ModelEvaluation] = []
    timings: list[ModelTiming] = []
    for model, predictor in predictors.items():
        measured = evaluate_model(
            predictor,
            splits,
            ood_samples=args.ood_samples,
            ood_splits=ood_splits,
            corrupted_samples=args.corrupted_samples,
            photographs=args.photographs,
        )
        low, high = measured.accuracy_ci95
        print(f"{model}: accuracy {measured.accuracy:.4f} ({low:.4f} to {high:.4f}), macro F1 {measured.f1:.4f}")
        for folder in measured.photographs:
            if folder.n_skipped:
                print(f"{folder.folder}: {formatting.plural(folder.n_skipped, 'unreadable photograph')} left out")
        models.append(measured)
        timings.append(profiling.measure(predictor))
    warn_of_absent_labels(models[0])

    tests = {predictor.name: predictions_of(predictor, "test", splits) for predictor in predictors.values()}
    evaluation = Evaluation(
        bf16=args.bf16 or None,
        dataset=splits.name,
        dataset_revision=splits.revision,
        split="test",
        n=len(tests[models[0].model].labels),
        models=models,
        comparisons=compare_models(tests),
        average=ensemble(tests),
    )
    timing = Timing(machine=Machine(**runs.machine()), models=timings)
    with TemporaryDirectory() as temporary:
        move_files(write_results(Path(temporary), args, predictors, splits, evaluation, timing))
    skipped = len(splits.test) - evaluation.n
    without = f", without {formatting.plural(skipped, 'unreadable file')}" if skipped else ""
    print(f"{evaluation.n:,} images{without}; written to {args.output_dir}")
    if args.push_to_hub:
        for model in args.model:
            print(push(Path(model), args.hub_model_id, private=args.hub_private_repo, revision=args.hub_revision))


def load_predictors(names: list[str], *, bf16: bool) -> dict[str, Predictor]:
    """The models by the names that the user gave; ModelError if two have the same name of their own."""
    predictors = {name: load_predictor(name) for name in names}
    for predictor in predictors.values():
        predictor.bf16 = bf16
    if len({predictor.name for predictor in predictors.values()}) < len(names):
        raise ModelError(f"two of {', '.join(names)} have the same name: rename a folder")
    return predictors


def load_data(args: argparse.Namespace) -> tuple[Splits, dict[str, Splits]]:
    """The data set's test split with some training images, and the test splits of the out-of-distribution sets."""
    splits = load_splits(
        args.dataset,
        splits=("train", "test"),
        image_column=args.image_column,
        label_column=args.label_column,
        label_names=args.label_names,
        max_train_samples=1000,
        max_eval_samples=args.max_eval_samples,
        skip_unreadable=args.skip_unreadable,
    )
    names = args.ood_dataset if args.ood_samples else []
    return splits, {name: load_splits(name, splits=("test",), max_eval_samples=args.ood_samples) for name in names}


def check_labels(model: str, predictor: Predictor, splits: Splits) -> None:
    """DataError unless the model knows the dataset's labels, in whatever order."""
    if set(predictor.labels) == set(splits.labels):
        return
    apart = [
        f"{who} {first_few(names)}"
        for who, names in (
            ("only the model has", sorted(set(predictor.labels) - set(splits.labels))),
            ("only the data has", sorted(set(splits.labels) - set(predictor.labels))),
        )
        if names
    ]
    raise DataError(
        f"{model} and {splits.name} have other labels ({'; '.join(apart)}): fine-tune it on this data, or rename"
    )


def warn_of_another_cut(model: str, dataset: str, splits: Splits) -> None:
    """Warns if a model was trained on another test cut of this dataset, so it may have seen some of its test images.

    That happens where the dataset has no test split and files were added or removed after the training.
    """
    stages = [stage for stage in RunFolder(model).stages if stage.dataset == dataset]
    if splits.test_cut and any(stage.data.test_cut != splits.test_cut for stage in stages):
        print(
            f"{model} was trained when other images were cut for test: it may have seen some of the test images. "
            "Train it again, or give the dataset a test split of its own"
        )


def warn_of_absent_labels(measured: ModelEvaluation) -> None:
    """Warns if labels have no test image."""
    if measured.absent:
        print(
            f"no test image is of {first_few(measured.absent)}: such a class has no precision, recall and F1, and the "
            "means are over the others"
        )


def write_results(
    temporary: Path,
    args: argparse.Namespace,
    predictors: dict[str, Predictor],
    splits: Splits,
    evaluation: Evaluation,
    timing: Timing,
) -> dict[Path, Path]:
    """Writes the records, the cards and the report into folders in `temporary`; {folder: where its files belong}."""
    report = temporary / "report"
    folders = {report: args.output_dir}
    RunFolder(report).write_evaluation(evaluation, timing)
    if not (args.max_eval_samples or args.bf16):  # a part of the images, or coarser numbers, are not the model's result
        results = {
            Path(name): (
                replace(evaluation, models=[measured], comparisons=None, average=None),
                replace(timing, models=[timed]),
            )
            for name, measured, timed in zip(args.model, evaluation.models, timing.models, strict=True)
            if Path(name).is_dir()
        }
        for i, (model, result) in enumerate(results.items()):
            folders[temporary / f"model_{i}"] = model
            write_model_records(temporary / f"model_{i}", model, *result)
        if any(model.resolve().parent == EMBEDDED for model in results):
            folders[temporary / "card"] = MODEL_CARD.parent
            write_model_card(temporary / "card", {model.resolve(): result for model, result in results.items()})
    if args.format:
        command = runs.command()
        pages.write(report, predictors, splits, heat_map=heatmap_of, command=command, formats=args.format)
    return folders


def write_model_records(temporary: Path, model: Path, evaluation: Evaluation, timing: Timing) -> None:
    """Writes the evaluation.json, timing.json, confusion matrix and card of the folder `model` into `temporary`."""
    RunFolder(temporary).write_evaluation(evaluation, timing)
    matrix, labels = np.array(evaluation.model.confusion_matrix), list(evaluation.model.per_class)
    figures.save_confusion(temporary / "confusion_matrix.png", matrix, labels)
    if RunFolder(model).is_finished or not (model / "README.md").exists():  # the card of a model from elsewhere stays
        text = card.render(model, evaluation=evaluation, timing=timing)
        write_text(temporary / "README.md", f"{text}\n")


def heatmap_of(predictor: Predictor, image: Image.Image) -> Image.Image | None:
    """An image as the model gets it, with a heat map over it; None for an architecture that can't be explained."""
    try:
        return explain.overlay(explain.preprocessed_image(predictor, image), explain.heatmap(predictor, image))
    except ModelError:
        return None


def write_model_card(temporary: Path, new: dict[Path, tuple[Evaluation, Timing]]) -> None:
    """Writes model_card.md, the card of the best embedded model, into `temporary`. `new` is {folder: its results}."""
    folders = [RunFolder(path.parent) for path in sorted(EMBEDDED.glob("*/config.json"))]
    results = {folder.path: (folder.evaluation, folder.timing) for folder in folders if folder.evaluation} | {
        folder.path: new[folder.path] for folder in folders if folder.path in new
    }
    best = max(results, key=lambda path: results[path][0].model.accuracy)
    evaluation, timing = results[best]
    text = card.render(best, figures=f"models/{best.name}/", evaluation=evaluation, timing=timing)
    write_text(temporary / MODEL_CARD.name, f"{text}\n")


def check_push(args: argparse.Namespace) -> None:
    """ModelError or HubError, before the work, for a --push_to_hub that could not be done after it."""
    if not args.push_to_hub:
        return
    if elsewhere := [model for model in args.model if not Path(model).is_dir()]:
        raise ModelError(
            f"--push_to_hub sends folders, and {elsewhere[0]} is none: fetch it, or leave out --push_to_hub"
        )
    if args.hub_model_id and len(args.model) > 1:
        raise ModelError(
            "--hub_model_id names one repository: give one --model, or leave it out (folders name repositories)"
        )
    if args.max_eval_samples or args.bf16:
        raise ModelError("--max_eval_samples and --bf16 do not give the model's result: leave them out to push it")
    check_login()


if __name__ == "__main__":
    run(main)
