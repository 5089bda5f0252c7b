"""Random prompts that fill an engine's KV cache.

A probe reads what the cache holds. Positions of a sequence that share a context choose fewer
distinct experts than positions without one: a cache of zeros shows times that no server has.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from vllm_nfp.adapter.server_limits import server_limits
from vllm_nfp.types import Shape

_RESERVED = ("token_id", "token_ids", "token_index")
"""Endings of the fields of a model's config that name ids with a meaning of their own."""


@dataclass(frozen=True, slots=True)
class Room:
    """What an engine's prompts may take."""

    block_tokens: int
    """Tokens of a KV block, as the scheduler sees it."""
    blocks: int
    """KV blocks that sequences can have."""
    prompt_tokens: int
    """The longest prompt that one step runs whole."""
    step_tokens: int
    sequences: int


@dataclass(frozen=True, slots=True)
class Prompts:
    """Prompts of one length, so many in each step that every prompt is whole in its step."""

    tokens: int
    count: int
    per_step: int

    @property
    def batches(self) -> list[int]:
        """Prompts of each step."""
        whole, rest = divmod(self.count, self.per_step)
        return [self.per_step] * whole + ([rest] if rest else [])


def prompts_for(shape: Shape, room: Room) -> Prompts:
    """Prompts that write as many distinct KV blocks as the shape reads, or all that there are.

    vLLM frees the blocks of a prompt behind all others (``BlockPool.free_blocks``,
    ``v1/core/block_pool.py``), so that one prompt after the other writes other blocks. Only whole
    blocks are kept in this way: where a prompt can be so long, it is a multiple of a block.
    """
    size = room.block_tokens
    wanted = shape.batch_size * -(-(shape.context + shape.positions) // size)
    whole = room.prompt_tokens // size
    tokens = whole * size or room.prompt_tokens
    count = -(-min(wanted, room.blocks) // max(1, whole))
    return Prompts(tokens, count, min(count, room.sequences, room.step_tokens // tokens))


def room_of(vllm_config: Any) -> Room:
    """That of an engine which has started."""
    limits, cache = server_limits(vllm_config), vllm_config.cache_config
    longest = min(limits.max_context - 1, limits.max_step_tokens)  # one token is generated
    return Room(
        block_tokens=int(cache.block_size),
        blocks=int(cache.num_gpu_blocks) - 1,  # no sequence has the null block
        prompt_tokens=longest,
        step_tokens=limits.max_step_tokens,
        sequences=limits.max_batch_size,
    )


def reserved_ids(config: Mapping[str, Any]) -> set[int]:
    """Token ids that a model's config names: ends of texts, places of images, and the like."""
    found: set[int] = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= reserved_ids(value)
        elif name.endswith(_RESERVED):
            ids: Iterable[Any] = value if isinstance(value, list | tuple) else (value,)
            found |= {one for one in ids if isinstance(one, int)}
    return found


def fill(llm: Any, shape: Shape, seconds: float, now: Callable[[], float] = time.monotonic) -> str:
    """Run random prompts until as many KV blocks are written as the shape reads.

    Args:
        llm: a ``vllm.LLM`` that takes token ids.
        shape: reads most of the KV cache.
        seconds: no further prompts run after so many.

    Returns:
        Why not all was written, and what follows; empty if all was.
    """
    try:
        missing = _run(llm, shape, now() + seconds, now)
    except Exception as error:  # vLLM's, of any kind: the scan measures what it can
        reason = " ".join(str(error).split()) or type(error).__name__
        return f"{_EMPTY}: random prompts failed ({reason[:300]})"
    if missing:
        return f"{_EMPTY}: {missing:.0%} of the prompts did not run in {seconds:g} s; give more"
    return ""


_EMPTY = "contexts were read from an empty KV cache, where tokens choose more experts"


def _run(llm: Any, shape: Shape, end: float, now: Callable[[], float]) -> float:
    """Run the prompts, a batch in each step; returns the fraction that found no time."""
    from vllm import SamplingParams

    config = llm.llm_engine.vllm_config
    prompts = prompts_for(shape, room_of(config))
    rng = np.random.default_rng(0)
    ids = np.arange(server_limits(config).vocabulary)
    ids = np.setdiff1d(ids, list(reserved_ids(config.model_config.hf_config.to_dict())))
    once = SamplingParams(max_tokens=1, temperature=0.0, detokenize=False)
    left = prompts.count
    for count in prompts.batches:
        if now() >= end:
            break
        drawn = rng.choice(ids, (count, prompts.tokens)).tolist()
        llm.generate([{"prompt_token_ids": one} for one in drawn], once, use_tqdm=False)
        left -= count
    return left / prompts.count
