"""What the flags of ``vllm serve`` lead to on a machine that is not as they want it."""

from __future__ import annotations

import argparse
import errno
import logging
import os
from pathlib import Path

import pytest

from vllm_nfp.config import ENV_VAR

pytest.importorskip("vllm")

from vllm_nfp.adapter import switch_on


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(ENV_VAR, "")
    monkeypatch.setattr("vllm_nfp.results.run_folder.tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("vllm_nfp.results.run_folder.atexit.register", lambda call: None)


def test_no_temporary_folder_ends_the_start_with_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No traceback, whatever vLLM would say."""

    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("vllm_nfp.results.run_folder.tempfile.mkdtemp", full)
    with pytest.raises(SystemExit) as end:
        switch_on.switch_on(argparse.Namespace(nfp_probe=True))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "vllm serve: error: --nfp-probe needs a temporary directory, and none can be written (No "
        "space left on device): set TMPDIR to a directory with room that this user may write\n"
    )
    assert not os.environ.get(ENV_VAR)


@pytest.mark.parametrize(
    ("headless", "kept", "told"),
    [(True, False, True), (True, True, False), (False, False, False)],
)
def test_a_headless_process_says_that_nobody_sees_its_results(
    headless: bool, kept: bool, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = str(tmp_path / "out") if kept else None
    with caplog.at_level(logging.WARNING, "vllm.nfp"):
        switch_on.switch_on(
            argparse.Namespace(nfp_probe=True, headless=headless, nfp_output_dir=out)
        )
    assert os.environ[ENV_VAR], "the probe is off"
    assert ("add --nfp-output-dir" in caplog.text) is told


@pytest.mark.parametrize(
    ("nodes", "engines", "node", "follows"),
    [(2, 1, 1, True), (4, 2, 1, True), (4, 2, 2, False), (2, 2, 1, False)],
)
def test_a_headless_node_of_an_engine_that_another_begins_says_who_reports(
    nodes: int, engines: int, node: int, follows: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "vllm.nfp"):
        switch_on.switch_on(
            argparse.Namespace(
                nfp_probe=True, headless=True, nnodes=nodes, node_rank=node,
                data_parallel_size=engines,
            )
        )  # fmt: skip
    assert ("first node, which reports for them" in caplog.text) is follows
    assert ("add --nfp-output-dir" in caplog.text) is not follows


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"nnodes": 2}, "--nnodes 2"),
        ({"distributed_executor_backend": "ray"}, "--distributed-executor-backend ray"),
        ({"data_parallel_backend": "ray"}, "--data-parallel-backend ray"),
    ],
)
def test_draft_control_is_refused_where_ranks_may_capture_other_graphs(
    flags: dict[str, object], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    drafts = {"method": "ngram", "num_speculative_tokens": 3}
    args = argparse.Namespace(
        nfp_probe=True, nfp_draft_control=True, speculative_config=drafts, **flags
    )
    with pytest.raises(SystemExit) as end:
        switch_on.switch_on(args)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--nfp-draft-control does not work with {named}" in line
    assert "leave one of the two out" in line
