"""Tables of pictures and labels: text stays as it is written, files are found, and what can't be read is named."""

import json
from pathlib import Path

import datasets
import pytest
from datasets import ClassLabel, Features, Value
from PIL import Image

from classifier.data.columns import undecoded
from classifier.data.splits import load_splits
from classifier.errors import DataError
from tests.helpers.pictures import encoded, picture


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path_factory):
    """`datasets` writes its Arrow files beside the test's own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with the pictures img/0.jpg to img/9.jpg."""
    (tmp_path / "img").mkdir()
    for i in range(10):
        (tmp_path / f"img/{i}.jpg").write_bytes(encoded(picture(i, (8, 8)), "JPEG"))
    return tmp_path


def table(folder: Path, labels, header="image,label", row="img/{i}.jpg,{label}", name="list.csv", encoding="utf-8"):
    """A table with one row for each picture; the labels are repeated."""
    rows = [row.format(i=i, label=labels[i % len(labels)]) for i in range(10)]
    (folder / name).write_bytes("\n".join([*([header] if header else []), *rows, ""]).encode(encoding))
    return folder / name


def rows_of(file: Path, **options) -> tuple[list[str], list[tuple[str, str]]]:
    """The labels, and the picture and the label of every row, as they are loaded."""
    splits = load_splits(str(file), cut=False, splits=("train", "validation", "test"), **options)
    cells = undecoded(splits.train, splits.image_column)[splits.image_column]
    labels = [splits.labels[i] for i in splits.class_indices["train"]]
    names = [Path(cell["path"]).relative_to(file.parent).as_posix() for cell in cells]
    return splits.labels, list(zip(names, labels, strict=True))


def expected(labels) -> list[tuple[str, str]]:
    return [(f"img/{i}.jpg", labels[i % len(labels)]) for i in range(10)]


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["dent", "None"], ["None", "dent"]),
        (["NA", "nan", "null", "N/A", "ok"], ["N/A", "NA", "nan", "null", "ok"]),
        (["007", "012"], ["007", "012"]),
        (["7", "007"], ["007", "7"]),
        (["10", "9", "2"], ["2", "9", "10"]),
        (["1e5", "2"], ["2", "1e5"]),
        (["0.5", "10.25", "2"], ["0.5", "2", "10.25"]),
        (["True", "False"], ["False", "True"]),
        (["yes", "no"], ["no", "yes"]),
        (["2024-01-02", "2024-01-01"], ["2024-01-01", "2024-01-02"]),
        ([" cat ", "dog", "cat"], ["cat", "dog"]),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json"])
def test_labels_stay_as_they_are_written(folder, labels, classes, suffix):
    file = table(folder, labels)
    if suffix != "csv":
        cells = [{"image": f"img/{i}.jpg", "label": labels[i % len(labels)]} for i in range(10)]
        file = folder / f"list.{suffix}"
        file.write_text(json.dumps(cells) if suffix == "json" else "\n".join(map(json.dumps, cells)))
    assert rows_of(file) == (classes, expected([label.strip() for label in labels]))


def test_numbers_and_booleans_of_json_and_parquet_become_classes(folder):
    for values, classes in (([10, 9], ["9", "10"]), ([True, False], ["False", "True"])):
        cells = {"image": [f"img/{i}.jpg" for i in range(10)], "label": values * 5}
        (folder / "list.json").write_text(
            json.dumps([dict(zip(cells, row, strict=True)) for row in zip(*cells.values(), strict=True)])
        )
        datasets.Dataset.from_dict(cells).to_parquet(folder / "list.parquet")
        for name in ("list.json", "list.parquet"):
            assert rows_of(folder / name) == (classes, expected([str(value) for value in values]))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_separators_and_encodings(folder, separator, encoding):
    file = table(
        folder,
        ["façade, north", "été"],
        f"image{separator}label",
        "img/{i}.jpg" + separator + '"{label}"',
        name="list.tsv" if separator == "\t" else "list.csv",
        encoding=encoding,
    )
    assert rows_of(file) == (["façade, north", "été"], expected(["façade, north", "été"]))


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("image,label", r"img\{i}.jpg,{label}"),
        ("image,label", r".\img\{i}.jpg,{label}"),
        ("image,label", "{i}.jpg,{label}"),
        ("image,label", "IMG/{i}.JPG,{label}"),
        ("id,breed", "{i},{label}"),
        ("image_id,label,note", "img/{i},{label},-"),
        ("file,url,label", "img/{i}.jpg,https://host/{i}.jpg,{label}"),
        (",image,breed", "{i},img/{i}.jpg,{label}"),
        ("sep=;\nImage;Label", "img/{i}.jpg;{label}"),
        (" image , label ", " img/{i}.jpg , {label} "),
        ("image,label,", "img/{i}.jpg,{label},"),
        ("image,label\n\n,\n", "img/{i}.jpg,{label}\n"),
        ("image,label", "img/{i}.jpg,{label}\nimg/{i}.jpg,{label}"),
    ],
)
def test_pictures_are_found(folder, header, row):
    assert rows_of(table(folder, ["a", "b"], header, row)) == (["a", "b"], expected(["a", "b"]))


def test_pictures_that_are_numbered_alike_in_train_and_test(folder):
    (folder / "img").rename(folder / "train")
    (folder / "test").mkdir()
    (folder / "test/3.jpg").write_bytes(encoded(picture(3), "JPEG"))
    _, rows = rows_of(table(folder, ["a", "b"], "id,label", "{i},{label}"))
    assert [name for name, _ in rows] == [f"train/{i}.jpg" for i in range(10)]
    (folder / "train").rename(folder / "one")
    with pytest.raises(DataError, match=r"3 in .*list\.csv may be .*one/3\.jpg or .*test/3\.jpg: write the path"):
        rows_of(folder / "list.csv")


def test_a_missing_picture_is_left_to_the_survey(folder):
    file = table(folder, ["a", "b"])
    (folder / "img/4.jpg").unlink()
    assert rows_of(file)[1] == expected(["a", "b"])


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        ("", "img/{i}.jpg,{label}", r"has no header: its first row names the picture img/0\.jpg\. Write a first line"),
        ("", "{i},{label}", r"has no header: its first row names the picture 0\."),
        ("image,label", "https://host/{i}.jpg,{label}", r"by URLs, such as https://host/0\.jpg: download them first"),
        ("image,label", "https://host/?id={i},{label}", r"by URLs, such as https://host/\?id=0: download them first"),
        ("image,label", "s3://bucket/{i}.png,{label}", r"by URLs, such as s3://bucket/0\.png: download"),
        ("image,label", r"C:\Users\me\{i}.jpg,{label}", r"absolute paths of Windows, such as C:\\Users\\me\\0\.jpg: "),
        ("image,label", r"\\nas\share\{i}.jpg,{label}", r"absolute paths of Windows, such as \\\\nas\\share\\0\.jpg"),
        ("image,label", "/data/{i}.png,{label}", r"none of the 10 pictures that .* names exists, such as /data/0\.png"),
        ("image,label", "img/{i}.jpg,{label},x", r"line 2 of .*list\.csv has 3 cells, but the header has 2: put cells"),
        ("image,label", 'img/{i}.jpg,"{label}', r"line 3 of .*list\.csv can't be read .*: repair it"),
        ("image label", "img/{i}.jpg {label}", r"its columns are image label; cells are separated by commas, semi"),
        ("image,cat,dog", "img/{i}.jpg,1,0", r"a column of 0 and 1 for each label \(cat, dog\): .*single-label"),
        ("image,label", "img/{i}.jpg,a|{label}", r"'label' of list\.csv has several labels an image, such as 'a\|a'"),
        (
            "image,label",
            "img/{i}.jpg,{label}\nimg/0.jpg,b",
            r"gives .*img/0\.jpg two labels, a and b: the classifiers are single-label",
        ),
    ],
)
def test_what_can_not_be_read_is_named(folder, header, row, message):
    with pytest.raises(DataError, match=message) as caught:
        rows_of(table(folder, ["a", "b"], header, row))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_other_encodings_are_named(folder, encoding):
    with pytest.raises(DataError, match=r"list\.csv is not UTF-8 text \(line \d+\): save it as UTF-8"):
        rows_of(table(folder, ["été", "b"], encoding=encoding))


# --- Several labels an image


def test_labels_that_are_lists(folder):
    cells = [{"image": f"img/{i}.jpg", "label": ["cat", "dog"]} for i in range(10)]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, cells)))
    with pytest.raises(DataError, match=r"'label' of list\.jsonl has several labels an image: .*single-label"):
        rows_of(folder / "list.jsonl")


def test_a_comma_in_a_label_is_a_second_label_only_if_the_parts_are_labels(folder):
    labels = ["tench, Tinca tinca", "crane"]
    assert rows_of(table(folder, labels, row='img/{i}.jpg,"{label}"'))[0] == ["crane", "tench, Tinca tinca"]
    with pytest.raises(DataError, match=r"several labels an image, such as 'cat,dog'"):
        rows_of(table(folder, ["cat", "dog", "cat,dog"], row='img/{i}.jpg,"{label}"'))


@pytest.mark.parametrize(
    ("features", "row"),
    [
        ({"labels": datasets.List(ClassLabel(names=["cat", "dog"]))}, {"labels": [0, 1]}),
        ({"cat": Value("bool"), "dog": Value("bool")}, {"cat": True, "dog": True}),
        ({"cat": Value("int64"), "dog": Value("int64")}, {"cat": 1, "dog": 0}),
    ],
    ids=["lists of classes", "booleans", "zeros and ones"],
)
def test_datasets_with_several_labels_an_image(tmp_path, features, row):
    rows = {name: [value] * 10 for name, value in ({"image": Image.new("RGB", (4, 4))} | row).items()}
    features = Features({"image": datasets.Image()} | features)
    (tmp_path / "multi").mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "multi/train.parquet")
    with pytest.raises(DataError, match=r"multi has several labels an image \(column .*single-label"):
        load_splits(str(tmp_path / "multi"))
    if "labels" in row:
        with pytest.raises(DataError, match=r"'labels' of multi has several labels an image: .*single-label"):
            load_splits(str(tmp_path / "multi"), label_column="labels")
