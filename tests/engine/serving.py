"""Starts real vLLM servers for tests and sends them concurrent traffic."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from generate import prompts
from programs import ForkedChild

from vllm_nfp.start.ports import free_port
from vllm_nfp.start.requests import complete
from vllm_nfp.start.server import Server, serve_command

API_KEY = "sk-nfptestsecret-on-the-command-line"
"""Sent with every request; a server asks for it only if it was started with it."""

OWN_LINE = re.compile(r"(^|[\]\s])vllm-nfp: ")
"""How the package's lines in a log begin, after vLLM's own words. Paths may hold its name as well:
that of a clone, or of a folder with an environment."""


def wait_for(reached: Callable[[], bool], seconds: float = 300.0, what: str = "it") -> None:
    """Wait until it has happened; the bound is for what never does, not for slow machines."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds:g} s"
        time.sleep(0.2)


def path_with(folder: Path) -> str:
    """A PYTHONPATH that begins with the folder."""
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def foreign_connector(folder: Path) -> tuple[str, ...]:
    """Flags of a KV connector that nobody knows; its module is beside this one."""
    settings = {
        "kv_connector": "LateConnector", "kv_connector_module_path": "late_connector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(folder / "kv")},
    }  # fmt: skip
    return "--kv-transfer-config", json.dumps(settings)


@dataclass(frozen=True)
class Running:
    server: Server
    model: str

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def log(self) -> Path:
        return self.server.child.log

    def log_text(self) -> str:
        return self.log.read_text(errors="replace")

    def own_lines(self) -> list[str]:
        """What the package has logged."""
        return [line for line in self.log_text().splitlines() if OWN_LINE.search(line)]

    def metrics(self) -> str:
        return self.server.metrics()

    def complete(self, prompt: list[int], **params: Any) -> list[int]:
        body = {
            "model": self.model, "prompt": prompt, "max_tokens": 32, "ignore_eos": True,
            "return_token_ids": True, **params,
        }  # fmt: skip
        answer = complete(self.url, body, {"Authorization": f"Bearer {API_KEY}"})
        return answer["choices"][0]["token_ids"]

    def concurrent(self, rounds: int = 1) -> list[list[int]]:
        """Greedy requests, and sampled ones with seeds, six at a time."""

        def one(task: tuple[int, list[int]]) -> list[int]:
            index, prompt = task
            if index % 2:
                # In one chunk: vLLM on a CPU fails if a seed meets a chunked prompt.
                return self.complete(prompt[:16], temperature=0.8, seed=index)
            return self.complete(prompt, temperature=0)

        with ThreadPoolExecutor(6) as pool:
            return [out for _ in range(rounds) for out in pool.map(one, enumerate(prompts(24)))]


@contextmanager
def server(
    model: Path, folder: Path, *flags: str, as_typed: bool = False, **environment: str
) -> Iterator[Running]:
    """A server that answers.

    Args:
        as_typed: start the command itself; else a fork runs it, which has imported vLLM. Several
            API servers need it: their metrics depend on the environment when they are imported.
        environment: variables of this server alone.
    """
    port = free_port()
    command = serve_command(
        model, port, "--enforce-eager", "--dtype", "float32",
        "--max-model-len", "512", "--max-num-seqs", "8", *flags,
    )  # fmt: skip
    log = folder / f"server-{port}.log"
    with nullcontext() if as_typed else mock.patch("vllm_nfp.start.server.Child", ForkedChild):
        starting = Server(command, log, port, environment)
    with starting as started:
        started.wait_until_healthy()
        yield Running(started, str(model))
