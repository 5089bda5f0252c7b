"""Every setting of the probe: its unit, default, bounds and validation."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from vllm_nfp import env_var
from vllm_nfp.crossing import MOST_EPSILON
from vllm_nfp.files import read_bytes
from vllm_nfp.strict_json import parse

T = TypeVar("T")

ENV_VAR = env_var.ENV_VAR

DEFAULT_POSITIONS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
"""Default grid of positions per sequence: dense at usual draft lengths, then 1.5x apart."""

STEP_SHARE_OF_BUDGET = 0.25
MAX_FILE_BYTES = 1 << 20
"""Maximum size of a settings file."""
MAX_POSITIONS_LIMIT = 512
LARGEST_BATCH_SIZE = 4096
MOST_BATCH_SIZES = MOST_CONTEXTS = 16
LEAST_CONTEXT = 256
"""Smallest context of the reported table on servers that allow as much: below it attention is a
small part of a step."""
MOST_EPSILONS = 8
MOST_POSITION_COUNTS = 64
MOST_POINTS = 5120
"""Batch sizes x contexts x positions: some 15 MiB of results with all modules, which the hand-over
file holds (:data:`vllm_nfp.results.snapshot.MAX_FILE_BYTES`). tests/unit/test_series.py counts."""
MOST_DRAFT_LENGTHS = 16


class ConfigError(ValueError):
    """An invalid setting; the message names the value and what is allowed."""


def _from(low: float, high: float, unit: str) -> Meta:
    return Meta(ge=low, le=high, title=unit)


Epsilon = Annotated[float, _from(0.001, MOST_EPSILON, "a fraction")]
Fraction = Annotated[float, _from(0.0, 1.0, "a fraction")]
Half = Annotated[float, _from(0.0, 0.5, "a fraction")]
Seconds = Annotated[float, _from(0.0, 600.0, "seconds")]
Mebibytes = Annotated[int, _from(0, 1 << 20, "MiB")]
Samples = Annotated[int, _from(2, 10000, "a number of samples")]
WantedSamples = Annotated[int, _from(0, 10000, "a number of samples")]
Positions = Annotated[int, _from(1, MAX_POSITIONS_LIMIT, "a number of positions")]
BatchSize = Annotated[int, _from(1, LARGEST_BATCH_SIZE, "a number of sequences")]
Context = Annotated[int, _from(1, 1 << 22, "a number of tokens")]
DraftLength = Annotated[int, _from(0, MAX_POSITIONS_LIMIT, "a draft length")]
Directory = Annotated[str, Meta(min_length=1, pattern="^[^\\0]*$", title="a directory path")]
File = Annotated[str, Meta(min_length=1, pattern="^[^\\0]*$", title="a file path")]
Epsilons = Annotated[tuple[Epsilon, ...], Meta(min_length=1, max_length=MOST_EPSILONS)]
PositionCounts = Annotated[tuple[Positions, ...], Meta(max_length=MOST_POSITION_COUNTS)]
BatchSizes = Annotated[tuple[BatchSize, ...], Meta(max_length=MOST_BATCH_SIZES)]
Contexts = Annotated[tuple[Context, ...], Meta(max_length=MOST_CONTEXTS)]
DraftLengths = Annotated[tuple[DraftLength, ...], Meta(max_length=MOST_DRAFT_LENGTHS)]
_TITLES = {bool: "true or false", str: "text"}


@dataclass(frozen=True, slots=True)
class GraphLimits:
    """Limits of the probe's CUDA graphs."""

    memory_mib: int
    host_mib: int | None
    """None: no limit."""
    shared_pool: bool
    """The graphs use vLLM's graph memory pool."""
    capture_seconds: float
    """At startup."""


GRAPHS_ALONE = GraphLimits(64, 64, shared_pool=True, capture_seconds=3.0)
GRAPHS_TOGETHER = GraphLimits(2048, None, shared_pool=False, capture_seconds=20.0)
"""Several ranks capture all graphs at startup, and each shape keeps its graphs."""


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Settings of the live probe; immutable, JSON-serializable."""

    epsilons: Epsilons = (0.05, 0.1, 0.2)
    """Extra step time that still counts as free, as fractions of t(1) (0.1 = 10 %)."""
    max_positions: Annotated[int, _from(2, MAX_POSITIONS_LIMIT, "a number of positions")] = 32
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
    state_memory_mib: Annotated[int, _from(1, 1 << 20, "MiB")] = 1024
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
    sampled_layers: Annotated[int, _from(0, 4096, "a number of layers")] = 4
    """Decoder layers of each kind whose modules are timed; 0: all layers."""
    min_samples: Annotated[int, _from(1, 1000, "a number of samples")] = 1
    """Pairs of a shape from which its basis is called measured."""
    wanted_samples: WantedSamples = 0
    """Pairs that each point of the reported table gets before pairs are chosen by their value.
    0: all pairs are chosen by their value. vllm-nfp measure sets it to --samples."""
    max_samples: Samples = 32
    """Pairs kept for each shape. New pairs replace the oldest."""
    publish_seconds: Annotated[float, _from(0.1, 3600.0, "seconds")] = 2.0
    """Minimum time between two updates of the metrics, in seconds."""
    draft_acceptance: Fraction | None = None
    """Probability that a draft is accepted, for vllm_nfp_recommended_draft_length. None: as counted
    by the server."""
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
    seed: Annotated[int, _from(0, (1 << 32) - 1, "a seed")] = 0
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

    def __post_init__(self) -> None:
        for name, kind in _field_types().items():
            _check(name, kind, getattr(self, name))
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


def _shown(value: Any) -> str:
    """The value for a message, cut to 80 characters."""
    return f"{value!r:.80}"


@cache
def _field_types() -> dict[str, Any]:
    """The annotations of the settings, with their bounds."""
    return get_type_hints(ProbeConfig, include_extras=True)


def _check(name: str, kind: Any, value: Any) -> None:
    """Check a value against an annotation.

    Raises:
        ConfigError: naming the value and what is allowed.
    """
    if type(None) in get_args(kind):
        if value is None:
            return
        kind = next(one for one in get_args(kind) if one is not type(None))
    plain, *metas = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    if get_origin(plain) is tuple:
        _check_list(name, get_args(plain)[0], metas[0], value)
        return
    try:
        taken = msgspec.convert(value, kind)
    except (ValueError, OverflowError):  # of text that is no Unicode as well
        taken = None
    if taken is None or (plain is int and not isinstance(value, int)):
        raise ConfigError(f"{name} must be {_allowed(plain, metas)}, not {_shown(value)}")


def _check_list(name: str, item: Any, meta: Meta, value: Any) -> None:
    if not isinstance(value, tuple):
        raise ConfigError(f"{name} must be a list, not {_shown(value)}")
    if len(value) < (meta.min_length or 0):
        raise ConfigError(f"{name} must not be empty: pass at least one value")
    if meta.max_length is not None and len(value) > meta.max_length:
        raise ConfigError(f"{name} must hold at most {meta.max_length} values, not {len(value)}")
    for entry in value:
        _check(f"each value of {name}", item, entry)
    if any(a >= b for a, b in itertools.pairwise(value)):
        raise ConfigError(f"{name} must be ascending without repeats, not {list(value)}")


def _allowed(plain: Any, metas: Sequence[Meta]) -> str:
    if not metas:
        return _TITLES[plain]
    meta = metas[0]
    shape = "d" if plain is int else "g"
    bounds = "" if meta.ge is None else f" from {meta.ge:{shape}} to {meta.le:{shape}}"
    return f"{meta.title}{bounds}"


FIELDS = tuple(field.name for field in dataclasses.fields(ProbeConfig))
_USER_FIELDS = tuple(name for name in FIELDS if name != "run_dir")


def config_from_mapping(values: Mapping[str, Any]) -> ProbeConfig:
    """Build the settings from a mapping of field names; lists become tuples.

    Raises:
        ConfigError: for an unknown field or a value out of bounds.
    """
    unknown = sorted(set(values) - set(FIELDS))
    if unknown:
        raise ConfigError(
            f"unknown field {_shown(unknown[0])} in the NFP settings; "
            f"allowed: {', '.join(_USER_FIELDS)}"
        )
    plain: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
    }
    return ProbeConfig(**plain)


def config_from_json(text: str) -> ProbeConfig:
    """Read the settings back from :meth:`ProbeConfig.to_json`."""
    return config_from_mapping(parse_object(text, "the NFP settings"))


def parse_object(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON object; ``what`` names the text in the error.

    Raises:
        ConfigError: if the text is not a JSON object.
    """
    try:
        value = parse(text)
    except ValueError as error:
        raise ConfigError(f"{what} is not valid JSON ({error}): pass an object {{...}}") from None
    if not isinstance(value, dict):
        raise ConfigError(f"{what} must be a JSON object {{...}}, not {type(value).__name__}")
    return value


def read_settings_argument(argument: str) -> dict[str, Any]:
    """Parse the value of ``--nfp-config``: JSON, or ``@file`` with JSON in it.

    Raises:
        ConfigError: if the file cannot be read or is not a JSON object.
    """
    if not argument.startswith("@"):
        return parse_object(argument, "--nfp-config")
    path = Path(argument[1:])
    what = f"--nfp-config file {_shown(str(path))}"
    try:
        text = read_bytes(path, MAX_FILE_BYTES).decode()
    except (OSError, ValueError) as error:  # a null character in the path is a ValueError as well
        reason = error.strerror if isinstance(error, OSError) else error
        reason = "not UTF-8 text" if isinstance(error, UnicodeDecodeError) else reason
        raise ConfigError(f"{what} cannot be read: {reason}") from None
    return parse_object(text, what)


def check_writable_folder(name: str, folder: str) -> None:
    """Create ``folder`` if it is missing and check that a file can be written in it.

    Raises:
        ConfigError: if it cannot be created or written.
    """
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=".nfp-"):
            pass
    except OSError as error:
        raise ConfigError(
            f"{name} {folder!r} cannot be written ({error.strerror}): "
            f"choose a directory that this user can write"
        ) from None


def config_from_environment(environ: Mapping[str, str] = os.environ) -> ProbeConfig | None:
    """The settings that the launcher put into the environment; None if the probe is off."""
    text = environ.get(ENV_VAR)
    return config_from_json(text) if text else None
