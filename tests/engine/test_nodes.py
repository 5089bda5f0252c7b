"""One engine whose two ranks are started as on two nodes, each by its own command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from ranks_probed import EXTENSION, PROBE, check_probes_change_no_output
from serving import Running, path_with, server

from vllm_nfp.results import scrape
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.process import Child, vllm_environment
from vllm_nfp.start.server import serve_command

pytestmark = [pytest.mark.engine, pytest.mark.thorough]

HERE = Path(__file__).parent
PROBED = ("--nfp-probe", "--nfp-config", PROBE)


@contextmanager
def two_nodes(
    model: Path,
    folder: Path,
    first: tuple[str, ...],
    second: tuple[str, ...],
    environments: tuple[Mapping[str, str], Mapping[str, str]] = ({}, {}),
) -> Iterator[tuple[Running, Path]]:
    """A server of two nodes on this host, and the log of the second.

    Args:
        first: flags of the first node alone.
        second: those of the second.
        environments: variables of each.
    """
    both = {"PYTHONPATH": path_with(HERE), "VLLM_SERVER_DEV_MODE": "1"}
    flags = (
        "--tensor-parallel-size", "2", "--nnodes", "2", "--master-addr", "127.0.0.1",
        "--master-port", str(free_port()), "--worker-extension-cls", EXTENSION,
        "--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8",
    )  # fmt: skip
    command = serve_command(
        model, free_port(), *flags, "--node-rank", "1", "--headless", *second
    )  # fmt: skip
    log = folder / "second.log"
    own, others = ({**both, **environment} for environment in environments)
    with (
        Child(command, log, vllm_environment(others), name="the second node"),
        server(model, folder, *flags, "--node-rank", "0", *first, as_typed=True, **own) as running,
    ):
        yield running, log


def test_ranks_of_two_nodes_are_probed_and_outputs_stay(dense_model: Path, tmp_path: Path) -> None:
    with two_nodes(dense_model, tmp_path, PROBED, PROBED) as (running, log):
        check_probes_change_no_output(running)
        assert "first node, which reports for them" in log.read_text()


@pytest.mark.parametrize(
    ("second", "told"),
    [((), "rank 1 has no probe"), (("--nfp-probe",), "rank 1 has other probe settings")],
    ids=["without the probe", "with other settings"],
)
def test_nodes_that_differ_serve_without_probes_and_say_why(
    second: tuple[str, ...], told: str, dense_model: Path, tmp_path: Path
) -> None:
    with two_nodes(dense_model, tmp_path, PROBED, second) as (running, log):
        assert running.concurrent() == running.concurrent()
        (status,) = scrape.parse(running.metrics()).statuses
        assert status.state == "passive"
        assert told in status.reason
        assert (told in log.read_text()) is bool(second)
