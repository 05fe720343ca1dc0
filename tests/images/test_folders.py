"""What counts in a folder: pictures, by suffix or content; other files, which are counted; litter, which is not."""

import os
import warnings
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from classifier.data.loaders import as_tensor
from classifier.data.splits import load_splits
from classifier.data.survey import survey_splits
from classifier.data.unlabelled import Files
from classifier.errors import DataError
from classifier.images.folders import describe_left_out, is_picture, kind_of
from tests.helpers.pictures import encoded, picture

LITTER = [
    *("@eaDir/0.jpg/SYNOPHOTO_THUMB_M.jpg", "cat/@eaDir/0.jpg", "__MACOSX/cat/._0.jpg", "__MACOSX/cat/0.jpg"),
    *(".DS_Store", "cat/.DS_Store", "cat/._0.jpg", "cat/Thumbs.db", "cat/thumbs.db", "desktop.ini", "cat/Desktop.ini"),
    *("cat/.ipynb_checkpoints/0-checkpoint.jpg", ".ipynb_checkpoints/0.jpg", ".hidden/0.jpg", "#recycle/cat/0.jpg"),
    *("$RECYCLE.BIN/0.jpg", "System Volume Information/0.jpg", "cat/0.jpg:Zone.Identifier", ".Trashes/0.jpg"),
]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def pets(root: Path, n: int = 10) -> Path:
    for i in range(2 * n):
        write(root / ("cat", "dog")[i % 2] / f"{i}.jpg", encoded(picture(i, (24, 24)), "JPEG"))
    return root


@pytest.mark.parametrize(
    ("name", "format"),
    [
        *(
            ("0", "JPEG"),
            ("0.JPG", "JPEG"),
            ("0.jpeg", "JPEG"),
            ("0.JFIF", "JPEG"),
            ("0.jpe", "JPEG"),
            ("0.mpo", "MPO"),
        ),
        *(("0.JPG_large", "JPEG"), ("n0_1.dog", "PNG"), ("0.jpg?size=9", "JPEG"), ("0.dib", "DIB"), ("scan.", "PNG")),
        *(("0", "WEBP"), ("0", "HEIF"), ("0.hif", "HEIF"), ("0", "AVIF"), ("0", "TIFF"), ("0", "PPM"), ("0", "GIF")),
        *(("0.apng", "PNG"), ("0", "BMP"), ("0.jpx", "JPEG2000"), ("0.data", "JPEG")),
    ],
)
def test_pictures_are_known_by_suffix_or_content(tmp_path, name, format):
    folder = pets(tmp_path / "pets")
    shade = Image.new("RGB", (24, 24), (0, 255, 0))
    shade.save(folder / "cat" / name, format="BMP" if format == "DIB" else format)
    splits = load_splits(str(folder), splits=("train", "validation", "test"))
    assert sum(len(splits[split]) for split in ("train", "validation", "test")) == 21
    assert not splits.left_out
    images = [as_tensor(split, splits)[0] for split in ("train", "validation", "test")]
    greens = [i for part in images for i in part if i[1].min() > 240 and i[0].max() < 15]
    assert len(greens) == 1, "the picture is read"
    assert str(Path("cat", name)) in [item.file for item in Files(str(folder)).items(0, 100)]


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("notes.txt", b"nothing", ".txt"),
        ("README", b"Python notes", "without suffix"),
        ("P2", b"P2 is a format", "without suffix"),
        ("list", b"BMW, Audi", "without suffix"),
        ("0.RAW", b"\0" * 100, ".raw"),
        ("nothing", b"", "empty"),
        ("nothing.psd", b"", "empty"),
        ("clip.mp4", b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", ".mp4"),
        ("cut", encoded(picture(), "PNG")[:20], "without suffix"),
    ],
)
def test_other_files_are_counted_by_kind(tmp_path, name, content, kind):
    folder = pets(tmp_path / "pets")
    path = write(folder / "cat" / name, content)
    assert not is_picture(path) and kind_of(path) == kind
    splits = load_splits(str(folder))
    assert splits.left_out == {kind: 1}
    assert str(survey_splits(splits, tmp_path / "unreadable.txt")).endswith(f"; 1 file left out: 1 {kind}")
    assert Files(str(folder)).left_out == {kind: 1}


def test_the_preview_in_a_raw_file_is_no_picture(tmp_path):
    picture().save(tmp_path / "0.NEF", format="TIFF")
    assert not is_picture(tmp_path / "0.NEF")


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to("nowhere")
    assert not is_picture(tmp_path / "pipe") and not is_picture(tmp_path / "gone")


def test_an_enormous_picture_is_one(tmp_path):
    write(tmp_path / "0", b"P5 100000 100000 255\n")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert is_picture(tmp_path / "0")


def test_left_out_files_in_words():
    kinds = Counter({".txt": 3, ".psd": 8, "empty": 1})
    assert describe_left_out(kinds) == "12 files left out: 8 .psd, 3 .txt, 1 empty"
    assert describe_left_out({}) == ""
    assert describe_left_out({f".{i}": 1 for i in range(7)}) == "7 files left out: 1 .0, 1 .1, 1 .2, 1 .3, 1 .4 …"


@pytest.mark.parametrize("layout", ["", "train"])
def test_litter_is_neither_a_class_nor_a_split_nor_counted(tmp_path, layout):
    folder = tmp_path / "pets"
    pets(folder / layout)
    at_the_top = [folder / name for name in LITTER if not name.startswith("cat/")]
    for path in [*at_the_top, *(folder / layout / name for name in LITTER)]:
        write(path, encoded(picture(99)) if path.suffix == ".jpg" else b"litter")
    splits = load_splits(str(folder), splits=("train", "validation", "test"))
    assert splits.labels == ["cat", "dog"] and not splits.left_out
    assert sum(len(splits[split]) for split in ("train", "validation", "test")) == 20
    files = Files(str(folder))
    assert len(files) == 20 and not files.left_out


def test_half_of_the_pictures_without_suffix(tmp_path):
    folder = pets(tmp_path / "pets", n=20)
    for i in range(20):
        path = folder / "cat" / f"{2 * i}.jpg"
        path.rename(path.with_suffix(""))
    for name in ("0.svg", "1.svg", "notes.txt"):
        write(folder / "dog" / name, b"<svg>")
    splits = load_splits(str(folder))
    survey = survey_splits(splits, tmp_path / "unreadable.txt")
    counts = {split: len(rows) for split, rows in splits.class_indices.items()}
    assert sum(counts.values()) == 40 - len(load_splits(str(folder), splits=("test",)).test)
    assert str(survey).endswith("; 3 files left out: 2 .svg, 1 .txt")


def test_a_folder_of_other_files_alone_is_an_error(tmp_path):
    write(tmp_path / "pets/cat/notes.txt", b"nothing")
    with pytest.raises(DataError, match="no images in "):
        load_splits(str(tmp_path / "pets"))


def test_a_table_finds_a_file_without_suffix_by_its_name(tmp_path):
    for i in range(20):
        write(tmp_path / f"pictures/{i:02}", encoded(picture(i, (24, 24)), "JPEG"))
    rows = "".join(f"{i:02},{'ab'[i % 2]}\n" for i in range(20))
    (tmp_path / "list.csv").write_text(f"id,label\n{rows}")
    assert load_splits(str(tmp_path / "list.csv"), splits=("train",), cut=False).labels == ["a", "b"]


@pytest.mark.parametrize("name", ["pets", "./pets", "pets.csv", "."])
def test_names_relative_to_the_working_directory(name, tmp_path, monkeypatch):
    folder = pets(tmp_path / ("pets" if name != "." else ""))
    if name.endswith(".csv"):
        rows = [f"{path.relative_to(tmp_path)},{path.parent.name}" for path in folder.rglob("*.jpg")]
        write(tmp_path / name, "\n".join(["file,label", *rows]).encode())
    monkeypatch.chdir(tmp_path)
    splits = load_splits(name, splits=("train", "validation", "test"))
    assert splits.labels == ["cat", "dog"] and sum(len(splits[s]) for s in ("train", "validation", "test")) == 20
