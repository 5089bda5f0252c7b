"""The servers of benchmarks.drafts.servers on one GPU: started together, run one at a time."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from benchmarks.drafts.acceptance import Acceptance
from benchmarks.drafts.plan import LENGTHS, LONGEST
from benchmarks.serving import length_graphs, shapes, stall_watch
from benchmarks.serving.remote import Remote
from benchmarks.serving.server import Spec
from benchmarks.serving.speculation import speculative_config
from vllm_nfp.start.ports import free_ports
from vllm_nfp.start.process import ProcessError
from vllm_nfp.start.server import Server

EAGLE3, NGRAM, NGRAM_CPU = "eagle3", "ngram_gpu", "ngram"
METHODS = (EAGLE3, NGRAM)
NONE, DRAFTS, LIVE = "none", "drafts", "live"
GIB = 1 << 30
MAX_NUM_SEQS, MAX_MODEL_LEN, TINY_MODEL_LEN = 128, 16384, 4096
PROMPT_TOKENS, OUTPUT_TOKENS = 256, 512
STREAM_INTERVAL = 8
"""Tokens of a request in one event: at one event for each token the API server, not the engine,
would limit 128 streams."""
CACHES = Path(".cache", "vllm", "draft_servers")
"""Below the home directory, where :mod:`benchmarks.hosts.kept_caches` keeps them."""
_EXTENSION = "benchmarks.drafts.extension.DraftServer"
FIXED = tuple(k for k in LENGTHS if k)
EACH_LENGTH = [[k + 1, k + 1 if k < LONGEST else MAX_NUM_SEQS, k] for k in range(LONGEST + 1)]
"""A table by batch size that holds every length which may be recommended."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The model and the settings of all servers."""

    name: str
    layers: int
    kv_gib: float
    tiny: bool
    as_is: bool = False
    """vLLM chooses CUDA graphs as it does without :mod:`benchmarks.serving.length_graphs`."""
    watch_stalls: bool = False
    """See :mod:`benchmarks.serving.stall_watch`."""
    method: str = EAGLE3
    prompt_tokens: int = PROMPT_TOKENS


class Fleet:
    """Servers of one GPU; use it in a ``with`` statement, which ends them.

    Args:
        gpu: CUDA_VISIBLE_DEVICES.
        out: takes the models and logs.
        ends: when all must be over, by time.monotonic().
    """

    def __init__(self, gpu: str, shape: Shape, out: Path, ends: float) -> None:
        self.gpu, self.shape, self.out = gpu, shape, out
        self._ends, self._begun = ends, time.monotonic()
        self._stack = ExitStack()
        self._servers: dict[str, Server] = {}
        self._running: str | None = None
        self.model = shapes.shared_model(shape.name, shape.layers)
        self.head: Path | None = None
        if shape.method == EAGLE3:
            self.head = shapes.shared_draft_head(shape.name, EAGLE3, shape.layers)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def left(self) -> float:
        """Seconds left."""
        return self._ends - time.monotonic()

    @property
    def now(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    def say(self, text: str) -> None:
        """Print with the time since the start."""
        print(f"[gpu {self.gpu}, {self.now:4.0f} s] {text}", flush=True)

    def start(self, flags: Mapping[str, Sequence[str]], spared_seconds: float = 0.0) -> None:
        """Start servers side by side, wait until all answer, and stop them all.

        Args:
            flags: of each new server, by its name.
            spared_seconds: of what is left, for what comes after the start.

        Raises:
            ProcessError: if one of them does not answer in time; all of them have ended then.
        """
        new = {
            name: self._stack.enter_context(self._spec(name, port, flags[name]).start())
            for name, port in zip(flags, free_ports(len(flags)), strict=True)
        }
        self._servers |= new
        try:
            for name, server in new.items():
                server.wait_until_healthy(max(1.0, self.left - spared_seconds))
                Remote(server.url).call("bench_talk")
                self.say(f"{name} is up")
        except ProcessError:
            for name in new:
                self.end(name)
            raise
        for server in new.values():
            server.child.pause()

    def end(self, name: str) -> None:
        """End a server, whose GPU memory is for others."""
        self._servers.pop(name).child.stop()

    def run(self, name: str) -> Server:
        """Let one server go on, and no other."""
        if name != self._running:
            if self._running in self._servers:
                self._servers[self._running].child.pause()
            self._servers[name].child.resume()
            self._running = name
        return self._servers[name]

    def pause(self) -> None:
        """Let no server go on."""
        if self._running in self._servers:
            self._servers[self._running].child.pause()
        self._running = None

    def set_acceptance(self, name: str, acceptance: Acceptance) -> None:
        """Have a running server's drafts accepted so."""
        rates = json.dumps(acceptance.rates)
        Remote(self._servers[name].url).call("bench_acceptance", rates)

    def set_lengths(self, name: str, table: Sequence[Sequence[int]]) -> None:
        """Put draft lengths in force: [first batch size, last one, length], ...

        On a CPU, where the scheduler is in another process than its worker, the table's lengths
        stay in force: a tiny run tries the order of a run, not lengths.

        Raises:
            RuntimeError: if the server's scheduler is in another process than its worker.
        """
        schedulers: list[Any] = Remote(self._servers[name].url).call(
            "bench_lengths", json.dumps(table)
        )
        if schedulers != [0 if self.shape.tiny else 1]:
            raise RuntimeError(f"draft lengths of {name} cannot be set: {schedulers} schedulers")

    def speculation(
        self, acceptance: Acceptance, table: Mapping[str, Any] | None = None
    ) -> list[str]:
        """``--speculative-config`` of vLLM.

        Args:
            table: what ``recommend`` prints; None: the longest draft at every batch size.
        """
        table = table or {}
        longest = table.get("num_speculative_tokens", LONGEST)
        # vLLM's sampler for CPUs has no synthetic acceptance.
        rates = None if self.shape.tiny else acceptance.rates
        own = speculative_config(self.shape.method, longest, self.head, rates)
        config = {**table, **own}
        return ["--speculative-config", json.dumps(config)]

    def _spec(self, name: str, port: int, flags: Sequence[str]) -> Spec:
        common = [
            "--kv-cache-memory-bytes", str(int(self.shape.kv_gib * GIB)),
            "--max-num-seqs", str(MAX_NUM_SEQS),
            "--max-model-len", str(TINY_MODEL_LEN if self.shape.tiny else MAX_MODEL_LEN),
            "--no-enable-prefix-caching", "--stream-interval", str(STREAM_INTERVAL),
        ]  # fmt: skip
        if self.shape.tiny:
            common += ["--enforce-eager", "--no-async-scheduling"]
        else:  # vLLM asks for this share of the GPU to be free, beside the servers that are there
            common += ["--gpu-memory-utilization", "0.05"]
        common += ["--worker-extension-cls", _EXTENSION]
        # What speculates compiles the same: servers that start later find it, and those that start
        # together do not write into the same files.
        cache = CACHES / f"{self.gpu}-{name if name in (NONE, LIVE) else DRAFTS}"
        return Spec(
            self.model, self.out / f"{name}.log", port, (*common, *flags),
            extra={
                "CUDA_VISIBLE_DEVICES": self.gpu, "VLLM_SERVER_DEV_MODE": "1",
                "VLLM_CACHE_ROOT": str(Path.home() / cache),
                length_graphs.AS_IS_VARIABLE: str(int(self.shape.as_is)),
                stall_watch.VARIABLE: str(int(self.shape.watch_stalls)),
            },
        )  # fmt: skip
