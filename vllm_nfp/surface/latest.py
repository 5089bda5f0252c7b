"""What was asked lately, for it comes again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Latest(Generic[K, V]):
    """Values by key, of the keys that were asked for last.

    Args:
        kept: keys, at most.
        left: called with a key and its value when they leave for a later one.
    """

    def __init__(self, kept: int, left: Callable[[K, V], None]) -> None:
        self._kept, self._left = kept, left
        self._values: dict[K, V] = {}

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made if it is not kept; the key is the latest from now on."""
        value = self._values.pop(key) if key in self._values else make()
        self._values[key] = value
        if len(self._values) > self._kept:
            oldest = next(iter(self._values))
            self._left(oldest, self._values.pop(oldest))
        return value

    def clear(self) -> None:
        """Forget all; nothing is told of it."""
        self._values.clear()
