"""The probe engine over a vLLM model runner: puts the parts together, and hands calls to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from vllm_nfp.adapter import bindings
from vllm_nfp.adapter.attention_groups import own_groups
from vllm_nfp.adapter.compiling import compiling_refused, compiling_unreported
from vllm_nfp.adapter.dispatch import GraphRules
from vllm_nfp.adapter.expert_loads import ExpertLoads
from vllm_nfp.adapter.graph_place import GraphPlace
from vllm_nfp.adapter.graph_rules import graph_rules
from vllm_nfp.adapter.ranks import Alone, Ranks
from vllm_nfp.adapter.runner import RunnerView
from vllm_nfp.adapter.server_limits import server_limits
from vllm_nfp.adapter.state_layers import without_states
from vllm_nfp.config import GraphLimits, ProbeConfig
from vllm_nfp.probe.availability import Availability
from vllm_nfp.probe.capture import Capturer
from vllm_nfp.probe.cuda_graph import GraphPool
from vllm_nfp.probe.device_memory import device_memory
from vllm_nfp.probe.graph_cache import GraphCache
from vllm_nfp.probe.graph_sizes import GraphSizes, largest_live_graph
from vllm_nfp.probe.kv_check import KvCacheCheck
from vllm_nfp.probe.kv_sums import caches_of
from vllm_nfp.probe.launcher import Launcher, Ticket
from vllm_nfp.probe.limits import ShapeLimits
from vllm_nfp.probe.memory import HostMemory
from vllm_nfp.probe.prepare import Preparer
from vllm_nfp.probe.runtime import runtime_of
from vllm_nfp.probe.shapes import ShapeKey, ShapeTable, key_of
from vllm_nfp.probe.start import Start
from vllm_nfp.probe.states import ProbeStates, states_of
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.probe.written_blocks import written_blocks
from vllm_nfp.timing import Clock
from vllm_nfp.types import Module, Shape, Timing

TOKENS_KEPT = 1 << 15
"""Token ids kept for probes."""


class ProbeEngine:
    """Runs probe shapes on a vLLM runner's model.

    The start runs in inference mode, as vLLM does. Later calls enter it themselves, so that steps
    without a probe do not pay for it.

    Args:
        view: the runner.
        clock: CUDA events on a GPU, the host's clock on a CPU.
        config: the probe's settings.
        graphs: what its CUDA graphs may take.
        place: memory pool and stream of vLLM's own graphs, for the probe's to share; None: the
            probe's have a pool of their own.
        ranks: those that run each shape with this one.

    Raises:
        UnknownVllmError: if vLLM is unlike what is known of it.
        UnsupportedModelError: if the model's layers cannot be told apart.
        CellDoesNotFitError: if its KV cache cannot be addressed block by block.
    """

    def __init__(
        self,
        view: RunnerView,
        clock: Clock,
        config: ProbeConfig,
        graphs: GraphLimits,
        place: GraphPlace | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        bindings.check(view.vllm_config)
        self._loads = ExpertLoads(view)
        self._ranks: Ranks = ranks or Alone()
        self._device_memory = device_memory(view.device)
        self.states = states_of(view, config)  # not counted with the graphs
        """What layers with a recurrent state work on; None: the model has none."""
        self._memory = self._device_memory.meter()
        host = HostMemory(None if graphs.host_mib is None else graphs.host_mib << 20)
        limits = _limits_of(view, config, graphs.memory_mib, self._ranks, self.states)
        # Scratch that new builders gave up: a buffer made in its block would keep all of it.
        self._device_memory.give_back()
        server = limits.server
        kept = max(TOKENS_KEPT, server.max_step_tokens)
        self.tokens = TokenPool(server.vocabulary, kept, view.device, config.seed)
        """What probes run on; the session adds the ids of live prompts."""
        self.written = written_blocks(view, limits.groups)
        """Contexts of real sequences; the session notes them. None: they do not matter."""
        self._runtime = runtime_of(
            view, clock, config, limits, self.tokens, self._ranks, self.states, self.written
        )
        timed = bool(self._runtime.forward.timed)
        shapes = self._shapes = ShapeTable(self._runtime.batches.build, times_modules=timed)
        self._pool = GraphPool(place, self._device_memory.own_place)
        self._graphs: GraphCache[ShapeKey] = GraphCache(
            graphs.memory_mib << 20,
            self._memory,
            host,
            lambda key: shapes[key].give_up_graphs(),
            self._pool.forget_own,
        )
        self._availability = Availability(limits, shapes, self._graphs, self._ranks.alone)
        context = min(config.contexts)
        captures = Capturer(self._runtime, self._pool, self._device_memory, context)
        self._preparer = Preparer(self._availability, captures)
        live_tokens = largest_live_graph(limits.rules, view.decode_positions)
        give_back = self.give_back_cache
        sizes = GraphSizes(self._preparer, self._pool, self._device_memory, give_back, live_tokens)
        self._start = Start(config, self._preparer, sizes, self._memory, give_back)
        self._launcher = Launcher(self._runtime, self._availability, view.device)
        self._kv_check = KvCacheCheck(
            config,
            lambda: caches_of(
                view.vllm_config.compilation_config.static_forward_context, view.runner.kv_caches
            ),
            self._runtime,
            self._availability,
            self._launcher,
        )

    def refusal(self, batch_size: int, context: int) -> str | None:
        """Why the cell cannot be probed at all; None if at least two positions can be."""
        return self._availability.refusal(batch_size, context)

    def positions(self, batch_size: int, context: int) -> tuple[int, ...]:
        """Position counts that can be probed in the cell, ascending, beginning with 1."""
        return self._availability.positions(batch_size, context)

    def prepare(self, time_is_up: Callable[[], bool] = lambda: False) -> None:
        """Learn what graphs take, and warm shapes up.

        What is missing when the time is up is made by :meth:`make_ready`, between steps. With
        several ranks all graphs are made here.
        """
        with self._loads.unrecorded(), compiling_unreported():
            if self._ranks.alone:
                self._start.alone(time_is_up)
            else:
                can_launch = self._launcher.can_launch
                self._start.together(self._ranks, can_launch, self._pool.exists, time_is_up)

    def give_back_cache(self) -> None:
        """Return what is left in PyTorch's cache; for the start only, since it waits."""
        self._device_memory.give_back()
        self._memory.count_reserve()

    @property
    def timed_layers(self) -> int:
        """Decoder layers whose modules are timed."""
        return len(self._runtime.forward.timed)

    @property
    def modules(self) -> tuple[Module, ...]:
        """The modules of the timed layers; the whole step is not among them."""
        kinds = {kind for layer in self._runtime.forward.timed for kind in layer.modules}
        if not self._ranks.alone:
            kinds.add(Module.COMMUNICATION)
        return tuple(module for module in Module if module in kinds)

    @property
    def rules(self) -> GraphRules:
        """How steps of each shape are launched."""
        return self._availability.limits.rules

    @property
    def num_layers(self) -> int:
        """Decoder layers of the model."""
        return self._runtime.forward.num_layers

    @property
    def on_gpu(self) -> bool:
        """Steps run on a GPU, not on the CPU."""
        return self._availability.limits.on_gpu

    @property
    def graph_bytes(self) -> int:
        """GPU memory of the probe: buffers, graphs, their pool's growth, recurrent states."""
        return self._memory.taken + (0 if self.states is None else self.states.held_bytes)

    @property
    def shares_graph_memory(self) -> bool:
        """The probe's graphs lie in the pool of vLLM's."""
        return self._pool.shared

    def ready(self, shape: Shape) -> bool:
        """Whether a launch would find all that it needs."""
        return self._shapes.is_complete(key_of(shape))

    def ready_keys(self) -> frozenset[ShapeKey]:
        """All shapes of which a launch would find all that it needs."""
        return frozenset(filter(self._shapes.is_complete, self._shapes))

    def written_contexts(self) -> tuple[int, ...] | None:
        """Tokens that a sequence may have to read a real one's context; None: it need not."""
        return None if self.written is None else self.written.lengths

    def serving(self) -> AbstractContextManager[None]:
        """Around a launch ahead of a real step; see :mod:`vllm_nfp.adapter.compiling`.

        Several ranks make all that they run at the start, and one that refused alone would leave
        the others in their collectives.
        """
        return compiling_refused() if self._ranks.alone else nullcontext()

    def waiting(self) -> AbstractContextManager[None]:
        """Around a launch while no request is there."""
        return compiling_unreported()

    def make_ready(self, shapes: Sequence[Shape]) -> None:
        """Make one piece of what the shapes still lack; see :meth:`Preparer.make_ready`."""
        with self._loads.running():
            self._preparer.make_ready(shapes)

    def launch(self, shape: Shape, draw: int = 0) -> Ticket:
        """Enqueue the step and the modules of one shape; see :meth:`Launcher.launch`."""
        with self._loads.running():
            return self._launcher.launch(shape, draw)

    def can_launch(self, shape: Shape) -> bool:
        """Do all of a launch that can fail; see :meth:`Launcher.can_launch`."""
        with self._loads.running():
            return self._launcher.can_launch(shape)

    def poll(self, ticket: Ticket) -> Timing | None:
        """The timing, once the device has passed the run; see :meth:`Launcher.poll`."""
        return self._launcher.poll(ticket)

    def discard(self, ticket: Ticket) -> None:
        """Give a ticket up unread."""
        self._launcher.discard(ticket)

    def check_proofs(self) -> None:
        """Judge the proofs under way whose sums are there; waits for nothing.

        Raises:
            KvCacheWrittenError: if a run has changed the KV cache.
        """
        self._runtime.prover.check()

    def check_kv_cache_untouched(self) -> None:
        """Before :meth:`prepare`, and after it; see :meth:`KvCacheCheck.run`."""
        with self._loads.unrecorded():
            self._kv_check.run()

    def close(self) -> None:
        """Give up graphs and buffers."""
        for key in list(self._shapes):
            if key in self._graphs:
                self._graphs.evict(key)
        self._shapes.clear()
        self._runtime.batches.close()
        if self.states is not None:
            self.states.close()


def _limits_of(
    view: RunnerView,
    config: ProbeConfig,
    graph_memory_mib: int,
    ranks: Ranks,
    states: ProbeStates | None,
) -> ShapeLimits:
    runner, vllm_config, device = view.runner, view.vllm_config, view.device
    num_blocks = runner.kv_cache_config.num_blocks
    groups = own_groups(without_states(runner.attn_groups), num_blocks, vllm_config, device)
    return ShapeLimits(
        server=server_limits(vllm_config),
        grid=config.grid,
        groups=groups,
        # Engines that take their steps together may have KV caches of unequal sizes.
        fewest_blocks=tuple(ranks.least(group.num_blocks, "KV blocks") for group in groups),
        rules=graph_rules(vllm_config, runner.attn_groups, device),
        graph_memory_mib=graph_memory_mib,
        on_gpu=device.type == "cuda",
        # With several ranks it ends in a collective that vLLM itself never captures.
        head_in_graph=ranks.alone,
        states=None if states is None else states.room,
    )
