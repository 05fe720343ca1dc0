"""Writing files so that a stopped process leaves the old content or the new, never half."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from classifier.errors import ModelError, first_sentence


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`, with its suffix; it takes `path`'s place if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # One name, so that a killed writer leaves one file at most.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` in UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    """Writes `value` to `path` as indented JSON, whole or not at all. NaN is refused with ValueError."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict:
    """A JSON file of a model's folder; ModelError where there is none, or it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"no {path.name} in {path.parent}: is it a model folder? Train one, or name another") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise ModelError(
            f"{path} is not valid JSON ({first_sentence(error)}): fetch or train the model again"
        ) from error
