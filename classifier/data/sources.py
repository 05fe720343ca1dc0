"""Loads a dataset from where it is: the Hub, an image folder, or a table of paths and labels."""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import datasets
import httpx2  # the HTTP client of huggingface_hub, whose errors an unreachable Hub raises
import huggingface_hub
import numpy as np
import pyarrow.parquet
from datasets.utils.file_utils import cached_path
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from classifier.data.columns import check_known_classes, feature_name
from classifier.data.tables import Pictures, drop_repeated_rows, locate_pictures, read_table, table_columns
from classifier.errors import DataError, first_few, first_line
from classifier.files import check_no_lfs_pointer
from classifier.hub import (
    DATASET_ID,
    HUB_ID,
    REFUSED,
    first_reason,
    http_error,
    is_token_refused,
    quiet_client,
    remedy,
    settings_advice,
)
from classifier.images.folders import is_litter, is_picture, kind_of, list_files

# What datasets and folders call their splits, in lower case -> train, validation or test.
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# A folder that holds one of these is a dataset of rows, which `datasets` loads, and not an image folder.
TABLE_SUFFIXES = {".parquet", ".arrow"}
# A folder without images that holds one of these is such a dataset too: the files may contain images or paths.
OTHER_SUFFIXES = {".csv", ".json", ".jsonl", ".zip", ".tar"}
ARCHIVE_SUFFIXES = {".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"}
# What `datasets` and the Hub's client raise for a dataset that can't be loaded. Most are OSError or ValueError.
UNLOADABLE = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError, httpx2.HTTPError)


class Source(NamedTuple):
    """A dataset as it was loaded, before its columns are checked."""

    name: str  # the Hub id, or the name of the folder or table without its parents
    splits: dict[str, datasets.Dataset]  # the rows of each split, by the dataset's own names
    revision: str | None = None  # the Hub's commit, None for a folder or table
    image_column: str | None = None  # None where the types of the columns have to show which it is
    label_column: str | None = None  # likewise
    left_out: Mapping[str, int] = MappingProxyType({})  # number of files of a folder that are no pictures, by kind


def digest_of_files(folder: Path) -> str:
    """A digest of a folder's content without reading it: 32 hex digits over the names, sizes and dates of its files."""
    hashed = hashlib.sha256()
    for path in sorted(list_files(folder)):
        status = (folder / path).stat()
        hashed.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return hashed.hexdigest()[:32]


def load_source(dataset: str, image_column: str | None = None, label_column: str | None = None) -> Source:
    """Loads a table, a folder or a Hub dataset. The columns are those that the user named, if any.

    Raises:
        DataError: the dataset can't be loaded.
    """
    path = Path(dataset)
    if path.is_file():
        return _load_table(path, image_column, label_column)
    source = _load_folder(path) if path.exists() else _load_hub(dataset)
    return source._replace(image_column=image_column, label_column=label_column)


def rename_splits(source: Source, is_trained_on: bool) -> dict[str, datasets.Dataset]:
    """The rows of the splits with known names, as train, validation and test; train or test is among them.

    A single split counts as train, whatever it is called, unless it is called test.

    Raises:
        DataError: there is no train split, or test is the only one although the dataset `is_trained_on`.
    """
    names = {name: SPLIT_NAMES.get(name.lower()) for name in source.splits}
    if len(names) == 1:
        [(name, split)] = names.items()
        if split == "test" and is_trained_on:
            raise DataError(
                f"{source.name} has a test split alone, which is not to be trained on: rename it to train if it is"
            )
        return {"test" if split == "test" else "train": source.splits[name]}
    rows = {split: source.splits[name] for name, split in names.items() if split}
    if "train" not in rows:
        available = ", ".join(names)
        raise DataError(f"{source.name} has no train split, only {available}: rename the one to train on to train")
    return rows


def _load_hub(dataset: str) -> Source:
    match = DATASET_ID.fullmatch(dataset)
    if not match:
        raise DataError(
            f"no folder {dataset!r}, nor is that a Hub id: pass a folder, user/name, user/name:configuration or "
            "user/name@revision"
        )
    name, config, revision = match["repo"], match["config"], match["revision"]
    gated = DataError(
        f"{name} is gated: accept its terms at {huggingface_hub.constants.ENDPOINT}/datasets/{name}, then log in with "
        "`hf auth login`"
    )
    archives: list[str] = []
    try:
        # One request before all others, whose errors say what is wrong at once: load_dataset retries for 23 s.
        info = huggingface_hub.HfApi().dataset_info(name, revision=revision, timeout=30)
        commit, is_gated = info.sha, bool(info.gated)
        files = [Path(file.rfilename) for file in info.siblings or []]
        archives = [str(file) for file in files if file.suffix.lower() in ARCHIVE_SUFFIXES]
    except OfflineModeIsEnabled:
        commit, is_gated = revision, False  # `datasets` then reads its cache
    except GatedRepoError:
        raise gated from None
    except RevisionNotFoundError:
        raise DataError(f"{name} has no revision {revision!r}: pass a branch, tag or commit that it has") from None
    except (RepositoryNotFoundError, HFValidationError) as error:
        if isinstance(error, RepositoryNotFoundError) and is_token_refused(error):
            raise _refused(name, error) from None
        raise DataError(
            f"no folder {name!r} here and no such dataset on the Hub: check the spelling, or, if it is private, log in "
            "with `hf auth login`"
        ) from None
    except HfHubHTTPError as error:
        raise _refused(name, error) from None
    except REFUSED as error:
        advice = settings_advice(error) or (
            "check the network, set HF_HUB_OFFLINE=1 if it was downloaded before, or pass a local folder"
        )
        endpoint = huggingface_hub.constants.ENDPOINT
        raise DataError(f"the Hub can't be reached for {name} ({endpoint}: {first_line(error)}): {advice}") from None
    try:
        with quiet_client():
            splits, loaded_commit = _load_datasets(name, name, commit, config)
    except DataError as error:
        answer = http_error(error)
        # The Hub describes a gated dataset to everybody, but refuses its files; `datasets` may not name the cause.
        is_unknown = isinstance(error.__cause__, datasets.exceptions.DatasetNotFoundError)
        if is_gated and (is_unknown or (answer and answer.response.status_code in (401, 403))):
            raise gated from None
        if answer:
            raise _refused(name, answer) from None
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise DataError(
                f"{name} can't be loaded: HF_HUB_OFFLINE is set, and the cache does not hold it: unset that to "
                "download it, or pass a local folder"
            ) from None
        if archives and isinstance(error.__cause__, UNLOADABLE) and not _configurations(error.__cause__):
            raise DataError(
                f"{name} holds an archive, {archives[0]}, that can't be loaded as it is: download it by `hf download "
                f"{name} --repo-type dataset --local-dir {name.split('/')[1]}`, unpack it, and pass the folder"
            ) from None
        raise
    if revision and commit == revision and loaded_commit != commit:
        raise DataError(
            f"offline, the cache holds {name} at commit {loaded_commit}, not {revision}: pass {name}@{loaded_commit}, "
            "or go online"
        )
    return Source(f"{name}:{config}" if config else name, splits, loaded_commit)


def _refused(name: str, error: HfHubHTTPError) -> DataError:
    return DataError(f"the Hub did not give {name} ({first_reason(error)}): {remedy(error)}")


def _configurations(error: BaseException) -> list[str]:
    """The configurations that `datasets` lists in an error about a missing or an unknown one; none in other errors."""
    if not str(error).startswith(("Config name is missing", "BuilderConfig ")):
        return []
    _, _, listing = str(error).partition("[")
    return re.findall(r"'([^']+)'", listing.partition("]")[0])


def _load_datasets(
    path: str, name: str, revision: str | None, config: str | None = None
) -> tuple[dict[str, datasets.Dataset], str]:
    """Loads what `datasets.load_dataset` can load: the splits, and the builder's hash (the Hub's commit)."""
    try:
        builder = datasets.load_dataset_builder(path, config, revision=revision)
        builder.download_and_prepare()
        if builder.name == "parquet":
            _check_class_names(name, builder.config.data_files)
        loaded = builder.as_dataset()
    except UNLOADABLE as error:
        if configurations := _configurations(error):
            lacks = f"has no configuration {config!r}, only" if config else "has several configurations,"
            step = f"pass {name}:{configurations[0]} or another" if revision else "pass a folder with the files of one"
            raise DataError(f"{name} {lacks} {first_few(configurations, 20)}: {step}") from error
        reason = first_line(error.__cause__ or error)
        raise DataError(
            f"{name} can't be loaded: {reason}. Pass an image folder (train/<label>/…) or what `load_dataset` loads"
        ) from error
    return loaded, builder.hash


def _check_class_names(name: str, files: dict[str, Sequence[str]]) -> None:
    """Checks that all splits number their classes alike: `datasets` applies the names of the first file to all.

    A split may lack the last names of train, which changes no number.
    """
    features = {
        split: datasets.Features.from_arrow_schema(pyarrow.parquet.read_schema(cached_path(paths[0])))
        for split, paths in files.items()
    }
    for column, feature in features.get("train", {}).items():
        for split in features:
            other = features[split].get(column)
            if isinstance(feature, datasets.ClassLabel) and isinstance(other, datasets.ClassLabel):
                check_known_classes(name, split, feature.names, other.names)
                if feature.names[: len(other.names)] != other.names:
                    raise DataError(
                        f"the classes of {name} are numbered otherwise in {split} than in train (column {column!r}): "
                        "give all splits the same ClassLabel names"
                    )


def _load_folder(folder: Path) -> Source:
    files = list(list_files(folder))
    pictures = [path for path in files if is_picture(folder / path)]
    tables = [
        path
        for path in files
        if path.suffix.lower() in TABLE_SUFFIXES or path.name in ("metadata.csv", "metadata.jsonl")
    ]
    # A relative path user/name is kept whole: it may be a copy of the Hub's repository of that name.
    match = HUB_ID.fullmatch(str(folder))
    name = str(folder) if match and not match["revision"] and ".." not in folder.parts else folder.resolve().name
    if tables or (not pictures and any(path.suffix.lower() in OTHER_SUFFIXES for path in files)):
        for path in files:
            if path.suffix.lower() in TABLE_SUFFIXES | OTHER_SUFFIXES:
                check_no_lfs_pointer(folder / path, DataError)
        return Source(name, _load_datasets(str(folder), name, None)[0])
    if not pictures:
        raise DataError(f"no images in {folder}: put them into {folder}/train/<label>/ or {folder}/<label>/")
    left_out = Counter(kind_of(folder / path) for path in sorted(set(files) - set(pictures)))
    return Source(name, _load_image_folder(folder, pictures), left_out=left_out)


def _load_table(file: Path, image_column: str | None, label_column: str | None) -> Source:
    """Loads a table with one image a row, whose cells are images or what files in the table's folder are called."""
    try:
        rows = read_table(file)
    except UNLOADABLE as error:
        reason = first_line(error.__cause__ or error)
        raise DataError(f"{file} can't be read as a table: {reason}. Repair it") from error
    pictures = Pictures(file, list_files(file.parent))
    image_column, label_column = table_columns(pictures, rows, image_column, label_column)
    split_column = next((name for name in rows.column_names if name.lower() == "split"), None)
    splits = [str(value).lower() for value in rows[split_column]] if split_column else ["train"] * len(rows)
    if feature_name(rows.features[image_column]) in ("string", "large_string"):
        paths = locate_pictures(pictures, rows[image_column][:])
        kept = drop_repeated_rows(file, paths, rows[label_column][:], splits)
        rows = rows.remove_columns(image_column).add_column(image_column, paths).select(kept)
        rows, splits = rows.cast_column(image_column, datasets.Image()), [splits[i] for i in kept]
    if unknown := sorted(set(splits) - set(SPLIT_NAMES)):
        raise DataError(f"{file} has rows whose split is {unknown[0]!r}: name it train, validation or test")
    split_of_row = np.array([SPLIT_NAMES[value] for value in splits])
    if "train" not in split_of_row:
        raise DataError(f"{file} has no rows whose split is train: add some, or remove the column")
    by_split = {split: rows.select(np.flatnonzero(split_of_row == split)) for split in np.unique(split_of_row).tolist()}
    return Source(file.name, by_split, None, image_column, label_column)


def _load_image_folder(folder: Path, pictures: list[Path]) -> dict[str, datasets.Dataset]:
    """Loads the layouts of `imagefolder`, which itself skips HEIC files and guesses where a layout is wrong."""
    tops = {path.parts[0] for path in pictures if len(path.parts) > 1}
    split_folders = {top for top in tops if top.lower() in SPLIT_NAMES}
    has_train = any(SPLIT_NAMES[top.lower()] == "train" for top in split_folders)
    folders: dict[str, str] = {}  # of each split, its name; none where classes are at the top
    unlabelled: list[Path] = []  # test images
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
        for top in sorted(split_folders):
            split = SPLIT_NAMES[top.lower()]
            if split in folders:
                raise DataError(f"{folder} has two folders for the {split} split, {top} being one: merge or remove one")
            folders[split] = top
        inside = {
            split: [path.relative_to(top) for path in pictures if path.parts[0] == top]
            for split, top in folders.items()
        }
        if "test" in inside and _is_unlabelled(inside["test"], {path.parts[0] for path in inside["train"]}):
            unlabelled = [folder / folders["test"] / path for path in sorted(inside.pop("test"))]
        by_class = {split: _by_class(folder / folders[split], paths) for split, paths in inside.items()}
    _check_no_class_is_empty(folder / folders["train"] if folders else folder, by_class["train"])
    for path in pictures:
        try:
            str(path).encode()
        except UnicodeEncodeError:  # as old archives leave them
            raise DataError(
                f"the name of {str(path)!a} in {folder} is not UTF-8, and tables can't hold it: rename it"
            ) from None
    labels = sorted(by_class["train"])
    for split, classes in by_class.items():
        check_known_classes(str(folder), split, labels, list(classes))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=labels)})
    rows: dict[str, list[tuple[str, int | None]]] = {
        split: [(str(path), index) for index, label in enumerate(labels) for path in classes.get(label, [])]
        for split, classes in by_class.items()
    }
    if unlabelled:
        rows["test"] = [(str(path), None) for path in unlabelled]
    return {
        split: datasets.Dataset.from_dict(
            {"image": [path for path, _ in pairs], "label": [label for _, label in pairs]}, features=features
        )
        for split, pairs in rows.items()
    }


def _is_unlabelled(test: list[Path], labels: set[str]) -> bool:
    """Whether test images lie in one folder that is named after none of the labels, as in Kaggle's competitions."""
    parents = {path.parts[:-1] for path in test}
    return len(parents) == 1 and labels.isdisjoint(*parents)


def _by_class(folder: Path, pictures: list[Path]) -> dict[str, list[Path]]:
    """Groups images by class folder, sorted. DataError unless every image lies in `<label>/`."""
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
    return classes


def _check_no_class_is_empty(folder: Path, classes: Collection[str]) -> None:
    """Raises DataError if a folder of train has no images, so that its class can't be learnt."""
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not is_litter(path.name) and path.name not in classes:
            raise DataError(f"no images in the class folder {path}: add some, or remove the folder")
