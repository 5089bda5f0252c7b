"""The feed of adaptive verification, from the cost surface of a small server to its steps.

The server is that of tests/gpu/test_adaptive_verification.py: pairs are run at a context of 256
tokens alone, and no real step has that context.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("vllm")

from conftest import DENSE
from test_verification_feed import CONFIG, started

from vllm_nfp.adapter import runner_v2, versions
from vllm_nfp.adapter.dispatch import GraphRules, execution_of
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.verification import verification_of
from vllm_nfp.draft.cost_rows import Lack, founded_rows
from vllm_nfp.principle import Serving, shape_from_config, target_of
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.results.gather import Results
from vllm_nfp.results.table import plain_table
from vllm_nfp.schedule.lockstep import STEPS_PER_EXCHANGE
from vllm_nfp.session import cost_feed, cost_source, placed_tables
from vllm_nfp.session.cost_grounds import LACKING, NOT_YET
from vllm_nfp.session.cost_source import LeadingCosts
from vllm_nfp.session.verification import follow_verification
from vllm_nfp.surface import CostSurface, predicted_prior, recorded_for
from vllm_nfp.timing import RealSteps
from vllm_nfp.types import EngineStep, Module, PairResult, Shape, Timing

pytestmark = pytest.mark.skipif(
    not versions.is_since((0, 32)), reason="this vLLM has no adaptive verification"
)

REQUESTS, DRAFTS, CONTEXT = 6, 3, 100
CAPTURE_SIZES = (1, 2, 4, 8, *range(16, 65, 8))
NOISE = 0.003
"""Of a pair's log ratio."""


class Runner:
    """A V2 runner, with what vLLM's manager reads of it."""

    def __init__(self, graphs: tuple[int, ...]) -> None:
        from vllm.v1.worker.gpu.spec_decode.adaptive_verification import (
            AdaptiveVerificationManager,
            build_cost_tables_from_curves,
        )

        manager = object.__new__(AdaptiveVerificationManager)
        manager.num_speculative_steps, manager.num_bonus_tokens = DRAFTS, 1
        manager._max_total_logits = 1024
        manager.req_states = SimpleNamespace(
            req_id_to_index={f"r{i}": i for i in range(8)}, max_num_reqs=8,
            num_computed_tokens_np=np.full(8, CONTEXT),
            prefill_len=SimpleNamespace(np=np.full(8, 9)),
        )  # fmt: skip
        buffer = SimpleNamespace(np=np.full((8, DRAFTS), 0.9, dtype=np.float32))
        manager._stale_confidences, manager._stale_idx = [buffer, buffer], 0
        manager._batch_budget = None
        sizes = [(size, 0.1 + 0.001 * size) for size in (*graphs, 96, 192)]
        manager.cost_tables = build_cost_tables_from_curves(
            [(n, 0.2) for n in range(1, 9)], sizes, 8, 2048, graphs[-1]
        )
        self.adaptive_verification = manager

    def step(self, requests: int = REQUESTS, prompt: int = 0) -> int:
        names = [f"r{i}" for i in range(requests)]
        tokens = dict.fromkeys(names, 1 + DRAFTS)
        tokens["r0"] += prompt
        drafts = {name: [-1] * DRAFTS for name in names}
        return int(self.adaptive_verification.get_num_tokens(tokens, drafts))

    def steps(self, count: int, **kind: int) -> None:
        for _ in range(count):
            self.step(**kind)


Runner.__module__ = runner_v2.MODULE


class Served:
    """The server: its runner, its surface, and its feed."""

    def __init__(self, graphs: tuple[int, ...] = CAPTURE_SIZES) -> None:
        self.config = replace(CONFIG, max_positions=8).for_server(8, 512)
        self.runner, self.patches = Runner(graphs), PatchSet()
        model = shape_from_config({**DENSE, "dtype": "bfloat16"})
        captured = CapturedGraphs(graphs, any_mix_up_to=1 + DRAFTS)
        serving = Serving(graphs=captured)
        prior = predicted_prior(model, target_of("H200"), serving, 8)
        rules = GraphRules(
            full_decode=True, full_mixed=False, piecewise=True, multi_position=True,
            graphs=captured, max_num_seqs=8,
        )  # fmt: skip
        self.table = plain_table(
            self.config.batch_sizes, self.config.contexts, self.config.grid, 512, 2048,
            execution_of(rules),
        )  # fmt: skip
        surface = CostSurface(prior, recorded_for(model))
        self.results = Results(self.config, surface, self.table)
        self._random, self.now = random.Random(0), cost_source.time.monotonic()
        parts, worker = started(self.config, object())
        compilation = worker.vllm_config.compilation_config
        compilation.cudagraph_mode, compilation.cudagraph_capture_sizes = "FULL", [*graphs]
        verification = verification_of(self.runner)
        assert verification is not None
        follow_verification(parts, worker, verification, self.patches, lambda _: None)
        (costs,) = parts.lead.publisher.priced
        self.costs: LeadingCosts = costs

    def pairs(self, each: int, noise: float = NOISE) -> None:
        """So many of each shape that is probed and has a graph."""
        shapes = [s for s in self.table.shapes if self._in_graph(s)]
        for shape in each * shapes:
            one = replace(shape, positions=1)
            many, alone = self._run(shape, noise), self._run(one, noise)
            self.results.add(PairResult(many, alone, True, 2e-4), self.now)

    def _in_graph(self, shape: Shape) -> bool:
        return self.table.execution(shape.batch_size, shape.positions) == "full"

    def _run(self, shape: Shape, noise: float) -> Timing:
        def seconds(usual: float) -> float:
            return usual * float(np.exp(self._random.gauss(0.0, noise / 2**0.5)))

        modules = {Module.ATTENTION: seconds(6e-6), Module.DENSE_FFN: seconds(7e-6)}
        step = seconds(7e-5 * (shape.batch_size * shape.positions) ** 0.01)
        return Timing(shape, step, 1e-5, modules, (), "full")

    def publish(self, steps: bool = True) -> None:
        """What the publisher's thread does, at the context of the traffic."""
        kind, shape = Shape(8, 256, 4), Shape(REQUESTS, CONTEXT, 4)
        # Nearly all of a small model's step is a wait for its launch: it says nothing.
        real = RealSteps(kind, shape, 900, 900, 0.003, 4.0, wait_seconds=0.0025)
        self.results.add_steps((real,), self.now)
        live = EngineStep(REQUESTS, CONTEXT, 4, decode=True, tokens=4 * REQUESTS)
        self.results.update(self.now, live if steps else None)
        self.costs.renew(self.results.findings, (real,), self.now)

    @property
    def told(self) -> tuple[bool, str]:
        report = self.costs.report()
        assert report is not None
        return report.feeding, report.reason

    @property
    def measured_steps(self) -> int:
        report = self.costs.report()
        assert report is not None
        return report.measured_steps


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.patches.restore()


def test_a_server_is_fed_at_a_context_that_no_pair_was_run_at(served: Served) -> None:
    served.publish(steps=False)
    assert served.told == (False, NOT_YET)
    served.pairs(8)
    served.publish()
    live = {(p.batch_size, p.context) for p in served.results.findings.live_curves}
    assert live.isdisjoint(served.table.cells), "no real step is where pairs are run"
    served.runner.steps(2 * STEPS_PER_EXCHANGE)
    assert served.told == (True, "")
    assert served.measured_steps > 0


def test_a_server_is_fed_within_its_graphs_where_little_is_known_beyond() -> None:
    graphs = (1, 2, 4, 8, 16)
    served = Served(graphs)
    own = served.runner.step()
    assert own == REQUESTS * (1 + DRAFTS), "by its own costs vLLM leaves the graphs"
    served.pairs(8)
    served.publish()
    points = served.results.findings.live_curves
    assert not founded_rows([p for p in points if p.batch_size == 8], 1 + DRAFTS)
    served.runner.steps(2 * STEPS_PER_EXCHANGE)
    assert served.told == (True, "")
    assert served.measured_steps > 0
    assert served.runner.step() <= graphs[-1]
    served.patches.restore()


def test_what_is_lacking_is_told(served: Served) -> None:
    served.publish()
    assert served.told == (False, LACKING[Lack.TIME])
    assert set(LACKING) == set(Lack) - {Lack.NOTHING}
    served.pairs(1)
    served.publish()
    assert served.told == (True, ""), "one pair of each shape is enough"


def test_costs_that_no_step_is_given_are_told(served: Served) -> None:
    served.pairs(8)
    served.publish()
    served.runner.step()
    served.publish()
    assert served.told == (False, cost_feed.NOT_AGREED_YET)
    served.runner.steps(STEPS_PER_EXCHANGE)
    served.publish()
    assert served.told == (True, "")
    served.runner.steps(2, prompt=40)
    served.publish()
    assert served.told == (False, placed_tables.NOT_DRAFTS_ALONE)
    served.publish()
    assert served.told == (True, ""), "no step since"
