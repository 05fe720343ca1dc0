"""Which files of a folder are pictures, which are other files, and which are not looked at at all."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import pillow_heif
from PIL import Image

from classifier.errors import first_few
from classifier.images.convert import DECOMPRESSION_BOMB, MALFORMED
from classifier.images.limits import FORMATS, SUFFIXES

pillow_heif.register_heif_opener()

# What macOS, Windows, and Synology's and QNAP's disks add to folders and archives, in lower case.
LITTER = {
    *("__macosx", "icon\r", "lost+found"),
    *("thumbs.db", "ehthumbs.db", "desktop.ini", "$recycle.bin", "system volume information"),
    *("@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"),
}


def is_litter(name: str) -> bool:
    """Whether a file or folder is hidden, or one that a system adds to folders and archives; by its name alone."""
    lower = name.lower()
    return name.startswith(".") or lower in LITTER or lower.endswith(":zone.identifier")


def is_picture(path: Path) -> bool:
    """Whether a file is a picture: by its suffix or, if that is no known one of pictures, by how the file begins.

    TIFF needs its own suffix or none, because the raw files of cameras begin like TIFF and hold a small preview.
    """
    suffix = path.suffix.lower()
    if suffix in SUFFIXES:
        return True
    if not path.is_file():  # a pipe, which would have to be waited for, or a link to nothing
        return False
    try:
        with Image.open(path, formats=[name for name in FORMATS if name != "TIFF" or not suffix]):
            return True
    except DECOMPRESSION_BOMB:
        return True
    except MALFORMED:
        return False


def list_files(folder: Path) -> Iterator[Path]:
    """Yields the files under a folder, as relative paths, without litter. Links to folders are followed once."""
    parents = {folder: {folder.resolve()}}  # of each folder to visit: a link may lead back to one of its parents
    for parent, names, files in os.walk(folder, followlinks=True):
        visited, names[:] = parents.pop(Path(parent)), sorted(name for name in names if not is_litter(name))
        for name in list(names):
            path = Path(parent, name)
            target = path.resolve()
            if target in visited:
                names.remove(name)
            else:
                parents[path] = {*visited, target}
        yield from (Path(parent, name).relative_to(folder) for name in files if not is_litter(name))


def kind_of(path: Path) -> str:
    """What a file that is no picture is called in `describe_left_out`: empty, or by its suffix."""
    if path.is_file() and path.stat().st_size == 0:
        return "empty"
    return path.suffix.lower() or "without suffix"


def describe_left_out(kinds: Mapping[str, int]) -> str:
    """How many files are left out, by kind: "12 files left out: 9 .txt, 2 .psd, 1 empty"; "" if there are none."""
    counts = [f"{n:,} {kind}" for kind, n in Counter(kinds).most_common() if n]
    total = sum(kinds.values())
    return f"{total:,} file{'s' * (total != 1)} left out: {first_few(counts)}" if total else ""
