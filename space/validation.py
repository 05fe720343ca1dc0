"""What a call has to look like. gradio prints a trace for every file or argument that it makes nothing of, and keeps
the rest.

The arguments are those of the page's own functions, by the name and by the number that a call may use, so that nothing
that can be called is left out.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from space import cleanup

MAX_FILES = 500  # a request
MAX_TEXT = 4096  # characters of a text: as many as a path has, at most
MAX_NAME = 255  # bytes of a file's name, as file systems have it
MAX_DEPTH = 16  # lists and objects in one another
SCHEMES = ("http://", "https://")
BY_URL = "an image given by URL: download it, then send "
SHAPE = 'send {"path": what /gradio_api/upload answered, "meta": {"_type": "gradio.FileData"}}'


class Fault(Exception):
    """What is wrong with a call, in one line for its sender. `status` is HTTP's."""

    def __init__(self, message: str, status: int = 422):
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Argument:
    """What a function takes.

    Attributes:
        name: as the API has it.
        files: "one" file, "many" (a list), or "" for neither.
        needed: whether there is no default.
    """

    name: str
    files: str
    needed: bool


@dataclass(frozen=True)
class Function:
    """What can be called: its arguments, and whether it is part of the API or the page's own."""

    arguments: Sequence[Argument]
    is_public: bool


Functions = Mapping[str | int, Function]


def functions(demo: gr.Blocks) -> Functions:
    """All that `demo` can be told to do, by name and by number."""
    public = demo.get_api_info()["named_endpoints"]
    found: dict[str | int, Function] = {}
    for number, fn in demo.fns.items():
        kinds = [
            "" if not isinstance(block, gr.File) else "one" if block.file_count == "single" else "many"
            for block in fn.inputs
        ]
        is_public = f"/{fn.api_name}" in public
        if is_public and (parameters := public[f"/{fn.api_name}"].get("parameters")):
            told = [(each["parameter_name"], not each["parameter_has_default"]) for each in parameters]
        else:
            told = [(f"data[{i}]", True) for i in range(len(kinds))]
        arguments = [Argument(name, kind, needed) for (name, needed), kind in zip(told, kinds, strict=True)]
        found[number] = Function(arguments, is_public)
        if fn.api_name:
            found[fn.api_name] = found[number]
    return found


def check(path: str, content: object, known: Functions, uploads: Path) -> Function | None:
    """What is called, None for what gradio refuses. Raises Fault for what costs too much, or what gradio makes nothing
    of.

    Args:
        path: of the request, below /gradio_api/call/, queue/, run/ or api/.
        content: its JSON. What is no object, or has no list of data, is gradio's to refuse.
        known: what can be called.
        uploads: the folder that uploads are in.
    """
    if is_deep(content):
        raise Fault(f"more than {MAX_DEPTH} lists and objects in one another")
    paths = list(file_paths(content))
    if any(path.lower().startswith(SCHEMES) for path in paths):
        raise Fault(f"{BY_URL}the file")
    if len(paths) > MAX_FILES:
        raise Fault(f"{len(paths):,} files: at most {MAX_FILES} a request")
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Fault("half of a surrogate pair: send UTF-8") from None
    if not isinstance(content, dict):
        return None
    way, _, name = path.removeprefix("/gradio_api/").strip("/").partition("/")
    is_named = way == "call" and name.startswith("v2/")  # arguments, not a list of them
    for key, value in {} if is_named else content.items():  # such as session_hash, which gradio keeps with the visit
        if isinstance(value, str) and len(value) > MAX_NAME:
            raise Fault(f"{key}: {len(value):,} characters, at most {MAX_NAME}")
    called = (
        name.removeprefix("v2/") if way == "call" else name if content.get("fn_index") is None else content["fn_index"]
    )
    function = known.get(called) if type(called) in (str, int) else None
    if function is None:
        raise Fault("no such endpoint: /gradio_api/info tells which there are", 404)
    arguments = function.arguments
    values = in_order(content, arguments) if is_named else content.get("data")
    if not isinstance(values, list):
        return function
    names = ", ".join(argument.name for argument in arguments)
    if len(values) < len(arguments):
        raise Fault(f"data has {len(values)} of {len(arguments)} values ({names}): send null for a default")
    for argument, value in zip(arguments, values, strict=False):
        check_value(argument, value, uploads)
    return function


def in_order(named: dict, arguments: Sequence[Argument]) -> list:
    """The values of arguments given by name, None for a default. Raises Fault for a name that is missing, or is not
    theirs.
    """
    names = [argument.name for argument in arguments]
    if not named.keys() <= {*names, "oauth_token"}:
        raise Fault(f"it takes {', '.join(names) or 'nothing'}, and nothing else")
    for argument in arguments:
        if argument.needed and argument.name not in named:
            raise Fault(f"{argument.name}: missing")
    return [named.get(name) for name in names]


def check_value(argument: Argument, value: object, uploads: Path) -> None:
    """Raises Fault for a value that an argument can't have; which ones of its kind make sense is its function's to
    tell.
    """
    if argument.files == "many" and isinstance(value, list):
        for i, file in enumerate(value):
            check_file(f"{argument.name}[{i}]", file, uploads)
    elif argument.files == "many" and value is not None:
        raise Fault(f"{argument.name}: not a list of files: of each, {SHAPE}")
    elif argument.files and value is not None:
        check_file(argument.name, value, uploads)
    elif isinstance(value, dict | list):
        raise Fault(f"{argument.name}: neither text nor number")
    elif isinstance(value, str) and len(value) > MAX_TEXT:
        raise Fault(f"{argument.name}: {len(value):,} characters, at most {MAX_TEXT:,}")


def check_file(name: str, file: object, uploads: Path) -> None:
    """Raises Fault for what is not gradio's FileData, of a file in `uploads`; it may be gone by now."""
    meta = file.get("meta") if isinstance(file, dict) else None
    is_file = isinstance(meta, dict) and meta.get("_type") == "gradio.FileData"
    if not is_file or not isinstance(file, dict) or not isinstance(file.get("path"), str):
        raise Fault(f"{name}: not a file: {SHAPE}")
    for key, kinds in {"url": str, "orig_name": str, "mime_type": str, "size": int, "is_stream": bool}.items():
        value = file.get(key, False if key == "is_stream" else None)
        if not isinstance(value, kinds) and (value is not None or key == "is_stream"):
            raise Fault(f"{name}: its {key} is no {kinds.__name__}")
        if isinstance(value, str) and len(value) > MAX_TEXT:
            raise Fault(f"{name}: its {key} has {len(value):,} characters, at most {MAX_TEXT:,}")
    path = Path(file["path"]).absolute()
    is_name = "\0" not in path.name and path.name != ".." and len(os.fsencode(path.name)) <= MAX_NAME
    if path.parent.parent != uploads.absolute() or not re.fullmatch(cleanup.DIGEST, path.parent.name) or not is_name:
        raise Fault(f"{name}: not an upload: send it to /gradio_api/upload first, then the path that this answers")


def is_deep(content: object) -> bool:
    """Whether a JSON value has more than MAX_DEPTH lists and objects in one another."""
    level = [content]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for value in level for inner in inside(value)]
    return bool(level)


def inside(value: object) -> Iterable[object]:
    """What a list or an object of JSON holds."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def file_paths(content: object) -> Iterator[str]:
    """The `path` of everything in a JSON value that gradio may take for a file."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict) and isinstance(value.get("path"), str):
            yield value["path"]
        waiting += inside(value)


def strings(content: object) -> Iterator[str]:
    """Every string in a JSON value, save names."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            yield value
        waiting += inside(value)
