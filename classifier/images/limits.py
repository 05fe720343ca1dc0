"""Which image files are trained on, classified and uploaded: the types and bounds that data, predict and app share."""

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from classifier.files import LFS_ADVICE, is_lfs_pointer

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "HEIF", "PPM", "JPEG2000")  # by content; MPO is JPEG
# The files of a folder that count as images, by suffix in lower case.
SUFFIXES = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k"),
}
MAX_BYTES = 30_000_000  # of a file
MAX_MEGAPIXELS = 120  # width × height / 1e6, by the header; phones reach 108
MAX_SIDE = 20_000  # pixels
# A longer strip is squashed to this ratio of the sides. A processor that makes the shorter side 224 pixels makes the
# other one this many times longer.
MAX_ASPECT = 20


def open_image(source: str | io.BytesIO) -> Image.Image:
    """Opens an image file without decoding it.

    Raises:
        ValueError: it has more than `MAX_SIDE` pixels a side or more than `MAX_MEGAPIXELS`, or is a Git LFS pointer.
        one of convert.MALFORMED: it is not of one of `FORMATS`, or its header is damaged.
    """
    try:
        image = Image.open(source, formats=FORMATS)
    except UnidentifiedImageError:
        if is_lfs_pointer(_first_bytes(source)):
            raise ValueError(LFS_ADVICE) from None
        raise
    width, height = image.size
    try:
        if width * height > MAX_MEGAPIXELS * 1_000_000:
            raise ValueError(f"more than {MAX_MEGAPIXELS} megapixels")
        if max(width, height) > MAX_SIDE:
            raise ValueError(f"{width:,} × {height:,} pixels; at most {MAX_SIDE:,} a side")
    except ValueError:
        image.close()
        raise
    return image


def _first_bytes(source: str | io.BytesIO) -> bytes:
    if isinstance(source, io.BytesIO):
        return source.getvalue()[:100]
    with Path(source).open("rb") as file:
        return file.read(100)


def check_bytes(size: int) -> None:
    """Raises ValueError for an empty file, and for one of more than `MAX_BYTES`."""
    if size == 0:
        raise ValueError("empty")
    if size > MAX_BYTES:
        raise ValueError(f"{size / 1e6:.1f} MB; at most {MAX_BYTES / 1e6:g} MB")
