"""Which rows of a table to show: ``--batch-sizes`` and ``--contexts`` of table and watch."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import click

from vllm_nfp.cli.common import Refusal, parse_list
from vllm_nfp.cli.nfp_table import Line
from vllm_nfp.results.scrape import Row

C = TypeVar("C", bound=Callable[..., Any])
P = TypeVar("P", Row, Line[Row])


@dataclass(frozen=True, slots=True)
class Filter:
    """Which batch sizes and contexts to show; empty: all."""

    batch_sizes: tuple[int, ...] = ()
    contexts: tuple[int, ...] = ()

    def applied(self, rows: Sequence[P]) -> list[P]:
        """The rows to show.

        Raises:
            Refusal: for a batch size or context that no row has.
        """
        _check("--batch-sizes", self.batch_sizes, {row.batch_size for row in rows})
        _check("--contexts", self.contexts, {row.context for row in rows})
        return [row for row in rows if self._shows(row.batch_size, row.context)]

    def _shows(self, batch_size: int, context: int | None) -> bool:
        return batch_size in (self.batch_sizes or (batch_size,)) and (
            context is None or context in (self.contexts or (context,))
        )


def _check(flag: str, wanted: Iterable[int], found: AbstractSet[int | None]) -> None:
    known = sorted(value for value in found if value is not None)
    for value in wanted:
        if known and value not in known:
            shown = ", ".join(map(str, known))
            raise Refusal(f"{flag} {value} is not reported by this server: give one of {shown}")


def filter_options(command: C) -> C:
    """Add ``--batch-sizes`` and ``--contexts``, handed over as one :class:`Filter`, ``shown``."""

    @click.option("--batch-sizes", default="", help="Show only these batch sizes, e.g. 1,8,32.")
    @click.option("--contexts", default="", help="Show only these contexts, e.g. 1024,4096.")
    @functools.wraps(command)
    def with_filter(batch_sizes: str, contexts: str, **arguments: Any) -> Any:
        given = Filter(
            parse_list(batch_sizes, int, "--batch-sizes") if batch_sizes else (),
            parse_list(contexts, int, "--contexts", "1024,4096") if contexts else (),
        )
        return command(shown=given, **arguments)

    return cast(C, with_filter)
