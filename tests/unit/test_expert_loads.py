"""A probe's tokens are not counted among the experts' loads."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.expert_loads import ExpertLoads

pytest.importorskip("vllm")


def balanced(recording: bool = True) -> tuple[Any, Any]:
    """vLLM's own state of a model with two layers, and a runner that has it."""
    from vllm.distributed.eplb.eplb_state import EplbLayerState, EplbState

    state = EplbState.__new__(EplbState)
    state.should_record_tensor = torch.tensor(recording)
    layers = [EplbLayerState() for _ in range(2)]
    for layer in layers:
        layer.should_record_tensor = state.should_record_tensor
    config = SimpleNamespace(parallel_config=SimpleNamespace(enable_eplb=True))
    view = SimpleNamespace(vllm_config=config, runner=SimpleNamespace(eplb_state=state))
    return view, layers


def counted(layers: list[Any]) -> list[bool]:
    """What routers see that run now."""
    return [bool(layer.should_record_tensor) for layer in layers]


@pytest.mark.parametrize("recording", [True, False])
def test_routers_count_nothing_while_a_probe_runs(recording: bool) -> None:
    view, layers = balanced(recording)
    loads = ExpertLoads(view)
    with loads.running():
        assert torch.is_inference_mode_enabled()
        assert counted(layers) == [False, False]
        with loads.unrecorded():  # a start makes shapes ready
            assert counted(layers) == [False, False]
        assert counted(layers) == [False, False]
    assert counted(layers) == [recording, recording]


def test_a_run_that_fails_counts_again() -> None:
    view, layers = balanced()
    loads = ExpertLoads(view)
    with pytest.raises(ValueError, match="in the run"), loads.unrecorded():
        raise ValueError("in the run")
    assert counted(layers) == [True, True]
    with loads.unrecorded():
        assert counted(layers) == [False, False]


def test_without_balancing_nothing_is_touched() -> None:
    view, layers = balanced()
    view.vllm_config.parallel_config.enable_eplb = False
    with ExpertLoads(view).unrecorded():
        assert counted(layers) == [True, True]
    view.vllm_config.parallel_config.enable_eplb = True
    view.runner.eplb_state = None  # no layer of this rank has experts
    with ExpertLoads(view).unrecorded():
        pass


def test_a_state_that_is_kept_elsewhere_is_named() -> None:
    view, _ = balanced()
    del view.runner.eplb_state.should_record_tensor
    with pytest.raises(UnknownVllmError, match="should_record_tensor"):
        ExpertLoads(view)


def test_vllms_own_kernel_takes_the_flag() -> None:
    """What a router is given in this vLLM: the flag beside the loads."""
    import inspect

    from vllm.model_executor.layers.fused_moe.router import base_router

    source = inspect.getsource(base_router.BaseRouter._apply_eplb_mapping)
    assert "record_enabled=eplb_state.should_record_tensor" in source
