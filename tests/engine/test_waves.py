"""Data-parallel engines with experts: all ranks of all of them run a pair, or none does."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from generate import prompts
from programs import ForkedChild
from serving import API_KEY, Running, path_with, server, wait_for
from test_ranks import SETTINGS

from vllm_nfp.results.snapshot import Snapshot, read_snapshot
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.process import Child, vllm_environment
from vllm_nfp.start.requests import complete
from vllm_nfp.start.server import Server, serve_command
from vllm_nfp.types import State

pytestmark = pytest.mark.engine

PAUSE_SECONDS = 3.0
"""Until engines without requests have stopped: vLLM asks at every 16th pass."""
ENVIRONMENT = {"VLLM_SERVER_DEV_MODE": "1", "PYTHONPATH": path_with(Path(__file__).parent)}
SMALL = (
    "--enforce-eager", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "8",
)  # fmt: skip
"""As :func:`server` starts one."""
FLAGS = (
    "--enable-expert-parallel", "--worker-extension-cls", "wave_extension.WaveExtension",
    "--no-enable-prefix-caching",
)  # fmt: skip


class Engines:
    """Two engines, or more; a probe is attached to their workers, and taken off.

    Args:
        servers: each has as many of the engines.
        ranks: of all engines.
        size: number of engines.
    """

    def __init__(self, servers: list[Running], ranks: int, size: int = 2) -> None:
        self.servers = servers
        self.ranks = ranks
        self.size = size

    def call(self, method: str, *arguments: str) -> None:
        """A method of all workers of all engines, which may wait for each other."""
        body = json.dumps({"method": method, "args": arguments}).encode()

        def one(running: Running) -> None:
            request = urllib.request.Request(
                f"{running.url}/collective_rpc", body, {"Content-Type": "application/json"}
            )
            with urllib.request.urlopen(request, timeout=300):
                pass

        with ThreadPoolExecutor(len(self.servers)) as pool:
            list(pool.map(one, self.servers))

    def outputs(self, engine: int | None = None) -> list[list[int]]:
        """Greedy ones of several requests at a time.

        Args:
            engine: that serves all of them; None: they are spread over all.
        """
        headers = {"Authorization": f"Bearer {API_KEY}"}
        of_each = self.size // len(self.servers)
        if engine is not None and of_each > 1:
            headers["X-data-parallel-rank"] = str(engine % of_each)

        def one(task: tuple[int, list[int]]) -> list[int]:
            index, prompt = task
            at = index % len(self.servers) if engine is None else engine // of_each
            running = self.servers[at]
            body = {
                "model": running.model, "prompt": prompt, "max_tokens": 40,
                "temperature": 0, "ignore_eos": True, "return_token_ids": True,
            }  # fmt: skip
            answer = complete(running.url, body, headers)
            tokens: list[int] = answer["choices"][0]["token_ids"]
            return tokens

        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(one, enumerate(prompts(8))))


def flags_of(size: int) -> tuple[str, ...]:
    """Of so many engines."""
    return (*FLAGS, "--data-parallel-size", str(size))


@contextmanager
def on_one_node(model: Path, folder: Path, tensor: int = 1, size: int = 2) -> Iterator[Engines]:
    """A server that spreads requests over its engines."""
    flags = (*flags_of(size), "--api-server-count", "1", "--tensor-parallel-size", str(tensor))
    with server(model, folder, *flags, **ENVIRONMENT) as running:
        yield Engines([running], size * tensor, size)


def among_nodes(size: int = 2) -> tuple[str, ...]:
    """Flags by which engines of several nodes find each other, here on one host."""
    address = ("--data-parallel-address", "127.0.0.1")
    return (*flags_of(size), *address, "--data-parallel-rpc-port", str(free_port()))


@contextmanager
def headless(model: Path, folder: Path) -> Iterator[Engines]:
    """The second engine is on a node without an API server."""
    flags = (*among_nodes(), "--data-parallel-size-local", "1")
    second = serve_command(
        model, free_port(), *SMALL, *flags, "--headless", "--data-parallel-start-rank", "1"
    )
    environment = vllm_environment(ENVIRONMENT)
    with (
        Child(second, folder / "second.log", environment, name="the second node"),
        server(model, folder, *flags, "--api-server-count", "1", **ENVIRONMENT) as running,
    ):
        yield Engines([running], 2)


@contextmanager
def external(model: Path, folder: Path) -> Iterator[Engines]:
    """Each engine has a server of its own, and something else spreads the requests."""
    flags, port = among_nodes(), free_port()
    second = serve_command(model, port, *SMALL, *flags, "--data-parallel-rank", "1")
    with (
        Server(second, folder / "second.log", port, ENVIRONMENT) as other,
        server(model, folder, *flags, "--data-parallel-rank", "0", **ENVIRONMENT) as running,
    ):
        other.wait_until_healthy()
        yield Engines([running, Running(other, str(model))], 2)


def forked(command: list[str], log: Path, port: int) -> Server:
    """One that a fork runs, which has imported vLLM: otherwise each of its engines would."""
    with mock.patch("vllm_nfp.start.server.Child", ForkedChild):
        return Server(command, log, port, ENVIRONMENT)


@contextmanager
def hybrid(model: Path, folder: Path) -> Iterator[Engines]:
    """Four engines; each of two servers spreads its requests over two of them."""
    flags = (
        *among_nodes(4), "--data-parallel-size-local", "2", "--data-parallel-hybrid-lb",
        "--api-server-count", "1",
    )  # fmt: skip
    port = free_port()
    second = serve_command(model, port, *SMALL, *flags, "--data-parallel-start-rank", "2")
    first = (*flags, "--data-parallel-start-rank", "0")
    with (
        forked(second, folder / "second.log", port) as other,
        server(model, folder, *first, **ENVIRONMENT) as running,
    ):
        other.wait_until_healthy()
        yield Engines([running, Running(other, str(model))], 4, 4)


THOROUGH = pytest.mark.thorough


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(on_one_node, id="tp1"),
        pytest.param(partial(on_one_node, tensor=2), id="tp2", marks=THOROUGH),
        pytest.param(headless, id="headless", marks=THOROUGH),
        pytest.param(external, id="external", marks=THOROUGH),
        # Six tests of four engines took 160 s on two busy cores.
        pytest.param(partial(on_one_node, size=4), id="four", marks=THOROUGH),
        pytest.param(hybrid, id="hybrid", marks=THOROUGH),
    ],
)
def engines(
    request: pytest.FixtureRequest, moe_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engines]:
    with request.param(moe_model, tmp_path_factory.mktemp("waves")) as started:
        yield started
        begun = time.monotonic()
    assert time.monotonic() < begun + 60.0, "an engine hung when the server was stopped"


@pytest.fixture(scope="module")
def plain(engines: Engines) -> list[list[int]]:
    """What is generated without a probe."""
    found = engines.outputs()
    assert engines.outputs(engine=1) == found, "the server repeats itself not"
    assert sum(map(len, map(set, found))) > 5 * len(found), "the model repeats itself"
    return found


@pytest.fixture
def attach(engines: Engines, plain: object, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Attach a session on all ranks; take it off in the end."""

    def begin(fault: str = "", **changes: object) -> None:
        time.sleep(PAUSE_SECONDS)  # engines count passes from here on
        settings = {**SETTINGS, "run_dir": str(tmp_path), **changes}
        engines.call("nfp_attach", json.dumps(settings), fault)

    yield begin
    time.sleep(PAUSE_SECONDS)
    engines.call("nfp_detach")


def snapshots(folder: Path, engines: Engines) -> list[Snapshot]:
    return [read_snapshot(folder / f"engine-{engine}.json") for engine in range(engines.size)]


def pairs(folder: Path, engines: Engines, outcome: str) -> list[int]:
    return [snapshot.probes.get(outcome, 0) for snapshot in snapshots(folder, engines)]


def test_all_engines_probe_and_outputs_stay(
    engines: Engines, plain: list[list[int]], attach: Callable[..., None], tmp_path: Path
) -> None:
    attach(startup_seconds=20.0)
    off = {State.PASSIVE, State.DISABLED}
    assert not off & {snapshot.state for snapshot in snapshots(tmp_path, engines)}
    assert all(count > 0 for count in pairs(tmp_path, engines, "startup"))

    def measured() -> bool:
        assert engines.outputs() == plain
        return all(count > 0 for count in pairs(tmp_path, engines, "measured"))

    wait_for(measured, what="a pair between steps of all engines")
    for snapshot in snapshots(tmp_path, engines):
        assert {row.module for row in snapshot.boundaries} == {
            "attention", "moe_ffn", "communication", "model",
        }  # fmt: skip
        assert all(row.median_seconds > 0 for row in snapshot.curves)


@pytest.mark.parametrize("serving", [pytest.param(0, marks=pytest.mark.thorough), 1])
def test_one_engine_serves_and_the_others_run_its_pairs_in_dummy_batches(
    engines: Engines,
    plain: list[list[int]],
    attach: Callable[..., None],
    tmp_path: Path,
    serving: int,
) -> None:
    attach()

    def measured() -> bool:
        assert engines.outputs(engine=serving) == plain
        idle = pairs(tmp_path, engines, "idle")
        there = all(idle[other] > 0 for other in others)
        return there and pairs(tmp_path, engines, "measured")[serving] > 0

    others = [engine for engine in range(engines.size) if engine != serving]
    wait_for(measured, what="a pair while the other engines have no request")
    counted = pairs(tmp_path, engines, "measured")
    assert [counted[other] for other in others] == [0] * len(others)


@pytest.mark.parametrize("fault", ["prepare@1", pytest.param("plan@0", marks=pytest.mark.thorough)])
def test_a_fault_of_one_engine_switches_all_off(
    engines: Engines,
    plain: list[list[int]],
    attach: Callable[..., None],
    tmp_path: Path,
    fault: str,
) -> None:
    attach()
    engines.call("nfp_fault", fault)

    def off() -> bool:
        assert engines.outputs() == plain
        return {snapshot.state for snapshot in snapshots(tmp_path, engines)} == {State.DISABLED}

    wait_for(off, what="the end of all probes")
    for snapshot in snapshots(tmp_path, engines):
        assert f"rank {fault[-1]} of {engines.ranks}" in snapshot.reason
    assert engines.outputs() == plain


def test_without_a_probe_nothing_has_changed(engines: Engines, plain: Any) -> None:
    assert engines.outputs() == plain
