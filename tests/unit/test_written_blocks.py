"""Probes of models with experts read first the KV blocks that real steps have written."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup, CellDoesNotFitError
from vllm_nfp.adapter.dispatch import Execution, Placement
from vllm_nfp.adapter.steps import BlocksTaken, blocks_taken
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.kv_blocks import BlockReader, block_readers
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.probe.written_blocks import WrittenBlocks, written_blocks
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


def filled(reader: BlockReader, batch_size: int, tokens: int, variant: int = 0) -> list[int]:
    """The numbers in the block table of a batch, which are those that it says it reads."""
    table = torch.zeros((batch_size, 64), dtype=torch.int32)
    reader.fill(table, batch_size, tokens, variant)
    read = reader.blocks(batch_size, tokens, variant)
    assert table[:, : read.shape[1]].tolist() == read.tolist()
    return [int(number) for number in read.ravel()]


def test_written_blocks_are_read_first_and_scattered() -> None:
    written = WrittenBlocks([GROUP])
    reader = BlockReader(GROUP, CPU, 3, written)
    before = filled(reader, 2, 64)
    assert before == filled(BlockReader(GROUP, CPU, 3), 2, 64), "the order of today"
    assert not reader.all_written(2, 64)
    note(written, step(request((PROMPT,))))
    first = filled(reader, 2, 64)
    assert set(first) == set(PROMPT)
    assert first not in (sorted(first), before)
    assert reader.all_written(2, 64)
    assert len(set(filled(reader, 9, 176))) == 99, "the others follow, each once"
    assert not reader.all_written(9, 176)
    same = BlockReader(GROUP, CPU, 3, written)
    assert filled(same, 2, 64) == first, "alike on all ranks"
    assert filled(BlockReader(GROUP, CPU, 4, written), 2, 64) != first


def test_variants_share_no_block_and_are_written_as_long_as_there_are_enough() -> None:
    written = WrittenBlocks([GROUP])
    reader = BlockReader(GROUP, CPU, 0, written)
    note(written, step(request((PROMPT,))))
    sets = [set(filled(reader, 1, 48, variant)) for variant in range(reader.variants(1, 48))]
    assert len(sets) == 33
    assert len(set().union(*sets)) == 99
    assert set().union(*sets[:2]) < set(PROMPT)
    assert [reader.all_written(1, 48, variant) for variant in range(4)] == [
        True,
        True,
        False,
        False,
    ]
    with pytest.raises(CellDoesNotFitError):
        reader.all_written(1, 48, 33)


def test_what_a_batch_was_filled_with_stays_as_it_was_when_others_are_written() -> None:
    written = WrittenBlocks([GROUP])
    readers = block_readers([GROUP], CPU, 0, written)
    batch = ProbeBatch(2, 2, Placement(Execution.FULL, 4, 2), widths=[40], device=CPU)
    tokens = TokenPool(1000, 64, CPU, 0)
    batch.fill(62, readers, tokens)
    assert not batch.written
    read = batch.blocks[0].tolist()
    note(written, step(request((PROMPT,))))
    other = ProbeBatch(2, 2, Placement(Execution.FULL, 4, 2), widths=[40], device=CPU)
    other.fill(62, readers, tokens)
    assert other.written
    assert batch.blocks[0].tolist() == read
    assert batch.tables[0][:2, :4].tolist() == read


@pytest.mark.parametrize(
    ("computed", "tokens", "whole"),
    [
        (0, 128, 8),
        (0, 127, 7),  # the last block is filled while the request decodes
        (0, 40, 2),  # the prompt is read in chunks, and blocks may be taken ahead of them
        (48, 32, 5),  # a prefix that earlier requests have written
        (0, 1024, 8),
    ],
)
def test_blocks_count_once_the_step_fills_them(computed: int, tokens: int, whole: int) -> None:
    (taken,) = blocks_taken(step(request((PROMPT,), computed), tokens=tokens), {0: 16})
    assert taken.whole.tolist() == PROMPT[:whole]
    assert taken.rest.tolist() == PROMPT[whole:]
    written = WrittenBlocks([GROUP])
    note(written, step(request((PROMPT,), computed), tokens=tokens))
    assert np.flatnonzero(written.of(GROUP)).tolist() == PROMPT[:whole]


def test_requests_of_one_step_count_by_their_own_tokens() -> None:
    planned = step(request(([5, 6],), name="a"), request(([7, 8],), name="b"))
    planned.num_scheduled_tokens.update(a=32, b=17)
    written = WrittenBlocks([GROUP])
    note(written, planned)
    assert np.flatnonzero(written.of(GROUP)).tolist() == [5, 6, 7]


def test_each_group_has_its_own_blocks_as_its_kernels_see_them() -> None:
    written = WrittenBlocks([GROUP, SPLIT])
    assert written.block_tokens == {0: 16, 1: 64}
    note(written, step(request((PROMPT, [7, 8]))))
    assert np.flatnonzero(written.of(GROUP)).tolist() == PROMPT
    assert np.flatnonzero(written.of(SPLIT)).tolist() == list(range(28, 36))
    one, two = block_readers([GROUP, SPLIT], CPU, 0, written)
    assert set(filled(one, 2, 64)) == set(PROMPT)
    assert set(filled(two, 2, 64)) == set(range(28, 36))
    assert two.all_written(2, 64)
    assert not two.all_written(2, 80)


def test_a_block_that_another_group_takes_is_that_groups() -> None:
    written = WrittenBlocks([GROUP, SPLIT])
    note(written, step(request((PROMPT, [7]))))
    # Of layers with a recurrent state, say: nothing of theirs is whole. And a part of a block.
    note(written, step(request(([7], [], [41, 42])), tokens=15))
    assert np.flatnonzero(written.of(GROUP)).tolist() == [3, 60, 61, 62, 90, 91]
    assert not written.of(SPLIT).any()
    note(written, step(request(([8, 9, 10, 11], [3]))))
    assert np.flatnonzero(written.of(GROUP)).tolist() == [8, 9, 10, 11, 60, 61, 62, 90, 91]
    assert np.flatnonzero(written.of(SPLIT)).tolist() == [12, 13, 14, 15]


def test_a_block_that_was_written_stays_so_when_another_request_takes_it() -> None:
    written = WrittenBlocks([GROUP])
    note(written, step(request((PROMPT,))))
    changes = written.changes
    note(written, step(request((PROMPT[::-1],)), tokens=20))
    assert np.flatnonzero(written.of(GROUP)).tolist() == PROMPT
    assert written.changes == changes, "nothing is copied to the device for it"


def test_the_null_block_and_numbers_beyond_the_pool_are_left_out() -> None:
    written = WrittenBlocks([GROUP])
    # A sliding window gives the null block for what lies before it.
    written.add(BlocksTaken(0, np.array([0, 0, 5, 100, 10**9, -1]), np.array([0, 100, -3])))
    assert np.flatnonzero(written.of(GROUP)).tolist() == [5]
    reader = BlockReader(GROUP, CPU, 0, written)
    assert filled(reader, 1, 16) == [5]


def test_groups_of_which_nothing_is_noted_count_as_unwritten() -> None:
    written = WrittenBlocks([GROUP, SPLIT])
    batch = ProbeBatch(1, 1, Placement(Execution.FULL, 1, 1), widths=[40, 40], device=CPU)
    readers = block_readers([GROUP, SPLIT], CPU, 0, written)
    note(written, step(request((PROMPT, []))))
    batch.fill(15, readers, TokenPool(1000, 64, CPU, 0))
    assert not batch.written


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
