"""What is shown in several ways is computed once and handed on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client import Counter as Counted

from vllm_nfp.cli import main
from vllm_nfp.draft import sources
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.metrics.families import recommendation
from vllm_nfp.principle import (
    Target,
    default_calibration,
    hardware_by_name,
    prediction,
    shape_from_config,
    step,
)
from vllm_nfp.principle.predict import predict_cell
from vllm_nfp.principle.prediction import predict
from vllm_nfp.principle.step import Step
from vllm_nfp.report import render
from vllm_nfp.results.profile import Profile
from vllm_nfp.results.snapshot import Snapshot, engine_file, write_snapshot
from vllm_nfp.types import State

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "hidden_size": 1024,
    "intermediate_size": 3072, "moe_intermediate_size": 512, "num_experts": 16,
    "num_experts_per_tok": 4, "num_hidden_layers": 4, "num_attention_heads": 16,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 32000, "torch_dtype": "bfloat16",
    "mlp_only_layers": [0], "decoder_sparse_step": 1,
}  # fmt: skip
CELLS = 2 * 2
"""Batch sizes and contexts that the commands below ask for."""
KERNELS = ("attention_cost", "_lm_head", "_all_projections", "_moe_ffn")
"""Each is needed once in a step of MOE, whatever is shown of it."""


@pytest.fixture
def reckoned(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the parts of steps were reckoned."""
    calls: Counter[str] = Counter()

    def counting(original: Callable[..., object], name: str) -> Callable[..., object]:
        def wrapped(*args: object, **kwargs: object) -> object:
            calls[name] += 1
            return original(*args, **kwargs)

        return wrapped

    for name in KERNELS:
        place = Step if name.startswith("_") else step
        monkeypatch.setattr(place, name, counting(getattr(place, name), name))
    return calls


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(MOE))
    return tmp_path


@pytest.mark.parametrize(
    "flags",
    [
        (),
        ("--json",),
        ("--plot", "{}/curves.svg"),
        ("--plot", "{}/curves.png", "--explain"),
        ("--explain", "8,4096"),
        ("--explain", "8,4096,moe_ffn", "--plot", "{}/curves.svg"),
    ],
)
def test_predict_reckons_each_step_once(
    flags: tuple[str, ...], model: Path, reckoned: Counter[str]
) -> None:
    given = [flag.format(model) for flag in flags]
    asked = ["predict", str(model), "--hardware", "H100-SXM", "--batch-sizes", "1,8", *given]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    # One layer's attention is full and none slides, so that it is asked for once a step.
    assert reckoned == Counter(dict.fromkeys(KERNELS, CELLS))


def test_recommend_reckons_each_predicted_step_once(model: Path, reckoned: Counter[str]) -> None:
    asked = ["recommend", "--predicted", str(model), "--hardware", "H100-SXM", "--batch-sizes"]
    asked += ["1,8", "--contexts", "1024,4096", "--acceptance", "0.7", "--json"]
    done = CliRunner().invoke(main, asked)
    assert done.exit_code == 0, done.output
    assert reckoned == Counter(dict.fromkeys(KERNELS, CELLS))


def test_a_cell_that_was_not_asked_for_is_reckoned_when_it_is_explained(
    model: Path, reckoned: Counter[str]
) -> None:
    asked = ["predict", str(model), "--hardware", "H100-SXM", "--batch-sizes", "1,8"]
    done = CliRunner().invoke(main, [*asked, "--explain", "3,777,attention"])
    assert done.exit_code == 0, done.output
    assert reckoned["attention_cost"] == CELLS + 1
    assert reckoned["_lm_head"] == CELLS


def test_what_is_handed_on_is_what_a_cell_by_itself_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target(hardware_by_name("H100-SXM"), default_calibration("H100-SXM"))
    shape = shape_from_config(MOE)
    found = predict(MOE, target, (1, 8), (1024, 4096), (0.05, 0.1))
    for module in found.modules:
        for batch_size in (1, 8):
            alone = predict_cell(
                shape, target, module, batch_size, 4096, (0.05, 0.1), found.serving
            )
            assert found.cell(module, batch_size, 4096) == alone
    # A grid too large to keep gives the same, cell by cell.
    monkeypatch.setattr(prediction, "MOST_KEPT", 0)
    lean = predict(MOE, target, (1, 8), (1024, 4096), (0.05, 0.1))
    assert not lean.cells
    assert lean == found
    assert lean.cell("model", 8, 4096) == found.cell("model", 8, 4096)


def test_what_is_kept_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "MOST_KEPT", 1 << 15)
    found = predict(MOE, "H100-SXM", range(1, 9), (1024, 4096))  # type: ignore[arg-type]
    assert len(found.rows) == 8 * 2 * len(found.modules)
    numbers = [
        len(cell.positions) * (1 + len(cell.terms) + len(cell.parts))
        for cell in found.cells.values()
    ]
    assert 0 < sum(numbers) <= 1 << 15
    assert len(numbers) < len(found.rows)


def test_a_report_reads_the_curves_of_the_profile_once(
    dense_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    original = sources.curves_of_rows

    def counting(*args: object) -> object:
        calls.append(args)
        return original(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(sources, "curves_of_rows", counting)
    render(dense_profile)
    assert len(calls) == 1


def test_a_schedule_is_made_again_only_for_other_inputs(
    dense_profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[object] = []
    make = recommendation.make_schedule
    monkeypatch.setattr(
        recommendation, "make_schedule", lambda *a, **k: made.append(a) or make(*a, **k)
    )
    labels = {"model_name": "m", "engine": "0"}
    registry = CollectorRegistry()
    names = ("drafts", "draft_tokens", "accepted_tokens_per_pos")
    drafts, drafted, accepted = (
        Counted(
            f"vllm:spec_decode_num_{name}",
            "-",
            [*labels, *(["position"] if name.endswith("pos") else [])],
            registry=registry,
        )
        for name in names
    )
    drafts.labels(**labels).inc(100)
    drafted.labels(**labels).inc(100)
    accepted.labels(**labels, position="0").inc(70)

    def write(curves: int) -> None:
        snapshot = Snapshot("m", "0", State.STEADY, curves=dense_profile.curves[:curves])
        write_snapshot(engine_file(str(tmp_path), "0"), snapshot)

    collector = NfpCollector(str(tmp_path), None, registry)
    whole = CollectorRegistry()
    whole.register(collector)
    write(len(dense_profile.curves))
    first = generate_latest(whole)
    assert b"vllm_nfp_recommended_draft_length{" in first
    generate_latest(whole)
    assert len(made) == 1
    drafts.labels(**labels).inc(900)  # acceptance has changed
    drafted.labels(**labels).inc(900)
    generate_latest(whole)
    assert len(made) == 2
    write(len(dense_profile.curves) - 1)  # the step times have changed
    generate_latest(whole)
    assert len(made) == 3
