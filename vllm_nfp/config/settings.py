"""Every setting of the probe, with its unit and default."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

from vllm_nfp.config.bounds import (
    LARGEST_BATCH_SIZE,
    MAX_POSITIONS_LIMIT,
    MOST_POINTS,
    BatchSizes,
    ConfigError,
    Contexts,
    Directory,
    DraftLengths,
    Epsilons,
    File,
    Fraction,
    Half,
    Mebibytes,
    PositionCounts,
    Samples,
    Seconds,
    WantedSamples,
    bounded,
    check,
)
from vllm_nfp.config.graph_limits import GRAPHS_ALONE, GRAPHS_TOGETHER, GraphLimits

T = TypeVar("T")

DEFAULT_POSITIONS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Default grid of positions per sequence: dense at usual draft lengths, then 1.5x apart."""

STEP_SHARE_OF_BUDGET = 0.25
LEAST_CONTEXT = 256
"""Smallest context of the reported table on servers that allow as much: below it attention is a
small part of a step."""


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Settings of the live probe; immutable, JSON-serializable."""

    epsilons: Epsilons = (0.05, 0.1, 0.2)
    """Extra step time that still counts as free, as fractions of t(1) (0.1 = 10 %)."""
    max_positions: Annotated[int, bounded(2, MAX_POSITIONS_LIMIT, "a number of positions")] = 32
    """Largest number of positions per sequence to probe."""
    positions: PositionCounts = ()
    """Positions per sequence to probe; empty: the default grid up to max_positions."""
    batch_sizes: BatchSizes = ()
    """Batch sizes of the reported table, in sequences; empty: powers of two up to
    --max-num-seqs, and that number itself."""
    contexts: Contexts = ()
    """Contexts of the reported table, in tokens; empty: powers of four from 256 up to
    --max-model-len."""
    passive: bool = False
    """Time real steps only and run no probes."""
    overhead_budget: Half = 0.01
    """Maximum fraction of GPU time for probing (0.01 = 1 %)."""
    step_share: Fraction | None = None
    """Maximum fraction of decode steps that probes may delay. None: a quarter of overhead_budget.
    The default, 0.25 %, is well below the 1 % of steps beyond the 99th percentile of inter-token
    latency."""
    idle_share: Half = 0.05
    """Maximum fraction of the time without any request for probing; 0: none."""
    startup_seconds: Seconds = 2.0
    """Time for a first scan before the server accepts requests; 0: no scan. Together with
    capture_seconds it limits the added startup time. The piece of work that is running then still
    finishes."""
    capture_seconds: Seconds | None = None
    """Maximum startup time for the check of the KV cache, warm-up and the first graphs. The rest is
    done between steps, within the budget. None: 3 s, or 20 s with several ranks, which capture all
    graphs at startup."""
    graph_memory_mib: Mebibytes | None = None
    """Maximum GPU memory of the probe, in MiB: its buffers, its CUDA graphs, and their addition to
    vLLM's graph memory. It limits how many shapes have graphs at a time; graphs of others are
    captured when needed. None: 64, or 2048 with several ranks, where each shape keeps its
    graphs."""
    state_memory_mib: Annotated[int, bounded(1, 1 << 20, "MiB")] = 1024
    """Maximum memory for recurrent states of the probe's own, in MiB, on each GPU; used only where
    layers keep a state (Gated DeltaNet, Mamba 2, ...). All layers share it. Shapes whose states of
    one layer exceed it are not probed."""
    host_memory_mib: Mebibytes | None = None
    """Maximum growth of the worker's own resident memory (pages of files are not counted), in MiB.
    Above it, a shape gets CUDA graphs
    only in place of an older one; at least two shapes keep theirs. None: 64, or no limit with
    several ranks."""
    share_graph_pool: bool | None = None
    """Share vLLM's graph memory pool, so that 64 MiB are enough. None: yes, except with several
    ranks."""
    bidirectional: bool = False
    """Let the positions of a sequence attend to each other, as in block diffusion. Always on for
    models that vLLM decodes by diffusion."""
    sampled_layers: Annotated[int, bounded(0, 4096, "a number of layers")] = 4
    """Decoder layers of each kind whose modules are timed; 0: all layers."""
    min_samples: Annotated[int, bounded(1, 1000, "a number of samples")] = 1
    """Pairs of a shape from which its basis is called measured."""
    wanted_samples: WantedSamples = 0
    """Pairs that each point of the reported table gets before pairs are chosen by their value.
    0: all pairs are chosen by their value. vllm-nfp measure sets it to --samples."""
    max_samples: Samples = 32
    """Pairs kept for each shape. New pairs replace the oldest."""
    publish_seconds: Annotated[float, bounded(0.1, 3600.0, "seconds")] = 2.0
    """Minimum time between two updates of the metrics, in seconds."""
    draft_acceptance: Fraction | None = None
    """Probability that a draft is accepted, for vllm_nfp_recommended_draft_length. None: as counted
    by the server."""
    mend_graphs: bool | None = None
    """Let each draft length of a table find its own CUDA graphs, which the V2 runner of vLLM 0.32
    and 0.33 overlooks in part: servers with EAGLE or MTP drafters stall then. Under adaptive
    verification also capture such a drafter's graphs like the model's. Steps run in other graphs,
    so that low-order bits of outputs may differ. None: with draft_control or verification_costs,
    which change steps anyway."""
    draft_control: bool = False
    """Choose the draft length of each step live, from measured step times and acceptance."""
    draft_lengths: DraftLengths = ()
    """Draft lengths that draft control may choose, including 0; empty: a default set up to
    num_speculative_tokens. Each has its own CUDA graphs."""
    draft_min_gain: Fraction = 0.01
    """Minimum gain in goodput, as a fraction, to switch to another draft length."""
    draft_trial_loss: Half = 0.005
    """Maximum fraction of goodput that trials of other draft lengths may cost."""
    verification_costs: bool = False
    """Give vLLM's adaptive verification the measured costs of steps. Other drafts are then
    verified, so that batches have other shapes and low-order bits of outputs may differ."""
    layer_histograms: bool = False
    """Export vllm_nfp_layer_latency_seconds: one histogram per timed layer and module."""
    seed: Annotated[int, bounded(0, (1 << 32) - 1, "a seed")] = 0
    """Random seed for the order of probes, their KV blocks and their token ids."""
    output_dir: Directory | None = None
    """Directory for raw samples and results. None: nothing is kept after the server ends."""
    start_profile: File | None = None
    """Profile of the same model, GPU, attention backend and tensor parallel size, to start from.
    None: the profile in output_dir, if there is one."""
    hardware_file: File | None = None
    """Hardware file of this GPU, from vllm-nfp calibrate, for the predictions. None: the built-in
    constants."""
    run_dir: Directory | None = None
    """Directory of the hand-over file for /metrics. Set by the launcher."""
    fill_first: bool = False
    """Put the first scan of a model with experts off until real steps have filled the KV cache. Set
    by vllm-nfp measure."""

    def __post_init__(self) -> None:
        for name, kind in _field_types().items():
            check(name, kind, getattr(self, name))
        if self.positions and self.positions[0] != 1:
            raise ConfigError(
                f"positions must begin with 1, the baseline, not {self.positions[0]}: "
                f"add 1 to the list"
            )
        if self.positions and self.positions[-1] > self.max_positions:
            raise ConfigError(
                f"positions holds {self.positions[-1]}, above max_positions {self.max_positions}: "
                f"raise max_positions or remove it from the list"
            )
        points = len(self.batch_sizes) * len(self.contexts) * len(self.grid)
        if points > MOST_POINTS:
            raise ConfigError(
                f"batch_sizes x contexts x positions is {len(self.batch_sizes)} x "
                f"{len(self.contexts)} x {len(self.grid)} = {points} points, above {MOST_POINTS}: "
                f"pass fewer of them"
            )
        if self.draft_lengths and (self.draft_lengths[0] != 0 or len(self.draft_lengths) < 2):
            raise ConfigError(
                f"draft_lengths must begin with 0 (no drafts) and contain at least one more, not "
                f"{list(self.draft_lengths)}"
            )
        if self.max_samples < self.min_samples:
            raise ConfigError(
                f"max_samples {self.max_samples} is below min_samples {self.min_samples}: "
                f"pass at least {self.min_samples}"
            )

    @property
    def grid(self) -> tuple[int, ...]:
        """Probed positions per sequence, ascending from 1."""
        if self.positions:
            return self.positions
        # Draft control needs the curve at its lengths: K drafts run K + 1 positions.
        wanted = {*DEFAULT_POSITIONS, *(k + 1 for k in self.draft_lengths), self.max_positions}
        return tuple(sorted(n for n in wanted if n <= self.max_positions))

    def for_server(self, max_num_seqs: int, max_model_len: int) -> ProbeConfig:
        """The settings with the batch sizes and contexts that a server reports.

        Args:
            max_num_seqs: most sequences of a step.
            max_model_len: most tokens of a sequence.
        """
        batch_sizes = self.batch_sizes or reported_batch_sizes(max_num_seqs)
        contexts = self.contexts or reported_contexts(max_model_len)
        return dataclasses.replace(self, batch_sizes=batch_sizes, contexts=contexts)

    @property
    def delayed_steps(self) -> float:
        """Maximum fraction of real decode steps that probes may delay."""
        if self.step_share is not None:
            return self.step_share
        return STEP_SHARE_OF_BUDGET * self.overhead_budget

    def graph_limits(self, ranks: int = 1) -> GraphLimits:
        """Limits of the CUDA graphs on each of ``ranks`` ranks that probe together."""
        default = GRAPHS_ALONE if ranks == 1 else GRAPHS_TOGETHER

        def chosen(value: T | None, otherwise: T) -> T:
            return otherwise if value is None else value

        return GraphLimits(
            chosen(self.graph_memory_mib, default.memory_mib),
            chosen(self.host_memory_mib, default.host_mib),
            chosen(self.share_graph_pool, default.shared_pool),
            chosen(self.capture_seconds, default.capture_seconds),
        )

    def to_json(self) -> str:
        """The settings as JSON that :func:`config_from_json` reads back."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def reported_batch_sizes(most: int) -> tuple[int, ...]:
    """Powers of two up to the largest batch, and that one, ascending; at least (1,).

    Of a larger batch than the settings allow, those that they allow.
    """
    most = min(max(1, most), LARGEST_BATCH_SIZE)
    return tuple(sorted({most, *(1 << i for i in range(most.bit_length()))}))


def reported_contexts(most: int) -> tuple[int, ...]:
    """Powers of four from 256 that leave room for two positions, ascending.

    Where not even 256 does, the largest smaller power of four alone.
    """
    powers = [4**i for i in range(12) if 4**i + 2 <= most] or [1]
    return tuple(power for power in powers if power >= LEAST_CONTEXT) or (powers[-1],)


@cache
def _field_types() -> dict[str, Any]:
    """The annotations of the settings, with their bounds."""
    return get_type_hints(ProbeConfig, include_extras=True)
