"""What a claim is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

Figures: TypeAlias = Mapping[str, str]
"""Name of a figure -> as it is printed."""


def each(figure: str, at: Iterable[int], end: str = "") -> str:
    """The figure at several loads or moments, as a template.

    >>> each("p50", (10, 50))
    '{p50_10}, {p50_50}'
    """
    return ", ".join(f"{{{figure}_{place}{end}}}" for place in at)


@dataclass(frozen=True, slots=True)
class Quote:
    """A place that quotes figures.

    Attributes:
        path: relative to the checkout.
        text: what stands there, with ``{name}`` for each figure; white space counts as one blank.
    """

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Run:
    """How a record is made.

    Attributes:
        commands: one after the other; ``{out}`` is the directory for the record, ``{within}`` the
            seconds in which a command has to end.
        within: those seconds, unless the caller gives others; None: the commands take none.
    """

    commands: tuple[str, ...]
    within: int | None = None

    def filled(self, out: str, within: int | None = None) -> list[str]:
        """The commands as they are typed.

        Raises:
            ValueError: if the commands take no limit.
        """
        if within is not None and self.within is None:
            raise ValueError("its commands take no limit: leave out --within")
        seconds = self.within if within is None else within
        return [command.format(out=out, within=seconds) for command in self.commands]


@dataclass(frozen=True, slots=True)
class Claim:
    """A sentence with figures, and all that is needed to check it.

    Attributes:
        sentence, interval, count: of the row in docs/evidence.md, with ``{name}`` for each figure;
            ``count`` is what the figures rest on.
        figures: computes them from the record.
        record: file or directory, relative to the checkout; None: not in it, and given to the
            check by ``--public``.
        run: what makes the record.
        commit: of the run; None: none was recorded.
        rests_on: paths whose change makes the record stale, as git takes them
            (``:(exclude)PATH`` leaves out). What only scores the record is not among them: each
            check runs it anew.
        added: commit that added the record, for one whose own commit was not recorded. Its code
            is that of the run or newer.
    """

    name: str
    sentence: str
    interval: str
    count: str
    figures: Callable[[Path], Figures]
    record: str | None
    run: Run
    commit: str | None
    date: str
    gpu: str
    rests_on: tuple[str, ...]
    quotes: tuple[Quote, ...]
    added: str | None = None


@dataclass(frozen=True, slots=True)
class Planned:
    """What no record shows yet.

    Attributes:
        shows: what the run is to show.
        reason: why there is no record.
    """

    name: str
    shows: str
    run: Run
    reason: str
