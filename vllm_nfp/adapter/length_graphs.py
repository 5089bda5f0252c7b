"""Lets each draft length of a table find the CUDA graphs that vLLM captured for it.

What vLLM does, and why its servers stall with it, is told in :mod:`vllm_nfp.draft.length_graphs`.
Here the V2 runner's managers of CUDA graphs get the mended choice when they are made. No graph is
captured for it, and vLLM's own check of a graph against a step stays in force. The graphs of a
drafter's first pass are the business of :mod:`vllm_nfp.adapter.drafter_graphs`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Collection
from typing import Any

from vllm_nfp import releases
from vllm_nfp.adapter import drafter_graphs, targets, versions
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.verification import verifies_adaptively
from vllm_nfp.config import ProbeConfig
from vllm_nfp.draft.length_graphs import uniform_lengths, with_every_length

logger = logging.getLogger("vllm.nfp")

OVERLOOKED = (
    "vLLM overlooks CUDA graphs of a table of several draft lengths, and with an EAGLE or MTP "
    "drafter the server may stand still for seconds: add --nfp-config '{\"mend_graphs\": true}', "
    "or serve one num_speculative_tokens (docs/draft-control.md)"
)


def install(patches: PatchSet, config: ProbeConfig, vllm_config: Any) -> None:
    """Mend the managers of CUDA graphs that this process makes from now on, if it is asked for.

    Nothing is done for the V1 runner, for one draft length, and in releases that are not known to
    have the fault. Whatever goes wrong leaves vLLM as it is, and says so.
    """
    try:
        if not _is_concerned(vllm_config):
            return
        if is_asked_for(config):
            put_in_place(patches)
        elif config.mend_graphs is None:
            logger.warning("vllm-nfp: %s", OVERLOOKED)
    except Exception as error:
        _left_alone(error)


def is_asked_for(config: ProbeConfig) -> bool:
    """Whether vLLM's choice of graphs is mended where it has the fault."""
    if config.mend_graphs is None:
        return config.draft_control or config.verification_costs
    return config.mend_graphs


def put_in_place(patches: PatchSet) -> None:
    """Do it whatever the server's settings; for the V2 runner of a release with the fault."""
    tell = _once()
    patches.wrap(targets.GRAPH_MANAGER, lambda original: _mending(original, tell))
    drafter_graphs.put_in_place(patches, _left_alone_once)


def _is_concerned(vllm_config: Any) -> bool:
    speculation = None if vllm_config is None else vllm_config.speculative_config
    if speculation is None or not releases.misses_graphs(versions.installed_version()):
        return False
    if not vllm_config.use_v2_model_runner:
        return False
    table = speculation.num_speculative_tokens_per_batch_size
    return bool(table) or verifies_adaptively(speculation)


def _once() -> Callable[[tuple[int, ...]], None]:
    """Says once for a process what was done."""

    @functools.cache
    def tell_of(positions: tuple[int, ...]) -> None:
        logger.info(
            "vllm-nfp: steps with %s drafts find the CUDA graphs that vLLM captured for each; "
            "alone it overlooks some (docs/draft-control.md)",
            ", ".join(str(n - 1) for n in positions),
        )

    return tell_of


def _mending(original: Any, tell: Callable[[tuple[int, ...]], None]) -> Any:
    @functools.wraps(original)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        mended = mend(self)
        if mended:
            tell(mended)

    return init


def mend(manager: Any) -> tuple[int, ...]:
    """Let a manager of CUDA graphs choose among the next graph of each length.

    Returns:
        Tokens of a request in each of these lengths; empty if vLLM's choice stays.
    """
    try:
        candidates = manager._candidates
        lengths = uniform_lengths(candidates)
        problem = _unlike_known(manager, candidates) if len(lengths) > 1 else None
        mended = with_every_length(candidates)
    except Exception as error:
        problem = f"{type(error).__name__}: {error}"
    if problem is not None:
        _left_alone_once(problem)
    elif len(lengths) > 1:
        manager._candidates = mended
        return lengths
    return ()


def _unlike_known(manager: Any, candidates: Any) -> str | None:
    """Why these graphs are not chosen from as it is known; None if they are."""
    listed = {}
    for (tokens, loras), graphs in candidates.items():
        for graph in graphs:
            if graph.num_tokens < tokens or graph.num_active_loras != loras:
                return f"{graph} stands among the graphs of {tokens} tokens and {loras} adapters"
            listed[id(graph)] = graph
    captured = {graph for graphs in manager._capture_descs.values() for graph in graphs}
    return next(filter(None, (_odd(graph, captured) for graph in listed.values())), None)


def _odd(graph: Any, captured: Collection[Any]) -> str | None:
    """How a graph differs from those that are known; None if it does not."""
    if graph.num_ubatches != 1:
        return "steps are split into micro-batches"
    if graph not in captured:
        return f"{graph} is not captured"
    length = graph.uniform_token_count
    if length is None:
        return None
    if graph.cg_mode.name != "FULL" or graph.num_reqs * length != graph.num_tokens:
        return f"{graph} is no FULL graph of {length} tokens a request"
    return None


def _left_alone(problem: object) -> None:
    logger.warning(
        "vllm-nfp: vLLM's choice of CUDA graphs for several draft lengths stays as it is: %s",
        problem,
    )


_left_alone_once = functools.cache(_left_alone)
