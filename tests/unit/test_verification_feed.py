"""The feed of adaptive verification, on the manager of the installed vLLM."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("vllm")

from sessions import vllm_config
from test_verify_costs import curve

from vllm_nfp import faults
from vllm_nfp.adapter import runner_v2, versions
from vllm_nfp.adapter.drafts_asked import prepare_drafts
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.verification import AdaptiveVerification, verification_of
from vllm_nfp.config import ConfigError, ProbeConfig
from vllm_nfp.draft import cost_tables
from vllm_nfp.draft.verify_costs import read_costs
from vllm_nfp.metrics.families.verification import verification as families
from vllm_nfp.results.gather import Findings
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.results.verification import VerificationReport
from vllm_nfp.schedule.cost_agreement import NONE
from vllm_nfp.schedule.lockstep import STEPS_PER_EXCHANGE
from vllm_nfp.session import cost_source, cost_versions
from vllm_nfp.session import verification as following
from vllm_nfp.session.cost_feed import CostFeed
from vllm_nfp.session.cost_follower import FollowingCosts
from vllm_nfp.session.cost_grounds import NOT_YET
from vllm_nfp.session.cost_source import LeadingCosts
from vllm_nfp.session.started import Lead
from vllm_nfp.session.step_counts import STALLED_STEPS
from vllm_nfp.session.step_prices import StepPrices, launch_seconds
from vllm_nfp.session.step_rests import ENOUGH, StepRests
from vllm_nfp.session.verification import NOT_ASKED, NOT_PROBED, follow_verification
from vllm_nfp.session.worker import StartCost, Worker
from vllm_nfp.timing import RealSteps
from vllm_nfp.types import LiveStep, Shape, State

pytestmark = pytest.mark.skipif(
    not versions.is_since((0, 32)), reason="this vLLM has no adaptive verification"
)

REQUESTS, DRAFTS = 8, 4
LIVE = LiveStep(8, 1000, 3)
CONFIG = ProbeConfig(verification_costs=True, publish_seconds=2.0)


def made_manager(confidence: float = 0.9) -> Any:
    """vLLM's manager without a device; each position is priced like a request, as it starts."""
    from vllm.v1.worker.gpu.spec_decode.adaptive_verification import AdaptiveVerificationManager

    names = {f"r{i}": i for i in range(REQUESTS)}
    manager = object.__new__(AdaptiveVerificationManager)
    manager.num_speculative_steps, manager.num_bonus_tokens = DRAFTS, 1
    manager._max_total_logits = 1024
    manager.req_states = SimpleNamespace(
        req_id_to_index=names, max_num_reqs=16,
        num_computed_tokens_np=np.full(16, 1000), prefill_len=SimpleNamespace(np=np.full(16, 9)),
    )  # fmt: skip
    buffer = SimpleNamespace(np=np.full((16, DRAFTS), confidence, dtype=np.float32))
    manager._stale_confidences, manager._stale_idx = [buffer, buffer], 0
    manager._batch_budget = None
    manager._confidence_probs = torch.rand(16, DRAFTS)
    manager._batch_draft_capacity = torch.empty(16, dtype=torch.int32)
    manager.cost_tables = np.full(17, 0.3), 0.5 + 1.0 * np.arange(129)
    return manager


def step(manager: Any, requests: int = REQUESTS, prompt: int = 0) -> int:
    """One step of vLLM's with all drafts there; returns the drafts that are verified."""
    names = [f"r{i}" for i in range(requests)]
    tokens = dict.fromkeys(names, 1 + DRAFTS)
    tokens["r0"] += prompt
    chosen: int = manager.get_num_tokens(tokens, {name: [1] * DRAFTS for name in names})
    return chosen - requests - prompt


def findings(sizes: tuple[int, ...] = (4, 8), jumps: int = 0) -> Findings:
    points = tuple(point for size in sizes for point in curve(size))
    return Findings(live_curves=points, live=LIVE, jumps=jumps)


class Engine:
    """An engine's leading rank with its feed."""

    def __init__(self, manager: Any, config: ProbeConfig = CONFIG, never: str = "") -> None:
        self.manager, self.patches = manager, PatchSet()
        verification = AdaptiveVerification(manager)
        self.costs = LeadingCosts(config, "0", 16, (), alone=True, never=never)
        self.feed = CostFeed(verification, None, self.costs.wanted)
        self.costs.attach(self.feed)
        verification.hook(self.patches, self.feed.before, self.feed.after)
        self.patches.on_restore(self.feed.give_back)
        self.now = cost_source.time.monotonic()

    def renew(self, found: Findings, kinds: tuple[RealSteps, ...] = ()) -> None:
        self.costs.renew(found, kinds, self.now)

    def steps(self, count: int = STEPS_PER_EXCHANGE, **kind: int) -> int:
        drafts = [step(self.manager, **kind) for _ in range(count)]
        return drafts[-1]

    @property
    def report(self) -> VerificationReport:
        found = self.costs.report()
        assert found is not None
        return found


@pytest.fixture
def engine() -> Iterator[Engine]:
    engine = Engine(made_manager())
    yield engine
    engine.patches.restore()


def test_measured_costs_admit_what_vllms_own_do_not(engine: Engine) -> None:
    own = engine.manager.cost_tables
    before = engine.steps()
    assert not engine.report.feeding
    engine.renew(findings())
    after = engine.steps()
    # By its own table a position costs as much as a request, so that none of 0.9 pays at all.
    assert before < after == REQUESTS * DRAFTS
    assert engine.report.feeding and engine.report.reason == ""
    table = engine.manager.cost_tables[1]
    assert table[REQUESTS * 3] == pytest.approx(1e3 * curve(8)[2].median_seconds)
    assert engine.manager.cost_tables[0] is own[0], "drafting costs what vLLM has timed"


def test_a_step_that_reads_a_prompt_and_unknown_batch_sizes_have_vllms_own_costs(
    engine: Engine,
) -> None:
    own = engine.manager.cost_tables
    engine.renew(findings())
    engine.steps()
    assert engine.manager.cost_tables is not own
    engine.steps(1, prompt=30)
    assert engine.manager.cost_tables is own
    engine.steps(1, requests=6)
    assert engine.manager.cost_tables is not own, "between 4 and 8"
    engine.steps(1, requests=2)
    assert engine.manager.cost_tables is own


@pytest.mark.parametrize("doubt", ["jump", "wide", "stale"])
def test_vllms_own_costs_come_back_on_any_doubt(
    engine: Engine, doubt: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = engine.manager.cost_tables
    engine.renew(findings())
    engine.steps()
    if doubt == "jump":
        engine.renew(findings(jumps=1))
    elif doubt == "wide":
        points = tuple(replace(p, ratio_upper=9.0) for p in findings().live_curves)
        engine.renew(replace(findings(), live_curves=points))
    else:
        now = engine.now + 1000.0
        monkeypatch.setattr(cost_source.time, "monotonic", lambda: now)
    engine.steps()
    assert engine.manager.cost_tables is own
    assert not engine.report.feeding and engine.report.reason
    if doubt != "stale":
        engine.renew(findings(jumps=int(doubt == "jump")))
        engine.steps()
        assert engine.report.feeding, "and go once it is over"


def test_the_costs_of_other_contexts_take_their_place_without_a_gap(engine: Engine) -> None:
    own = engine.manager.cost_tables
    engine.renew(findings())
    engine.steps()
    engine.renew(findings())
    assert engine.report.renewals == 1, "nothing has changed"
    slower = tuple(
        replace(p, median_seconds=1.5 * p.median_seconds) for p in findings().live_curves
    )
    engine.renew(replace(findings(), live_curves=slower))
    for _ in range(2 * STEPS_PER_EXCHANGE):
        step(engine.manager)
        assert engine.manager.cost_tables is not own
    assert engine.report.renewals == 2
    expected = 1.5e3 * curve(8)[2].median_seconds
    assert engine.manager.cost_tables[1][24] == pytest.approx(expected)


def test_without_the_flag_nothing_is_fed_and_all_is_counted() -> None:
    manager = made_manager()
    own = manager.cost_tables = np.full(17, 0.3), 8.0 + 1.0 * np.arange(129)
    engine = Engine(manager, never=NOT_ASKED)
    engine.renew(findings())
    engine.steps(16)
    assert engine.manager.cost_tables is own
    report = engine.report
    assert (report.feeding, report.reason, report.steps) == (False, NOT_ASKED, 16)
    assert report.scheduled == 16 * REQUESTS * DRAFTS
    assert 0 < report.admitted < report.scheduled
    assert report.expected < report.admitted
    assert report.measured_steps == 0


def test_what_is_expected_is_what_vllm_sums_up(engine: Engine) -> None:
    engine.renew(findings())
    engine.steps(STEPS_PER_EXCHANGE - 1)
    before = engine.feed.counts.expected
    engine.steps(1)
    survival = sum(0.9**n for n in range(1, DRAFTS + 1))
    assert engine.feed.counts.expected - before == pytest.approx(8 * REQUESTS * survival, rel=1e-5)


def test_drafts_of_which_none_is_ever_verified_are_reported() -> None:
    engine = Engine(made_manager(confidence=0.01))
    engine.steps(STALLED_STEPS - 1)
    assert not engine.report.stalled
    engine.steps(1)
    assert engine.report.stalled
    engine.manager._stale_confidences[0].np[:] = 1.0
    engine.manager.cost_tables = np.full(17, 0.3), np.full(129, 4.0)
    engine.steps(1)
    assert not engine.report.stalled


def test_tables_that_vllm_makes_anew_become_its_own(engine: Engine) -> None:
    engine.renew(findings())
    engine.steps()
    anew = np.full(17, 0.1), 7.0 + np.arange(129.0)
    engine.manager.cost_tables = anew
    engine.steps(1)
    assert engine.manager.cost_tables[0] is anew[0]
    engine.patches.restore()
    assert engine.manager.cost_tables is anew


@pytest.mark.parametrize("fault", [False, True])
def test_tables_that_vllm_has_just_made_anew_are_not_replaced_by_older_ones(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, fault: bool
) -> None:
    engine.renew(findings())
    engine.steps()
    anew = np.full(17, 0.1), 7.0 + np.arange(129.0)
    engine.manager.cost_tables = anew
    if fault:
        monkeypatch.setattr(engine.feed._agreement, "at_step", lambda: 1 / 0)
        engine.steps(1)
    else:
        engine.patches.restore()
    assert engine.manager.cost_tables is anew


def test_what_was_put_in_place_is_taken_back(engine: Engine) -> None:
    own = engine.manager.cost_tables
    engine.renew(findings())
    engine.steps()
    engine.patches.restore()
    assert engine.manager.cost_tables is own
    assert "get_num_tokens" not in vars(engine.manager)


def test_a_fault_of_one_choice_leaves_vllms_own_costs(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = engine.manager.cost_tables
    engine.renew(findings())
    engine.steps()
    monkeypatch.setattr(engine.feed._agreement, "at_step", lambda: 1 / 0)
    engine.steps(3)
    assert engine.manager.cost_tables is own
    engine.renew(findings())
    assert engine.report.reason.startswith("fault: ZeroDivisionError")


def test_more_positions_than_are_probed_are_named(engine: Engine) -> None:
    few = Engine(made_manager(), ProbeConfig(verification_costs=True, max_positions=3))
    few.renew(findings())
    assert few.report.reason == (
        "a step may have 5 positions per sequence, above max_positions 3: raise --nfp-max-positions"
    )


def test_the_other_ranks_get_the_same_tables_through_the_file(tmp_path: Path) -> None:
    config = replace(CONFIG, run_dir=str(tmp_path))
    costs = LeadingCosts(config, "0", 16, (8, 16), alone=False)
    leader = CostFeed(AdaptiveVerification(made_manager()), None, costs.wanted)
    costs.attach(leader)
    follower = CostFeed(AdaptiveVerification(made_manager()))
    follows = FollowingCosts(follower, tmp_path / "costs-0.json", 16, (8, 16))
    follows.look()
    assert follower.ready is None
    costs.renew(findings(), (), cost_source.time.monotonic())
    follows.look()
    assert leader.ready is not None and follower.ready is not None
    assert follower.ready.version == leader.ready.version == costs.wanted()
    assert read_costs(tmp_path / "costs-0.json").context == LIVE.context
    for requests, table in leader.ready.by_requests.items():
        assert (follower.ready.by_requests[requests] == table).all()


def test_costs_that_the_other_ranks_cannot_be_given_are_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, run_dir=str(tmp_path))
    costs = LeadingCosts(config, "0", 16, (8, 16), alone=False)
    feed = CostFeed(AdaptiveVerification(made_manager()), None, costs.wanted)
    costs.attach(feed)

    def full(*_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(cost_versions.RunFolder, "write", full)
        costs.renew(findings(), (), cost_source.time.monotonic())
    report = costs.report()
    assert report is not None
    assert report.reason == "the other ranks cannot be given the costs: no space left"
    assert (costs.wanted(), feed.ready, report.renewals) == (NONE, None, 0)
    costs.renew(findings(), (), cost_source.time.monotonic())
    assert feed.ready is not None
    assert costs.wanted() == feed.ready.version == read_costs(tmp_path / "costs-0.json").version


def test_an_injected_fault_is_the_publishers(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(faults.ENV_VAR, "verification")
    monkeypatch.setattr(faults, "_armed", True)
    with pytest.raises(faults.InjectedFault):
        engine.renew(findings())


def test_real_steps_stand_beside_what_both_costs_say(engine: Engine) -> None:
    engine.renew(findings())
    of = RealSteps(Shape(8, 1024, 3), Shape(8, 1000, 3), 50, 20, 0.0075, 2.5)
    engine.steps(1)
    engine.renew(findings(), (of,))
    seconds = engine.report.seconds
    assert seconds.real == 0.0075
    assert seconds.own == pytest.approx((0.3 + 20.5) / 1e3)
    between = (curve(8)[1].median_seconds + curve(8)[2].median_seconds) / 2
    assert seconds.measured == pytest.approx(3e-4 + between)
    engine.renew(findings(), (of,))
    assert engine.report.seconds == seconds, "no step since"


def test_cut_steps_are_priced_with_what_the_host_takes_more_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, at = Engine(made_manager(confidence=0.6)), [0.0]
    engine.feed.rests = StepRests(lambda: at[0])
    engine.renew(findings())
    engine.steps()
    assert engine.steps(1) < REQUESTS * DRAFTS, "the last drafts pay little"
    for whole, seconds in ((False, 0.012), (True, 0.009)):
        # Confidences that leave no doubt show how long each kind of step takes.
        engine.manager._stale_confidences[0].np[:] = 0.999 if whole else 0.6
        for _ in range(3 * ENOUGH):
            chosen = step(engine.manager)
            assert (chosen == REQUESTS * DRAFTS) == whole
            at[0] += seconds
    (rest,) = engine.feed.rests.known()
    assert rest.cut.seconds > rest.whole.seconds > 0.0
    engine.manager._stale_confidences[0].np[:] = 0.6
    made: list[object] = []
    monkeypatch.setattr(cost_tables, "work_tables", lambda *_: made.append(1))
    engine.renew(findings())
    assert not made, "what is the device's has not changed"
    assert engine.report.renewals == 2
    monkeypatch.undo()
    engine.steps(2 * STEPS_PER_EXCHANGE)
    assert engine.steps(1) == REQUESTS * DRAFTS
    of = RealSteps(Shape(8, 1024, 3), Shape(8, 1000, 3), 50, 20, 0.0075, 2.5)
    engine.renew(findings(), (of,))
    between = (curve(8)[1].median_seconds + curve(8)[2].median_seconds) / 2
    assert engine.report.seconds.measured == pytest.approx(3e-4 + between), "work alone"


def test_a_fault_in_following_steps_leaves_the_choice(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine.feed.rests, "chosen", lambda *_: 1 / 0)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        engine.renew(findings())
        engine.steps(20)
    assert len(caplog.messages) == 1 and "ZeroDivisionError" in caplog.messages[0]
    assert engine.report.feeding


def test_a_step_beyond_the_graphs_costs_the_launches_of_real_ones(engine: Engine) -> None:
    graphs = 16
    engine.costs = LeadingCosts(CONFIG, "0", 16, (8, graphs), alone=True)
    engine.costs.attach(engine.feed)
    drafting, launches = 3e-4, 0.012
    of = RealSteps(
        Shape(8, 1024, 3), Shape(8, 1000, 3), 50, 20, 0.013, 2.5, wait_seconds=launches + drafting
    )
    assert launch_seconds((of,), engine.feed.own, graphs) == pytest.approx(launches)
    in_graphs = replace(of, mean_positions=2.0)
    few = replace(of, timed=3)
    assert launch_seconds((in_graphs, few), engine.feed.own, graphs) == 0.0
    slower, busy = replace(of, wait_seconds=0.013), replace(of, wait_seconds=0.0)
    assert launch_seconds((slower, busy, of), engine.feed.own, graphs) == pytest.approx(launches)
    engine.renew(findings(), (of,))
    assert engine.feed.ready is not None
    table = engine.feed.ready.by_requests[8]
    assert table[graphs - 8] == pytest.approx(1e3 * curve(8)[1].median_seconds)
    assert table[graphs - 8 + 1 :] == pytest.approx(1e3 * launches)


def test_prices_of_no_steps_are_not_known() -> None:
    prices = StepPrices()
    prices.update((), None, None, 5)
    assert prices.seconds.real is None


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Requests and drafts of each choice that is compiled early; nothing is."""
    kinds: list[tuple[int, int]] = []

    def choose(confidences: Any, slots: Any, capacities: Any, drafts: int, steps: int) -> None:
        kinds.append((len(slots), drafts))

    module = sys.modules[type(made_manager()).__module__]
    monkeypatch.setattr(module, "_assign_draft_token_budget_compiled", choose)
    return kinds


def started(config: ProbeConfig, engine: object, leads: bool = True) -> tuple[Any, Worker]:
    priced: list[Any] = []
    publisher = SimpleNamespace(price=priced.append, priced=priced)
    alone = SimpleNamespace(alone=config.run_dir is None)
    agreement = SimpleNamespace(ranks=alone)
    lead = Lead(None, publisher) if leads else None  # type: ignore[arg-type]
    worker = Worker(config, vllm_config(), StartCost(0.0))
    return SimpleNamespace(agreement=agreement, lead=lead, engine=engine), worker


@pytest.mark.parametrize(
    ("settings", "engine", "reason"),
    [
        ({}, object(), NOT_ASKED),
        ({"verification_costs": True}, None, NOT_PROBED),
        ({"verification_costs": True}, object(), NOT_YET),
    ],
)
def test_a_session_follows_and_feeds_where_it_can(
    settings: dict[str, Any], engine: object, reason: str, compiled: list[tuple[int, int]]
) -> None:
    parts, worker = started(ProbeConfig(**settings), engine)
    manager, patches, cut = made_manager(), PatchSet(), list[int]()
    follow_verification(parts, worker, AdaptiveVerification(manager), patches, cut.append)
    fed = reason == NOT_YET
    assert compiled == ([(3, 2), (3, 1), (1, 2), (1, 1)] if fed else [])
    drafts = step(manager)
    assert cut == [REQUESTS + drafts]
    (costs,) = parts.lead.publisher.priced
    costs.renew(Findings(), (), 0.0)
    assert costs.report().reason == reason
    patches.restore()


@pytest.mark.usefixtures("compiled")
def test_a_rank_that_follows_opens_the_wire_only_where_costs_are_fed(tmp_path: Path) -> None:
    opened: list[int] = []

    class Wire:
        rank, size = 1, 2

        def begin(self, values: tuple[int, ...]) -> tuple[int, ...]:
            return values

        finish = begin

    def open_wire() -> Any:
        opened.append(1)
        return Wire()

    for settings, wires in (({}, 0), ({"verification_costs": True}, 1)):
        parts, worker = started(
            ProbeConfig(run_dir=str(tmp_path), **settings), object(), leads=False
        )
        patches = PatchSet()
        follow_verification(
            parts, worker, AdaptiveVerification(made_manager()), patches, print, open_wire
        )
        assert len(opened) == wires
        patches.restore()


def test_a_runner_without_it_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    class Runner:
        adaptive_verification: Any = None

    Runner.__module__ = runner_v2.MODULE
    runner = Runner()
    assert verification_of(runner) is None
    runner.adaptive_verification = made_manager()
    found = verification_of(runner)
    assert found is not None and found.positions == 1 + DRAFTS
    assert verification_of(SimpleNamespace()) is None, "the V1 runner"
    monkeypatch.setattr(versions, "installed_version", lambda: "0.31.0")
    assert verification_of(runner) is None


def arguments(**speculation: Any) -> argparse.Namespace:
    return argparse.Namespace(speculative_config=speculation or None)


def test_a_feed_without_adaptive_verification_is_refused() -> None:
    for args in (arguments(), arguments(method="eagle3", num_speculative_tokens=3)):
        with pytest.raises(ConfigError, match='add "enable_adaptive_verification": true'):
            prepare_drafts(CONFIG, args)
    with pytest.raises(ConfigError, match="does not support the draft method 'ngram'"):
        prepare_drafts(CONFIG, arguments(method="ngram", enable_adaptive_verification=True))
    args = arguments(method="eagle3", enable_adaptive_verification=True)
    assert prepare_drafts(CONFIG, args) == CONFIG


def test_draft_control_yields_to_adaptive_verification(caplog: pytest.LogCaptureFixture) -> None:
    args = arguments(method="eagle3", num_speculative_tokens=3, enable_adaptive_verification=True)
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        config = prepare_drafts(ProbeConfig(draft_control=True), args)
    assert not config.draft_control
    assert caplog.messages == [
        "vllm-nfp: draft control yields to adaptive verification, which chooses drafts at every "
        "step by itself: use --nfp-verification-costs to give it measured costs"
    ]
    assert "num_speculative_tokens_per_batch_size" not in args.speculative_config


def test_the_metrics_of_a_feed() -> None:
    engine = Engine(made_manager())
    engine.renew(findings())
    engine.steps(24)
    snapshot = Snapshot("m", "0", State.PROBING, verification=engine.report)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families([snapshot, Snapshot("m", "1", State.PROBING)])
        for sample in family.samples
    }
    report = engine.report
    assert found["vllm_nfp_verification_steps_total", "m", "0", "measured"] == 17
    assert found["vllm_nfp_verification_steps_total", "m", "0", "vllm"] == 7
    assert found["vllm_nfp_verification_admitted_drafts_total", "m", "0"] == report.admitted
    assert found["vllm_nfp_verification_measured_costs", "m", "0", ""] == 1.0
    assert not any("1" in key[2:3] for key in found), "an engine without it"
    ended = replace(snapshot, state=State.DISABLED)
    gauges = {s.name: s.value for family in families([ended]) for s in family.samples}
    assert gauges["vllm_nfp_verification_measured_costs"] == 0.0
    assert following.NOT_ASKED not in gauges


def compiled_kinds(manager: Any) -> int:
    """Kinds of steps that PyTorch has compiled the choice of drafts for."""
    from torch._dynamo.utils import counters

    choose = sys.modules[type(manager).__module__]._assign_draft_token_budget_compiled
    for requests, drafts in ((2, 2), (2, 1), (4, 9), (9, 4), (7, 7), (16, 16), (1, 2), (1, 1)):
        with torch.inference_mode():
            capacities = manager._batch_draft_capacity[:requests]
            capacities.fill_(manager.num_speculative_steps)
            slots = torch.arange(requests)
            choose(manager._confidence_probs, slots, capacities, drafts, DRAFTS)
            assert int(capacities.sum()) == drafts
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.parametrize("early", [True, False])
def test_no_step_waits_for_the_choice_of_drafts_to_be_compiled(early: bool) -> None:
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    counters.clear()
    manager = made_manager()
    if early:
        AdaptiveVerification(manager).compile_choice()
    before = int(counters["stats"]["unique_graphs"])
    assert compiled_kinds(manager) - before == (0 if early else 4)


def test_a_choice_that_cannot_be_compiled_early_is_left_to_the_steps(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    manager = made_manager()
    module = sys.modules[type(manager).__module__]
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        monkeypatch.setattr(module, "_assign_draft_token_budget_compiled", lambda *_: 1 / 0)
        AdaptiveVerification(manager).compile_choice()
        monkeypatch.delattr(module, "_assign_draft_token_budget_compiled")
        AdaptiveVerification(manager).compile_choice()
    assert ["ZeroDivisionError" in text for text in caplog.messages] == [True, False]
    manager.num_speculative_steps = 1
    manager._confidence_probs = torch.rand(2, 1)
    kinds: list[tuple[int, int]] = []
    monkeypatch.setattr(
        module, "_assign_draft_token_budget_compiled",
        lambda _c, slots, _l, drafts, _s: kinds.append((len(slots), drafts)), raising=False,
    )  # fmt: skip
    AdaptiveVerification(manager).compile_choice()
    assert kinds == [(2, 1)], "one request with one draft verifies it or none"
