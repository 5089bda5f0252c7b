"""Matrices and tables that are neither attention nor feed-forward: those of Gemma 3n and 4."""

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
    """Matrices of Gemma's inputs for each layer, and of Gemma 3n's predicted states."""
    if family.special != "gemma":
        return ()
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
