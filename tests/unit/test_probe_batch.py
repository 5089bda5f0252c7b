"""Batches of the probe: their KV blocks, token ids, lengths and padding."""

from __future__ import annotations

import pytest
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup, CellDoesNotFitError
from vllm_nfp.adapter.dispatch import Execution, Placement
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.kv_blocks import BlockReader
from vllm_nfp.probe.token_pool import TokenPool

CPU = torch.device("cpu")
GROUP = AttentionGroup(builder=None, layer_names=("a", "b"), block_tokens=16, num_blocks=100)


def test_blocks_are_scattered_distinct_and_never_the_null_block() -> None:
    reader = BlockReader(GROUP, CPU, seed=3)
    table = torch.full((6, 40), 7, dtype=torch.int32)
    read = reader.fill(table, 4, 100)  # 7 blocks each
    assert table[4:].count_nonzero() == 0, "rows of an earlier shape are left"
    table = table[:4]
    used = table[:, :7].flatten().tolist()
    assert len(set(used)) == 28
    assert all(0 < block < 100 for block in used)
    assert used != sorted(used)
    assert table[:, 7:].count_nonzero() == 0
    assert read.blocks.tolist() == table[:, :7].tolist()


def test_a_cell_larger_than_the_cache_is_refused() -> None:
    reader, table = BlockReader(GROUP, CPU, seed=0), torch.zeros((11, 40), dtype=torch.int32)
    reader.fill(table, 11, 16 * 9)
    with pytest.raises(CellDoesNotFitError, match="need 100 distinct KV blocks, the cache has 99"):
        reader.fill(table, 10, 16 * 10)


def test_the_pool_gives_live_tokens_once_it_has_them() -> None:
    pool = TokenPool(vocab_size=1000, size=64, device=CPU, seed=0)
    assert len(set(pool.draw(64).tolist())) > 32
    pool.add([7] * 40 + [5000, -1])
    pool.add([9] * 40)
    assert set(pool.draw(64).tolist()) == {7, 9}
    with pytest.raises(CellDoesNotFitError, match="exceed the pool"):
        pool.draw(65)


def test_draws_of_one_number_begin_alike_and_others_spread_over_the_pool() -> None:
    pool = TokenPool(1 << 30, 64, CPU, 0)
    assert pool.draw(32, 5)[:4].tolist() == pool.draw(4, 5).tolist()
    begins = {int(pool.draw(1, number)) for number in range(64)}
    assert len(begins) > 48, "hardly any place is drawn twice"
    assert begins != {int(TokenPool(1 << 30, 64, CPU, 1).draw(1, number)) for number in range(64)}


def test_a_batch_has_the_lengths_of_a_decode_step_and_marks_its_padding() -> None:
    placement = Placement(Execution.FULL, padded_tokens=9, padded_sequences=3)
    batch = ProbeBatch(2, 3, placement, widths=[40], device=CPU)
    reader = BlockReader(GROUP, CPU, seed=0)
    batch.fill(50, [reader], TokenPool(1000, 64, CPU, 0))
    assert batch.positions.tolist() == [50, 51, 52, 50, 51, 52, 0, 0, 0]
    assert batch.seq_lens.tolist() == [53, 53, 0]
    assert batch.query_start.tolist() == [0, 3, 6, 6]
    assert batch.is_padding.tolist() == [False] * 6 + [True] * 3
    assert set(batch.slots.tolist()) == {-1}
    assert batch.tables[0][2].count_nonzero() == 0
    batch.fill(20, [reader], TokenPool(1000, 64, CPU, 0))
    assert batch.positions[:3].tolist() == [20, 21, 22]
