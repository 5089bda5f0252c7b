"""Expressions of quantization configs, whose matching must take little time."""

from __future__ import annotations

import re

from vllm_nfp.principle.sizes import ShapeError, shown
from vllm_nfp.principle.weights.scheme import GIVE, UnreadError

MAX_EFFORT = 512
"""Expressions asked for each module: a bound on the time that a hostile config may take."""
_MAX_PATTERN_LENGTH = 200
_MAX_REPETITIONS = 3
_MAX_ALTERNATIVES = 16
_READABLE_PATTERN = re.compile(r"[\w\s.\\^$|\[\]*+?:,-]*", re.ASCII)
_LITERAL_GROUP = re.compile(r"(?<!\\)\((?:\?:)?(?:[\w|-]|\\[.\w]|\[[\w-]+\])*\)", re.ASCII)
_REPETITION = re.compile(r"(?<!\\d)(?<!\[0-9\])(?<![\\(])[*+?]")


def compiled(expression: str) -> re.Pattern[str]:
    """An expression whose matching takes little time whatever the module's name.

    The time to match grows with a power of the number of repetitions, so it is bounded, and
    groups hold nothing but alternatives of literals and classes. None is repeated.
    """
    without_groups = _LITERAL_GROUP.sub("", expression)
    if (
        len(expression) > _MAX_PATTERN_LENGTH
        or not _READABLE_PATTERN.fullmatch(without_groups)
        or _repetitions(expression) > _MAX_REPETITIONS
        or expression.count("|") > _MAX_ALTERNATIVES
        or re.search(r"\)[*+?]", expression)
    ):
        raise UnreadError(
            f"quantization_config has the expression {shown(expression)}, which is not read: {GIVE}"
        )
    try:
        return re.compile(expression)
    except (re.error, OverflowError, RecursionError) as error:
        raise ShapeError(
            f"quantization_config has the expression {shown(expression)}, which is none: {error}"
        ) from None


def _repetitions(expression: str) -> int:
    """Repetitions that the rest of the expression must be tried after, but for those of digits."""
    inner = expression.removesuffix("$").removesuffix(".*")
    return len(_REPETITION.findall(inner))


def effort(expression: str) -> int:
    """Relative time to match at worst."""
    return 20 if _repetitions(expression) == _MAX_REPETITIONS else 1
