"""Two tensor-parallel ranks: one engine, probed by both or by none."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from generate import prompts
from parts import started_engine
from programs import spawning_forks

from vllm_nfp.results.snapshot import Snapshot, read_snapshot
from vllm_nfp.types import State

pytestmark = pytest.mark.engine

SETTINGS = {
    "batch_sizes": [1, 4],
    "contexts": [32, 128],
    "max_positions": 4,
    "overhead_budget": 0.5,
    "startup_seconds": 0.3,
    "publish_seconds": 0.1,
    "capture_seconds": 60.0,
    "step_share": 1.0,
    "min_samples": 2,
}


@pytest.fixture(scope="module")
def llm(dense_model: Path) -> Iterator[Any]:
    with (
        spawning_forks(),
        started_engine(
            dense_model, dtype="float32", max_num_seqs=32, tensor_parallel_size=2,
            distributed_executor_backend="mp",
            worker_extension_cls="rank_extension.ProbeExtension", enable_prefix_caching=False,
        ) as started,
    ):  # fmt: skip
        yield started


@pytest.fixture(scope="module")
def plain(llm: Any) -> list[list[int]]:
    """What the engine generates without a probe."""
    return generate(llm)


@pytest.fixture
def attach(llm: Any, tmp_path: Path) -> Iterator[Callable[..., list[bool]]]:
    """Attach a session on both ranks; take it off in the end."""

    def begin(fault: str = "", **changes: object) -> list[bool]:
        settings = {**SETTINGS, "run_dir": str(tmp_path), **changes}
        return llm.collective_rpc("nfp_attach", args=(json.dumps(settings), fault))

    yield begin
    llm.collective_rpc("nfp_detach")
    assert states(llm) == [(False, False)] * 2, "a rank still probes, or is still hooked"


def states(llm: Any) -> list[tuple[bool, bool]]:
    return [tuple(state) for state in llm.collective_rpc("nfp_state")]


def generate(llm: Any, tokens: int = 40) -> list[list[int]]:
    from vllm import SamplingParams

    requests = [{"prompt_token_ids": ids} for ids in prompts(8)]
    params = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
    return [list(o.outputs[0].token_ids) for o in llm.generate(requests, params, use_tqdm=False)]


def snapshot(folder: Path) -> Snapshot:
    return read_snapshot(folder / "engine-0.json")


def test_both_ranks_probe_and_outputs_stay(
    llm: Any, plain: list[list[int]], attach: Callable[..., list[bool]], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert attach(startup_seconds=20.0, output_dir=str(out)) == [True, True]
    for _ in range(10):  # a busy machine runs few probes at a time
        assert generate(llm) == plain
        assert generate(llm) == plain
        time.sleep(3 * SETTINGS["publish_seconds"])  # the last pairs are recorded
        if snapshot(tmp_path).probes.get("measured"):
            break
    assert states(llm) == [(True, True)] * 2
    llm.collective_rpc("nfp_detach")
    found = snapshot(tmp_path)
    assert found.probes["startup"] > 0
    assert found.probes["measured"] > 0, "no pair ran between real steps"
    assert {row.module for row in found.boundaries} == {
        "attention", "dense_ffn", "communication", "model",
    }  # fmt: skip
    assert all(row.median_seconds > 0 for row in found.curves)
    samples = [json.loads(line) for line in (out / "samples-0.jsonl").read_text().splitlines()]
    assert len(samples) == found.probes["startup"] + found.probes["measured"]
    assert sorted(path.name for path in out.iterdir()) == [
        "engine-0.json", "environment-0.json", "profile-0.json", "samples-0.jsonl",
    ], "the second rank writes nothing"  # fmt: skip
    assert json.loads((out / "environment-0.json").read_text())["tensor_parallel_size"] == 2


@pytest.mark.parametrize("fault", ["attach@1", "capture@0", "startup_scan@1", "prepare@1"])
def test_a_fault_of_one_rank_at_the_start_keeps_both_off(
    llm: Any,
    plain: list[list[int]],
    attach: Callable[..., list[bool]],
    tmp_path: Path,
    fault: str,
) -> None:
    assert attach(fault) == [False, False]
    found = snapshot(tmp_path)
    assert found.state is State.DISABLED
    assert "fault" in found.reason
    assert generate(llm) == plain


def both_end(llm: Any, plain: list[list[int]]) -> bool:
    """Serve until both probes have ended; the budget says when the next pair runs."""
    deadline = time.monotonic() + 60.0
    while states(llm) != [(False, False)] * 2:
        assert generate(llm) == plain
        if time.monotonic() > deadline:
            return False
    return True


@pytest.mark.parametrize("fault", ["prepare@1", "timing@1", "plan@0", "publish@0"])
def test_a_fault_of_one_rank_in_serving_switches_both_off(
    llm: Any,
    plain: list[list[int]],
    attach: Callable[..., list[bool]],
    tmp_path: Path,
    fault: str,
) -> None:
    assert attach() == [True, True]
    llm.collective_rpc("nfp_fault", args=(fault,))
    assert both_end(llm, plain)
    found = snapshot(tmp_path)
    assert found.state is State.DISABLED
    assert f"rank {fault[-1]} of 2" in found.reason
    assert ("injected" in found.reason) == (fault[-1] == "0"), "the leader knows its own fault"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("at_start", [True, False])
def test_a_rank_whose_kv_cache_a_probe_changes_switches_both_off(
    llm: Any,
    plain: list[list[int]],
    attach: Callable[..., list[bool]],
    tmp_path: Path,
    rank: int,
    at_start: bool,
) -> None:
    """Each rank proves its own cache; what the others run changes nothing in theirs."""
    if at_start:
        llm.collective_rpc("nfp_write", args=(rank,))
    # Without a scan most shapes run for the first time between real steps.
    assert attach(startup_seconds=0.0) == [not at_start] * 2
    if not at_start:
        llm.collective_rpc("nfp_write", args=(rank,))
    assert both_end(llm, plain)
    found = snapshot(tmp_path)
    assert found.state is State.DISABLED
    assert f"rank {rank} of 2" in found.reason or rank == 0
    assert ("changed the KV cache" in found.reason) == (rank == 0)
