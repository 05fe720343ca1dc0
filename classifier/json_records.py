"""Dataclasses that are read from JSON files and written to them, with errors that name file and key."""

import dataclasses
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import ClassVar, Self, Union, get_args, get_origin, get_type_hints

from classifier.errors import ModelError
from classifier.files import read_json, write_json

OMIT = {"omit": True}  # metadata of a field whose key is left out of the file where the value is None
SIMPLE = {int: (int,), float: (int, float), str: (str,), bool: (bool,), dict: (dict,)}  # a type, and those in JSON

NAMES = {dict: "an object", list: "a list", int: "an integer", float: "a number", str: "a string", bool: "a boolean"}


@dataclasses.dataclass(kw_only=True)
class Record:
    """Base of a dataclass that is a JSON object with the fields' names as keys, in their order.

    Keys that no field has are ignored, and a field with a default may be absent.
    """

    remedy: ClassVar[str] = ""  # what an error tells the user to do

    @classmethod
    def read(cls, path: Path) -> Self:
        """The record in a file; ModelError where there is none, or as `from_json`."""
        return cls.from_json(read_json(path), path)

    @classmethod
    def from_json(cls, value: object, path: Path, key: str = "", remedy: str = "") -> Self:
        """The record that a JSON value is.

        Args:
            value: as `json` parsed it.
            path: of the file, for errors.
            key: where the value is in the file, such as "models[0].per_class"; "" for all of it.
            remedy: what an error tells the user to do; the class's own by default.

        Raises:
            ModelError: a key is missing or holds another type. The message names file and key.
        """
        remedy = cls.remedy or remedy
        if not isinstance(value, dict):
            raise ModelError(f"{path}{_quoted(key)} is not a JSON object: {remedy}")
        found = {}
        for field in dataclasses.fields(cls):
            if field.name in value:
                name = f"{key}.{field.name}" if key else field.name
                found[field.name] = _parse(_types(cls)[field.name], value[field.name], path, name, remedy)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ModelError(f'{path}{_quoted(key)} has no "{field.name}": {remedy}')
        return cls(**found)

    def to_json(self) -> dict:
        """The record as dictionaries and lists that `json` can write."""
        values = {field: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            field.name: _plain(value)
            for field, value in values.items()
            if value is not None or "omit" not in field.metadata
        }

    def write(self, path: Path) -> None:
        """Writes the record, whole or not at all. NaN is refused with ValueError."""
        write_json(path, self.to_json())


@cache
def _types(cls: type[Record]) -> dict[str, type]:
    return get_type_hints(cls)


def _parse(kind, value: object, path: Path, key: str, remedy: str):
    """A JSON value as the type of a field; ModelError if it is of another one."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # always with None
        [kind] = [each for each in args if each is not NoneType]
        return None if value is None else _parse(kind, value, path, key, remedy)
    if origin is dict and isinstance(value, dict):
        return {name: _parse(args[1], each, path, f"{key}.{name}", remedy) for name, each in value.items()}
    if origin is list and isinstance(value, list):
        if args[0] in SIMPLE and all(type(each) in SIMPLE[args[0]] for each in value):  # fast for large matrices
            return value
        return [_parse(args[0], each, path, f"{key}[{i}]", remedy) for i, each in enumerate(value)]
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        parts = zip(args, value, strict=True)
        return tuple(_parse(part, each, path, f"{key}[{i}]", remedy) for i, (part, each) in enumerate(parts))
    if origin is None and issubclass(kind, Record):
        return kind.from_json(value, path, key, remedy)
    if origin is None and type(value) in SIMPLE[kind]:
        return value
    name = {
        dict: "a JSON object",
        list: "a list",
        tuple: f"a list of {len(args)}",
        int: "an integer",
        float: "a number",
    }
    name |= {str: "a string", bool: "true or false"}
    raise ModelError(f"{path}{_quoted(key)} is not {name[origin or kind]}: {remedy}")


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _quoted(key: str) -> str:
    return f': "{key}"' if key else ""
