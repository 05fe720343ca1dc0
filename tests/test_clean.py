"""classifier.clean on pictures whose copies and wrong labels are known."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from classifier import clean
from classifier.data import duplicates
from classifier.data.splits import load_splits
from classifier.errors import DataError, ModelError
from classifier.evaluation import predictions
from classifier.evaluation.label_errors import confident_learning
from classifier.reporting import figures
from tests.helpers.models import save_tiny_vit
from tests.helpers.paths import ROOT

HUB_MIRROR = os.environ.get("HUB_MIRROR")


@pytest.fixture(autouse=True)
def own_caches(monkeypatch, tmp_path_factory):
    monkeypatch.setattr(predictions, "CACHE", tmp_path_factory.mktemp("outputs"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.getbasetemp() / "datasets")


def run(monkeypatch, *words) -> None:
    """The command with these words, in this process."""
    monkeypatch.setattr(sys, "argv", ["clean.py", *map(str, words)])
    clean.main()


def table(folder: Path) -> list[dict]:
    with (folder / "clean.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def scene(seed: int, meadow: int | None = None, size=(120, 90)) -> Image.Image:
    """A dozen shapes on a blotchy background, which is that of the scene `meadow` if given."""
    blotches = np.random.default_rng(seed if meadow is None else meadow).integers(60, 200, (4, 6, 3), dtype=np.uint8)
    image = Image.fromarray(blotches).resize(size, Image.Resampling.BICUBIC)
    draw, rng = ImageDraw.Draw(image), np.random.default_rng(seed)
    for _ in range(12):
        x, y, w, h = rng.integers((0, 0, 10, 10), (size[0] - 20, size[1] - 20, 40, 40))
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(256, size=3).tolist()))
    return image


@pytest.fixture
def pictures(tmp_path) -> Path:
    """An image folder. Originals are named by a number; a changed copy has this number and the change in its name."""
    folder = tmp_path / "pictures"
    scenes = {i: scene(i) for i in range(12)}

    def save(image: Image.Image, name: str, **options) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, **options)

    for i, image in scenes.items():
        save(image, f"train/{('cat', 'dog')[i % 2]}/{i}.png")
    save(scenes[0], "test/cat/0_again.bmp")
    save(scenes[1], "train/cat/1_again.png")  # and with another label
    save(scenes[2], "train/cat/2_compressed.jpg", quality=30)
    save(ImageEnhance.Brightness(scenes[3].crop((6, 2, 116, 84))).enhance(1.25), "test/dog/3_cropped.jpg", quality=85)
    save(ImageOps.mirror(scenes[4]), "test/cat/4_mirrored.png")
    save(ImageOps.mirror(scenes[5]).resize((1200, 900), Image.Resampling.BICUBIC), "train/dog/5_large.jpg", quality=50)
    save(scene(12).convert("L"), "test/cat/grey.png")
    save(scene(100, meadow=7), "test/dog/meadow.png")  # merely similar to the picture 7
    save(scene(101, meadow=7), "test/dog/meadow_too.png")
    save(Image.new("RGB", (40, 40), "white"), "test/dog/white.png")  # nothing to compare, and not alike
    save(Image.new("RGB", (40, 40), (250, 250, 250)), "test/cat/white.png")
    (folder / "test/dog/broken.jpg").write_bytes(b"no picture")
    return folder


def test_copies_are_found_and_similar_pictures_are_not(pictures, monkeypatch, capsys, tmp_path):
    run(monkeypatch, pictures, "--duplicates_only", "--output_dir", tmp_path / "out")
    rows = table(tmp_path / "out")
    told = {(row["kind"], *(Path(row[name]).stem for name in ("file", "other_file"))) for row in rows}
    assert told == {
        ("exact", "0", "0_again"),
        ("exact", "1_again", "1"),  # in the order of the files
        ("near", "2", "2_compressed"),
        ("near", "3", "3_cropped"),
        ("mirrored", "4", "4_mirrored"),
        ("mirrored", "5", "5_large"),
        ("unreadable", "broken", ""),
    }
    [twice] = [row for row in rows if "1_again" in row["file"]]
    assert (twice["split"], twice["label"], twice["other_split"], twice["other_label"]) == (
        "train",
        "cat",
        "train",
        "dog",
    )
    assert "identify" in rows[-1]["error"] and rows[-1]["label"] == "dog"

    found = json.loads((tmp_path / "out" / "clean.json").read_text())
    assert found["readable"] == {"train": 15, "test": 8}
    assert found["found"]["exact"] == {"n": 2, "by_split": {"train": 1, "train and test": 1}}
    assert found["with_another_label"] == {"exact": 1, "near": 0, "mirrored": 0}
    splits = load_splits(str(pictures), splits=("test",), cut=False)
    paths = splits.test.cast_column("image", datasets.Image(decode=False))["image"]
    leaked = {Path(paths[i]["path"]).stem for i in found["copies_of_earlier_splits"]["test"]}
    assert leaked == {"0_again", "3_cropped", "4_mirrored"}

    printed = capsys.readouterr().out
    assert "exact: 2 pairs (1 in train, 1 in train and test), 1 with two labels" in printed
    assert "near: 2 pairs (1 in train, 1 in train and test)\n" in printed
    assert "label: not looked for" in printed and "broken.jpg" in printed
    assert "3 of 8 images of test have a copy in an earlier split" in printed
    assert Image.open(tmp_path / "out" / "duplicates.png").width == 1005
    assert not (tmp_path / "out" / "label_errors.png").exists()


def test_swapped_labels_are_found(monkeypatch, capsys, tmp_path):
    """A table with labels of text and one split: red, green and blue pictures, two of which have another's label."""
    rng = np.random.default_rng(0)
    colours = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
    images = [
        Image.fromarray((rng.normal(c, 25, (32, 32, 3))).clip(0, 255).astype(np.uint8))
        for c in colours.values()
        for _ in range(20)
    ]
    labels = [label for label in colours for _ in range(20)]
    labels[3], labels[45] = "blue", "green"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    (tmp_path / "table").mkdir()
    datasets.Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(
        tmp_path / "table/train.parquet"
    )

    words = (
        tmp_path / "table",
        "--label_column",
        "label",
        "--model",
        save_tiny_vit(tmp_path / "vit"),
        "--output_dir",
        tmp_path / "out",
    )
    run(monkeypatch, *words)
    told = {(row["kind"], row["index"], row["label"], row["other_label"]) for row in table(tmp_path / "out")}
    assert told == {("label", "3", "blue", "red"), ("label", "45", "green", "blue")}
    assert "label: 2 suspected (2 in train) of 60, by vit" in capsys.readouterr().out
    assert (tmp_path / "out" / "label_errors.png").exists()

    before = (tmp_path / "out" / "clean.csv").read_bytes()
    run(monkeypatch, *words)  # with features from the cache
    assert (tmp_path / "out" / "clean.csv").read_bytes() == before


def test_few_pictures_of_one_split(monkeypatch, capsys, tmp_path):
    """Fewer than neighbours or folds, and a contact sheet of an earlier run."""
    for i, label in enumerate(("cat", "cat", "dog")):
        (tmp_path / "few" / label).mkdir(parents=True, exist_ok=True)
        scene(min(i, 1)).save(tmp_path / "few" / label / f"{i}.png")
    (tmp_path / "few/cat/0.png").rename(tmp_path / "few/cat/0")
    (tmp_path / "few/cat/notes.txt").write_text("no picture")
    (tmp_path / "out").mkdir()
    for name in ("duplicates.png", "label_errors.png"):
        (tmp_path / "out" / name).write_bytes(b"old")
    model = save_tiny_vit(tmp_path / "vit")
    run(monkeypatch, tmp_path / "few", "--model", model, "--output_dir", tmp_path / "out")
    [row] = table(tmp_path / "out")
    assert (row["kind"], row["label"], row["other_label"]) == ("exact", "cat", "dog")
    said = capsys.readouterr().out
    assert "no two classes have 5 pictures" in said and "1 file left out: 1 .txt" in said
    assert Image.open(tmp_path / "out" / "duplicates.png").width == 1005
    assert not (tmp_path / "out" / "label_errors.png").exists()


def test_errors_name_the_next_step(monkeypatch, tmp_path):
    for name in ("cat/a.jpg", "dog/b.jpg"):
        path = tmp_path / "broken" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="no folder 'nowhere/at/all'"):
        run(monkeypatch, "nowhere/at/all", "--duplicates_only", "--output_dir", tmp_path / "out")
    with pytest.raises(ModelError, match="no model folder no/such/folder: train one"):
        run(monkeypatch, tmp_path / "broken", "--model", "no/such/folder", "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()

    words = (str(tmp_path / "broken"), "--duplicates_only", "--output_dir", str(tmp_path / "out"))
    result = subprocess.run(
        [sys.executable, "-m", "classifier.clean", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "none of the 2 images of broken is readable: check the files. The first is" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_confident_learning_by_hand():
    # The thresholds are 0.6, the mean of 0.9, 0.8 and 0.1, and 0.55, the mean of 0.8, 0.5 and 0.35. The third picture
    # reaches that of class 1 alone, the last that of class 0; the fifth reaches none and counts nowhere.
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.5, 0.5], [0.65, 0.35]])
    labels = np.array([0, 0, 0, 1, 1, 1])
    assert confident_learning(probabilities, labels).tolist() == [-1, -1, 1, -1, -1, 0]
    # Class 2 is hardly ever sure of itself: 0.3 is enough to count for it, which the model does not stand by.
    probabilities = np.array([[0.6, 0.1, 0.3], [0.9, 0.1, 0.0], [0.1, 0.9, 0.0], [0.4, 0.3, 0.3]])
    assert confident_learning(probabilities, np.array([0, 0, 1, 2])).tolist() == [-1, -1, -1, -1]


def test_similarity_finds_position_and_size():
    def pixels(*images: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.stack([duplicates.thumbnail(image) for image in images]))

    large = scene(0, size=(64, 64))
    corner, middle = (
        large.crop(box).resize((64, 64), Image.Resampling.BICUBIC) for box in ((8, 8, 64, 64), (4, 5, 58, 59))
    )
    shifted = Image.fromarray(np.roll(np.asarray(large), 8, axis=1))
    b = pixels(large, corner, middle, shifted, scene(1, size=(64, 64)))
    a = pixels(*[large] * 5)
    scores = duplicates.similarity(a, b)
    assert scores[0] == pytest.approx(1, abs=1e-5)
    assert (scores[1:4] > 0.9).all() and scores[4] < 0.4
    assert duplicates.similarity(b, a) == pytest.approx(scores, abs=1e-5)


def test_earlier_copies_by_hand():
    """Test has 3, an exact copy of 0 of train; 4, near to 1 of train; 5, a copy of 4; 6, near to 3; 7, near to 8 of
    test.
    """
    split = np.array([0, 0, 1, 2, 2, 2, 2, 2, 2])
    first_copy = np.array([0, 1, 2, 0, 4, 4, 6, 7, 8])
    pairs = duplicates.Pairs(np.array([1, 0, 7]), np.array([4, 6, 8]), np.zeros(3, bool), np.ones(3, np.float32))
    assert np.flatnonzero(duplicates.has_earlier_copy(split, first_copy, pairs)).tolist() == [3, 4, 5, 6]


def test_contact_sheet_has_a_row_for_so_many_groups(tmp_path):
    tall, wide = Image.new("RGB", (20, 60), "red"), Image.new("RGB", (60, 20), "blue")
    groups = [(f"pair {i}", [(tall, "train 0.png\ncat"), (wide, "test 1.png\ndog")]) for i in range(4)]
    sizes = []
    for n in (3, 4):
        figures.save_pictures(tmp_path / f"{n}.png", groups[:n], 3, "pairs")
        with Image.open(tmp_path / f"{n}.png") as sheet:
            sizes.append(sheet.size)
            assert {(255, 0, 0), (0, 0, 255)} <= {colour for _, colour in sheet.convert("RGB").getcolors(1 << 20)}
    assert sizes[0][0] == sizes[1][0] == 1005
    assert 150 < sizes[1][1] - sizes[0][1] < 300  # a row more


def test_the_benchmark_is_of_the_embedded_weights():
    for row in json.loads((ROOT / "benchmarks/duplicates.json").read_text())["models"]:
        [measured] = json.loads((ROOT / f"models/{row['model']}/evaluation.json").read_text())["models"]
        assert row["all"]["accuracy"] == measured["accuracy"], (
            f"models/{row['model']} changed: run python -m benchmarks.duplicates"
        )


@pytest.mark.skipif(not HUB_MIRROR, reason="HUB_MIRROR is not set: no true data")
def test_known_duplicates_of_cifar10(monkeypatch, tmp_path):
    """Pairs of test and train that Barz and Denzler list (arXiv:1902.00423) among 300 other images, and nothing
    else.
    """
    known = {6611: 49007, 159: 25768, 7293: 9640}
    splits = load_splits(f"{HUB_MIRROR}/datasets/uoft-cs/cifar10", splits=("train", "test"), cut=False)
    rows = {"train": [*known.values(), *range(200)], "test": [*known, *range(100)]}
    (tmp_path / "part").mkdir()
    for split, indices in rows.items():
        splits[split].select(indices).to_parquet(tmp_path / "part" / f"{split}.parquet")
    run(monkeypatch, tmp_path / "part", "--duplicates_only", "--output_dir", tmp_path / "out")
    told = {
        (row["split"], int(row["index"]), row["other_split"], int(row["other_index"]))
        for row in table(tmp_path / "out")
    }
    assert told == {("train", i, "test", i) for i in range(len(known))}
