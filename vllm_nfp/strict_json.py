"""Reads JSON into frozen dataclasses, trusting nothing in it, and writes it.

:mod:`msgspec` checks types and bounds, which the annotations of the dataclasses give. On top of
that, an object may hold no key twice and no field that its dataclass lacks.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NoReturn, TypeVar, get_args, get_type_hints

import msgspec

from vllm_nfp.files import FileError, read_bytes
from vllm_nfp.give_way import give_way
from vllm_nfp.text import printable

T = TypeVar("T")

LARGEST_INTEGER = 1 << 53
"""Integers beyond it are not exact in other readers of JSON, and no count here comes near it."""
ROWS_AT_A_TIME = 24
"""Rows of a table that are encoded in one piece: some 0.3 ms."""
FIELDS_OF_A_ROW = 8
MOST_TOLD_CHARACTERS = 300
TABLES_KEPT = 8
"""Latest tables whose text is kept: a server writes the same ones again while nothing is new."""
_NO_MEMBER = "Invalid enum value"


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object, as text and as values that no type has checked yet."""

    where: str
    """Names it in messages."""
    text: str | bytes
    values: dict[str, Any]

    def decode(self, kind: type[T], pass_over: bool = False) -> T:
        """The object as a dataclass.

        Args:
            pass_over: ignore fields that the dataclass lacks; those within its fields are refused.

        Raises:
            FileError: for another type, a value out of bounds, a missing or unknown field, or a
                value that a dataclass refuses.
        """
        found = decode_own(self.text, kind, self.where)
        taken, given = msgspec.to_builtins(found), self.values
        if pass_over:
            given = {name: value for name, value in given.items() if name in taken}
        _refuse_unknown(given, taken, self.where)
        return found


def decode_own(text: str | bytes, kind: type[T], where: str) -> T:
    """The dataclass in a JSON text that this package wrote into a folder of its own.

    One pass in C: neither a key that occurs twice nor a field that the dataclass lacks is refused.

    Args:
        where: names the text in messages.

    Raises:
        FileError: for no JSON, another type, a value out of bounds, a missing field, or a value
            that a dataclass refuses.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.ValidationError, ArithmeticError) as error:
        raise FileError(_sentence(kind, where, str(error))) from None
    except (ValueError, RecursionError) as error:
        raise FileError(printable(f"{where} is not valid JSON: {error}")) from None


def _sentence(kind: Any, where: str, refusal: str) -> str:
    message, at, path = refusal.rpartition(" - at `")
    message, path = (message, path.rstrip("`").removeprefix("key in ")) if at else (refusal, "")
    path = path.removeprefix("$")
    if message.startswith(_NO_MEMBER):
        told = f"must be one of {_members(kind, path)}, not{message.removeprefix(_NO_MEMBER)}"
        return printable(f"{where}{path} {told}", MOST_TOLD_CHARACTERS)
    told = message[:1].lower() + message[1:].replace("`", "'")
    return printable(f"{where}{path}: {told}", MOST_TOLD_CHARACTERS)


def _members(kind: Any, path: str) -> str:
    """The values of the enum that lies at a path such as ``.curves[3].module``."""
    for name in re.findall(r"\.(\w+)", path):
        kind = get_type_hints(kind)[name]
        while get_args(kind):  # of tuple[X, ...] and X | None
            kind = get_args(kind)[0]
    return ", ".join(kind)


def _refuse_unknown(given: Any, taken: Any, where: str) -> None:
    """Compare what was given with what the types have taken of it."""
    if isinstance(given, dict):
        for name, value in given.items():
            if name not in taken:
                raise FileError(f"{where} has the unknown field {name!r:.80}")
            if isinstance(value, (dict, list)):
                _refuse_unknown(value, taken[name], f"{where}.{name}")
    else:
        for place, (value, kept) in enumerate(zip(given, taken, strict=True)):
            if isinstance(value, (dict, list)):
                _refuse_unknown(value, kept, f"{where}[{place}]")


def parse_object(text: str | bytes, where: str) -> JsonObject:
    """The JSON object that a text holds.

    Raises:
        FileError: if it holds something else, or what readers of JSON disagree on.
    """
    try:
        values = parse(text, parse_int=_bounded)
    except ValueError as error:
        raise FileError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise FileError(f"{where} must hold a JSON object, not {type(values).__name__}")
    return JsonObject(where, text, values)


def read_object(path: Path, max_bytes: int, follow_links: bool = True) -> JsonObject:
    """The JSON object in a file.

    Raises:
        FileError: if the file is too large, or holds no JSON object.
        OSError: if it cannot be read, or is no regular file.
        ValueError: if the path holds a null character.
    """
    return parse_object(read_bytes(path, max_bytes, follow_links), path.name)


def parse(text: str | bytes, parse_int: Callable[[str], int] = int) -> Any:
    """The value of a JSON text.

    Args:
        parse_int: makes an integer of its digits.

    Raises:
        ValueError: for anything but JSON, and for what readers of JSON disagree on: NaN, Infinity,
            and an object that holds a key twice.
    """
    try:
        return json.loads(
            text,
            parse_int=parse_int,
            parse_constant=_refuse_constant,
            object_pairs_hook=_distinct,
        )
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _bounded(digits: str) -> int:
    value = int(digits)
    if abs(value) > LARGEST_INTEGER:
        raise ValueError(f"{digits:.20} is too large a number")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        (twice, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object holds {twice!r:.80} twice")
    return values


_latest: deque[tuple[tuple[Any, ...], str]] = deque(maxlen=TABLES_KEPT)


def encode(value: Any) -> str:
    """The JSON text of a dataclass, with pauses between the rows of its tables.

    Raises:
        ValueError: for a number that is not finite, which msgspec would write as null.
        TypeError: for a value that is neither a dataclass nor one of JSON's.
    """
    parts = (f"{json.dumps(name)}: {_encode_field(part)}" for name, part in _fields(value).items())
    text = "{" + ", ".join(parts) + "}"
    give_way()
    return text


def _encode_field(value: Any) -> str:
    at_a_time = _rows_at_a_time(value)
    if at_a_time is None or len(value) <= at_a_time:
        return _dumps(value)
    known = next((text for table, text in _latest if table is value), None)
    if known is not None:
        return known
    pieces = []
    for first in range(0, len(value), at_a_time):
        pieces.append(_rows_text(value[first : first + at_a_time])[1:-1])
        give_way()
    text = "[" + ", ".join(pieces) + "]"
    _latest.append((value, text))
    return text


def _rows_text(rows: tuple[Any, ...]) -> str:
    """The rows as JSON, by msgspec where it can have lost nothing: it writes null for NaN."""
    text = msgspec.json.encode(rows)
    return _dumps(rows) if b"null" in text else text.decode()


def _rows_at_a_time(value: Any) -> int | None:
    """Rows of a table that make one piece: fewer where a row holds lists; None: it is no table."""
    if not isinstance(value, tuple) or not value or not dataclasses.is_dataclass(value[0]):
        return None
    inside = sum(len(v) for v in _fields(value[0]).values() if isinstance(v, (tuple, list, dict)))
    return max(1, ROWS_AT_A_TIME // (1 + inside // FIELDS_OF_A_ROW))


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, default=_fields)


def _fields(value: Any) -> dict[str, Any]:
    kind: Any = type(value)
    return {name: getattr(value, name) for name in _field_names(kind)}


@cache
def _field_names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))
