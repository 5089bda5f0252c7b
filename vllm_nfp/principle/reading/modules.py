"""Which layers have which modules."""

from __future__ import annotations

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.hybrid import Mixed, mixed_layers
from vllm_nfp.principle.pruned import Pruned
from vllm_nfp.principle.weights.stored import Layers


def mixed_modules(fields: ConfigFields, family: Family, sparse: tuple[bool, ...]) -> Mixed:
    """How many layers have attention, a state, and feed-forward blocks of each kind."""
    layers = len(sparse)
    if family.hybrid:
        return mixed_layers(fields, family.hybrid, layers, sparse)
    if family.doubled:
        return _all_attend(2 * layers, (True,) * layers + (False,) * (2 * layers))
    if family.beside_experts:
        return _all_attend(layers, (False,) * layers + (True,) * sparse.count(True))
    return _all_attend(layers, sparse)


def _all_attend(layers: int, ffn: tuple[bool | None, ...]) -> Mixed:
    return Mixed((True,) * layers, (False,) * layers, ffn)


def whole_mixed(pruned: Pruned) -> Mixed:
    """What the layers of a pruned model have."""
    without = (False,) * len(pruned.attends)
    return Mixed(pruned.attends, without, pruned.ffn)


def modules(mixed: Mixed, sparse: tuple[bool, ...], family: Family, latent: bool) -> Layers:
    """The numbers of the layers that have each kind of module."""
    every = range(len(sparse))
    several = family.doubled or family.beside_experts
    ffn = sparse if several else mixed.ffn[: len(sparse)]
    return Layers(
        [index for index in every if mixed.attends[index]],
        [index for index in every if mixed.recurs[index]],
        [index for index in every if several or ffn[index] is False],
        [index for index in every if ffn[index]],
        latent,
        family.hybrid or "",
        family.beside_experts,
        family.gated_ffn,
    )


def is_uniform(family: Family) -> bool:
    """Every layer has attention to a cache and one feed-forward block."""
    return not (family.hybrid or family.doubled or family.pruned or family.beside_experts)
