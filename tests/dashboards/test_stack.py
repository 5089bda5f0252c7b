"""A real server with the probe and drafts, scraped by a real Prometheus, read by our tools."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner
from panels import RULES, ask, choose, dashboards, metrics_in, panels, rules

from dashboards.local_stack.__main__ import DRAFTS
from dashboards.local_stack.prometheus import Prometheus, running_prometheus
from vllm_nfp.cli import main
from vllm_nfp.start.requests import Load

sys.path.insert(0, str(Path(__file__).parents[1] / "engine"))
from serving import Running, server, wait_for

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(
        shutil.which("prometheus") is None, reason="prometheus is not installed (apt: prometheus)"
    ),
]
DASHBOARDS = dashboards()
LOAD_SECONDS = 40.0
"""What the queries look back on."""
PROBE = json.dumps(
    {
        "batch_sizes": [1, 4, 8],
        "contexts": [64, 256],
        "publish_seconds": 0.5,
        "min_samples": 4,
        "overhead_budget": 0.5,
        "capture_seconds": 2.0,
        "layer_histograms": True,
    }
)
WITHOUT_DATA = {
    ("Estimated, predicted and idle-compute", "B"): "no CPU is in the hardware catalogue",
    ("Estimated, predicted and idle-compute", "C"): "no CPU is in the hardware catalogue",
    ("All estimates at the tolerance", "F"): "no CPU is in the hardware catalogue",
    ("All estimates at the tolerance", "G"): "no CPU is in the hardware catalogue",
    ("Time by positions", "B"): "the model has no recurrent state",
    ("Time over that of one position", "B"): "the model has no recurrent state",
    ("Time by positions", "D"): "the model has no experts",
    ("Time over that of one position", "D"): "the model has no experts",
    ("Active experts by tokens of a step", "A"): "the model has no experts",
    ("Active experts by tokens of a step", "B"): "the model has no experts",
    ("Skew of the routing", "A"): "the model has no experts",
    ("Time by positions", "E"): "one rank has no collectives",
    ("Time over that of one position", "E"): "one rank has no collectives",
    **dict.fromkeys(
        (
            *(("Step time: predicted and real", letter) for letter in "ABC"),
            *(("Drafts per step: scheduled and admitted", letter) for letter in "AB"),
            ("Accepted tokens: expected and real", "A"),
            ("Steps with measured costs", "A"),
            ("Admits no drafts", "A"),
        ),
        "this vLLM verifies drafts adaptively on a GPU alone",
    ),
}
"""Queries that rightly return nothing here; test_queries.py sees them return data."""


@pytest.fixture(scope="module")
def stack(
    dense_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, Prometheus]]:
    folder = tmp_path_factory.mktemp("stack")
    with (
        server(
            dense_model, folder, "--nfp-probe", "--nfp-config", PROBE, "--nfp-max-positions", "8",
            "--nfp-draft-control",
            "--speculative-config", json.dumps(DRAFTS), "--served-model-name", "tiny-qwen3",
        ) as running,
        running_prometheus(
            folder / "prometheus", [urlsplit(running.url).netloc], RULES, scrape_seconds=2
        ) as prometheus,
    ):  # fmt: skip
        yield Running(running.server, "tiny-qwen3"), prometheus


@pytest.fixture(scope="module")
def under_load(stack: tuple[Running, Prometheus]) -> Iterator[tuple[Running, Prometheus]]:
    """The stack after some load, which goes on until the module's tests end."""
    running, prometheus = stack
    load = Load(running.url, running.model, senders=4, prompt_tokens=40, vocab_size=512)
    sender = threading.Thread(target=load.run, args=(600.0,))
    sender.start()
    try:
        wait_for(lambda: bool(load.errors or _has_rates(prometheus)))
        assert not load.errors
        yield stack
    finally:
        load.stop()
        sender.join(timeout=120)


def _has_rates(prometheus: Prometheus) -> bool:
    """Whether the probe has estimates and the drafts a rate, which takes two scrapes."""
    wanted = ("vllm_nfp_positions", "engine:vllm_spec_decode_draft_length:rate5m")
    return all(prometheus.now(name) for name in wanted)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_query_of_every_panel_returns_data(
    name: str, under_load: tuple[Running, Prometheus]
) -> None:
    _, prometheus = under_load
    expected = {
        key for key in WITHOUT_DATA if key[0] in {panel.title for panel in panels(DASHBOARDS[name])}
    }
    # A busy machine measures late, and may miss a scrape.
    empty, ends = _without_data(name, prometheus), time.monotonic() + 300
    while empty > expected and time.monotonic() < ends:
        empty &= _without_data(name, prometheus)
    assert empty == expected


def _without_data(name: str, prometheus: Prometheus) -> set[tuple[str, str]]:
    """Queries of a dashboard that return nothing, whatever is chosen: by panel and letter."""
    found = []
    for module in ("model", "attention"):  # layers have times of modules, not of the model
        values = choose(DASHBOARDS[name], prometheus, module=module, batch_size="8", context="64")
        assert values["model_name"] in {"tiny-qwen3", ".*"}
        found.append(
            {
                (answered.panel.title, letter)
                for answered in ask(DASHBOARDS[name], prometheus, values, seconds=LOAD_SECONDS)
                for letter in answered.empty
            }
        )
    return set.intersection(*found)


def test_every_rule_evaluates_on_the_real_server(
    under_load: tuple[Running, Prometheus],
) -> None:
    _, prometheus = under_load
    wait_for(lambda: all(rule["health"] != "unknown" for rule in prometheus.rules()))
    assert [rule["name"] for rule in prometheus.rules() if rule["health"] != "ok"] == []
    predicted = "engine:vllm_nfp_live_predicted:ratio"  # absent where traffic is measured
    stalled = "vllm_nfp_verification_stalled"  # absent where drafts are not verified adaptively
    recorded = {rule["record"] for rule in rules() if "record" in rule} - {predicted}
    wait_for(lambda: all(prometheus.now(name) for name in recorded), what=f"all of {recorded}")
    for rule in rules():
        if "record" in rule:
            continue
        # An alert that does not fire is empty; each metric in it is there.
        prometheus.now(rule["expr"])
        for metric in metrics_in(rule["expr"]) - {predicted, stalled}:
            assert prometheus.now(metric), f"{rule['alert']} uses {metric}"
    broken = {"NfpProbeDisabled", "NfpProbeGone", "NfpServerUnreachable", "NfpNoEstimate"}
    wait_for(
        lambda: not broken & {alert["labels"]["alertname"] for alert in prometheus.alerts()},
        what=f"none of {broken}",
    )


def test_watch_shows_the_real_server(under_load: tuple[Running, Prometheus]) -> None:
    running, _ = under_load
    done = CliRunner().invoke(main, ["watch", running.url, "--once"], env={"COLUMNS": "140"})
    assert done.exit_code == 0, done.output
    assert "tiny-qwen3  engine 0" in done.output
    assert "last step: batch" in done.output
    assert "speculation: K=" in done.output
    assert "attention" in done.output
    done = CliRunner().invoke(main, ["watch", running.url, "--once", "--json"])
    (line,) = done.output.splitlines()
    (engine,) = json.loads(line)["engines"]
    assert engine["overhead_budget"] == 0.5
    assert 1 <= engine["live"]["batch_size"] <= 8
    assert 0 < engine["drafting"]["draft_length"] <= DRAFTS["num_speculative_tokens"]


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
@pytest.mark.parametrize("name", ["nfp-overview", "nfp-deep-dive"])
def test_the_docs_pictures_can_be_made(
    name: str, under_load: tuple[Running, Prometheus], tmp_path: Path
) -> None:
    from preview import draw

    _, prometheus = under_load
    wait_for(lambda: prometheus.now(f"sum_over_time(up[{LOAD_SECONDS:g}s])")[0].points[0][1] > 18)
    page = DASHBOARDS[name]
    module = "attention" if name == "nfp-deep-dive" else "model"
    values = choose(page, prometheus, module=module, batch_size="1", context="256")
    answers = list(ask(page, prometheus, values, seconds=LOAD_SECONDS))
    draw(tmp_path, page, values, answers, LOAD_SECONDS)
