"""vLLM takes the heads that the benchmark of draft lengths drafts with."""

from __future__ import annotations

import sys
from pathlib import Path

import inspecting
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.drafts import models as draft_models
from benchmarks.drafts.plan import Settings
from benchmarks.serving import shapes

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("method", "architecture"),
    [("eagle", "EagleLlamaForCausalLM"), ("eagle3", "LlamaForCausalLMEagle3")],
)
def test_vllm_accepts_a_head(method: str, architecture: str, tmp_path: Path) -> None:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

    settings = Settings("qwen3-8b", 6, 1.0, True, False, method)
    arguments = EngineArgs(
        model=str(shapes.write_model(tmp_path / "model", settings.shape, settings.layers)),
        load_format="dummy",
        skip_tokenizer_init=True,
        max_model_len=4096,
        speculative_config=draft_models.speculation(settings, tmp_path / "draft"),
    )
    with inspecting.in_this_process():
        config = arguments.create_engine_config()
    speculation = config.speculative_config
    head = speculation.draft_model_config
    assert head.architectures == [architecture]
    assert (head.get_num_kv_heads(config.parallel_config), head.get_head_size()) == (8, 128)
    assert speculation.rejection_sample_method == "synthetic"
    assert speculation.uses_dynamic_speculative_decoding()
    assert config._get_v2_model_runner_unsupported_features() == []
    assert Eagle3LlamaForCausalLM.has_own_lm_head is False, "loading weights sets it"
