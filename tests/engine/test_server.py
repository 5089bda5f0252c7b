"""``vllm serve`` with and without the probe, as a user starts it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from generate import prompts
from programs import run_vllm
from prometheus_client.parser import text_string_to_metric_families
from serving import API_KEY, Running, foreign_connector, path_with, server, wait_for

from vllm_nfp import load_profile
from vllm_nfp.draft.server_steps import host_seconds
from vllm_nfp.results import scrape

pytestmark = pytest.mark.engine
THOROUGH = pytest.mark.thorough

Outputs = list[list[int]]
PATCHED = Path(__file__).parents[1] / "matrix" / "patched.py"
PROBE = json.dumps(
    {
        "batch_sizes": [1, 4, 8],
        "contexts": [64, 256],
        "startup_seconds": 1.0,
        "publish_seconds": 0.3,
        "min_samples": 2,
        "overhead_budget": 0.5,
        "capture_seconds": 2.0,
    }
)


def metric_names(running: Running) -> set[str]:
    return {family.name for family in text_string_to_metric_families(running.metrics())}


@pytest.fixture(scope="module")
def expected(dense_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Outputs:
    """Outputs of a server without the probe, which it repeats."""
    with server(dense_model, tmp_path_factory.mktemp("plain")) as plain:
        outputs, again = plain.concurrent(), plain.concurrent()
        assert not [name for name in metric_names(plain) if name.startswith("vllm_nfp")]
        assert plain.own_lines() == []
    assert again == outputs, "the server without the probe repeats itself not"
    return outputs


def agree(outputs: Outputs, expected: Outputs) -> bool:
    """Whether outputs, of one round or more, are those that the server without the probe gave."""
    rounds, rest = divmod(len(outputs), len(expected))
    assert rounds and not rest
    return outputs == expected * rounds


@pytest.fixture(scope="module")
def probed(dense_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("probed")
    with server(
        dense_model, folder, "--nfp-probe", "--nfp-config", PROBE, "--nfp-max-positions", "8",
        "--nfp-epsilon", "0.1,0.3", "--nfp-output-dir", str(folder / "out"),
        "--api-server-count", "2", "--api-key", API_KEY, as_typed=True,
        HF_TOKEN="hf_nfptestsecret",
    ) as running:  # fmt: skip
        wait_for(lambda: bool(running.concurrent()) and has_measured(running))
        yield running


def has_measured(running: Running) -> bool:
    """Whether all modules have estimates, and some of the pairs ran between real steps."""
    found = scrape.parse(running.metrics())
    modules = {row.module for row in found.rows}
    return modules == {"attention", "dense_ffn", "model"} and all(
        status.probes.get("measured", 0) > 0 for status in found.statuses
    )


def test_concurrent_outputs_are_those_of_a_server_without_probe(
    expected: Outputs, probed: Running
) -> None:
    outputs = probed.concurrent(rounds=3)
    assert agree(outputs, expected)
    told = [one for one in expected if one is not None]
    assert sum(map(len, map(set, told))) > 10 * len(told), "the model repeats itself"


def test_every_api_server_shows_the_probe_on_its_metrics(probed: Running) -> None:
    probed.concurrent()
    for _ in range(12):  # the two API servers share the port
        text = probed.metrics()
        found = scrape.parse(text)
        assert found.statuses[0].state in {"probing", "steady"}
        assert found.statuses[0].model_name == probed.model
        assert "vllm:num_requests_running" in text, "vLLM's own metrics are gone"
        modules = {row.module for row in found.rows}
        assert modules == {"attention", "dense_ffn", "model"}
        assert {row.epsilon for row in found.rows} == {0.1, 0.3}
    assert found.statuses[0].probes["measured"] > 0


def test_the_metrics_of_the_contract_are_there(probed: Running) -> None:
    names = metric_names(probed)
    # Predictions need a known GPU, the layers' histogram its setting: unit tests cover both.
    assert names >= {
        "vllm_nfp_positions",
        "vllm_nfp_positions_lower",
        "vllm_nfp_positions_upper",
        "vllm_nfp_module_latency_seconds",
        "vllm_nfp_probes",
        "vllm_nfp_probe_gpu_seconds",
        "vllm_nfp_overhead_ratio",
        "vllm_nfp_state",
    }


def test_the_output_folder_holds_raw_samples(probed: Running) -> None:
    folder = probed.log.parent / "out"
    first = json.loads((folder / "samples-0.jsonl").open().readline())
    assert first["many"]["step_seconds"] > 0
    assert first["one"]["shape"]["positions"] == 1
    assert json.loads((folder / "environment-0.json").read_text())["vllm"].startswith("0.")
    profile = load_profile(folder / "profile-0.json")
    assert profile.model.num_layers == 3
    assert profile.boundaries
    assert profile.run.state in ("probing", "steady")


def test_no_secret_and_no_prompt_is_kept_or_shown(probed: Running) -> None:
    """vLLM's own lines of the log are its own."""
    probed.concurrent()
    texts = [path.read_text() for path in (probed.log.parent / "out").iterdir()]
    own = probed.own_lines()
    assert len(texts) >= 4 and own
    sent = [", ".join(map(str, prompt[-4:])) for prompt in prompts(24)]
    for text in (*texts, *own, probed.metrics()):
        # Folders may have any name.
        said = text.replace(probed.model, "").replace(str(probed.log.parent), "")
        assert "nfptestsecret" not in said
        assert "token_ids" not in said
        assert not [ids for ids in sent if ids in said]


@pytest.mark.thorough
def test_a_fault_disables_the_probe_and_the_server_answers(
    dense_model: Path, tmp_path: Path, expected: Outputs
) -> None:
    with server(
        dense_model, tmp_path, "--nfp-probe", "--nfp-config", PROBE, NFP_INJECT_FAULT="forward"
    ) as running:
        assert agree(running.concurrent(), expected)
        assert scrape.parse(running.metrics()).statuses[0].state == "disabled"
        log = running.log_text()
    assert "fault injected at stage 'forward'" in log
    assert "the server continues without it" in log


def steps_told(text: str) -> float:
    samples = scrape.find_samples(text, ("vllm_nfp_steps_total",))
    return sum(count for _, count in samples.get("vllm_nfp_steps_total", ()))


def test_a_server_that_cannot_be_probed_times_its_steps_and_says_why(
    dense_model: Path, tmp_path: Path, expected: Outputs
) -> None:
    """The other kinds of such servers are in test_passive.py."""
    with server(
        dense_model, tmp_path, *foreign_connector(tmp_path), "--nfp-probe", "--nfp-config", PROBE,
        PYTHONPATH=path_with(Path(__file__).parent),
    ) as running:  # fmt: skip
        assert agree(running.concurrent(rounds=2), expected)
        wait_for(lambda: steps_told(running.metrics()) > 40)  # the last ones are told later
        for _ in range(4):  # alone, so that many steps follow one like them
            running.complete(list(range(5, 25)))
        wait_for(lambda: host_seconds(scrape.find_samples(running.metrics(), ())) > 0)
        text = running.metrics()
    assert scrape.parse(text).statuses[0].state == "passive"
    samples = scrape.find_samples(text, ())
    assert host_seconds(samples) < 0.1, "a step takes some milliseconds"
    ((labels, _),) = samples["vllm_nfp_state_info"]
    assert "late_connector.LateConnector is not known to leave a probe alone" in labels["reason"]
    assert all(seconds > 0 for _, seconds in samples["vllm_nfp_step_latency_seconds"])
    bases = {labels["basis"] for labels, _ in samples["vllm_nfp_positions_basis"]}
    assert "predicted" in bases and bases <= {"predicted", "inferred"}, "no pair was run"


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the installed vLLM with this project's patch for its release."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed, which applies the patch")
    tree = tmp_path_factory.mktemp("patched")
    made = subprocess.run(
        [sys.executable, str(PATCHED), str(tree)],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    return tree


def test_the_patch_passes_its_own_tests(patched: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/v1/worker"],
        cwd=patched, env={**os.environ, "PYTHONPATH": path_with(patched)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "6 passed" in done.stdout


@pytest.mark.thorough
def test_a_patched_vllm_is_observed_through_its_extension_point(
    dense_model: Path, tmp_path: Path, expected: Outputs, patched: Path
) -> None:
    with server(
        dense_model, tmp_path, "--nfp-probe", "--nfp-config", PROBE, "--nfp-max-positions", "8",
        "--api-server-count", "2", as_typed=True,
        PYTHONPATH=path_with(patched), VLLM_LOGGING_LEVEL="DEBUG",
    ) as running:  # fmt: skip
        outputs = running.concurrent(rounds=2)
        for _ in range(20):
            time.sleep(1.0)  # for what the last steps brought
            outputs += running.concurrent()
            if scrape.parse(running.metrics()).statuses[0].state != "warming":
                break
        assert agree(outputs, expected)
        for _ in range(12):  # the two API servers share the port
            text = running.metrics()
            status = scrape.parse(text).statuses[0]
            assert status.state in {"probing", "steady"}
            assert status.model_name == running.model
            assert status.probes["measured"] > 0
            assert text.count("# TYPE vllm_nfp_state gauge") == 1
            assert {row.module for row in scrape.parse(text).rows} == {
                "attention", "dense_ffn", "model",
            }  # fmt: skip
        log = running.log_text()
    assert "steps are observed through vLLM's extension point" in log
    assert "observed through hooks" not in log
    assert "fault in stage" not in log


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        # Unit tests see how argparse's types refuse values; flags need the hook of vLLM's parser.
        pytest.param(
            ["--nfp-probe", "--nfp-epsilon", "much"], "'much' is not a number", marks=THOROUGH
        ),
        pytest.param(
            ["--nfp-probe", "--nfp-overhead-budget", "2"], "from 0 to 0.5, not 2.0", marks=THOROUGH
        ),
        pytest.param(
            ["--nfp-probe", "--nfp-config", '{"bogus": 1}'], "unknown field 'bogus'", marks=THOROUGH
        ),
        pytest.param(
            ["--nfp-probe", "--nfp-output-dir", "/proc/nfp"], "cannot be written", marks=THOROUGH
        ),
        (["--nfp-max-positions", "8"], "has no effect without --nfp-probe"),
    ],
)
def test_bad_flags_fail_at_start_with_one_sentence(
    dense_model: Path, flags: list[str], sentence: str
) -> None:
    done = run_vllm("serve", str(dense_model), *flags)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert sentence in last
    # Some releases put the name of the process first.
    assert re.match(r"(\(\w+ pid=\d+\) )?vllm serve: error: ", last)
    assert "Traceback" not in done.stderr
    assert "usage:" not in done.stderr + done.stdout


def test_help_shows_the_flags_in_a_group_of_their_own(dense_model: Path) -> None:
    done = run_vllm("serve", "--help=all")
    group = done.stdout.split("NFP probe:", 1)[1]
    for flag in ("probe", "config", "epsilon", "max-positions", "overhead-budget", "output-dir"):
        assert f"--nfp-{flag}" in group
