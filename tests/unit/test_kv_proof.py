"""Sums that tell any byte of the KV cache that a probe has changed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from vllm_nfp.adapter.attention_groups import AttentionGroup
from vllm_nfp.adapter.dispatch import Execution, Placement
from vllm_nfp.probe import kv_proof
from vllm_nfp.probe.batch import ProbeBatch
from vllm_nfp.probe.kv_blocks import BlockReader
from vllm_nfp.probe.kv_proof import KvCacheWrittenError, Prover
from vllm_nfp.probe.kv_sums import caches_of, checksum, spans_of, whole_blocks
from vllm_nfp.probe.token_pool import TokenPool
from vllm_nfp.timing import HostClock

CPU = torch.device("cpu")
BLOCKS, BLOCK_TOKENS = 97, 16


def cache(
    dtype: torch.dtype = torch.bfloat16,
    shape: tuple[int, ...] = (2, BLOCKS, BLOCK_TOKENS, 2, 36),
) -> torch.Tensor:
    """Random bytes."""
    generator = torch.Generator().manual_seed(3)
    size = torch.empty(shape, dtype=dtype, device="meta").nbytes
    values = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=generator)
    return values.view(dtype).view(shape)


def raw(tensor: torch.Tensor, dtype: torch.dtype = torch.uint8) -> torch.Tensor:
    return tensor.flatten().view(dtype)


def swap(words: torch.Tensor, one: int, other: int) -> None:
    assert words[one] != words[other], "nothing changes"
    words[[one, other]] = words[[other, one]]


FAR = 8192 * 2 + 3
CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "one bit": lambda t: raw(t)[-1:].bitwise_xor_(128),
    "neighbours swapped": lambda t: swap(raw(t, torch.int32), 4, 5),
    "far apart swapped": lambda t: swap(raw(t, torch.int64), 7, FAR),
    "one column swapped": lambda t: swap(raw(t, torch.int64), 7, 7 + 8192),
    "reversed": lambda t: raw(t).copy_(raw(t).flip(0)),
    "shifted": lambda t: raw(t).copy_(raw(t).roll(8)),
    "blocks swapped": lambda t: t.copy_(t[:, [1, 0, *range(2, BLOCKS)]]),
    "signs swapped": lambda t: signs(raw(t, torch.int64)),
}


def signs(words: torch.Tensor) -> None:
    """Two words that differ in their highest bit change places."""
    words[20], words[21] = 5, 5 - 2**63
    before = checksum([words])
    swap(words, 20, 21)
    assert checksum([words]) != before


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float32, torch.uint8, torch.float8_e4m3fn, torch.int8]
)
def test_every_change_of_the_cache_changes_its_checksum(name: str, dtype: torch.dtype) -> None:
    tensor = cache(dtype)
    before = checksum([tensor])
    assert checksum([tensor.clone()]) == before
    CHANGES[name](tensor)
    assert checksum([tensor]) != before, "a sum over all values would not tell either"


def test_each_byte_counts_where_rows_do_not_fit() -> None:
    tensor = cache(torch.uint8, (2 * 65536 + 13,))
    before = checksum([tensor])
    for place in (0, 65535, 65536, 2 * 65536, 2 * 65536 + 12):
        changed = tensor.clone()
        changed[place] += 1
        assert checksum([changed]) != before


def test_the_caches_of_all_layers_are_found_whatever_holds_them() -> None:
    parts = [torch.full((4,), float(i)) for i in range(6)]
    contexts = {
        "attention": SimpleNamespace(kv_cache=parts[0]),
        "mamba": SimpleNamespace(kv_cache=(parts[1], torch.tensor([]))),
        "by engine": SimpleNamespace(kv_cache=[parts[2], [parts[3]]]),
        "named": SimpleNamespace(kv_cache={"k": parts[4]}),
        "experts": SimpleNamespace(),
    }
    found = list(caches_of(contexts, [parts[5]]))
    assert [int(tensor[0]) for tensor in found] == list(range(6))


def test_layers_that_lie_in_one_storage_are_summed_once_and_wholly() -> None:
    storage = cache(torch.uint8, (1 << 20,))
    views = [storage[1000:2000], storage[5000:6000].view(torch.int32)]
    before = checksum(views)
    assert checksum(views[:1]) == before
    storage[3000] += 1  # between both
    assert checksum(views) != before


def prover_of(
    tensors: list[torch.Tensor], blocks: int = BLOCKS, transfers: bool = False
) -> tuple[Prover, AttentionGroup, ProbeBatch]:
    names = tuple(f"layer {i}" for i in range(len(tensors)))
    group = AttentionGroup(None, names, BLOCK_TOKENS, blocks)
    contexts = dict(
        zip(names, (SimpleNamespace(kv_cache=tensor) for tensor in tensors), strict=True)
    )
    batch = ProbeBatch(4, 8, Placement(Execution.FULL, 40, 5), widths=[20], device=CPU)
    batch.fill(100, [BlockReader(group, CPU, 0)], TokenPool(1000, 64, CPU, 0))
    return Prover(contexts, [group], HostClock(), CPU, transfers), group, batch


def block_of(tensor: torch.Tensor, number: int) -> torch.Tensor:
    return tensor.select(list(tensor.shape).index(BLOCKS), number)


STRAYS: dict[str, Callable[[ProbeBatch], int]] = {
    "where its first position belongs": lambda b: int(b.tables[0][3, 100 // BLOCK_TOKENS]),
    "where its last position belongs": lambda b: int(b.tables[0][0, 107 // BLOCK_TOKENS]),
    "the null block": lambda _: 0,
    "the last block": lambda _: BLOCKS - 1,
}


@pytest.mark.parametrize("where", STRAYS)
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        (torch.bfloat16, (2, BLOCKS, BLOCK_TOKENS, 2, 36)),
        (torch.float8_e4m3fn, (BLOCKS, 2, BLOCK_TOKENS, 72)),
        (torch.uint8, (BLOCKS, BLOCK_TOKENS, 73)),
    ],
)
def test_a_run_that_writes_where_one_would_is_caught(
    where: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensors = [cache(dtype, shape) for _ in range(3)]
    prover, _, batch = prover_of(tensors)
    prover.judge(prover.begin(batch, 100).end("a run that writes nothing"))
    proving = prover.begin(batch, 100)
    swap(raw(block := block_of(tensors[1], STRAYS[where](batch)).clone()), 1, 9)
    block_of(tensors[1], STRAYS[where](batch)).copy_(block)
    with pytest.raises(KvCacheWrittenError, match=r"a run of B=4 changed .* restart the server"):
        prover.judge(proving.end("a run of B=4"))


def test_what_real_steps_write_before_and_after_is_not_the_probes() -> None:
    tensor = cache()
    prover, _, batch = prover_of([tensor])
    tensor.add_(1)
    proof = prover.begin(batch, 100).end("a run")
    tensor.add_(1)
    prover.judge(proof)


def a_run(prover: Prover, batch: ProbeBatch, tensor: torch.Tensor, writes: bool) -> None:
    """The first of its kind, which writes or does not."""
    proving = prover.begin_if_first(batch, 100, as_graph=False)
    assert proving is not None, "it counts as proven"
    tensor.add_(int(writes))
    prover.judge(proving.end("a run"))


def test_a_block_that_a_connector_loads_meanwhile_is_not_held_against_the_probe() -> None:
    tensor = cache()
    prover, _, batch = prover_of([tensor], transfers=True)
    for _ in range(kv_proof.MOST_DOUBTS - 1):
        a_run(prover, batch, tensor, writes=True)
    a_run(prover, batch, tensor, writes=False)
    assert prover.begin_if_first(batch, 100, as_graph=False) is None, "what held is proven"


def test_beside_a_connector_a_run_that_keeps_writing_is_caught() -> None:
    tensor = cache()
    prover, _, batch = prover_of([tensor], transfers=True)
    for _ in range(kv_proof.MOST_DOUBTS - 1):
        a_run(prover, batch, tensor, writes=True)
    with pytest.raises(KvCacheWrittenError, match="a run changed"):
        a_run(prover, batch, tensor, writes=True)


def test_a_proof_amid_arriving_blocks_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor, sums = cache(), kv_proof.block_sums
    prover, _, batch = prover_of([tensor], transfers=True)

    def arriving(*arguments: Any) -> torch.Tensor:
        tensor.add_(1)
        return sums(*arguments)

    monkeypatch.setattr(kv_proof, "block_sums", arriving)
    for _ in range(kv_proof.MOST_DOUBTS + 3):
        a_run(prover, batch, tensor, writes=True)


def test_proofs_take_turns_through_the_layers_and_look_at_a_bounded_part() -> None:
    tensors = [cache(torch.uint8, (BLOCKS, BLOCK_TOKENS, 8)) for _ in range(20)]
    prover, _, batch = prover_of(tensors)
    places = {tensor.data_ptr(): index for index, tensor in enumerate(tensors)}
    seen: set[int] = set()
    for _ in range(3):
        looked_at = list(prover._looked_at(batch, 100))
        assert len(looked_at) == kv_proof.MOST_LAYERS
        assert all(len(blocks) <= 16 + kv_proof.MOST_TAILS for _, blocks in looked_at)
        seen |= {places[found.data_ptr()] for found, _ in looked_at}
        prover.begin(batch, 100)
    assert seen == set(range(20))


def test_a_large_batch_is_looked_at_evenly() -> None:
    tensor = cache(torch.uint8, (2000, BLOCK_TOKENS, 8))
    group = AttentionGroup(None, ("a",), BLOCK_TOKENS, 2000)
    batch = ProbeBatch(256, 8, Placement(Execution.NONE, 2048, 256), widths=[7], device=CPU)
    batch.fill(60, [BlockReader(group, CPU, 0)], TokenPool(1000, 4096, CPU, 0))
    prover = Prover({"a": SimpleNamespace(kv_cache=tensor)}, [group], HostClock(), CPU)
    ((_, blocks),) = prover._looked_at(batch, 60)
    assert len(blocks) == 16 + kv_proof.MOST_TAILS
    tails = set(batch.tables[0][:, 3:5].flatten().tolist())
    assert set(blocks[16:].tolist()) <= tails
    assert int(blocks[-1]) in set(batch.tables[0][-8:, 3:5].flatten().tolist())


@pytest.mark.parametrize(
    ("cached", "pieces"),
    [
        (cache(), 2),  # keys and values apart
        (cache(torch.uint8, (BLOCKS, 2, BLOCK_TOKENS, 72)), 1),
        (cache(torch.bfloat16, (BLOCKS, 2, 4, BLOCK_TOKENS, 8)).transpose(2, 3), 1),
        (cache(torch.bfloat16, (2, 4, BLOCKS, BLOCK_TOKENS, 8)), 8),  # and each head's
        (cache(torch.uint8, (BLOCKS, 1, BLOCK_TOKENS, 80))[..., :73], BLOCK_TOKENS),  # padded
    ],
)
def test_the_addresses_of_a_block_are_those_of_all_its_bytes(
    cached: torch.Tensor, pieces: int
) -> None:
    first = cached.movedim(list(cached.shape).index(BLOCKS), 0).view(
        {1: torch.uint8, 2: torch.int16}[cached.element_size()]
    )
    parts = list(whole_blocks(first))
    assert len(parts) == pieces
    numbers = np.array([0, 5, BLOCKS - 1], dtype=np.int32)
    start, size = cached.untyped_storage().data_ptr(), cached.untyped_storage().nbytes()
    touched = np.zeros(size, dtype=np.int64)
    for part in parts:
        for address, count in spans_of(part, numbers):
            touched[address - start : address - start + count] += 1
    flat = torch.zeros(size, dtype=torch.uint8)
    beside = flat.view(first.dtype).as_strided(first.shape, first.stride())
    beside[numbers] = -1 if first.dtype is torch.int16 else 255
    assert touched.tolist() == (flat.numpy() == 255).astype(np.int64).tolist()
