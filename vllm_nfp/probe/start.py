"""What the probe makes ready at the start, before any request."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from vllm_nfp.adapter.dispatch import Execution
from vllm_nfp.adapter.out_of_memory import is_out_of_memory
from vllm_nfp.adapter.ranks import Ranks
from vllm_nfp.config import ProbeConfig
from vllm_nfp.faults import maybe_fail
from vllm_nfp.probe.graph_sizes import GraphSizes
from vllm_nfp.probe.memory import GpuMemory
from vllm_nfp.probe.order import kinds_first, spread
from vllm_nfp.probe.prepare import Preparer
from vllm_nfp.probe.shapes import ShapeKey
from vllm_nfp.types import Shape

logger = logging.getLogger("vllm.nfp")

TimeIsUp = Callable[[], bool]


class Start:
    """Learns what graphs take, and warms shapes up.

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
        """Prepare on the only rank; whatever is missing when the time is up is made when asked for.

        First comes what only the start can find out: how large graphs may be, and what they take.
        Then the largest shape runs, even if the time is up: buffers that grow with the step, and
        that something keeps, are then never made in the graphs' memory (see
        :func:`vllm_nfp.probe.device_memory.inside`). Then the others run, for as long as there is
        time: each saves a delayed step later, and kernels are compiled while nobody waits. Their
        graphs are left to the scan, which knows what is worth them.
        """
        keys = self._begin()
        full = [key for key in keys if self._is_full(key)]
        if full and self._limits.on_gpu:
            self._sizes.learn(full, time_is_up)
        allowed = [key for key in keys if self._availability.memory_missing(key) is None]
        graphed = filter(self._is_full, allowed)
        largest = max(graphed, key=lambda key: key[0] * key[1], default=None)
        # On a CPU nothing is compiled, and few shapes run at the start.
        ordered = kinds_first(allowed) if self._limits.on_gpu else allowed
        for key in ordered if largest is None else [largest, *ordered]:
            if key != largest and time_is_up():
                break
            self._warm_up_if_it_fits(key)
        self._end()
        reasons = {key: self._availability.memory_missing(key) for key in keys}
        left_out = {key: reason for key, reason in reasons.items() if reason is not None}
        if left_out:
            (batch_size, positions), reason = min(left_out.items())
            # At the defaults the largest shapes are left out. Without the smallest one all are.
            logger.log(
                logging.WARNING if (batch_size, positions) == min(keys) else logging.INFO,
                "vllm-nfp: %d of %d shapes are left out, the first at B=%d N=%d: %s",
                *(len(left_out), len(keys), batch_size, positions, reason),
            )

    def together(
        self,
        ranks: Ranks,
        can_launch: Callable[[Shape], bool],
        pool_exists: bool,
        time_is_up: TimeIsUp,
    ) -> None:
        """Prepare with the other ranks, each shape on all of them or on none.

        All graphs are made here, as many as there is time and memory for: between steps the ranks
        could not wait for one another's captures. Wherever that ends, the shapes that have theirs
        lie spread over the table; the others are left out.

        Args:
            can_launch: does all of a launch that can fail.
            pool_exists: graphs go to a pool that is there already.
        """
        ordered = self._begin()
        if pool_exists:
            # Larger graphs than vLLM's own are tried as well: what they take is measured.
            self._graphs.allow(max(self._limits.rules.capture_sizes, default=0))
        capture_ended = False
        for key in ordered:
            batch_size, positions = key
            full = self._is_full(key)
            possible = (
                not time_is_up()
                and not (full and capture_ended)
                and (positions == 1 or self._shapes.is_complete((batch_size, 1)))
                and self._availability.memory_missing(key) is None
                and can_launch(Shape(batch_size, min(self._config.contexts), positions))
            )
            if not ranks.all(possible, f"can B={batch_size} N={positions} be made ready"):
                continue
            self._captures.warm_up(self._shapes[key], late=False)
            if full:
                capture_ended = not self._capture_on_all(key, ranks)
        self._tell_of_left_out(ordered)
        self._end()

    def _begin(self) -> list[ShapeKey]:
        """The shapes that may be asked for; takes logits outside graphs off the limit of graphs."""
        maybe_fail("capture")
        keys = self._availability.keys(self._config.batch_sizes, self._config.contexts)
        self._count_buffers()
        eager = max((b * n for b, n in keys if not self._is_full((b, n))), default=0)
        logits = self._limits.server.logits_bytes(eager)
        self._graphs.limit -= min(logits, self._limits.most_logits_bytes)
        return spread(keys)

    def _end(self) -> None:
        self._count_buffers()
        self._shapes.started = True

    def _count_buffers(self) -> None:
        """Take what has been made beside graphs off their limit."""
        before = self._memory.taken
        self._give_back()
        self._graphs.limit -= max(0, self._memory.taken - before)

    def _is_full(self, key: ShapeKey) -> bool:
        return self._limits.placement(*key).execution is Execution.FULL

    def _warm_up_if_it_fits(self, key: ShapeKey) -> None:
        try:
            self._captures.warm_up(self._shapes[key], late=False)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise

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

    def _tell_of_left_out(self, ordered: Sequence[ShapeKey]) -> None:
        ready = sum(map(self._shapes.is_complete, ordered))
        if ready < len(ordered):
            logger.info(
                "vllm-nfp: %d of %d shapes are ready on every rank; the others are inferred. "
                "To measure more, raise graph_memory_mib or capture_seconds in --nfp-config",
                ready,
                len(ordered),
            )
