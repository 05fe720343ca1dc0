"""Checks the arguments of a call before gradio sees them.

Threats: gradio logs a traceback for almost every argument of a wrong type, downloads files that are given by URL
whatever their size, and keeps all arguments with the session.
"""

import os
import re
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from gradio import FileData
from pydantic import ValidationError

from space import cleanup
from space.gradio_internals import Argument, Functions

MAX_FILES = 500  # in a call
MAX_TEXT = 4096  # characters of an argument
MAX_NAME = 255  # bytes of the name of a file on the disk; characters of a name that is shown
FILE_URL = "gradio_api/file="  # with a path: the URL of a file, relative to that of the page
FILE_FORMAT = 'send {"path": what /gradio_api/upload answered, "meta": {"_type": "gradio.FileData"}}'


class Refused(Exception):
    """A request is refused. The message is for its sender; `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 422):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Uploads:
    """Which files a call may name."""

    folder: Path
    hosts: Container[str]  # a URL with one of these, as `host_of` gives them, is one of this app's

    def path_of(self, url: str) -> str | None:
        """The path in a URL of this app's files, absolute or relative; None for any other URL. Nothing is fetched."""
        try:
            parts = urlsplit(url.strip())
        except ValueError:
            return None
        _, has_path, path = parts.path.partition(FILE_URL)
        is_own = parts.scheme in ("", "http", "https") and (not parts.netloc or host_of(parts.netloc) in self.hosts)
        return unquote(path) if has_path and is_own else None


def host_of(address: str) -> str:
    """The host and port of a URL or header in lower case, without the default ports, so that they can be compared."""
    return re.sub(r":(80|443)?$", "", address.strip().lower())


def check_call(path: str, content: object, functions: Functions, uploads: Uploads) -> None:
    """Raises Refused for a call of an unknown function, or with wrong arguments.

    In `content`, the URL of an upload is replaced by its path.

    Args:
        path: of the request: /gradio_api/call/…, queue/…, run/… or api/….
        content: the JSON of its body. gradio itself refuses one that is no object, or has no list "data".
        functions: the arguments of all functions that can be called.
        uploads: which files the call may name.
    """
    if not isinstance(content, dict):
        return
    route, _, called = path.removeprefix("/gradio_api/").strip("/").partition("/")
    has_names = route == "call" and called.startswith("v2/")  # arguments by name, in place of the list
    called = called.removeprefix("v2/")
    if route != "call" and content.get("fn_index") is not None:
        called = content["fn_index"]
    arguments = functions.get(called) if type(called) in (str, int) else None
    if arguments is None:
        raise Refused("no such endpoint: /gradio_api/info lists them", 404)
    values = in_order(content, arguments) if has_names else content.get("data")
    if not isinstance(values, list):
        return
    if len(values) < len(arguments):
        names = ", ".join(argument.name for argument in arguments)
        raise Refused(f"data has {len(values)} of {len(arguments)} values ({names}): send null for a default")
    for argument, value in zip(arguments, values, strict=False):
        check_value(argument, value, uploads)


def in_order(named: dict, arguments: Sequence[Argument]) -> list:
    """Arguments given by name as a list, None for a default. Raises Refused for a missing or an unknown name."""
    names = [argument.name for argument in arguments]
    if not named.keys() <= {*names, "oauth_token"}:
        raise Refused(f"it takes {', '.join(names) or 'nothing'}, and nothing else")
    for argument in arguments:
        if argument.is_required and argument.name not in named:
            raise Refused(f"{argument.name}: missing")
    return [named.get(name) for name in names]


def check_value(argument: Argument, value: object, uploads: Uploads) -> None:
    """Raises Refused for a value of a wrong type. Whether it accepts the value is checked by the function itself."""
    if value is None:
        return
    if argument.files == "many":
        if not isinstance(value, list):
            raise Refused(f"{argument.name}: not a list of files: of each, {FILE_FORMAT}")
        if len(value) > MAX_FILES:
            raise Refused(f"{len(value):,} files: at most {MAX_FILES} in a call")
        for i, file in enumerate(value):
            check_file(f"{argument.name}[{i}]", file, uploads)
    elif argument.files:
        check_file(argument.name, value, uploads)
    elif isinstance(value, dict | list):
        raise Refused(f"{argument.name}: neither text nor number")
    elif isinstance(value, str) and len(value) > MAX_TEXT:
        raise Refused(f"{argument.name}: {len(value):,} characters, at most {MAX_TEXT:,}")


def check_file(name: str, value: object, uploads: Uploads) -> None:
    """Raises Refused unless the value is gradio's FileData of an upload, whose file may have been deleted since.

    The URL of an upload, which gradio's tool for MCP returns, is replaced by its path.
    """
    if not isinstance(value, dict) or not isinstance(value.get("meta"), dict):
        raise Refused(f"{name}: not a file: {FILE_FORMAT}")
    try:
        file = FileData.model_validate(value, context={"validate_meta": True})
    except ValidationError:
        raise Refused(f"{name}: not a file: {FILE_FORMAT}") from None
    folder, path = uploads.folder.absolute(), uploads.path_of(file.path)
    if path is not None and is_upload(Path(path), folder):
        value |= {"path": path, "url": None, "orig_name": Path(path).name}  # gradio_client takes it from the URL
        return
    if file.path.strip().lower().startswith(("http://", "https://")):
        raise Refused(
            f"{name}: an image given by URL: download it, then send the file "
            "(over MCP: upload it with the tool upload_file_to_gradio, and pass the URL that this returns)"
        )
    if not is_upload(Path(file.path).absolute(), folder):
        raise Refused(f"{name}: not an upload: send it to /gradio_api/upload first, then the path that this answers")


def is_upload(path: Path, uploads: Path) -> bool:
    """Whether an absolute path has the form that gradio gives to uploads: `uploads`/digest/name."""
    is_name = "\0" not in path.name and path.name != ".." and len(os.fsencode(path.name)) <= MAX_NAME
    return is_name and path.parent.parent == uploads and re.fullmatch(cleanup.DIGEST, path.parent.name) is not None
