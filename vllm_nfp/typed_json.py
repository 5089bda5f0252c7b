"""Reads JSON files into frozen dataclasses, trusting nothing in them, and writes files whole."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TextIO, TypeVar, get_args, get_origin, get_type_hints

from vllm_nfp.give_way import give_way

T = TypeVar("T")

LARGEST_INTEGER = 1 << 53
"""Integers beyond it are not exact in other readers of JSON, and no count here comes near it."""


class TypedJsonError(ValueError):
    """The text is not what was asked for; the message is one sentence that says where."""


def read_bytes(path: Path, max_bytes: int, follow_links: bool = True) -> bytes:
    """What a regular file holds.

    A pipe or device is refused before it is read: it may block for ever, or never end.

    Args:
        follow_links: False: the last part of the path must be no symbolic link.

    Raises:
        TypedJsonError: if the file is larger than ``max_bytes``.
        OSError: if it cannot be read, or is no regular file.
        ValueError: if the path holds a null character.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise TypedJsonError(f"{path.name} is larger than {max_bytes} bytes")
    return raw


def read_object(path: Path, max_bytes: int, follow_links: bool = True) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        TypedJsonError: if the file is too large, or holds no JSON object of finite numbers.
        OSError: if it cannot be read, or is no regular file.
        ValueError: if the path holds a null character.
    """
    raw = read_bytes(path, max_bytes, follow_links)
    try:
        values = parse(raw)
    except ValueError as error:
        raise TypedJsonError(f"{path.name} is not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise TypedJsonError(f"{path.name} must hold a JSON object, not {type(values).__name__}")
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
        TypedJsonError: for another type, a missing or unknown field, or a value that the
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
            raise TypedJsonError(f"{where} must be a list")
        item = get_args(kind)[0]
        return tuple(_decode(item, entry, f"{where}[{i}]") for i, entry in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise TypedJsonError(f"{where} must be an object")
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
        raise TypedJsonError(f"{where} must be an object")
    hints = _hints(kind)
    unknown = set(value) - set(hints)
    if unknown:
        raise TypedJsonError(f"{where} has the unknown field {sorted(unknown)[0]!r:.80}")
    values = {key: _decode(hints[key], v, f"{where}.{key}") for key, v in value.items()}
    for field in dataclasses.fields(kind):
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and field.name not in values:
            raise TypedJsonError(f"{where} lacks the field {field.name!r}")
    try:
        return kind(**values)
    except ValueError as error:
        raise TypedJsonError(f"{where}: {error}") from None


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
            raise TypedJsonError(f"{where} must be one of {allowed}, not {value!r:.80}") from None
    if type(value) is not kind:
        raise TypedJsonError(f"{where} must be {kind.__name__}, not {type(value).__name__}")
    if kind is int and abs(value) > LARGEST_INTEGER:
        raise TypedJsonError(f"{where} is too large a number")
    return _decode_text(value, where) if kind is str else value


def _decode_text(value: str, where: str) -> str:
    """Half a surrogate pair is valid in JSON, and nowhere that text is written to."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise TypedJsonError(f"{where} holds text that is not Unicode") from None
    return value


def _decode_float(value: Any, where: str) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypedJsonError(f"{where} must be float, not {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise TypedJsonError(f"{where} must be a finite number")
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


def open_to_append(path: Path) -> TextIO:
    """A text file to be written at its end, made if it is missing; never through a link.

    Raises:
        OSError: if it cannot be written, or is a link, a pipe or a device.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "a", encoding="utf-8")


def check_replaceable(path: Path, folder: int | None = None) -> None:
    """Prove that nothing but a regular file, or a link to none or one, would be replaced.

    Args:
        folder: descriptor of the folder that ``path``, a bare name, lies in.

    Raises:
        OSError: if there is something else, or the path is none of a file.
    """
    if not path.name:
        raise OSError(errno.EINVAL, "it names no file", str(path))
    try:
        mode = os.stat(path, dir_fd=folder).st_mode
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ELOOP):  # nothing there, or behind a link
            raise
        return
    except ValueError:
        raise OSError(errno.EINVAL, "its name holds a null character", str(path)) from None
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise OSError(errno.EINVAL, f"it is {what}", str(path))


def write_whole(path: Path, content: str | bytes, folder: int | None = None) -> None:
    """Replace a file whole: a reader sees the old content or the new, and never half of it.

    Nothing that is there is written through: a symbolic link at ``path`` is replaced, and the
    temporary file beside it is a new one, whatever others may have put into the folder. A pipe, a
    device or a socket stays: root could replace ``/dev/null`` for the whole machine.

    Args:
        folder: descriptor of the folder that ``path``, a bare name, lies in.

    Raises:
        OSError: if it cannot be written; the old file is then as it was.
    """
    check_replaceable(path, folder)
    temporary = path.with_name(f".nfp-{secrets.token_hex(8)}.tmp")

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags, 0o666, dir_fd=folder)

    try:
        with open(temporary, "xb", opener=opener) as file:
            file.write(content.encode() if isinstance(content, str) else content)
        within = {} if folder is None else {"src_dir_fd": folder, "dst_dir_fd": folder}
        os.replace(temporary, path, **within)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=folder)
