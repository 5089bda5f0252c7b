"""What the probe makes ready at the start, before any request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from vllm_nfp.adapter.out_of_memory import is_out_of_memory
from vllm_nfp.adapter.ranks import Ranks
from vllm_nfp.config import ProbeConfig
from vllm_nfp.faults import maybe_fail
from vllm_nfp.probe.graph_sizes import GraphSizes, fewest_positions_first
from vllm_nfp.probe.memory import GpuMemory
from vllm_nfp.probe.prepare import Preparer
from vllm_nfp.probe.shapes import ShapeKey
from vllm_nfp.types import Shape

logger = logging.getLogger("vllm.nfp")

TimeIsUp = Callable[[], bool]


class Start:
    """Makes buffers, learns what graphs take, and warms shapes up.

    Args:
        config: which shapes are wanted.
        preparer: makes them ready.
        sizes: learns what graphs take.
        memory: what the probe takes from the GPU.
        give_back: returns what is left in PyTorch's cache, and counts what is not.
    """

    def __init__(
        self,
        config: ProbeConfig,
        preparer: Preparer,
        sizes: GraphSizes,
        memory: GpuMemory,
        give_back: Callable[[], None],
    ) -> None:
        self._config = config
        self._preparer = preparer
        self._captures = preparer.captures
        self._availability = preparer.availability
        self._limits = preparer.availability.limits
        self._shapes = preparer.availability.shapes
        self._graphs = preparer.availability.graphs
        self._sizes = sizes
        self._memory = memory
        self._give_back = give_back

    def alone(self, time_is_up: TimeIsUp) -> None:
        """Prepare on the only rank.

        Graphs that are not there when the time is up are made between steps; shapes that would
        need one and are not warmed up by then are left out.
        """
        keys = self._make_buffers()
        full = [key for key in keys if self._shapes[key].full]
        if full and self._limits.on_gpu:
            self._sizes.learn(full, time_is_up)
        allowed = [key for key in keys if self._availability.memory_missing(key) is None]
        for key in fewest_positions_first(allowed):
            if time_is_up():
                break
            self._warm_up_if_it_fits(key)
        self._end()
        missing = {self._availability.memory_missing(key) for key in keys}
        for reason in sorted(reason for reason in missing if reason is not None):
            logger.warning("vllm-nfp: shapes are left out: %s", reason)

    def together(
        self,
        ranks: Ranks,
        can_launch: Callable[[Shape], bool],
        pool_exists: bool,
        time_is_up: TimeIsUp,
    ) -> None:
        """Prepare with the other ranks, each shape on all of them or on none.

        All graphs are made here, few positions first, as many as fit: between steps the ranks
        could not wait for one another's captures. Shapes that lack theirs are left out.

        Args:
            can_launch: does all of a launch that can fail.
            pool_exists: graphs go to a pool that is there already.
        """
        ordered = fewest_positions_first(self._make_buffers())
        if pool_exists:
            # Larger graphs than vLLM's own are tried as well: what they take is measured.
            self._graphs.allow(max(self._limits.rules.capture_sizes, default=0))
        capture_ended = False
        for key in ordered:
            batch_size, positions = key
            shape = self._shapes[key]
            possible = (
                not time_is_up()
                and not (shape.full and capture_ended)
                and self._availability.memory_missing(key) is None
                and can_launch(Shape(batch_size, min(self._config.contexts), positions))
            )
            if not ranks.all(possible, f"can B={batch_size} N={positions} be made ready"):
                continue
            self._captures.warm_up(shape, prove=False)
            if shape.full:
                capture_ended = not self._capture_on_all(key, ranks)
        self._warn_of_left_out(ordered)
        self._end()

    def _make_buffers(self) -> set[ShapeKey]:
        """Make the batches of all shapes, and take what they hold off the limit of the graphs."""
        maybe_fail("capture")
        keys = self._availability.keys(self._config.batch_sizes, self._config.contexts)
        made = [self._shapes[key] for key in keys]
        self._give_back()
        eager = max((shape.batch.tokens for shape in made if not shape.full), default=0)
        logits = self._limits.server.logits_bytes(eager)
        self._graphs.limit -= self._memory.taken + min(logits, self._limits.most_logits_bytes)
        return keys

    def _end(self) -> None:
        self._give_back()
        self._shapes.started = True

    def _warm_up_if_it_fits(self, key: ShapeKey) -> None:
        shape = self._shapes[key]
        try:
            self._captures.warm_up(shape, prove=False)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            if shape.full:  # others may be warmed up later
                reason = "there was no GPU memory to run it in at the start"
                self._availability.leave_out(key, reason)

    def _capture_on_all(self, key: ShapeKey, ranks: Ranks) -> bool:
        """Capture the shape's graphs; False if a rank has no room: then none captures another."""
        try:
            while not self._shapes.is_complete(key):
                self._preparer.make_piece(key, keep=set(self._shapes))
            fits = self._graphs.fits
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        if ranks.all(fits, "does the graph fit"):
            return True
        if key in self._graphs:
            self._graphs.evict(key)
        else:
            self._shapes[key].give_up_graphs()
        return False

    def _warn_of_left_out(self, ordered: Sequence[ShapeKey]) -> None:
        left_out = sum(not self._shapes.is_complete(key) for key in ordered)
        if left_out:
            logger.warning(
                "vllm-nfp: %d of %d shapes are not ready on every rank and are left out: "
                "raise graph_memory_mib or capture_seconds in --nfp-config",
                left_out,
                len(ordered),
            )
