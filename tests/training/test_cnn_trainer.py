"""The scratch CNN's training loop, on a handful of generated images."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import train as script
from classifier import runs
from classifier.data.survey import channel_mean_std
from classifier.errors import ModelError, Stopped
from classifier.models.cnn import CifarCnnConfig, CifarCnnForImageClassification, average_views
from classifier.training.augment import CONTRAST, NOISE, cutout, degrade, flip_by_turns, shift
from classifier.training.checkpoint import CHECKPOINT, Progress
from classifier.training.cnn_recipe import CnnRecipe, RunOptions
from classifier.training.cnn_trainer import CnnTrainer, validate
from classifier.training.muon import Muon, orthogonalize
from tests.helpers.pictures import colours
from tests.helpers.training import saved_weights, training_command, wait_for_epochs

TINY = CnnRecipe(sizes=((2, 16), (2, 20)), widths=(8, 16), depths=(2, 3), batch_size=32, chunk_size=16, cutout=4)
STATISTICS = {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}


def tiny_model(recipe: CnnRecipe = TINY) -> CifarCnnForImageClassification:
    torch.manual_seed(0)
    return CifarCnnForImageClassification(CifarCnnConfig(widths=recipe.widths, depths=recipe.depths, num_labels=4))


def fit(model, train, validation, recipe: CnnRecipe, output_dir: Path, **options) -> Progress:
    return CnnTrainer(model, train, validation, recipe, RunOptions(output_dir, **STATISTICS, **options)).train()


def test_mean_and_std_by_hand():
    images = torch.tensor([0, 0, 255, 255], dtype=torch.uint8).view(1, 1, 2, 2)
    assert channel_mean_std(images) == ([0.5], [0.5])


@pytest.mark.parametrize(("n", "batch"), [(2, 2), (12, 12), (16, 16), (100, 16), (1000, 50), (50_000, 1000)])
def test_a_batch_is_never_larger_than_the_data(monkeypatch, n, batch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--image_size", "32"])
    args = script.parse_args()
    assert script.recipe_for(args, n).batch_size == batch
    args.per_device_train_batch_size = n + 1
    with pytest.raises(ModelError, match=f"a batch of {n + 1} is more than the {n} training images"):
        script.recipe_for(args, n)


def test_flips_take_turns():
    images = torch.arange(4.0).view(2, 1, 1, 2)
    first = torch.tensor([True, False])
    even, odd = (flip_by_turns(images, first, epoch) for epoch in (0, 1))
    assert even[:, 0, 0].tolist() == [[1, 0], [2, 3]]
    assert odd[:, 0, 0].tolist() == [[0, 1], [3, 2]]


def test_shift_moves_each_image_by_its_own_whole_pixels():
    images = torch.arange(64 * 36.0).view(64, 1, 6, 6)
    moved = shift(images, 1, torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    seen = set()
    for image, candidates in zip(moved, padded, strict=True):
        places = [(y, x) for y in range(3) for x in range(3) if torch.equal(image, candidates[:, y : y + 6, x : x + 6])]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) == 9


def test_cutout_blanks_one_square_an_image():
    holes = cutout(torch.ones(200, 3, 9, 9), 3, torch.Generator().manual_seed(0)) == 0
    assert holes[:, :1].expand_as(holes).equal(holes)  # the same place in every channel
    areas = holes[:, 0].sum(dim=(1, 2))
    assert set(areas.tolist()) == {4, 6, 9}  # a corner, an edge, whole
    assert holes[:, 0].any(dim=0).all()  # anywhere


def test_degrade_changes_a_share_of_the_images_in_three_ways():
    """An image whose left half is black: noise alone makes rows differ, lower contrast alone keeps two values."""
    image = torch.full((3, 8, 8), 200, dtype=torch.uint8)
    image[..., :4] = 0
    images = degrade(image.expand(3000, 3, 8, 8), 0.6, torch.Generator().manual_seed(0))
    same = (images == image).flatten(1).all(dim=1)
    noisy = (images != images[:, :, :1]).flatten(1).any(dim=1)
    flat = ~noisy & ~same & (images[..., :4] == images[..., :1]).flatten(1).all(dim=1)
    blurred = ~noisy & ~same & ~flat
    shares = [group.float().mean().item() for group in (same, noisy, flat, blurred)]
    assert shares == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=0.03)
    left, right = images[flat, 0, 0, 0].int(), images[flat, 0, 0, -1].int()
    assert (left + right).unique().tolist() == [200]  # the mean is the image's
    assert left.max() == round(100 * (1 - CONTRAST)) and left.min() <= 2
    columns = images[blurred, 0, 0].int()
    assert (columns.diff(dim=1) >= 0).all() and (columns[:, 0] == 0).all()  # an edge that is less sharp
    deviations = (images[noisy].float() - image)[..., 4:].clamp(max=0).square().mean(dim=(1, 2, 3)).sqrt()
    assert 0 < deviations.max() < 255 * NOISE


def test_muon_orthogonalizes():
    """Newton-Schulz with Muon's coefficients takes singular values to around 1; the singular vectors stay."""
    matrix = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    result = orthogonalize(matrix, steps=5)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.6 and values.max() < 1.3
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    off_diagonal = u.T @ result @ vh.T - torch.diag((u.T @ result @ vh.T).diag())
    assert off_diagonal.abs().max() < 0.05
    assert torch.allclose(orthogonalize(matrix.T, steps=5), result.T, atol=1e-2)


def test_muon_step_by_hand():
    """One step from a kernel whose gradient has one singular value: the weight is scaled to norm √out, then moved."""
    weight = torch.nn.Parameter(torch.full((4, 1, 1, 1), 3.0))
    weight.grad = torch.tensor([1.0, 0, 0, 0]).view(4, 1, 1, 1)
    Muon([weight], lr=0.1, momentum=0.6).step()
    x = 1.0
    for _ in range(3):  # the iteration on a single singular value
        x = 3.4445 * x - 4.7750 * x**3 + 2.0315 * x**5
    assert weight.flatten().tolist() == pytest.approx([1 - 0.1 * x, 1, 1, 1], abs=0.01)


def test_views_are_averaged_as_probabilities_by_hand():
    """Two views of sure and opposite opinion make an unsure one, whose logsumexp is the mean of theirs."""
    views = torch.log(torch.tensor([[[8.0, 2.0]], [[1.0, 4.0]]]))  # 80% and 20%, of logsumexp log 10 and log 5
    merged = average_views(views)
    torch.testing.assert_close(merged.softmax(dim=-1), torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(merged.logsumexp(dim=-1), torch.log(torch.tensor([50.0])) / 2)
    two, four = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[[5.0, 2.0]]])  # of six, shifted ones count half
    six = average_views(torch.cat([two.expand(2, 1, 2), four.expand(4, 1, 2)]))
    torch.testing.assert_close(six, average_views(torch.cat([two, four])))


@pytest.mark.parametrize("views", [1, 2, 6])
def test_the_views_are_the_image_mirrored_and_shifted(views):
    model = tiny_model()
    model.config.views = views
    pixels = torch.randn(2, 3, 20, 20)
    found = model.eval().forward_views(pixels)
    assert len(found) == views
    torch.testing.assert_close(found[0], model.forward_view(pixels))
    torch.testing.assert_close(model(pixels).logits, average_views(found))
    if views > 1:
        torch.testing.assert_close(found[1], model.forward_view(pixels.flip(-1)))
    if views == 6:
        padded = torch.nn.functional.pad(pixels, (1, 1, 1, 1), mode="reflect")
        torch.testing.assert_close(found[5], model.forward_view(padded[..., 2:, 2:].flip(-1)))


def test_sizes_follow_progress():
    recipe = CnnRecipe(sizes=((4, 24), (2, 28), (2, 32)))
    assert [recipe.size_at(p / 8) for p in range(8)] == [24] * 4 + [28] * 2 + [32] * 2
    assert recipe.for_epochs(16).sizes == ((8, 24), (4, 28), (4, 32))


def test_overfits_one_batch(tmp_path):
    images, _ = colours(32)
    data = images, torch.arange(32) % 4  # labels that the pixels do not tell: only memory can
    recipe = replace(TINY, sizes=((250, 20),), shift=0, cutout=0, label_smoothing=0, learning_rate=0.1)
    model = tiny_model(recipe)
    progress = fit(model, data, data, recipe, tmp_path)
    assert progress.history[-1]["train_loss"] < 0.3 < 1 < progress.history[0]["train_loss"]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == progress.history


def test_the_first_stage_learns_until_it_is_frozen(tmp_path):
    learnt = {}
    for share in (0.0, 0.5):
        model, before = tiny_model(), tiny_model().state_dict()
        data = colours(64)
        fit(model, data, data, replace(TINY, freeze_from=share), tmp_path / str(share))
        learnt[share] = {name for name, tensor in model.named_parameters() if not tensor.equal(before[name])}
    first = {f"stages.0.{name}" for name in ("convs.0.weight", "convs.1.weight", "norms.0.bias", "norms.1.bias")}
    assert first <= learnt[0.5] and learnt[0.0] == learnt[0.5] - first


def test_a_part_of_one_image_passes_batch_norm(tmp_path):
    """At 16 pixels the last feature map of three stages has one pixel, which has no variance within one image."""
    recipe = replace(TINY, sizes=((1, 16),), widths=(8, 8, 8), depths=(2, 2, 2), batch_size=3, chunk_size=1, cutout=0)
    data = colours(9)
    progress = fit(tiny_model(recipe), data, data, recipe, tmp_path)
    assert progress.step == 3 and np.isfinite(progress.history[0]["validation_loss"])


def test_early_stop_keeps_the_best_weights(tmp_path):
    images, labels = colours(64)
    noise = torch.randint(256, (40, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    validation = noise, torch.arange(40) % 4  # nothing to learn: accuracy does not rise for long
    recipe = replace(TINY, sizes=((40, 20),))
    model = tiny_model()
    progress = fit(model, (images, labels), validation, recipe, tmp_path, patience=3)
    assert len(progress.history) == progress.improved_epoch + 3 < 40 and progress.best_epoch >= progress.improved_epoch
    again = validate(model, validation, **STATISTICS, bf16=False)
    assert again["validation_accuracy"] == progress.best_accuracy


def test_non_finite_loss_stops_and_says_where(tmp_path):
    recipe = replace(TINY, bias_learning_rate=1e30, head_learning_rate=1e30)
    with pytest.raises(ModelError, match=r"the loss is (nan|inf) at step \d+, epoch 1: .*--learning_rate"):
        fit(tiny_model(), colours(128), colours(32), recipe, tmp_path)
    assert not (tmp_path / CHECKPOINT).exists()  # nothing bad was saved


@pytest.mark.parametrize("call", [6, 8, 32], ids=["in an epoch", "in an epoch's last step", "in the last step of all"])
def test_resume_equals_not_stopping_at_any_step(tmp_path, call):
    """A signal at the given forward pass (two a step, four steps an epoch, four epochs)."""
    data, validation = colours(128), colours(64, seed=1)
    whole, stopped, resumed = tiny_model(), tiny_model(), tiny_model()
    expected = fit(whole, data, validation, TINY, tmp_path / "whole")

    calls = iter(range(1, 1000))
    stopped.register_forward_pre_hook(lambda *_: os.kill(os.getpid(), signal.SIGTERM) if next(calls) == call else None)
    if call < 32:
        with pytest.raises(Stopped, match=r"stopped after step [34] of 16 and saved"):
            fit(stopped, data, validation, TINY, tmp_path / "part")
        found = fit(resumed, data, validation, TINY, tmp_path / "part", resume=tmp_path / "part" / CHECKPOINT)
    else:  # nothing is left to do: the run ends well
        found, resumed = fit(stopped, data, validation, TINY, tmp_path / "part"), stopped
    assert same(resumed.state_dict(), whole.state_dict())
    names = ("epoch", "step", "validation_loss", "validation_accuracy")
    assert [[line[n] for n in names] for line in found.history] == [
        [line[n] for n in names] for line in expected.history
    ]
    assert (found.best_epoch, found.best_accuracy) == (expected.best_epoch, expected.best_accuracy)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def finished(colours_dir, tmp_path_factory):
    """A run that was never stopped."""
    output_dir = tmp_path_factory.mktemp("finished")
    subprocess.run(training_command(colours_dir, output_dir), check=True, capture_output=True, text=True)
    return output_dir


@pytest.mark.parametrize(
    "how",
    [signal.SIGTERM, *(pytest.param(s, marks=pytest.mark.slow) for s in (signal.SIGKILL, signal.SIGINT))],
    ids=lambda s: s.name,
)
def test_resume_equals_not_stopping(colours_dir, finished, tmp_path, how):
    with subprocess.Popen(training_command(colours_dir, tmp_path), stderr=subprocess.PIPE, text=True) as process:
        wait_for_epochs(process, tmp_path, 2)
        time.sleep(0.05)  # into the next epoch
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert process.returncode == 130
        assert f"saved in {tmp_path}" in errors and "--resume_from_checkpoint last" in errors
    assert not (tmp_path / "model.safetensors").exists()

    refused = subprocess.run(training_command(colours_dir, tmp_path), capture_output=True, text=True)
    assert refused.returncode == 2 and "--resume_from_checkpoint last" in refused.stderr

    detour = tmp_path / "x" / ".."  # another name of the same folder: its checkpoint is no other run's
    detour.parent.mkdir()
    flags = ["--overwrite_output_dir", "--resume_from_checkpoint", str(detour)]
    subprocess.run(training_command(colours_dir, tmp_path, *flags), check=True, capture_output=True)
    assert same(saved_weights(tmp_path), saved_weights(finished))
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
def test_another_seed_gives_other_weights(colours_dir, finished, tmp_path):
    subprocess.run(training_command(colours_dir, tmp_path, "--seed", "1"), check=True, capture_output=True)
    assert not same(saved_weights(tmp_path), saved_weights(finished))


@pytest.mark.slow
def test_checkpoint_errors_name_the_next_step(colours_dir, tmp_path):
    def message(*flags: str) -> str:
        result = subprocess.run(training_command(colours_dir, tmp_path, *flags), capture_output=True, text=True)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        return result.stderr

    assert "leave out --resume_from_checkpoint" in message("--resume_from_checkpoint", "last")
    assert "not above 0" in message("--patience", "0")
    assert "pass 16 or more" in message("--image_size", "8")
    with subprocess.Popen(training_command(colours_dir, tmp_path), stderr=subprocess.DEVNULL) as process:
        wait_for_epochs(process, tmp_path, 1)
        process.send_signal(signal.SIGTERM)
    assert "seed 0 (now 5)" in message("--resume_from_checkpoint", "last", "--seed", "5")
    checkpoint = tmp_path / CHECKPOINT
    assert "train data" in message("--resume_from_checkpoint", "last", "--max_train_samples", "100")
    os.truncate(checkpoint, checkpoint.stat().st_size // 2)
    assert "is damaged" in message("--resume_from_checkpoint", "last")


def test_finished_folder_has_what_a_reader_needs(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "preprocessor_config.json", "cnn.py", "README.md"),
        *("run.json", "metrics.jsonl", "curves.png", "samples.png", "classes.png"),
    }
    run = json.loads((finished / "run.json").read_text())
    assert run["settings"]["seed"] == 0 and run["command"].startswith("train.py --dataset")
    assert run["validation"]["accuracy"] > 0.9
    assert json.loads((finished / "config.json").read_text())["dtype"] == "float32"
    assert saved_weights(finished)["head.weight"].dtype == torch.float16
    assert (finished / "model.safetensors").stat().st_mode & 0o044 == 0o044  # others may read it


@pytest.mark.slow
def test_a_second_run_does_not_inherit_from_the_first(colours_dir, finished, tmp_path):
    """--overwrite_output_dir removes every file about the earlier weights; without it, nothing is touched. Checkpoints
    of the other script stay.
    """
    copy = tmp_path / "run"
    shutil.copytree(finished, copy)
    (copy / "checkpoint-5").mkdir()
    measured = [copy / "evaluation.json", copy / "timing.json"]
    for path in measured:
        path.write_text("{}")
    refused = subprocess.run(training_command(colours_dir, copy), capture_output=True, text=True)
    assert refused.returncode == 2 and "holds a finished run" in refused.stderr
    assert same(saved_weights(copy), saved_weights(finished)) and all(path.exists() for path in measured)
    mistyped = training_command(tmp_path / "nowhere", copy, "--overwrite_output_dir")
    assert subprocess.run(mistyped, capture_output=True).returncode == 2 and all(path.exists() for path in measured)
    subprocess.run(
        training_command(colours_dir, copy, "--overwrite_output_dir", "--seed", "1"), check=True, capture_output=True
    )
    assert not same(saved_weights(copy), saved_weights(finished)) and not any(path.exists() for path in measured)
    assert (copy / "checkpoint-5").is_dir()


def test_a_stage_goes_on_from_an_earlier_ones_weights(colours_dir, finished, tmp_path):
    flags = ["--init_from", str(finished), "--num_train_epochs", "1", "--learning_rate", "0.001"]
    subprocess.run(training_command(colours_dir, tmp_path, *flags), check=True, capture_output=True)
    first = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert first["train_accuracy"] > 0.8  # it did not start from scratch
    parent = json.loads((tmp_path / "run.json").read_text())["parent"]
    assert parent["command"] == json.loads((finished / "run.json").read_text())["command"]
    assert len(parent["model_sha256"]) == 64


def test_command_to_resume_is_the_one_given():
    argv = ["train.py", "--resume_from_checkpoint", "old", "--dataset", "my pictures", "--overwrite_output_dir"]
    assert runs.from_the_start(["t.py", "--resume_from_checkpoint", "my runs/a"]) == ["t.py"]
    assert runs.from_the_start(["t.py", "--resume_from_checkpoint=my runs/a", "--seed", "1"]) == [
        "t.py",
        "--seed",
        "1",
    ]
    assert runs.command_to_resume(argv) == "train.py --dataset 'my pictures' --resume_from_checkpoint last"
