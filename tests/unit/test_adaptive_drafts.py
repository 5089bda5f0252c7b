"""How many tokens to draft where vLLM chooses how many of them are verified."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_recommend import QWEN3_8B, URL, metrics, refused, run
from test_recommend import served as served  # noqa: PLC0414 (a fixture)

from vllm_nfp import recommend
from vllm_nfp.draft import Acceptance, Demand, DraftCost, StepCurve, constant
from vllm_nfp.draft.adaptive import AdaptiveDrafts, adaptive_drafts, adaptive_sentence
from vllm_nfp.types import Basis

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8)
ratios = st.lists(st.floats(1.0, 5.0), min_size=7, max_size=7)
each_cost = st.floats(0.0, 0.3)
OF = 'model_name="qwen3-8b",engine="0"'
ADAPTIVE = (
    f"vllm_nfp_verification_scheduled_drafts_total{{{OF}}} 300\n"
    f"vllm_nfp_verification_admitted_drafts_total{{{OF}}} 90\n"
)
HEAD = ("--draft-method", "eagle3", "--draft-cost", "0.0003")


def curve(values: list[float], batch_size: int = 1, basis: Basis = Basis.MEASURED) -> StepCurve:
    points = tuple(zip(COUNTS, (1.0, *values), strict=True))
    return StepCurve(batch_size, 1024, 0.004, points, bases=(basis,) * len(points))


def by_tokens(batch_size: int, **of: Any) -> StepCurve:
    """A step is free up to 64 tokens, then goes with them."""
    return curve([max(1.0, n * batch_size / 64) for n in COUNTS[1:]], batch_size, **of)


def found_for(curves: list[StepCurve], demand: Demand) -> AdaptiveDrafts:
    found = adaptive_drafts(curves, demand)
    assert found is not None
    return found


def brute_share(step: StepCurve, acceptance: Acceptance, each: float, drafted: int) -> float:
    """Written out from the definition."""
    measured = dict(step.points)
    tokens = [acceptance.expected_tokens(k) for k in range(8)]
    best = max(tokens[v] / (measured[v + 1] + each * drafted) for v in range(drafted + 1))
    fixed = [tokens[k] / (measured[k + 1] + each * max(1, k)) for k in range(8)]
    return best / max(fixed)


@given(st.lists(ratios, min_size=1, max_size=4), st.floats(0.1, 0.95), each_cost)
def test_the_drafts_are_the_best_of_all_for_the_mean_of_the_table(
    values: list[list[float]], chance: float, each: float
) -> None:
    # As measured steps between two counts take as long as the slower one, times never fall.
    steps = [curve(sorted(of), 1 << index) for index, of in enumerate(values)]
    acceptance = constant(chance)
    found = found_for(steps, Demand(acceptance, DraftCost(share_per_token=each), slack=0.0))
    means = {
        drafted: fmean(brute_share(step, acceptance, each, drafted) for step in steps)
        for drafted in range(1, 8)
    }
    assert found.reached.mean == pytest.approx(max(means.values()))
    assert means[found.draft_length] == pytest.approx(found.reached.mean)
    shares = [brute_share(step, acceptance, each, found.draft_length) for step in steps]
    assert found.reached.least == pytest.approx(min(shares))


def test_a_draft_that_takes_time_is_not_made_at_each_step_for_few_batches() -> None:
    steps = [by_tokens(size) for size in (1, 8, 32, 64)]
    dear = Demand(constant(0.7), DraftCost(share_per_token=0.06), running=7)
    few, many = found_for(steps[:2], dear), found_for(steps, dear)
    assert many.draft_length < few.draft_length < 7
    assert many.running_reached is not None
    assert many.running_reached.mean < many.reached.mean * (1.0 - dear.slack)
    assert not many.keeps
    assert many.draft_seconds == pytest.approx((0.06 * 0.004, 0.06 * 0.004))
    costless = found_for(steps, replace(dear, cost=DraftCost(), slack=0.0))
    assert costless.draft_length == 7, "what is not verified costs nothing"
    assert costless.reached.least == pytest.approx(1.0)
    once = DraftCost(share_once=0.4, once_at_zero=True)
    assert found_for(steps, replace(dear, cost=once, slack=0.0)).draft_length == 7


def test_what_runs_is_kept_within_the_slack() -> None:
    demand = Demand(constant(0.8), DraftCost(share_per_token=0.06), slack=0.02)
    best = found_for([by_tokens(8)], replace(demand, slack=0.0)).draft_length
    kept = found_for([by_tokens(8)], replace(demand, running=best))
    assert kept.draft_length < best
    assert kept.keeps
    assert f"keep the {best} drafts of each step" in adaptive_sentence(kept)


def test_bounds_are_those_of_the_drafts() -> None:
    steps = [by_tokens(1), by_tokens(2)]
    demand = Demand(constant(0.9), max_draft_length=3, running=7)
    found = found_for(steps, demand)
    assert found.draft_length == 3
    assert found.running_reached is not None
    assert found.running_reached.mean == pytest.approx(1.0)
    assert found_for(steps, replace(demand, draft_lengths=(2,))).draft_length == 2
    assert adaptive_drafts(steps, replace(demand, max_draft_length=0)) is None
    counted = replace(demand, acceptance=Acceptance((0.9, 0.8)), max_draft_length=None)
    assert found_for(steps, counted).running_reached is None, "nothing is known of 7"


def test_shorter_curves_verify_what_is_known() -> None:
    short = StepCurve(64, 1024, 0.004, ((1, 1.0), (2, 1.1)))
    found = found_for([by_tokens(1), short], Demand(constant(0.9), slack=0.0))
    assert found.draft_length == 7
    assert found.reached.least == pytest.approx(1.0)


def test_the_sentence_has_the_figure_and_its_basis() -> None:
    steps = [by_tokens(32, basis=Basis.PREDICTED), by_tokens(8), by_tokens(64)]
    cost = DraftCost(seconds_per_token=0.0003)
    found = found_for(steps, Demand(constant(0.8), cost, running=7))
    said = adaptive_sentence(found)
    assert f"draft {found.draft_length} tokens at each step" in said
    assert f"reaches {100 * found.reached.mean:.0f} % on average" in said
    assert "and with the 7 that you run" in said
    assert "(measured and predicted step times; a further draft takes 0.3 ms)" in said
    assert "it takes the host 0.8 to 2 ms more a step, which is not counted" in said
    alone = replace(found, running=None, running_reached=None, draft_seconds=(0.0, 0.0))
    assert "that you run" not in adaptive_sentence(alone)
    assert "takes no time" in adaptive_sentence(alone)
    assert "draft 1 token at each" in adaptive_sentence(replace(found, draft_length=1))
    spread = replace(found, draft_seconds=(0.0003, 0.0005))
    assert "takes 0.3 to 0.5 ms" in adaptive_sentence(spread)


def test_many_drafts_are_compared_quickly() -> None:
    points = tuple((n, 1.0 + n / 64) for n in range(2, 514))
    steps = [StepCurve(1 << i, 1024, 0.004, ((1, 1.0), *points)) for i in range(4)]
    found = found_for(steps, Demand(constant(0.99), DraftCost(share_per_token=0.01)))
    assert math.isfinite(found.reached.mean)


def test_a_prediction_is_asked_about_adaptive_verification(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    asked = ("--predicted", tmp_path, "--hardware", "H200", "--adaptive-verification")
    rates = ("--acceptance-rates", "0.66,0.43,0.3,0.2,0.15,0.12,0.09")
    values = json.loads(run(*asked, *HEAD[:2], *rates, "--running", "7", "--json").stdout)
    found = values["adaptive_verification"]
    assert 2 <= found["draft_length"] < 7
    assert found["bases"] == ["predicted"]
    assert found["running_reached"]["mean"] < found["reached"]["mean"] <= 1.0
    assert values["verdict"][-1].startswith("With adaptive verification draft")
    without = json.loads(run(*asked[:-1], *HEAD[:2], *rates, "--json").stdout)
    assert without["adaptive_verification"] is None
    assert len(without["verdict"]) == len(values["verdict"]) - 1
    assert "--adaptive-verification needs drafts of a model" in refused(*asked, *rates)
    usual = run(*asked, *HEAD[:2]).output
    assert "With adaptive verification draft " in usual
    assert " at 0.5, " in usual


def test_batch_sizes_beyond_the_table_have_no_say() -> None:
    steps = [by_tokens(1), by_tokens(256)]

    def drafts(**given: Any) -> int:
        adaptive = recommend(
            steps, 0.8, draft_method="eagle3", draft_share=0.06, adaptive_verification=True, **given
        ).adaptive
        assert adaptive is not None
        return adaptive.draft_length

    assert drafts(max_batch_size=1) > drafts()


def test_a_server_that_verifies_adaptively_needs_no_question(served: Any) -> None:
    served(metrics() + ADAPTIVE)
    values = json.loads(run(URL, *HEAD, "--json").stdout)
    found = values["adaptive_verification"]
    assert found["running"] == 3
    assert values["verdict"][-1].startswith("With adaptive verification")
    assert not any("give --draft-method" in text for text in values["warnings"])
    served(metrics())
    assert json.loads(run(URL, *HEAD, "--json").stdout)["adaptive_verification"] is None


def test_the_drafter_of_an_adaptive_server_needs_to_be_named(served: Any) -> None:
    served(metrics() + ADAPTIVE)
    values = json.loads(run(URL, "--json").stdout)
    assert values["adaptive_verification"] is None
    (told,) = (text for text in values["warnings"] if "give --draft-method" in text)
    assert "no drafts by ngram are" in told
