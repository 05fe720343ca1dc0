"""Finds what is wrong with a dataset: copies within and across its splits, suspected label errors, unreadable files.

    python -m classifier.clean pictures --output_dir clean                           # an image folder, by models/vit
    python -m classifier.clean uoft-cs/cifar10 --model models/cnn --output_dir clean

Writes clean.csv (a row a finding), clean.json (counts, and which rows have a copy in an earlier split) and contact
sheets to look through, duplicates.png and label_errors.png. The dataset stays as it is.

exact       the same pixels once decoded, in whatever file; of several, each is told with the first
near        the same picture after other processing: compression, a crop of up to a fifth, brightness, size
mirrored    the same of a picture's mirror image
label       another class is likelier than the label, by a model that was not trained on it
unreadable  what can't be decoded
"""

import argparse
import csv
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F
from torchvision.transforms.v2.functional import resize
from tqdm import tqdm

from classifier.data.loaders import DecodedSplit, fingerprint, image_batches
from classifier.data.splits import Splits, load_splits
from classifier.data.survey import scan_rows
from classifier.errors import DataError, run
from classifier.evaluation import predictions
from classifier.files import replacing, write_json
from classifier.models.predictor import Predictor, load_predictor
from classifier.reporting import card, figures

SPLITS = ("train", "validation", "test")  # in the order in which one is not to know the next
SIDE, COARSE_SIDE = 32, 8  # pixels a side at which pictures are compared, and neighbours looked for
NEIGHBOURS = 6  # of a picture in each split
# Correlations from which a pair goes on, and is told. Of the 487 test images of CIFAR-10 that have a copy in train from
# 0.8, about 20 are only alike, by eye; of the 115 more from 0.75, about 50.
COARSE_NEAR, POSITION_NEAR, NEAR = 0.7, 0.4, 0.8
SIZES = range(26, SIDE)  # pixels a side of one picture within the other
PADDED = 40  # pixels a side of the Fourier transforms: no position that overlaps enough reaches beyond
OVERLAP = 0.8  # of the smaller one's area, at least
NEIGHBOURHOOD = 11  # pixels a side, of local mean and contrast
NOISE = 5.0  # of 255, what local contrast has to exceed to count fully
FOLDS = 5  # of the cross-validation, and the fewest images of a class whose labels are judged
PAIRS_DRAWN, LABELS_DRAWN = 36, 48
BATCH = 64  # images in memory at their own size
TILE = 160  # pixels of the longer side, at most, on a contact sheet


@dataclass
class Pictures:
    """N readable pictures, in the order of the splits and of their rows."""

    split: np.ndarray  # int64 (N,), into SPLITS
    index: np.ndarray  # int64 (N,), the row in its split
    labels: np.ndarray  # int64 (N,)
    files: list[str | None]
    digests: list[bytes]  # of all pixels
    thumbnails: torch.Tensor  # uint8 (N, 3, SIDE, SIDE), squashed


@dataclass
class Pairs:
    """P pairs of pictures."""

    first: np.ndarray  # int64 (P,), into the N pictures
    second: np.ndarray  # int64 (P,), later ones
    mirrored: np.ndarray  # bool (P,)
    scores: np.ndarray  # float32 (P,), correlation


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
    score: float | None = None  # correlation of a pair in [NEAR, 1]; how much more probable the likelier class is
    label: str | None = None
    other_label: str | None = None  # of the other picture; the likelier class
    error: str | None = None


def main() -> None:
    """Reads, compares, judges, tells."""
    parser = argparse.ArgumentParser(
        prog="python -m classifier.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("dataset", help="Hub id, id@revision, folder, or table of paths and labels; all its splits are read")
    add(
        "--model",
        default="models/vit",
        help="whose features tell label errors: folder, Hub id, id@revision (%(default)s)",
    )
    add("--duplicates_only", action="store_true", help="look for no label errors, which alone need the model")
    add("--output_dir", type=Path, default=Path("clean"), help="folder for what is found (%(default)s)")
    add("--image_column", help="(the column whose type is Image)")
    add("--label_column", help="(the column whose type is ClassLabel)")
    args = parser.parse_args()

    predictor = None if args.duplicates_only else load_predictor(args.model)
    columns = {"image_column": args.image_column, "label_column": args.label_column}
    splits = load_splits(args.dataset, splits=SPLITS, skip_unreadable=True, cut=False, **columns)
    args.output_dir.mkdir(parents=True, exist_ok=True)  # what forbids it is told before the work
    pictures, unreadable = read(splits)
    copy_of = first_copies(pictures.digests)
    pairs = near_pairs(pictures, copy_of)
    findings = tell_copies(pictures, copy_of, pairs, splits.labels)
    judged = None
    if predictor:
        tell_training(predictor, splits.name)
        likelier, margins, judged = find_label_errors(features_of(predictor, splits, pictures), pictures.labels)
        findings += tell_labels(pictures, likelier, margins, splits.labels)
    findings += unreadable

    found = summarize(findings, pictures, leaks(pictures, copy_of, pairs), splits)
    found["label_errors"] = predictor and {"model": predictor.name, "revision": predictor.revision, "judged": judged}
    write_csv(args.output_dir / "clean.csv", findings)
    write_json(args.output_dir / "clean.json", found)
    draw_sheets(args.output_dir, findings, splits)
    for line in describe(found, findings):
        print(line)
    print(f"written to {args.output_dir}")


# --- Pictures -------------------------------------------------------------------------------------------------------


def read(splits: Splits) -> tuple[Pictures, list[Finding]]:
    """Decodes every image once; those that can't be are findings.

    Raises:
        DataError: none can.
    """
    split, index, labels, files, digests, thumbnails, unreadable = [], [], [], [], [], [], []
    present = [name for name in SPLITS if getattr(splits, name) is not None]
    with tqdm(total=sum(len(splits[name]) for name in present), unit=" images", desc="decoding") as bar:
        for name in present:
            for rows in scan_rows(name, splits, BATCH):
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
        raise DataError(f"none of the {len(unreadable)} images of {splits.name} is readable: check the files")
    numbers = (np.array(column, np.int64) for column in (split, index, labels))
    return Pictures(*numbers, files, digests, torch.from_numpy(np.stack(thumbnails))), unreadable


def thumbnail(image: Image.Image) -> np.ndarray:
    """An RGB image squashed to uint8 (3, SIDE, SIDE)."""
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=3.0)).transpose(2, 0, 1)


# --- Copies ---------------------------------------------------------------------------------------------------------


def first_copies(digests: Sequence[bytes]) -> np.ndarray:
    """The first picture with the same pixels, of each: int64 (N,)."""
    first: dict[bytes, int] = {}
    return np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], np.int64)


def near_pairs(pictures: Pictures, copy_of: np.ndarray) -> Pairs:
    """Pairs of pictures that differ in pixels, and yet are one picture; exact copies are left out, but for the first.

    Neighbours by the correlation of coarse pixels are candidates, and `similarity` decides. Barz and Denzler
    (arXiv:1902.00423) took neighbours by a CNN's features, and decided by eye; what this finds of theirs without a
    model, and beyond, benchmarks/duplicates.json has.
    """
    own = np.flatnonzero(copy_of == np.arange(len(copy_of)))
    thumbnails = pictures.thumbnails[own]
    bounds = np.searchsorted(pictures.split[own], range(len(SPLITS) + 1))
    first, second, mirrored = candidates(thumbnails, bounds)
    scores = np.empty(len(first), np.float32)
    with tqdm(total=len(first), unit=" pairs", desc="comparing") as bar:
        for i in range(0, len(first), 512):
            part = slice(i, i + 512)
            a, b = thumbnails[first[part]], thumbnails[second[part]]
            turned = torch.from_numpy(mirrored[part])
            b[turned] = b[turned].flip(3)
            scores[part] = similarity(a, b).numpy()
            bar.update(len(a))
    near = np.flatnonzero(scores >= NEAR)
    near = near[np.argsort(-scores[near], kind="stable")]
    return Pairs(own[first[near]], own[second[near]], mirrored[near], scores[near])


def candidates(thumbnails: torch.Tensor, bounds: Sequence[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each picture's nearest neighbours in each split, or those of its mirror image: (first, second, whether mirrored).

    Args:
        thumbnails: uint8 (N, 3, SIDE, SIDE).
        bounds: where the splits begin in these, and N.
    """
    plain, turned = coarse(thumbnails), coarse(thumbnails.flip(3))  # (N, D)
    n = len(plain)
    block = max(1, (1 << 25) // n)  # so that no product has more than 2^25 numbers
    found = []
    with tqdm(total=n, unit=" images", desc="neighbours") as bar:
        for start in range(0, n, block):
            queries = torch.arange(start, min(start + block, n))
            for low, high in pairwise(bounds):
                correlations = plain[queries] @ plain[low:high].T  # (block, M)
                torch.maximum(correlations, plain[queries] @ turned[low:high].T, out=correlations)
                inside = (queries >= low) & (queries < high)
                correlations[inside, queries[inside] - low] = -1.0  # nobody is a copy of themselves
                values, others = correlations.topk(min(NEIGHBOURS, high - low), dim=1)
                rows, columns = (values >= COARSE_NEAR).nonzero(as_tuple=True)
                found.append(torch.stack([queries[rows], others[rows, columns] + low]))
            bar.update(len(queries))
    pairs = torch.cat(found, dim=1).sort(dim=0).values.unique(dim=1)  # (2, P), each once
    first, second = pairs
    is_mirrored = torch.cat(
        [
            (plain[a] * turned[b]).sum(dim=1) > (plain[a] * plain[b]).sum(dim=1)
            for a, b in zip(first.split(8192), second.split(8192), strict=True)
        ]
    )
    return first.numpy(), second.numpy(), is_mirrored.numpy()


def coarse(thumbnails: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, SIDE, SIDE) -> (N, 3 · COARSE_SIDE²), whose products are correlations; 0 of a picture of one
    colour.
    """
    parts = [F.avg_pool2d(part.float(), SIDE // COARSE_SIDE).flatten(1) for part in thumbnails.split(8192)]
    pooled = torch.cat(parts)
    pooled -= pooled.mean(dim=1, keepdim=True)
    return pooled / pooled.norm(dim=1, keepdim=True).clamp_min(1.0)


def similarity(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Correlation (P,) of pictures uint8 (P, 3, SIDE, SIDE) with others, at the best position and size of one in the
    other.

    Of pixels without their local mean and contrast: sky and grass are alike in many pictures, edges and textures are
    not. Sizes are tried where position alone promises something.
    """
    a, b = (without_local_contrast(each.float()) for each in (a, b))
    own = spectra(a), spectra(b)
    scores = at_best_position(*own, SIDE)
    [promising] = (scores >= POSITION_NEAR).nonzero(as_tuple=True)
    if not len(promising):  # of which there is no Fourier transform
        return scores
    a_spectra, b_spectra = (tuple(each[promising] for each in spectrum) for spectrum in own)
    for size in SIZES:
        for whole, part in ((a_spectra, b), (b_spectra, a)):
            shrunk = resize(part[promising], [size, size], antialias=True)
            scores[promising] = torch.maximum(scores[promising], at_best_position(whole, spectra(shrunk), size))
    return scores


def without_local_contrast(x: torch.Tensor) -> torch.Tensor:
    """(P, 3, SIDE, SIDE) in 0 ... 255, less the mean of its neighbourhood, by the deviation there."""
    place = torch.arange(SIDE)
    near = ((place[:, None] - place).abs() <= NEIGHBOURHOOD // 2).float()
    mean = near / near.sum(dim=1, keepdim=True)  # of a row's or column's neighbourhood; (SIDE, SIDE)
    difference = x - mean @ x @ mean.T
    energy = (difference**2).mean(dim=1, keepdim=True)
    return difference / ((mean @ energy @ mean.T).sqrt() + NOISE)


def transform(x: torch.Tensor) -> torch.Tensor:
    """(…, h, w) -> its Fourier transform, padded."""
    return torch.fft.rfft2(x, s=(PADDED, PADDED))


def spectra(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(P, 3, h, w) -> transforms of it and of its energy, (P, 3, …) and (P, …)."""
    return transform(x), transform((x**2).sum(dim=1))


def at_best_position(
    a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor], size: int
) -> torch.Tensor:
    """Highest correlation (P,) over all positions of pictures of `size` pixels in others of SIDE, where they overlap.

    As Padfield's masked normalised cross-correlation (doi:10.1109/TIP.2011.2181402), for pictures whose mean is 0
    already.

    Args:
        a: `spectra` of pictures of SIDE pixels.
        b: of pictures of `size` pixels.
        size: pixels a side.
    """

    def correlate(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.fft.irfft2(x * y.conj(), s=(PADDED, PADDED))  # at each position of y in x

    whole, part = transform(torch.ones(SIDE, SIDE)), transform(torch.ones(size, size))
    products = torch.fft.irfft2((a[0] * b[0].conj()).sum(dim=1), s=(PADDED, PADDED))
    energies = correlate(a[1], part) * correlate(whole, b[1])
    correlations = products / energies.clamp_min(1.0).sqrt()
    return correlations.masked_fill(correlate(whole, part) < OVERLAP * size**2, -1.0).amax(dim=(1, 2)).clamp(-1.0, 1.0)


def leaks(pictures: Pictures, copy_of: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Whether a picture, exact or not, has a copy in an earlier split: bool (N,)."""
    n = len(copy_of)
    earliest = np.full(n, len(SPLITS))  # split of a picture's exact copies, told at the first of these
    np.minimum.at(earliest, copy_of, pictures.split)
    reached = earliest.copy()
    np.minimum.at(reached, pairs.first, earliest[pairs.second])
    np.minimum.at(reached, pairs.second, earliest[pairs.first])
    return reached[copy_of] < pictures.split


# --- Labels ---------------------------------------------------------------------------------------------------------


def features_of(predictor: Predictor, splits: Splits, pictures: Pictures) -> np.ndarray:
    """What the model's last linear layer gets of each picture, float32 (N, D); from the cache, if it was there
    before.
    """
    return np.concatenate(
        [
            predictions.compute(
                predictor,
                partial(image_batches, SPLITS[split], splits, BATCH),
                images=fingerprint(SPLITS[split], splits),
                folder=predictions.CACHE,
                n=len(splits[SPLITS[split]]),
                name=f"{splits.name} {SPLITS[split]}",
            ).features
            for split in np.unique(pictures.split)
        ]
    )


def find_label_errors(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """The likelier class of each picture whose label is suspected, and by how much; and how many could be judged.

    Args:
        features: (N, D).
        labels: int (N,). A class of fewer than FOLDS pictures is left out.

    Returns:
        classes int64 (N,), -1 where the label is not suspected; differences of probability (N,); a count of pictures.
    """
    likelier, margins = np.full(len(labels), -1), np.zeros(len(labels))
    rows = np.flatnonzero(np.bincount(labels)[labels] >= FOLDS)
    classes, y = np.unique(labels[rows], return_inverse=True)
    if len(classes) < 2:
        return likelier, margins, 0
    probabilities = out_of_sample(features[rows], y)
    found = confident_learning(probabilities, y)
    suspected = np.flatnonzero(found >= 0)
    likelier[rows[suspected]] = classes[found[suspected]]
    margins[rows[suspected]] = probabilities[suspected, found[suspected]] - probabilities[suspected, y[suspected]]
    return likelier, margins, len(rows)


def out_of_sample(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities (N, C) of each picture, by a linear head that was fitted on the other folds: cross-validation."""
    probabilities = np.empty((len(labels), labels.max() + 1))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    for train, held_out in tqdm(folds.split(features, labels), total=FOLDS, unit=" folds", desc="heads"):
        head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        probabilities[held_out] = head.fit(features[train], labels[train]).predict_proba(features[held_out])
    return probabilities


def confident_learning(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The class that each picture is counted for, where it is not the label: int64 (N,), -1 elsewhere.

    Off the diagonal of the confident joint of Northcutt et al. (arXiv:1911.00068, section 3.1): a picture counts for
    the likeliest of the classes whose probability reaches the mean that it has among the pictures of that label. As in
    cleanlab, whose licence (AGPL-3.0) is why its code is not used here, a label that the model itself would give is let
    be.

    Args:
        probabilities: out of sample, (N, C).
        labels: int (N,); every class has some.
    """
    thresholds = np.array(
        [probabilities[labels == each, each].mean() for each in range(probabilities.shape[1])]
    )  # (C,)
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    counted = confident.argmax(axis=1)
    suspected = (confident.max(axis=1) >= 0) & (counted != labels) & (probabilities.argmax(axis=1) != labels)
    return np.where(suspected, counted, -1)


def tell_training(predictor: Predictor, dataset: str) -> None:
    """Says so where the model has learnt this very dataset's labels: it is no judge of those."""
    path = predictor.folder and predictor.folder / "run.json"
    if path and path.exists():
        stages = card.stages_of(json.loads(path.read_text()))
        if dataset in {stage["settings"]["dataset"] for stage in stages}:
            print(
                f"{predictor.name} was trained on {dataset}: of train, it finds fewer label errors than a model that "
                "was not"
            )


# --- What is told ---------------------------------------------------------------------------------------------------


def tell_copies(pictures: Pictures, copy_of: np.ndarray, pairs: Pairs, names: list[str]) -> list[Finding]:
    """A finding a pair, the exact ones first, then by score."""

    def tell(kind: str, first: int, second: int, score: float) -> Finding:
        return Finding(
            kind,
            **place(pictures, first),
            **{f"other_{key}": value for key, value in place(pictures, second).items()},
            score=score,
            label=names[pictures.labels[first]],
            other_label=names[pictures.labels[second]],
        )

    exact = [tell("exact", first, second, 1.0) for second, first in enumerate(copy_of) if first != second]
    rows = zip(pairs.mirrored, pairs.first, pairs.second, pairs.scores, strict=True)
    near = [tell("mirrored" if turned else "near", a, b, round(float(score), 4)) for turned, a, b, score in rows]
    return exact + sorted(near, key=lambda finding: finding.kind == "mirrored")


def tell_labels(pictures: Pictures, likelier: np.ndarray, margins: np.ndarray, names: list[str]) -> list[Finding]:
    """A finding a suspected label, the most suspicious first."""
    suspected = np.flatnonzero(likelier >= 0)
    return [
        Finding(
            "label",
            **place(pictures, i),
            score=round(float(margins[i]), 4),
            label=names[pictures.labels[i]],
            other_label=names[likelier[i]],
        )
        for i in suspected[np.argsort(-margins[suspected], kind="stable")]
    ]


def place(pictures: Pictures, i: int) -> dict:
    """Where a picture is: its split, row and file."""
    return {"split": SPLITS[pictures.split[i]], "index": int(pictures.index[i]), "file": pictures.files[i]}


def summarize(findings: list[Finding], pictures: Pictures, leaked: np.ndarray, splits: Splits) -> dict:
    """What clean.json says: counts by kind and splits, and the rows to leave out for a split that train does not
    know.
    """
    counts: dict[str, Counter] = {kind: Counter() for kind in ("exact", "near", "mirrored", "label", "unreadable")}
    for finding in findings:
        others = () if finding.other_split in (None, finding.split) else (finding.other_split,)
        counts[finding.kind][" and ".join((finding.split, *others))] += 1
    differing = Counter(f.kind for f in findings if f.other_split and f.label != f.other_label)
    present = [(i, name) for i, name in enumerate(SPLITS) if getattr(splits, name) is not None]
    return {
        "dataset": splits.name,
        "dataset_revision": splits.revision,
        "readable": {name: int((pictures.split == i).sum()) for i, name in present},
        "found": {
            kind: {"n": count.total(), "by_split": dict(sorted(count.items()))} for kind, count in counts.items()
        },
        "with_another_label": {kind: differing[kind] for kind in ("exact", "near", "mirrored")},
        "copies_of_earlier_splits": {
            name: pictures.index[leaked & (pictures.split == i)].tolist() for i, name in present[1:]
        },
    }


def describe(found: dict, findings: list[Finding]) -> Iterator[str]:
    """A line a kind, and one a split that has copies of an earlier one."""
    for kind, counts in found["found"].items():
        n, parts = counts["n"], ", ".join(f"{n:,} in {split}" for split, n in counts["by_split"].items())
        where = f" ({parts})" if n else ""
        if kind == "label":
            judge = found["label_errors"]
            if not judge:
                yield "label: not looked for"
            elif not judge["judged"]:
                yield f"label: not judged, for no two classes have {FOLDS} pictures or more"
            else:
                yield f"label: {n:,} suspected{where} of {judge['judged']:,}, by {judge['model']}"
        elif kind == "unreadable":
            files = [
                finding.file or f"row {finding.index} of {finding.split}"
                for finding in findings
                if finding.kind == kind
            ]
            some = f": {', '.join(files[:5])}{' …' if n > 5 else ''}" if n else ""
            yield f"unreadable: {n:,}{where}{some}"
        else:
            differing = found["with_another_label"][kind]
            yield f"{kind}: {n:,} pair{'s' * (n != 1)}{where}{f', {differing:,} with two labels' if differing else ''}"
    for split, rows in found["copies_of_earlier_splits"].items():
        yield f"{len(rows):,} of {found['readable'][split]:,} images of {split} have a copy in an earlier split"


def write_csv(path: Path, findings: list[Finding]) -> None:
    """Writes clean.csv, whole or not at all."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Finding)])
        writer.writeheader()
        writer.writerows(asdict(finding) for finding in findings)


def draw_sheets(folder: Path, findings: list[Finding], splits: Splits) -> None:
    """Writes the contact sheets; one of an earlier run for which there is nothing now is removed."""
    pairs = sorted((finding for finding in findings if finding.other_split), key=lambda finding: -finding.score)
    drawn = [pairs[i] for i in np.linspace(0, len(pairs) - 1, min(len(pairs), PAIRS_DRAWN)).round().astype(int)]
    groups = [
        (
            f"{f.kind} {f.score:.2f}",
            [
                tile(splits, f.split, f.index, f.file, f.label),
                tile(splits, f.other_split, f.other_index, f.other_file, f.other_label),
            ],
        )
        for f in drawn
    ]
    labels = [finding for finding in findings if finding.kind == "label"][:LABELS_DRAWN]
    singles = [
        (f"{figures.shorten(f.other_label)}?", [tile(splits, f.split, f.index, f.file, f.label)]) for f in labels
    ]
    total = sum(finding.kind == "label" for finding in findings)
    for name, found, columns, title in (
        ("duplicates", groups, 3, f"{len(drawn)} of {len(pairs):,} pairs, evenly from the most to the least alike"),
        (
            "label_errors",
            singles,
            6,
            f"the {len(labels)} most suspected of {total:,} labels; above each, the likelier class",
        ),
    ):
        path = folder / f"{name}.png"
        if found:
            figures.save_pictures(path, found, columns, title)
        else:
            path.unlink(missing_ok=True)


def tile(splits: Splits, split: str, index: int, file: str | None, label: str) -> tuple[Image.Image, str]:
    """A picture as a contact sheet has it, and what is written below."""

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
