"""The hand-over folder of one launcher: made at its start, gone with it, however it ends.

A launcher that is killed cannot remove its folder; the next one does. A lock tells whether the
owner lives: the kernel gives it up with the process, and it is seen from other containers as well.

Others may remove the folder while its server runs, as cleaners of /tmp do. Whoever writes to it
then makes it again, as long as its owner lives.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from vllm_nfp.files import write_whole

logger = logging.getLogger("vllm.nfp")

PREFIX = "vllm-nfp-"
LOCK = "owner.lock"
REMOVALS = 3
"""Tries to remove a folder: a writer may put a file into it meanwhile."""

_held: list[int] = []
"""Descriptors of the locks of this process, open until it ends."""


def make_run_folder() -> str:
    """A folder that ends with this process; those of launchers that were killed are removed.

    Raises:
        OSError: if none can be made.
    """
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = tempfile.mkdtemp(prefix=PREFIX)
    with suppress(OSError):  # without locks a killed launcher leaves its folder behind
        _held.append(_lock(Path(folder)))
        _held.append(_keep_from_cleaners(Path(folder)))
    owner = os.getpid()
    atexit.register(lambda: _remove(folder, owner))
    return folder


def _lock(folder: Path) -> int:
    """The descriptor of the folder's lock, held by this process while it is open."""
    # It gets its name when it is held: whoever finds it free finds an owner that is gone.
    unnamed = folder / f".{LOCK}"
    descriptor = os.open(unnamed, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    unnamed.rename(folder / LOCK)
    return descriptor


def _keep_from_cleaners(folder: Path) -> int:
    """Lock the folder itself: systemd-tmpfiles leaves what is locked alone (tmpfiles.d(5))."""
    descriptor = os.open(folder, _FOLDER)
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return descriptor


def _let_go() -> None:
    """In a fork: the locks stay with the process that took them, and are free when it ends."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


class RunFolder:
    """Writes to a hand-over folder, and makes it again where it is gone while its owner lives.

    It is made again as it was made at first, with mode 0700, by this user. What others have put in
    its place, a link or a folder of theirs, is neither followed nor written to.

    Args:
        path: the folder, which a launcher has made; used by one thread at a time.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._owners_lock: int | None = None
        self._own_lock: int | None = None
        self._was_here = self._path.is_dir()
        with suppress(OSError):
            self._owners_lock = os.open(
                self._path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            )

    def write(self, name: str, content: str) -> None:
        """Replace a file of the folder whole.

        Raises:
            OSError: if it cannot be written, or the folder is not this user's any more.
        """
        descriptor = self._open()
        try:
            write_whole(Path(name), content, descriptor)
        finally:
            os.close(descriptor)

    def _open(self) -> int:
        try:
            return open_own(self._path)
        except FileNotFoundError:
            if not self._was_here:
                raise FileNotFoundError(
                    f"the server is on another host, and its /metrics cannot show this engine: set "
                    f"--nfp-output-dir to keep what is measured here ({self._path} is not here)"
                ) from None
            if not self._owner_lives():
                raise
        with suppress(FileExistsError):  # another writer of this server was faster
            self._path.mkdir(mode=0o700)
            self._take_lock()
            logger.warning(
                "vllm-nfp: the hand-over directory %s was removed; it has been made again",
                self._path,
            )
        return open_own(self._path)

    def _owner_lives(self) -> bool:
        if self._owners_lock is None:
            return False
        try:
            fcntl.flock(self._owners_lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        fcntl.flock(self._owners_lock, fcntl.LOCK_UN)
        return False

    def _take_lock(self) -> None:
        """So that a later launcher removes it once this process and its launcher are gone."""
        with suppress(OSError):
            before, self._own_lock = self._own_lock, _lock(self._path)
            if before is not None:
                os.close(before)


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def open_own(folder: Path) -> int:
    """A descriptor of a folder of this user's.

    Raises:
        FileNotFoundError: if it is gone.
        OSError: if it is no folder, a link, or another user's.
    """
    descriptor = os.open(folder, _FOLDER)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(f"the hand-over directory {folder} is another user's")
    return descriptor


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
    if os.getpid() != owner:
        return
    # A writer that outlives this process must not take it for alive, and make the folder again.
    _let_go()
    for _ in range(REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not os.path.lexists(folder):
            return
