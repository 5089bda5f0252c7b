"""Reads JSON into frozen dataclasses, trusting nothing in it, and writes it."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, get_args, get_origin, get_type_hints

from vllm_nfp.files import FileError, read_bytes
from vllm_nfp.give_way import give_way

T = TypeVar("T")

LARGEST_INTEGER = 1 << 53
"""Integers beyond it are not exact in other readers of JSON, and no count here comes near it."""


def read_object(path: Path, max_bytes: int, follow_links: bool = True) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        FileError: if the file is too large, or holds no JSON object of finite numbers.
        OSError: if it cannot be read, or is no regular file.
        ValueError: if the path holds a null character.
    """
    raw = read_bytes(path, max_bytes, follow_links)
    try:
        values = parse(raw)
    except ValueError as error:
        raise FileError(f"{path.name} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise FileError(f"{path.name} must hold a JSON object, not {type(values).__name__}")
    return values


def parse(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: for anything but JSON, and for what readers of JSON disagree on: NaN, Infinity,
            and an object that holds a key twice.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_distinct)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object holds {twice!r:.80} twice")
    return values


def decode(kind: type[T], value: Any, where: str) -> T:
    """Build a dataclass from parsed JSON, whose types must be those of its annotations.

    Known annotations: str, int, float, bool, a StrEnum, a dataclass, ``X | None``,
    ``tuple[X, ...]`` and ``Mapping[str, X]``.

    Args:
        where: names the value in messages.

    Raises:
        FileError: for another type, a missing or unknown field, or a value that the
            dataclass refuses.
    """
    result: T = _decode(kind, value, where)
    return result


def _decode(kind: Any, value: Any, where: str) -> Any:
    origin = get_origin(kind)
    if origin is UnionType:
        return None if value is None else _decode(get_args(kind)[0], value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise FileError(f"{where} must be a list")
        item = get_args(kind)[0]
        return tuple(_decode(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise FileError(f"{where} must be an object")
        item = get_args(kind)[1]
        return {
            _decode_text(key, where): _decode(item, entry, f"{where}[{key!r:.80}]")
            for key, entry in value.items()
        }
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    return _decode_plain(kind, value, where)


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise FileError(f"{where} must be an object")
    hints = _hints(kind)
    unknown = set(value) - set(hints)
    if unknown:
        raise FileError(f"{where} has the unknown field {sorted(unknown)[0]!r:.80}")
    values = {key: _decode(hints[key], v, f"{where}.{key}") for key, v in value.items()}
    for field in dataclasses.fields(kind):
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and field.name not in values:
            raise FileError(f"{where} lacks the field {field.name!r}")
    try:
        return kind(**values)
    except ValueError as error:
        raise FileError(f"{where}: {error}") from None


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _decode_plain(kind: Any, value: Any, where: str) -> Any:
    if kind is float:
        return _decode_float(value, where)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(value)
        except ValueError:
            allowed = ", ".join(kind)
            raise FileError(f"{where} must be one of {allowed}, not {value!r:.80}") from None
    if type(value) is not kind:
        raise FileError(f"{where} must be {kind.__name__}, not {type(value).__name__}")
    if kind is int and abs(value) > LARGEST_INTEGER:
        raise FileError(f"{where} is too large a number")
    return _decode_text(value, where) if kind is str else value


def _decode_text(value: str, where: str) -> str:
    """Half a surrogate pair is valid in JSON, and nowhere that text is written to."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise FileError(f"{where} holds text that is not Unicode") from None
    return value


def _decode_float(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise FileError(f"{where} must be float, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise FileError(f"{where} must be a finite number")
    return number


ROWS_AT_A_TIME = 24
"""Rows of a table that are encoded in one piece: some 0.3 ms."""


def encode(value: Any) -> str:
    """The JSON text of a dataclass of plain values, with pauses between the rows of its tables.

    Reads the fields as they are and copies nothing, unlike ``dataclasses.asdict``, which takes ten
    times as long.

    Raises:
        ValueError: for a number that is not finite.
        TypeError: for a value that is none of JSON's.
    """
    parts = (f"{json.dumps(name)}: {_encode_field(part)}" for name, part in _fields(value).items())
    return "{" + ", ".join(parts) + "}"


def _encode_field(value: Any) -> str:
    if not isinstance(value, tuple) or len(value) <= ROWS_AT_A_TIME:
        return _dumps(value)
    pieces = []
    for first in range(0, len(value), ROWS_AT_A_TIME):
        pieces.append(_dumps(value[first : first + ROWS_AT_A_TIME])[1:-1])
        give_way()
    return "[" + ", ".join(pieces) + "]"


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, default=_fields)


def _fields(value: Any) -> dict[str, Any]:
    kind: Any = type(value)
    return {name: getattr(value, name) for name in _field_names(kind)}


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    """Names of a dataclass's fields; a TypeError for any other class."""
    return tuple(field.name for field in dataclasses.fields(kind))
