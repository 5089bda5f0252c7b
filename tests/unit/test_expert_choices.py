"""Choices of experts: read from a step, counted, and turned into distinct experts and a routing."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_principle_models import LLAMA_3_8B, QWEN_3_30B_A3B

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.routers import NotCountedError, Routers, routers_of
from vllm_nfp.metrics.families.experts import experts
from vllm_nfp.principle import PredictionError
from vllm_nfp.principle.counted_routing import active_of, counted_skew, uniform_active
from vllm_nfp.principle.notes import notes
from vllm_nfp.principle.prediction import predict
from vllm_nfp.principle.routing import skewed_shares
from vllm_nfp.report.facts import run_facts
from vllm_nfp.results.expert_counts import LEAST_STEPS, STEPS_KEPT, Choices, ExpertCounts
from vllm_nfp.results.profile import Profile
from vllm_nfp.results.snapshot import Snapshot, SnapshotError, read_snapshot, write_snapshot
from vllm_nfp.session.counted_experts import CountedExperts
from vllm_nfp.session.expert_choices import FIRST_SECONDS, LATER_SECONDS, MOST_ROWS, ExpertChoices
from vllm_nfp.timing import HostClock
from vllm_nfp.types import ActiveExperts, ExpertRouting, Prediction, State


def drawn(
    rng: np.random.Generator, rows: int, skew: float, experts: int = 32, chosen: int = 4
) -> np.ndarray[Any, Any]:
    """[2 layers, rows, chosen]: distinct experts of each token, by weights that fall with rank."""
    weights = np.arange(1, experts + 1) ** -skew
    keys = rng.exponential(size=(2, rows, experts)) / weights
    return np.argsort(keys, axis=2)[:, :, :chosen].astype(np.int32)


def test_distinct_experts_are_the_mean_over_all_draws() -> None:
    ids = [(0, 1), (0, 2), (0, 1), (3, 4), (0, 3)]
    counts = np.bincount(np.array(ids).ravel(), minlength=6)[None, :]
    for tokens in range(1, 6):
        draws = itertools.combinations(ids, tokens)
        distinct = [len({e for row in some for e in row}) for some in draws]
        assert active_of(counts, 5, tokens) == pytest.approx(np.mean(distinct))
    for tokens in (0, 6):
        with pytest.raises(ValueError, match=f"from 1 to the counted 5, not {tokens}"):
            active_of(counts, 5, tokens)


def test_uniform_choices_wake_what_uniform_routing_wakes() -> None:
    counts = ExpertCounts()
    rng = np.random.default_rng(1)
    for _ in range(LEAST_STEPS):
        counts.add(Choices(drawn(rng, 512, 0.0), 32))
    counts.update()
    found = counts.report
    assert found is not None
    assert (found.layers, found.steps, found.tokens) == (2, LEAST_STEPS, 512 * LEAST_STEPS)
    assert [row.tokens for row in found.active] == [1 << n for n in range(11)]
    assert all(row.experts == pytest.approx(row.uniform, rel=0.02) for row in found.active)
    assert uniform_active(32, 4.0, 1) == pytest.approx(4.0)
    assert found.skew <= 0.1


@pytest.mark.parametrize("skew", [0.3, 0.75, 1.2])
def test_a_skew_is_found_again(skew: float) -> None:
    shares = np.array(skewed_shares(64, 4.0, skew))
    chances = np.minimum(shares * 4.0, 1.0)
    awake = {t: float((1.0 - (1.0 - chances) ** t).sum()) for t in (1, 4, 16, 64, 256)}
    assert counted_skew(64, 4.0, awake) == pytest.approx(skew, abs=0.05)


def test_nothing_is_said_of_few_steps_and_old_ones_are_forgotten() -> None:
    counts, rng = ExpertCounts(), np.random.default_rng(2)
    for step in range(LEAST_STEPS + STEPS_KEPT):
        counts.add(Choices(drawn(rng, 64, 1.5 if step < LEAST_STEPS else 0.0), 32))
        if step < LEAST_STEPS:
            counts.update()
        if step < LEAST_STEPS - 1:
            assert counts.report is None
        if step == LEAST_STEPS - 1:
            assert counts.report is not None
            assert counts.report.skew > 0.5
    counts.update()
    assert counts.report is not None
    assert counts.report.skew <= 0.1


def test_entries_that_are_no_experts_are_left_out() -> None:
    counts, ids = ExpertCounts(), np.zeros((1, 64, 2), dtype=np.int32)
    ids[:, :, 0], ids[:, :, 1] = np.arange(64) % 3, 8  # of 8 experts: one that costs nothing
    for _ in range(LEAST_STEPS):
        counts.add(Choices(ids, 8))
    counts.update()
    assert counts.report is not None
    assert counts.report.active[0].experts == pytest.approx(1.0)
    assert counts.report.active[-1].experts == pytest.approx(3.0, abs=0.01)


class Router:
    """As vLLM's, as far as it is listened to."""

    top_k = 2

    def __init__(self) -> None:
        self.capture_fn: Any = None

    def set_capture_fn(self, capture_fn: Any) -> None:
        self.capture_fn = capture_fn

    def choose(self, ids: torch.Tensor) -> None:
        if self.capture_fn is not None:
            self.capture_fn(ids)


class Device:
    """A clock of a device that passes marks when it is told to."""

    def __init__(self) -> None:
        self.passed = False
        self.clock = HostClock()

    def mark(self) -> Any:
        return self.clock.mark()

    def ready(self, _: Any) -> bool:
        return self.passed

    def release(self, _: Any) -> None: ...


def reading(device: Any) -> tuple[list[Router], ExpertChoices, list[Choices], list[float]]:
    routers, read, now = [Router(), Router()], [], [0.0]
    choices = ExpertChoices(
        Routers(tuple(routers), 8, 2), torch.device("cpu"), device, read.append, lambda: now[0]
    )
    return routers, choices, read, now


def test_a_step_is_read_once_the_device_has_passed_it() -> None:
    device = Device()
    routers, choices, read, now = reading(device)
    ids = torch.arange(12).reshape(6, 2)
    choices.begin(5)
    for router in routers:
        router.choose(ids)
        router.choose(ids + 100)  # the second half of a step that is cut in two
    choices.end()
    assert [router.capture_fn for router in routers] == [None, None]
    now[0] = FIRST_SECONDS
    choices.begin(5)
    choices.end()
    assert read == []
    device.passed = True
    choices.begin(5)
    assert len(read) == 1
    assert read[0].ids.tolist() == [ids[:5].tolist()] * 2, "the sixth row is padding"
    assert read[0].num_experts == 8


def test_a_step_in_a_graph_calls_no_router_and_is_not_read() -> None:
    device = Device()
    device.passed = True
    routers, choices, read, _ = reading(device)
    for _ in range(3):
        choices.begin(4)
        choices.end()
    choices.begin(4)
    routers[0].choose(torch.zeros(4, 2))  # one layer alone was called
    choices.end()
    choices.begin(4)
    assert read == []


def test_wide_steps_are_read_in_part_and_steps_are_read_now_and_then() -> None:
    device = Device()
    device.passed = True
    routers, choices, read, now = reading(device)
    rows = 3 * MOST_ROWS + 1

    def step() -> None:
        choices.begin(rows)
        for router in routers:
            router.choose(torch.arange(2 * rows).reshape(rows, 2))
        choices.end()

    for _ in range(LEAST_STEPS + 2):
        step()
        step()
        now[0] += FIRST_SECONDS
    step()
    assert len(read) == LEAST_STEPS + 1, "five seconds must pass now"
    now[0] += LATER_SECONDS
    step()
    step()
    assert len(read) == LEAST_STEPS + 2
    found = read[0].ids[0, :, 0]
    assert found.tolist() == list(range(0, 2 * rows, 8)), "every fourth token"


def test_a_fault_is_kept_from_the_step_and_raised_after_it() -> None:
    routers, choices, _, _ = reading(Device())
    choices.begin(4)
    routers[0].choose(torch.zeros(4, 3))  # more experts of a token than the routers have
    with pytest.raises(RuntimeError, match="must match"):
        choices.end()
    assert routers[0].capture_fn is None


def view(layers: list[Any], **parallel: int) -> Any:
    config = SimpleNamespace(
        compilation_config=SimpleNamespace(static_all_moe_layers=["l"] if layers else []),
        parallel_config=SimpleNamespace(**{"data_parallel_size": 1, **parallel}),
    )
    return SimpleNamespace(vllm_config=config, model=SimpleNamespace(modules=lambda: layers))


def layer(router: Any, monolithic: bool = False, logical: int = 8) -> Any:
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    class Layer(MoERunner):
        is_monolithic = monolithic

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            object.__setattr__(self, "router", router)
            object.__setattr__(self, "moe_config", SimpleNamespace(num_logical_experts=logical))

    return Layer()


def router_of(top_k: int = 2) -> Any:
    from vllm.model_executor.layers.fused_moe.router.base_router import BaseRouter

    class Made(BaseRouter):
        def _compute_routing(self, *_: Any, **__: Any) -> Any: ...

        @property
        def routing_method_type(self) -> Any: ...

    return Made(top_k, 8)


def test_routers_are_found_spread_over_the_layers_that_are_alike() -> None:
    pytest.importorskip("vllm")
    routers = [router_of() for _ in range(6)]
    layers = [layer(router_of(4)), *map(layer, routers), torch.nn.Linear(1, 1)]
    found = routers_of(view(layers), 3)
    assert found is not None
    assert (found.num_experts, found.experts_per_token) == (8, 2)
    assert found.asked == (routers[0], routers[2], routers[5])
    heard: list[Any] = []
    found.listen(lambda place, ids: heard.append((place, ids)))
    routers[2].capture_fn("ids")
    found.release()
    assert heard == [(1, "ids")]
    assert [router.capture_fn for router in routers] == [None] * 6
    assert routers_of(view([]), 3) is None


def test_routers_that_cannot_be_read_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    held = router_of()
    held.set_capture_fn(print)
    for layers, parallel, sentence in (
        ([layer(router_of())], {"data_parallel_size": 2}, "several engines"),
        ([layer(held)], {}, "--enable-return-routed-experts"),
        ([layer(router_of(), monolithic=True)], {}, "kernels of this server"),
        ([layer(object())], {}, "kernels of this server"),
    ):
        with pytest.raises(NotCountedError, match=sentence):
            routers_of(view(layers, **parallel), 3)
    assert held.capture_fn is print
    monkeypatch.setattr(versions, "is_since", lambda _: False)
    with pytest.raises(NotCountedError, match="in this release"):
        routers_of(view([layer(router_of())]), 3)


COUNTED = ExpertRouting(
    128, 8, 8, 20, 16384, 0.6,
    (ActiveExperts(1, 8.0, 8.0), ActiveExperts(8, 41.5, 51.6), ActiveExperts(64, 92.0, 125.9)),
)  # fmt: skip


def test_predictions_are_repeated_with_the_counted_routing() -> None:
    counted, rng, asked = CountedExperts(), np.random.default_rng(3), list[float]()

    def predicts(skew: float) -> tuple[Prediction, ...]:
        asked.append(skew)
        return ()

    for _ in range(LEAST_STEPS):
        counted.put(Choices(drawn(rng, 512, 1.0), 32))
    assert counted.update() is None, "nothing can be predicted here"
    counted.predict_with(predicts, 0.0)
    assert counted.update() == ()
    assert counted.update() is None, "nothing has changed"
    assert counted.report is not None
    assert asked == [counted.report.skew]
    assert asked[0] > 0.3


def test_counts_reach_the_metrics_the_profile_and_the_report(
    tmp_path: Path, moe_profile: Profile
) -> None:
    snapshot = Snapshot("m", "0", State.STEADY, experts=COUNTED)
    write_snapshot(tmp_path / "engine-0.json", snapshot)
    again = read_snapshot(tmp_path / "engine-0.json")
    assert again.experts == COUNTED
    families = {family.name: family for family in experts([again])}
    samples = families["vllm_nfp_active_experts"].samples
    values = {(s.labels["tokens"], s.labels["routing"]): s.value for s in samples}
    assert values["64", "counted"] == 92.0
    assert values["64", "uniform"] == 125.9
    assert families["vllm_nfp_routing_skew"].samples[0].value == 0.6
    assert families["vllm_nfp_routed_tokens"].samples[0].value == 16384
    none = [Snapshot("m", "0", State.STEADY)]
    assert not any(family.samples for family in experts(none))
    profile = dataclasses.replace(moe_profile, experts=COUNTED)
    facts = dict(run_facts(profile))["Experts that a step reads"]
    assert facts.startswith("of 128 in a layer: 41.5 at 8 tokens (uniform: 51.6), 92.0 at 64")
    assert "Experts that a step reads" not in dict(run_facts(moe_profile))


def test_a_file_cannot_make_labels_without_end(tmp_path: Path) -> None:
    rows = tuple(ActiveExperts(tokens, 8.0, 8.0) for tokens in range(1, 18))
    many = dataclasses.replace(COUNTED, active=rows)
    write_snapshot(tmp_path / "engine-0.json", Snapshot("m", "0", State.STEADY, experts=many))
    with pytest.raises(SnapshotError, match="length <= 16"):
        read_snapshot(tmp_path / "engine-0.json")


def test_a_prediction_takes_the_counted_routing_and_does_not_warn(tmp_path: Path) -> None:
    path = tmp_path / "profile-0.json"
    path.write_text(json.dumps({"curves": [], "experts": dataclasses.asdict(COUNTED)}))
    counted, given, uniform = (
        predict(QWEN_3_30B_A3B, "H100-SXM", (8,), (1024,), routing=routing)
        for routing in (str(path), 0.6, "uniform")
    )
    assert counted.to_dict(curves=True)["rows"] == given.to_dict(curves=True)["rows"]
    assert counted.to_dict(curves=True)["rows"] != uniform.to_dict(curves=True)["rows"]
    said = [note for note in notes(counted) if note.startswith("Routing is ")]
    assert said == [
        "Routing is as counted over 16384 tokens of real steps in profile-0.json: shares fall "
        "about with rank to the -0.6."
    ]
    assert any("Routing is assumed uniform" in note for note in notes(uniform))
    with pytest.raises(PredictionError, match="has no experts"):
        predict(LLAMA_3_8B, "H100-SXM", routing=str(path))
    other = {**QWEN_3_30B_A3B, "num_experts": 64}
    with pytest.raises(PredictionError, match=r"counts 128 experts, .* has 64: give a"):
        predict(other, "H100-SXM", routing=str(path))
