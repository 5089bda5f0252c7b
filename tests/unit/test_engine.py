"""Which servers are refused, and what is read from steps, runners and the machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from vllm_nfp.adapter import support
from vllm_nfp.adapter.bindings import UnknownVllmError
from vllm_nfp.adapter.feature_list import features_of
from vllm_nfp.adapter.runner_v1 import V1Runner
from vllm_nfp.adapter.runner_v2 import V2Runner
from vllm_nfp.adapter.runners import view_of
from vllm_nfp.adapter.steps import StepLimits, step_of, text_of
from vllm_nfp.adapter.versions import Mode


def config(**changes: Any) -> Any:
    """A configuration that the probe accepts, and changes to it by dotted name."""
    parallel = SimpleNamespace(
        tensor_parallel_size=1, pipeline_parallel_size=1, data_parallel_size=1,
        decode_context_parallel_size=1, prefill_context_parallel_size=1,
        use_ubatching=False, enable_eplb=False, enable_expert_parallel=False, nnodes=1, rank=0,
        distributed_executor_backend=None, all2all_backend="allgather_reducescatter",
        enable_elastic_ep=False, data_parallel_backend="mp", data_parallel_size_local=1,
        data_parallel_external_lb=False, data_parallel_hybrid_lb=False,
    )  # fmt: skip
    model = SimpleNamespace(
        is_hybrid=False, is_attention_free=False, is_encoder_decoder=False, is_moe=False,
        runner_type="generate", uses_mrope=False, supports_multimodal_inputs=False,
        enable_prompt_embeds=False, enable_sleep_mode=False, enforce_eager=False,
        hf_config=SimpleNamespace(architectures=["LlamaForCausalLM"]),
    )  # fmt: skip
    offload = SimpleNamespace(offload_backend="auto", uva=SimpleNamespace(cpu_offload_gb=0))
    made = SimpleNamespace(
        parallel_config=parallel, model_config=model, offload_config=offload,
        kv_transfer_config=None, ec_transfer_config=None, lora_config=None,
        device_config=SimpleNamespace(device_type="cpu"),
        compilation_config=SimpleNamespace(cudagraph_specialize_lora=True),
    )  # fmt: skip
    for name, value in changes.items():
        owner, _, field = name.partition("__")
        setattr(getattr(made, owner) if field else made, field or owner, value)
    return made


def kv_transfer(name: str, module: str | None = None, parts: Any = ()) -> Any:
    """Settings of a KV connector, as vLLM has them."""
    return SimpleNamespace(
        kv_connector=name,
        kv_connector_module_path=module,
        kv_connector_extra_config={"connectors": parts},
    )


def ec_transfer(name: str, module: str | None = None) -> Any:
    """Settings of an encoder-cache connector, as vLLM has them."""
    return SimpleNamespace(
        ec_connector=name, ec_connector_module_path=module, ec_role="ec_consumer"
    )


UNKNOWN_HYBRID = {
    "model_config__is_hybrid": True,
    "model_config__hf_config": SimpleNamespace(architectures=["JambaForCausalLM"]),
}
EAGER_LORA = {"lora_config": object(), "model_config__enforce_eager": True}
EXPERTS_IN_PARALLEL = {"parallel_config__data_parallel_size": 4, "model_config__is_moe": True}
OTHER_ALL2ALL = {
    **EXPERTS_IN_PARALLEL,
    "parallel_config__enable_expert_parallel": True,
    "parallel_config__all2all_backend": "new_low_latency",
}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel_config__pipeline_parallel_size": 2}, "--pipeline-parallel-size 2"),
        ({"parallel_config__decode_context_parallel_size": 2}, "--decode-context-parallel-size 2"),
        (OTHER_ALL2ALL, "--all2all-backend new_low_latency"),
        (
            {**EXPERTS_IN_PARALLEL, "parallel_config__enable_elastic_ep": True},
            "--enable-elastic-ep",
        ),
        (
            {**EXPERTS_IN_PARALLEL, "parallel_config__distributed_executor_backend": "ray"},
            "--distributed-executor-backend mp",
        ),
        (
            {**EXPERTS_IN_PARALLEL, "parallel_config__data_parallel_backend": "ray"},
            "not tried with a probe under Ray",
        ),
        (
            {
                **EXPERTS_IN_PARALLEL,
                "parallel_config__distributed_executor_backend": "external_launcher",
            },
            "--distributed-executor-backend external_launcher",
        ),
        ({"parallel_config__use_ubatching": True}, "--enable-dbo"),
        (UNKNOWN_HYBRID, "recurrent (mamba) state"),
        ({"model_config__is_encoder_decoder": True}, "encoder-decoder"),
        ({"model_config__runner_type": "pooling"}, "'pooling' decodes nothing"),
        ({"model_config__enable_sleep_mode": True}, "sleep mode"),
        ({"kv_transfer_config": kv_transfer("NewConnector")}, "the KV connector NewConnector"),
        (
            {"kv_transfer_config": kv_transfer("NixlConnector", "my.module")},
            "the KV connector my.module.NixlConnector",
        ),
        (
            {
                "kv_transfer_config": kv_transfer(
                    "MultiConnector",
                    parts=[
                        {"kv_connector": "NixlConnector"},
                        {"kv_connector": "HiSparseConnector"},
                    ],
                )
            },
            "the KV connector HiSparseConnector",
        ),
        ({"ec_transfer_config": ec_transfer("New")}, "the encoder-cache connector New"),
        (
            {"ec_transfer_config": ec_transfer("ECExampleConnector", "my.module")},
            "the encoder-cache connector my.module.ECExampleConnector",
        ),
        ({"lora_config": object()}, "--enable-lora"),
        ({**EAGER_LORA, "model_config__is_moe": True}, "--enable-lora"),
        ({"offload_config__offload_backend": "prefetch"}, "offloaded"),
    ],
)
def test_what_a_probe_would_corrupt_is_refused_by_name(
    changes: dict[str, Any], reason: str
) -> None:
    assert support.decide(config(**changes), passive=True).mode is Mode.PASSIVE
    found = support.refusal(config(**changes))
    assert found is not None
    assert reason in found


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model_config__is_moe": True},
        {"model_config__uses_mrope": True},
        {"model_config__supports_multimodal_inputs": True},
        {"model_config__enable_prompt_embeds": True},
        {"parallel_config__data_parallel_size": 4},
        {"parallel_config__data_parallel_size": 4, "parallel_config__data_parallel_backend": "ray"},
        EXPERTS_IN_PARALLEL,
        {**EXPERTS_IN_PARALLEL, "parallel_config__data_parallel_external_lb": True},
        {**EXPERTS_IN_PARALLEL, "parallel_config__data_parallel_hybrid_lb": True},
        {**OTHER_ALL2ALL, "parallel_config__all2all_backend": "allgather_reducescatter"},
        {**OTHER_ALL2ALL, "parallel_config__enable_expert_parallel": False},
        {"parallel_config__tensor_parallel_size": 2},
        EAGER_LORA,
        {"kv_transfer_config": kv_transfer("NixlConnector")},
        {
            "kv_transfer_config": kv_transfer(
                "MultiConnector",
                parts=[{"kv_connector": "NixlConnector"}, {"kv_connector": "OffloadingConnector"}],
            )
        },
        {"ec_transfer_config": ec_transfer("ECExampleConnector")},
    ],
)
def test_what_a_probe_follows_is_accepted(changes: dict[str, Any]) -> None:
    assert support.refusal(config(**changes)) is None


@pytest.mark.parametrize(
    ("changes", "balanced"),
    [
        ({}, "over nodes, balanced by the first"),
        ({"parallel_config__data_parallel_size_local": 4}, None),
        ({"parallel_config__data_parallel_hybrid_lb": True}, "over nodes, balanced by each"),
        ({"parallel_config__data_parallel_external_lb": True}, "balanced from outside"),
        ({"parallel_config__data_parallel_backend": "ray"}, None),
    ],
)
def test_who_spreads_requests_over_engines_is_told(
    changes: dict[str, Any], balanced: str | None
) -> None:
    held = features_of(config(parallel_config__data_parallel_size=4, **changes))
    found = [feature.name for feature in held if "balanced" in feature.name]
    assert len(found) == (balanced is not None)
    assert all(name.endswith(str(balanced)) for name in found)


@pytest.mark.parametrize(
    ("executor", "accepted"),
    [("mp", True), ("uni", True), ("ray", True), ("external_launcher", False)],
)
def test_tensor_parallel_ranks_are_accepted_where_one_engine_has_them(
    executor: str, accepted: bool
) -> None:
    made = config(
        parallel_config__tensor_parallel_size=2,
        parallel_config__distributed_executor_backend=executor,
    )
    reason = support.refusal(made)
    assert (reason is None) == accepted
    assert accepted or f"--distributed-executor-backend {executor}" in str(reason)


@pytest.mark.parametrize(
    ("version", "passive"),
    [("0.32.0", False), ("0.33.1", False), ("0.34.0", True), ("1.0.0", True), ("dev", True)],
)
def test_a_newer_vllm_is_only_watched(
    version: str, passive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.adapter import versions

    monkeypatch.setattr(versions, "installed_version", lambda: version)
    decision = support.decide(config())
    assert decision.mode is (Mode.PASSIVE if passive else Mode.ACTIVE)
    if passive:
        assert version in decision.reason and "0.29 to 0.33" in decision.reason


def test_an_old_vllm_ends_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm_nfp.adapter import versions
    from vllm_nfp.config import ConfigError

    monkeypatch.setattr(versions, "installed_version", lambda: "0.28.1")
    with pytest.raises(ConfigError, match=r"vLLM 0\.28\.1 is too old .* 0\.29 to 0\.33"):
        versions.require_supported()


LIMITS = StepLimits(sequences=256, tokens=8192)


def scheduled(counts: dict[str, int], new: int = 0, computed: tuple[int, ...] = ()) -> Any:
    return SimpleNamespace(
        num_scheduled_tokens=counts,
        total_num_scheduled_tokens=sum(counts.values()),
        scheduled_new_reqs=[object()] * new,
        scheduled_encoder_inputs={},
        preempted_req_ids=None,
        scheduled_cached_reqs=SimpleNamespace(num_computed_tokens=list(computed)),
    )


def test_a_step_is_told_from_the_scheduler_output_alone() -> None:
    step = step_of(
        scheduled({"a": 1, "b": 4}, computed=(100, 200)), decode_positions=4, limits=LIMITS
    )
    assert step is not None
    assert (step.batch_size, step.context, step.positions, step.decode) == (2, 150, 3, True)
    assert step.mean_positions == 2.5, "one sequence has no drafts"
    long = step_of(
        scheduled({"a": 1, "b": 5}, computed=(100, 200)), decode_positions=4, limits=LIMITS
    )
    assert long is not None and not long.decode, "the longest decides, not the mean"
    chunk = step_of(scheduled({"a": 64}, computed=(100,)), decode_positions=4, limits=LIMITS)
    assert chunk is not None and not chunk.decode
    first = step_of(scheduled({"a": 1}, new=1), decode_positions=4, limits=LIMITS)
    assert first is not None and not first.decode
    assert step_of(scheduled({}), decode_positions=4, limits=LIMITS) is None


def test_a_step_that_reads_an_image_is_no_decode_step() -> None:
    output = scheduled({"a": 1, "b": 1}, computed=(100, 200))
    output.scheduled_encoder_inputs = {"b": [0]}
    step = step_of(output, decode_positions=4, limits=LIMITS)
    assert step is not None and not step.decode


def prompt(ids: list[int] | None, *images: tuple[int, int], embedded: Any = None) -> Any:
    places = [SimpleNamespace(offset=offset, length=length) for offset, length in images]
    return SimpleNamespace(
        prompt_token_ids=ids,
        prompt_is_token_ids=embedded,
        mm_features=[SimpleNamespace(mm_position=place) for place in places],
    )


@pytest.mark.parametrize(
    ("request_", "most", "text"),
    [
        (prompt([1, 2, 3, 4]), 3, [1, 2, 3]),
        (prompt([9, 9, 9, 4, 5, 9, 9, 6], (0, 3), (5, 2)), 8, [4, 5, 6]),
        (prompt([9, 9, 9, 4, 5, 9, 9, 6], (0, 3), (5, 2)), 2, [4, 5]),
        (prompt([1, 2, 3, 9, 9, 4], (3, 2)), 2, [1, 2]),
        (prompt(None), 8, []),
        (prompt([0, 0, 4], embedded=[False, False, True]), 8, []),
    ],
)
def test_probes_run_on_the_text_of_prompts(request_: Any, most: int, text: list[int]) -> None:
    assert text_of(request_, most) == text


def test_an_unknown_runner_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match="model runner int is unknown"):
        view_of(3)


def buffer(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


class DefaultModelState:
    """Called as vLLM's."""

    def __init__(self, embeds: Any = None, rotary: Any = None) -> None:
        self._embeds = embeds
        self.rope_state = None if rotary is None else SimpleNamespace(positions=rotary)

    def dummy_inputs_embeds(self, tokens: int) -> Any:
        return self._embeds[:tokens]


@pytest.mark.parametrize(
    ("version", "image", "rotary"),
    [
        ("0.32.0", True, "mrope"),
        ("0.32.0", True, None),
        ("0.32.0", False, "mrope"),
        ("0.29.0", True, "xdrope"),
    ],
)
def test_the_views_know_where_embeddings_and_rotary_positions_are(
    version: str, image: bool, rotary: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.adapter import versions

    monkeypatch.setattr(versions, "installed_version", lambda: version)
    embeds, places = torch.ones(4, 2), torch.ones(3, 5)
    asked = config(
        model_config__supports_multimodal_inputs=image, model_config__is_multimodal_model=image
    )
    v1 = SimpleNamespace(
        input_ids=SimpleNamespace(gpu=buffer(1)), positions=buffer(2), is_padding=buffer(3),
        input_batch=SimpleNamespace(block_table=SimpleNamespace(block_tables=[])),
        vllm_config=asked, inputs_embeds=SimpleNamespace(gpu=embeds),
        uses_mrope=rotary == "mrope", mrope_positions=SimpleNamespace(gpu=places),
        uses_xdrope_dim=3 * (rotary == "xdrope"), xdrope_positions=SimpleNamespace(gpu=places),
    )  # fmt: skip
    state = DefaultModelState(embeds, None if rotary is None else places)
    v2 = SimpleNamespace(
        input_buffers=SimpleNamespace(
            input_ids=torch.ones(4), positions=buffer(2), is_padding=buffer(3)
        ),
        block_tables=SimpleNamespace(slot_mappings=[]), vllm_config=asked, model_state=state,
    )  # fmt: skip
    for view in (V1Runner(v1), V2Runner(v2)):
        found = view.step_buffers()
        assert (found.embeds is None) is not image
        assert found.embeds is None or found.embeds.data_ptr() == embeds.data_ptr()
        assert (found.rotary is None) is (rotary is None)
        assert found.rotary is None or found.rotary.data_ptr() == places.data_ptr()


@pytest.mark.parametrize(("version", "marks"), [("0.29.0", False), ("0.32.0", True)])
def test_the_views_know_the_buffers_that_piecewise_graphs_read(
    version: str, marks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.adapter import versions

    monkeypatch.setattr(versions, "installed_version", lambda: version)
    tables = [SimpleNamespace(slot_mapping=SimpleNamespace(gpu=buffer(i))) for i in (5, 6)]
    calls: list[Any] = []
    plain = config(model_config__is_multimodal_model=False)
    v1 = SimpleNamespace(
        input_ids=SimpleNamespace(gpu=buffer(1)), positions=buffer(2), is_padding=buffer(3),
        input_batch=SimpleNamespace(block_table=SimpleNamespace(block_tables=tables)),
        model=lambda **inputs: calls.append(("v1", inputs)), vllm_config=plain,
        uses_mrope=False, uses_xdrope_dim=0,
    )  # fmt: skip
    found = V1Runner(v1).step_buffers()
    assert [int(tensor) for tensor in found.tensors] == [1, 2, 5, 6, *([3] if marks else [])]
    v2 = SimpleNamespace(
        input_buffers=SimpleNamespace(
            input_ids=buffer(1), positions=buffer(2), is_padding=buffer(3)
        ),
        block_tables=SimpleNamespace(slot_mappings=torch.stack([buffer(5), buffer(6)])),
        model="model",
        vllm_config=plain,
        model_state=DefaultModelState(),
        cudagraph_manager=SimpleNamespace(run_pw_graph=lambda *given: calls.append(("v2", *given))),
    )
    assert [int(tensor) for tensor in V2Runner(v2).step_buffers().tensors] == [1, 2, 5, 6, 3]
    v2.model_state = SimpleNamespace()
    with pytest.raises(UnknownVllmError, match="prepares its inputs in a way of its own"):
        V2Runner(v2).step_buffers()
    kimi = type("KimiK3ModelState", (DefaultModelState,), {})()
    kimi.language_model = SimpleNamespace(specialized_decode=None)
    v2.model_state = kimi
    assert len(V2Runner(v2).step_buffers().tensors) == 5
    kimi.language_model.specialized_decode = object()
    with pytest.raises(UnknownVllmError, match="latency_specialized"):
        V2Runner(v2).step_buffers()
    for view in (V1Runner(v1), V2Runner(v2)):
        view.run_piecewise({"input_ids": 4})
    assert calls == [("v1", {"input_ids": 4}), ("v2", "model", {"input_ids": 4})]


def test_the_driver_and_the_processor_are_read_from_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm_nfp.adapter import environment

    file = tmp_path / "version"
    file.write_text(
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    monkeypatch.setattr(environment, "_DRIVER_FILE", file)
    assert environment._driver_version() == "580.159.04"
    file.write_text("processor\t: 0\nmodel name\t: A CPU @ 2 GHz\n")
    monkeypatch.setattr(environment, "_CPU_FILE", file)
    assert environment._cpu_name() == "A CPU @ 2 GHz"
    file.unlink()
    assert environment._driver_version() is None
    assert environment._cpu_name()


def test_the_model_is_told_by_whichever_names_its_configuration_has() -> None:
    from vllm_nfp.adapter.environment import describe_model

    text = SimpleNamespace(n_layer=12, n_embd=768, n_head=12, vocab_size=True, num_local_experts=8)
    model = SimpleNamespace(
        hf_text_config=text,
        hf_config=SimpleNamespace(architectures=["GPT2LMHeadModel"]),
        hf_overrides={},
    )
    found = describe_model("m", SimpleNamespace(model_config=model))
    assert (found.num_layers, found.hidden_size, found.num_attention_heads) == (12, 768, 12)
    assert (found.num_experts, found.vocab_size, found.head_dim) == (8, None, None)
    assert found.architecture == "GPT2LMHeadModel"
    assert found.whole_num_layers is None


def test_a_model_that_was_cut_says_how_many_layers_it_has(tmp_path: Path) -> None:
    from vllm_nfp.adapter.environment import describe_model

    def layers(overrides: object, folder: Path = tmp_path) -> tuple[int | None, int | None]:
        model = SimpleNamespace(
            hf_text_config=SimpleNamespace(num_hidden_layers=8),
            hf_config=SimpleNamespace(architectures=["Qwen3ForCausalLM"]),
            hf_overrides=overrides,
            model=str(folder),
        )
        found = describe_model("m", SimpleNamespace(model_config=model))
        return found.num_layers, found.whole_num_layers

    (tmp_path / "config.json").write_text('{"num_hidden_layers": 36}')
    assert layers({"num_hidden_layers": 8}) == (8, 36)
    assert layers({}) == layers({"rope_theta": 1.0}) == layers(len) == (8, None)
    assert layers({"num_hidden_layers": 8}, tmp_path / "none") == (8, None)
