"""Photographs that are trained on beside a dataset."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

from classifier import load_predictor
from classifier.errors import DataError
from classifier.evaluation import ood
from classifier.models import logit_scores
from classifier.training.photographs import Photographs
from classifier.training.runtime import seeded_generator
from tests.helpers.models import tiny_vit
from tests.helpers.pictures import COLOURS, noise, write_images
from tests.training.test_finetune import command, read

LABELS = sorted(COLOURS)


def write(folder: Path, counts: dict[str, int]) -> Path:
    """Grey photographs of 30 × 20 pixels: those of the i-th folder are of the value 40 i."""
    for i, (name, n) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for index in range(n):
            Image.new("RGB", (30, 20), (40 * i,) * 3).save(folder / name / f"{index}.png")
    return folder


def test_half_of_a_batch_is_of_none_and_the_labels_are_even(tmp_path):
    """By hand: with 20 blue, 10 red and 10 of none, the shares are a quarter, a quarter and a half."""
    folder = write(tmp_path / "photographs", {"blue": 20, "red": 10, "none": 10})
    photographs = Photographs(str(folder), LABELS, 16, mirror=True, bicubic=True, reduce_to=16)
    assert photographs.describe() == "25 of a label and 8 of none, 7 others held out" and photographs.sources is None
    assert photographs.images.shape == (33, 3, 18, 18)
    assert sorted(photographs.held_out_labels) == [-1, -1, 0, 0, 0, 2, 2]  # those of the lowest digests of names
    values = [image.getpixel((0, 0))[0] for image in photographs.held_out]
    assert values == [{0: 0, 2: 40, -1: 80}[label] for label in photographs.held_out_labels]
    pixels, targets = photographs.batch(4000, 16, seeded_generator(0, "test"))
    assert pixels.shape == (4000, 3, 16, 16)
    expected = {0: [1, 0, 0, 0], 40: [0, 0, 1, 0], 80: [0.25] * 4}  # labels: blue, green, red, yellow
    for value, share in ((0, 0.25), (40, 0.25), (80, 0.5)):
        own = (pixels - value).abs().amax(dim=(1, 2, 3)) < 1
        assert own.float().mean().item() == pytest.approx(share, abs=0.03)
        assert (targets[own] == torch.tensor(expected[value])).all()


def test_a_batch_depends_on_its_generator_alone_and_half_of_it_is_blurred(tmp_path):
    images, labels = noise(20, size=40)
    folder = write_images(tmp_path / "photographs", images, labels, split="")
    photographs = Photographs(str(folder), LABELS, 32, mirror=False, bicubic=False, reduce_to=32)
    batches = [photographs.batch(10, 32, seeded_generator(0, "test", counter))[0] for counter in (1, 1, 2)]
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])
    detail = batches[0].diff(dim=-1).abs().mean(dim=(1, 2, 3))  # what blurring takes from noise
    assert detail[:5].max() < 0.5 * detail[5:].min()


@pytest.mark.parametrize(
    ("counts", "message"),
    [({"violet": 2, "none": 2}, "no labels (violet)"), ({"none": 2}, "no photographs in"), ({}, "no folder")],
    ids=["unknown", "none alone", "absent"],
)
def test_a_folder_that_does_not_fit_is_told(counts, message, tmp_path):
    write(tmp_path / "photographs", counts)
    with pytest.raises(DataError) as raised:
        Photographs(str(tmp_path / "photographs"), LABELS, 16, mirror=True, bicubic=True, reduce_to=16)
    assert message in str(raised.value)


def test_an_unreadable_photograph_is_told_or_left_out(tmp_path):
    folder = write(tmp_path / "photographs", {"blue": 3, "none": 3})
    (folder / "blue/1.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match=r"1\.png, or pass --skip_unreadable"):
        Photographs(str(folder), LABELS, 16, mirror=True, bicubic=True, reduce_to=16)
    photographs = Photographs(str(folder), LABELS, 16, mirror=True, bicubic=True, reduce_to=16, skip_unreadable=True)
    assert photographs.n_labelled + photographs.n_none + len(photographs.held_out) == 5
    assert photographs.describe().endswith(", 1 unreadable left out")
    assert not photographs.images[photographs.targets[:, 0] == 1].any()  # blue ones are of the value 0
    for path in (folder / "blue").iterdir():
        path.write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(DataError, match="no photograph of a label"):
        Photographs(str(folder), LABELS, 16, mirror=True, bicubic=True, reduce_to=16, skip_unreadable=True)


def test_a_photograph_stays_held_out_when_others_are_added(tmp_path):
    """Or a further stage would be tested on what an earlier one was trained on."""

    def held_out() -> set[int]:
        photographs = Photographs(str(folder), LABELS, 16, mirror=True, bicubic=True, reduce_to=16)
        return {image.getpixel((0, 0))[0] for image in photographs.held_out}

    folder = tmp_path / "photographs"
    for value in range(40):
        (folder / "blue").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 20), (value,) * 3).save(folder / f"blue/{value}.png")
    before = held_out()
    for value in range(40, 80):
        Image.new("RGB", (20, 20), (value,) * 3).save(folder / f"blue/{value}.png")
    assert before and before == {value for value in held_out() if value < 40}


def test_a_mistyped_folder_costs_no_earlier_run(tmp_path, capsys):
    dataset = write_images(tmp_path / "data", *noise(8))
    run = tmp_path / "run"
    run.mkdir()
    (run / "run.json").write_text("{}")
    model = tmp_path / "vit"
    tiny_vit(num_labels=4).save_pretrained(model)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(model)
    for flags in (["--photographs", tmp_path / "typo"], ["--teacher", tmp_path / "typo"]):
        with pytest.raises(SystemExit):
            command("--model", model, "--dataset", dataset, "--overwrite_output_dir", "--output_dir", run, *flags)
        assert "typo" in capsys.readouterr().err and (run / "run.json").exists()


def test_photographs_of_none_become_out_of_distribution(tmp_path):
    """Checkerboards in colours of the labels are unknown to a model that has seen others of them as `none`."""
    dataset = write_images(tmp_path / "data", *noise(48))
    write_images(dataset, *noise(16, seed=1), split="validation")
    write_images(tmp_path / "photographs", *noise(8), split="")
    (tmp_path / "photographs/none").mkdir()
    boards = [checkerboard(colour, seed) for seed in range(10) for colour in COLOURS.values()]
    for index, board in enumerate(boards[:20]):
        board.save(tmp_path / f"photographs/none/{index}.png")
    (tmp_path / "photographs/SOURCES.txt").write_text("Boards by Ann Example,\nCC BY 4.0\n")
    model = tmp_path / "vit"
    tiny_vit(num_labels=4).save_pretrained(model)
    ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(model)
    words = ["--model", model, "--dataset", dataset, "--learning_rate", "0.005", "--bf16", "false"]
    words += ["--num_train_epochs", "15", "--per_device_train_batch_size", "16", "--train_sizes", "1:1"]
    aurocs = {}
    for name, more in (("without", []), ("with", ["--photographs", tmp_path / "photographs"])):
        command(*words, *more, "--output_dir", tmp_path / name)
        predictor = load_predictor(tmp_path / name)
        images = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in noise(16, seed=2)[0]]
        of_labels, of_none = (logit_scores.energy(predictor.logits(each)) for each in (images, boards[20:]))
        aurocs[name] = ood.auroc(of_labels, of_none)
    assert aurocs["with"] > 0.99 > aurocs["without"] + 0.1, aurocs
    recipe = read(tmp_path / "with")["recipe"]
    assert recipe["photographs"] == "8 of a label and 17 of none, 3 others held out"
    assert recipe["photographs_from"] == "Boards by Ann Example, CC BY 4.0"
    assert "| `photographs_from` | Boards by Ann Example, CC BY 4.0 |" in (tmp_path / "with/README.md").read_text()
    assert read(tmp_path / "without")["images_seen"] == read(tmp_path / "with")["images_seen"]


def checkerboard(colour: tuple[int, int, int], seed: int) -> Image.Image:
    """Squares of 5 pixels in a colour and in black, with noise."""
    rng = np.random.default_rng(seed)
    squares = (np.indices((20, 20)) // 5).sum(axis=0) % 2
    pixels = squares[..., None] * np.array(colour) + rng.normal(0, 30, (20, 20, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
