"""What the predictor is told of a server."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter import predictions, versions
from vllm_nfp.principle import (
    ModelShape,
    Serving,
    ShapeError,
    Target,
    default_calibration,
    hardware_by_name,
    target_of,
)
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.principle.hardware_file import write_hardware_file
from vllm_nfp.principle.live import Ground
from vllm_nfp.surface import predicted_prior
from vllm_nfp.surface.prior import generic_prior

QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
}


def server(config: dict[str, Any] = QWEN3, **changes: Any) -> SimpleNamespace:
    values = {
        "quantization": None, "cache_dtype": "auto", "tensor": 1, "data": 1, "experts": False,
        "mode": "FULL", "sizes": [8, 1, 2, 4], "speculation": None,
    } | changes  # fmt: skip
    return SimpleNamespace(
        model_config=SimpleNamespace(
            hf_config=SimpleNamespace(to_dict=lambda: config), quantization=values["quantization"]
        ),
        cache_config=SimpleNamespace(cache_dtype=values["cache_dtype"]),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=values["tensor"],
            data_parallel_size=values["data"],
            enable_expert_parallel=values["experts"],
        ),
        compilation_config=SimpleNamespace(
            cudagraph_mode=values["mode"], cudagraph_capture_sizes=values["sizes"]
        ),
        speculative_config=values["speculation"],
    )


def shape_of(vllm_config: SimpleNamespace) -> ModelShape:
    return predictions.served_model(vllm_config, ()).shape


def test_the_shape_carries_the_server_s_split_and_storage() -> None:
    shape = shape_of(server(quantization="fp8", cache_dtype="fp8_e4m3", tensor=2, data=2))
    assert (shape.tensor_parallel_size, shape.data_parallel_size) == (2, 2)
    assert (shape.fp8, shape.kv_bytes) == (True, 1.0)
    plain = shape_of(server())
    assert (plain.fp8, plain.kv_bytes, plain.tensor_parallel_size) == (False, 2.0, 1)


def test_capture_sizes_count_only_where_graphs_are_on() -> None:
    served = predictions.served_model(server(), ("TRITON_ATTN", "FLASH_ATTN"))
    assert served.serving({}) == Serving("TRITON_ATTN", CapturedGraphs((1, 2, 4, 8)))
    assert predictions.served_model(server(mode=None), ()).serving({}).graphs.sizes == ()


def test_graphs_of_adaptive_verification_fit_any_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.33.0")
    speculation = SimpleNamespace(enable_adaptive_verification=True, num_speculative_tokens=3)
    sizes = [1, 2, 4, 8, 16]
    shape, target = shape_of(server()), target_of("H200")
    for of, held in ((speculation, [4, 8, 16, 16]), (None, [4, 8, None, 16])):
        served = predictions.served_model(server(speculation=of, sizes=sizes), ()).serving({})
        cell = predicted_prior(shape, target, served, 4)(4, 256)
        found = zip(cell.padded.tolist(), cell.in_graph, strict=True)
        assert [size if graph else None for size, graph in found] == held
    guess = generic_prior(CapturedGraphs(tuple(sizes), any_mix_up_to=4), 4)(4, 256)
    assert guess.in_graph.all() and guess.padded.tolist() == [4, 8, 16, 16]


H100 = "NVIDIA H100 80GB HBM3"


def ground_of(
    vllm_config: Any, backend: str = "FLASH_ATTN", hardware_file: str | None = None
) -> Ground:
    cuda = torch.device("cuda")
    return predictions.served_ground(vllm_config, cuda, (backend,), hardware_file)


@pytest.fixture(autouse=True)
def predictable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: H100)
    monkeypatch.setattr(predictions.support, "unpredicted", lambda _: None)


def test_an_unknown_attention_backend_is_named() -> None:
    with pytest.raises(predictions.NoGroundError, match="NO_SUCH_BACKEND"):
        ground_of(server(), "NO_SUCH_BACKEND")


def test_a_hardware_file_gives_its_constants_and_that_of_another_gpu_is_refused(
    tmp_path: Path,
) -> None:
    own, other = tmp_path / "h100.json", tmp_path / "l4.json"
    for path, name in ((own, "H100-SXM"), (other, "L4")):
        constants = dataclasses.replace(default_calibration(name), source="fitted here")
        write_hardware_file(path, Target(hardware_by_name(name), constants))
    assert ground_of(server(), hardware_file=str(own)).target.calibration.source == "fitted here"
    with pytest.raises(predictions.NoGroundError) as caught:
        ground_of(server(), hardware_file=str(other))
    assert f"l4.json is for L4, this GPU is {H100}: run vllm-nfp calibrate" in str(caught.value)


def test_predictions_cover_every_cell_module_and_tolerance() -> None:
    cells = [(1, 1024), (8, 4096)]
    rows = predictions.predict_rows(ground_of(server()), cells, [0.1, 0.2])
    assert {(r.module, r.batch_size, r.context, r.epsilon) for r in rows} == {
        (module, *cell, epsilon)
        for module in ("dense_ffn", "attention", "model")
        for cell in cells
        for epsilon in (0.1, 0.2)
    }
    assert all(row.idle_compute_positions > row.positions >= 1 for row in rows)


def test_experts_take_the_tiles_that_vllm_was_tuned_to(monkeypatch: pytest.MonkeyPatch) -> None:
    fused_moe = pytest.importorskip("vllm.model_executor.layers.fused_moe.fused_moe")
    asked = []
    tiles = {1: {"BLOCK_SIZE_M": 16, "BLOCK_SIZE_N": 64, "BLOCK_SIZE_K": 128, "GROUP_SIZE_M": 1}}

    def configs(*arguments: object) -> object:
        asked.append(arguments)
        return tiles

    monkeypatch.setattr(fused_moe, "get_moe_configs", configs)
    moe = QWEN3 | {
        "model_type": "qwen3_moe",
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 768,
    }
    split = shape_of(server(moe, tensor=2))
    assert predictions.expert_tiles_of(split) == tiles
    assert asked == [(128, 384, None, None, None)]
    assert predictions.expert_tiles_of(shape_of(server())) == {}
    assert len(asked) == 1


def test_an_unknown_family_is_a_shape_error() -> None:
    with pytest.raises(ShapeError):
        shape_of(server({"model_type": "no_such_family"}))
