"""Converts any PIL image to upright 8-bit sRGB, for trusted images in memory. Files from users go through `workers`."""

import io
import struct

import numpy as np
from PIL import ExifTags, Image, ImageCms

from classifier.images.limits import MAX_ASPECT

DECOMPRESSION_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)
# The exceptions that decoders raise for a malformed file.
MALFORMED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, MemoryError, *DECOMPRESSION_BOMB)
# EXIF orientation -> the operation that makes the image upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels


def to_rgb(image: Image.Image, *, reduce_to: int | None = None) -> Image.Image:
    """Converts any image to a new one of mode RGB.

    It is upright by EXIF; transparency becomes white, 16 bits and floats become 8 bits, and an ICC profile is converted
    to sRGB. 8-bit RGB without a profile keeps every bit. Of an animation the current frame is converted, which is the
    first one after opening.

    A larger image is shrunk to a shorter side of `reduce_to` pixels, with its aspect ratio kept; a longer strip than
    `MAX_ASPECT` is squashed to that ratio. There are no limits on time or memory, so this is for trusted images.

    Raises:
        one of MALFORMED: the file of the image is damaged.
    """
    return convert_to_rgb(image, reduced_size(image.size, reduce_to))


def reduced_size(size: tuple[int, int], reduce_to: int | None) -> tuple[int, int]:
    """The size (width, height) to which an image is shrunk for a shorter side of at most `reduce_to` pixels.

    A strip whose longer side is more than `MAX_ASPECT` times the shorter one is squashed to that ratio.
    """
    scale = min(1.0, reduce_to / min(size)) if reduce_to else 1.0
    width, height = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return min(width, MAX_ASPECT * height), min(height, MAX_ASPECT * width)


def convert_to_rgb(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """Converts an image as `to_rgb` does. Its part `box`, by default all of it, is shrunk to `size` (width, height)."""
    image.load()
    orientation, icc_profile = _orientation(image), image.info.get("icc_profile")
    if image.mode[0] in "IF":  # I;16, I;16B, I, F
        image = _to_8_bit(image)
    if image.has_transparency_data:
        rgba = _shrink(image if image.mode == "RGBA" else image.convert("RGBA"), size)
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba)
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):  # 1, P, YCbCr, HSV
        image = image.convert("RGB")
    image = _to_srgb(_shrink(image, size, box), icc_profile)
    if orientation in _UPRIGHT:
        image = image.transpose(_UPRIGHT[orientation])
    image = image.convert("RGB")  # a copy, even if nothing has changed so far
    image.info = {}  # the orientation and the profile are applied, and must not be applied again
    return image


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8. It is 1 (upright) if EXIF is damaged, as in browsers."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MALFORMED:
        return 1


def _shrink(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    # A reducing_gap of 3 averages whole blocks first, which Pillow's docs call "indistinguishable" from one step.
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Converts grey of 16 bits, 32 bits or float to mode L.

    Modes I and F don't define the value of white. It is taken as the smallest of 1 (F only), 255 and 65,535 that is not
    below any pixel, or as the largest pixel if all are.
    """
    values = np.array(image, dtype=np.float32)  # (H, W)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    bounds = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    white = next((bound for bound in bounds if values.max() <= bound), values.max())
    values *= 255.0 / white
    return Image.fromarray(np.rint(values, out=values).clip(0.0, 255.0, out=values).astype(np.uint8))


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """Converts an image to sRGB by its embedded profile.

    Without a profile, or with a damaged one, the image stays as it is, and the caller's `convert` is Pillow's plain
    conversion, as in browsers.
    """
    if image.mode == "LAB":  # has no plain conversion
        source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
    elif not icc_profile:
        return image
    else:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(icc_profile))
        except OSError:
            return image
        if source.profile.xcolor_space == "GRAY":
            image = image.convert("L")
        elif source.profile.xcolor_space == "RGB " and image.mode != "CMYK":
            image = image.convert("RGB")
    try:
        converted = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:  # a profile for another kind of image
        return image
    return converted or image  # None is given only for a conversion in place
