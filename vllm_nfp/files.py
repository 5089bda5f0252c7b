"""Reads and writes files that others may have tampered with: bounded, and never through a link."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import TextIO

MISTRAL_CONFIG = "params.json"
"""A model's config in Mistral's own format; vLLM serves a directory with it and
``consolidated*.safetensors`` (``transformers_utils/config.py``, 0.32)."""
MODEL_CONFIGS = ("config.json", MISTRAL_CONFIG)


class FileError(ValueError):
    """What a file holds is not what was asked for; the message is one sentence that says where."""


def read_bytes(path: Path, max_bytes: int, follow_links: bool = True) -> bytes:
    """What a regular file holds.

    A pipe or device is refused before it is read: it may block for ever, or never end.

    Args:
        follow_links: False: the last part of the path must be no symbolic link.

    Raises:
        FileError: if the file is larger than ``max_bytes``.
        OSError: if it cannot be read, or is no regular file.
        ValueError: if the path holds a null character.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | (0 if follow_links else os.O_NOFOLLOW)
    with open(path, "rb", opener=lambda name, _: os.open(name, flags)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        raw = file.read(max_bytes + 1)
    if len(raw) > max_bytes:
        raise FileError(f"{path.name} is larger than {max_bytes} bytes")
    return raw


def open_to_append(path: Path) -> TextIO:
    """A text file to be written at its end, made if it is missing; never through a link.

    Raises:
        OSError: if it cannot be written, or is a link, a pipe or a device.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
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
        what = "a directory" if stat.S_ISDIR(mode) else "not a regular file"
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
