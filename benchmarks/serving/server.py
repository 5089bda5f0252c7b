"""The vLLM servers that benchmarks measure: dummy weights, with the probe or without it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from prometheus_client.parser import text_string_to_metric_families

from vllm_nfp.start.server import Server, serve_command

SAMPLER = "VLLM_USE_FLASHINFER_SAMPLER"
"""vLLM's variable; FlashInfer's sampler is compiled at first use, which needs a compiler."""


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
    real: bool = False
    """The model has weights and a tokenizer."""

    def command(self) -> list[str]:
        """The server's command line."""
        weights = () if self.real else ("--load-format", "dummy")
        base = serve_command(self.model, self.port, *weights, *self.flags, tokenizer=self.real)
        if self.probe is None:
            return base
        base += ["--nfp-probe", "--nfp-config", json.dumps(dict(self.probe))]
        return [*base, "--nfp-output-dir", str(self.output_dir)] if self.output_dir else base

    def start(self) -> Server:
        """The server, which may not answer yet."""
        sampler = os.environ.get(SAMPLER, "0")
        return Server(self.command(), self.log, self.port, {SAMPLER: sampler, **self.extra})


@contextlib.contextmanager
def running_together(specs: Sequence[Spec]) -> Iterator[list[Server]]:
    """Servers that answer, in the order of the specs; all start at once.

    On a GPU that needs a fixed --kv-cache-memory-bytes: otherwise each sizes its KV cache by free
    memory while the others allocate.
    """
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(spec.start()) for spec in specs]
        for server in servers:
            server.wait_until_healthy()
        yield servers


def end_servers_on_sigterm() -> None:
    """Turn SIGTERM, as from ``timeout``, into an exit that leaves no server on the GPU."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    signal.signal(signal.SIGTERM, leave)


Sample = tuple[dict[str, str], float]
"""Labels and value."""


def all_samples(metrics: str) -> dict[str, list[Sample]]:
    """The samples in the text of /metrics, by the metric's name; of another name none."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for family in text_string_to_metric_families(metrics):
        for sample in family.samples:
            found[sample.name].append((dict(sample.labels), sample.value))
    return found


def samples(metrics: str, name: str) -> list[Sample]:
    """Those of one metric."""
    return all_samples(metrics)[name]
