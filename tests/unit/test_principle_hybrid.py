"""Hybrid models: their sizes, their states, and the time of a step that carries them."""

from __future__ import annotations

from typing import Any

import pytest
from test_principle_families import EXPERTS, SMALL, WIDE, live

from vllm_nfp import predict
from vllm_nfp.principle import ShapeError, shape_from_config
from vllm_nfp.principle.model_facts import model_facts
from vllm_nfp.types import Module

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")

Config = dict[str, Any]
DELTA: Config = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 32,
}
ROUTED: Config = {**WIDE, **EXPERTS, "num_experts": 6}
SHARED: Config = {"shared_expert_intermediate_size": 64}
DELTA_LAYERS = ["linear_attention"] * 3 + ["full_attention"] + ["linear_attention"] * 2
MAMBA2: Config = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}
MAMBA_LAYERS = ["mamba"] * 4 + ["attention"] * 2
CONV_LAYERS = ["conv"] * 4 + ["full_attention"] * 2

CONFIGS: list[Config] = [
    {**ROUTED, **DELTA, **SHARED, "model_type": "qwen3_next"},
    {**ROUTED, **DELTA, **SHARED, "model_type": "qwen3_next", "layer_types": DELTA_LAYERS},
    {**WIDE, **DELTA, "model_type": "qwen3_5_text"},
    {**ROUTED, **DELTA, **SHARED, "model_type": "qwen3_5_moe_text"},
    {
        **SMALL,
        **MAMBA2,
        "model_type": "granitemoehybrid",
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "shared_intermediate_size": 64,
        "layer_types": MAMBA_LAYERS,
    },
    {
        **SMALL,
        **MAMBA2,
        "model_type": "granitemoehybrid",
        "num_local_experts": 0,
        "shared_intermediate_size": 64,
        "layer_types": MAMBA_LAYERS,
    },
    {**SMALL, **MAMBA2, "model_type": "falcon_h1", "mamba_d_ssm": 64, "mamba_d_head": 8},
    {**SMALL, "model_type": "jamba", "num_experts": 4, "num_experts_per_tok": 2},
    {**SMALL, "model_type": "lfm2", "layer_types": CONV_LAYERS},
    {**ROUTED, "model_type": "lfm2_moe", "num_dense_layers": 2, "layer_types": CONV_LAYERS},
    {
        **WIDE,
        "model_type": "nemotron_h",
        "layers_block_type": ["mamba", "attention", "mlp", "mamba", "mlp", "mamba"],
        "mamba_num_heads": 4,
        "mamba_head_dim": 32,
        "n_groups": 2,
        "ssm_state_size": 16,
    },
]


def matrix_weights(live_config: Any) -> int:
    """Weights of all matrices; a convolution's taps and the decay of a state are none."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(live_config)
    return sum(
        weight.numel()
        for name, weight in model.named_parameters()
        if weight.dim() >= 2 and not any(n in name for n in ("conv1d", "conv.conv", "A_log"))
    )


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config["model_type"]))
def test_matrices_are_those_of_the_model(config: Config) -> None:
    read = shape_from_config(config, name="m")
    assert read.total_parameters == matrix_weights(live(config))
    assert model_facts(shape_from_config(live(config).to_dict())) == model_facts(read)


NANO: Config = {
    "model_type": "nemotron_h",
    "hidden_size": 2688,
    "hybrid_override_pattern": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "intermediate_size": 1856,
    "head_dim": 128,
    "mamba_head_dim": 64,
    "mamba_num_heads": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "mamba_ssm_cache_dtype": "float32",
    "moe_intermediate_size": 1856,
    "moe_shared_expert_intermediate_size": 3712,
    "n_routed_experts": 128,
    "n_shared_experts": 1,
    "num_attention_heads": 32,
    "num_experts_per_tok": 6,
    "num_key_value_heads": 2,
    "vocab_size": 131072,
}
SUPER: Config = {
    **NANO,
    "hidden_size": 4096,
    "hybrid_override_pattern": "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*"
    "EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
    "mamba_num_heads": 128,
    "moe_intermediate_size": 2688,
    "moe_latent_size": 1024,
    "moe_shared_expert_intermediate_size": 5376,
    "n_routed_experts": 512,
    "num_experts_per_tok": 22,
}
KIMI_LINEAR: Config = {
    "model_type": "kimi_linear",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 27,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 163840,
    "num_experts": 256,
    "num_experts_per_token": 8,
    "num_shared_experts": 1,
    "moe_intermediate_size": 1024,
    "first_k_dense_replace": 1,
    "linear_attn_config": {
        "kda_layers": [n for n in range(1, 28) if n % 4 and n != 27],
        "full_attn_layers": [4, 8, 12, 16, 20, 24, 27],
        "num_heads": 32,
        "head_dim": 128,
        "short_conv_kernel_size": 4,
    },
}


@pytest.mark.parametrize(
    ("config", "billions"),
    [(NANO, 31.6), (SUPER, 120.6), (KIMI_LINEAR, 49.1)],
    ids=["Nemotron 3 Nano", "Nemotron 3 Super", "Kimi Linear"],
)
def test_published_parameters(config: Config, billions: float) -> None:
    assert shape_from_config(config).total_parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_facts_count_layers_and_states() -> None:
    facts = model_facts(shape_from_config(NANO))
    assert facts.layers == {"full_attention": 6, "linear_attention": 23, "moe_ffn": 23}
    # 64 heads x 64 x 128 numbers of 4 bytes; three taps of 4096 + 2 x 8 x 128 channels of 2 bytes.
    assert facts.state_bytes_per_sequence == 23 * (64 * 64 * 128 * 4 + 3 * 6144 * 2)
    assert facts.kv_bytes_per_token == 6 * 2 * 128 * 2 * 2
    assert "MB of state per sequence" in facts.sentence()


def test_positions_write_a_state_each() -> None:
    found = predict(NANO, "H100-SXM", batch_sizes=(64,), contexts=(1024,), max_positions=9)
    cell = found.cell(Module.LINEAR_ATTENTION, 64, 1024)
    state = 64 * (64 * 64 * 128 * 4 + 3 * 6144 * 2)
    least = 8 * state / found.target.hardware.memory_bytes_per_second
    assert cell.seconds[8] - cell.seconds[0] > least
    assert "linear attention" in found.cell(Module.MODEL, 64, 1024).parts
    assert any("write N states" in sentence for sentence in found.shape.assumptions)


def test_the_parts_are_the_whole_step() -> None:
    found = predict(NANO, "H100-SXM", batch_sizes=(1,), contexts=(1024,), max_positions=2)
    whole = found.cell(Module.MODEL, 1, 1024)
    assert sum(part[0] for part in whole.parts.values()) == pytest.approx(whole.seconds[0])
    linear = found.cell(Module.LINEAR_ATTENTION, 1, 1024).seconds[0]
    assert whole.parts["linear attention"][0] == pytest.approx(23 * linear)
    assert whole.parts["attention"][0] == pytest.approx(
        6 * found.cell(Module.ATTENTION, 1, 1024).seconds[0]
    )


def test_ranks_share_heads_and_states() -> None:
    one, four = (shape_from_config(NANO, tensor_parallel_size=n) for n in (1, 2))
    first, *_ = one.linear_attention_gemms
    half, *_ = four.linear_attention_gemms
    assert half.parameters == first.parameters / 2
    assert model_facts(one) == model_facts(four)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hybrid_override_pattern": "M?*"}, "hybrid_override_pattern has '\\?'"),
        ({"num_hidden_layers": 7}, "52 entries for 7 layers"),
    ],
)
def test_strange_blocks_are_refused(change: Config, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        shape_from_config({**NANO, **change})
