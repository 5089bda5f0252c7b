"""The experts that real steps choose are counted as the model's own routers choose them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from parts import attaching, engine_of, prober_of, publisher_of, started_engine
from rounds import rounds

from vllm_nfp.adapter.engines import worker_of
from vllm_nfp.config import config_from_mapping
from vllm_nfp.metrics.families.experts import experts
from vllm_nfp.results.expert_counts import Choices
from vllm_nfp.session import expert_choices
from vllm_nfp.session.counted_experts import CountedExperts
from vllm_nfp.types import State

pytestmark = pytest.mark.engine

SETTINGS = {
    "batch_sizes": [1, 4], "contexts": [32, 128], "max_positions": 8, "publish_seconds": 0.1,
    "overhead_budget": 0.5, "step_share": 1.0, "capture_seconds": 2.0, "startup_seconds": 1.0,
}  # fmt: skip
EXPERTS, CHOSEN, LAYERS = 8, 2, 3


@pytest.fixture(scope="module")
def llm(moe_model: Path) -> Iterator[Any]:
    with started_engine(
        moe_model, dtype="float32", max_num_seqs=8, distributed_executor_backend="uni",
        enable_prefix_caching=False,
    ) as started:  # fmt: skip
        yield started


@pytest.fixture
def start(llm: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    worker = worker_of(llm)
    with attaching() as begin:
        yield lambda **changes: begin(
            config_from_mapping({**SETTINGS, "run_dir": str(tmp_path), **changes}), worker
        )
    assert listeners(llm) == [None] * LAYERS, "a listener was left behind"


def listeners(llm: Any) -> list[Any]:
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    modules = worker_of(llm).model_runner.get_model().modules()
    routers = [module.router for module in modules if hasattr(module, "routed_experts")]
    assert all(isinstance(router, BaseRouter) for router in routers)
    return [router.capture_fn for router in routers]


def generate(llm: Any, tokens: int = 40) -> list[list[int]]:
    """Prompt and output of four sequences."""
    from vllm import SamplingParams

    prompts = [[7 + i, 30, 99, 200 + i, 11, 5 * i] * (4 + 3 * i) for i in range(4)]
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    found = llm.generate([{"prompt_token_ids": p} for p in prompts], params, use_tqdm=False)
    return [[*p, *o.outputs[0].token_ids] for p, o in zip(prompts, found, strict=True)]


def by_transformers(folder: Path, sequences: list[list[int]]) -> np.ndarray[Any, Any]:
    """[layers, experts]: how often each is chosen over all tokens that were run."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    counts = np.zeros((LAYERS, EXPERTS), dtype=np.int64)
    for sequence in sequences:
        with torch.no_grad():  # the last token was sampled, and not run
            ids = torch.tensor([sequence[:-1]])
            logits = model(ids, output_router_logits=True).router_logits
        for layer, of_layer in enumerate(logits):
            chosen = of_layer.reshape(-1, EXPERTS).topk(CHOSEN).indices.flatten().numpy()
            counts[layer] += np.bincount(chosen, minlength=EXPERTS)
    return counts


def test_counts_are_those_of_the_models_routers(
    llm: Any,
    moe_model: Path,
    start: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = generate(llm)
    read: list[Choices] = []
    put = CountedExperts.put
    monkeypatch.setattr(expert_choices, "FIRST_SECONDS", 0.0)
    monkeypatch.setattr(expert_choices, "LATER_SECONDS", 0.0)
    monkeypatch.setattr(CountedExperts, "put", lambda self, c: (read.append(c), put(self, c)))
    session = start()
    probed = generate(llm)
    assert probed == plain
    assert sum(prober_of(session).outcomes.values()) > 0, "no pair ran that could be mixed up"
    session._started.lead.experts._settle()
    assert sum(choices.ids.shape[1] for choices in read) == sum(len(s) - 1 for s in probed)
    counts = np.array(
        [
            sum(np.bincount(choices.ids[layer].ravel(), minlength=EXPERTS) for choices in read)
            for layer in range(LAYERS)
        ]
    )
    assert counts.tolist() == by_transformers(moe_model, probed).tolist()
    generate(llm, 60)  # enough steps of a few tokens
    publisher_of(session).process()
    found = publisher_of(session).snapshot().experts
    assert found is not None
    assert (found.num_experts, found.experts_per_token, found.layers) == (EXPERTS, CHOSEN, LAYERS)
    by_tokens = {row.tokens: row for row in found.active}
    assert [by_tokens[1].experts, by_tokens[1].uniform] == pytest.approx([CHOSEN, CHOSEN])
    assert by_tokens[4].experts < EXPERTS
    families = {family.name: family for family in experts([publisher_of(session).snapshot()])}
    assert len(families["vllm_nfp_active_experts"].samples) == 2 * len(found.active)


def read_long_prompts(llm: Any) -> list[list[int]]:
    """Outputs of sequences whose prompts fill whole KV blocks."""
    from vllm import SamplingParams

    tokens = np.random.default_rng(5).integers(1, 250, (4, 400)).tolist()
    params = SamplingParams(temperature=0.0, max_tokens=48, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": each} for each in tokens]
    return [list(o.outputs[0].token_ids) for o in llm.generate(prompts, params, use_tqdm=False)]


def test_pairs_after_traffic_read_what_real_steps_wrote(
    llm: Any, start: Callable[..., Any], tmp_path: Path
) -> None:
    plain = read_long_prompts(llm)
    worker = worker_of(llm)
    contexts = worker.vllm_config.compilation_config.static_forward_context
    cache = next(m.kv_cache for m in contexts.values() if hasattr(m, "kv_cache"))
    cache.zero_()
    session = start(output_dir=str(tmp_path / "out"))
    log = tmp_path / "out" / "samples-0.jsonl"

    def pairs() -> list[tuple[bool, bool]]:
        lines = map(json.loads, log.read_text().splitlines())
        return [(line["many"]["written"], line["one"]["written"]) for line in lines]

    engine, (group,) = engine_of(session), engine_of(session)._availability.limits.groups
    assert pairs(), "the start runs some"
    assert set(pairs()) == {(False, False)}
    for _ in rounds():
        assert read_long_prompts(llm) == plain
        publisher_of(session).process()
        if pairs()[-1] == (True, True):
            break
    assert pairs()[-1] == (True, True)
    whole = 400 // worker.vllm_config.cache_config.block_size
    noted = engine.written.sequences(group, 4, whole)
    assert len(set(noted.ravel().tolist())) == 4 * whole, "each sequence has its own"
    blocks = cache.movedim(list(cache.shape).index(group.num_blocks), 0)
    assert all((blocks[number] != 0).float().mean() > 0.9 for number in noted.ravel().tolist())
    unwritten = set(range(group.num_blocks)) - set(noted.ravel().tolist())
    assert any(not blocks[number].any() for number in unwritten)


def test_a_fault_of_the_listener_ends_the_probe_and_not_the_step(
    llm: Any, start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = generate(llm)
    session = start(passive=True)
    experts = session._started.lead.experts

    class Broken:
        def __getitem__(self, _: Any) -> Any:
            raise RuntimeError("no such buffer")

    monkeypatch.setattr(experts, "_read", Broken())
    assert generate(llm) == plain
    assert not session.active
    last = publisher_of_last(session)
    assert last.state is State.DISABLED
    assert "no such buffer" in last.reason


def publisher_of_last(session: Any) -> Any:
    from vllm_nfp.results.snapshot import read_snapshot

    return read_snapshot(Path(session._worker.config.run_dir) / "engine-0.json")
