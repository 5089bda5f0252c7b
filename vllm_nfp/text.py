"""Numbers as people read them."""

from __future__ import annotations

import re


def duration(seconds: float) -> str:
    """A time with three digits and the unit that suits it."""
    for unit, scale in (("s", 1.0), ("ms", 1e3), ("µs", 1e6)):
        if seconds * scale >= 1.0:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


MOST_SHOWN = 300
MOST_LABEL = 4096
"""Characters of a label; the longest path that Linux knows has as many bytes."""


def label(text: str) -> str:
    """Foreign text as the value of a metric's label: of bounded length, and valid Unicode.

    The exposition format escapes quotes, newlines and backslashes by itself. Half a surrogate
    pair, which a command line may hold, would fail the whole scrape.
    """
    return text[:MOST_LABEL].encode("utf-8", "replace").decode()


def printable(text: str, most: int = MOST_SHOWN) -> str:
    """Foreign text for a terminal: no control characters, and at most so many characters."""
    shown = text if len(text) <= most else f"{text[:most]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in shown)


_NOT_PLAIN = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for the newline, those that turn the direction of text or end a line, and
halves of surrogate pairs."""


def plain(text: str) -> str:
    """Foreign text of any length, with ``?`` in place of what steers a terminal or a page."""
    return _NOT_PLAIN.sub("?", text)
