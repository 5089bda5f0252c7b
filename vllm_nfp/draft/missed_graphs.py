"""Batch sizes at which vLLM overlooks the FULL CUDA graphs of a table of several draft lengths.

Why it does is told in :mod:`vllm_nfp.draft.length_graphs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from vllm_nfp import releases
from vllm_nfp.draft.cautions import size_range
from vllm_nfp.draft.length_graphs import Key, with_every_length
from vllm_nfp.draft.lints import Tiers
from vllm_nfp.draft.methods import MTP_NAMES

_TAKES_OVER = frozenset({"eagle", "eagle3", "mtp"}) | MTP_NAMES
"""Methods whose first pass takes over the model's attention metadata (``propose`` of
spec_decode/target_dependent_ar/speculator.py, vLLM 0.32.0 and 0.33.0)."""
_MOST_LISTED = 6
"""Ranges of batch sizes that are written out."""


@dataclass(frozen=True, slots=True)
class Captured:
    """A graph that vLLM would capture; FULL if it is uniform, else PIECEWISE."""

    num_tokens: int
    num_reqs: int | None = None
    uniform_token_count: int | None = None

    def holds(self, requests: int, tokens: int, positions: int) -> bool:
        """Whether a uniform step runs in it (``_is_compatible`` of vLLM)."""
        return (
            self.uniform_token_count in (None, positions)
            and (self.num_reqs is None or self.num_reqs >= requests)
            and self.num_tokens >= tokens
        )


@dataclass(frozen=True, slots=True)
class Missed:
    """Batch sizes whose steps do not find their FULL graph."""

    draft_length: int
    batch_sizes: tuple[int, ...]
    stale: tuple[int, ...]
    """Those at which an EAGLE or MTP drafter then replays a FULL graph of more requests."""


def missed(capture_sizes: Sequence[int], lengths: Tiers, piecewise: bool) -> tuple[Missed, ...]:
    """Where vLLM's choice misses a FULL graph that was captured; empty for one length.

    Args:
        capture_sizes: ``cudagraph_capture_sizes``, in tokens.
        lengths: draft lengths by batch size up to --max-num-seqs.
        piecewise: PIECEWISE graphs are captured too (FULL_AND_PIECEWISE).
    """
    if not capture_sizes or len({k for *_, k in lengths}) < 2:
        return ()
    alone = vllm_candidates(capture_sizes, lengths, piecewise)
    mended = with_every_length(alone)
    found: dict[int, tuple[list[int], list[int]]] = {}
    for first, last, k in lengths:
        batch_sizes, stale = found.setdefault(k, ([], []))
        for requests in range(first, last + 1):
            step = _choose(alone, requests, requests * (k + 1), k + 1)
            if _is_full(step) or not _is_full(_choose(mended, requests, requests * (k + 1), k + 1)):
                continue
            batch_sizes.append(requests)
            if step is not None and _is_full(_choose(alone, requests, step.num_tokens, k + 1)):
                stale.append(requests)
    return tuple(Missed(k, tuple(all_), tuple(bad)) for k, (all_, bad) in found.items() if all_)


def vllm_candidates(
    capture_sizes: Sequence[int], lengths: Tiers, piecewise: bool
) -> dict[Key, list[Captured]]:
    """What vLLM's dispatch chooses from, without LoRA adapters, after ``_init_candidates``."""
    most, largest = lengths[-1][1], max(capture_sizes)
    positions = sorted({k + 1 for *_, k in lengths})
    rounded = {(-(-size // n) * n, n) for size in capture_sizes for n in positions}
    full = [
        Captured(tokens, tokens // n, n)
        for tokens, n in sorted(rounded)
        if tokens <= min(largest, most * positions[-1]) and tokens // n <= most
    ]
    found: dict[Key, list[Captured]] = {}
    for graphs in (full, [Captured(size) for size in sorted(capture_sizes)] if piecewise else []):
        start = 0
        for tokens, group in groupby(graphs, _tokens):
            same = list(group)
            for i in range(start, tokens + 1):
                found.setdefault((i, 0), []).extend(same)
            start = tokens + 1
    return found


def _choose(
    candidates: Mapping[Key, Sequence[Captured]], requests: int, tokens: int, positions: int
) -> Captured | None:
    graphs = candidates.get((tokens, 0), ())
    return next((graph for graph in graphs if graph.holds(requests, tokens, positions)), None)


def _is_full(graph: Captured | None) -> bool:
    return graph is not None and graph.uniform_token_count is not None


def _tokens(graph: Captured) -> int:
    return graph.num_tokens


def overlooked(
    release: str,
    method: str,
    capture_sizes: Sequence[int],
    lengths: Tiers,
    piecewise: bool = True,
    whose: str = "its capture sizes",
) -> str | None:
    """Where a server misses FULL graphs, and what to do; None if nowhere.

    Args:
        release: of vLLM.
        method: how drafts are made, in vLLM's words.
        lengths: draft lengths by batch size up to --max-num-seqs.
        piecewise: PIECEWISE graphs are captured too.
        whose: what the capture sizes are, for the message.
    """
    number = releases.parse_release(release)
    if number is None or not releases.misses_graphs(release):
        return None
    found = missed(capture_sizes, lengths, piecewise)
    if not found:
        return None
    steps = ", ".join(f"{_listed(one.batch_sizes)} with K={one.draft_length}" for one in found)
    stale = sorted({b for one in found for b in one.stale}) if method in _TAKES_OVER else []
    everywhere = len(stale) == sum(len(one.batch_sizes) for one in found)
    where = "there" if everywhere else f"at {_listed(stale)}"
    stalls = (
        f"; {where} the drafter also replays a graph of more requests, and the server "
        f"may make no token for seconds"
        if stale
        else ""
    )
    return (
        f"vLLM {release}, on its V2 model runner and with {whose}, overlooks "
        f"the FULL CUDA graphs of {steps}{stalls}: serve with --nfp-config "
        f"'{{\"mend_graphs\": true}}' or --nfp-draft-control, which mend it, with one "
        f"num_speculative_tokens, or apply "
        f"patches/vllm-{number[0]}.{number[1]}.0-length-graphs.patch of vllm-nfp"
    )


def _listed(batch_sizes: Sequence[int]) -> str:
    """As in B=13, 15, 25-27."""
    ranges: list[list[int]] = []
    for b in batch_sizes:
        if ranges and ranges[-1][1] == b - 1:
            ranges[-1][1] = b
        else:
            ranges.append([b, b])
    shown = ", ".join(size_range(first, last) for first, last in ranges[:_MOST_LISTED])
    rest = f" and others up to {ranges[-1][1]}" if len(ranges) > _MOST_LISTED else ""
    return f"B={shown}{rest}"
