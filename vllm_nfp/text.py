"""Numbers as people read them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """A time with three digits and the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1.0:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def printable(text: str) -> str:
    """Foreign text for a terminal: no control characters."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
