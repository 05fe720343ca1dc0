"""Converts any PIL image to upright 8-bit sRGB.

image = to_rgb(row["img"])    # for an image that is in memory and trusted; files go through `workers`
"""

import io
import struct

import numpy as np
from PIL import ExifTags, Image, ImageCms

Box = tuple[float, float, float, float]  # left, upper, right, lower, in pixels

DECOMPRESSION_BOMB = (Image.DecompressionBombWarning, Image.DecompressionBombError)
# What decoders raise for a malformed file.
MALFORMED = (OSError, SyntaxError, ValueError, EOFError, RuntimeError, struct.error, MemoryError, *DECOMPRESSION_BOMB)
_Turn = Image.Transpose
_UPRIGHT = {2: _Turn.FLIP_LEFT_RIGHT, 3: _Turn.ROTATE_180, 4: _Turn.FLIP_TOP_BOTTOM}  # by EXIF orientation
_UPRIGHT |= {5: _Turn.TRANSPOSE, 6: _Turn.ROTATE_270, 7: _Turn.TRANSVERSE, 8: _Turn.ROTATE_90}


def to_rgb(image: Image.Image, *, reduce_to: int | None = None) -> Image.Image:
    """Any image -> a new one of mode RGB: upright by EXIF, alpha over white, 16 bits and floats to 8, ICC to sRGB.

    8-bit RGB without a profile keeps every bit. Of an animation, the frame that the image stands at: the first, after
    opening. `reduce_to`: pixels of the shorter side, to which a larger image is shrunk, the aspect ratio kept. For
    trusted images: it knows no bounds, and a damaged file raises whatever Pillow raises.
    """
    return convert_to_rgb(image, reduced_size(image.size, reduce_to))


def reduced_size(size: tuple[int, int], reduce_to: int | None) -> tuple[int, int]:
    """The size (width, height) that an image is shrunk to, so that its shorter side has at most `reduce_to` pixels."""
    scale = min(1.0, reduce_to / min(size)) if reduce_to else 1.0
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def convert_to_rgb(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    """Converts an image as `to_rgb` does, shrinking the part `box` of it (by default all) to `size` (width, height)."""
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
    image = image.convert("RGB")  # a copy at least, never the caller's own
    image.info = {}  # the orientation and the profile are spent
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 where EXIF is damaged, as browsers do."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except MALFORMED:
        return 1


def _shrink(image: Image.Image, size: tuple[int, int], box: Box | None = None) -> Image.Image:
    # A reducing_gap of 3 averages whole blocks first, and still is "indistinguishable" from one step (Pillow's docs).
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=3.0)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, 32 bits or float -> L.

    Modes I and F don't tell what white is: the least of 1 (F only), 255 and 65,535 that holds all values, or their
    maximum.
    """
    values = np.array(image, dtype=np.float32)  # (H, W)
    np.nan_to_num(values, copy=False, posinf=0.0, neginf=0.0)
    bounds = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}.get(image.mode, (65535.0,))
    white = next((bound for bound in bounds if values.max() <= bound), values.max())
    values *= 255.0 / white
    return Image.fromarray(np.rint(values, out=values).clip(0.0, 255.0, out=values).astype(np.uint8))


def _to_srgb(image: Image.Image, icc_profile: bytes | None) -> Image.Image:
    """By the embedded profile; without one, or with a damaged one, by Pillow's plain conversion, as browsers do."""
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
        return converted or image  # None is only given for a conversion in place
    except ImageCms.PyCMSError:  # a profile for another kind of image
        return image
