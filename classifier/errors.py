"""Errors that a user can cause, and the one line they become at a command's edge."""

import re
import sys
from collections.abc import Callable, Sequence

from classifier import environment

COLOUR_CODE = re.compile(r"\x1b\[[0-9;]*m")


class ClassifierError(Exception):
    """Base of every error that a user can cause. The message names the thing and the next step, in one line."""


class DataError(ClassifierError):
    """A dataset, folder, file or column that can't be used."""


class ImageError(ClassifierError):
    """A file that is not a readable image, or is larger than the bounds."""


class SlowImageError(ImageError):
    """A file whose decoding took longer than the limit."""


class ModelError(ClassifierError):
    """A model folder, checkpoint or revision that can't be used."""


class HubError(ClassifierError):
    """The Hub can't be reached, or refuses. What was to be sent is complete on disk."""


class Stopped(ClassifierError):
    """A run that the user stopped. What it had is saved; the message says how to go on."""


def run(main: Callable[[], None]) -> None:
    """Calls a command's `main`; a `ClassifierError` becomes one line on stderr, exit code 2 (`Stopped`: 130).

    What the operating system refuses at this level (disk, permissions, ports) is told in the same way.
    """
    environment.print_any_text()
    try:
        main()
    except ClassifierError as error:
        print(f"{sys.argv[0]}: {' '.join(str(error).split())}", file=sys.stderr)
        raise SystemExit(130 if isinstance(error, Stopped) else 2) from None
    except OSError as error:  # a full disk, a folder that may not be written to, a port in use
        advice = environment.folder_advice(error) or "check the path, its permissions and the disk's free space"
        print(f"{sys.argv[0]}: {error}: {advice}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def first_line(error: BaseException | str) -> str:
    """The first line of an exception's message, without the codes of a terminal's colours, or its type."""
    return next(iter(COLOUR_CODE.sub("", str(error)).strip().splitlines()), type(error).__name__)


def first_sentence(error: BaseException | str) -> str:
    """The first sentence of `first_line`, without the full stop."""
    return first_line(error).split(". ")[0].rstrip(" .:")


def first_few(names: Sequence[str], most: int = 5) -> str:
    """The first names, and … if there are more."""
    return ", ".join(names[:most]) + (" …" if len(names) > most else "")
