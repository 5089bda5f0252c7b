"""A model with dummy weights that was made to talk walks its cycle of tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import ROOT
from programs import result_of

sys.path.insert(0, str(ROOT))
from benchmarks.serving import talk

pytestmark = pytest.mark.engine

TALK = """
import json, sys
from pathlib import Path
from benchmarks.serving import shapes, talk
from vllm_nfp.adapter.engines import start_engine, worker_of

llm = start_engine(shapes.write_model(Path(sys.argv[1]), sys.argv[2]), dict(
    load_format="dummy", enforce_eager=True, max_model_len=1024, max_num_seqs=4, seed=0))
from vllm import SamplingParams
runner = worker_of(llm).model_runner
talk.teach(runner.get_model())
prompts = [{"prompt_token_ids": talk.prompt(place, 50)} for place in (0, 7)]
greedy = SamplingParams(temperature=0.0, max_tokens=300, ignore_eos=True, detokenize=False)
print("RESULT " + json.dumps([list(o.outputs[0].token_ids) for o in llm.generate(prompts, greedy)]))
"""


@pytest.mark.parametrize("shape", ["tiny-dense", "tiny-moe"])
def test_greedy_tokens_walk_the_cycle(shape: str, tmp_path: Path) -> None:
    outputs = result_of(TALK, tmp_path / "model", shape)
    assert outputs == [talk.prompt(place, 350)[50:] for place in (0, 7)]
    assert len(set(outputs[0])) == talk.TOKENS


DRAFT = """
import json, sys
from pathlib import Path
from benchmarks.drafts import models as draft_models
from benchmarks.serving import shapes, talk
from vllm_nfp.adapter.engines import start_engine, worker_of

method, folder = sys.argv[2], Path(sys.argv[1])
model = shapes.write_model(folder / "model", "tiny-dense", 4)
head = shapes.write_draft_head(folder / "head", "tiny-dense", method, 4)
draft_models.prepare_head(method)
llm = start_engine(model, dict(
    load_format="dummy", enforce_eager=True, max_model_len=1024, max_num_seqs=4, seed=0,
    disable_log_stats=False,
    speculative_config={"method": method, "model": str(head), "num_speculative_tokens": 4}))
from vllm import SamplingParams
runner = worker_of(llm).model_runner
talk.teach(runner.get_model())
talk.teach_head(draft_models.drafter(runner).model)
prompts = [{"prompt_token_ids": talk.prompt(place, 50)} for place in (0, 7)]
greedy = SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True, detokenize=False)
outputs = [list(o.outputs[0].token_ids) for o in llm.generate(prompts, greedy)]
counts = {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
print("RESULT " + json.dumps([outputs, counts["vllm:spec_decode_num_draft_tokens"],
                              counts["vllm:spec_decode_num_accepted_tokens"]]))
"""


@pytest.mark.parametrize("method", ["eagle", "eagle3"])
def test_the_drafts_of_a_head_walk_the_cycle_too(method: str, tmp_path: Path) -> None:
    outputs, drafted, accepted = result_of(DRAFT, tmp_path, method)
    assert outputs == [talk.prompt(place, 250)[50:] for place in (0, 7)]
    assert drafted > 100
    assert accepted > 0.97 * drafted, "the last drafts run over the end"


def test_prompts_begin_apart_and_follow_the_cycle() -> None:
    prompts = [tuple(talk.prompt(place, 16)) for place in range(talk.TOKENS)]
    assert len(set(prompts)) == talk.TOKENS
    assert talk.prompt(3, talk.TOKENS + 1)[-1] == talk.prompt(3, 1)[0]
    assert sorted(talk.cycle()) == list(range(talk.FIRST_ID, talk.FIRST_ID + talk.TOKENS))
