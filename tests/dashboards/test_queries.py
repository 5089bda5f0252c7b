"""Every query of every panel and rule, run by a real Prometheus that scrapes recorded runs."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from panels import RULES, Answered, ask, choose, dashboards, fill, rules
from recorded import Recorded, recorded_snapshot, serving

from dashboards.local_stack.prometheus import Prometheus, PrometheusError, running_prometheus

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from serving import wait_for

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed (apt: prometheus)"
)
DASHBOARDS = dashboards()
SECONDS = 14
"""Scrapes, one a second, that the queries look back on: enough for rates, and for the medians over
minutes, which look every 10 s."""
SCRAPES = 11
"""Of those, as many as there must have been; a busy machine misses some."""


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """Has scraped a dense and an MoE server, each as one of the H100 runs ended."""
    dense, moe = (tmp_path_factory.mktemp(kind) for kind in ("dense", "moe"))
    with (
        serving(Recorded(recorded_snapshot("dense", dense), dense)) as first,
        serving(Recorded(recorded_snapshot("moe", moe), moe)) as second,
        running_prometheus(
            tmp_path_factory.mktemp("prometheus"),
            [urlsplit(url).netloc for url in (first, second)],
            RULES,
        ) as running,
    ):
        wait_for(lambda: _scrapes(running) >= SCRAPES and _rates(running) == 2)
        yield running


def _scrapes(prometheus: Prometheus) -> int:
    """Scrapes of the servers that went well, of the one with fewer, in the time looked back on."""
    found = prometheus.now(f"sum_over_time(up[{SECONDS}s])")
    return min((int(series.points[-1][1]) for series in found), default=0)


def asked(page: Any, prometheus: Prometheus, values: dict[str, str]) -> dict[str, Answered]:
    """Each panel's answers by its title, at a moment at which both servers had been scraped well.

    A scrape that takes longer than its second, on a busy machine, ends all series of its server.
    """
    found: dict[str, Answered] = {}

    def answered() -> bool:
        found.update({a.panel.title: a for a in ask(page, prometheus, values, seconds=SECONDS)})
        return _all_up(prometheus)

    wait_for(lambda: _all_up(prometheus) and answered())
    return found


def _all_up(prometheus: Prometheus) -> bool:
    found = prometheus.now("up")
    return bool(found) and all(series.points[-1][1] == 1 for series in found)


def _rates(prometheus: Prometheus) -> int:
    """Servers whose drafts have a rate, which the rules have recorded."""
    return len(prometheus.now("engine:vllm_spec_decode_draft_length:rate5m"))


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_of_every_panel_returns_data(name: str, prometheus: Prometheus) -> None:
    found: dict[tuple[str, str], bool] = {}
    # No model has both dense and expert blocks; layers have times of modules, not of the model.
    for model in ("model-dense", "model-moe"):
        for module in ("model", "attention"):
            values = choose(DASHBOARDS[name], prometheus, model_name=model, module=module)
            assert values["epsilon"] == "0.1"
            for answered in ask(DASHBOARDS[name], prometheus, values, seconds=SECONDS):
                for letter in answered.answers:
                    key = (answered.panel.title, letter)
                    found[key] = found.get(key, False) or letter not in answered.empty
    assert [key for key, has_data in found.items() if not has_data] == []


def test_panels_show_the_numbers_of_the_run(prometheus: Prometheus) -> None:
    """Qwen3-8B's shape on an H100 at epsilon 0.1, as docs/measured.md tables it."""
    page = DASHBOARDS["nfp-overview"]
    values = choose(page, prometheus, model_name="model-dense", context="4096")
    by_title = asked(page, prometheus, values)

    def one(title: str, letter: str = "A") -> float:
        (series,) = by_title[title].answers[letter]
        return series.points[-1][1]

    # The live step, 6 sequences of 4000 tokens and 4 positions, is filed under B=8, L=4096.
    assert one("Free positions") == 16
    assert one("Positions in use") == 4
    assert one("Free tokens left") == 6 * (16 - 4)
    assert one("Probe state") == 2, "steady"
    assert one("Basis of the free positions") == 1, "inferred"
    assert one("Draft length that runs") == 3
    assert one("Recommended draft length") == 3
    assert one("Gain over what runs") == one("Gain, at least") == 0.0, "keep what runs"
    assert one("Basis of the recommendation") == 0, "measured"
    bases = _by_labels(by_title["What they rest on"], "module", "batch_size", "basis")
    assert bases["dense_ffn", "32", "inferred"] == 1
    live = {
        s.labels.get("module", ""): s
        for s in by_title["Free positions where traffic is"].answers["C"]
    }
    assert live["model"].points[-1][1] == 16
    assert (
        one("Free positions where traffic is", "A")
        >= 16
        >= one("Free positions where traffic is", "B")
    )
    table = _by_labels(by_title["Free positions by module and batch size"], "module", "batch_size")
    assert table["dense_ffn", "32"] == 4
    assert table["attention", "8"] == 12
    assert table["model", "1"] == 64
    idle = _by_labels(by_title["Estimated, predicted and idle-compute"], "cell", letter="C")
    assert idle["dense_ffn B=32",] == 9
    assert one("Tokens per step: drafted and accepted", "A") == pytest.approx(3)
    assert one("Tokens per step: drafted and accepted", "B") == pytest.approx(1.8)
    # Of each 10 drafts 9, 6 and 3 had their first, second and third token accepted. Of a fourth
    # nothing is known.
    for letter, draft_length in zip("ABCD", (3, 3, 15, 3), strict=True):
        assert one("Draft length: runs and recommended", letter) == draft_length
    assert one("Overhead and budget", "B") == 0.5


def test_one_free_position_is_red_only_where_drafts_lose(prometheus: Prometheus) -> None:
    """The MoE model has one free position and runs its recommended length beyond it."""
    page = DASHBOARDS["nfp-overview"]
    values = choose(page, prometheus, model_name="model-moe", context="4096")
    by_title = asked(page, prometheus, values)
    panel = by_title["Free positions"]
    ((free,), losing) = panel.answers["A"], panel.answers["B"]
    assert free.points[-1][1] == 1
    assert losing == []
    assert [target.legend for target in panel.panel.targets] == ["free", "free, and drafts lose"]
    (override,) = panel.panel.raw["fieldConfig"]["overrides"]
    assert override["matcher"]["options"] == "free, and drafts lose"
    # Its query as if the recommended length were 0, and surely better.
    lost = re.sub(
        r"vllm_nfp_live_recommended_draft_length\{", "0 * \\g<0>", panel.panel.targets[1].expr
    )
    lost = re.sub(r"vllm_nfp_live_draft_gain_ratio_lower\{", "2 * \\g<0>", lost)
    assert [s.points[-1][1] for s in prometheus.now(fill(lost, values))] == [1]
    assert prometheus.now(fill(panel.panel.targets[1].expr, values)) == []


def test_the_fleet_shows_models_by_gpu_and_their_servers(prometheus: Prometheus) -> None:
    page = DASHBOARDS["nfp-fleet"]
    values = choose(page, prometheus)
    by_title = asked(page, prometheus, values)
    free = _by_labels(by_title["Models and GPUs"], "model_name", "device", letter="B")
    assert free == {
        ("model-dense", "NVIDIA H100 80GB HBM3"): 16,
        ("model-moe", "NVIDIA H100 80GB HBM3"): 1,
    }
    servers = by_title["Servers"].answers["B"]
    assert {s.labels["model_name"]: s.points[-1][1] for s in servers} == {
        "model-dense": 3,
        "model-moe": 3,
    }
    assert all("cluster" not in series.labels for series in servers)
    (count,) = by_title["Engines with a probe"].answers["A"]
    assert count.points[-1][1] == 2
    (sure,) = by_title["Engines with a sure gain"].answers["A"]
    assert sure.points[-1][1] == 0


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_the_docs_picture_of_the_fleet_can_be_made(prometheus: Prometheus, tmp_path: Path) -> None:
    from preview import draw

    page = DASHBOARDS["nfp-fleet"]
    values = choose(page, prometheus)
    answers = list(ask(page, prometheus, values, seconds=SECONDS))
    draw(tmp_path, page, values, answers, SECONDS)


def test_restarts_of_other_targets_are_not_marked(prometheus: Prometheus) -> None:
    """Every target of a Prometheus has a start time: here only one server is chosen."""
    page = DASHBOARDS["nfp-overview"]
    values = choose(page, prometheus, model_name="model-moe")
    (expr,) = [
        mark["expr"] for mark in page["annotations"]["list"] if mark["name"] == "Server restarts"
    ]
    assert prometheus.now(fill(expr, values)) == [], "none has restarted"
    marked = prometheus.now(fill(expr.replace("> 0", ">= 0"), values))
    everywhere = prometheus.now("changes(process_start_time_seconds[2m]) >= 0")
    assert (len(marked), len(everywhere)) == (1, 2)


def test_the_deep_dive_shows_the_curve_of_the_run(prometheus: Prometheus) -> None:
    page = DASHBOARDS["nfp-deep-dive"]
    values = choose(page, prometheus, model_name="model-dense", context="1024", batch_size="32")
    by_title = asked(page, prometheus, values)
    ratios = _by_labels(by_title["Time over that of one position"], "positions", letter="F")
    assert ratios["1",] == 1.0
    assert ratios["6",] < 1.1 < ratios["8",], "NFP is 6"
    limit = _by_labels(by_title["Time over that of one position"], "positions", letter="G")
    assert set(limit) == set(ratios)
    assert set(limit.values()) == {1.1}
    ends = [
        _by_labels(by_title["Time over that of one position"], "positions", letter=letter)
        for letter in "HI"
    ]
    # The ratio of pairs, which the interval is of; the curve's is that of medians.
    assert ends[0]["8",] < ends[1]["8",]
    assert "1" not in {positions for (positions,) in ends[0]}
    basis = _by_labels(
        by_title["All estimates at the tolerance"], "module", "batch_size", "context", "basis",
        letter="H",
    )  # fmt: skip
    assert basis["model", "32", "16384", "predicted"] == 1


def test_the_deep_dive_shows_which_experts_steps_reach(prometheus: Prometheus) -> None:
    page = DASHBOARDS["nfp-deep-dive"]
    by_title = asked(page, prometheus, choose(page, prometheus, model_name="model-moe"))
    active = by_title["Active experts by tokens of a step"]
    counted, uniform = (_by_labels(active, "tokens", letter=letter) for letter in "AB")
    assert (counted["64",], uniform["64",]) == (92.0, 125.9)
    (skew,) = by_title["Skew of the routing"].answers["A"]
    assert skew.points[-1][1] == 0.6


def test_modules_without_a_context_have_curves_at_any_context(prometheus: Prometheus) -> None:
    page = DASHBOARDS["nfp-deep-dive"]
    for context in ("1024", "16384"):
        values = choose(page, prometheus, model_name="model-dense", context=context, batch_size="8")
        by_title = asked(page, prometheus, values)
        ffn = _by_labels(by_title["Time by positions"], "positions", letter="C")
        assert ffn["8",] >= ffn["1",] > 0.0
        values = {**values, "module": "dense_ffn"}
        by_title = asked(page, prometheus, values)
        assert by_title["Pairs of samples at each point of $module"].answers["A"]


def test_rules_evaluate_and_record(prometheus: Prometheus) -> None:
    for rule in prometheus.rules():
        assert rule["health"] == "ok", rule
    predicted = "engine:vllm_nfp_live_predicted:ratio"  # alerts.test.yml tests its values
    recorded = {rule["record"] for rule in rules() if "record" in rule} - {predicted}
    wait_for(lambda: all(map(prometheus.now, recorded)), what=f"all of {recorded}")
    # The MoE model has one free position there and runs four, which is its recommended length.
    wait_for(lambda: _alerts(prometheus) == [])
    assert not prometheus.now(predicted), "nothing where live traffic is was only predicted"


def test_a_query_that_prometheus_refuses_is_named(prometheus: Prometheus) -> None:
    with pytest.raises(PrometheusError, match="parse error"):
        prometheus.now("vllm_nfp_positions{")


def _alerts(prometheus: Prometheus) -> list[tuple[str, str]]:
    labels = [alert["labels"] for alert in prometheus.alerts()]
    return [(of["alertname"], of.get("model_name", "")) for of in labels]


def _by_labels(answered: Answered, *labels: str, letter: str = "A") -> dict[tuple[str, ...], float]:
    return {
        tuple(series.labels[label] for label in labels): series.points[-1][1]
        for series in answered.answers[letter]
    }
