"""``recommend``: from profiles, servers and predictions to tables and vLLM's settings."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import vllm_nfp
from vllm_nfp import releases
from vllm_nfp.cli import main
from vllm_nfp.draft import AcceptanceError, DraftCost, server_drafts, sources
from vllm_nfp.draft.recommend import RecommendError, recommend
from vllm_nfp.draft.server import from_samples
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.results import fetching, scrape
from vllm_nfp.results.profile import Profile, save_profile
from vllm_nfp.types import Basis, CurvePoint, Module

URL = "http://localhost:1"
QWEN3_8B = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 4096,
    "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936, "torch_dtype": "bfloat16",
}  # fmt: skip


@pytest.fixture(scope="session")
def profile_path(dense_profile: Profile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # As if its eight layers were the whole model: a model that was cut has a test of its own.
    model = dataclasses.replace(dense_profile.model, whole_num_layers=None)
    path = tmp_path_factory.mktemp("profile") / "profile.json"
    save_profile(path, dataclasses.replace(dense_profile, model=model))
    return path


def run(*args: str | Path) -> Result:
    return CliRunner().invoke(main, ["recommend", *map(str, args)])


def refused(*args: str | Path) -> str:
    done = run(*args)
    assert done.exit_code == 2, done.output
    assert "Traceback" not in done.output
    return done.output


def metrics(
    model: str = "qwen3-8b",
    one_seconds: float = 0.0018,
    rates: tuple[float, ...] = (0.9, 0.6, 0.3),
    drafts: float = 100.0,
    drafted_each: float = 3.0,
    probe: bool = True,
    curves: bool = True,
    engines: tuple[str, ...] = ("0",),
) -> str:
    """What a speculating server shows."""
    lines = []
    for engine in engines:
        of = f'model_name="{model}",engine="{engine}"'
        if probe:
            lines.append(f'vllm_nfp_state{{{of},state="steady"}} 1')
        for n, ratio in ((1, 1.0), (2, 1.0), (4, 1.02), (8, 2.5)) if curves else ():
            for module in ("model", "attention"):
                lines.append(
                    f'vllm_nfp_module_latency_seconds{{{of},module="{module}",batch_size="1",'
                    f'context="1024",positions="{n}"}} {one_seconds * ratio}'
                )
        for place, rate in enumerate(rates):
            lines.append(
                f'{server_drafts.ACCEPTED_PER_POSITION}{{{of},position="{place}"}} {rate * drafts}'
            )
        if rates:
            lines.append(f"{server_drafts.DRAFTS}{{{of}}} {drafts}")
            lines.append(f"{server_drafts.DRAFTED}{{{of}}} {drafts * drafted_each}")
    return "\n".join(lines) + "\n"


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Any:
    def show(text: str, version: str | None = "0.32.0") -> None:
        monkeypatch.setattr(fetching, "fetch", lambda _url: text)
        monkeypatch.setattr("vllm_nfp.draft.server.server_version", lambda _url: version)

    return show


def test_the_numbers_of_a_recorded_run(dense_profile: Profile) -> None:
    """Qwen3-8B's shape on an H100; docs/measured.md tables its NFP."""
    found = recommend(dense_profile, 0.7, contexts=[1024])
    rows = {row.batch_size_first: row for row in found.rows if row.basis == "measured"}
    assert [rows[b].free_draft_length for b in (1, 8, 32)] == [63, 15, 5]
    curve = {
        r.positions: r
        for r in dense_profile.curves
        if (r.module, r.batch_size, r.context) == ("model", 32, 1024)
    }
    best = max(
        sum(0.7**j for j in range(n)) / (1.0 if n == 1 else row.ratio) for n, row in curve.items()
    )
    assert rows[32].gain == pytest.approx(best, rel=0.01)
    assert rows[32].tokens_per_second is None  # eight of the model's 36 layers were timed
    assert rows[1].draft_length > rows[32].draft_length > 0


def test_acceptance_may_be_any_number_or_list_of_them(dense_profile: Profile) -> None:
    rows = recommend(dense_profile, [0.7, 0.5]).rows
    assert recommend(dense_profile, np.array([0.7, 0.5])).rows == rows
    same = recommend(dense_profile, float(np.float32(0.7))).rows
    assert recommend(dense_profile, np.float32(0.7)).rows == same
    counts = {"draft_lengths": np.array([1, 4]), "contexts": np.array([1024])}
    found = recommend(dense_profile, 0.7, **counts, max_batch_size=np.int64(8))
    json.dumps([found.to_dict(), found.speculative_config()])
    for wrong in ("abc", ["x"], None, [], {}, 10**400):
        with pytest.raises(AcceptanceError, match="acceptance"):
            recommend(dense_profile, wrong)  # type: ignore[arg-type]


def test_what_holds_no_step_times_is_refused() -> None:
    for wrong in (None, 5, [], ["x"]):
        with pytest.raises(SourceError, match="no curve of the whole step: give a profile"):
            recommend(wrong, 0.7)  # type: ignore[arg-type]


def test_it_is_public_and_gives_dicts_and_frames(profile_path: Path) -> None:
    found = vllm_nfp.recommend(profile_path, [0.9, 0.8, 0.5], max_batch_size=8)
    assert found.schedule.longest == 3
    assert json.loads(json.dumps(found.to_dict()))["schema"] == 1
    frame = found.to_dataframe()
    assert len(frame) == len(found.rows) == 3 * 3
    assert set(frame["draft_length"]) == {3}


def test_the_package_stays_light() -> None:
    code = (
        "import sys, vllm_nfp.draft, vllm_nfp.draft.recommend; "
        "assert not {'torch', 'vllm', 'pandas', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"epsilon": -0.1}, "epsilon must be between"),
        ({"slack": 0.9}, "slack must be between"),
        ({"max_draft_length": 1000}, "max_draft_length must be between 1 and 512, not 1000"),
        ({"max_batch_size": 0}, "max_batch_size must be between 1"),
        ({"max_batch_size": "8"}, "max_batch_size must be a whole number, as in 8, not '8'"),
        ({"max_draft_length": 2.5}, "max_draft_length must be a whole number"),
        ({"draft_lengths": [1.5]}, "draft_lengths must be a whole number"),
        ({"draft_lengths": [2, 300]}, "draft_lengths holds 300, which takes 301 positions, but"),
        ({"draft_lengths": [1, "a"]}, "draft_lengths must be a whole number, as in 8, not 'a'"),
        ({"draft_lengths": 4}, "draft_lengths must be a list"),
        ({"draft_lengths": [8], "max_draft_length": 4}, "holds 8, above max_draft_length, 4"),
        ({"epsilon": 10**400}, "epsilon must be between 0 and 1"),
        ({"epsilon": "x"}, "epsilon must be between 0 and 1 .*, not 'x'"),
        ({"cost": 0.1}, "cost must be a DraftCost"),
        ({"contexts": [5]}, "context 5 is not among those"),
    ],
)
def test_settings_out_of_bounds(
    settings: dict[str, Any], sentence: str, dense_profile: Profile
) -> None:
    with pytest.raises(RecommendError, match=sentence):
        recommend(dense_profile, 0.5, **settings)


def test_no_acceptance_and_no_curves_are_refused(dense_profile: Profile) -> None:
    with pytest.raises(AcceptanceError, match="acceptance is empty"):
        recommend(dense_profile, [])
    with pytest.raises(sources.SourceError, match="no curve of the whole step"):
        recommend([], 0.5)


def test_the_table_for_people(profile_path: Path) -> None:
    done = run(profile_path, "--acceptance", "0.8", "--max-batch-size", "64")
    assert done.exit_code == 0, done.output
    assert "qwen3-8b on NVIDIA H100 80GB HBM3: measured, inferred step times" in done.output
    said = " ".join(done.output.split())
    assert said.startswith("Serve K=20 up to B=1, 15 up to 8, 7 up to 64: +")
    parts = ("--speculative-config '{", "Draft length K [95 %", "Warning: the same", "Assumed:")
    places = [said.index(part) for part in parts]
    assert places == sorted(places), "verdict, setting, table, warnings, assumptions"
    assert "33-64" in said and "2-7*" in said
    assert "accepted with probability 0.8" in done.output
    assert "ngram lookup is free" in done.output
    lines = [line for line in done.output.splitlines() if "num_speculative_tokens" not in line]
    assert max(map(len, lines)) <= 80


def test_the_json(profile_path: Path) -> None:
    done = run(profile_path, "--acceptance", "0.8", "--json", "--draft-cost", "0.0001")
    values = json.loads(done.stdout)
    assert values["schema"] == 1
    assert values["source"]["vllm"] == "0.32.0"
    assert values["draft_cost"]["seconds_once"] == 0.0001
    assert values["speculative_config"]["method"] == "ngram"
    assert values["rows"][0]["batch_size_first"] == 1
    assert any("the same acceptance, 0.8, is assumed" in text for text in values["warnings"])
    assert "over no speculation" in values["verdict"][0]


def test_only_the_settings(profile_path: Path) -> None:
    done = run(
        profile_path, "--acceptance", "0.6", "--draft-method", "eagle3", "--draft-share", "0.04",
        "--draft-model", "heads/eagle3", "--max-draft-length", "4", "--speculative-config",
    )  # fmt: skip
    assert json.loads(done.stdout) == {
        "method": "eagle3",
        "model": "heads/eagle3",
        "num_speculative_tokens": 4,
    }


def test_drafts_of_their_own_weights_cost_by_the_token(profile_path: Path) -> None:
    flags = (profile_path, "--acceptance", "0.8", "--json")
    once = json.loads(run(*flags, "--draft-share", "0.1").stdout)
    each = json.loads(run(*flags, "--draft-method", "mtp", "--draft-share", "0.1").stdout)
    assert once["draft_cost"]["share_once"] == each["draft_cost"]["share_per_token"] == 0.1
    assert once["schedule"][0]["draft_length"] > each["schedule"][0]["draft_length"]
    assert each["rows"][0]["draft_ratio"] == pytest.approx(0.1 * each["rows"][0]["draft_length"])


def test_a_head_that_loses_everywhere_is_warned_of_and_gives_no_settings(
    profile_path: Path,
) -> None:
    flags = ("--acceptance", "0.1", "--draft-method", "mtp", "--draft-share", "0.5")
    told = json.loads(run(profile_path, *flags, "--json").stdout)
    assert told["speculative_config"] is None
    (warning,) = told["warnings"]
    assert "at batch sizes 1 to 32 speculation can be slower than none" in warning
    assert "(0.67x)" in warning or "(0.7" in warning
    refused = run(profile_path, *flags, "--speculative-config")
    assert refused.exit_code == 2
    assert "drafts pay at no batch size" in refused.stderr


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--speculative-config"], "--acceptance is needed: give a probability such as 0.8"),
        (["--acceptance", "1.2"], "--acceptance must be between 0 and 1, got 1.2"),
        (["--acceptance", "nan"], "--acceptance must be between 0 and 1, got nan"),
        (
            ["--acceptance-per-position", "0.9,2"],
            "--acceptance-per-position must be between 0 and 1, got 2",
        ),
        (["--acceptance-per-position", "0.9,x"], "holds 'x', which is not a number"),
        (["--acceptance-rates", "0.5,0.6"], "--acceptance-rates rise from 0.5 to 0.6"),
        (["--acceptance", "0.5", "--acceptance-rates", "0.5"], "give one of --acceptance"),
        (["--acceptance", "0.5", "--draft-method", "mtp"], "--draft-cost is needed for mtp"),
        (["--acceptance", "0.5", "--draft-cost", "-1"], "--draft-cost must be 0 or more, not -1"),
        (["--acceptance", "0.5", "--draft-cost", "1e308"], "--draft-cost must be at most 1e+06"),
        (["--acceptance", "0.5", "--draft-share", "1e308"], "--draft-share must be at most 1e+06"),
        (
            ["--acceptance", "0.5", "--draft-cost", "1", "--draft-share", "1"],
            "--draft-cost and --draft-share are both given",
        ),
        (["--acceptance", "0.5", "--contexts", "7"], "context 7 is not among those"),
        (["--acceptance", "0.5", "--max-batch-size", "0"], "--max-batch-size must be between 1"),
        (
            # It said that drafts pay at no batch size.
            ["--acceptance", "0.5", "--max-draft-length", "0"],
            "--max-draft-length must be between 1 and 512, not 0",
        ),
        (
            ["--acceptance", "0.5", "--draft-lengths", "4,300", "--speculative-config"],
            "--draft-lengths holds 300, which takes 301 positions",
        ),
        (
            ["--acceptance-per-position", "0.5,0.4", "--draft-lengths", "4"],
            "holds 4, but acceptance is known of 2 drafted tokens",
        ),
        (["--acceptance-per-position", ""], "give numbers as in 0.9,0.8,0.7"),
        (["--acceptance", "0.5", "--json", "--speculative-config"], "give --json or --spec"),
        (["--acceptance", "0.5", "--draft-model", "x"], "--draft-model is given, but ngram looks"),
        (["--acceptance", "0.5", "--assume-dense"], "--assume-dense needs --predicted"),
        (["--acceptance", "0.5", "--epsilon", "inf"], "epsilon must be between"),
        (["--acceptance", "0.5", "--hardware", "H200"], "--hardware needs --predicted"),
        (["--acceptance", "0", "--speculative-config"], "drafts pay at no batch size"),
        (
            ["--acceptance", "0.5", "--draft-method", "eagle", "--draft-share", "0.1",
             "--speculative-config"],
            "needs --draft-model PATH",
        ),
        (["--acceptance-from", "http://127.0.0.1:1"], "cannot be read"),
        (["--acceptance-from", "localhost:8000"], "is not a URL"),
    ],
)  # fmt: skip
def test_bad_flags(flags: list[str], sentence: str, profile_path: Path) -> None:
    assert sentence in refused(profile_path, *flags)


def test_sources_that_cannot_be(tmp_path: Path) -> None:
    assert "give one source" in refused("--acceptance", "0.5")
    assert "cannot be read" in refused(tmp_path / "none.json", "--acceptance", "0.5")
    said = refused("http://127.0.0.1:1", "--acceptance", "0.5")
    assert "cannot be read (Connection refused): is vllm serve --nfp-probe running there?" in said
    for address in ("", "localhost:8000", "ftp://server/x"):
        assert f"{address!r} is neither a file nor a URL" in refused(address, "--acceptance", "0.5")
    assert "is neither a file nor a URL" in refused(
        f"localhost:{'8' * 5000}", "--acceptance", "0.5"
    )
    assert "needs --hardware" in refused("--predicted", tmp_path, "--acceptance", "0.5")
    predicted = ("--predicted", tmp_path, "--acceptance", "0.5", "--hardware")
    assert "has no config.json" in refused(*predicted, "H100-SXM")
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    assert "is not in the catalogue" in refused(*predicted, "H999")
    assert "batch_size" in refused(*predicted, "H100-SXM", "--batch-sizes", "0")
    assert "--max-batch-size must be between 1 and 65536 with --predicted, not 70000" in refused(
        *predicted, "H100-SXM", "--max-batch-size", "70000"
    )
    assert "--contexts holds ''" in refused(*predicted, "H100-SXM", "--contexts", "")
    unknown = {**QWEN3_8B, "model_type": "unheard_of", "architectures": ["UnheardOfForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(unknown))
    assert "--assume-dense" in refused(*predicted, "H100-SXM")
    assert run(*predicted, "H100-SXM", "--assume-dense").exit_code == 0


def test_a_prediction_reaches_as_far_as_the_lengths_asked_for(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    flags = ("--predicted", tmp_path, "--hardware", "H100-SXM", "--acceptance", "0.99", "--json")
    found = json.loads(run(*flags, "--draft-lengths", "100", "--batch-sizes", "1").stdout)
    assert found["rows"][0]["draft_length"] == 100
    assert "--draft-lengths must be between 0 and 512" in refused(*flags, "--draft-lengths", "9999")


def test_a_path_that_holds_a_settings_name_is_shown_as_it_is(
    profile_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "slack" / "p.json"
    path.parent.mkdir()
    path.write_bytes(profile_path.read_bytes())
    assert f"of {path}: give" in refused(path, "--acceptance", "0.5", "--contexts", "7")


def test_empty_profiles_are_refused(dense_profile: Profile, tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    save_profile(path, dataclasses.replace(dense_profile, curves=(), boundaries=()))
    assert "is empty: its probe measured nothing" in refused(path, "--acceptance", "0.5")
    modules = tuple(row for row in dense_profile.curves if row.module != "model")
    save_profile(path, dataclasses.replace(dense_profile, curves=modules))
    assert "has no curve of the whole step (model), only of attention" in refused(
        path, "--acceptance", "0.5"
    )


def _of_vllm(profile: Profile, version: str, path: Path) -> Path:
    environment = dataclasses.replace(profile.environment, vllm=version)
    save_profile(path, dataclasses.replace(profile, environment=environment))
    return path


def test_a_vllm_without_draft_lengths_by_batch_size(dense_profile: Profile, tmp_path: Path) -> None:
    path = _of_vllm(dense_profile, "0.19.1", tmp_path / "old.json")
    text = refused(path, "--acceptance", "0.5", "--speculative-config")
    assert "vLLM 0.19.1 is not known to support draft lengths by batch size" in text
    assert "upgrade vLLM, or serve one num_speculative_tokens" in text
    values = json.loads(run(path, "--acceptance", "0.5", "--json").stdout)
    assert values["speculative_config"] is None
    assert len(values["warnings"]) == 1


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("0.32.0", None),
        ("0.33.1", None),
        ("0.29.0", "VLLM_USE_V2_MODEL_RUNNER=0"),
        ("0.40.0", "is newer than the releases known here (0.29 to 0.33)"),
        ("dev", "is not a known release"),
    ],
)
def test_other_releases_are_warned_of(
    version: str, told: str | None, dense_profile: Profile, tmp_path: Path
) -> None:
    path = _of_vllm(dense_profile, version, tmp_path / "p.json")
    done = run(path, "--acceptance", "0.5", "--speculative-config")
    assert done.exit_code == 0
    assert json.loads(done.stdout)["num_speculative_tokens"] > 0
    assert done.stderr == "" if told is None else told in done.stderr
    assert releases.draft_schedule_refusal(version) is None


def test_a_servers_controller_tells_what_a_draft_costs(served: Any) -> None:
    told = "".join(
        f'vllm_nfp_draft_token_seconds{{model_name="m",engine="0",batch_size="{b}"}} {seconds}\n'
        for b, seconds in ((1, 2e-4), (8, 3e-4), (32, 0.0), (64, 9e-4))
    )
    served(metrics() + told)
    values = json.loads(run(URL, "--draft-method", "eagle", "--json").stdout)
    assert values["draft_cost"]["seconds_per_token"] == pytest.approx(3e-4)
    assert values["draft_cost_by_batch"] == [[1, 2e-4], [8, 3e-4], [64, 9e-4]]
    assert any(
        "each drafted token takes 0.2 ms at B=1 and 0.9 ms at B=64 with eagle" in text
        for text in values["assumptions"]
    )
    given = json.loads(run(URL, "--draft-method", "eagle", "--draft-cost", "0.01", "--json").stdout)
    assert given["draft_cost"]["seconds_per_token"] == 0.01
    look_up = json.loads(run(URL, "--json").stdout)
    assert look_up["draft_cost"]["seconds_once"] == 0.0
    served(metrics())
    assert "--draft-cost is needed for eagle" in refused(URL, "--draft-method", "eagle")


def test_drafts_that_the_host_hides_cost_nothing(served: Any) -> None:
    """As on an H200 that waits for the host: a default server must get an answer."""
    told = "".join(
        f'{server_drafts.DRAFT_SECONDS}{{model_name="m",engine="0",batch_size="{b}"}} 0.0\n'
        for b in (1, 8, 32)
    )
    served(metrics() + told)
    values = json.loads(run(URL, "--draft-method", "eagle", "--json").stdout)
    assert values["draft_cost"]["seconds_per_token"] == 0.0
    assert "draft_cost_by_batch" not in values or values["draft_cost_by_batch"] == []
    assert any("made the server's steps no longer" in text for text in values["assumptions"])
    assert max(row["draft_length"] for row in values["rows"]) > 0
    free = json.loads(run(URL, "--draft-method", "eagle", "--draft-cost", "0", "--json").stdout)
    assert values["rows"] == free["rows"]
    assert not any("real steps" in text for text in values["warnings"])
    of = 'engine="0",batch_size="1",context="1024",positions="4"'
    real = f"vllm_nfp_steps_total{{{of}}} 100\nvllm_nfp_step_period_seconds{{{of}}} 0.0042\n"
    served(metrics() + told + real)
    values = json.loads(run(URL, "--draft-method", "eagle", "--json").stdout)
    assert any(
        "real steps with K=3 at B=1 L=1024 take 4.2 ms, of which 1.84 ms" in text
        for text in values["warnings"]
    )
    paid = json.loads(run(URL, "--draft-method", "eagle", "--draft-cost", "7e-4", "--json").stdout)
    assert not any("real steps" in text for text in paid["warnings"]), "drafts explain them"


def drafting(method: str, seconds: float | None) -> str:
    """What a server under control shows of how it drafts."""
    of = 'model_name="qwen3-8b",engine="0"'
    cost = (
        ""
        if seconds is None
        else f'{server_drafts.DRAFT_SECONDS}{{{of},batch_size="8"}} {seconds}\n'
    )
    return f'{server_drafts.DRAFT_CONTROL}{{{of},method="{method}"}} 1\n{cost}'


def test_a_servers_own_method_is_the_default(served: Any) -> None:
    served(metrics() + drafting("eagle3", 3e-4))
    values = json.loads(run(URL, "--draft-model", "head", "--json").stdout)
    assert values["draft_method"] == values["speculative_config"]["method"] == "eagle3"
    assert values["draft_cost"]["seconds_per_token"] == pytest.approx(3e-4)
    served(metrics() + drafting("ngram_gpu", 0.0))
    values = json.loads(run(URL, "--json").stdout)
    assert values["speculative_config"]["method"] == "ngram_gpu"
    assert values["warnings"] == []
    served(metrics() + drafting("medusa", 1e-4))
    assert "drafts with 'medusa'" in refused(URL)


def test_the_server_of_the_step_times_tells_how_it_drafts_if_that_of_acceptance_does_not(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    served(metrics())
    shown = {URL: metrics() + drafting("eagle3", 3e-4), "http://plain": metrics()}
    monkeypatch.setattr(fetching, "fetch", shown.__getitem__)
    values = json.loads(run(URL, "--acceptance-from", "http://plain", "--json").stdout)
    assert values["draft_method"] == "eagle3"
    assert values["draft_cost"]["seconds_per_token"] == pytest.approx(3e-4)


def test_engines_that_draft_otherwise_tell_no_cost(served: Any) -> None:
    two = drafting("ngram_gpu", 9e-4).replace('engine="0"', 'engine="1"')
    served(metrics() + drafting("eagle3", 3e-4) + two)
    assert json.loads(run(URL, "--json").stdout)["draft_method"] == "ngram"
    assert "--draft-cost is needed for eagle" in refused(URL, "--draft-method", "eagle3")


def test_the_cost_of_another_method_is_not_taken(served: Any) -> None:
    served(metrics() + drafting("ngram_gpu", 1e-3))
    assert "--draft-cost is needed for eagle" in refused(URL, "--draft-method", "eagle3")
    done = run(URL, "--draft-method", "eagle3", "--draft-share", "0.1", "--json")
    (warning,) = json.loads(done.stdout)["warnings"]
    assert warning == "acceptance was counted on drafts by 'ngram_gpu', not eagle3"
    given = run(URL, "--acceptance", "0.7", "--draft-method", "mtp", "--draft-share", "0", "--json")
    assert json.loads(given.stdout)["warnings"] == []
    assert json.loads(run(URL, "--draft-method", "ngram", "--json").stdout)["warnings"] == []


def test_a_cell_that_was_not_measured_is_inferred_and_named_so(
    dense_profile: Profile, tmp_path: Path
) -> None:
    longest = max(row.context for row in dense_profile.curves)
    path = tmp_path / "p.json"
    rows = [r for r in dense_profile.curves if r.context != longest or r.batch_size < 32]
    save_profile(path, dataclasses.replace(dense_profile, curves=tuple(rows), boundaries=()))
    found = json.loads(run(path, "--acceptance", "0.7", "--json").stdout)
    (row,) = (r for r in found["rows"] if (r["batch_size_first"], r["context"]) == (32, longest))
    last = found["schedule"][-1]
    assert (row["basis"], row["draft_length"]) == ("inferred", last["draft_length"])
    assert (last["batch_size_last"], last["draft_length"]) == (32, 7)


def test_without_acceptance_there_is_a_table_of_usual_ones(profile_path: Path) -> None:
    done = run(profile_path)
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "Count yours: serve with speculation" in said
    assert re.search(r"1024 1 6 \(1\.96x\) 14 \(3\.23x\) 42 \(9\.\d+x\)", said)
    assert "https://github.com/vllm-project/vllm/pull/24344" in said
    assert "Lengths of 8 and more are too long unless yours stays the same." in said
    assert "K? = predicted" not in said
    predicted = run("--predicted", "qwen3-8b", "--hardware", "H100-SXM", "--contexts", "1024")
    said = " ".join(predicted.output.split())
    assert re.search(r"1024 1 \d+\? \(1\.95x\)", said)
    assert "K? = predicted." in said
    values = json.loads(run(profile_path, "--json").stdout)
    assert [one["acceptance"]["beyond"] for one in values["by_acceptance"]] == [0.5, 0.7, 0.9]
    assert "acceptance is needed" in refused(profile_path, "--speculative-config")


def test_why_a_server_tells_no_acceptance_is_said_and_nothing_is_said_twice(
    served: Any, profile_path: Path
) -> None:
    served(metrics(drafts=0.0))
    said = " ".join(run(URL).output.split())
    assert "Why there is no single K: the server has counted no drafts yet" in said
    assert json.loads(run(profile_path, "--json").stdout)["reason"].startswith("acceptance is")
    said = " ".join(run(profile_path).output.split())
    assert "K depends on how often drafts are accepted" in said
    assert "no single K" not in said and "acceptance is needed" not in said


def test_the_usual_table_explains_each_of_its_marks(dense_profile: Profile, tmp_path: Path) -> None:
    """A server showed 31+?, and nothing said what + means."""
    path = tmp_path / "short.json"
    rows = tuple(row for row in dense_profile.curves if row.positions <= 4)
    save_profile(path, dataclasses.replace(dense_profile, curves=rows, boundaries=()))
    said = " ".join(run(path).output.split())
    assert "3+ (" in said
    assert "K+ = the longest that is known; more may be better." in said


def test_gains_are_over_what_runs(profile_path: Path, served: Any) -> None:
    flags = ("--acceptance-rates", "0.8,0.6,0.4,0.3")
    (row, *_), verdict = (
        json.loads(run(profile_path, *flags, "--running", "2", "--json").stdout)[name]
        for name in ("rows", "verdict")
    )
    tokens = 1 + 0.8 + 0.6
    assert row["gain_over_running"] == pytest.approx((tokens + 0.4 + 0.3) / tokens, rel=0.02)
    assert "over the K=2 that you run" in verdict[0]
    same = json.loads(run(profile_path, *flags, "--running", "4", "--json").stdout)
    assert same["verdict"][0].startswith("You run K=4; keep it at all batch sizes")
    assert "--running must be between 0 and" in refused(profile_path, *flags, "--running", "-1")
    # A server says itself what it runs: as many positions as it counts, or none.
    served(metrics())
    assert recommend(URL).demand.running == 3
    served(metrics(rates=()))
    assert recommend(URL, 0.5).demand.running == 0


def test_a_model_that_was_cut_says_so_first_and_promises_no_rate(
    dense_profile: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "p.json"
    save_profile(path, dense_profile)
    for flags in (("--acceptance", "0.7"), ()):
        output = run(path, *flags).output
        assert output.startswith("Only 8 of 36 layers were timed")
        assert "tok/s" not in output
    values = json.loads(run(path, "--acceptance", "0.7", "--json").stdout)
    assert {row["tokens_per_second"] for row in values["rows"]} == {None}


def of_cells(*cells: tuple[int, int]) -> str:
    """Steps of a server at more batch sizes and contexts than its first one."""
    first = metrics()
    return first + "".join(
        line.replace('batch_size="1",context="1024"', f'batch_size="{b}",context="{c}"') + "\n"
        for b, c in cells
        for line in first.splitlines()
        if line.startswith("vllm_nfp_module_latency_seconds")
    )  # fmt: skip


def test_what_does_not_fit_the_predicted_device_has_no_row() -> None:
    flags = ("--predicted", "qwen3-8b", "--hardware", "H100-SXM", "--batch-sizes", "1,64")
    done = run(*flags, "--contexts", "1024,16384", "--acceptance-rates", "0.8,0.6", "--json")
    values = json.loads(done.stdout)
    sizes = {(row["batch_size_last"], row["context"]) for row in values["rows"]}
    assert (64, 1024) in sizes
    assert (64, 16384) not in sizes
    assert any("Does not fit at B = 64, L = 16384" in text for text in values["warnings"])
    # A model that fits nowhere still gets its table, with the warning.
    none = json.loads(run(
        "--predicted", "llama-3.3-70b", "--hardware", "H100-SXM", "--batch-sizes", "1",
        "--contexts", "1024", "--acceptance", "0.5", "--json",
    ).stdout)  # fmt: skip
    assert none["rows"]
    assert any("Does not fit" in text for text in none["warnings"])
    assert none["verdict"][0].startswith("llama-3.3-70b does not fit on one H100-SXM rank at any")
    assert "does not fit" not in values["verdict"][0]


def test_what_does_not_fit_a_server_has_no_row_but_one_line(served: Any) -> None:
    served(of_cells((2, 1024), (4, 1024), (8, 1024), (1, 4096), (2, 4096)))
    found = recommend(URL)
    assert {(row.batch_size_first, row.context) for row in found.rows} >= {(8, 1024), (2, 4096)}
    assert max(row.batch_size_last for row in found.rows if row.context == 4096) == 2
    assert found.schedule.ranges[-1].batch_size_last == 8
    assert found.warnings == ()
    shown = " ".join(run(URL).output.split())
    assert "No rows for B > 2 at L=4096: the next reported batch size does not fit" in shown
    served(of_cells((2, 1024)))
    assert "No rows" not in run(URL).output


def test_a_servers_profile_leaves_out_what_it_says_does_not_fit(
    dense_profile: Profile, tmp_path: Path
) -> None:
    longest = max(row.context for row in dense_profile.curves)
    rows = [r for r in dense_profile.curves if r.context != longest or r.batch_size < 32]
    cut = dataclasses.replace(dense_profile, curves=tuple(rows), boundaries=())
    told = {f"B=32 L={longest}": "the KV cache is too small"}

    def cells(wanted: int, skipped: dict[str, str]) -> set[tuple[int, int]]:
        probe = dataclasses.replace(cut.probe, wanted_samples=wanted)
        run_of = dataclasses.replace(cut.run, skipped_cells=skipped)
        profile = dataclasses.replace(cut, probe=probe, run=run_of)
        rows = recommend(profile, 0.7).rows
        return {(row.batch_size_first, row.context) for row in rows}

    assert (32, longest) not in cells(0, told)
    assert (32, longest) in cells(0, {}), "it was not measured, and is inferred"
    assert (32, longest) in cells(6, told), "a measurement skips what cannot be probed as well"


def test_a_narrow_terminal_cuts_no_number_off(
    profile_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    flags = ("--acceptance", "0.95", "--max-batch-size", "1048576")
    assert "\N{HORIZONTAL ELLIPSIS}" not in run(profile_path, *flags).output


def test_a_prediction(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    done = run(
        "--predicted", tmp_path, "--hardware", "H100-SXM", "--acceptance", "0.8", "--contexts",
        "2048", "--max-batch-size", "100", "--draft-cost", "0.0001", "--draft-method", "mtp",
        "--json",
    )  # fmt: skip
    values = json.loads(done.stdout)
    assert values["source"]["kind"] == "prediction"
    assert {row["context"] for row in values["rows"]} == {2048}
    assert values["schedule"][-1]["batch_size_last"] == 100
    lengths = [entry["draft_length"] for entry in values["schedule"]]
    assert lengths == sorted(lengths, reverse=True), "a dense model's positions grow dearer"
    assert "unknown" not in {row["basis"] for row in values["rows"]}


def test_predictions_are_taken_in_python(tmp_path: Path) -> None:
    found = vllm_nfp.predict(QWEN3_8B, "H100-SXM", [1, 8], [1024], max_positions=16)
    assert recommend(found, 0.7).rows[0].draft_length > 0
    flags = ("--hardware", "H100-SXM", "--acceptance", "0.7", "--contexts", "1024", "--json")
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    one = json.loads(run("--predicted", tmp_path, *flags).stdout)["rows"][0]
    two = json.loads(run("--predicted", tmp_path, *flags, "-tp", "2").stdout)["rows"][0]
    assert two["tokens_per_second_without"] > one["tokens_per_second_without"]


def test_a_live_server(served: Any) -> None:
    served(metrics())
    done = run(URL, "--json")
    values = json.loads(done.stdout)
    assert values["source"] == {
        "kind": "server", "name": URL, "model": "qwen3-8b", "device": None, "vllm": "0.32.0",
        "cut_layers": None,
    }  # fmt: skip
    assert values["acceptance"]["per_position"] == pytest.approx([0.9, 2 / 3, 0.5])
    (row,) = values["rows"]
    assert row["draft_length"] == 3
    assert row["at_limit"], "more might be accepted: nothing is known of a fourth draft"
    assert row["expected_tokens"] == pytest.approx(2.8)
    assert row["gain"] == pytest.approx(2.8 / 1.02)
    assert row["tokens_per_second"] == pytest.approx(2.8 / 1.02 / 0.0018)
    assert values["warnings"] == []
    extended = json.loads(run(URL, "--json", "--extend-acceptance").stdout)
    assert extended["acceptance"]["beyond"] == pytest.approx(0.5)


def test_of_several_engines_the_slowest_counts(served: Any) -> None:
    one, two = metrics(one_seconds=0.002), metrics(one_seconds=0.003, engines=("1",))
    served(one + two)
    done = run(URL, "--acceptance", "0.5", "--json")
    values = json.loads(done.stdout)
    assert values["rows"][0]["tokens_per_second_without"] == pytest.approx(1 / 0.003)
    assert "has 2 engines" in values["warnings"][0]


@pytest.mark.parametrize(("scheduled", "told"), [(700.0, True), (0.0, False)])
def test_a_server_that_verifies_adaptively_drafts_all_in_each_step(
    served: Any, scheduled: float, told: bool
) -> None:
    of = 'model_name="qwen3-8b",engine="0"'
    counted = "".join(
        f"vllm_nfp_verification_{name}_drafts_total{{{of}}} {value}\n"
        for name, value in (("scheduled", scheduled), ("admitted", 0.3 * scheduled))
    )
    served(metrics() + counted)
    warnings = json.loads(run(URL, "--json").stdout)["warnings"]
    found = [w for w in warnings if "each step drafts all of num_speculative_tokens" in w]
    assert len(found) == told
    assert all("30% of the drafted tokens were verified" in w for w in found)


@pytest.mark.parametrize(
    ("text", "flags", "sentence"),
    [
        (metrics(probe=False), [], "has no NFP probe: start the server with --nfp-probe"),
        (metrics(curves=False), [], "has measured no step yet"),
        (
            metrics(rates=()),
            ["--speculative-config"],
            "counts no drafts (it has no --speculative-config)",
        ),
        (metrics(drafts=0.0), ["--speculative-config"], "has counted no drafts yet"),
        (metrics(rates=(0.3, 0.9)), [], "contradict each other (90 tokens accepted after 30)"),
        (metrics(rates=(1.3,)), [], "contradict each other (130 tokens accepted after 100)"),
        (metrics().replace('batch_size="1"', 'batch_size="0"'), [], "a batch size outside 1 to"),
        (metrics().replace('batch_size="1"', 'batch_size="9999999999"'), [], "outside 1 to"),
        (metrics().replace('positions="8"', 'positions="9999999999"'), [], "9999999999 positions"),
        (metrics().replace('model_name="qwen3-8b",', ""), [], "lack the label 'model_name'"),
        ('vllm_nfp_state{x="1" 1', ["--acceptance", "0.5"], "not in Prometheus' text format"),
    ],
)
def test_servers_that_cannot_be_used(
    text: str, flags: list[str], sentence: str, served: Any
) -> None:
    served(text)
    assert sentence in refused(URL, *flags)


def test_drafts_shorter_than_configured_are_told(served: Any) -> None:
    served(metrics(drafted_each=1.5))
    (warning,) = json.loads(run(URL, "--json").stdout)["warnings"]
    assert "had 1.50 tokens on average, not 3" in warning


def test_a_profile_of_another_model_or_gpu_is_warned_of(served: Any, profile_path: Path) -> None:
    def warnings() -> list[str]:
        done = run(profile_path, "--acceptance-from", URL, "--json")
        found: list[str] = json.loads(done.stdout)["warnings"]
        return found

    served(metrics())
    assert warnings() == []
    served(metrics(model="llama", probe=False, curves=False))
    (other_model,) = warnings()
    assert "is of the model qwen3-8b, but the server serves llama" in other_model
    served(metrics(one_seconds=0.004))
    (other_gpu,) = warnings()
    assert "takes 1.8 ms in" in other_gpu
    assert "4 ms on the server, so the GPU, vLLM or model differs" in other_gpu


def test_a_url_works_in_python(served: Any) -> None:
    served(metrics())
    found = recommend(URL, 0.5, cost=DraftCost(share_once=0.01))
    assert found.source.kind == "server"
    assert found.schedule.longest == 3


@pytest.mark.parametrize(
    ("flags", "lookup"),
    [
        (("--acceptance", "0.8", "--max-batch-size", "8"), [20, *[15] * 15]),
        (
            ("--acceptance", "0.5", "--draft-share", "0.3", "--max-draft-length", "3"),
            [3] * 16,
        ),
    ],
)
def test_vllm_reads_the_settings(
    flags: tuple[str, ...], lookup: list[int], profile_path: Path
) -> None:
    """vLLM's own validation and its scheduler's look-up."""
    settings = json.loads(run(profile_path, *flags, "--speculative-config").stdout)
    config = pytest.importorskip("vllm.config.speculative").SpeculativeConfig(**settings)
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    assert config.uses_dynamic_speculative_decoding() == (len(set(lookup)) > 1)
    assert config.num_speculative_tokens == max(lookup)
    if len(set(lookup)) == 1:
        return
    dense = build_dynamic_sd_schedule_lookup(
        config.num_speculative_tokens_per_batch_size, len(lookup), config.num_speculative_tokens
    )
    assert dense[1:] == lookup


def without_graphs(profile: Profile, beyond: int, host_seconds: float) -> Profile:
    """Steps of more tokens, and no others, ran without a CUDA graph."""
    rows = tuple(
        dataclasses.replace(row, execution="none", seconds_upper=host_seconds)
        if row.module == "model" and row.batch_size * row.positions > beyond
        else dataclasses.replace(row, execution="full")
        for row in profile.curves
    )
    return dataclasses.replace(profile, curves=rows)


def all_in_graphs(profile: Profile) -> Profile:
    return without_graphs(profile, 1 << 30, 0.0)


def test_steps_without_a_graph_take_what_the_host_needs_at_least(dense_profile: Profile) -> None:
    wide = without_graphs(dense_profile, 128, 30e-3)
    graphed = all_in_graphs(dense_profile)
    before, after = (sources.from_profile(profile).curves for profile in (graphed, wide))
    edges = {curve.batch_size: curve.without_graph_from for curve in after}
    assert edges[1] is None
    assert edges[32] is not None
    assert edges[32] > 4
    for one, other in zip(before, after, strict=True):
        for (n, was), (_, ratio) in zip(one.points, other.points, strict=True):
            host = sources.STEP_OVER_LAUNCH * 30e-3 if other.batch_size * n > 128 else 0.0
            assert ratio == pytest.approx(max(was, host / other.seconds_at_one))
    found = {row.batch_size_first: row for row in recommend(wide, 0.9).rows}
    assert found[32].draft_length < 4, "the host takes ten times as long as the step"


def test_no_more_than_the_smallest_upper_end_is_taken_for_the_hosts(dense_profile: Profile) -> None:
    rows = list(without_graphs(dense_profile, 128, 30e-3).curves)
    place = next(i for i, row in enumerate(rows) if row.execution == "none")
    rows[place] = dataclasses.replace(rows[place], seconds_upper=None)  # too few samples to tell
    place = next(i for i, row in enumerate(rows) if row.seconds_upper == 30e-3)
    rows[place] = dataclasses.replace(rows[place], seconds_upper=1e-6)
    assert [c.points for c in sources.curves_of_rows(rows)] == [
        c.points for c in sources.from_profile(all_in_graphs(dense_profile)).curves
    ]


def test_an_engine_without_graphs_is_taken_as_it_is(dense_profile: Profile) -> None:
    rows = [dataclasses.replace(row, execution="none") for row in dense_profile.curves]
    curves = sources.curves_of_rows(rows)
    assert curves == sources.from_profile(all_in_graphs(dense_profile)).curves
    assert all(curve.without_graph_from is None for curve in curves)


def test_the_edge_of_the_graphs_is_warned_of_where_it_bounds_the_lengths(
    dense_profile: Profile, tmp_path: Path
) -> None:
    path = tmp_path / "profile.json"
    save_profile(path, without_graphs(dense_profile, 128, 30e-3))
    reached = run(path, "--acceptance", "0.9").output
    assert "max_cudagraph_capture_size" in reached
    assert "without a CUDA graph" in reached
    far = run(path, "--acceptance", "0.9", "--max-draft-length", "2").output
    assert "CUDA graph" not in far


def test_a_server_tells_where_its_graphs_end(served: Any) -> None:
    ways = "".join(
        f'vllm_nfp_execution_info{{model_name="qwen3-8b",engine="0",module="model",'
        f'batch_size="1",context="1024",positions="{n}",execution="{way}"}} 1\n'
        for n, way in ((1, "full"), (2, "full"), (4, "none"), (8, "none"))
    )
    served(metrics() + ways)
    (curve,) = from_samples(scrape.read_samples(fetching.fetch(URL)), URL).curves
    assert curve.without_graph_from == 4
    assert "from B=1 with K=3 on" in run(URL, "--acceptance", "0.9").output
    served(metrics() + ways.replace('"full"', '"none"'))
    (curve,) = from_samples(scrape.read_samples(fetching.fetch(URL)), URL).curves
    assert curve.without_graph_from is None


def test_lengths_are_chosen_from_the_given_ones(profile_path: Path) -> None:
    done = run(profile_path, "--acceptance", "0.7", "--draft-lengths", "0,2,5,9", "--json")
    found = json.loads(done.output)
    assert found["draft_lengths"] == [0, 2, 5, 9]
    chosen = {row["draft_length"] for row in found["rows"]}
    assert chosen <= {0, 2, 5, 9}
    assert len(chosen) > 1
    assert {entry["draft_length"] for entry in found["schedule"]} <= {0, 2, 5, 9}
    assert not any(row["at_limit"] for row in found["rows"] if row["draft_length"] == 9)
    assert "--draft-lengths must be between 0 and 512, not 600" in refused(
        profile_path, "--acceptance", "0.9", "--draft-lengths", "2,600"
    )
    assert "length above 0" in refused(profile_path, "--acceptance", "0.9", "--draft-lengths", "0")
    assert "--draft-lengths holds 'x'" in refused(
        profile_path, "--acceptance", "0.9", "--draft-lengths", "x"
    )


def live(engine: str, batch_size: int, ratios: dict[int, tuple[float, str]]) -> str:
    """What a server says of its last step."""
    of = f'model_name="qwen3-8b",engine="{engine}"'
    lines = [
        f"vllm_nfp_live_batch_size{{{of}}} {batch_size}",
        f"vllm_nfp_live_context{{{of}}} 3571",
        f"vllm_nfp_live_step_seconds{{{of}}} 0.002",
    ]
    for n, (ratio, basis) in ratios.items():
        lines += [
            f'vllm_nfp_live_step_time_ratio{{{of},positions="{n}"}} {ratio}',
            f'vllm_nfp_live_step_time_ratio_lower{{{of},positions="{n}"}} {ratio * 0.9}',
            f'vllm_nfp_live_step_time_ratio_upper{{{of},positions="{n}"}} {ratio * 1.1}',
            f'vllm_nfp_live_step_time_ratio_basis{{{of},positions="{n}",basis="{basis}"}} 1',
        ]
    return "\n".join(lines) + "\n"


def test_live_traffic_has_an_answer_of_its_own(served: Any) -> None:
    first = live("0", 7, {2: (1.0, "measured"), 4: (1.1, "inferred"), 8: (3.0, "predicted")})
    second = live("1", 60, {2: (1.9, "predicted"), 4: (3.0, "predicted")})
    served(metrics(engines=("0", "1")) + first + second)
    found = recommend(URL, 0.8)
    assert [(row.batch_size_first, row.context) for row in found.live] == [(7, 3571), (60, 3571)]
    assert [(row.draft_length, row.basis) for row in found.live] == [
        (3, "inferred"), (0, "predicted")
    ]  # fmt: skip
    row = found.live[0]
    assert row.gain == pytest.approx(2.952 / 1.1)
    assert row.gain_lower == pytest.approx(row.gain / 1.1)
    assert row.gain_upper == pytest.approx(row.expected_tokens), "no more than a step's tokens"
    shown = " ".join(run(URL, "--acceptance", "0.8").output.split())
    assert "You run K=3; keep it (live traffic: B=7, L=3571, inferred; +168 % [144, 195]" in shown
    assert "No speculation (K=0) would give" in shown


def test_a_length_of_draft_control_that_seems_to_lose_is_not_said_to_be_kept(served: Any) -> None:
    """It said: keep it; -27 % over no speculation. Control had not tried that yet."""
    from vllm_nfp.draft.live.steps import cell_of

    batch_size, context = cell_of(7, 3571)
    of = 'model_name="qwen3-8b",engine="0"'
    served(
        metrics(engines=("0",))
        + live("0", 7, {2: (1.9, "measured"), 4: (4.0, "measured")})
        + f"vllm_nfp_live_draft_length{{{of}}} 3\n"
        + f'vllm_nfp_draft_control_length{{{of},batch_size="{batch_size}",context="{context}",'
        + 'reason="kept"} 3\n'
    )
    (said,) = recommend(URL, 0.8).verdict
    assert said.startswith(
        "You run K=3, the best that draft control has tried here so far (live traffic: B=7, "
        "L=3571; estimated -26 % ["
    )
    assert said.endswith("over no speculation)")


@pytest.mark.parametrize("wrong", ['basis="sure"', 'positions="-2"', 'engine="9",positions="2"'])
def test_a_live_curve_that_cannot_be_is_refused_or_left_out(served: Any, wrong: str) -> None:
    text = live("0", 7, {2: (1.0, "measured")})
    name = wrong.rpartition(",")[2].partition("=")[0]
    if name == "positions" and "engine" in wrong:
        text = text.replace('engine="0",positions="2"', wrong)
        served(metrics() + text)
        assert recommend(URL, 0.8).live == ()
        return
    old = 'basis="measured"' if name == "basis" else 'positions="2"'
    served(metrics() + text.replace(old, wrong))
    with pytest.raises(SourceError, match="cannot be used"):
        recommend(URL, 0.8)


def test_what_the_host_needs_is_told_by_measured_steps_alone(dense_profile: Profile) -> None:
    """A predicted step without a CUDA graph holds the predicted launches already."""

    def ratio(basis: Basis) -> float:
        cell, one = (1, 1024), 0.001
        rows = [
            CurvePoint(
                Module.MODEL, *cell, n, 1, one * r, r, 0.5 * r, 4.0 * r,
                "full" if n < 8 else "none", 0.5 * one * r, 4.0 * one * r, of,
            )
            for n, r, of in ((1, 1.0, Basis.MEASURED), (4, 1.1, basis), (8, 2.0, basis))
        ]  # fmt: skip
        (curve,) = sources.curves_of_rows(rows)
        assert curve.without_graph_from == 8
        return curve.ratio(8)

    assert ratio(Basis.PREDICTED) == 2.0
    assert ratio(Basis.INFERRED) == ratio(Basis.MEASURED) == sources.STEP_OVER_LAUNCH * 8.0
