"""Matrices and tables that are neither attention nor feed-forward."""

from __future__ import annotations

from vllm_nfp.principle.config_fields import ConfigFields
from vllm_nfp.principle.family import Family
from vllm_nfp.principle.layer_parts import Matrix

Counted = tuple[tuple[int, Matrix], ...]


def tables(fields: ConfigFields, family: Family, layers: int) -> int:
    """Weights of tables beside the embedding, of which a token reads one row."""
    hidden = fields.whole("hidden_size", least=1)
    rows = sum(fields.whole(name, 0) + more for name, more in family.tables.items())
    if family.special != "gemma":
        return rows * hidden
    width = fields.whole("hidden_size_per_layer_input", 0)
    return fields.whole("vocab_size_per_layer_input", 0) * layers * width


def side_matrices(fields: ConfigFields, family: Family, layers: int) -> Counted:
    """Matrices of every step that belong to no module, with how many layers have each."""
    hidden = fields.whole("hidden_size", least=1)
    if family.special in ("deepseek_v4", "hy_v4"):
        return _hyper_connections(fields, family, layers)
    if family.special == "inkling":
        columns = fields.whole("num_attention_heads", 0) * fields.whole("d_rel", 0)
        return ((layers, Matrix(hidden, columns)),) if columns else ()
    return _gemma(fields, layers) if family.special == "gemma" else ()


def _hyper_connections(fields: ConfigFields, family: Family, layers: int) -> Counted:
    """Weights of several residual streams, before attention and before the experts."""
    streams = fields.whole("hc_mult", 4, least=1)
    inputs = streams * fields.whole("hidden_size", least=1)
    mixed = streams if family.special == "deepseek_v4" else 0
    outputs = (2 + mixed) * streams
    return ((2 * layers, Matrix(inputs, outputs, "none")), (1, Matrix(inputs, streams, "none")))


def _gemma(fields: ConfigFields, layers: int) -> Counted:
    """Gemma's inputs for each layer, and Gemma 3n's predicted states."""
    hidden = fields.whole("hidden_size", least=1)
    width = fields.whole("hidden_size_per_layer_input", 0)
    found: list[tuple[int, Matrix]] = []
    if width:
        found += [
            (1, Matrix(hidden, layers * width)),
            (layers, Matrix(hidden, width, "none")),
            (layers, Matrix(width, hidden, "none")),
        ]
    rank, states = fields.whole("laurel_rank", 0), fields.whole("altup_num_inputs", 0)
    if rank:
        found += [(layers, Matrix(hidden, rank, "none")), (layers, Matrix(rank, hidden, "none"))]
    if states:
        found += [
            (2 * (states - 1), Matrix(hidden, hidden)),
            (layers, Matrix(hidden, states, "none")),
            (layers, Matrix(states, states * states, "none")),
            (layers, Matrix(states, states, "none")),
        ]
    return tuple(found)
