"""Draft lengths from predictions alone: what drafting costs, the host's time, and every caveat."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from test_principle_models import DEEPSEEK_V3, QWEN_3_8B, QWEN_3_30B_A3B

from vllm_nfp import predict, recommend
from vllm_nfp.cli import main
from vllm_nfp.draft import Acceptance
from vllm_nfp.draft.recommendation import Recommendation
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.principle.notes import notes
from vllm_nfp.principle.predictions import Predictions


def times(config: dict[str, Any] = QWEN_3_8B, **served: Any) -> Predictions:
    return predict(config, "H100-SXM", (1, 8), (1024,), max_positions=17, **served)


def chosen(found: Predictions, method: str | None, **given: Any) -> Recommendation:
    return recommend(found, 0.8, draft_method=method, **given)


def run(config: dict[str, Any], tmp_path: Path, *args: str) -> Result:
    (tmp_path / "config.json").write_text(json.dumps(config))
    flags = ["recommend", "--predicted", str(tmp_path), "--hardware", "H100-SXM", "--contexts"]
    return CliRunner().invoke(main, [*flags, "1024", "--acceptance", "0.8", *args])


@pytest.mark.parametrize(
    ("config", "method"),
    [(QWEN_3_8B, "eagle"), (QWEN_3_8B, "eagle3"), (QWEN_3_8B, "dflash"),
     ({**DEEPSEEK_V3, "num_nextn_predict_layers": 1}, "mtp")],
)  # fmt: skip
def test_a_head_needs_no_guess(config: dict[str, Any], method: str) -> None:
    found = chosen(times(config, tensor_parallel_size=8), method)
    assert found.rows[0].draft_ratio > 0
    assert found.rows[0].gain < found.rows[0].expected_tokens
    assert any(f"of GPU time with {method} at batch size 1" in said for said in found.assumptions)


def test_a_head_costs_more_for_every_token_and_a_parallel_one_does_not() -> None:
    each = chosen(times(), "eagle3", draft_lengths=[16]).rows[0]
    once = chosen(times(), "dflash", draft_lengths=[16]).rows[0]
    # One layer and a small LM head sixteen times, or five layers and the whole LM head once.
    assert each.draft_ratio > 2 * once.draft_ratio


def test_the_cost_depends_on_the_batch_size() -> None:
    found = recommend(
        predict(QWEN_3_8B, "H100-SXM", (1, 128), (1024,), max_positions=9), 0.8,
        draft_method="eagle3", draft_lengths=[4],
    )  # fmt: skip
    first, last = (row for row in found.rows if not row.between)
    seconds = [row.draft_ratio * c.seconds_at_one for row, c in zip(
        (first, last), found.source.curves, strict=True)]  # fmt: skip
    assert seconds[1] > 1.5 * seconds[0]


def test_a_given_cost_takes_the_place_of_the_predicted_one() -> None:
    given = chosen(times(), "eagle3", draft_cost=0.001, draft_lengths=[4])
    one = given.source.curves[0].seconds_at_one
    assert given.rows[0].draft_ratio == pytest.approx(0.004 / one)
    assert not any("of GPU time" in said for said in given.assumptions)


def test_a_heads_own_config_is_read(tmp_path: Path) -> None:
    head = {**QWEN_3_8B, "num_hidden_layers": 1, "draft_vocab_size": 151936}
    (tmp_path / "config.json").write_text(json.dumps(head))
    usual = chosen(times(), "eagle3").rows[0].draft_ratio
    own = chosen(times(), "eagle3", draft_model=str(tmp_path), draft_lengths=[4])
    assert own.rows[0].draft_ratio > usual
    assert not any("usual shape" in said for said in own.assumptions)
    name = chosen(times(), "eagle3", draft_model="someone/head")
    assert any("usual shape" in said for said in name.assumptions)


@pytest.mark.parametrize(
    ("method", "said"),
    [("mtp", "has no prediction layers"), ("draft_model", "draft_model is needed")],
)
def test_what_cannot_draft_is_refused(method: str, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        chosen(times(), method)


def test_two_ranks_lose_where_public_reports_say_so() -> None:
    """Qwen3-30B-A3B, two H100, EAGLE-3 with 1.86 tokens a step: 0.72 times the rate of none."""
    found = predict(
        QWEN_3_30B_A3B, "H100-SXM", (1,), (1024,), max_positions=5, tensor_parallel_size=2
    )
    known = Acceptance((0.5, 0.45, 0.6), None)
    row = recommend(found, known, draft_method="eagle3", draft_lengths=[3]).rows[0]
    assert row.gain < 1.0 or row.draft_length < 3


def test_a_step_takes_no_less_than_its_host_needs() -> None:
    small = {**QWEN_3_8B, "num_hidden_layers": 2}
    curve = recommend(times(small), 0.8).source.curves[0]
    assert curve.seconds_at_one == pytest.approx(1.5e-3)
    assert curve.ratio(2) == 1.0


def test_lookups_take_the_host_of_an_engine_that_speculates() -> None:
    small = {**QWEN_3_8B, "num_hidden_layers": 2}
    row = recommend(times(small), 0.8, draft_method="ngram", draft_lengths=[4]).rows[0]
    assert row.draft_ratio == pytest.approx(1.9 / 1.5 - 1)
    assert recommend(times(), 0.8).rows[0].draft_ratio == 0  # the GPU takes longer


def test_a_checkpoint_with_prediction_layers_is_pointed_at() -> None:
    deepseek = {**DEEPSEEK_V3, "num_nextn_predict_layers": 1}
    found = times(deepseek, tensor_parallel_size=8)
    assert any("--draft-method mtp" in said for said in recommend(found, 0.8).warnings)
    mtp = recommend(found, 0.8, draft_method="mtp")
    assert not any("--draft-method mtp" in said for said in mtp.warnings)


def test_every_caveat_of_the_prediction_is_repeated_and_nothing_is_called_measured(
    tmp_path: Path,
) -> None:
    result = run(QWEN_3_8B, tmp_path, "--batch-sizes", "1,8,512", "--max-batch-size", "600")
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    found = predict(QWEN_3_8B, "H100-SXM", (1, 8, 512), (1024,), max_positions=64)
    for note in notes(found):
        assert note in text
    assert "The host's time is assumed" in text
    allowed = ("not measured: a prediction", "was not measured", "were never")
    for part in allowed:
        text = text.replace(part, "")
    assert "measured" not in text


def test_what_constants_rest_on_is_a_note_and_a_warning_only_where_none_were_fitted(
    tmp_path: Path,
) -> None:
    said = run(QWEN_3_8B, tmp_path, "--batch-sizes", "1").output
    assert "Note: Constants: fitted to" in said
    assert "Warning: Constants" not in said
    elsewhere = run(QWEN_3_8B, tmp_path, "--batch-sizes", "1", "--hardware", "MI325X").output
    assert "Warning: Constants: not fitted to MI325X" in elsewhere


def test_a_lookup_that_loses_is_not_said_to_run_a_drafter(tmp_path: Path) -> None:
    """It was said that the draft model runs on every step; n-grams have none."""
    small = {**QWEN_3_8B, "num_hidden_layers": 1}
    for method, why in (
        ("ngram", "because the host takes longer for a step with speculation, even at K = 0"),
        ("eagle3", "because the drafter runs on every step, even at K = 0"),
    ):
        done = run(small, tmp_path, "--acceptance", "0.05", "--draft-method", method)
        assert why in " ".join(done.output.split())


def test_leaving_the_graphs_is_told(tmp_path: Path) -> None:
    result = run(QWEN_3_8B, tmp_path, "--batch-sizes", "128", "--acceptance", "0.95")
    assert "steps leave the CUDA graphs" in " ".join(result.output.split())


def test_json_says_that_the_cost_is_predicted(tmp_path: Path) -> None:
    result = run(QWEN_3_8B, tmp_path, "--batch-sizes", "1", "--draft-method", "eagle3", "--json")
    found = json.loads(result.stdout)
    assert "eagle3" in found["draft_cost_predicted"]
    assert found["draft_cost"]["seconds_per_token"] == 0


def test_predict_tells_of_steps_that_the_host_bounds() -> None:
    small = {**QWEN_3_8B, "num_hidden_layers": 2}
    (told,) = (note for note in notes(times(small)) if "engine's host needs" in note)
    assert told.startswith("At B = 1, 8 steps take less than the 1.5 ms")
    assert not any("engine's host needs" in note for note in notes(times()))
    assert times().to_dict()["host_time"]["step_seconds"] == 1.5e-3
