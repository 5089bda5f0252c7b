"""Makes shapes ready to run, one piece at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from vllm_nfp.adapter.out_of_memory import maybe_out_of_memory, refused_without_memory
from vllm_nfp.probe.availability import Availability
from vllm_nfp.probe.shapes import PreparedShape, ShapeKey, key_of
from vllm_nfp.types import RefusedForNowError, Shape, ShapeRefusedError


class Captures(Protocol):
    """What makes a shape ready; see :class:`vllm_nfp.probe.capture.Capturer`."""

    def warm_up(self, shape: PreparedShape, late: bool) -> None:
        """Run the shape once, if it has not run."""
        ...

    def capture_step(self, shape: PreparedShape) -> None:
        """Capture the forward pass and the LM head."""
        ...

    def capture_modules(self, shape: PreparedShape) -> None:
        """Capture the timed modules."""
        ...


class Preparer:
    """Warms shapes up and has their graphs captured within the limits.

    Args:
        availability: which shapes may have graphs.
        captures: runs and captures them.
    """

    def __init__(self, availability: Availability, captures: Captures) -> None:
        self.availability = availability
        self.captures = captures
        self._shapes = availability.shapes
        self._graphs = availability.graphs

    def make_ready(self, wanted: Sequence[Shape]) -> None:
        """Make one piece of what the shapes still lack; older shapes' graphs may go for it.

        Raises:
            RefusedForNowError: if memory does not suffice at the moment.
            ShapeRefusedError: if the limits of memory never allow it.
        """
        keys = [key_of(shape) for shape in wanted]
        for key in keys:
            reason = self.availability.memory_missing(key)
            if reason is not None:
                raise ShapeRefusedError(reason)
            if not self._shapes.is_complete(key):
                if self.availability.limits.on_gpu and self._graphs.device_is_full:
                    raise RefusedForNowError("hardly any GPU memory is free")
                with refused_without_memory():
                    self.make_piece(key, keep=keys)
                return

    def make_piece(self, key: ShapeKey, keep: Collection[ShapeKey]) -> None:
        """Warm up, or capture the step, or capture the modules: whichever comes next.

        Args:
            keep: shapes that keep their graphs.
        """
        maybe_out_of_memory()
        if not self._shapes.is_warm(key):
            self._warm_up(key)
            return
        shape = self._shapes[key]
        first = shape.step_graph is None
        capture = self.captures.capture_step if first else self.captures.capture_modules
        self._graphs.add(key, lambda: capture(shape), keep)

    def _warm_up(self, key: ShapeKey) -> None:
        if self._shapes.started:
            # Its batch is made as well, if nobody has asked for the shape before.
            self._graphs.warm_up(lambda: self.captures.warm_up(self._shapes[key], late=True))
        else:
            self.captures.warm_up(self._shapes[key], late=False)
