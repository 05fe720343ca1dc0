"""Other people's pictures, from their folder to the page: digits, photographs, and a set shaped like Animals-10."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from classifier.reporting import card
from tests.helpers.paths import ROOT
from tests.helpers.running_app import running_app

MIRROR = Path(os.environ.get("HUB_MIRROR", "nowhere"))
PHOTOS, DEIT = MIRROR.parent / "photos", MIRROR / "models/facebook/deit-tiny-patch16-224"
ANIMALS = {
    "cane": "dog",
    "cavallo": "horse",
    "elefante": "elephant",
    "farfalla": "butterfly",
    "gallina": "chicken",
    "gatto": "cat",
    "mucca": "cow",
    "pecora": "sheep",
    "ragno": "spider",
    "scoiattolo": "squirrel",
}


def command(folder: Path, script: str, *words: str | Path, code: int = 0) -> str:
    """What a script says, started in `folder`; its files, and what it caches, stay there."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    result = subprocess.run(
        [sys.executable, ROOT / script, *map(str, words)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert result.returncode == code, result.stdout + result.stderr
    return result.stdout + result.stderr


@pytest.mark.slow
def test_digits_from_a_folder_to_the_page(tmp_path):
    digits = load_digits()
    rows = np.arange(len(digits.target))
    for split, part in zip(
        ("train", "test"), train_test_split(rows, test_size=0.2, stratify=digits.target, random_state=0), strict=True
    ):
        for i in part:
            path = tmp_path / "digits" / split / str(digits.target[i]) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[i] * 255 / 16).round().astype(np.uint8)).save(path)
    said = command(tmp_path, "train.py", "--dataset", "digits", "--no-mirror", "--output_dir", "runs/digits")
    assert "1,437 images, 10 classes, smallest 125 (8), largest 131 (1); median 8×8; squashed to 32×32" in said

    flags = ("--model", "runs/digits", "--dataset", "digits", "--corrupted_samples", "20", "--ood_samples", "20")
    command(tmp_path, "evaluate.py", *flags)
    [measured] = json.loads((tmp_path / "report/evaluation.json").read_text())["models"]
    assert measured["accuracy"] >= 0.98 and measured["confusion_matrix"][0][0] > 30
    assert (tmp_path / "report/report.pdf").exists() and (tmp_path / "report/slides.pptx").exists()
    text = card.render(tmp_path / "runs/digits").text
    assert "digits" in text and "CIFAR" not in text and f"{measured['accuracy']:.2%}" in text

    folder = tmp_path / "app"
    folder.mkdir()
    with running_app([tmp_path / "runs/digits"], folder) as (address, _):
        client = Client(address, verbose=False)
        [model] = client.predict(api_name="/models")
        assert model["name"] == "digits" and model["labels"] == list("0123456789")
        file = next((tmp_path / "digits/test/7").iterdir())
        label, about = client.predict(handle_file(file), top_k=3, api_name="/classify")
        assert label["label"] == "7" and about["model"] == "digits"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs photographs beside HUB_MIRROR")
@pytest.mark.slow
def test_a_few_photographs_train_a_head_and_are_cross_validated(tmp_path):
    words = ("--model", DEIT, "--dataset", PHOTOS, "--folds", "5", "--output_dir", "few")
    said = command(tmp_path, "finetune_vit.py", *words)
    assert "images, 11 classes, smallest" in said and "head alone is trained" in said and "of the others" in said
    run = json.loads((tmp_path / "few/run.json").read_text())
    parts = run["recipe"]["cross_validation"]
    assert len(parts["accuracies"]) == 5 and parts["mean"] > 0.75


@pytest.mark.slow
def test_a_set_shaped_like_animals_10(tmp_path):
    rng = np.random.default_rng(0)
    for c, label in enumerate(ANIMALS):
        folder = tmp_path / "raw-img" / label
        folder.mkdir(parents=True)
        for i in range(12 if label != "elefante" else 6):
            width, height = rng.integers(60, 220, 2)
            base = np.array([25 * c, 255 - 25 * c, (70 * c) % 256])
            pixels = (base + rng.normal(0, 20, (height, width, 3))).clip(0, 255).astype(np.uint8)
            image, suffix = Image.fromarray(pixels), ("jpeg", "jpg", "png")[i % 3]
            if i % 4 == 3:
                image = image.convert({"jpeg": "L", "jpg": "CMYK", "png": "RGBA"}[suffix])
            file = io.BytesIO()
            image.save(file, "PNG" if suffix == "png" else "JPEG")
            (folder / f"OIP-{i} è {c}.{suffix}").write_bytes(file.getvalue())
    (tmp_path / "raw-img/cane/OIP-0 è 0.jpeg").rename(tmp_path / "raw-img/cane/is a JPEG.png")
    (tmp_path / "raw-img/ragno/broken.jpg").write_bytes(b"<html>404</html>")
    (tmp_path / "names.json").write_text(json.dumps(ANIMALS))

    words = ("--dataset", "raw-img", "--label_names", "names.json", "--output_dir", "runs/animals")
    said = command(tmp_path, "train.py", *words, code=2)
    assert "1 of 100 images of raw-img are not readable, listed in runs/animals/unreadable.txt" in said
    assert "ragno/broken.jpg" in (tmp_path / "runs/animals/unreadable.txt").read_text()
    said = command(tmp_path, "train.py", *words, "--skip_unreadable", "--num_train_epochs", "4")
    assert "10 classes, smallest 4 (elephant), largest 10 (horse)" in said and "squashed to 64×64" in said
    run = json.loads((tmp_path / "runs/animals/run.json").read_text())
    assert run["data"]["labels"] == list(ANIMALS.values())

    measure = (
        "--model",
        "runs/animals",
        "--dataset",
        "raw-img",
        "--format",
        "--corrupted_samples",
        "0",
        "--ood_samples",
        "0",
    )
    said = command(tmp_path, "evaluate.py", *measure, "--skip_unreadable", code=2)
    assert "have other labels (only the model has butterfly" in said
    command(tmp_path, "evaluate.py", *measure, "--label_names", "names.json", "--skip_unreadable")
    [measured] = json.loads((tmp_path / "report/evaluation.json").read_text())["models"]
    assert set(measured["per_class"]) == set(ANIMALS.values()) and measured["accuracy"] > 0.5
