"""Splits from any image-classification dataset, small ones as one tensor, large ones as a stream.

    splits = load("uoft-cs/cifar10")  # a Hub id, id@revision, a folder of parquet or images, or a table of paths and
    labels print(survey(splits, Path("unreadable.txt")))  # 50,000 images, 10 classes, smallest 4,500 (airplane); median
    32×32 images, labels = as_tensor("train", splits)  # uint8 (45000, 3, 32, 32), int64 (45000,) loader =
    stream("train", splits, transform, batch_size=64, num_workers=2, shuffle=True)

There are always three splits, unless `cut` is off. A dataset without a validation split has one cut from train, by
class and by seed. One without a test split has that cut too, always the same, so that no run trains on what another is
tested on: files by their names, so that they stay in test, or out of it, when others come or go.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import datasets
import httpx2  # what huggingface_hub talks through: its errors are what an unreachable Hub raises
import huggingface_hub
import numpy as np
import pillow_heif
import pyarrow.parquet
import torch
from datasets.utils.file_utils import cached_path
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image
from tqdm import tqdm

from classifier.errors import DataError
from classifier.files import write_text
from classifier.images.convert import MALFORMED, to_rgb

pillow_heif.register_heif_opener()

# Of a dataset without a test split; fixed, so that every run is tested on the same images.
TEST_FRACTION, TEST_SEED = 0.1, 0

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
IMAGE_SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2"),
    *(".heic", ".heif", ".avif"),
}
HUB_ID = r"[\w.-]+/[\w.-]+"
TABLE_SUFFIXES = {".parquet", ".arrow"}
TABLES = {
    ".csv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
}  # single files, and what `datasets` calls them
LABEL_COLUMNS = ("label", "labels", "class", "category", "target")  # of tables, which don't say what a column holds
OTHER_SUFFIXES = {".csv", ".json", ".jsonl", ".zip", ".tar"}  # `datasets` may find images in these

# What `datasets` and the Hub's client raise for a dataset that can't be had. Most are OSError or ValueError.
UNLOADABLE = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, httpx2.HTTPError)


@dataclass(frozen=True)
class Splits:
    """A dataset's splits, None where not asked for or not there, and what is needed to read them.

    `skipped` grows while images are decoded: the files that were unreadable, where `skip_unreadable` lets that pass.
    """

    train: datasets.Dataset | None
    validation: datasets.Dataset | None
    test: datasets.Dataset | None
    image_column: str
    label_column: str
    labels: list[str]  # the dataset's own names in its own order
    name: str  # Hub id, or the folder's name without what leads to it
    revision: str | None  # the Hub's commit
    test_cut: str | None = None  # a digest of which images that is, where test was cut from train
    skip_unreadable: bool = False
    skipped: list[str] = field(default_factory=list)

    def __getitem__(self, split: str) -> datasets.Dataset:
        """The split of that name, which must have been asked for.

        Raises:
            KeyError: the split was not asked for.
        """
        found = {"train": self.train, "validation": self.validation, "test": self.test}[split]
        if found is None:
            raise KeyError(f"load(…, splits=…) was not asked for {split!r}")
        return found


class Images(NamedTuple):
    """The images of one split, in its order, without their labels.

    Attributes:
        rows: each cell of `column` is {"bytes", "path"}, undecoded, or None.
        column: of the images.
        split: the dataset's own name of it.
        name: Hub id, or the folder's name without what leads to it.
        revision: the Hub's commit; of a folder, a digest of its files' names, sizes and dates.
    """

    rows: datasets.Dataset
    column: str
    split: str
    name: str
    revision: str


def load(
    dataset: str,
    *,
    splits: Sequence[str] = ("train", "validation"),
    validation: float = 0.1,
    seed: int = 0,
    image_column: str | None = None,
    label_column: str | None = None,
    label_names: str | Path | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    skip_unreadable: bool = False,
    cut: bool = True,
) -> Splits:
    """Loads a dataset and cuts it into train, validation and test. No image is decoded here.

    Args:
        dataset: a Hub id (`user/name`), `id@revision`, a folder that `datasets` can load (parquet), or an image folder
            (`train/<label>/…` with `validation` or `val` or `dev` and `test` beside it, or `<label>/…`), or a file
            (CSV, JSON, parquet) with a row an image: a path, relative to the file's folder, a label, and perhaps a
            `split`.
        splits: which of train, validation, test to return. Training never asks for test.
        validation: fraction of train that becomes validation, where the dataset has none of its own, in (0, 0.5].
        seed: of the validation cut and of the samples. The test cut doesn't depend on it.
        image_column: the column of images; found by type (Image) if None.
        label_column: the column of labels; found by type (ClassLabel) if None. Strings and integers become classes.
        label_names: a JSON file, `{"a label of the dataset": "what to call it", …}`; labels that it leaves out keep
        their name.
        max_train_samples: at most so many images of train, drawn by class.
        max_eval_samples: at most so many images of validation, and of test, drawn by class.
        skip_unreadable: whether decoding goes on past unreadable files (counted in `Splits.skipped`) or raises.
        cut: whether a split that the dataset has not is cut from train. Otherwise it stays None, and rows are the
            dataset's.

    Raises:
        DataError: the dataset, a folder, a file or a column can't be used. The message says which, and what to do.
    """
    if not 0 < validation <= 0.5:
        raise DataError(f"a validation fraction of {validation:g} is out of range: pass one above 0 and up to 0.5")
    for flag, value in (("max_train_samples", max_train_samples), ("max_eval_samples", max_eval_samples)):
        if value is not None and value < 1:
            raise DataError(f"--{flag} {value} leaves no images: pass 1 or more")

    if Path(dataset).is_file():
        loaded, name, image_column, label_column = _load_table(Path(dataset), image_column, label_column)
        revision = None
    else:
        loaded, name, revision = _load_any(dataset)
    own = _by_our_names(name, loaded, is_trained_on=cut and "validation" in splits)
    is_test_alone = own["train"] is own.get("test")
    image_column = _find_column(name, own["train"], image_column, datasets.Image, "image")
    label_column = _find_column(name, own["train"], label_column, datasets.ClassLabel, "label")
    own = _with_images(name, own, image_column)
    own, labels = _with_classes(name, own, label_column)
    labels = _renamed(name, labels, Path(label_names)) if label_names else labels

    test_cut = None
    if cut and "test" not in own:
        rows, y = own["train"], _labels(name, "train", own["train"], label_column)
        files = _file_names(rows, image_column, Path(dataset))
        chosen = by_name(files, y) if files else stratified(y, max(1, round(TEST_FRACTION * len(y))), TEST_SEED)
        own["train"], own["test"] = _cut(name, rows, y, chosen, labels)
        names = [files[i] for i in chosen] if files else [f"{i} of {len(y)}" for i in chosen]
        test_cut = hashlib.sha256("\n".join(sorted(names)).encode(errors="surrogateescape")).hexdigest()[:32]
    if is_test_alone:
        del own["train"]
    elif cut and "validation" not in own:
        rows, y = own["train"], _labels(name, "train", own["train"], label_column)
        chosen = stratified(y, max(1, round(validation * len(y))), seed)
        own["train"], own["validation"] = _cut(name, rows, y, chosen, labels)
    wanted = {split: own[split] for split in splits if split in own}
    for split, rows in wanted.items():
        limit = max_train_samples if split == "train" else max_eval_samples
        y = _labels(name, split, rows, label_column)
        if limit is not None and limit < len(rows):
            wanted[split] = rows.select(stratified(y, limit, seed))
    return Splits(
        **{split: wanted.get(split) for split in ("train", "validation", "test")},
        image_column=image_column,
        label_column=label_column,
        labels=labels,
        name=name,
        revision=revision,
        test_cut=test_cut,
        skip_unreadable=skip_unreadable,
    )


def load_images(dataset: str, *, split: str | None = None, image_column: str | None = None) -> Images:
    """Loads one split's images, for those who label them: it needs neither labels nor a train split. Nothing is
    decoded.

    Args:
        dataset: as in `load`, but for files.
        split: test if None, or the only one that there is.
        image_column: as in `load`.

    Raises:
        DataError: the dataset, the split or the column can't be used. The message says which, and what to do.
    """
    if Path(dataset).is_file():
        raise DataError(f"{dataset} is a file: pass the folder that holds it")
    loaded, name, revision = _load_any(dataset)
    wanted = split or ("test" if len(loaded) > 1 else next(iter(loaded)))
    found = [own for own in loaded if own == wanted] or [
        own for own in loaded if SPLIT_NAMES.get(own.lower()) == wanted
    ]
    if not found:
        raise DataError(f"{name} has no {wanted} split, only {', '.join(loaded)}: pass one of them as --split")
    [own, *_] = found
    column = _find_column(name, loaded[own], image_column, datasets.Image, "image")
    rows = _with_images(name, {own: loaded[own]}, column)[own]
    rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    if not len(rows):
        raise DataError(f"the {own} split of {name} is empty: pass another --split")
    return Images(rows, column, own, name, revision or _digest_of_files(Path(dataset)))


def _digest_of_files(folder: Path) -> str:
    """What tells a folder's content from an earlier one's, unread: 32 hex digits over names, sizes and dates."""
    hashed = hashlib.sha256()
    for path in sorted(_files(folder)):
        status = (folder / path).stat()
        hashed.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return hashed.hexdigest()[:32]


# --- Where datasets come from: each gives ({the dataset's own name of a split: Dataset}, name, revision) -------------


def _load_any(dataset: str) -> tuple[dict[str, datasets.Dataset], str, str | None]:
    return _load_folder(Path(dataset)) if Path(dataset).exists() else _load_hub(dataset)


def _by_our_names(name: str, loaded: dict[str, datasets.Dataset], is_trained_on: bool) -> dict[str, datasets.Dataset]:
    """The splits that we know, by our names, train among them: the only one there is, whatever it is called.

    A single one that is called test is test too, for those who do not train on it.
    """
    own = {SPLIT_NAMES[split.lower()]: rows for split, rows in loaded.items() if split.lower() in SPLIT_NAMES}
    if "train" not in own and len(loaded) == 1:
        if "test" in own and is_trained_on:
            raise DataError(
                f"{name} has a test split alone, which is not to be trained on: rename it to train if it is"
            )
        own = {split: rows for split, rows in own.items() if split == "test"} | {"train": next(iter(loaded.values()))}
    if "train" not in own:
        raise DataError(f"{name} has no train split, only {', '.join(loaded)}: rename the one to train on to train")
    return own


def _load_hub(dataset: str) -> tuple[dict[str, datasets.Dataset], str, str | None]:
    name, _, revision = dataset.partition("@")
    if not re.fullmatch(HUB_ID, name):
        raise DataError(f"no folder {dataset!r}, nor is that a Hub id: pass a folder, user/name or user/name@revision")
    gated = DataError(
        f"{name} is gated: accept its terms at {huggingface_hub.constants.ENDPOINT}/datasets/{name}, then log in with "
        "`hf auth login`"
    )
    try:
        # One request before all others: it tells what is wrong, and at once, where load_dataset would retry for 23 s.
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision or None, timeout=30)
        commit, is_gated = info.sha, bool(info.gated)
    except OfflineModeIsEnabled:
        commit, is_gated = revision or None, False  # `datasets` then takes what an earlier run left in its cache
    except GatedRepoError:
        raise gated from None
    except RevisionNotFoundError:
        raise DataError(f"{name} has no revision {revision!r}: pass a branch, tag or commit that it has") from None
    except (RepositoryNotFoundError, HFValidationError):
        raise DataError(
            f"no folder {name!r} here and no such dataset on the Hub: check the spelling, or, if it is private, log in "
            "with `hf auth login`"
        ) from None
    except (httpx2.HTTPError, OSError) as error:
        raise DataError(
            f"the Hub can't be reached for {name} ({huggingface_hub.constants.ENDPOINT}: {_line(error)}): check the "
            "network, set HF_HUB_OFFLINE=1 if it was downloaded before, or pass a local folder"
        ) from None
    try:
        loaded, found = _load_datasets(name, name, commit)
    except DataError:
        if is_gated:  # the Hub describes a gated dataset to all, and then keeps the files
            raise gated from None
        raise
    if revision and commit == revision and found != commit:
        raise DataError(
            f"offline, the cache holds {name} at commit {found}, not {revision}: pass {name}@{found}, or go online"
        )
    return loaded, name, found


def _load_datasets(path: str, name: str, revision: str | None) -> tuple[dict[str, datasets.Dataset], str]:
    """What `datasets.load_dataset` loads, and the builder's hash (the Hub's commit)."""
    try:
        builder = datasets.load_dataset_builder(path, revision=revision)
        builder.download_and_prepare()
        if builder.name == "parquet":
            _check_class_names(name, builder.config.data_files)
        loaded = builder.as_dataset()
    except UNLOADABLE as error:
        reason = _line(error.__cause__ or error)
        raise DataError(
            f"{name} can't be loaded: {reason}. Pass an image folder (train/<label>/…) or what `load_dataset` loads"
        ) from error
    return loaded, builder.hash


def _check_class_names(name: str, files: dict[str, Sequence[str]]) -> None:
    """Holds each split's class names against train's: `datasets` applies the first file's to all, whatever they say."""
    features = {
        split: datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(cached_path(paths[0])))
        for split, paths in files.items()
    }
    for column, feature in features.get("train", {}).items():
        for split in features:
            other = features[split].get(column)
            if isinstance(feature, datasets.ClassLabel) and isinstance(other, datasets.ClassLabel):
                _check_same_classes(name, split, feature.names, other.names)
                if feature.names != other.names:
                    raise DataError(
                        f"the classes of {name} are in another order in {split} than in train (column {column!r}): "
                        "give all splits the same ClassLabel names"
                    )


def _load_folder(folder: Path) -> tuple[dict[str, datasets.Dataset], str, None]:
    files = list(_files(folder))
    pictures = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    tables = [
        path
        for path in files
        if path.suffix.lower() in TABLE_SUFFIXES or path.name in ("metadata.csv", "metadata.jsonl")
    ]
    # A relative user/name says more than name alone: it may be a copy of the Hub's repository of that name.
    name = str(folder) if re.fullmatch(HUB_ID, str(folder)) and ".." not in folder.parts else folder.resolve().name
    if tables or (not pictures and any(path.suffix.lower() in OTHER_SUFFIXES for path in files)):
        return _load_datasets(str(folder), name, None)[0], name, None
    if not pictures:
        raise DataError(f"no images in {folder}: put them into {folder}/train/<label>/ or {folder}/<label>/")
    return _load_image_folder(folder, pictures), name, None


def _files(folder: Path) -> Iterator[Path]:
    """The files under a folder, as paths relative to it, without hidden ones and what operating systems leave about."""
    above = {str(folder): {folder.resolve()}}  # a link may lead back to a folder that it is in
    for parent, names, files in os.walk(folder, followlinks=True):
        passed, names[:] = above.pop(parent), sorted(name for name in names if not _is_litter(name))
        for name in list(names):
            path = Path(parent, name)
            if (place := path.resolve()) in passed:
                names.remove(name)
            else:
                above[str(path)] = {*passed, place}
        yield from (Path(parent, name).relative_to(folder) for name in files if not _is_litter(name))


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name in ("__MACOSX", "Thumbs.db", "desktop.ini")


def _load_table(
    file: Path, image_column: str | None, label_column: str | None
) -> tuple[dict[str, datasets.Dataset], str, str, str]:
    """A file with a row an image: its splits, its name, and which columns hold images and labels."""
    if file.suffix.lower() not in TABLES:
        raise DataError(f"{file} is no table ({', '.join(TABLES)}): pass one, or the folder that holds the images")
    try:
        rows = datasets.load_dataset(TABLES[file.suffix.lower()], data_files=str(file), split="train")
    except UNLOADABLE as error:
        raise DataError(f"{file} can't be read as a table: {_line(error.__cause__ or error)}. Repair it") from error
    listed = f"its columns are {', '.join(rows.column_names)}"

    def is_path(column: str) -> bool:
        first = next((value for value in rows[column][:100] if value), None)
        return isinstance(first, str) and Path(first).suffix.lower() in IMAGE_SUFFIXES

    held = [column for column, feature in rows.features.items() if isinstance(feature, datasets.Image)]
    found = [image_column] if image_column else held or [column for column in rows.column_names if is_path(column)]
    if len(found) != 1 or found[0] not in rows.column_names:
        raise DataError(f"{file} has no single column of image files ({listed}): pass --image_column")
    [image_column] = found
    others = [column for column in rows.column_names if column not in (image_column, "split")]
    found = [label_column] if label_column else [column for column in LABEL_COLUMNS if column in others][:1] or others
    if len(found) != 1 or found[0] not in others:
        raise DataError(f"{file} has no single column of labels ({listed}): pass --label_column")
    if _kind(rows.features[image_column]) in ("string", "large_string"):
        paths = [value and str(file.parent / value) for value in rows[image_column]]
        rows = (
            rows.remove_columns(image_column)
            .add_column(image_column, paths)
            .cast_column(image_column, datasets.Image())
        )
    if "split" not in rows.column_names:
        return {"train": rows}, file.name, image_column, found[0]
    values = [str(value).lower() for value in rows["split"]]
    if unknown := sorted(set(values) - set(SPLIT_NAMES)):
        raise DataError(f"{file} has rows whose split is {unknown[0]!r}: name it train, validation or test")
    of = np.array([SPLIT_NAMES[value] for value in values])
    if "train" not in of:
        raise DataError(f"{file} has no rows whose split is train: add some, or remove the column")
    return (
        {split: rows.select(np.flatnonzero(of == split)) for split in np.unique(of)},
        file.name,
        image_column,
        found[0],
    )


def _load_image_folder(folder: Path, pictures: list[Path]) -> dict[str, datasets.Dataset]:
    """`imagefolder`'s layouts, listed by ourselves: it skips HEIC, and guesses where a folder isn't as it should be."""
    tops = {path.parts[0] for path in pictures if len(path.parts) > 1}
    split_folders = {top for top in tops if top.lower() in SPLIT_NAMES}
    has_train = any(SPLIT_NAMES[top.lower()] == "train" for top in split_folders)
    if not has_train and (not split_folders or split_folders != tops):  # a class may be called test, or dev
        by_class = {"train": _by_class(folder, pictures)}
    else:
        if not has_train:
            raise DataError(
                f"{folder} has {', '.join(sorted(split_folders))} but no images in {folder}/train: add some"
            )
        stray = sorted(path for path in pictures if path.parts[0] not in split_folders)
        if stray:
            raise DataError(
                f"{folder} has a train folder, but {len(stray)} images outside of its split folders, such as "
                f"{stray[0]}: move them into train/<label>/, or remove them"
            )
        by_class = {}
        for top in sorted(split_folders):
            split = SPLIT_NAMES[top.lower()]
            if split in by_class:
                raise DataError(f"{folder} has two folders for the {split} split, {top} being one: merge or remove one")
            inside = [path.relative_to(top) for path in pictures if path.parts[0] == top]
            by_class[split] = _by_class(folder / top, inside)

    for path in pictures:
        try:
            str(path).encode()
        except UnicodeEncodeError:  # as old archives leave them
            raise DataError(
                f"the name of {str(path)!a} in {folder} is not UTF-8, and tables can't hold it: rename it"
            ) from None
    labels = sorted(by_class["train"])
    for split, classes in by_class.items():
        _check_same_classes(str(folder), split, labels, list(classes))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=labels)})
    return {
        split: datasets.Dataset.from_dict(
            {
                "image": [str(path) for label in labels for path in classes[label]],
                "label": [index for index, label in enumerate(labels) for _ in classes[label]],
            },
            features=features,
        )
        for split, classes in by_class.items()
    }


def _by_class(folder: Path, pictures: list[Path]) -> dict[str, list[Path]]:
    """{class folder: its images, sorted}, of images that must all lie in `<label>/`."""
    loose = sorted(path for path in pictures if len(path.parts) == 1)
    deep = sorted(path for path in pictures if len(path.parts) > 2)
    placed = len(pictures) - len(loose) - len(deep)
    if loose and not placed and not deep:
        raise DataError(
            f"{folder} holds {len(loose)} images but no class folders: move each into {folder}/<label>/, such as "
            f"{folder / 'cat' / loose[0]}"
        )
    if deep and not placed and not loose:
        raise DataError(
            f"the images in {folder} lie too deep, such as {deep[0]}: pass the folder whose subfolders are the classes"
        )
    if loose or deep:
        raise DataError(
            f"{folder} mixes depths: {placed} images lie in <label>/, but {len(loose)} lie loose and {len(deep)} "
            f"deeper, such as {(loose + deep)[0]}: move every image into {folder}/<label>/"
        )
    classes: dict[str, list[Path]] = {}
    for path in sorted(pictures):
        classes.setdefault(path.parts[0], []).append(folder / path)
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not _is_litter(path.name) and path.name not in classes:
            raise DataError(f"no images in the class folder {path}: add some, or remove the folder")
    return classes


# --- Columns and classes ---------------------------------------------------------------------------------------------


def _find_column(name: str, rows: datasets.Dataset, column: str | None, kind: type, what: str) -> str:
    """The column named, or the one of that feature type."""
    listed = "its columns are " + ", ".join(f"{column} ({_kind(each)})" for column, each in rows.features.items())
    if column is not None:
        if column not in rows.features:
            raise DataError(f"{name} has no column {column!r}: {listed}; pass one of them as --{what}_column")
        return column
    found = [column for column, feature in rows.features.items() if isinstance(feature, kind)]
    if len(found) != 1:
        count = "no" if not found else f"{len(found)}"
        raise DataError(f"{name} has {count} columns of type {kind.__name__}: {listed}; pass --{what}_column")
    return found[0]


def _kind(feature: object) -> str:
    return feature.dtype if isinstance(feature, datasets.Value) else type(feature).__name__


def _with_images(name: str, own: dict[str, datasets.Dataset], column: str) -> dict[str, datasets.Dataset]:
    """Sees to it that the column holds images in every split; encoded bytes become images."""
    for split, rows in own.items():
        feature = rows.features.get(column)
        is_encoded = feature == datasets.Value("binary") or (
            isinstance(feature, dict) and set(feature) == {"bytes", "path"}
        )
        if not is_encoded and not isinstance(feature, datasets.Image):
            held = "is missing" if feature is None else f"holds {_kind(feature)}, not images,"
            raise DataError(f"column {column!r} of {name} {held} in {split}: pass the images' column as --image_column")
    return {split: rows.cast_column(column, datasets.Image()) for split, rows in own.items()}


def _with_classes(
    name: str, own: dict[str, datasets.Dataset], column: str
) -> tuple[dict[str, datasets.Dataset], list[str]]:
    """Sees to it that the column holds class indices in every split; strings and integers become classes, sorted."""
    feature = own["train"].features[column]
    is_plain = isinstance(feature, datasets.Value) and (
        feature.dtype in ("string", "large_string") or "int" in feature.dtype
    )
    if not is_plain and not isinstance(feature, datasets.ClassLabel):
        raise DataError(
            f"column {column!r} of {name} holds {_kind(feature)}, not classes: pass one of classes, strings or "
            "integers as --label_column"
        )
    for split, rows in own.items():
        if rows.features.get(column) != feature:
            raise DataError(
                f"column {column!r} of {name} is {_kind(rows.features.get(column))} in {split} and {_kind(feature)} in "
                "train: give every split the same columns"
            )
    if is_plain:
        values = {split: rows[column][:] for split, rows in own.items()}
        for split, listed in values.items():
            if None in listed:
                raise DataError(f"{name} has rows without a label in {split} (column {column!r}): remove them")
        classes = sorted(set(values["train"]))
        labels = [str(value) for value in classes]
        index_of = {value: index for index, value in enumerate(classes)}
        feature = datasets.ClassLabel(names=labels)
        for split, listed in values.items():
            _check_same_classes(name, split, labels, [str(value) for value in set(listed)])
            indices = [index_of[value] for value in listed]
            own[split] = own[split].remove_columns(column).add_column(column, indices, feature=feature)
    present = np.unique(_labels(name, "train", own["train"], column))
    if len(present) < 2:
        only = f"one class ({feature.names[present[0]]})" if len(present) else "no images"
        raise DataError(f"{name} has {only} in train: at least two classes are needed, each with images of its own")
    return own, list(feature.names)


def _renamed(name: str, labels: list[str], file: Path) -> list[str]:
    """The labels by the names that a JSON file has for them."""
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--label_names {file} can't be read ({_line(error)}): pass a JSON file") from error
    if not isinstance(names, dict) or not all(isinstance(value, str) and value for value in names.values()):
        raise DataError(f'--label_names {file} is no object of names: write {{"{labels[0]}": "what to call it", …}}')
    if unknown := sorted(set(names) - set(labels)):
        raise DataError(
            f"--label_names {file} names {unknown[0]!r}, which is no label of {name}: it has {', '.join(labels[:9])}"
        )
    renamed = [names.get(label, label) for label in labels]
    if twice := [label for label in renamed if renamed.count(label) > 1]:
        raise DataError(f"--label_names {file} gives two labels the name {twice[0]!r}: give each its own")
    return renamed


def _check_same_classes(name: str, split: str, train: list[str], other: list[str]) -> None:
    for here, there, missing in (
        ("train", split, sorted(set(train) - set(other))),
        (split, "train", sorted(set(other) - set(train))),
    ):
        if missing:
            some = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
            raise DataError(
                f"the classes of {name} differ between splits: {some} in {here} but not in {there}; name the classes "
                "alike, and give each images in both"
            )


def _labels(name: str, split: str, rows: datasets.Dataset, column: str) -> np.ndarray:
    """The class index of each row, int64 (N,)."""
    values = rows[column][:]
    bad = sum(value is None or value < 0 for value in values)  # the Hub's test splits sometimes hide theirs as -1
    if bad:
        raise DataError(f"{name} has {bad} rows without a label in {split} (column {column!r}): remove them")
    return np.array(values, dtype=np.int64)


# --- Cuts ------------------------------------------------------------------------------------------------------------


def stratified(labels: np.ndarray, n: int, seed: int) -> np.ndarray:
    """Draws n of N indices so that each class keeps its share, to within one image; the same ones for the same seed.

    Each class gives the whole part of its share; the images still missing come one each from the classes with the
    largest remainders (ties: the lower class). A class of one image gives none if others can.

    Args:
        labels: class indices, int (N,).
        n: how many to draw, at most N.
        seed: of the draw.

    Returns:
        Sorted indices, int64 (n,).
    """
    classes, counts = np.unique(labels, return_counts=True)
    quotas, remainders = np.divmod(counts * n, len(labels))  # in whole numbers: no rounding to differ between machines
    remainders[counts == 1] = -1
    quotas[np.argsort(-remainders, kind="stable")[: n - quotas.sum()]] += 1
    generator = np.random.default_rng(seed)
    drawn = [
        generator.permutation(np.flatnonzero(labels == each))[:quota]
        for each, quota in zip(classes, quotas, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def by_name(files: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """Draws about TEST_FRACTION of N files by digests of their names: whether one is drawn depends on no other.

    That holds but for few: a class keeps one, and gives one if it has five or more; and of all together one is drawn,
    if a class has two.

    Args:
        files: names, which tell one from another.
        labels: class indices, int (N,).

    Returns:
        Sorted indices, int64.
    """
    digests = [hashlib.sha256(f"{TEST_SEED} {file}".encode(errors="surrogateescape")).digest()[:8] for file in files]
    place = np.array([int.from_bytes(digest) / 2**64 for digest in digests])  # in [0, 1)
    drawn = place < TEST_FRACTION
    kept = []
    for each, n in zip(*np.unique(labels, return_counts=True), strict=True):
        members = np.flatnonzero(labels == each)
        order = members[np.argsort(place[members], kind="stable")]
        drawn[order[0]] |= n * TEST_FRACTION >= 0.5
        kept.append(order[-1])
    drawn[kept] = False
    others = np.setdiff1d(np.arange(len(labels)), kept)
    if not drawn.any() and len(others):
        drawn[others[np.argmin(place[others])]] = True
    return np.flatnonzero(drawn)


def _file_names(rows: datasets.Dataset, column: str, dataset: Path) -> list[str] | None:
    """Names of a split's images within the dataset's folder; None where they are not files of one."""
    if not dataset.exists():
        return None
    folder, names = dataset.parent if dataset.is_file() else dataset, []
    for index, row in enumerate(rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))):
        cell = row[column]
        if cell and cell["bytes"] is not None:
            return None
        path = Path(cell["path"]) if cell and cell["path"] else Path(f"nothing in row {index}")
        names.append((path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix())
    return names


def _cut(
    name: str, rows: datasets.Dataset, y: np.ndarray, cut: np.ndarray, labels: list[str]
) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Splits rows of labels y into (the rest, those that are cut)."""
    rest = np.setdiff1d(np.arange(len(y)), cut)
    lost = np.setdiff1d(y, y[rest])
    if len(lost):
        raise DataError(f"too few images of class {labels[lost[0]]!r} in {name} to cut splits from: add more")
    return rows.select(rest), rows.select(cut)


# --- What there is ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Survey:
    """What a dataset holds, by its labels and its files' headers.

    Attributes:
        counts: images of each class, in train.
        n: images in train and validation.
        size: median width and height, pixels, as stored.
        has_one_size: whether all have that size.
        unreadable: how many can't be opened.
    """

    counts: dict[str, int]
    n: int
    size: tuple[int, int]
    has_one_size: bool
    unreadable: int

    def __str__(self) -> str:
        """In a line, of which the classes are of train."""
        smallest, largest = (pick(self.counts, key=self.counts.get) for pick in (min, max))
        told = f"{self.n:,} images, {len(self.counts)} classes, smallest {self.counts[smallest]:,} ({smallest})"
        told += (
            f", largest {self.counts[largest]:,} ({largest})" if self.counts[largest] > self.counts[smallest] else ""
        )
        told += f"; median {self.size[0]}×{self.size[1]}"
        return told + (f"; {self.unreadable} unreadable" if self.unreadable else "")

    def is_small(self, most: int = 128) -> bool:
        """Whether the images are for `as_tensor` as they are: all of one size, of at most `most` pixels a side."""
        return self.has_one_size and max(self.size) <= most


def survey(splits: Splits, listing: Path) -> Survey:
    """Opens every image of train and validation, without decoding it; what is broken further in shows when it is
    decoded.

    Unreadable ones are listed in the file `listing`, a line each.

    Raises:
        DataError: an image is unreadable and may not be skipped, or all are.
    """
    sizes, unreadable = [], {}
    total = sum(len(splits[split]) for split in ("train", "validation"))
    with tqdm(total=total, desc="looking at images", unit=" images", disable=None, leave=False) as bar:
        for split in ("train", "validation"):
            index = 0
            for rows in _undecoded(splits[split], splits).iter(1000):
                for cell in rows[splits.image_column]:
                    try:
                        with Image.open(_source(cell)) as image:
                            sizes.append(image.size)
                    except MALFORMED as error:
                        unreadable[_where(cell, index, split)] = _line(error)
                    index += 1
                    bar.update()
    listing.unlink(missing_ok=True)  # an earlier run's
    if unreadable:
        write_text(listing, "".join(f"{where}: {reason}\n" for where, reason in unreadable.items()))
        if not sizes:
            raise DataError(f"none of the {total} images of {splits.name} is readable, see {listing}: check the files")
        if not splits.skip_unreadable:
            raise DataError(
                f"{len(unreadable)} of {total:,} images of {splits.name} are not readable, listed in {listing}: "
                "repair or "
                "remove them, or pass --skip_unreadable to go on without"
            )
    counts = np.bincount(_labels(splits.name, "train", splits.train, splits.label_column), minlength=len(splits.labels))
    width, height = np.median(np.array(sizes), axis=0).astype(int).tolist()
    by_label = dict(zip(splits.labels, counts.tolist(), strict=True))
    return Survey(by_label, total, (width, height), len(set(sizes)) == 1, len(unreadable))


# --- Pixels ----------------------------------------------------------------------------------------------------------


def as_tensor(split: str, splits: Splits, size: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Decodes a split of small images into memory, once: upright, RGB.

    Args:
        split: train, validation or test.
        splits: what `load` returned. Unreadable files are added to its `skipped`, if it may skip them.
        size: pixels a side to squash every image to (bilinear, antialiased). None: images have one size and keep it.

    Returns:
        images uint8 (N, 3, H, W) and labels int64 (N,), in the split's order, without the images that were skipped.

    Raises:
        DataError: an unreadable file, or images that differ in size while `size` is None.
    """
    total = len(splits[split])
    images = labels = None
    n = 0
    with tqdm(total=total, desc=f"decoding {split}", unit=" images", disable=None) as bar:
        for batch in _batches(split, splits, 100, size):  # few enough for photographs to fit in memory
            for where, image, label in batch:
                pixels = np.asarray(image).transpose(2, 0, 1)  # (3, H, W)
                if images is None:
                    images = np.empty((total, *pixels.shape), np.uint8)
                    labels = np.empty(total, np.int64)
                elif pixels.shape != images.shape[1:]:
                    raise DataError(
                        f"images of {splits.name} differ in size: {where} is {_size(pixels)}, the first is "
                        f"{_size(images[0])}; pass --image_size to bring all to one"
                    )
                images[n], labels[n] = pixels, label
                n += 1
            bar.update(len(batch))
    if n == 0:
        raise DataError(f"none of the {total} images in {split} of {splits.name} is readable: check the files")
    return torch.from_numpy(images[:n]), torch.from_numpy(labels[:n])


def fingerprint(split: str, splits: Splits) -> str:
    """What tells one split's images and labels from another's, without decoding: files by their name, size and date."""
    rows = _undecoded(splits[split], splits)
    hashed = hashlib.sha256(repr(splits.labels).encode())
    for row in rows:
        cell = row[splits.image_column]
        if cell is not None and cell["bytes"] is not None:
            what = hashlib.sha256(cell["bytes"]).hexdigest()
        else:
            path = cell and cell["path"] and Path(cell["path"])
            status = path.stat() if path and path.is_file() else None  # who decodes it tells what is missing
            what = status and f"{path} {status.st_size} {status.st_mtime_ns}"
        hashed.update(f"{what} {row[splits.label_column]}\n".encode())
    return hashed.hexdigest()


def batches(split: str, splits: Splits, batch_size: int) -> Iterator[tuple[list[Image.Image], list[int]]]:
    """Upright RGB images at their own sizes, and their labels, in the split's order.

    Args:
        split: train, validation or test.
        splits: what `load` returned. Unreadable files are added to its `skipped`, if it may skip them, and make their
            batch smaller.
        batch_size: images a batch, which are in memory together.

    Raises:
        DataError: an unreadable file.
    """
    for batch in _batches(split, splits, batch_size):
        if batch:
            yield [image for _, image, _ in batch], [label for _, _, label in batch]


def _batches(
    split: str, splits: Splits, batch_size: int, size: int | None = None
) -> Iterator[list[tuple[str, Image.Image, int]]]:
    """Batches of (where it is from, image, label), without unreadable ones."""
    for attempts in _attempts(split, splits, batch_size, size):
        batch = []
        for index, cell, image, label in attempts:
            where = _where(cell, index, split)
            if isinstance(image, Exception):
                unreadable(splits, where, image)
            else:
                batch.append((where, image, label))
        yield batch


def _attempts(
    split: str, splits: Splits, batch_size: int, size: int | None = None
) -> Iterator[list[tuple[int, dict | None, Image.Image | Exception, int]]]:
    """Batches of (row, cell, image or the exception that it caused, label)."""
    start = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for rows in _undecoded(splits[split], splits).iter(batch_size):
            cells = rows[splits.image_column]
            images = pool.map(_decode, cells, [size] * len(cells))
            yield list(zip(range(start, start + len(cells)), cells, images, rows[splits.label_column], strict=True))
            start += len(cells)


class Row(NamedTuple):
    """A row of a split, decoded.

    Attributes:
        index: of the row.
        file: the image's path, or the name that the table has for it; None where it has none.
        image: upright RGB, or the exception that says why it can't be decoded.
        label: class index.
    """

    index: int
    file: str | None
    image: Image.Image | Exception
    label: int


def scan(split: str, splits: Splits, batch_size: int) -> Iterator[list[Row]]:
    """Every row of a split, `batch_size` at a time; an unreadable image is neither skipped nor raises."""
    for attempts in _attempts(split, splits, batch_size):
        yield [Row(index, cell and cell["path"], image, label) for index, cell, image, label in attempts]


class Stream:
    """Batches of a split, decoded by workers: iterates over (images, labels (N,)). Made by `stream`."""

    def __init__(self, loader: torch.utils.data.DataLoader, splits: Splits):
        self.loader = loader
        self.splits = splits

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels, failures in self.loader:
            for where, error in failures:  # raised here, as a worker's exception arrives with its traceback as message
                unreadable(self.splits, where, error)
            if len(labels):
                yield images, labels


def stream(
    split: str,
    splits: Splits,
    transform: Callable[[Image.Image], torch.Tensor],
    batch_size: int,
    num_workers: int = 0,
    *,
    shuffle: bool = False,
    seed: int = 0,
) -> Stream:
    """Batches of images that are too large, or too many, to be held in memory.

    Args:
        split: train, validation or test.
        splits: what `load` returned. Unreadable files are added to its `skipped`, if it may skip them, and make their
            batch smaller.
        transform: takes an upright RGB Pillow image, gives a tensor (3, H, W).
        batch_size: images a batch.
        num_workers: processes that decode and transform; 0 does so in this one.
        shuffle: whether every pass has an order of its own.
        seed: of the orders, and of the workers' random numbers.

    Raises:
        DataError: while iterating, an unreadable file.
    """
    loader = torch.utils.data.DataLoader(
        Decoded(split, splits, transform),
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        collate_fn=collate,
        generator=torch.Generator().manual_seed(seed),
    )
    return Stream(loader, splits)


class Decoded(torch.utils.data.Dataset):
    """A split as items (transform(image), label), or (name, exception) for an unreadable file: see `collate`."""

    def __init__(self, split: str, splits: Splits, transform: Callable[[Image.Image], torch.Tensor]):
        self.rows = _undecoded(splits[split], splits)
        self.columns = splits.image_column, splits.label_column
        self.split, self.splits = split, splits
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int] | tuple[str, Exception]:
        row = self.rows[index]
        cell, label = (row[column] for column in self.columns)
        image = _decode(cell)
        if isinstance(image, Exception):
            return _where(cell, index, self.split), image
        return self.transform(image), label


def collate(items: list[tuple]) -> tuple[torch.Tensor, torch.Tensor, list[tuple[str, Exception]]]:
    """Items of `Decoded` -> images, labels and the failures among them, which are for `unreadable`."""
    failures = [item for item in items if isinstance(item[1], Exception)]
    good = [item for item in items if not isinstance(item[1], Exception)]
    images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
    return images, torch.tensor([label for _, label in good], dtype=torch.int64), failures


def _undecoded(rows: datasets.Dataset, splits: Splits) -> datasets.Dataset:
    """The two columns, with images as {"bytes", "path"}: decoding them ourselves takes half of the time."""
    columns = [splits.image_column, splits.label_column]
    return rows.select_columns(columns).cast_column(splits.image_column, datasets.Image(decode=False))


def _decode(cell: dict | None, size: int | None = None) -> Image.Image | Exception:
    """An upright RGB image, or the exception that its file caused; squashed to size × size pixels if that is given."""
    try:
        with Image.open(_source(cell)) as image:
            image = to_rgb(image)
    except MALFORMED as error:
        return error
    if size is None or image.size == (size, size):
        return image
    return to_pil_image(resize(pil_to_tensor(image), [size, size], antialias=True))  # as the saved processors do it


def _source(cell: dict | None) -> str | io.BytesIO:
    """What Pillow opens. ValueError where a row has no image."""
    if cell is None or (cell["bytes"] is None and not cell["path"]):
        raise ValueError("there is no image")
    return cell["path"] if cell["bytes"] is None else io.BytesIO(cell["bytes"])


def unreadable(splits: Splits, where: str, error: Exception) -> None:
    """Notes an unreadable file in `splits.skipped`, or raises DataError if it may not be skipped."""
    if not splits.skip_unreadable:
        raise DataError(
            f"{where} of {splits.name} is not a readable image ({_line(error)}): repair or remove it, or pass "
            "--skip_unreadable to go on without"
        )
    if where not in splits.skipped:  # a stream meets it again every epoch
        splits.skipped.append(where)


def _where(cell: dict | None, index: int, split: str) -> str:
    row = f"row {index} of {split}"
    return row if cell is None or cell["path"] is None else f"{cell['path']} ({row})"


def _size(pixels: np.ndarray) -> str:
    return f"{pixels.shape[-1]}×{pixels.shape[-2]}"


def _line(error: BaseException) -> str:
    """The first line of an exception's message, or its type."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
