"""Bounds on a model's sizes, and the refusal of what lies outside."""

from __future__ import annotations

from collections.abc import Mapping

MAX_LAYERS = 4096
MAX_SIZE = 1 << 24
"""Bound on widths, heads, experts and vocabulary."""
MAX_TOKENS = 1 << 40
"""Bound on windows."""
_SHOWN_CHARACTERS = 60


class ShapeError(ValueError):
    """A configuration that gives no usable shape; the message names the value or the field."""


def shown(value: object) -> str:
    """A foreign value for an error message: short, whatever it is."""
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, str):
        text = repr(value[: _SHOWN_CHARACTERS + 1])
        return text if len(value) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}...'"
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return "a list"
    return "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}"
