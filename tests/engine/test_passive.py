"""Servers that cannot be probed: they answer as without the flag, time their steps, and say why."""

from __future__ import annotations

import json
import shutil
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kinds
import pytest
from serving import Running, server

from vllm_nfp import doctor
from vllm_nfp.results import scrape

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

FOLDER = "{folder}"
PROBE = '{"batch_sizes": [1, 4], "contexts": [64, 256], "publish_seconds": 0.3}'


def text_outputs(running: Running) -> list[list[int]]:
    """Greedy ones: a server whose batches differ from run to run repeats these."""
    return running.concurrent()[::2]


@dataclass(frozen=True)
class Kind:
    """A server that a probe keeps its hands off."""

    reason: str
    """Part of what /metrics says."""
    flags: tuple[str, ...]
    """With :data:`FOLDER` for one of the test's own."""
    outputs: Callable[[Running], list[list[int]]] = text_outputs
    write: Callable[[Path], Path] | None = None
    """Makes a model of its own."""

    def flags_in(self, folder: Path) -> tuple[str, ...]:
        return tuple(flag.replace(FOLDER, str(folder)) for flag in self.flags)


OWN_CONNECTOR = {
    "kv_connector": "ExampleConnector", "kv_role": "kv_both",
    "kv_connector_module_path": "vllm.distributed.kv_transfer.kv_connector.v1.example_connector",
    "kv_connector_extra_config": {"shared_storage_path": FOLDER},
}  # fmt: skip
"""A class of its own, for all that vllm-nfp knows: it is named by its module."""
# Pipeline stages are not among them: vLLM 0.32 on a CPU has no buffers for what one hands to the
# next with --enforce-eager, and ends at the first request, with or without the probe.
KINDS = {
    "connector": Kind(
        "is not known to leave a probe alone", ("--kv-transfer-config", json.dumps(OWN_CONNECTOR))
    ),
    "latent": Kind(
        "(MLACommonMetadataBuilder) decodes at most 1 position of a sequence", (),
        write=kinds.latent,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_outputs_stay_and_steps_are_timed(name: str, dense_model: Path, tmp_path: Path) -> None:
    kind = KINDS[name]
    model = dense_model if kind.write is None else kind.write(tmp_path / "model")
    outputs: list[Any] = []
    for number, probe in enumerate(((), ("--nfp-probe", "--nfp-config", PROBE))):
        folder = tmp_path / str(number)
        folder.mkdir()
        flags = (*kind.flags_in(folder), *probe)
        with server(model, folder, *flags) as running:
            outputs.append(kind.outputs(running))
            assert kind.outputs(running) == outputs[-1], "the server repeats itself not"
            if probe:
                time.sleep(1.0)  # for what the last steps brought
                check_metrics(running, kind.reason)
    flags = ("--enforce-eager", *kind.flags_in(tmp_path))
    told = doctor.ask_vllm(doctor.Question(model, flags)).values
    assert told["mode"] == "passive"
    assert kind.reason in told["reason"], "it is told before the server is started"
    assert outputs[0] == outputs[1]
    assert sum(map(len, map(set, outputs[0]))) > 5 * len(outputs[0]), "the model repeats itself"


def check_metrics(running: Running, reason: str) -> None:
    text = running.metrics()
    statuses = scrape.parse(text).statuses
    assert {status.state for status in statuses} == {"passive"}
    samples = scrape.find_samples(text, ())
    assert all(reason in labels["reason"] for labels, _ in samples["vllm_nfp_state_info"])
    steps = samples["vllm_nfp_steps_total"]
    assert sum(count for _, count in steps) > 40
    assert {labels["positions"] for labels, _ in steps} == {"1"}
    assert all(seconds > 0 for _, seconds in samples["vllm_nfp_step_latency_seconds"])
    bases = {labels["basis"] for labels, _ in samples["vllm_nfp_positions_basis"]}
    assert "predicted" in bases and bases <= {"predicted", "inferred"}, "no pair was run"
    assert sum(count for _, count in samples.get("vllm_nfp_probes_total", [])) == 0
    log = running.log_text()
    assert "vllm-nfp: passive mode on the cpu runner" in log
    assert "fault in stage" not in log


def test_an_engine_that_decodes_nothing_is_served_and_says_so(
    dense_model: Path, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(dense_model, model)
    kinds.make_tokenizer().save_pretrained(model)
    plain = ("--runner", "pooling", "--convert", "embed", "--no-skip-tokenizer-init")

    def embed(running: Running) -> list[float]:
        body = {"model": running.model, "input": [5, 6, 7]}
        request = urllib.request.Request(
            f"{running.url}/v1/embeddings",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            found: list[float] = json.load(answer)["data"][0]["embedding"]
            return found

    with server(model, tmp_path, *plain) as running:
        expected = embed(running)
    with server(model, tmp_path, *plain, "--nfp-probe", "--nfp-config", PROBE) as running:
        assert embed(running) == expected
        (status,) = scrape.parse(running.metrics()).statuses
        assert status.state == "disabled"
        assert "decodes nothing" in running.metrics()


def test_draft_lengths_are_controlled_where_nothing_is_probed(
    dense_model: Path, tmp_path: Path
) -> None:
    """The controller then goes by the real steps that it times itself."""
    speculation = {
        "method": "ngram", "num_speculative_tokens": 4,
        "prompt_lookup_min": 1, "prompt_lookup_max": 2,
    }  # fmt: skip
    settings = {
        "publish_seconds": 0.5, "draft_min_gain": 0.0, "draft_trial_loss": 0.5, "passive": True,
    }  # fmt: skip
    drafting = ("--speculative-config", json.dumps(speculation))
    control = ("--nfp-probe", "--nfp-draft-control", "--nfp-config", json.dumps(settings))
    prompts = [[10 + i, 20 + i, 30 + i] * 8 for i in range(4)]

    def outputs(running: Running) -> list[list[int]]:
        return [running.complete(prompt, temperature=0, max_tokens=64) for prompt in prompts]

    with server(dense_model, tmp_path, *drafting) as plain:
        expected = outputs(plain)
    names = ("vllm_nfp_draft_control_state", "vllm_nfp_draft_control_changes_total")
    with server(dense_model, tmp_path, *drafting, *control) as running:
        deadline = time.monotonic() + 120.0
        while True:
            assert outputs(running) == expected
            found = scrape.find_samples(running.metrics(), names)
            changes = sum(value for _, value in found.get(names[1], ()))
            if changes >= 3 or time.monotonic() > deadline:
                break
        assert changes >= 3, running.log_text()[-3000:]
        assert [labels["state"] for labels, on in found[names[0]] if on] == ["deciding"]
        (status,) = scrape.parse(running.metrics()).statuses
        assert status.state == "passive"
        assert "draft control is disabled" not in running.log_text()
