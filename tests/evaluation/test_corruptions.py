"""Corruptions against CIFAR-10-C's definitions, computed here in float64 by colorsys, SciPy and Pillow, and by hand."""

import colorsys
import io
import math
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
from classifier.evaluation.corruptions import KINDS, _clouds, corrupt

DETERMINISTIC = ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression")
CASES = [(kind, strength) for kind in KINDS for strength in range(1, 6)]


def pictures(n: int, height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth colours with black, white and grey among them: uint8 (N, 3, H, W)."""
    noise = np.random.default_rng(0).normal(size=(n, 3, height, width))
    smooth = ndimage.gaussian_filter(noise, (0, 0, 3, 3), mode="wrap")
    values = 128 + 100 * smooth / smooth.std()
    values[:, :, :4, :4], values[:, :, :4, -4:], values[:, :, -4:, :4] = 0, 255, 90
    return torch.from_numpy(values.clip(0, 255).astype(np.uint8))


# --- What CIFAR-10-C does to one image, float64 (H, W, 3) in [0, 1] ---------------------------------------------------


def brighter(image: np.ndarray, added: float) -> np.ndarray:
    def pixel(rgb: np.ndarray) -> tuple[float, float, float]:
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        return colorsys.hsv_to_rgb(hue, saturation, min(value + added, 1))

    return np.apply_along_axis(pixel, 2, image)


def flatter(image: np.ndarray, factor: float) -> np.ndarray:
    mean = image.mean(axis=(0, 1))
    return mean + factor * (image - mean)


def zoomed(image: np.ndarray, largest: float) -> np.ndarray:
    layers = [image]
    for percent in range(100, round(100 * largest) + 1):
        side = math.ceil(32 / (percent / 100))
        top = (32 - side) // 2
        large = ndimage.zoom(image[top : top + side, top : top + side], (percent / 100, percent / 100, 1), order=1)
        top = (len(large) - 32) // 2
        layers.append(large[top : top + 32, top : top + 32])
    return np.mean(layers, axis=0)


def defocused(image: np.ndarray, radius: float, softness: float) -> np.ndarray:
    disk = np.zeros((5, 5))
    for y in range(-2, 3):
        for x in range(-2, 3):
            disk[2 + y, 2 + x] = x * x + y * y <= radius * radius
    side = math.exp(-1 / (2 * softness**2))
    soft = np.outer([side, 1, side], [side, 1, side])
    kernel = ndimage.convolve(np.pad(disk, 2), soft / soft.sum(), mode="constant")
    return np.stack([ndimage.convolve(image[:, :, c], kernel / kernel.sum(), mode="mirror") for c in range(3)], axis=2)


def by_pillow(kind: str, image: np.ndarray, value: float) -> np.ndarray:
    """uint8 (H, W, 3) in and out."""
    image = Image.fromarray(image)
    if kind == "pixelate":
        small = image.resize((int(image.width * value), int(image.height * value)), Image.Resampling.BOX)
        return np.asarray(small.resize(image.size, Image.Resampling.BOX))
    image.save(file := io.BytesIO(), "JPEG", quality=value)
    return np.asarray(Image.open(file))


@pytest.mark.parametrize(
    "kind, reference",
    [("brightness", brighter), ("contrast", flatter), ("zoom_blur", zoomed), ("defocus_blur", defocused)],
)
def test_values_are_those_of_cifar_10_c(kind, reference):
    """At most one level off, where the exact value is a whole number and float64 may fall below it."""
    images = pictures(2)
    for strength, constants in enumerate(KINDS[kind].strengths, 1):
        found = corrupt(images, kind, strength).permute(0, 2, 3, 1).numpy()
        exact = [255 * reference(image / 255, *constants) for image in images.permute(0, 2, 3, 1).numpy()]
        difference = found - np.floor(np.clip(exact, 0, 255))
        assert np.abs(difference).max() <= 1
        whole = np.abs(exact - np.rint(exact)) < 1e-4
        assert (difference[~whole] == 0).all()


@pytest.mark.parametrize("kind", ["jpeg_compression", "pixelate"])
@pytest.mark.parametrize("size", [(32, 32), (48, 37)])
def test_pixels_are_pillows(kind, size):
    images = pictures(2, *size)
    for strength, (value,) in enumerate(KINDS[kind].strengths, 1):
        found = corrupt(images, kind, strength).permute(0, 2, 3, 1).numpy()
        for image, ours in zip(images.permute(0, 2, 3, 1).contiguous().numpy(), found, strict=True):
            np.testing.assert_array_equal(ours, by_pillow(kind, image, value))


def test_noise_has_its_standard_deviation():
    grey = torch.full((20, 3, 32, 32), 128, dtype=torch.uint8)
    grey[:, 0, 0, 0] = torch.arange(20)  # images with draws of their own
    for strength, (std,) in enumerate(KINDS["gaussian_noise"].strengths, 1):
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


def flat(values: list[int], side: int = 32) -> torch.Tensor:
    """Images of one grey each."""
    return torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, side, side).contiguous()


def test_shot_noise_is_poissons():
    """n photons on average vary by sqrt(n): 100 at white, 25 at a quarter of it."""
    dark, light = (corrupt(flat([grey], 128), "shot_noise", 3)[0].double() / 255 for grey in (64, 200))
    for found, share in ((dark, 64 / 255), (light, 200 / 255)):
        assert found.std().item() == pytest.approx((share / 100) ** 0.5, rel=0.05)
        assert found.mean().item() == pytest.approx(share, abs=0.01)


def test_impulse_noise_is_salt_and_pepper():
    for strength, (share,) in enumerate(KINDS["impulse_noise"].strengths, 1):
        found = corrupt(flat([128], 200), "impulse_noise", strength)
        for value in (0, 255):
            assert (found == value).double().mean().item() == pytest.approx(share / 2, rel=0.1)
        assert ((found == 0) | (found == 128) | (found == 255)).all()
        assert not torch.equal(found[:, 0], found[:, 1])  # each channel on its own


def test_glass_takes_colours_from_beside():
    """Without blur, a pixel of two steps beside an edge keeps its colour, and the border of one pixel does not move."""
    edge = flat([0])
    edge[:, :, :, 16:] = 255
    found = corrupt(edge, "glass_blur", 1)[0, 0]
    assert found[:, 15:17].float().std() > 0  # which side it came from
    assert (found[:, :14] == 0).all() and (found[:, 18:] == 255).all() and torch.equal(found[0], edge[0, 0, 0])


def test_motion_smears_along_one_line_with_weights_that_fall():
    """A bright point becomes a half line of weights exp(-i² / (2 sigma²)), within 45 degrees of the horizontal."""
    point = flat([0])
    point[:, :, 16, 16] = 255
    for strength, (_, sigma) in enumerate(KINDS["motion_blur"].strengths, 1):
        found = corrupt(point, "motion_blur", strength)[0, 0].double() / 255
        weights = np.exp(-(np.arange(19) ** 2) / (2 * sigma**2))
        assert found[16, 16].item() == pytest.approx(1 / weights.sum(), abs=0.01)
        y, x = np.nonzero(found.numpy())
        assert len(set(x)) == len(x) >= 3 and (abs(y - 16) <= abs(x - 16)).all()
        assert (x <= 16).all() or (x >= 16).all()


def test_fog_keeps_the_lightest_value_and_hides_contrast():
    images = pictures(8)
    found = corrupt(images, "fog", 5)
    assert (found.amax(dim=(1, 2, 3)) <= images.amax(dim=(1, 2, 3))).all()
    assert found.double().std() < 0.7 * images.double().std()


def test_clouds_are_smoother_with_a_higher_decay():
    rough, smooth = (_clouds((64, 48), np.random.default_rng(0), decay) for decay in (1.2, 3))
    for clouds in (rough, smooth):
        assert clouds.shape == (64, 48) and clouds.min() >= 0 and clouds.max() <= 1 and clouds.std() > 0.05
    assert np.abs(np.diff(smooth)).mean() < 0.5 * np.abs(np.diff(rough)).mean()


def test_snow_and_frost_only_add_light_to_black():
    black = flat([0])
    snow = corrupt(black, "snow", 1)[0]
    assert torch.equal(snow[0], snow[1]) and snow.double().std() > 3  # white flakes
    frost = corrupt(black, "frost", 5).double().mean(dim=(0, 2, 3))
    assert frost[2] > frost[0] > 20  # bluish


def test_elastic_moves_each_pixel_by_a_few():
    """A vertical ramp tells how far each pixel came."""
    ramp = torch.arange(0, 256, 4, dtype=torch.uint8).view(1, 1, 64, 1).expand(1, 3, 64, 64).contiguous()
    for strength, (_, _, reach) in enumerate(KINDS["elastic_transform"].strengths, 1):
        moved = (corrupt(ramp, "elastic_transform", strength).double() - ramp.double())[0, 0, 12:-12, 12:-12] / 4
        assert 0.1 < moved.abs().mean() < 2 * 3 * reach  # an affine map of points one third apart, at two pixels per 32


def test_what_has_a_size_grows_with_the_image():
    for side in (32, 96):
        edge = flat([0], side)
        edge[:, :, :, side // 2 :] = 255
        spread = (corrupt(edge, "defocus_blur", 5)[0, 0, side // 2].double() / 255).diff()
        at = torch.arange(side - 1).double() - (side / 2 - 1)
        assert (spread @ at**2).sqrt().item() == pytest.approx(0.8 * side / 32, rel=0.15)


@pytest.mark.parametrize("kind, strength", CASES)
def test_an_image_is_corrupted_alike_in_any_company(kind, strength):
    images = pictures(12, 32, 40)
    before = images.clone()
    found = corrupt(images, kind, strength)
    assert found.dtype == torch.uint8 and found.shape == images.shape and torch.equal(images, before)
    assert not torch.equal(found, images)
    assert torch.equal(corrupt(images, kind, strength), found)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(corrupt(images[order], kind, strength), found[order])
    assert torch.equal(torch.cat([corrupt(part, kind, strength) for part in images.split(5)]), found)
    drawn = kind not in DETERMINISTIC
    assert torch.equal(corrupt(images, kind, strength, seed=1), found) != drawn


def test_what_cannot_be_corrupted_is_named():
    images = pictures(1)
    with pytest.raises(DataError, match="no corruption 'shift': choose from gaussian_noise, shot_noise"):
        corrupt(images, "shift", 1)
    for strength in (0, 6):
        with pytest.raises(DataError, match=f"no strength {strength} of fog"):
            corrupt(images, "fog", strength)
    for wrong in (images / 255, images[0], images[:, :1]):
        with pytest.raises(DataError, match=r"pass torch.uint8 \(N, 3, H, W\)"):
            corrupt(wrong, "fog", 1)


@pytest.mark.skipif("HUB_MIRROR" not in os.environ, reason="needs the true CIFAR-10: set HUB_MIRROR")
def test_strengths_change_true_images_more_and_more():
    """At strength 1 they stay recognisable: above 20 dB of PSNR where pixels stay in their places.

    Only the constants of glass, frost and elastic transform do not rise steadily: they change what is done.
    """
    dataset = Path(os.environ["HUB_MIRROR"]) / "datasets/uoft-cs/cifar10"
    images, _ = as_tensor("train", load_splits(str(dataset), splits=("train",), max_train_samples=100))
    for kind in KINDS:
        changes = [corrupt(images, kind, strength).double() - images.double() for strength in range(1, 6)]
        error = [(change / 255).square().mean().item() for change in changes]
        assert error[0] > 0 and (error == sorted(error) or kind in ("glass_blur", "frost", "elastic_transform")), kind
        assert error[0] < 0.01 or kind in ("glass_blur", "frost", "elastic_transform"), kind
