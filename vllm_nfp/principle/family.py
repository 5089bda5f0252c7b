"""What an entry of the table of families may say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Window = Literal["none", "all", "upper", "alternate", "pattern"]
"""Layers that slide where the config lists no layer_types: none of the family's own accord, but
all if a config has a window; all; those from max_window_layers on; every other one below
max_window_layers; all but every pattern-th."""

Hybrid = Literal[
    "gated_delta_net",
    "kda",
    "nemotron_h",
    "granite",
    "falcon_h1",
    "jamba",
    "short_conv",
    "mamba",
    "mamba2",
    "lightning",
    "bailing_kda",
    "glm_kda",
]
"""How the layers that keep a state are named and sized."""

Gate = Literal["none", "elements", "heads"]
"""A gate of the attention's output: none, as wide as it, or one number for each head."""

Special = Literal[
    "attention_residual",
    "deepseek_v4",
    "domyn_edge",
    "gemma",
    "glm5_next",
    "hy_v4",
    "inkling",
    "minimax_m3",
    "ngram",
    "pairs",
    "step3",
    "step5",
]
"""Families with parts that only they have; each has a reader of its own."""


@dataclass(frozen=True, slots=True)
class Family:
    """How a family's config and layers differ from Llama's."""

    experts: bool = False
    latent: bool = False
    """Multi-head latent attention."""
    gated_ffn: bool = True
    """Feed-forward blocks have a gate beside the up projection."""
    fused_width: bool = False
    """The config's intermediate_size is the width of gate and up projection together."""
    width_factor: int = 0
    """Widths of feed-forward blocks in hidden sizes, if the config has no other."""
    absorbed: bool = True
    """The cache of latent attention holds the latent itself."""
    pruned: bool = False
    """Layers lack attention or have feed-forward blocks of other widths (Nemotron-NAS)."""
    doubled: bool = False
    """Each layer has attention and a dense block twice, and experts beside them (LongCat)."""
    beside_experts: bool = False
    """Layers with experts have a dense block too."""
    indexed: bool = False
    """Attention reads only the tokens that an indexer picks."""
    hybrid: Hybrid | None = None
    """Some layers keep a state instead of a cache."""
    gate: Gate = "none"
    """The attention's output is gated."""
    trimmed_width: bool = False
    """Two thirds of the config's intermediate_size, in whole steps, unless it says otherwise."""
    shared_expert_gate: bool = False
    """A one-column matrix scales the shared expert of every token."""
    diffusion: bool = False
    """Decodes blocks whose positions all see each other."""
    window: Window = "none"
    window_switch: bool = False
    """Layers slide only if use_sliding_window is true."""
    pattern: int = 0
    sliding: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Sizes of attention that sliding layers have instead, with their names in the config."""
    full: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Sizes of attention that layers without a window have instead."""
    tables: Mapping[str, int] = field(default_factory=dict)
    """Learned positions: the field with their number, and rows that are there besides."""
    special: Special | None = None
    names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """This family's names of a field, first found first; other fields have Llama's names."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of fields that the config leaves out; an explicit null is no value."""
    only: Mapping[str, object] = field(default_factory=dict)
    """Fields that must have this value, if given: the shape describes no other. A value such as
    ``=hidden_size`` is that of another field."""
    without: tuple[str, str] | None = None
    """A field and the family that a config belongs to instead where the field is false."""
    variant: tuple[str, str] | None = None
    """A field and the family that a config with this field belongs to instead."""
    assumed: tuple[str, ...] = ()
    """Sentences on what is taken for granted of every model of the family."""


COMMON_NAMES: Mapping[str, tuple[str, ...]] = {
    "num_experts": ("num_experts", "num_local_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "experts_per_token"),
    "num_shared_experts": ("num_shared_experts", "n_shared_experts"),
    # canvas_length is what vLLM itself knows diffusion models by.
    "diffusion_block_size": ("canvas_length", "block_size", "bd_size"),
}
"""Names of a field in any family whose entry does not say otherwise."""
