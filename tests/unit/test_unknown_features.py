"""What this vllm-nfp does not know of a vLLM is named, and keeps the probe passive."""

from __future__ import annotations

import dataclasses
import types
from types import SimpleNamespace
from typing import Any

import pytest
from test_engine import config as accepted
from test_engine import ec_transfer, kv_transfer

pytest.importorskip("vllm")

from vllm_nfp.adapter import known_settings, own_ways, support, versions
from vllm_nfp.adapter.feature_list import features_of
from vllm_nfp.adapter.known_settings import unknown_setting
from vllm_nfp.adapter.runner_v2 import KNOWN_STATES
from vllm_nfp.adapter.versions import Mode


@pytest.fixture(autouse=True)
def release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.33.0")


def with_field(owner: Any, name: str, value: Any) -> Any:
    """The same settings with one more field; others count as properties, which vLLM has too."""
    field = (name, Any, dataclasses.field(default=None))
    made = dataclasses.make_dataclass("Config", [field])(value)
    vars(made).update(vars(owner))
    return made


@dataclasses.dataclass
class RingConfig:
    """A part that a later vLLM might have."""

    ranks: int = 2


def ring(value: Any, default: Any = None) -> Any:
    parts = [(key, Any) for key in vars(accepted())]
    more = ("ring_config", Any, dataclasses.field(default_factory=lambda: default))
    made = dataclasses.make_dataclass("VllmConfig", [*parts, more])
    return made(**vars(accepted()), ring_config=value)


class RingExecutor:
    """An executor of a later vLLM."""


UNKNOWN = [
    (ring(RingConfig()), "ring_config"),
    (accepted(parallel_config=with_field(accepted().parallel_config, "ring_parallel_size", 2)),
     "parallel_config.ring_parallel_size"),
    (accepted(offload_config=with_field(accepted().offload_config, "disk", "/scratch")),
     "offload_config.disk"),
    (accepted(kv_transfer_config=kv_transfer("RingConnector")), "RingConnector"),
    (accepted(ec_transfer_config=ec_transfer("RingConnector")), "RingConnector"),
    (accepted(parallel_config__tensor_parallel_size=2,
              parallel_config__distributed_executor_backend=RingExecutor), "RingExecutor"),
    (accepted(parallel_config__tensor_parallel_size=2,
              parallel_config__distributed_executor_backend="ring"), "ring"),
    (accepted(model_config__hf_config=SimpleNamespace(
        architectures=["DiffusionGemmaForBlockDiffusion"])), "DiffusionGemmaForBlockDiffusion"),
    (accepted(model_config__hf_config=SimpleNamespace(architectures=["Step5ForCausalLM"])),
     "Step5ForCausalLM"),
    (accepted(model_config__is_hybrid=True,
              model_config__hf_config=SimpleNamespace(architectures=["RingForCausalLM"])),
     "RingForCausalLM"),
]  # fmt: skip
"""What a later vLLM might have, and what the reason names. Kinds of KV cache, metadata and backends
of attention are in test_bindings.py, runners in test_support.py, recurrent layers in
test_probe_states.py, ways to give adapters to kernels in test_lora_aside.py."""


@pytest.mark.parametrize(("config", "name"), UNKNOWN)
def test_what_is_not_known_is_passive_by_its_name(config: Any, name: str) -> None:
    found = support.decide(config)
    assert found.mode is Mode.PASSIVE
    assert name in found.reason


def test_a_new_setting_that_is_left_alone_keeps_nothing_off() -> None:
    assert support.decide(ring(None)).mode is Mode.ACTIVE
    assert support.decide(ring([], default=[])).mode is Mode.ACTIVE


def test_a_setting_that_a_known_release_lost_is_named() -> None:
    config = accepted()
    del config.parallel_config.use_ubatching
    found = support.decide(config)
    assert found.mode is Mode.PASSIVE and "use_ubatching" in found.reason


def test_a_later_release_is_passive_whatever_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda: "0.34.0")
    found = support.decide(accepted())
    assert found.mode is Mode.PASSIVE and "0.34.0" in found.reason


def test_settings_of_the_installed_vllm_are_all_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real classes: nothing of a server that was started without flags is unknown."""
    from vllm.config import OffloadConfig, ParallelConfig, VllmConfig

    for part, kind in (("", VllmConfig), ("parallel_config", ParallelConfig),
                       ("offload_config", OffloadConfig)):  # fmt: skip
        names = {field.name for field in dataclasses.fields(kind)}
        assert not names - known_settings.KNOWN[part], part
    monkeypatch.undo()
    made = VllmConfig()
    assert unknown_setting(made) is None
    assert "settings of vLLM that are not known" not in {
        feature.name for feature in features_of(with_model(made))
    }


def test_models_with_ways_of_their_own_are_those_of_vllms_sources() -> None:
    """By the text of this vLLM: what loading them would find out is told before."""
    from pathlib import Path

    import vllm
    from vllm.model_executor.models.registry import _TEXT_GENERATION_MODELS, _VLLM_MODELS

    from benchmarks.recipes.model_facts import Sources

    sources = Sources(Path(vllm.__file__).parent, _VLLM_MODELS)
    others = {"MambaSpec", "CrossAttentionSpec", *versions.KV_CACHE_KINDS}
    for name in (*_TEXT_GENERATION_MODELS, "DiffusionGemmaForBlockDiffusion"):
        if _VLLM_MODELS[name][0] == "transformers":
            continue
        found = sources.facts(name)
        assert found is not None
        own_inputs = bool(set(found.model_states) - set(KNOWN_STATES))
        assert own_inputs == (name in own_ways.INPUTS), name
        own_cache = bool(set(found.kv_kinds) - others)
        assert own_cache == (name in own_ways.CACHES) or own_inputs, name


def with_model(made: Any) -> Any:
    """A real configuration with a model that is served as text."""
    model = accepted().model_config
    model.hf_config = SimpleNamespace(architectures=["LlamaForCausalLM"])
    parts = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
    return types.SimpleNamespace(**{**parts, "model_config": model})
