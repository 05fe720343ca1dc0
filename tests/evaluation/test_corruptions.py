"""Corruptions against CIFAR-10-C's definitions, computed here in float64 by colorsys, SciPy and Pillow, and by hand."""

import colorsys
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from classifier.data.loaders import as_tensor
from classifier.data.splits import load_splits
from classifier.errors import DataError
from classifier.evaluation.corruptions import CHUNK, KINDS, corrupt

CASES = [(kind, strength) for kind in KINDS for strength in range(1, 6)]


def pictures(n: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth colours with black, white and grey among them: uint8 (N, 3, H, W)."""
    noise = np.random.default_rng(0).normal(size=(n, 3, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 3, 3), mode="wrap")
    values = 128 + 100 * smooth / smooth.std()
    values[:, :, :4, :4], values[:, :, :4, -4:], values[:, :, -4:, :4] = 0, 255, 90
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


# --- What CIFAR-10-C does to one image, float64 (H, W, 3) in [0, 1] ---------------------------------------------------


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    channels = [ndimage.gaussian_filter(image[:, :, c], sigma, mode="nearest", truncate=4) for c in range(3)]
    return np.stack(channels, axis=2)


def brighter(image: np.ndarray, added: float) -> np.ndarray:
    def pixel(rgb: np.ndarray) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))

    return np.apply_along_axis(pixel, 2, image)


def flatter(image: np.ndarray, factor: float) -> np.ndarray:
    mean = image.mean(axis=(0, 1))
    return mean + factor * (image - mean)


def by_pillow(kind: str, image: np.ndarray, value: float) -> np.ndarray:
    """uint8 (H, W, 3) in and out."""
    image = Image.fromarray(image)
    if kind == "pixelate":
        small = image.resize((int(image.width * value), int(image.height * value)), Image.Resampling.BOX)
        return np.asarray(small.resize(image.size, Image.Resampling.BOX))
    image.save(file := io.BytesIO(), "JPEG", quality=value)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    "kind, reference", [("gaussian_blur", blurred), ("brightness", brighter), ("contrast", flatter)]
)
def test_values_are_those_of_cifar_10_c(kind, reference):
    """At most one level off, where the exact value is a whole number and float64 may fall below it."""
    images = pictures(2)
    for strength, value in enumerate(KINDS[kind].strengths, 1):
        found = corrupt(images, kind, strength).permute(0, 2, 3, 1).numpy()
        exact = [255 * reference(image / 255, value) for image in images.permute(0, 2, 3, 1).numpy()]
        difference = found - np.floor(np.clip(exact, 0, 255))
        assert np.abs(difference).max() <= 1
        whole = np.abs(exact - np.rint(exact)) < 1e-4
        assert (difference[~whole] == 0).all()


@pytest.mark.parametrize("kind", ["jpeg_compression", "pixelate"])
@pytest.mark.parametrize("size", [(32, 32), (48, 37)])
def test_pixels_are_pillows(kind, size):
    images = pictures(2, *size)
    for strength, value in enumerate(KINDS[kind].strengths, 1):
        found = corrupt(images, kind, strength).permute(0, 2, 3, 1).numpy()
        for image, ours in zip(images.permute(0, 2, 3, 1).contiguous().numpy(), found, strict=True):
            np.testing.assert_array_equal(ours, by_pillow(kind, image, value))


def test_noise_has_its_standard_deviation():
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    grey[:, 0, 0, 0] = torch.arange(20)  # images with draws of their own
    for strength, std in enumerate(KINDS["gaussian_noise"].strengths, 1):
        noise = corrupt(grey, "gaussian_noise", strength).double()[:, :, 1:] - 128
        assert noise.std().item() == pytest.approx(255 * std, rel=0.02)
        assert noise.mean().item() == pytest.approx(-0.5, abs=0.4)  # cut, not rounded
        between_images = np.corrcoef(noise.flatten(1).numpy())[~np.eye(20, dtype=bool)]
        assert np.abs(between_images).max() < 0.1


def test_brightness_by_hand():
    """Black becomes grey; a colour keeps hue and saturation until its largest channel is full."""
    colours = torch.tensor([[0, 0, 0], [100, 50, 0], [240, 120, 60]], dtype=torch.uint8)
    images = colours[:, :, None, None].expand(-1, -1, 4, 4)
    found = corrupt(images, "brightness", 4)[:, :, 0, 0]  # + 51
    assert found.tolist() == [[51, 51, 51], [151, 75, 0], [255, 127, 63]]


def test_blur_grows_with_the_side_and_keeps_flat_images():
    for value in (0, 77, 100, 255):
        flat = torch.full((1, 3, 20, 20), value, dtype=torch.uint8)
        assert torch.equal(corrupt(flat, "gaussian_blur", 3), flat)
    for side in (32, 96):
        edge = torch.zeros((1, 3, side, side), dtype=torch.uint8)
        edge[:, :, :, side // 2 :] = 255
        profile = corrupt(edge, "gaussian_blur", 5)[0, 0, 0].double() / 255
        spread = profile.diff()  # the kernel, around the edge
        at = torch.arange(side - 1).double() - (side / 2 - 1)
        assert (spread @ at**2).sqrt().item() == pytest.approx(side / 32, rel=0.03)


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_shift_moves_whole_pixels_both_ways_and_mirrors(size):
    images = pictures(30, *size)
    for strength, fraction in enumerate(KINDS["shift"].strengths, 1):
        d = round(fraction * min(size))
        padded = np.pad(images.numpy(), ((0, 0), (0, 0), (d, d), (d, d)), "symmetric")
        ways = [padded[:, :, y : y + size[0], x : x + size[1]] for y in (0, 2 * d) for x in (0, 2 * d)]
        found = corrupt(images, "shift", strength).numpy()
        went = np.array([[np.array_equal(way[i], found[i]) for way in ways] for i in range(30)])
        assert (went.sum(axis=1) == 1).all()
        assert (went.sum(axis=0) > 0).all()  # each of the four corners


@pytest.mark.parametrize("size", [(32, 32), (30, 48)])
def test_rotation_is_scipys(size):
    images = pictures(8, *size)
    for strength, degrees in enumerate(KINDS["rotation"].strengths, 1):
        found = corrupt(images, "rotation", strength).numpy().astype(float)
        ways = [
            ndimage.rotate(images.numpy(), turn, axes=(3, 2), reshape=False, order=1, mode="reflect", output=float)
            for turn in (degrees, -degrees)
        ]
        off = np.array([np.abs(way - found).max(axis=(1, 2, 3)) for way in ways])
        assert (off.min(axis=0) < 0.6).all()  # rounding is 0.5
        assert set(off.argmin(axis=0)) == {0, 1}  # some one way, some the other


@pytest.mark.parametrize("kind, strength", CASES)
def test_an_image_is_corrupted_alike_in_any_company(kind, strength):
    images = pictures(12, 16, 24)
    before = images.clone()
    found = corrupt(images, kind, strength)
    assert found.dtype == torch.uint8 and found.shape == images.shape and torch.equal(images, before)
    assert not torch.equal(found, images)
    assert torch.equal(corrupt(images, kind, strength), found)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(corrupt(images[order], kind, strength), found[order])
    assert torch.equal(torch.cat([corrupt(part, kind, strength) for part in images.split(5)]), found)
    drawn = kind in ("gaussian_noise", "shift", "rotation")
    assert torch.equal(corrupt(images, kind, strength, seed=1), found) != drawn


def test_more_images_than_a_chunk():
    images = pictures(CHUNK + 1, 8, 8)
    found = corrupt(images, "rotation", 5)
    assert found.shape == images.shape and torch.equal(found[CHUNK:], corrupt(images[CHUNK:], "rotation", 5))


def test_what_cannot_be_corrupted_is_named():
    images = pictures(1)
    with pytest.raises(DataError, match="no corruption 'fog': choose from gaussian_noise, gaussian_blur"):
        corrupt(images, "fog", 1)
    for strength in (0, 6):
        with pytest.raises(DataError, match=f"no strength {strength} of shift"):
            corrupt(images, "shift", strength)
    for wrong in (images / 255, images[0], images[:, :1]):
        with pytest.raises(DataError, match=r"pass torch.uint8 \(N, 3, H, W\)"):
            corrupt(wrong, "shift", 1)


@pytest.mark.skipif("HUB_MIRROR" not in os.environ, reason="needs the true CIFAR-10: set HUB_MIRROR")
def test_each_strength_takes_true_images_further_from_themselves():
    """At strength 1 they stay recognisable: above 20 dB of PSNR where pixels stay in their places."""
    dataset = Path(os.environ["HUB_MIRROR"]) / "datasets/uoft-cs/cifar10"
    images, _ = as_tensor("train", load_splits(str(dataset), splits=("train",), max_train_samples=100))
    for kind in KINDS:
        changes = [corrupt(images, kind, strength).double() - images.double() for strength in range(1, 6)]
        error = [(change / 255).square().mean().item() for change in changes]
        assert error == sorted(error) and error[0] > 0, kind
        assert error[0] < 0.01 or kind in ("shift", "rotation"), kind
