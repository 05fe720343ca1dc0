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

NAMES = {
    dict: "a JSON object",
    list: "a list",
    int: "an integer",
    float: "a number",
    str: "a string",
    bool: "true or false",
}


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
        """The record that a JSON value describes.

        Args:
            value: as `json` parsed it.
            path: the file, for errors.
            key: where the value is in the file, such as "models[0].per_class"; "" if it is the whole file.
            remedy: what an error tells the user to do; the class's own by default.

        Raises:
            ModelError: a key is missing or holds another type. The message names file and key.
        """
        remedy = cls.remedy or remedy
        if not isinstance(value, dict):
            raise ModelError(f"{path}{_quoted(key)} is not a JSON object: {remedy}")
        types = _types(cls)  # type: ignore[arg-type]  # mypy takes the hash of a class for that of its records
        values = {}
        for field in dataclasses.fields(cls):
            if field.name in value:
                name = f"{key}.{field.name}" if key else field.name
                values[field.name] = _parse(types[field.name], value[field.name], path, name, remedy)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                raise ModelError(f'{path}{_quoted(key)} has no "{field.name}": {remedy}')
        return cls(**values)

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
    """A JSON value converted to the type of a field; ModelError if its type is another."""
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):  # always with None
        [kind] = [item for item in args if item is not NoneType]
        return None if value is None else _parse(kind, value, path, key, remedy)
    if origin is dict and isinstance(value, dict):
        return {name: _parse(args[1], item, path, f"{key}.{name}", remedy) for name, item in value.items()}
    if origin is list and isinstance(value, list):
        if args[0] in SIMPLE and all(type(item) in SIMPLE[args[0]] for item in value):  # fast for large matrices
            return value
        return [_parse(args[0], item, path, f"{key}[{i}]", remedy) for i, item in enumerate(value)]
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        parts = zip(args, value, strict=True)
        return tuple(_parse(part, item, path, f"{key}[{i}]", remedy) for i, (part, item) in enumerate(parts))
    if origin is None and issubclass(kind, Record):
        return kind.from_json(value, path, key, remedy)
    if origin is None and type(value) in SIMPLE[kind]:
        return value
    name = f"a list of {len(args)}" if origin is tuple else NAMES[origin or kind]
    raise ModelError(f"{path}{_quoted(key)} is not {name}: {remedy}")


def _plain(value: object) -> object:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _quoted(key: str) -> str:
    return f': "{key}"' if key else ""
