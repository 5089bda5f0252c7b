"""How benchmarks.drafts.servers has drafts accepted: all alike, or less from draft to draft."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.drafts.plan import LONGEST

FALLS = ".."


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Probability that a drafted token is accepted, given that those before it were.

    It falls in equal steps from the first to the longest draft's last.
    """

    first: float
    last: float

    @property
    def name(self) -> str:
        """As it is given on the command line: ``0.7``, or ``0.9..0.5`` where it falls."""
        falls = self.last != self.first
        return f"{self.first:g}{FALLS}{self.last:g}" if falls else f"{self.first:g}"

    @property
    def rates(self) -> list[float]:
        """Of each draft, given that those before it were accepted."""
        step = (self.last - self.first) / (LONGEST - 1)
        return [round(self.first + step * place, 6) for place in range(LONGEST)]


def read_acceptance(text: str) -> Acceptance:
    """From its name.

    Raises:
        ValueError: if it is none, or not between 0 and 1.
    """
    first, falls, last = text.partition(FALLS)
    found = Acceptance(float(first), float(last if falls else first))
    if not 0.0 < found.last <= found.first < 1.0:
        raise ValueError(f"an acceptance of {text}")
    return found
