"""Checks a dataset for copies within and across its splits, suspected label errors and unreadable files.

    python -m classifier.clean pictures --output_dir clean                           # an image folder, by models/vit
    python -m classifier.clean uoft-cs/cifar10 --model models/cnn --output_dir clean

Writes clean.csv (one row per finding), clean.json (counts, and the rows that have a copy in an earlier split) and the
contact sheets duplicates.png and label_errors.png. The dataset is not changed.

exact       the same pixels once decoded, in any file format; each further copy is listed with the first one
near        the same picture processed differently: compression, a crop of up to a fifth, brightness, size
mirrored    a near copy of a picture's mirror image
label       another class is more probable than the label, by a classifier that was not trained on the image
unreadable  the file can't be decoded
"""

import argparse
import csv
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from classifier.data.duplicates import Pairs, first_copies, has_earlier_copy, near_duplicates, thumbnail
from classifier.data.loaders import DecodedSplit, decode_cell, decode_rows, fingerprint, image_batches
from classifier.data.splits import Splits, load_splits
from classifier.errors import DataError, first_few, run
from classifier.evaluation import predictions
from classifier.evaluation.label_errors import FOLDS, LabelErrors, find_label_errors
from classifier.files import check_writable, move_files, replacing, write_json
from classifier.images.folders import describe_left_out
from classifier.models.predictor import Predictor, load_predictor
from classifier.reporting import figures
from classifier.runs import RunFolder

SPLITS = ("train", "validation", "test")  # images of a later split should have no copy in an earlier one
KINDS = ("exact", "near", "mirrored", "label", "unreadable")
SHEETS = ("duplicates.png", "label_errors.png")
PAIRS_DRAWN, LABELS_DRAWN = 36, 48
BATCH = 64  # images in memory at full size
TILE = 160  # pixels of the longer side on a contact sheet, at most


@dataclass
class ImageTable:
    """N readable images, in the order of the splits and of their rows."""

    split: np.ndarray  # int64 (N,), index into SPLITS
    index: np.ndarray  # int64 (N,), row in the split
    labels: np.ndarray  # int64 (N,)
    files: list[str | None]
    digests: list[bytes]  # of the decoded pixels
    thumbnails: torch.Tensor  # uint8 (N, 3, SIDE, SIDE)

    def location(self, i: int) -> dict:
        """Split, row and file of image i, as columns of clean.csv."""
        return {"split": SPLITS[self.split[i]], "index": int(self.index[i]), "file": self.files[i]}


@dataclass
class Finding:
    """A row of clean.csv."""

    kind: str
    split: str
    index: int
    file: str | None
    other_split: str | None = None
    other_index: int | None = None
    other_file: str | None = None
    score: float | None = None  # correlation of a pair, or probability of `other_label` minus probability of `label`
    label: str = ""
    other_label: str | None = None  # of the other image of a pair, or the class that is more probable
    error: str | None = None


def main() -> None:
    """Finds copies, label errors and unreadable files, and writes them."""
    parser = argparse.ArgumentParser(
        prog="python -m classifier.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "dataset",
        help="Hub id, id:configuration, id@revision, folder, or table of paths and labels; all its splits are read",
    )
    add(
        "--model",
        default="models/vit",
        help="its features are used to find label errors: folder, Hub id, id@revision (%(default)s)",
    )
    add("--duplicates_only", action="store_true", help="don't look for label errors; no model is loaded")
    add("--output_dir", type=Path, default=Path("clean"), help="folder for the results (%(default)s)")
    add("--image_column", help="(the column whose type is Image)")
    add("--label_column", help="(the column whose type is ClassLabel)")
    args = parser.parse_args()

    check_writable(args.output_dir)
    predictor = None if args.duplicates_only else load_predictor(args.model)
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    splits = load_splits(args.dataset, splits=SPLITS, skip_unreadable=True, cut=False, **columns)
    for line in filter(None, (describe_left_out(splits.left_out), *splits.notes)):
        print(line)
    images, unreadable = read_images(splits)
    first_copy = first_copies(images.digests)
    pairs = near_duplicates(images.thumbnails, images.split, first_copy)
    findings = copy_findings(images, first_copy, pairs, splits.labels)
    label_errors = None
    if predictor:
        warn_if_trained_on(predictor, splits.name)
        errors = find_label_errors(compute_features(predictor, splits, images), images.labels)
        findings += label_findings(images, errors, splits.labels)
        label_errors = {"model": predictor.name, "revision": predictor.revision, "judged": errors.n_checked}
    findings += unreadable

    summary = summarize(findings, images, has_earlier_copy(images.split, first_copy, pairs), splits)
    summary["label_errors"] = label_errors
    with TemporaryDirectory() as temporary:  # the folder gets all files in one step, or none
        folder = Path(temporary)
        write_csv(folder / "clean.csv", findings)
        write_json(folder / "clean.json", summary)
        draw_sheets(folder, findings, splits)
        # A sheet that was not drawn belongs to an earlier run.
        move_files({folder: args.output_dir}, remove=[args.output_dir / n for n in SHEETS if not (folder / n).exists()])
    for line in describe(summary, findings):
        print(line)
    print(f"written to {args.output_dir}")


def read_images(splits: Splits) -> tuple[ImageTable, list[Finding]]:
    """Decodes every image once. Images that can't be decoded become findings.

    Raises:
        DataError: no image can be decoded.
    """
    split, index, labels, files, digests, thumbnails, unreadable = [], [], [], [], [], [], []
    present = [name for name in SPLITS if getattr(splits, name) is not None]
    with tqdm(total=sum(len(splits[name]) for name in present), unit=" images", desc="decoding") as bar:
        for name in present:
            for rows in decode_rows(name, splits, BATCH, decode_cell):
                for row in rows:
                    if isinstance(row.image, Exception):
                        reason = " ".join(str(row.image).split()) or type(row.image).__name__
                        label = splits.labels[row.label]
                        unreadable.append(Finding("unreadable", name, row.index, row.file, label=label, error=reason))
                        continue
                    split.append(SPLITS.index(name))
                    index.append(row.index)
                    labels.append(row.label)
                    files.append(row.file)
                    digests.append(hashlib.sha256(f"{row.image.size}".encode() + row.image.tobytes()).digest())
                    thumbnails.append(thumbnail(row.image))
                bar.update(len(rows))
    if not index:
        raise DataError(
            f"none of the {len(unreadable)} images of {splits.name} is readable: check the files. The first is "
            f"{unreadable[0].file}: {unreadable[0].error}"
        )
    columns = [np.array(column, np.int64) for column in (split, index, labels)]
    pixels = torch.from_numpy(np.stack(thumbnails))
    return ImageTable(columns[0], columns[1], columns[2], files, digests, pixels), unreadable


def compute_features(predictor: Predictor, splits: Splits, images: ImageTable) -> np.ndarray:
    """Input of the model's last linear layer for each image, float32 (N, D); cached on disk."""
    return np.concatenate(
        [
            predictions.compute(
                predictor,
                partial(image_batches, SPLITS[split], splits, BATCH),
                images=fingerprint(SPLITS[split], splits),
                n=len(splits[SPLITS[split]]),
                name=f"{splits.name} {SPLITS[split]}",
            ).features
            for split in np.unique(images.split)
        ]
    )


def warn_if_trained_on(predictor: Predictor, dataset: str) -> None:
    """Prints a warning if the model was trained on this dataset, whose labels it has then learnt, errors included."""
    stages = RunFolder(predictor.folder).stages if predictor.folder else []
    if dataset in {stage.dataset for stage in stages}:
        print(
            f"{predictor.name} was trained on {dataset}: it finds fewer label errors in train than a model that was not"
        )


def copy_findings(images: ImageTable, first_copy: np.ndarray, pairs: Pairs, names: list[str]) -> list[Finding]:
    """One finding per pair: exact copies first, then near and mirrored ones, each by descending score."""

    def finding(kind: str, first: int, second: int, score: float) -> Finding:
        return Finding(
            kind,
            **images.location(first),
            **{f"other_{key}": value for key, value in images.location(second).items()},
            score=score,
            label=names[images.labels[first]],
            other_label=names[images.labels[second]],
        )

    exact = [finding("exact", first, second, 1.0) for second, first in enumerate(first_copy) if first != second]
    rows = zip(pairs.mirrored, pairs.first, pairs.second, pairs.scores, strict=True)
    near = [finding("mirrored" if flipped else "near", a, b, round(float(score), 4)) for flipped, a, b, score in rows]
    return exact + sorted(near, key=lambda finding: finding.kind == "mirrored")


def label_findings(images: ImageTable, label_errors: LabelErrors, names: list[str]) -> list[Finding]:
    """One finding per suspected label, the largest margin first."""
    likelier, margins = label_errors.likelier, label_errors.margins
    suspected = np.flatnonzero(likelier >= 0)
    return [
        Finding(
            "label",
            **images.location(i),
            score=round(float(margins[i]), 4),
            label=names[images.labels[i]],
            other_label=names[likelier[i]],
        )
        for i in suspected[np.argsort(-margins[suspected], kind="stable")]
    ]


def summarize(findings: list[Finding], images: ImageTable, leaked: np.ndarray, splits: Splits) -> dict:
    """Content of clean.json: counts by kind and split, and the rows of each split that have a copy in an earlier one.

    `leaked` is bool (N,), from `has_earlier_copy`.
    """
    counts: dict[str, Counter] = {kind: Counter() for kind in KINDS}
    for finding in findings:
        others = () if finding.other_split in (None, finding.split) else (finding.other_split,)
        counts[finding.kind][" and ".join((finding.split, *others))] += 1
    differing = Counter(f.kind for f in findings if f.other_split and f.label != f.other_label)
    present = [(i, name) for i, name in enumerate(SPLITS) if getattr(splits, name) is not None]
    return {
        "dataset": splits.name,
        "dataset_revision": splits.revision,
        "readable": {name: int((images.split == i).sum()) for i, name in present},
        "found": {
            kind: {"n": count.total(), "by_split": dict(sorted(count.items()))} for kind, count in counts.items()
        },
        "with_another_label": {kind: differing[kind] for kind in ("exact", "near", "mirrored")},
        "copies_of_earlier_splits": {
            name: images.index[leaked & (images.split == i)].tolist() for i, name in present[1:]
        },
    }


def describe(summary: dict, findings: list[Finding]) -> Iterator[str]:
    """One line per kind of finding, and one per split that may have copies of an earlier one."""
    for kind, counts in summary["found"].items():
        n, parts = counts["n"], ", ".join(f"{n:,} in {split}" for split, n in counts["by_split"].items())
        by_split = f" ({parts})" if n else ""
        if kind == "label":
            yield describe_labels(summary["label_errors"], n, by_split)
        elif kind == "unreadable":
            unreadable = [finding for finding in findings if finding.kind == kind]
            files = [finding.file or f"row {finding.index} of {finding.split}" for finding in unreadable]
            yield f"unreadable: {n:,}{by_split}" + (f": {first_few(files)}" if n else "")
        else:
            differing = summary["with_another_label"][kind]
            two_labels = f", {differing:,} with two labels" if differing else ""
            yield f"{kind}: {n:,} pair{'s' * (n != 1)}{by_split}{two_labels}"
    for split, rows in summary["copies_of_earlier_splits"].items():
        yield f"{len(rows):,} of {summary['readable'][split]:,} images of {split} have a copy in an earlier split"


def describe_labels(label_errors: dict | None, n: int, by_split: str) -> str:
    """The line about label errors; `label_errors` as in clean.json."""
    if not label_errors:
        return "label: not looked for"
    if not label_errors["judged"]:
        return f"label: not judged, for no two classes have {FOLDS} pictures or more"
    return f"label: {n:,} suspected{by_split} of {label_errors['judged']:,}, by {label_errors['model']}"


def write_csv(path: Path, findings: list[Finding]) -> None:
    """Writes clean.csv atomically."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Finding)])
        writer.writeheader()
        writer.writerows(asdict(finding) for finding in findings)


def draw_sheets(folder: Path, findings: list[Finding], splits: Splits) -> None:
    """Writes the contact sheets `SHEETS`; one without content is left out."""
    pairs = sorted((finding for finding in findings if finding.other_split), key=lambda finding: -(finding.score or 0))
    drawn = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(len(pairs), PAIRS_DRAWN)).round().astype(int)]
    groups = []
    for f in drawn:
        first = tile(splits, f.split, f.index, f.file, f.label)
        second = tile(splits, f.other_split, f.other_index, f.other_file, f.other_label or "")
        groups.append((f"{f.kind} {f.score:.2f}", [first, second]))
    title = f"{len(drawn)} of {len(pairs):,} pairs, evenly from the most to the least alike"
    if groups:
        figures.save_pictures(folder / SHEETS[0], groups, 3, title)

    suspected = [finding for finding in findings if finding.kind == "label"]
    drawn = suspected[:LABELS_DRAWN]
    singles = [
        (f"{figures.shorten(f.other_label or '')}?", [tile(splits, f.split, f.index, f.file, f.label)]) for f in drawn
    ]
    title = f"the {len(drawn)} most suspected of {len(suspected):,} labels; above each, the likelier class"
    if singles:
        figures.save_pictures(folder / SHEETS[1], singles, 6, title)


def tile(splits: Splits, split: str, index: int, file: str | None, label: str) -> tuple[Image.Image, str]:
    """An image for a contact sheet, and its caption."""

    def shrink(image: Image.Image) -> Image.Image:
        image.thumbnail((TILE, TILE))
        return image

    image, _ = DecodedSplit(split, splits, shrink)[index]
    name = Path(file).name if file else f"row {index}"
    return image, f"{split} {name}\n{figures.shorten(label)}"


def cli() -> None:
    """The command classifier-clean: `main`, with an error of the user in one line."""
    run(main)


if __name__ == "__main__":
    cli()
