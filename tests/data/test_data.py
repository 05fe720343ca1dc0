"""Datasets: splits, columns, labels, pixels, and one clear line for each kind of wrong data."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from datasets import ClassLabel, Features, Value
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor, resize

from classifier.data.columns import undecoded
from classifier.data.loaders import DecodedSplit, as_tensor, collate, fingerprint, image_batches, skip_or_raise
from classifier.data.splits import Splits, load_splits, sample_by_class, sample_by_name
from classifier.data.survey import survey_splits
from classifier.data.unlabelled import Files, Rows
from classifier.errors import DataError
from classifier.images.folders import list_files
from classifier.reporting import figures
from tests.helpers.paths import ROOT
from tests.helpers.pictures import LFS_POINTER


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """`datasets` writes its Arrow files beside the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def class_counts(splits: Splits) -> dict[str, np.ndarray]:
    """Images of each class by split, for the splits that were asked for."""
    rows = {name: getattr(splits, name) for name in ("train", "validation", "test")}
    return {
        name: np.bincount(split[splits.label_column][:], minlength=len(splits.labels))
        for name, split in rows.items()
        if split is not None
    }


def picture(path: Path, shade: int = 100, size: tuple[int, int] = (8, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (shade, 0, 255 - shade)).save(path)
    return path


def image_folder(root: Path, classes=("cat", "dog"), n: int = 10) -> Path:
    """n pictures a class, each of its own shade, which identifies it."""
    for c, label in enumerate(classes):
        for i in range(n):
            picture(root / label / f"{i}.png", shade=c * n + i)
    return root


def parquet(root: Path, image="img", label="label", **splits) -> Path:
    """A folder of parquet; each split is (class names or None for plain values, labels)."""
    root.mkdir(parents=True, exist_ok=True)
    for split, (names, labels) in splits.items():
        images = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in range(len(labels))]
        plain = Value("string") if isinstance(labels[0], str) else Value("int64")
        features = Features({image: datasets.Image(), label: ClassLabel(names=names) if names else plain})
        datasets.Dataset.from_dict({image: images, label: labels}, features=features).to_parquet(
            root / f"{split}-00000-of-00001.parquet"
        )
    return root


def paths(splits: Splits, split: str) -> set[str]:
    rows = splits[split].cast_column("image", datasets.Image(decode=False))
    return {cell["path"] for cell in rows["image"]}


# --- Cuts


def test_stratified_worked_by_hand():
    # 10, 5 and 5 of 20: the shares of 6 are 3, 1.5 and 1.5. The whole parts give 5; the last goes to the lower class.
    labels = np.array([0] * 10 + [1] * 5 + [2] * 5)
    drawn = sample_by_class(labels, 6, seed=0)
    assert np.bincount(labels[drawn]).tolist() == [3, 2, 1]
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert np.array_equal(drawn, sample_by_class(labels, 6, seed=0))
    assert not np.array_equal(drawn, sample_by_class(labels, 6, seed=1))


def test_class_of_one_image_stays_in_train():
    labels = np.array([0, 1, *[2] * 8])  # 5 of 10: 0.5, 0.5 and 4
    assert np.bincount(labels[sample_by_class(labels, 5, seed=0)], minlength=3).tolist() == [0, 0, 5]


def test_splits_never_overlap_and_are_the_same_whatever_is_asked_for(tmp_path):
    folder = str(image_folder(tmp_path / "pets", n=20))
    everything = load_splits(folder, splits=("train", "validation", "test"), validation=0.25)
    cut = {split: paths(everything, split) for split in ("train", "validation", "test")}
    # 40 images: test is about 10%, by their names, validation a quarter of the others, rounded
    assert {split: len(files) for split, files in cut.items()} == {"train": 26, "validation": 9, "test": 5}
    assert len(set.union(*cut.values())) == 40
    assert paths(load_splits(folder, splits=("train",), validation=0.25), "train") == cut["train"]
    other = load_splits(folder, splits=("validation", "test"), validation=0.25, seed=1)
    assert paths(other, "validation") != cut["validation"]
    assert paths(other, "test") == cut["test"]  # a run of seed 1 must not train on the test images of seed 0


def test_a_file_stays_in_test_when_others_are_added_or_removed(tmp_path):
    """If the test cut went by position, it would contain most training images once the folder has changed."""
    folder = image_folder(tmp_path / "pets", n=100)
    test = paths(load_splits(str(folder), splits=("test",)), "test")
    assert 10 <= len(test) <= 32
    for label in ("cat", "dog"):
        gone = folder / label / "50.png"
        gone.unlink()
        test.discard(str(gone))
    assert paths(load_splits(str(folder), splits=("test",)), "test") == test
    for label in ("cat", "dog"):
        for i in range(100, 140):
            picture(folder / label / f"{i}.png", shade=i)
    grown = paths(load_splits(str(folder), splits=("test",)), "test")
    assert test < grown and all(int(Path(path).stem) >= 100 for path in grown - test)
    folder.rename(tmp_path / "moved")
    assert {Path(path).name for path in paths(load_splits(str(tmp_path / "moved"), splits=("test",)), "test")} == {
        Path(path).name for path in grown
    }


def test_drawing_by_name_empties_no_class():
    labels = np.repeat([0, 1, 2, 3], [10, 10, 2, 1])
    for salt in range(200):
        drawn = sample_by_name([f"{salt} {i}" for i in range(len(labels))], labels)
        counts = np.bincount(labels[drawn], minlength=4)
        assert counts[0] >= 1 and counts[1] >= 1 and (counts < [10, 10, 2, 1]).all()
    for salt in range(200):
        [drawn] = sample_by_name([f"{salt} {i}" for i in range(4)], np.array([0, 0, 1, 2]))
        assert drawn in (0, 1), "a class of one keeps it"
    assert len(sample_by_name(["a", "b"], np.array([0, 1]))) == 0


def test_a_table_has_the_same_test_images_whatever_else_it_lists(tmp_path):
    for i in range(40):
        picture(tmp_path / f"images/{i}.png", shade=i)
    picture(tmp_path / "more/0.png")
    rows = [f"images/{i}.png,{'ab'[i % 2]}\n" for i in range(40)]
    (tmp_path / "rows.csv").write_text("file,label\n" + "".join(rows))
    first = load_splits(str(tmp_path / "rows.csv"), splits=("test",))
    (tmp_path / "rows.csv").write_text("file,label\n" + "".join([*rows, "more/0.png,a\n"]))
    second = load_splits(str(tmp_path / "rows.csv"), splits=("test",))
    names = [
        {Path(row[splits.image_column]["path"]).name for row in undecoded(splits.test, splits.image_column)}
        for splits in (first, second)
    ]
    assert names[0] <= names[1] and len(names[1] - names[0]) <= 1 and first.test_cut
    assert (first.test_cut == second.test_cut) is (names[0] == names[1])


def test_a_test_split_alone_is_tested_on_and_not_trained_on(tmp_path):
    folder = str(parquet(tmp_path / "rows", test=(["a", "b"], [0, 1] * 10)))
    splits = load_splits(folder, splits=("train", "test"))
    assert len(splits.test) == 20 and splits.train is None and splits.test_cut is None
    with pytest.raises(DataError, match="a test split alone, which is not to be trained on"):
        load_splits(folder)
    folder = str(parquet(tmp_path / "others", validation=(["a", "b"], [0, 1] * 10)))
    splits = load_splits(folder, splits=("train", "validation", "test"))
    assert len(splits.train) + len(splits.validation) + len(splits.test) == 20


def test_a_file_name_that_is_not_utf8_is_an_error(tmp_path):
    folder = image_folder(tmp_path / "pets")
    picture(Path(os.fsdecode(os.fsencode(folder) + b"/cat/caf\xe9.png")))
    with pytest.raises(DataError, match=r"udce9.png' in .* is not UTF-8, and tables can't hold it: rename it"):
        load_splits(str(folder))


def test_same_cut_in_another_process(tmp_path):
    folder = image_folder(tmp_path / "pets", n=20)
    code = f"""
import json
from classifier.data.splits import load_splits
rows = load_splits({str(folder)!r}, splits=("validation",), seed=3).validation
print(json.dumps([image.filename for image in rows["image"]]))"""
    ours = load_splits(str(folder), splits=("validation",), seed=3).validation
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [image.filename for image in ours["image"]]


def test_own_validation_split_is_used(tmp_path):
    for split in ("train", "val", "test"):
        image_folder(tmp_path / "pets" / split, n=3)
    splits = load_splits(str(tmp_path / "pets"))
    assert len(splits.train) == 6
    assert {Path(path).parts[-3] for path in paths(splits, "validation")} == {"val"}
    assert splits.test is None


def test_test_is_not_read_unless_asked_for(tmp_path):
    for split in ("train", "test"):
        image_folder(tmp_path / "pets" / split)
    for path in (tmp_path / "pets" / "test").rglob("*.png"):
        path.write_bytes(b"not an image")
    splits = load_splits(str(tmp_path / "pets"))
    as_tensor("train", splits)
    as_tensor("validation", splits)
    with pytest.raises(KeyError, match="not asked for 'test'"):
        splits["test"]


def test_max_samples_are_drawn_by_class(tmp_path):
    splits = load_splits(str(image_folder(tmp_path / "pets", n=20)), max_train_samples=6, max_eval_samples=2)
    counts = class_counts(splits)
    assert {split: count.tolist() for split, count in counts.items()} == {"train": [3, 3], "validation": [1, 1]}


# --- Columns and labels


@pytest.mark.parametrize("image", ["img", "image", "picture"])
def test_columns_are_found_by_type_and_labels_keep_their_order(tmp_path, image):
    names = ["zebra", "ant", "yak"]
    splits = load_splits(str(parquet(tmp_path / "zoo", image=image, label="animal", train=(names, [0, 1, 2] * 10))))
    assert (splits.image_column, splits.label_column) == (image, "animal")
    assert splits.labels == names
    assert (splits.name, splits.revision) == ("zoo", None)


def test_strings_and_integers_become_classes(tmp_path):
    words = parquet(tmp_path / "words", train=(None, ["dog", "cat"] * 10))
    assert load_splits(str(words), label_column="label").labels == ["cat", "dog"]
    years = parquet(tmp_path / "years", train=(None, [10, 9] * 10))
    splits = load_splits(str(years), label_column="label")
    assert splits.labels == ["9", "10"]  # by value, not by spelling
    assert set(splits.train["label"]) == {0, 1}
    images, labels = as_tensor("train", splits)
    assert torch.equal(images[:, 0, 0, 0] % 2, 1 - labels)  # row 0 is a 10, which is class 1: each image kept its label


def test_override_chooses_between_columns(tmp_path):
    folder = tmp_path / "two"
    folder.mkdir()
    names = {"coarse": ["a", "b"], "fine": ["p", "q", "r"]}
    features = {"img": datasets.Image(), **{column: ClassLabel(names=classes) for column, classes in names.items()}}
    images = [Image.new("RGB", (4, 4))] * 12
    rows = {"img": images, "coarse": [0, 1] * 6, "fine": [0, 1, 2] * 4}
    datasets.Dataset.from_dict(rows, features=Features(features)).to_parquet(folder / "train.parquet")
    with pytest.raises(
        DataError, match=r"two has 2 columns of type ClassLabel: .*coarse \(ClassLabel\).*--label_column"
    ):
        load_splits(str(folder))
    assert load_splits(str(folder), label_column="fine").labels == ["p", "q", "r"]


@pytest.mark.parametrize("names", [["cat", "dog"], None], ids=["class indices", "strings"])
def test_each_label_column_is_read_once(tmp_path, monkeypatch, names):
    labels = [0, 1] * 10 if names else ["cat", "dog"] * 10
    with_test = parquet(tmp_path / "with_test", train=(names, labels), test=(names, labels))
    without_test = parquet(tmp_path / "without_test", train=(names, labels))
    reads, read = [], datasets.Dataset.__getitem__

    def count(rows, key):
        reads.extend([key] if key == "label" else [])
        return read(rows, key)

    monkeypatch.setattr(datasets.Dataset, "__getitem__", count)
    for folder, n_columns in ((with_test, 2), (without_test, 1)):
        reads.clear()
        everything = ("train", "validation", "test")
        splits = load_splits(str(folder), splits=everything, label_column="label", max_train_samples=10)
        survey_splits(splits, tmp_path / "unreadable.txt")
        fingerprint("test", splits)
        as_tensor("train", splits)
        assert len(reads) == n_columns
        assert all(splits.class_indices[split].tolist() == read(splits[split], "label")[:] for split in everything)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_a_table_of_paths_and_labels(tmp_path, suffix):
    folder = image_folder(tmp_path / "pets", n=10)
    files = sorted(path.relative_to(tmp_path) for path in folder.rglob("*.png"))
    parts = ["test" if path.stem in "01" else "val" if path.stem == "2" else "train" for path in files]
    rows = datasets.Dataset.from_dict(
        {"file": list(map(str, files)), "note": ["x"] * 20, "label": [path.parts[1] for path in files], "split": parts}
    )
    write = {"csv": rows.to_csv, "jsonl": rows.to_json, "parquet": rows.to_parquet}[suffix]
    write(str(tmp_path / f"list.{suffix}"))
    splits = load_splits(str(tmp_path / f"list.{suffix}"), splits=("train", "validation", "test"))
    counts = {split: count.tolist() for split, count in class_counts(splits).items()}
    assert counts == {"train": [7, 7], "validation": [1, 1], "test": [2, 2]}
    assert (splits.labels, splits.name) == (["cat", "dog"], f"list.{suffix}")
    images, labels = as_tensor("test", splits)
    assert sorted(images[:, 0, 0, 0].tolist()) == [0, 1, 10, 11]  # the shades of cats 0 and 1, dogs 0 and 1
    assert torch.equal(images[:, 0, 0, 0] >= 10, labels.bool())
    if suffix == "csv":
        text = (tmp_path / "list.csv").read_text()
        (tmp_path / "new.csv").write_text(f"{text}pets/cat/5.png,x,emu,test\n")
        with pytest.raises(DataError, match=r"has emu in test but not in train, so no model can learn it"):
            load_splits(str(tmp_path / "new.csv"))
        (tmp_path / "empty.csv").write_text(f"{text}pets/cat/0.png,x,,train\n")
        with pytest.raises(DataError, match=r"rows without a label in train"):
            load_splits(str(tmp_path / "empty.csv"))
        with pytest.raises(DataError, match=r"no single column of labels \(its columns are .*--label_column"):
            load_splits(str(tmp_path / "list.csv"), label_column="breed")


def test_labels_are_renamed(tmp_path):
    folder, names = image_folder(tmp_path / "pets"), tmp_path / "names.json"
    names.write_text(json.dumps({"cat": "gatto"}))
    splits = load_splits(str(folder), label_names=names)
    assert splits.labels == ["gatto", "dog"]
    _, labels = as_tensor("train", splits)
    assert torch.equal(labels, as_tensor("train", load_splits(str(folder)))[1])  # the order stays
    for text, message in (
        ('{"cow": "mucca"}', r"names 'cow', which is no label of pets: it has cat, dog"),
        ('{"cat": "dog"}', r"gives two labels the name 'dog': give each its own"),
        ('{"cat": 1}', r'is no object of names: write \{"cat": '),
        ("{", r"can't be read .*: pass a JSON file"),
    ):
        names.write_text(text)
        with pytest.raises(DataError, match=message):
            load_splits(str(folder), label_names=names)


def test_a_survey_of_sizes_classes_and_what_is_broken(tmp_path):
    folder, listing = image_folder(tmp_path / "pets", n=20), tmp_path / "run/unreadable.txt"
    for i in range(10):
        picture(folder / "emu" / f"{i} wide\nand new.png", size=(200, 100))
    survey = survey_splits(load_splits(str(folder)), listing)
    assert str(survey) == "42 images, 3 classes, smallest 6 (emu), largest 17 (dog); median 8×8"
    assert not listing.exists()
    for i in range(10):
        (folder / "emu" / f"{i} wide\nand new.png").write_bytes(b"")
    with pytest.raises(
        DataError, match=rf"7 of 42 images of pets are not readable, listed in {listing}: repair or remove"
    ):
        survey_splits(load_splits(str(folder)), listing)
    assert "emu" in listing.read_text()
    assert "; 7 unreadable" in str(survey_splits(load_splits(str(folder), skip_unreadable=True), listing))
    shutil.rmtree(folder / "emu")
    survey_splits(load_splits(str(folder)), listing)
    assert not listing.exists()


def test_pictures_that_are_git_lfs_pointers_are_named_as_such(tmp_path):
    folder, listing = image_folder(tmp_path / "pets"), tmp_path / "run/unreadable.txt"
    files = [path.relative_to(folder) for path in folder.rglob("*.png")]
    for i, path in enumerate(files):
        (folder / path).write_text(LFS_POINTER)
        if i in (len(files) // 2, len(files) - 1):
            with pytest.raises(DataError, match=r"The first is .*\.png .*: this is a Git LFS pointer .*git lfs pull"):
                survey_splits(load_splits(str(folder)), listing)


def test_links_that_loop_are_followed_once(tmp_path):
    folder = image_folder(tmp_path / "pets")
    (tmp_path / "elsewhere").mkdir()
    (folder / "cat").rename(tmp_path / "elsewhere/cats")
    (folder / "cat").symlink_to(tmp_path / "elsewhere/cats")  # a class may be elsewhere
    (folder / "dog/again").symlink_to(folder)
    (tmp_path / "elsewhere/cats/back").symlink_to(folder / "dog")
    files = list(list_files(folder))
    assert len(files) == len(set(files)) and len(files) < 100
    (folder / "dog/again").unlink()
    (tmp_path / "elsewhere/cats/back").unlink()
    assert class_counts(load_splits(str(folder)))["train"].tolist() == [7, 8]


@pytest.mark.slow
def test_a_hundred_thousand_files(tmp_path):
    first = picture(tmp_path / "many/0/0.png")
    for c in range(10):
        (tmp_path / f"many/{c}").mkdir(exist_ok=True)
        for i in range(10_000):
            if c or i:
                (tmp_path / f"many/{c}/{i}.png").symlink_to(first)
    began = time.monotonic()
    splits = load_splits(str(tmp_path / "many"))
    assert len(splits.train) + len(splits.validation) == pytest.approx(90_000, abs=500)
    assert time.monotonic() - began < 60


# --- Bad data: the message names the thing and the next step


def no_folder(root):
    return "nowhere", r"no folder 'nowhere'.*pass a folder, user/name"


def a_file(root):
    return picture(
        root / "a.png"
    ), r"a\.png is no table \(\.csv, \.tsv, \.json, \.jsonl, \.parquet\): pass one, or the folder"


def no_images(root):
    (root / "notes.txt").write_text("nothing here")
    return root, r"no images in .*: put them into .*train/<label>/"


def only_litter(root):
    picture(root / "__MACOSX" / "cat" / "a.png")
    picture(root / "cat" / "._a.png")
    return root, r"no images in "


def one_class(root):
    return image_folder(root, ["cat"]), r"only one class|one class \(cat\) in train: at least two"


def split_without_class_folders(root):
    picture(root / "train" / "1.png")
    image_folder(root / "test")
    return root, r"train holds 1 images but no class folders: move each into .*train/<label>/"


def loose_images(root):
    picture(image_folder(root) / "loose.png")
    return root, r"mixes depths: 20 images lie in <label>/, but 1 lie loose .*such as loose\.png: move"


def deeper_images(root):
    picture(image_folder(root) / "cat" / "more" / "deep.png")
    return root, r"mixes depths: .* 1 deeper, such as cat/more/deep\.png: move"


def wrapped_folder(root):
    image_folder(root / "archive" / "train")
    return root, r"lie too deep, such as archive/train/cat/0\.png: pass the folder"


def images_beside_splits(root):
    image_folder(root / "train")
    picture(root / "extra" / "cat" / "a.png")
    return root, r"1 images outside of its split folders, such as extra/cat/a\.png: move"


def no_train_folder(root):
    image_folder(root / "test")
    return root, r"has test but no images in .*train: add some"


def empty_class_folder(root):
    (image_folder(root) / "fish").mkdir()
    return root, r"no images in the class folder .*fish: add some, or remove"


def class_of_validation_alone(root):
    image_folder(root / "train", ["cat", "dog"])
    image_folder(root / "val", ["cat", "emu"])
    return root, r"has emu in validation but not in train, so no model can learn it: name the classes alike"


def class_of_test_alone(root):
    image_folder(root / "train", ["cat", "dog"])
    image_folder(root / "test", ["cat", "dog", "emu", "gnu"])
    return root, r"has emu, gnu in test but not in train"


def class_of_test_rows_alone(root):
    parquet(root, train=(["cat", "dog", "emu"], [0, 1] * 5), test=(["cat", "dog", "emu"], [0, 1, 2]))
    return root, r"has emu in test but not in train"


def labels_differ_between_parquets(root):
    parquet(root, train=(["cat", "dog"], [0, 1] * 5), test=(["cat", "cow"], [0, 1]))
    return root, r"has cow in test but not in train"


def labels_numbered_otherwise(root):
    parquet(root, train=(["cat", "cow", "dog"], [0, 1, 2] * 5), test=(["cat", "dog"], [0, 1]))
    return root, r"are numbered otherwise in test than in train \(column 'label'\): give"


def labels_in_another_order(root):
    parquet(root, train=(["cat", "dog"], [0, 1] * 5), test=(["dog", "cat"], [0, 1]))
    return root, r"are numbered otherwise in test than in train \(column 'label'\): give"


def no_class_label(root):
    return parquet(root, train=(None, [0, 1] * 5)), r"no columns of type ClassLabel: .*label \(int64\).*--label_column"


def unlabelled_validation(root):
    image_folder(root / "train")
    picture(root / "val" / "1.png")
    return root, r"val holds 1 images but no class folders: move each into .*val/<label>/"


def some_unlabelled(root):
    image_folder(root / "train")
    picture(image_folder(root / "test") / "loose.png")
    return root, r"test mixes depths: 20 images lie in <label>/, but 1 lie loose"


def unlabelled_rows(root):
    return parquet(root, train=(["cat", "dog"], [0, 1, -1])), r"1 rows without a label in train \(column 'label'\)"


def no_train_split(root):
    parquet(root, validation=(["cat", "dog"], [0, 1]), test=(["cat", "dog"], [0, 1]))
    return root, r"has no train split, only .*: rename"


def broken_parquet(root):
    (root / "train.parquet").write_bytes(b"PAR1 and no more")
    return root, r"can't be loaded: .*\. Pass an image folder"


def too_few_to_cut(root):
    return image_folder(root, n=1), r"too few images of class 'cat' in .*: add more"


def lfs_pointer_for_parquet(root):
    (root / "data").mkdir()
    (root / "data/train-00000-of-00001.parquet").write_text(LFS_POINTER)
    return root, r"train-00000-of-00001\.parquet: this is a Git LFS pointer in place of the file: run `git lfs pull`"


def lfs_pointer_for_a_zip(root):
    (root / "pictures.zip").write_text(LFS_POINTER)
    return root, r"pictures\.zip: this is a Git LFS pointer"


def lfs_pointer_for_a_table(root):
    (root / "list.csv").write_text(LFS_POINTER)
    return root / "list.csv", r"list\.csv: this is a Git LFS pointer"


BAD = [
    *(no_folder, a_file, no_images, only_litter, one_class, split_without_class_folders, loose_images, deeper_images),
    *(wrapped_folder, images_beside_splits, no_train_folder, empty_class_folder, class_of_validation_alone),
    *(class_of_test_alone, class_of_test_rows_alone, labels_numbered_otherwise, unlabelled_validation, some_unlabelled),
    *(labels_differ_between_parquets, labels_in_another_order, no_class_label, unlabelled_rows, no_train_split),
    *(broken_parquet, too_few_to_cut, lfs_pointer_for_parquet, lfs_pointer_for_a_zip, lfs_pointer_for_a_table),
]


@pytest.mark.parametrize("empty", [True, False], ids=["empty folder", "no folder"])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_class_that_a_split_lacks_is_named_and_used(tmp_path, split, empty):
    folder = tmp_path / "pets"
    image_folder(folder / "train", ["cat", "dog", "lynx"])
    image_folder(folder / split, ["cat", "dog"])
    if empty:
        (folder / split / "lynx").mkdir()
    splits = load_splits(str(folder))
    assert [note for note in splits.notes if "lynx" in note and note.startswith(f"{split} of pets has no images of")]
    assert len(splits.notes) == 1 and splits.labels == ["cat", "dog", "lynx"]
    assert np.bincount(splits.class_indices["train"])[2] > 0
    both = load_splits(str(folder), splits=("train", split))
    assert np.bincount(both.class_indices[split], minlength=3).tolist() == [10, 10, 0]


def test_a_class_that_rows_of_a_split_lack(tmp_path):
    names = ["cat", "dog", "lynx"]
    for folder, test in (("same", names), ("fewer", names[:2])):
        root = parquet(tmp_path / folder, train=(names, [0, 1, 2] * 10), test=(test, [1, 0, 1]))
        splits = load_splits(str(root), splits=("train", "test"))
        assert splits.class_indices["test"].tolist() == [1, 0, 1] and splits.labels == names
        assert [note.partition(",")[0] for note in splits.notes] == [f"test of {folder} has no images of lynx"]
    rows = "".join(f"same/{i}.png,{names[i % 3]},train\n" for i in range(30)) + "same/1.png,cat,val\n"
    (tmp_path / "list.csv").write_text(f"image,label,split\n{rows}")
    for i in range(30):
        picture(tmp_path / f"same/{i}.png")
    [note, *_] = load_splits(str(tmp_path / "list.csv")).notes
    assert note.startswith("validation of list.csv has no images of dog, lynx")


@pytest.mark.parametrize("inside", ["", "test", "unknown", "images/part1"])
def test_test_pictures_without_labels_are_left_aside(tmp_path, inside):
    folder = tmp_path / "pets"
    image_folder(folder / "train")
    for i in range(7):
        picture(folder / "test" / inside / f"{i}.png")
    splits = load_splits(str(folder))
    assert splits.notes == ["test of pets has no labels: its 7 images are left aside"]
    assert (len(splits.train), len(splits.validation), splits.test_cut) == (18, 2, None)
    with pytest.raises(DataError, match="test of pets has no labels, and measuring needs them"):
        load_splits(str(folder), splits=("train", "test"))
    uncut = load_splits(str(folder), splits=("train", "validation", "test"), cut=False)
    assert len(uncut.train) == 20 and uncut.test is None
    assert len(Rows(str(folder), "test")) == 7 and len(Files(str(folder / "test"))) == 7


@pytest.mark.parametrize("kind", ["parquet", "strings", "csv", "no column"])
def test_test_rows_without_labels_are_left_aside(tmp_path, kind):
    root, column = tmp_path / "pets", None
    if kind == "csv":
        for i in range(24):
            picture(tmp_path / f"img/{i}.png", shade=i)
        rows = [f"img/{i}.png,{'ab'[i % 2]},train\n" if i < 20 else f"img/{i}.png,,test\n" for i in range(24)]
        root = tmp_path / "list.csv"
        root.write_text("image,label,split\n" + "".join(rows))
    elif kind == "parquet":
        parquet(root, train=(["a", "b"], [0, 1] * 10), test=(["a", "b"], [-1] * 4))
    else:
        parquet(root, train=(None, ["a", "b"] * 10), test=(None, ["", "", "", ""]))
        column = "label"
        rows = datasets.Dataset.from_parquet(str(root / "test-00000-of-00001.parquet"))
        rows = rows.remove_columns("label")
        if kind == "strings":
            rows = rows.add_column("label", [None] * 4, feature=Value("string"))
        rows.to_parquet(root / "test-00000-of-00001.parquet")
    splits = load_splits(str(root), label_column=column)
    assert splits.notes == [f"test of {root.name} has no labels: its 4 images are left aside"]
    assert len(splits.train) + len(splits.validation) == 20
    with pytest.raises(DataError, match="has no labels, and measuring needs them"):
        load_splits(str(root), splits=("train", "test"), label_column=column)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: bad.__name__)
def test_bad_data_is_named(tmp_path, bad):
    dataset, message = bad(tmp_path)
    with pytest.raises(DataError, match=message) as caught:
        load_splits(str(dataset))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_column": "lable"}, r"no column 'lable': its columns are img \(Image\), label \(ClassLabel\)"),
        ({"image_column": "image"}, r"no column 'image': its columns are .*--image_column"),
        ({"image_column": "label"}, r"column 'label' of .* holds ClassLabel, not images"),
        ({"label_column": "img"}, r"column 'img' of .* holds Image, not classes"),
        ({"validation": 0.0}, r"validation fraction of 0 is out of range"),
        ({"max_train_samples": 0}, r"--max_train_samples 0 leaves no images"),
    ],
)
def test_bad_options_are_named(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        load_splits(str(parquet(tmp_path / "pets", train=(["cat", "dog"], [0, 1] * 5))), **options)


def test_a_class_may_be_called_test(tmp_path):
    assert load_splits(str(image_folder(tmp_path / "quality", ["pass", "test"]))).labels == ["pass", "test"]


# --- The Hub


def load_in_process(dataset: str, cwd: Path, **environment) -> subprocess.CompletedProcess:
    """Loads a dataset in a new process, because the Hub's client reads HF_ENDPOINT when it is imported."""
    code = (
        "from classifier import errors; from classifier.data.splits import load_splits; "
        f"errors.run(lambda: load_splits({dataset!r}))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(cwd / "hf"),
        "HF_HUB_OFFLINE": "0",
        **environment,
    }
    return subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)


def test_an_unreachable_hub_is_an_error_at_once(tmp_path):
    begun = time.monotonic()
    done = load_in_process("user/pets", tmp_path, HF_ENDPOINT="http://127.0.0.1:9")
    assert time.monotonic() - begun < 20  # importing torch included; load_dataset alone retries for 23 s
    assert done.returncode == 2, done.stderr
    assert "the Hub can't be reached for user/pets (http://127.0.0.1:9: " in done.stderr
    assert "HF_HUB_OFFLINE=1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def hub():
    """A Hub on loopback with one dataset, `user/gated`, whose files it refuses."""

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            dataset = {"id": "user/gated", "sha": "a" * 40, "gated": "auto", "tags": [], "siblings": []}
            if "user/gated" in self.path and "/nowhere" in self.path:
                self.answer(404, b"{}", "RevisionNotFound")
            elif self.path.startswith("/api/datasets/user/gated"):
                self.answer(200, json.dumps(dataset).encode())
            elif "user/gated" in self.path:
                self.answer(403, b"{}", "GatedRepo")
            else:
                self.answer(404, b"{}", "RepoNotFound")

        do_HEAD = do_GET

        def answer(self, status: int, body: bytes, error: str | None = None):
            self.send_response(status)
            if error:
                self.send_header("X-Error-Code", error)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("user/unknown", "no folder 'user/unknown' here and no such dataset on the Hub: check the spelling"),
        ("user/gated@nowhere", "user/gated has no revision 'nowhere': pass a branch, tag or commit"),
        ("user/gated", "user/gated is gated: accept its terms at {hub}/datasets/user/gated, then log in"),
    ],
)
def test_what_the_hub_refuses_is_named(hub, tmp_path, dataset, message):
    done = load_in_process(dataset, tmp_path, HF_ENDPOINT=hub)
    assert done.returncode == 2, done.stderr
    assert message.format(hub=hub) in done.stderr
    assert "Traceback" not in done.stderr


def test_offline_without_a_cached_copy(tmp_path):
    done = load_in_process("user/pets", tmp_path, HF_HUB_OFFLINE="1")
    assert done.returncode == 2, done.stderr
    assert "user/pets can't be loaded: HF_HUB_OFFLINE is set, and the cache does not hold it" in done.stderr
    assert "Traceback" not in done.stderr


# --- Pixels


@pytest.fixture
def odd_folder(tmp_path):
    """Every picture is 2 pixels wide, 1 high once upright: left red, right blue (or black and white, if grey)."""
    red_blue = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], np.uint8))
    folder = tmp_path / "odd"
    for label in ("a", "b"):
        (folder / label).mkdir(parents=True)
    red_blue.quantize(2).save(folder / "a" / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by 90° to the left: shown turned to the right
    red_blue.transpose(Image.Transpose.ROTATE_90).save(folder / "a" / "turned.png", exif=exif)
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(folder / "b" / "grey.png")
    Image.fromarray(np.array([[0, 65535]], np.uint16)).save(folder / "b" / "grey16.png")
    clear = Image.fromarray(np.array([[[0, 0, 0, 255], [0, 0, 0, 0]]], np.uint8))
    clear.save(folder / "b" / "clear.png")
    return folder


def test_images_are_upright_rgb(odd_folder):
    splits = load_splits(str(odd_folder), splits=("train", "validation", "test"))
    red_blue, black_white = [[255, 0, 0], [0, 0, 255]], [[0, 0, 0], [255, 255, 255]]
    seen = 0
    for split in ("train", "validation", "test"):
        images, labels = as_tensor(split, splits)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        assert images.shape[1:] == (3, 1, 2)
        for image, label in zip(images, labels, strict=True):
            assert image[:, 0].T.tolist() == (red_blue, black_white)[label]  # (3, W) to (W, 3)
            seen += 1
    assert seen == 5


def test_heic_and_upper_case_suffixes_count(tmp_path):
    folder = image_folder(tmp_path / "pets", n=4)
    Image.new("RGB", (8, 8), (200, 0, 0)).save(folder / "cat" / "phone.HEIC", format="HEIF")
    splits = load_splits(str(folder), splits=("train", "validation", "test"))
    assert sum(count.sum() for count in class_counts(splits).values()) == 9
    assert sum(len(as_tensor(split, splits)[0]) for split in ("train", "validation", "test")) == 9


def test_size_squashes_and_differing_sizes_ask_for_it(tmp_path):
    folder = image_folder(tmp_path / "pets")
    for path in (folder / "dog").iterdir():
        picture(path, size=(16, 12))
    splits = load_splits(str(folder))
    with pytest.raises(DataError, match=r"differ in size: .*dog.*is 16×12, the first is 8×8; pass --image_size"):
        as_tensor("train", splits)
    images, _ = as_tensor("train", splits, size=6)
    assert images.shape[1:] == (3, 6, 6)
    originals = [image for batch, _ in image_batches("train", splits, 5) for image in batch]
    squashed = [resize(pil_to_tensor(image), [6, 6], antialias=True) for image in originals]
    assert torch.equal(images, torch.stack(squashed))


@pytest.mark.parametrize("damage", ["text", "half", "empty", "gone"])
def test_unreadable_file_is_named_or_skipped(tmp_path, damage):
    folder = image_folder(tmp_path / "pets")
    strict = load_splits(str(folder), seed=0)
    lenient = load_splits(str(folder), seed=0, skip_unreadable=True)
    path = Path(sorted(paths(strict, "train"))[3])
    whole = path.read_bytes()
    path.write_bytes({"text": b"not an image", "half": whole[: len(whole) // 2], "empty": b"", "gone": b""}[damage])
    if damage == "gone":
        path.unlink()

    with pytest.raises(DataError, match=rf"{path} .*is not a readable image .*--skip_unreadable"):
        as_tensor("train", strict)
    images, labels = as_tensor("train", lenient)
    assert len(images) == len(labels) == len(lenient.train) - 1
    assert len(lenient.skipped) == 1
    assert str(path) in lenient.skipped[0]
    assert fingerprint("train", lenient) != fingerprint("validation", lenient)  # a missing file is no error here


def test_unreadable_row_of_a_parquet_is_named(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    features = Features({"img": datasets.Image(), "label": ClassLabel(names=["a", "b"])})
    rows = [{"bytes": b"broken", "path": None}] * 8
    datasets.Dataset.from_dict({"img": rows, "label": [0, 1] * 4}, features=features).to_parquet(
        folder / "train.parquet"
    )
    with pytest.raises(DataError, match=r"row 0 of train of rows is not a readable image"):
        as_tensor("train", load_splits(str(folder)))
    lenient = load_splits(str(folder), skip_unreadable=True, cut=False)
    assert list(image_batches("train", lenient, 8)) == [] and len(lenient.skipped) == 8
    assert len(fingerprint("train", lenient)) == 64


def to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_decoded_split_gives_what_as_tensor_gives(tmp_path, workers):
    folder = image_folder(tmp_path / "pets")
    splits = load_splits(str(folder), skip_unreadable=True)
    images, labels = as_tensor("train", splits)
    decoded = DecodedSplit("train", splits, to_tensor)
    loader = torch.utils.data.DataLoader(decoded, batch_size=5, num_workers=workers, collate_fn=collate)
    batches = list(loader)
    assert torch.equal(torch.cat([batch for batch, _, _ in batches]), images)
    assert torch.equal(torch.cat([batch for _, batch, _ in batches]), labels)
    pairs = [pair for batch in image_batches("train", splits, 5) for pair in zip(*batch, strict=True)]
    assert torch.equal(torch.stack([to_tensor(image) for image, _ in pairs]), images)
    assert [label for _, label in pairs] == labels.tolist()

    broken = Path(sorted(paths(splits, "train"))[-2])
    broken.write_bytes(b"not an image")
    batches = list(loader)
    assert sum(len(batch) for batch, _, _ in batches) == len(images) - 1
    [(where, error)] = [failure for _, _, failures in batches for failure in failures]
    skip_or_raise(splits, where, error)
    assert splits.skipped == [where]
    with pytest.raises(DataError, match=rf"{broken} .*--skip_unreadable") as caught:
        skip_or_raise(load_splits(str(folder)), where, error)
    assert "Traceback" not in str(caught.value)


# --- Figures


@pytest.mark.parametrize("n", [2, 37])
def test_figures_are_written_whole(tmp_path, n):
    names = [f"class {i}" for i in range(n)]
    labels = np.arange(4 * n) % n
    images = np.zeros((4 * n, 3, 32, 32), np.uint8)
    images[labels == 1] = np.array([250, 10, 20], np.uint8).reshape(3, 1, 1)
    figures.save_samples(tmp_path / "samples.png", torch.from_numpy(images), torch.from_numpy(labels), names)
    counts = {"train": torch.arange(n), "validation": np.ones(n, int), "test": np.ones(n, int)}
    figures.save_classes(tmp_path / "classes.png", counts, names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.png", "samples.png"]
    with Image.open(tmp_path / "samples.png") as image:
        shown = np.asarray(image.convert("RGB"))
    coloured = (shown == (250, 10, 20)).all(2)
    assert coloured.sum() == 4 * 64 * 64  # four images of class 1, each pixel of theirs as 2 × 2 sharp ones


# --- True CIFAR-10


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory):
    mirror = os.environ.get("HUB_MIRROR")
    if not mirror:
        pytest.skip("HUB_MIRROR is not set: no true CIFAR-10 here")
    cache = datasets.config.HF_DATASETS_CACHE
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cifar10")
    splits = load_splits(f"{mirror}/datasets/uoft-cs/cifar10")
    datasets.config.HF_DATASETS_CACHE = cache
    return splits


def test_cifar10_is_cut_by_class(cifar10):
    counts = class_counts(cifar10)
    assert {split: set(count.tolist()) for split, count in counts.items()} == {"train": {4500}, "validation": {500}}
    names = "airplane automobile bird cat deer dog frog horse ship truck"
    assert cifar10.labels == names.split()
    assert cifar10.image_column == "img"
    assert cifar10.test is None


def test_cifar10_pixels(cifar10):
    train, _ = as_tensor("train", cifar10)
    validation, _ = as_tensor("validation", cifar10)
    assert (train.shape, validation.shape) == ((45000, 3, 32, 32), (5000, 3, 32, 32))
    n = 50000 * 32 * 32  # pixels of the whole train split, whose mean and deviation are known
    halves = [images.permute(1, 0, 2, 3).reshape(3, -1) for images in (train, validation)]
    mean = sum(half.sum(1) for half in halves) / n / 255  # sums of uint8 are int64, exact
    square = sum((half.to(torch.int32) ** 2).sum(1) for half in halves) / n / 255**2
    torch.testing.assert_close(mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-3, rtol=0)
    torch.testing.assert_close((square - mean**2).sqrt(), torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-3, rtol=0)
