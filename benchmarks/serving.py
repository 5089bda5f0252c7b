"""Starts the servers that benchmarks measure."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vllm_nfp import demo


def command(
    model: Path,
    port: int,
    flags: list[str],
    probe: Mapping[str, object] | None,
    output_dir: Path | None = None,
) -> list[str]:
    """The server's command line; with the probe if settings for it are given."""
    base = [
        sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model),
        "--load-format", "dummy", "--skip-tokenizer-init",
        "--host", "127.0.0.1", "--port", str(port), *flags,
    ]  # fmt: skip
    if probe is None:
        return base
    base += ["--nfp-probe", "--nfp-config", json.dumps(dict(probe))]
    return [*base, "--nfp-output-dir", str(output_dir)] if output_dir else base


@contextmanager
def server(
    model: Path,
    log: Path,
    flags: list[str],
    probe: Mapping[str, object] | None,
    output_dir: Path | None = None,
    extra: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A running server's URL; ``extra`` are environment variables of its own."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    port = demo.free_port()
    started = demo.running_server(command(model, port, flags, probe, output_dir), log, port, extra)
    with started as url:
        yield url
