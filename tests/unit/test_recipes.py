"""Public recipes: their command lines, and what the probe does under each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.recipes import page
from benchmarks.recipes.commands import Command, recipes_in, written_out
from benchmarks.recipes.model_facts import ModelFacts, Sources
from benchmarks.recipes.verdicts import UNREAD, Verdict, reasons

STRATEGIES: dict[str, dict[str, Any]] = {
    "single_node_tp": {"deploy_type": "single_node", "parallel_flag": "--tensor-parallel-size"},
    "multi_node_tp_pp": {"deploy_type": "multi_node", "parallel_flag": "--tensor-parallel-size",
                         "parallelism": "tp_pp"},
    "multi_node_dep": {"deploy_type": "multi_node", "parallel_flag": "--data-parallel-size",
                       "vllm_args": ["--enable-expert-parallel"]},
    "pd_cluster": {"deploy_type": "pd_cluster", "parallel_flag": "--tensor-parallel-size",
                   "decode": {"vllm_args": ["--port", "8002"]}},
}  # fmt: skip
RECIPE: dict[str, Any] = {
    "meta": {"tasks": ["text"]},
    "model": {"model_id": "org/model", "architecture": "moe", "base_args": ["--base"]},
    "features": {
        "tools": {"args": ["--tools"]},
        "asked_for": {"args": ["--asked-for"]},
        "spec_decoding": {"modes": {"mtp": {"args": ["--mtp"]}, "dspark": {"args": ["--dspark"]}}},
    },
    "opt_in_features": ["asked_for", "spec_decoding"],
    "variants": {"default": {"extra_args": ["--variant"]}},
    "compatible_strategies": list(STRATEGIES),
    "hardware_overrides": {"amd": {"extra_args": ["--amd"]}, "hopper": {"extra_args": ["--h"]}},
    "strategy_overrides": {"pd_cluster": {"decode": {"parallelism": "dep", "vllm_args": ["--d"]}}},
    "guide": "Run `vllm serve` so:\n\n    vllm serve org/model \\\n      --seed $SEED  # any\n",
}


@pytest.fixture
def commands(tmp_path: Path) -> list[Command]:
    (tmp_path / "strategies").mkdir()
    (tmp_path / "models" / "org").mkdir(parents=True)
    for name, values in STRATEGIES.items():
        path = tmp_path / "strategies" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"name": name, **values}))
    (tmp_path / "models" / "org" / "model.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    speech = {"meta": {"tasks": ["omni"]}, "model": {"model_id": "org/speech"}}
    (tmp_path / "models" / "org" / "speech.yaml").write_text(yaml.safe_dump(speech))
    (recipe,) = recipes_in(tmp_path)
    return list(recipe.commands())


def test_commands_are_put_together_as_the_recipes_site_does(commands: list[Command]) -> None:
    found = {each.kind: " ".join(each.flags) for each in commands}
    head, tail = "--base --variant", "--h --tools"
    assert found == {
        "default": f"{head} --tensor-parallel-size 8 {tail}",
        "speculating": f"{head} --tensor-parallel-size 8 {tail} --mtp",
        "strategy single_node_tp": f"{head} --tensor-parallel-size 8 {tail}",
        "strategy multi_node_tp_pp": f"{head} --tensor-parallel-size 8 --pipeline-parallel-size 2 "
        f"--nnodes 2 --node-rank 0 {tail}",
        "strategy multi_node_dep": f"{head} --enable-expert-parallel --data-parallel-size 16 "
        f"--data-parallel-size-local 8 {tail}",
        "strategy pd_cluster": f"{head} --port 8002 --data-parallel-size 8 "
        f"--enable-expert-parallel --d {tail}",
        "guide": "--seed 1",
    }
    assert all(each.experts for each in commands)


def test_a_folder_without_recipes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no recipes"):
        recipes_in(tmp_path)


def test_flags_of_a_text_are_those_of_its_command_lines() -> None:
    text = "vllm serve a/b --x 1\nUse vllm serve MODEL `--y`, it's good\nvllm serve a/b\n"
    assert list(written_out(text)) == [("--x", "1"), ()]


def test_facts_are_read_from_the_sources_of_a_model(tmp_path: Path) -> None:
    models = tmp_path / "model_executor" / "models"
    own = tmp_path / "models" / "ring"
    for folder in (models, own / "amd", own / "nvidia", tmp_path / "v1"):
        folder.mkdir(parents=True)
    (tmp_path / "v1" / "kv_cache_interface.py").write_text(
        "class RingSpec(A):\n    pass\nclass OldSpec(A):\n    pass\n"
    )
    (models / "base.py").write_text("class Base(Module, IsHybrid):\n    pass\n")
    (own / "amd" / "model.py").write_text(
        "class Ring(Base, SupportsMultiModal):\n    pass\nOldSpec()"
    )
    (own / "nvidia" / "model.py").write_text(
        "class Ring(Base):\n"
        "    @staticmethod\n"
        "    def get_model_state_cls():\n"
        "        return RingModelState\n"
        "\n"
        "def spec():\n"
        "    return RingSpec()\n"
    )
    sources = Sources(tmp_path, {"RingForCausalLM": ("vllm.models.ring", "Ring")})
    assert sources.facts("RingForCausalLM") == ModelFacts(
        "RingForCausalLM", multimodal=False, hybrid=True, attention_free=False,
        encoder_decoder=False, rotary_dimensions=False, model_states=("RingModelState",),
        kv_kinds=("RingSpec",),
    )  # fmt: skip
    assert sources.facts("OtherForCausalLM") is None


FACTS = ModelFacts("LlamaForCausalLM", False, False, False, False, False, (), ())
EXPERTS = ("--data-parallel-size", "2")
CASES: list[tuple[tuple[str, ...], bool, dict[str, Any], str, str]] = [
    (("--tensor-parallel-size", "8", "--speculative-config", "{}"), True, {}, "active", ""),
    (("--pipeline-parallel-size", "2"), False, {}, "passive", "pipeline parallelism"),
    (("--language-model-only",), False, {"multimodal": True}, "active", ""),
    ((), False, {"multimodal": True}, "active", ""),
    ((), False, {"encoder_decoder": True}, "passive", "encoder-decoder models"),
    ((), False, {"hybrid": True}, "passive", "other models with recurrent state"),
    ((), False, {"model_states": ("RingModelState",)}, "passive", "RingModelState"),
    ((), False, {"kv_kinds": ("RingSpec",)}, "passive", "a KV cache of kind RingSpec"),
    (("--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_consumer"}'),
     False, {}, "active", ""),
    (("--kv-transfer-config", '{"kv_connector": "RingConnector", "kv_role": "kv_consumer"}'),
     False, {}, "passive", "other KV connectors"),
    (("--dtype", "int2"), False, {}, UNREAD, "flags that this vLLM does not read"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "experts", "changes", "mode", "reason"), CASES)
def test_verdicts_are_those_of_the_check_that_servers_make(
    flags: tuple[str, ...], experts: bool, changes: dict[str, Any], mode: str, reason: str
) -> None:
    pytest.importorskip("vllm")
    from dataclasses import replace

    from benchmarks.recipes.verdicts import verdict

    found = verdict(Command("org/model", "default", experts, flags), replace(FACTS, **changes))
    assert found.mode == mode, found
    assert reason in found.reason and bool(reason) == bool(found.reason)


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--tensor-parallel-size", "2", "--nnodes", "1"),
        ("--pipeline-parallel-size", "2", "--enable-lora", "--enforce-eager"),
        ("--kv-transfer-config", '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'),
        ("--cpu-offload-gb", "1"),
    ],
)
def test_the_configuration_has_the_features_of_vllms_own(
    flags: tuple[str, ...], dense_model: Path
) -> None:
    """vLLM's, of a model that is here, on this machine."""
    pytest.importorskip("vllm")
    from vllm.engine.arg_utils import EngineArgs

    from benchmarks.recipes.configuration import configuration, parse
    from vllm_nfp.adapter.feature_list import features_of

    args = parse(("--model", str(dense_model), "--skip-tokenizer-init", *flags))
    real = EngineArgs.from_cli_args(args).create_engine_config()
    made = configuration(Command("org/model", "default", False, flags), FACTS)
    made.device_config = real.device_config
    assert [f.name for f in features_of(made)] == [f.name for f in features_of(real)]


def test_the_record_has_every_kind_of_command_and_a_reason_for_each_verdict() -> None:
    found = page.read_verdicts()
    assert {each.kind for each in found} == set(page.POPULATIONS)
    assert all(bool(each.reason) is not each.probes for each in found)
    usual = [each for each in found if each.kind == "default"]
    assert len(usual) == len({each.model for each in usual}) == 146
    assert f"| {page.POPULATIONS['default']} | 146 |" in page.section()


def test_reasons_are_counted() -> None:
    found = [Verdict("m", "default", mode, reason) for mode, reason in
             (("active", ""), ("passive", "a"), ("passive", "b"), ("off", "b"))]  # fmt: skip
    assert reasons(found) == {"b": 2, "a": 1}
