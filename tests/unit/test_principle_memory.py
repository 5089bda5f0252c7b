"""What does not fit a device: bytes by hand, sentences, JSON, and the same in recommend."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_principle_hybrid import KIMI_LINEAR
from test_principle_models import DEEPSEEK_V3, LLAMA_3_8B, QWEN_3_30B_A3B

import vllm_nfp
from vllm_nfp.cli import main
from vllm_nfp.principle import shape_from_config, target_of
from vllm_nfp.principle.memory import cache_bytes, too_large, weight_bytes
from vllm_nfp.principle.model_facts import model_facts
from vllm_nfp.principle.notes import notes

LLAMA = shape_from_config(LLAMA_3_8B)
H100 = target_of("H100-SXM").hardware


def test_weights_and_cache_of_a_dense_model() -> None:
    # 8.03e9 parameters of two bytes; 32 layers x 8 KV heads x 128 x 2 x 2 bytes = 128 KiB a token.
    assert weight_bytes(LLAMA) == pytest.approx(16.06e9, rel=1e-3)
    assert cache_bytes(LLAMA, 4, 1023) == 4 * 1024 * 128 * 1024
    half = dataclasses.replace(LLAMA, tensor_parallel_size=2)
    assert weight_bytes(half) == pytest.approx(8.03e9, rel=1e-3)
    assert cache_bytes(half, 4, 1023) == 2 * 1024 * 128 * 1024


def test_weights_of_experts() -> None:
    qwen = shape_from_config(QWEN_3_30B_A3B)
    assert weight_bytes(qwen) == pytest.approx(2 * 30.53e9, rel=2e-3)
    split = dataclasses.replace(qwen, tensor_parallel_size=4, expert_parallel=True)
    assert weight_bytes(split) == pytest.approx(2 * 30.53e9 / 4, rel=0.01)


def test_windows_bound_the_cache() -> None:
    windowed = dataclasses.replace(LLAMA, sliding_window=512, num_sliding_layers=32)
    assert cache_bytes(windowed, 1, 100_000) == 512 * 128 * 1024


def test_an_indexer_has_a_cache_of_its_own() -> None:
    deepseek = {
        **DEEPSEEK_V3, "model_type": "deepseek_v32", "index_topk": 2048, "index_n_heads": 64,
        "index_head_dim": 128, "quantization_config": None,
    }  # fmt: skip
    # 61 layers with 576 numbers of latent and a key of 128 bytes and its 32-bit scale.
    sparse = shape_from_config(deepseek)
    assert cache_bytes(sparse, 1, 999) == 1000 * 61 * (2 * 576 + 128 + 4)
    many = dataclasses.replace(sparse, tensor_parallel_size=8)
    assert cache_bytes(many, 1, 999) == cache_bytes(sparse, 1, 999)  # a latent is on every rank
    facts = model_facts(sparse)
    assert facts.kv_bytes_per_token * 1000 == cache_bytes(sparse, 1, 999)


def test_states_count_once_a_sequence() -> None:
    hybrid = shape_from_config(KIMI_LINEAR)
    facts = model_facts(hybrid)
    assert facts.state_bytes_per_sequence > 0
    assert cache_bytes(hybrid, 3, 999) == pytest.approx(
        3 * (facts.state_bytes_per_sequence + 1000 * facts.kv_bytes_per_token)
    )


def test_cells_are_told_one_by_one() -> None:
    # 14.96 GiB of weights; at L = 131072 a sequence has 16 GiB of cache: 4 fit into 79.6 GiB.
    found = too_large(LLAMA, H100, (1, 4, 5), (1023, 131_071))
    assert [(cell.batch_size, cell.context) for cell in found] == [(5, 131_071)]
    assert not too_large(LLAMA, dataclasses.replace(H100, memory_bytes=None), (500,), (131_071,))
    predicted = vllm_nfp.predict(LLAMA_3_8B, "H100-SXM", (1, 5, 64), (131_071,), max_positions=2)
    (first, second) = (note for note in notes(predicted) if "fit at" in note)
    assert first == (
        "Does not fit at B = 5, L = 131071: 15 GiB of weights and 80 GiB of KV cache are more than "
        "the 79.6 GiB of one H100-SXM."
    )
    assert "B = 64, L = 131071: 15 GiB of weights and 1 TiB of KV cache" in second
    assert predicted.to_dict()["does_not_fit"][0] == {
        "batch_size": 5, "context": 131_071, "weight_bytes": weight_bytes(LLAMA),
        "cache_bytes": 5.0 * 16 * 2**30, "memory_bytes": 79.6 * 2**30,
    }  # fmt: skip


def test_weights_that_do_not_fit_are_told_once() -> None:
    predicted = vllm_nfp.predict(QWEN_3_30B_A3B, "L4", max_positions=2)
    (only,) = (note for note in notes(predicted) if "not fit:" in note)
    assert only.startswith(
        "Does not fit: 56.9 GiB of weights are more than the 22.5 GiB of one L4; "
    )
    assert "does_not_fit" not in vllm_nfp.predict(LLAMA_3_8B, "L4", (1,), (64,)).to_dict()


def test_recommend_keeps_the_caveats_and_says_nothing_was_measured(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_3_8B))
    flags = ("--hardware", "L4", "--acceptance", "0.95", "--max-batch-size", "128")
    done = CliRunner().invoke(main, ["recommend", "--predicted", str(tmp_path), *flags])
    shown = " ".join(done.output.split())
    assert done.exit_code == 0, shown
    assert "measured" not in shown
    for caveat in (
        "Does not fit at B = 64, L = 1024",
        "Constants: not fitted to L4",
        "rules of FLASH_ATTN_2 were never timed",
        "steps leave the CUDA graphs, and the host's launch time is not predicted",
    ):
        assert caveat in shown


@pytest.mark.parametrize("indexed", [False, True])
def test_the_cache_grows_by_what_the_model_facts_say(indexed: bool) -> None:
    """The indexer's keys too."""
    indexer = {"index_topk": 2048, "index_n_heads": 64, "index_head_dim": 128}
    shape = shape_from_config({**DEEPSEEK_V3, **(indexer if indexed else {})})
    grown = cache_bytes(shape, 1, 9000) - cache_bytes(shape, 1, 8000)
    token = 61 * (2 * 576 + (128 + 4) * indexed)
    assert grown / 1000 == pytest.approx(token)
    assert model_facts(shape).kv_bytes_per_token == token
