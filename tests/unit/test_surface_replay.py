"""The replay of recorded servers: its truth, its load, and what the surface makes of it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT))
from benchmarks.answers.replay import METHODS, replay
from benchmarks.answers.replay_fit import hyperparameters_from, name_of
from benchmarks.answers.replay_methods import pair_seconds, true_boundary
from benchmarks.answers.replay_recorded import Cell, Server, all_servers
from benchmarks.answers.replay_score import Score, score
from vllm_nfp.surface import QUANTIZED, RECORDED, recorded_for
from vllm_nfp.types import Module, Shape

RESULTS = ROOT / "benchmarks/results"
KEPT = RESULTS / "2026-11-27-cost-surface"


@pytest.fixture(scope="module")
def servers() -> dict[str, Server]:
    return {server.name: server for server in all_servers(RESULTS)}


def test_every_server_is_in_the_split_and_has_hyperparameters(servers: dict[str, Server]) -> None:
    split = json.loads((KEPT / "split.json").read_text())["families"]
    assert {name for names in split.values() for name in names} == set(servers)
    assert all(servers[name].family == family for family in split for name in split[family])
    sets = json.loads((KEPT / "hyperparameters.json").read_text())
    quantized = {name_of(server) for server in servers.values()} - set(split)
    assert len(quantized) == 2 and set(sets) == {"all", "all:quantized", *split, *quantized}


@pytest.mark.parametrize("name", ["all", "all:quantized"])
def test_what_ships_is_the_set_of_all_families(name: str) -> None:
    fitted = hyperparameters_from(json.loads((KEPT / "hyperparameters.json").read_text())[name])
    shipped_set = RECORDED if name == "all" else QUANTIZED
    for part in ("dense_ffn", "moe_ffn", "communication", "other", "attention", "step"):
        shipped, exact = getattr(shipped_set, part), getattr(fitted, part)
        for field in shipped.__slots__:
            assert getattr(shipped, field) == pytest.approx(getattr(exact, field), rel=0.006), field
    assert shipped_set.launch == fitted.launch


def test_a_quantized_model_gets_its_own_set(servers: dict[str, Server]) -> None:
    assert recorded_for(servers["qwen3-14b"].shape) is RECORDED
    assert recorded_for(servers["qwen3-14b-fp8"].shape) is QUANTIZED


def test_a_recorded_truth_is_the_recording(servers: dict[str, Server]) -> None:
    profile = json.loads(
        (RESULTS / "2026-11-26-h100-draft-lengths/dense/spec/probe/profile-0.json").read_text()
    )
    server = servers["dense"]
    for row in profile["curves"]:
        cell = (row["batch_size"], row["context"])
        at = server.positions[cell].index(row["positions"])
        said = server.ratios(Module(row["module"]), cell)[at]
        assert said == pytest.approx(row["ratio"])
    reported = {
        (row["module"], row["batch_size"], row["context"], row["epsilon"]): row["positions"]
        for row in profile["boundaries"]
    }
    # The replay's grid lacks 7 and 9, so that larger boundaries cannot agree.
    small = {key: n for key, n in reported.items() if n <= 4}
    assert len(small) > 10
    for (module, batch_size, context, epsilon), n in small.items():
        assert true_boundary(server, Module(module), (batch_size, context), epsilon) == n


def test_a_composed_step_is_the_sum_of_its_kernels(servers: dict[str, Server]) -> None:
    server = servers["qwen3-14b"]
    for cell in server.cells:
        step = np.array(server.seconds[Module.MODEL, *cell])
        parts = sum(
            server.layers(m) * np.array(server.seconds[m, *cell])
            for m in (Module.DENSE_FFN, Module.ATTENTION)
        )
        assert (step > parts).all() and step[0] < 2.0 * parts[0]


class _Drafts:
    """Says this draft length, and nothing else."""

    def __init__(self, length: int) -> None:
        self._length = length

    def ratio(self, module: Module, cell: Cell) -> None:
        return None

    def boundary(self, module: Module, cell: Cell, epsilon: float) -> None:
        return None

    def draft(self, cell: Cell, acceptance: float) -> int:
        return self._length


@pytest.mark.parametrize(
    ("length", "share"),
    [
        (7, 1.0),  # recorded, the best at acceptance 0.5
        (5, 0.9882),  # N = 6 takes as long as N = 8: (1 - 0.5^6) / (1 - 0.5^8)
        (3, 0.9412),  # N = 4 as N = 1: both are recorded, but it yields less
    ],
)
def test_a_draft_length_between_recorded_ones_takes_the_longer_step(
    servers: dict[str, Server], monkeypatch: pytest.MonkeyPatch, length: int, share: float
) -> None:
    monkeypatch.setattr("benchmarks.answers.replay_score.ACCEPTANCES", (0.5,))
    known = {(Module.MODEL, 1, 1024): (1.0, 1.0, 1.0)}
    server = replace(servers["dense"], positions={(1, 1024): (1, 4, 8)}, seconds=known, spread={})
    empty = Score("fixed", "dense", "dense", False, 0.0, 0)
    found = score(_Drafts(length), server, empty)
    assert (found.drafts, found.good_drafts) == (1, int(share >= 0.98))
    assert found.worst_draft == pytest.approx(share, abs=1e-4)


def test_a_draft_length_beside_an_uncertain_step_is_not_judged(servers: dict[str, Server]) -> None:
    known = {(Module.MODEL, 1, 1024): (1.0, 1.0, 1.0)}
    server = replace(
        servers["dense"], positions={(1, 1024): (1, 4, 8)}, seconds=known,
        spread={(Module.MODEL, 1, 1024): (0.0, 0.5, 0.0)},
    )  # fmt: skip
    for length, judged in ((7, 3), (5, 0), (2, 0)):
        empty = Score("fixed", "dense", "dense", False, 0.0, 0)
        assert score(_Drafts(length), server, empty).drafts == judged


def test_a_capture_is_paid_once(servers: dict[str, Server]) -> None:
    server, shape = servers["qwen3-14b"], Shape(8, 1024, 4)
    new = pair_seconds(server, shape, frozenset())
    again = pair_seconds(server, shape, frozenset({shape, Shape(8, 1024, 1)}))
    assert new - again == pytest.approx(2 * 1.2e-3 * server.shape.num_layers)


def test_the_surface_beats_the_prior_after_the_start(servers: dict[str, Server]) -> None:
    server = servers["qwen3-14b:6"]
    sets = json.loads((KEPT / "hyperparameters.json").read_text())
    hyper = hyperparameters_from(sets[server.family])
    scores = {
        name: next(
            replay(server, name, METHODS[name](server, hyper, 0), 0.0, 0, 2.0, moments=(0.0,))
        )
        for name in ("surface", "prior")
    }
    surface, prior = scores["surface"], scores["prior"]
    assert surface.near / surface.boundaries > 0.9
    assert surface.near > prior.near
    assert np.median(surface.errors) < 0.5 * np.median(prior.errors)
    assert 0.9 < surface.covered / surface.points <= 1.0
    assert surface.good_drafts / surface.drafts > 0.9


def test_traffic_buys_pairs_within_the_budget(servers: dict[str, Server]) -> None:
    server = servers["qwen3-14b:6"]
    hyper = RECORDED
    after = [
        score.pairs
        for score in replay(
            server, "random", METHODS["random pairs"](server, hyper, 0), 0.0, 0, 0.2, (0.0, 20.0)
        )
    ]
    assert 0 < after[0] < after[1] < after[0] + 40
