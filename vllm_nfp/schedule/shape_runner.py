"""What runs probe shapes, as the schedule sees it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from vllm_nfp.types import Shape, Timing


class ShapeRunner(Protocol):
    """Runs probe shapes on the serving stream. One implementation wraps vLLM."""

    def refusal(self, batch_size: int, context: int) -> str | None:
        """Why no step of this batch size and context can be probed; None if one can."""
        ...

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        """Position counts that can be probed in the cell, ascending, beginning with 1."""
        ...

    def ready(self, shape: Shape) -> bool:
        """Whether a launch of this shape would find all that it needs."""
        ...

    def ready_keys(self) -> frozenset[tuple[int, int]]:
        """(batch size, positions) of all shapes that are ready; they are so at every context."""
        ...

    def written_contexts(self) -> tuple[int, ...] | None:
        """Tokens that a sequence may have to read a real one's context, of each, the most first.

        None: it does not matter what KV blocks hold.
        """
        ...

    def serving(self) -> AbstractContextManager[None]:
        """Around what is launched ahead of a real step: it is refused for now if it would stop it.

        The launch of a kernel that is not compiled yet does.
        """
        ...

    def waiting(self) -> AbstractContextManager[None]:
        """Around what is launched while no request is there."""
        ...

    def make_ready(self, shapes: Sequence[Shape]) -> None:
        """Make one piece of what the shapes still lack: a warm-up run, or one graph.

        Shapes that are not among these may lose their graphs for it.

        Raises:
            RefusedForNowError: if they cannot be made ready at the moment.
            ShapeRefusedError: if they can never be made ready here.
        """
        ...

    def launch(self, shape: Shape, draw: int = 0) -> Any:
        """Enqueue one run and return a ticket for its timing; waits for nothing.

        Args:
            draw: which tokens to run on; runs of the same number share theirs as far as they go.

        Raises:
            RefusedForNowError: if the shape cannot be run at the moment.
            ShapeRefusedError: if it can never be run here.
        """
        ...

    def can_launch(self, shape: Shape) -> bool:
        """Do all of a launch that can fail, without running anything; False if it is refused."""
        ...

    def discard(self, ticket: Any) -> None:
        """Give up a ticket unread."""
        ...

    def poll(self, ticket: Any) -> Timing | None:
        """The timing once the device has passed it; None before.

        A ticket that has given its timing has given back its marks: it must not be polled again.
        """
        ...
