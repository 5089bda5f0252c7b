"""Random prompts that fill an engine's KV cache.

A probe reads what the cache holds. Positions of a sequence that share a context choose fewer
distinct experts than positions without one: a cache of zeros shows times that no server has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_nfp.adapter.server_limits import server_limits
from vllm_nfp.types import Shape

logger = logging.getLogger("vllm.nfp")

_EMPTY = "an empty KV cache, where tokens choose more experts than in a server"
_RESERVED = ("token_id", "token_ids", "token_index")
"""Endings of the fields of a model's config that name ids with a meaning of their own."""


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine's prompts may take."""

    block_tokens: int
    """Tokens of a KV block, as the scheduler sees it."""
    blocks: int
    """KV blocks that sequences can have."""
    context: int
    """Most tokens of a sequence."""
    step_tokens: int
    sequences: int
    """Most of a step."""
    keeps_ended: bool
    """Blocks of a prompt that has ended are taken again after all others."""


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of one length, so many in a step that each is whole in its first one."""

    tokens: int
    count: int
    per_step: int
    stay: bool
    """Each goes on until the last one has begun, so that they have distinct blocks."""

    @property
    def batches(self) -> list[int]:
        """Prompts that begin in each step."""
        whole, rest = divmod(self.count, self.per_step)
        return [self.per_step] * whole + ([rest] if rest else [])


def prompts_for(shape: Shape, room: Room) -> Prompts:
    """Prompts that write a context for each sequence of the shape, as long as it can be.

    Each is read in one step: blocks that later chunks fill are not noted.
    With prefix caching vLLM frees the blocks of a prompt behind all others, if they are full, and
    else ahead of them (``BlockPool.free_blocks``, ``v1/core/block_pool.py``). So a prompt is a
    multiple of a block where it can be so long, and without prefix caching it has to stay.
    """
    size, stay = room.block_tokens, not room.keeps_ended
    count = min(shape.batch_size, room.blocks, room.sequences if stay else room.blocks)
    each = min(-(-(shape.context + shape.positions) // size), room.blocks // count)
    longest = min(room.context - 1, room.step_tokens)  # one token is generated
    # What stays takes a token of every later step, and grows by one in each.
    kept_free = min(longest // 2, 2 * -(-count * each * size // longest)) if stay else 0
    whole = min(each, (longest - kept_free) // size)
    tokens = whole * size or longest - kept_free
    per_step = min(count, room.sequences, max(1, (room.step_tokens - kept_free) // tokens))
    return Prompts(tokens, count, per_step, stay)


def room_of(vllm_config: Any) -> Room:
    """That of an engine which has started."""
    limits, cache = server_limits(vllm_config), vllm_config.cache_config
    return Room(
        block_tokens=int(cache.block_size),
        blocks=int(cache.num_gpu_blocks) - 1,  # no sequence has the null block
        context=limits.max_context,
        step_tokens=limits.max_step_tokens,
        sequences=limits.max_batch_size,
        keeps_ended=bool(cache.enable_prefix_caching),
    )


def reserved_ids(config: Mapping[Any, Any]) -> set[int]:
    """Token ids that a model's config names: ends of texts, places of images, and the like."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= reserved_ids(value)
        elif str(name).endswith(_RESERVED):
            ids: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
            found |= {one for one in ids if isinstance(one, int)}
    return found


def fill(llm: Any, shape: Shape, seconds: float, now: Callable[[], float] = time.monotonic) -> str:
    """Run random prompts until each sequence of the shape has a context to read.

    Args:
        llm: a ``vllm.LLM`` that takes token ids.
        shape: the most sequences, and the longest context, that a probe may read.
        seconds: no further prompts run after so many.

    Returns:
        Why not all was written, and what follows; empty if all was.
    """
    try:
        missing = _run(llm, shape, now() + seconds, now)
    except Exception as error:  # vLLM's, of any kind: the scan measures what it can
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"contexts were read from {_EMPTY}: random prompts failed ({reason[:300]})"
    if missing:
        return (
            f"contexts were read in part from {_EMPTY}: {missing:.0%} of the random prompts did "
            f"not run in {seconds:g} s; give more --seconds"
        )
    return ""


def _run(llm: Any, shape: Shape, end: float, now: Callable[[], float]) -> float:
    """Run the prompts, a batch in each step; returns the fraction that found no time."""
    from vllm import SamplingParams

    engine = llm.llm_engine
    config = engine.vllm_config
    prompts = prompts_for(shape, room_of(config))
    rng = np.random.default_rng(0)
    ids = np.arange(server_limits(config).vocabulary)
    ids = np.setdiff1d(ids, list(reserved_ids(config.model_config.hf_config.to_dict())))
    left, batches = prompts.count, prompts.batches
    for begun, count in enumerate(batches):
        if now() >= end:
            break
        steps = len(batches) - begun if prompts.stay else 1
        params = SamplingParams(
            max_tokens=steps, ignore_eos=True, temperature=0.0, detokenize=False
        )
        drawn = rng.choice(ids, (count, prompts.tokens)).tolist()
        llm.enqueue([{"prompt_token_ids": one} for one in drawn], params, use_tqdm=False)
        engine.step()
        left -= count
    while engine.has_unfinished_requests():
        engine.step()
    logger.info(
        "vllm-nfp: %d random prompts of %d tokens have filled the KV cache",
        prompts.count - left,
        prompts.tokens,
    )
    return left / prompts.count
