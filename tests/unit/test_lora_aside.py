"""How a probe keeps the adapters of a server out of its runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_engine import config as accepted

pytest.importorskip("vllm")

import vllm

from vllm_nfp.adapter import support, versions
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.lora import Adapters
from vllm_nfp.adapter.runner_v1 import V1Runner
from vllm_nfp.adapter.runner_v2 import V2Runner
from vllm_nfp.adapter.versions import Mode


def mapping() -> Any:
    """vLLM's own metadata of LoRA kernels; the package around it wants a GPU."""
    path = Path(vllm.__file__).parent / "lora/ops/triton_ops/lora_kernel_metadata.py"
    spec = importlib.util.spec_from_file_location("lora_kernel_metadata", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LoRAKernelMeta.make(max_loras=2, max_num_tokens=8, device="cpu")


def adapters(name: str = "PunicaWrapperGPU") -> tuple[Adapters, Any]:
    wrapper = type(name, (), {})()
    wrapper.token_mapping_meta, wrapper.prompt_mapping_meta = mapping(), mapping()
    manager = SimpleNamespace(punica_wrapper_mapping={"language_model": wrapper})
    view: Any = SimpleNamespace(
        vllm_config=SimpleNamespace(lora_config=object()),
        runner=SimpleNamespace(lora_manager=SimpleNamespace(_adapter_manager=manager)),
    )
    return Adapters(view), wrapper


def test_kernels_see_no_adapter_while_a_probe_runs_and_the_live_mapping_stays() -> None:
    made, wrapper = adapters()
    meta = wrapper.token_mapping_meta
    meta.prepare_tensors(torch.tensor([0, 1, -1, 1]))
    wrapper.prompt_mapping_meta.prepare_tensors(torch.tensor([-1, -1]))
    flag, live = meta.meta_args(4, False)[5], [value.clone() for value in meta.meta_args(8, False)]
    assert not flag and wrapper.prompt_mapping_meta.no_lora_flag_cpu
    with pytest.raises(ValueError, match="in the run"), made.aside():
        assert flag and wrapper.prompt_mapping_meta.no_lora_flag_cpu, "an adapter would run"
        raise ValueError("in the run")
    assert not flag and wrapper.prompt_mapping_meta.no_lora_flag_cpu
    after = meta.meta_args(8, False)
    assert all(torch.equal(one, two) for one, two in zip(after, live, strict=True))


def test_another_way_to_give_adapters_to_kernels_is_named() -> None:
    with pytest.raises(UnknownVllmError, match="PunicaWrapperTPU"):
        adapters("PunicaWrapperTPU")


def test_kernels_look_at_the_flag_before_anything_is_launched() -> None:
    """In the sources of this vLLM: both ops return at once."""
    folder = Path(vllm.__file__).parent / "lora/ops/triton_ops"
    for name in ("lora_shrink_op.py", "lora_expand_op.py"):
        text = (folder / name).read_text()
        check = text.index("if no_lora_flag_cpu.item():")
        assert check < text.index("_kernel[", check), name


LORA = {"lora_config": object(), "device_config": SimpleNamespace(device_type="cuda")}
UNSPECIALIZED = {"compilation_config__cudagraph_specialize_lora": False}


@pytest.mark.parametrize(
    ("release", "changes", "mode"),
    [
        ("0.32.0", {}, Mode.ACTIVE),
        ("0.33.0", {}, Mode.ACTIVE),
        ("0.31.0", {}, Mode.PASSIVE),
        ("0.31.0", {"model_config__enforce_eager": True}, Mode.ACTIVE),
        ("0.33.0", UNSPECIALIZED, Mode.PASSIVE),
        ("0.33.0", {"device_config": SimpleNamespace(device_type="cpu")}, Mode.PASSIVE),
        ("0.33.0", {"model_config__is_moe": True}, Mode.PASSIVE),
    ],
)
def test_where_adapters_can_be_set_aside(
    release: str, changes: dict[str, Any], mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: release)
    found = support.decide(accepted(**{**LORA, **changes}))
    assert found.mode is mode, found.reason


@pytest.mark.parametrize(
    ("view", "lora", "marked"),
    [(V1Runner, object(), False), (V2Runner, object(), True), (V2Runner, None, False)],
)
def test_piecewise_graphs_without_an_adapter_are_found_by_their_key(
    view: Any, lora: Any, marked: bool
) -> None:
    """V2 captures them under the mark of the server, V1 under none; see their capture."""
    runner = SimpleNamespace(vllm_config=SimpleNamespace(lora_config=lora))
    assert view(runner).marks_lora is marked


def test_vllms_own_dispatch_finds_the_key_of_v1() -> None:
    """A step without adapters in this vLLM's V1 dispatcher, of a server with adapters."""
    from vllm.config import CUDAGraphMode
    from vllm.forward_context import BatchDescriptor
    from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher

    made = CudagraphDispatcher.__new__(CudagraphDispatcher)
    compilation = SimpleNamespace(
        cudagraph_capture_sizes=[1, 2, 4], max_cudagraph_capture_size=4, compile_sizes=None,
        cudagraph_specialize_lora=True,
    )  # fmt: skip
    made.vllm_config = SimpleNamespace(
        lora_config=SimpleNamespace(max_loras=2),
        scheduler_config=SimpleNamespace(max_num_seqs=4),
    )
    made.compilation_config, made.uniform_decode_query_len = compilation, 1
    made.cudagraph_keys = {CUDAGraphMode.PIECEWISE: set(), CUDAGraphMode.FULL: set()}
    made.specialize_lora_count, made.keys_initialized = False, False
    made.initialize_cudagraph_keys(CUDAGraphMode.PIECEWISE, 1)
    assert made.dispatch(3) == (CUDAGraphMode.PIECEWISE, BatchDescriptor(4, has_lora=False))
    with_adapters = made.dispatch(3, has_lora=True, num_active_loras=1)[1]
    assert with_adapters != BatchDescriptor(4, has_lora=False)


def test_v2s_capture_marks_graphs_without_an_adapter() -> None:
    """In the sources of this vLLM: the mark is the server's, the number the graph's."""
    text = (Path(vllm.__file__).parent / "v1/worker/gpu/cudagraph_utils.py").read_text()
    assert "has_lora=has_lora," in text and "num_active_loras=desc.num_active_loras," in text
    runner = (Path(vllm.__file__).parent / "v1/worker/gpu/model_runner.py").read_text()
    assert "has_lora=self.lora_config is not None," in runner
