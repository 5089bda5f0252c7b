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
    if family.special == "ngram":
        # Tables of all n-grams together are as wide as the embedding (longcat_flash_ngram.py).
        ratio = fields.whole("ngram_vocab_size_ratio", 0)
        return ratio * fields.whole("vocab_size") * hidden
    if family.special == "pairs":
        return _experts_of_images(fields, layers)
    if family.special != "gemma":
        return rows * hidden
    width = fields.whole("hidden_size_per_layer_input", 0)
    return fields.whole("vocab_size_per_layer_input", 0) * layers * width


def side_matrices(fields: ConfigFields, family: Family, layers: int) -> Counted:
    """Matrices of every step that belong to no module, with how many layers have each."""
    hidden = fields.whole("hidden_size", least=1)
    if family.special in ("deepseek_v4", "hy_v4", "glm5_next"):
        return _hyper_connections(fields, family, layers)
    if family.special == "ngram" and fields.get("ngram_vocab_size_ratio") is not None:
        return ((1, Matrix(hidden, hidden)),)
    if family.special == "attention_residual":
        # Before attention and experts of every layer, but for the first, and after the last.
        return ((2 * layers, Matrix(hidden, 1, "none")),)
    if family.special == "inkling":
        columns = fields.whole("num_attention_heads", 0) * fields.whole("d_rel", 0)
        return ((layers, Matrix(hidden, columns)),) if columns else ()
    return _gemma(fields, layers) if family.special == "gemma" else ()


def _hyper_connections(fields: ConfigFields, family: Family, layers: int) -> Counted:
    """Weights of several residual streams, before attention and before the experts."""
    streams = fields.whole("hc_mult", 4, least=1)
    inputs = streams * fields.whole("hidden_size", least=1)
    mixed = 0 if family.special == "hy_v4" else streams
    outputs = (2 + mixed) * streams
    last = () if family.special == "glm5_next" else ((1, Matrix(inputs, streams, "none")),)
    return ((2 * layers, Matrix(inputs, outputs, "none")), *last)


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


def _experts_of_images(fields: ConfigFields, layers: int) -> int:
    """Weights of ERNIE's experts that only tokens of images reach."""
    widths, counts = fields.get("expert_widths"), fields.get("num_experts")
    width = widths[1] if isinstance(widths, (list, tuple)) and len(widths) == 2 else 0
    count = counts[1] if isinstance(counts, (list, tuple)) and len(counts) == 2 else counts
    if not (isinstance(width, int) and isinstance(count, int) and 0 <= width <= 1 << 24):
        return 0
    sparse = layers - fields.whole("first_k_dense_replace", 0)
    return max(0, sparse) * max(0, min(count, 1 << 24)) * 3 * fields.whole("hidden_size") * width
