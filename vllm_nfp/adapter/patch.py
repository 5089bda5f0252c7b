"""Replace attributes of code we do not own: idempotent, reversible, and never silently."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

logger = logging.getLogger("vllm.nfp")

MARK = "__nfp_original__"
"""Attribute of a replacement that holds what it replaced."""


class PatchSet:
    """Attributes replaced by this package, and how to put them back.

    >>> class Toy:
    ...     def double(self, x):
    ...         return 2 * x
    >>> patches = PatchSet()
    >>> patches.wrap(Toy, "double", lambda original: lambda self, x: original(self, x) + 1)
    True
    >>> Toy().double(2)
    5
    >>> patches.restore()
    >>> Toy().double(2)
    4
    """

    def __init__(self) -> None:
        self._undo: list[tuple[object, str, bool, Any]] = []

    def wrap(self, target: object, name: str, make: Callable[[Any], Any]) -> bool:
        """Replace ``target.name`` by ``make(original)``.

        Returns False, with a warning that names the target, if it does not exist; True without
        another replacement if it is already ours.
        """
        own = vars(target) if hasattr(target, "__dict__") else {}
        original = getattr(target, name, None)
        if original is None:
            logger.warning("vllm-nfp: %s has no %s to hook; this vLLM differs", target, name)
            return False
        if hasattr(original, MARK):
            return True
        stored = own.get(name)
        replacement = make(original)
        setattr(_plain_function(replacement), MARK, original)
        self._undo.append((target, name, name in own, stored))
        setattr(target, name, replacement)
        return True

    def restore(self) -> None:
        """Put every replaced attribute back, newest first; safe to call twice."""
        while self._undo:
            target, name, was_own, stored = self._undo.pop()
            if was_own:
                setattr(target, name, stored)
            else:
                delattr(target, name)


def _plain_function(replacement: Any) -> Any:
    """The function that can carry an attribute: a static or class method is only a shell."""
    return getattr(replacement, "__func__", replacement)
