"""Every setting of the probe: its unit, default, bounds and validation."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vllm_nfp import env_var
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
MOST_BATCH_SIZES = MOST_CONTEXTS = 16
MOST_EPSILONS = 8
MOST_POSITION_COUNTS = 64


class ConfigError(ValueError):
    """An invalid setting; the message names the value and what is allowed."""


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

    epsilons: tuple[float, ...] = (0.05, 0.1, 0.2)
    """Extra step time that still counts as free, as fractions of t(1) (0.1 = 10 %)."""
    max_positions: int = 32
    """Largest number of positions per sequence to probe."""
    positions: tuple[int, ...] = ()
    """Positions per sequence to probe; empty: the default grid up to max_positions."""
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    """Batch sizes to probe, in sequences. A live batch uses the next larger one."""
    contexts: tuple[int, ...] = (1024, 4096, 16384)
    """Contexts to probe, in tokens. A live context uses the next larger one."""
    passive: bool = False
    """Time real steps only and run no probes."""
    overhead_budget: float = 0.01
    """Maximum fraction of GPU time for probing (0.01 = 1 %)."""
    step_share: float | None = None
    """Maximum fraction of decode steps that probes may delay. None: a quarter of overhead_budget.
    The default, 0.25 %, is well below the 1 % of steps beyond the 99th percentile of inter-token
    latency."""
    idle_share: float = 0.05
    """Maximum fraction of the time without any request for probing; 0: none."""
    startup_seconds: float = 2.0
    """Time for a first scan before the server accepts requests; 0: no scan. Together with
    capture_seconds it limits the added startup time. The piece of work that is running then still
    finishes."""
    capture_seconds: float | None = None
    """Maximum startup time for the check of the KV cache, warm-up and the first graphs. The rest is
    done between steps, within the budget. None: 3 s, or 20 s with several ranks, which capture all
    graphs at startup."""
    graph_memory_mib: int | None = None
    """Maximum GPU memory of the probe, in MiB: its buffers, its CUDA graphs, and their addition to
    vLLM's graph memory. It limits how many shapes have graphs at a time; graphs of others are
    captured when needed. None: 64, or 2048 with several ranks, where each shape keeps its
    graphs."""
    host_memory_mib: int | None = None
    """Maximum growth of the worker's resident memory, in MiB. Above it, a shape gets CUDA graphs
    only in place of an older one; at least two shapes keep theirs. None: 64, or no limit with
    several ranks."""
    share_graph_pool: bool | None = None
    """Share vLLM's graph memory pool, so that 64 MiB are enough. None: yes, except with several
    ranks."""
    bidirectional: bool = False
    """Let the positions of a sequence attend to each other, as in block diffusion. Always on for
    models that vLLM decodes by diffusion."""
    sampled_layers: int = 4
    """Decoder layers of each kind whose modules are timed; 0: all layers."""
    min_samples: int = 6
    """Pairs that a point needs before it is used. 6 is the minimum for a 95 % interval."""
    wanted_samples: int = 6
    """Pairs that each point gets before any point gets more, if larger than min_samples."""
    max_samples: int = 32
    """Pairs kept for each point. New pairs replace the oldest."""
    publish_seconds: float = 2.0
    """Minimum time between two updates of the metrics, in seconds."""
    draft_acceptance: float | None = None
    """Probability that a draft is accepted, for vllm_nfp_recommended_draft_length. None: as counted
    by the server."""
    draft_control: bool = False
    """Choose the draft length of each step live, from measured step times and acceptance."""
    draft_lengths: tuple[int, ...] = ()
    """Draft lengths that draft control may choose, including 0; empty: a default set up to
    num_speculative_tokens. Each has its own CUDA graphs."""
    draft_min_gain: float = 0.01
    """Minimum gain in goodput, as a fraction, to switch to another draft length."""
    draft_trial_loss: float = 0.005
    """Maximum fraction of goodput that trials of other draft lengths may cost."""
    layer_histograms: bool = False
    """Export vllm_nfp_layer_latency_seconds: one histogram per timed layer and module."""
    seed: int = 0
    """Random seed for the order of probes, their KV blocks and their token ids."""
    output_dir: str | None = None
    """Directory for raw samples and results. None: nothing is kept after the server ends."""
    run_dir: str | None = None
    """Directory of the hand-over file for /metrics. Set by the launcher."""
    off_reason: str | None = None
    """Reason why nothing is hooked, for /metrics. Set by the launcher."""

    def __post_init__(self) -> None:
        for name, check in _CHECKS.items():
            check(name, getattr(self, name))
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

    @property
    def delayed_steps(self) -> float:
        """Maximum fraction of real decode steps that probes may delay."""
        if self.step_share is not None:
            return self.step_share
        return STEP_SHARE_OF_BUDGET * self.overhead_budget

    def graph_limits(self, ranks: int = 1) -> GraphLimits:
        """Limits of the CUDA graphs on each rank of ``ranks`` tensor-parallel ranks."""
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


def _shown(value: Any) -> str:
    """The value for a message, cut to 80 characters."""
    return f"{value!r:.80}"


def _number(low: float, high: float, unit: str) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        valid = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not valid or not low <= value <= high:  # which NaN never is
            raise ConfigError(
                f"{name} must be {unit} from {low:g} to {high:g}, not {_shown(value)}"
            )

    return check


def _optional(item: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if value is not None:
            item(name, value)

    return check


def _integer(low: int, high: int, unit: str) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ConfigError(f"{name} must be {unit} from {low} to {high}, not {_shown(value)}")

    return check


def _ascending(
    item: Callable[[str, Any], None], most: int, may_be_empty: bool = False
) -> Callable[[str, Any], None]:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, tuple):
            raise ConfigError(f"{name} must be a list, not {_shown(value)}")
        if not value and not may_be_empty:
            raise ConfigError(f"{name} must not be empty: pass at least one value")
        if len(value) > most:
            raise ConfigError(f"{name} must hold at most {most} values, not {len(value)}")
        for entry in value:
            item(f"each value of {name}", entry)
        if any(a >= b for a, b in itertools.pairwise(value)):
            raise ConfigError(f"{name} must be ascending without repeats, not {list(value)}")

    return check


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {_shown(value)}")


def _folder(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value or "\0" in value):
        raise ConfigError(f"{name} must be a directory path, not {_shown(value)}")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise ConfigError(f"{name} must be text, not {_shown(value)}")


_EPSILON = _number(0.001, 10.0, "a fraction")

_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "epsilons": _ascending(_EPSILON, most=MOST_EPSILONS),
    "max_positions": _integer(2, MAX_POSITIONS_LIMIT, "a number of positions"),
    "positions": _ascending(
        _integer(1, MAX_POSITIONS_LIMIT, "a number of positions"),
        most=MOST_POSITION_COUNTS,
        may_be_empty=True,
    ),
    "batch_sizes": _ascending(_integer(1, 4096, "a number of sequences"), most=MOST_BATCH_SIZES),
    "contexts": _ascending(_integer(1, 1 << 22, "a number of tokens"), most=MOST_CONTEXTS),
    "passive": _flag,
    "overhead_budget": _number(0.0, 0.5, "a fraction"),
    "step_share": _optional(_number(0.0, 1.0, "a fraction")),
    "idle_share": _number(0.0, 0.5, "a fraction"),
    "startup_seconds": _number(0.0, 600.0, "seconds"),
    "capture_seconds": _optional(_number(0.0, 600.0, "seconds")),
    "graph_memory_mib": _optional(_integer(0, 1 << 20, "MiB")),
    "host_memory_mib": _optional(_integer(0, 1 << 20, "MiB")),
    "share_graph_pool": _optional(_flag),
    "bidirectional": _flag,
    "sampled_layers": _integer(0, 4096, "a number of layers"),
    "min_samples": _integer(2, 1000, "a number of samples"),
    "wanted_samples": _integer(2, 10000, "a number of samples"),
    "max_samples": _integer(2, 10000, "a number of samples"),
    "publish_seconds": _number(0.1, 3600.0, "seconds"),
    "draft_acceptance": _optional(_number(0.0, 1.0, "a fraction")),
    "draft_control": _flag,
    "draft_lengths": _ascending(
        _integer(0, MAX_POSITIONS_LIMIT, "a draft length"), most=16, may_be_empty=True
    ),
    "draft_min_gain": _number(0.0, 1.0, "a fraction"),
    "draft_trial_loss": _number(0.0, 0.5, "a fraction"),
    "layer_histograms": _flag,
    "seed": _integer(0, (1 << 32) - 1, "a seed"),
    "output_dir": _folder,
    "run_dir": _folder,
    "off_reason": _optional(_text),
}

FIELDS = tuple(field.name for field in dataclasses.fields(ProbeConfig))
_USER_FIELDS = tuple(name for name in FIELDS if name not in ("run_dir", "off_reason"))


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
