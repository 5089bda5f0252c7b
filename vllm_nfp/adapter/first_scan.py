"""The first scans that wait in the workers of an engine, until a program has filled its KV cache.

The program calls :func:`to_fill` and :func:`scan` in every worker, by vLLM's ``collective_rpc``.
It pickles them by name and gives them the worker, which they do without: a process has one.
"""

from __future__ import annotations

from typing import Any, Protocol

from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.types import Shape


class Waits(Protocol):
    """What may have put its first scan off: a ``StepObserver``, for one."""

    @property
    def to_fill(self) -> Shape | None:
        """What the scan reads at most; None where none waits, or on a rank that follows."""
        ...

    def scan(self, note: str = "") -> None:
        """Run the scan, if it waits."""
        ...


_WAITING: list[Waits] = []
"""The observer of this process's worker, if there is one."""


def install(patches: PatchSet, observer: Waits) -> None:
    """Let the functions of this module reach an observer, until the patches are undone."""
    _WAITING.append(observer)
    patches.on_restore(lambda: _WAITING.remove(observer))


def to_fill(worker: Any) -> Shape | None:
    """What the first scan reads at most, if it waits and this rank leads."""
    return next((o.to_fill for o in _WAITING if o.to_fill is not None), None)


def scan(worker: Any, note: str) -> None:
    """Run the first scan of this rank, with all others; a fault ends the probe.

    Args:
        note: what the results should say of the scan; empty: nothing.
    """
    for observer in tuple(_WAITING):
        observer.scan(note)
