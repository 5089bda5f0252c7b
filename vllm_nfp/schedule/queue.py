"""Takes targets from the agenda, one after the other."""

from __future__ import annotations

from collections.abc import Callable

from vllm_nfp.schedule.agenda import NO_AGENDA, Agenda
from vllm_nfp.schedule.waits import Waits
from vllm_nfp.types import Shape


class Queue:
    """A place in the latest agenda, and the targets that cannot be run.

    When the agenda is used up before the next one comes, it is begun again at its top. Its shapes
    are ready by then, so that only pairs are paid for; and a second pair of a shape halves the
    variance of the first, while nothing is known of shapes that the agenda leaves out.

    Args:
        latest: gives the latest agenda; a new one is another object.
    """

    def __init__(self, latest: Callable[[], Agenda]) -> None:
        self._latest = latest
        self._agenda = NO_AGENDA
        self._place = 0
        self._waits = Waits()
        self.refused: frozenset[Shape] = frozenset()
        """Targets that can never be run here."""
        self.put_off: frozenset[Shape] = frozenset()
        """Targets that wait, as of the last call: what they lack they may have later."""

    def next(self, now: float) -> Shape | None:
        """The next target to run; None if none can be run.

        Args:
            now: seconds of a monotonic clock.
        """
        shapes = self._follow().shapes
        self.put_off = self._waits.at(now)
        for _ in shapes:
            target = shapes[self._place % len(shapes)]
            self._place += 1
            if target not in self.refused and target not in self.put_off:
                return target
        return None

    @property
    def settled(self) -> bool:
        """Whether pairs only refresh what is known."""
        return self._latest().settled

    @property
    def used_up(self) -> bool:
        """Whether all of the latest agenda has been taken."""
        shapes = self._follow().shapes
        return self._place >= len(shapes)

    def refuse(self, target: Shape) -> None:
        """The target can never be run here."""
        self.refused |= {target}

    def wait(self, target: Shape, now: float) -> None:
        """The target cannot be run at the moment; each further time it waits for longer."""
        self._waits.begin(target, now)
        self.put_off |= {target}

    def measured(self, target: Shape) -> None:
        """The target has been run."""
        self._waits.end(target)

    def _follow(self) -> Agenda:
        latest = self._latest()
        if latest is not self._agenda:
            self._agenda, self._place = latest, 0
        return latest
