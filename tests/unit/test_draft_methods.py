"""Draft methods: what each runs, what its drafts cost, and how it is asked for."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pytest
from click.testing import CliRunner

from vllm_nfp.adapter.draft_lengths import control_speculation
from vllm_nfp.cli.recommend import recommend_command
from vllm_nfp.config import ConfigError
from vllm_nfp.draft import lints
from vllm_nfp.draft.curve import StepCurve
from vllm_nfp.draft.demand import DraftCost
from vllm_nfp.draft.drafting import cost_of
from vllm_nfp.draft.methods import DRAFT_METHODS, METHODS, Drafts, drafts_of, known_method
from vllm_nfp.draft.recommend import RecommendError, recommend
from vllm_nfp.draft.server_drafts import live_drafting


def curves(*batch_sizes: int) -> list[StepCurve]:
    """Steps of 10 ms that eight positions make a tenth longer."""
    points = tuple((n, 1.0 + 0.0125 * n) for n in range(1, 10))
    return [StepCurve(size, 1024, 10e-3, ((1, 1.0), *points[1:])) for size in batch_sizes]


def test_every_method_is_described() -> None:
    assert set(METHODS) == set(DRAFT_METHODS)
    by_drafts = {
        drafts: {name for name in METHODS if drafts_of(name) is drafts} for drafts in Drafts
    }
    assert by_drafts == {
        Drafts.LOOKUP: {"ngram", "ngram_gpu", "suffix"},
        Drafts.BLOCK: {"dflash", "dspark"},
        Drafts.TOKEN: {"eagle", "eagle3", "mtp", "draft_model"},
    }


@pytest.mark.parametrize("method", ["eagle", "eagle3", "draft_model"])
def test_parallel_drafting_runs_once_a_step(method: str) -> None:
    assert drafts_of(method, parallel=True) is Drafts.BLOCK
    assert drafts_of("mtp", parallel=True) is Drafts.TOKEN


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("deepseek_mtp", "mtp"),
        ("Qwen3-Next-MTP", "mtp"),
        ("EAGLE3", "eagle3"),
        ("medusa", None),
        ("new_mtp", None),
    ],
)
def test_older_names_of_mtp_mean_mtp(given: str, found: str | None) -> None:
    assert known_method(given) == found


def test_what_each_way_of_drafting_costs_by_length() -> None:
    [curve] = curves(1)

    def ratios(method: str, parallel: bool = False) -> list[float]:
        cost = cost_of(method, 1e-3, parallel=parallel)
        return [cost.ratio(k, curve) for k in (0, 1, 4)]

    assert ratios("ngram") == pytest.approx([0.0, 0.1, 0.1])
    assert ratios("eagle3") == pytest.approx([0.1, 0.1, 0.4])
    assert ratios("dflash") == pytest.approx([0.1, 0.1, 0.1])
    assert ratios("eagle3", parallel=True) == pytest.approx([0.1, 0.1, 0.1])


def test_a_measured_cost_counts_at_the_nearest_batch_size() -> None:
    cost = DraftCost(seconds_per_token=3e-4, by_batch=((1, 2e-4), (64, 9e-4)))
    at = [cost.ratio(2, curve) for curve in curves(1, 4, 16, 256)]
    assert at == pytest.approx([0.04, 0.04, 0.18, 0.18])


def test_a_server_reports_its_cost_by_batch_size() -> None:
    samples = {
        "vllm_nfp_draft_token_seconds": [
            ({"engine": engine, "batch_size": size}, seconds)
            for engine, size, seconds in (
                ("0", "8", 4e-4), ("1", "8", 2e-4), ("0", "1", 1e-4), ("0", "32", 0.0),
                ("0", "many", 1.0),
            )
        ]
    }  # fmt: skip
    assert live_drafting(samples).token_seconds_by_batch == ((1, 1e-4), (8, pytest.approx(3e-4)))
    assert live_drafting(samples, "1").token_seconds_by_batch == ((8, 2e-4),)


def test_parallel_drafting_reaches_vllm() -> None:
    found = recommend(
        curves(1, 8), 0.8, draft_method="eagle3", draft_model="head", parallel_drafting=True,
        draft_cost=1e-3,
    )  # fmt: skip
    assert found.speculative_config()["parallel_drafting"] is True
    assert any("one pass of eagle3 makes all drafts" in text for text in found.assumptions)
    with pytest.raises(RecommendError, match=r"parallel_drafting is for .*, not mtp: leave it out"):
        recommend(curves(1), 0.8, draft_method="mtp", draft_cost=0.0, parallel_drafting=True)


def test_a_draft_model_makes_the_longest_draft_everywhere() -> None:
    steep = [StepCurve(128, 1024, 10e-3, tuple((n, 1.0 + 0.3 * (n - 1)) for n in range(1, 10)))]
    found = recommend(
        [*curves(1), *steep], 0.8, draft_method="draft_model", draft_model="m", draft_cost=1e-5
    )
    assert len({entry.draft_length for entry in found.schedule.ranges}) > 1
    assert any("drops those beyond K" in text for text in found.warnings)
    eagle = recommend(
        [*curves(1), *steep], 0.8, draft_method="eagle", draft_model="m", draft_cost=1e-5
    )
    assert not any("drops those beyond K" in text for text in eagle.warnings)


def test_parallel_drafters_take_more_slots() -> None:
    assert lints.drafting_slots("eagle3", 5, parallel=True) == 4
    assert lints.drafting_slots("draft_model", 5, parallel=True) == 5


def test_draft_control_refuses_what_does_not_follow_a_table() -> None:
    def controlled(**settings: object) -> Namespace:
        args = Namespace(speculative_config={"num_speculative_tokens": 4, **settings})
        control_speculation(args)
        return args

    assert controlled(method="dspark").speculative_config["method"] == "dspark"
    assert controlled(method="qwen3_next_mtp").speculative_config["method"] == "qwen3_next_mtp"
    for settings, text in (
        ({"method": "suffix"}, "does not support the draft method 'suffix'"),
        ({"method": "eagle3", "parallel_drafting": True}, "does not support parallel_drafting"),
        ({"method": "medusa"}, "does not support the draft method 'medusa'"),
    ):
        with pytest.raises(ConfigError, match=text):
            controlled(**settings)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--draft-method", "medusa"), "'medusa' is not one of 'ngram'"),
        (("--draft-method", "mtp", "--parallel-drafting"), "--parallel-drafting is for"),
        (("--draft-method", "dspark"), "the cost of 'dspark' is not predicted"),
    ],
)
def test_bad_methods_end_with_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    asked = ("--predicted", "qwen3-8b", "--hardware", "H100-SXM", "--acceptance", "0.7")
    found = CliRunner().invoke(recommend_command, [*asked, *arguments])
    assert found.exit_code == 2
    assert text in found.output
