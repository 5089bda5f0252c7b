"""The hand-over folder of one launcher: made at its start, gone with it, however it ends.

A launcher that is killed cannot remove its folder; the next one does. A lock tells whether the
owner lives: the kernel gives it up with the process, and it is seen from other containers as well.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

PREFIX = "vllm-nfp-"
LOCK = "owner.lock"

_held: list[int] = []
"""Descriptors of the locks of this process, open until it ends."""


def make_run_folder() -> str:
    """A folder that ends with this process; those of launchers that were killed are removed."""
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = tempfile.mkdtemp(prefix=PREFIX)
    with suppress(OSError):  # without locks a killed launcher leaves its folder behind
        _lock(Path(folder))
    owner = os.getpid()
    atexit.register(lambda: _remove(folder, owner))
    return folder


def _lock(folder: Path) -> None:
    # It gets its name when it is held: whoever finds it free finds an owner that is gone.
    unnamed = folder / f".{LOCK}"
    descriptor = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(folder / LOCK)
    _held.append(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Remove this user's folders whose owner is gone; what cannot be told apart stays."""
    for lock in parent.glob(f"{PREFIX}*/{LOCK}"):
        with suppress(OSError):
            if lock.stat().st_uid != os.getuid():
                continue
            descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent)
            finally:
                os.close(descriptor)


def _remove(folder: str, owner: int) -> None:
    """Remove the folder, but only in the process that made it, not in its forks."""
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
