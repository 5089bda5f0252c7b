"""Lists of modules, as quantization configs write them.

Entries are whole module paths, parts of one between dots (``self_attn``), wildcards, or ``re:``
expressions.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections import defaultdict
from collections.abc import Sequence

from vllm_nfp.principle.weights.expressions import compiled, effort
from vllm_nfp.principle.weights.paths import (
    ELSEWHERE,
    LM_HEAD,
    TEXT_PREFIXES,
    heads,
    of_other_expert,
    paths_of,
    runs,
    without_prefix,
)


class Names:
    """A list of module names, as quantization configs write them."""

    def __init__(self, entries: Sequence[str]) -> None:
        entries = [
            entry
            for entry in entries
            if not (entry.startswith(ELSEWHERE) or of_other_expert(entry))
        ]
        plain = {without_prefix(entry) for entry in entries if not entry.startswith("re:")}
        starts = {entry for entry in plain if _is_start_of_layer(entry)}
        self._starts: defaultdict[str, list[str]] = defaultdict(list)
        for entry in starts:
            self._starts[_layer_number(entry)].append(entry[:-1])
        plain -= starts
        wildcards = {entry for entry in plain if "*" in entry}
        self._everywhere: set[str] = set()
        self._by_layer: defaultdict[str, set[str]] = defaultdict(set)
        for entry in plain - wildcards:
            layers, _, inner = entry.partition(".")
            index, _, rest = inner.partition(".")
            if layers == "layers":
                self._by_layer[index].add(rest)
            else:
                self._everywhere.add(entry)
        expressions = {entry[3:]: compiled(entry[3:]) for entry in entries if entry[:3] == "re:"}
        expressions |= {entry: re.compile(fnmatch.translate(f"*{entry}")) for entry in wildcards}
        # An expression without a digit says the same of every layer: asked once for a module.
        numbered = {text for text in expressions if any(letter.isdigit() for letter in text)}
        general = [text for text in expressions if text not in numbered]
        self._numbered = [expressions[text] for text in numbered]
        self._general = [expressions[text] for text in general]
        self._effort_each = sum(map(effort, numbered))
        self._effort_once = sum(map(effort, general))
        self._general_answers: dict[str, bool] = {}
        self._head = any(entry.rpartition(".")[2] in LM_HEAD for entry in plain)

    @property
    def names_head(self) -> bool:
        """The LM head is named."""
        expressions = (*self._general, *self._numbered)
        return self._head or any(
            expression.match(name)
            for expression in expressions
            for name in ("lm_head", "language_model.lm_head")
        )

    def effort(self, layers: int) -> int:
        """How many expressions have to be asked for each module, slow ones counted as more."""
        return self._effort_once + layers * self._effort_each

    def match(self, index: int, module: str) -> bool:
        """A layer's module, or a module around it, is named."""
        if module not in self._general_answers:
            self._general_answers[module] = not self._everywhere.isdisjoint(
                runs(module)
            ) or _any_match(self._general, 0, module)
        return (
            self._general_answers[module]
            or not self._by_layer.get(str(index), frozenset()).isdisjoint(heads(module))
            or self._starts_with(index, module)
            or _any_match(self._numbered, index, module)
        )

    def _starts_with(self, index: int, module: str) -> bool:
        """An entry such as ``layers.7.self_attn*`` names the module."""
        starts = (*self._starts.get(str(index), ()), *self._starts.get("", ()))
        return any(
            f"layers.{index}.{path}".startswith(start)
            for path in (paths_of(module) if starts else ())
            for start in starts
        )


def _is_start_of_layer(entry: str) -> bool:
    """``layers.N``, perhaps more, and one wildcard at the end."""
    return entry.startswith("layers.") and entry.endswith("*") and entry.count("*") == 1


def _layer_number(entry: str) -> str:
    """The layer of such an entry; empty if the number itself is cut short (``layers.1*``)."""
    number, dot, _ = entry[:-1].removeprefix("layers.").partition(".")
    return number if dot else ""


def _any_match(expressions: Sequence[re.Pattern[str]], index: int, module: str) -> bool:
    if not expressions:
        return False
    paths = _whole_paths(index, module)
    return any(expression.match(path) for expression in expressions for path in paths)


@functools.lru_cache(8192)
def _whole_paths(index: int, module: str) -> tuple[str, ...]:
    """Every path that a checkpoint may have for a layer's module."""
    return tuple(
        f"{prefix}layers.{index}.{path}" for path in paths_of(module) for prefix in TEXT_PREFIXES
    )
