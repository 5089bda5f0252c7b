"""Numbers as people read them, and names as people write them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable


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


TYPE_NAMES = {"bf16": "bfloat16", "fp16": "float16", "half": "float16"}
"""Other names of types; ``half`` is vLLM's and torch's own."""


def plain(name: str) -> str:
    """A name without what people write in several ways: case, spaces, dashes and underscores."""
    return "".join(letter for letter in name.casefold() if letter.isalnum())


def same_name(given: str, known: Iterable[str]) -> str | None:
    """The known name that is meant, however it is spelled; None if it is none of them.

    Types may be named as torch and people do: torch.bfloat16, bf16, half.
    """
    short = given.casefold().removeprefix("torch.")
    wanted = plain(TYPE_NAMES.get(short, short))
    return next((name for name in known if plain(name) == wanted), None) if wanted else None


def nearest_name(given: str, known: Iterable[str]) -> str | None:
    """The known name that is spelled most alike; None if none is."""
    return next(iter(nearest_names(given, known, 1)), None)


def nearest_names(given: str, known: Iterable[str], most: int) -> list[str]:
    """Up to so many known names that are spelled alike, the nearest first."""
    names = {plain(name): name for name in known}
    found = difflib.get_close_matches(plain(given[:MOST_SHOWN]), names, most)
    return [names[name] for name in found]


def hint(given: str, known: Iterable[str]) -> str:
    """The nearest known name in brackets, for a refusal; empty if none is near."""
    name = nearest_name(given, known)
    return "" if name is None else f" (did you mean {name}?)"


_NOT_PLAIN = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Control characters but for the newline, those that turn the direction of text or end a line, and
halves of surrogate pairs."""


def harmless(text: str) -> str:
    """Foreign text of any length, with ``?`` in place of what steers a terminal or a page."""
    return _NOT_PLAIN.sub("?", text)
