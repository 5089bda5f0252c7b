"""Sequences of a probe of a model with experts read the contexts of real ones."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.dispatch import Execution, Placement
from vllm_nfp.adapter.steps import BlocksTaken, blocks_taken
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.kv_blocks import BlockReader, Read, block_readers
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.probe.written_blocks import (
    LENGTHS_SECONDS,
    MOST_CONTEXTS,
    WrittenBlocks,
    written_blocks,
)
from vllm_nfp.session.agreement import note_blocks
from vllm_nfp.types import PairResult, Shape, Timing

CPU = torch.device("cpu")
GROUP = AttentionGroup(builder=None, layer_names=("a",), block_tokens=16, num_blocks=100)
SPLIT = AttentionGroup(None, ("b",), 16, 400, kv_cache_group=1, kernel_blocks=4)
"""A second KV cache group in the same pool, whose kernels see blocks of 64 tokens as four."""
PROMPT = [3, 41, 42, 60, 61, 62, 90, 91]


def request(blocks: tuple[list[int], ...], computed: int = 0, name: str = "r") -> SimpleNamespace:
    return SimpleNamespace(req_id=name, block_ids=blocks, num_computed_tokens=computed)


def step(*requests: Any, tokens: int = 128) -> Any:
    """A step that begins requests, with so many tokens of each."""
    return SimpleNamespace(
        scheduled_new_reqs=list(requests),
        num_scheduled_tokens={"running": 1, **{r.req_id: tokens for r in requests}},
    )


def note(written: WrittenBlocks, planned: Any) -> None:
    engine: Any = SimpleNamespace(written=written)
    note_blocks(engine, planned)


def exactly(blocks: list[list[int]]) -> tuple[list[list[int]], bool]:
    """These blocks, as real sequences have written them."""
    return blocks, True


def filled(reader: BlockReader, batch_size: int, tokens: int, variant: int = 0) -> Read:
    """What a batch reads, and what is in its block table."""
    table = torch.full((batch_size + 1, 64), 7, dtype=torch.int32)
    read = reader.fill(table, batch_size, tokens, variant)
    assert table[:batch_size, : read.blocks.shape[1]].tolist() == read.blocks.tolist()
    assert not table[batch_size:].any() and not table[:, read.blocks.shape[1] :].any()
    return read


def what(read: Read) -> tuple[list[list[int]], bool]:
    return read.blocks.tolist(), read.written


def contexts(written: WrittenBlocks, group: AttentionGroup = GROUP) -> list[list[int]]:
    """Blocks of the contexts that are noted, the latest first."""
    return [one.tolist() for one in written._kept(group.kv_cache_group)]


def test_each_sequence_reads_a_context_of_its_own_in_its_order() -> None:
    written = WrittenBlocks([GROUP])
    reader = BlockReader(GROUP, CPU, 3, written)
    before = filled(reader, 2, 64)
    assert before.blocks.tolist() == filled(BlockReader(GROUP, CPU, 3), 2, 64).blocks.tolist()
    assert not before.written
    note(written, step(request(([9, 5, 7, 6],))))
    assert not filled(reader, 2, 64).written, "one context is not enough for two sequences"
    assert what(filled(reader, 1, 64)) == exactly([[9, 5, 7, 6]])
    note(written, step(request(([31, 30, 33, 32, 34],), name="s")))
    assert what(filled(reader, 2, 64)) == exactly([[31, 30, 33, 32], [9, 5, 7, 6]])
    assert what(filled(reader, 2, 48)) == exactly([[31, 30, 33], [9, 5, 7]])
    assert what(filled(reader, 1, 48, variant=1)) == exactly([[9, 5, 7]])
    assert not filled(reader, 2, 128).written, "contexts of five blocks are too short for eight"
    assert what(filled(BlockReader(GROUP, CPU, 4, written), 2, 48)) == exactly(
        [[31, 30, 33], [9, 5, 7]]
    )


def test_a_context_that_is_a_little_short_is_read_again_from_its_begin() -> None:
    written = WrittenBlocks([GROUP])
    note(written, step(request((list(range(10, 18)),))))
    reader = BlockReader(GROUP, CPU, 0, written)
    assert what(filled(reader, 1, 160)) == exactly([[*range(10, 18), 10, 11]])
    assert not filled(reader, 1, 161).written
    assert written.lengths == (160,)


def test_what_a_batch_was_filled_with_stays_as_it_was_when_others_are_written() -> None:
    written = WrittenBlocks([GROUP])
    readers = block_readers([GROUP], CPU, 0, written)
    batch = ProbeBatch(1, 2, Placement(Execution.FULL, 2, 1), widths=[40], device=CPU)
    tokens = TokenPool(1000, 64, CPU, 0)
    batch.fill(62, readers, tokens)
    assert not batch.written
    read = batch.blocks[0].tolist()
    note(written, step(request((PROMPT,))))
    other = ProbeBatch(1, 2, Placement(Execution.FULL, 2, 1), widths=[40], device=CPU)
    other.fill(62, readers, tokens)
    assert other.written
    assert other.tables[0][0, :4].tolist() == PROMPT[:4]
    assert batch.blocks[0].tolist() == read
    assert batch.tables[0][:1, :4].tolist() == read


@pytest.mark.parametrize(
    ("computed", "tokens", "first", "end"),
    [
        (0, 128, 0, 8),
        (0, 127, 0, 7),  # the last block is filled while the request decodes
        (0, 40, 0, 2),  # the prompt is read in chunks, and blocks may be taken ahead of them
        (48, 32, 3, 5),  # the blocks of a shared prefix may be those of several sequences
        (0, 1024, 0, 8),
    ],
)
def test_blocks_count_that_the_step_fills(computed: int, tokens: int, first: int, end: int) -> None:
    (taken,) = blocks_taken(step(request((PROMPT,), computed), tokens=tokens), {0: 16})
    assert taken.whole.tolist() == PROMPT[first:end]
    assert taken.rest.tolist() == PROMPT[end:]
    written = WrittenBlocks([GROUP])
    note(written, step(request((PROMPT,), computed), tokens=tokens))
    assert contexts(written) == [PROMPT[first:end]]


def test_requests_of_one_step_count_by_their_own_tokens() -> None:
    planned = step(request(([5, 6],), name="a"), request(([7, 8],), name="b"))
    planned.num_scheduled_tokens.update(a=32, b=17)
    written = WrittenBlocks([GROUP])
    note(written, planned)
    assert contexts(written) == [[7], [5, 6]]


def test_each_group_has_its_own_blocks_as_its_kernels_see_them() -> None:
    written = WrittenBlocks([GROUP, SPLIT])
    assert written.block_tokens == {0: 16, 1: 64}
    note(written, step(request((PROMPT, [7, 8]))))
    one, two = block_readers([GROUP, SPLIT], CPU, 0, written)
    assert what(filled(one, 1, 64)) == exactly([PROMPT[:4]])
    assert what(filled(two, 1, 64)) == exactly([list(range(28, 32))])
    assert what(filled(two, 1, 128)) == exactly([list(range(28, 36))])
    assert not filled(two, 1, 161).written


def test_a_context_ends_where_another_sequence_takes_its_blocks() -> None:
    written = WrittenBlocks([GROUP, SPLIT])
    note(written, step(request((PROMPT, [7]))))
    # Of layers with a recurrent state, say: nothing of theirs is whole. And a part of a block.
    note(written, step(request(([7], [], [61])), tokens=15))
    assert contexts(written) == [PROMPT[:4]]
    assert contexts(written, SPLIT) == []
    note(written, step(request(([8, 9, 10, 11], [41]))))
    assert contexts(written) == [[8, 9, 10, 11], PROMPT[:1]]
    assert contexts(written, SPLIT) == [[41]]
    note(written, step(request(([*PROMPT[:3], 8],))))
    assert contexts(written) == [[*PROMPT[:3], 8]], "both others have lost their first block"


def test_the_null_block_and_numbers_beyond_the_pool_are_left_out() -> None:
    written = WrittenBlocks([GROUP])
    # A sliding window gives the null block for what lies before it.
    written.add(BlocksTaken(0, np.array([0, 0, 5, 100, 10**9, -1]), np.array([0, 100, -3])))
    assert contexts(written) == [[5]]
    assert what(filled(BlockReader(GROUP, CPU, 0, written), 1, 16)) == exactly([[5]])


def test_the_latest_contexts_are_kept() -> None:
    group = AttentionGroup(None, ("a",), 16, 2000)
    written = WrittenBlocks([group])
    for number in range(1, MOST_CONTEXTS + 3):
        note(written, step(request(([number],)), tokens=16))
    found = contexts(written, group)
    assert len(found) == len(written.lengths) == MOST_CONTEXTS
    assert found[0] == [MOST_CONTEXTS + 2] and found[-1] == [3]


def test_groups_of_which_nothing_is_noted_count_as_unwritten() -> None:
    written = WrittenBlocks([GROUP, SPLIT])
    batch = ProbeBatch(1, 1, Placement(Execution.FULL, 1, 1), widths=[40, 40], device=CPU)
    readers = block_readers([GROUP, SPLIT], CPU, 0, written)
    note(written, step(request((PROMPT, []))))
    batch.fill(15, readers, TokenPool(1000, 64, CPU, 0))
    assert not batch.written
    assert written.lengths == ()


def test_only_models_with_experts_have_notes() -> None:
    def view(names: list[str]) -> Any:
        compilation = SimpleNamespace(static_all_moe_layers=names)
        return SimpleNamespace(vllm_config=SimpleNamespace(compilation_config=compilation))

    assert written_blocks(view([]), [GROUP]) is None
    assert written_blocks(view(["model.layers.0.mlp.experts"]), [GROUP]) is not None
    batch = ProbeBatch(1, 1, Placement(Execution.FULL, 1, 1), widths=[40], device=CPU)
    batch.fill(15, block_readers([GROUP], CPU, 0), TokenPool(1000, 64, CPU, 0))
    assert batch.written, "it does not matter"
    note_blocks(None, step(request((PROMPT,))))
    no_notes: Any = SimpleNamespace(written=None)
    note_blocks(no_notes, step(request((PROMPT,))))


def test_a_pair_is_written_by_its_run_at_many_positions() -> None:
    def timing(positions: int, written: bool) -> Timing:
        return Timing(Shape(1, 64, positions), 1e-3, 0.0, {}, (), "full", written=written)

    assert PairResult(timing(8, True), timing(1, False), True, 0.0).written
    assert not PairResult(timing(8, False), timing(1, True), True, 0.0).written
    assert Timing(Shape(1, 64, 1), 1e-3, 0.0, {}, (), "full").written


def test_contexts_of_groups_are_as_long_as_the_shorter_one() -> None:
    written = WrittenBlocks([GROUP, SPLIT])
    note(written, step(request((PROMPT, [5])), request(([8, 9], [6]), name="s")))
    assert written.lengths == (80, 40), "128 and 32 tokens, and 64 of each of the other group"


def test_what_may_be_read_is_counted_again_after_a_while() -> None:
    now = [100.0]
    written = WrittenBlocks([GROUP], lambda: now[0])
    note(written, step(request(([1, 2, 3, 4],))))
    assert written.lengths == (80,)
    note(written, step(request(([5, 6, 7, 8],), name="s")))
    now[0] += LENGTHS_SECONDS / 2
    assert written.lengths == (80,)
    now[0] += LENGTHS_SECONDS
    assert written.lengths == (80, 80)


def test_who_asks_keeps_the_same_contexts_as_who_does_not() -> None:
    group = AttentionGroup(None, ("a",), 16, 400)
    asks, waits = WrittenBlocks([group], itertools.count().__next__), WrittenBlocks([group])
    numbers = random.Random(1)
    for name in range(3 * MOST_CONTEXTS):
        one = step(request((numbers.sample(range(1, 400), 3),), name=str(name)), tokens=48)
        note(asks, one)
        note(waits, one)
        assert len(asks.lengths) <= MOST_CONTEXTS
    assert contexts(asks, group) == contexts(waits, group)
    assert {len(one) for one in contexts(asks, group)} == {1, 2, 3}
    assert [*asks._contexts[0]] == [*waits._contexts[0]], "they forget the same ones next"
