"""A server on 127.0.0.1 whose /metrics replay a recorded run through the real collector.

Estimates, curves and predictions are those of the H100 runs in benchmarks/results. What those runs
did not record (what estimates rest on, layer histograms, experts, vLLM's counters) is made up here;
counters grow with each scrape so that rates exist.
"""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

from vllm_nfp.files import write_whole
from vllm_nfp.metrics.collector import NfpCollector
from vllm_nfp.results.control import ControlSnapshot, ControlState, control_file
from vllm_nfp.results.snapshot import Snapshot, engine_file, read_snapshot, write_snapshot
from vllm_nfp.results.verification import StepSeconds, VerificationReport
from vllm_nfp.strict_json import encode
from vllm_nfp.types import (
    ActiveExperts,
    Basis,
    ExpertRouting,
    LayerHistogram,
    LiveStep,
    Module,
    ServerInfo,
)  # fmt: skip

ALL_RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
RESULTS = ALL_RESULTS / "2026-11-24-h100"
LIVE = LiveStep(batch_size=6, context=4000, positions=4)
BASES = {4096: Basis.INFERRED, 16384: Basis.PREDICTED}
"""What estimates rest on, by context; otherwise measured."""
VERIFICATION = VerificationReport(
    feeding=True, renewals=3, measured_steps=900, steps=1000, scheduled=5000, admitted=3000,
    expected=2000.0, seconds=StepSeconds(real=0.011, own=0.014, measured=0.01),
)  # fmt: skip
EXPERTS = ExpertRouting(
    128, 8, 8, 20, 16384, 0.6,
    (ActiveExperts(1, 8.0, 8.0), ActiveExperts(8, 41.5, 51.6), ActiveExperts(64, 92.0, 125.9)),
)  # fmt: skip
RANKS = ALL_RESULTS / "2026-11-24-h100x2-tensor-parallel" / "dense-tp2-table.json"


def recorded_snapshot(kind: str, folder: Path) -> Snapshot:
    """The final state of the H100 run: kind is dense or moe."""
    table = json.loads((RESULTS / f"{kind}-table.json").read_text())
    path = folder / "recorded.json"
    path.write_text(json.dumps(table["snapshot"]))
    snapshot = read_snapshot(path)
    path.write_text(json.dumps(json.loads(RANKS.read_text())["snapshot"]))
    # Of a run on two GPUs: one GPU has no collectives.
    shared = tuple(row for row in read_snapshot(path).curves if row.module == "communication")
    # No run of a hybrid model is recorded: these are other layers' times, for the queries alone.
    recurrent = tuple(dataclasses.replace(row, module=Module.LINEAR_ATTENTION) for row in shared)
    return dataclasses.replace(
        snapshot,
        overhead_budget=0.5,
        curves=(*snapshot.curves, *shared, *recurrent),
        boundaries=tuple(
            dataclasses.replace(row, basis=BASES.get(row.context, Basis.MEASURED))
            for row in snapshot.boundaries
        ),
        server=ServerInfo("NVIDIA H100 80GB HBM3", "bfloat16", "", 1, "0.32.0", "0.1.0"),
        live=LIVE,
        live_curves=tuple(
            dataclasses.replace(row, batch_size=LIVE.batch_size, context=LIVE.context)
            for row in snapshot.curves
            if (row.module, row.batch_size, row.context) == ("model", 8, 4096)
        ),
        live_boundaries=tuple(
            dataclasses.replace(row, batch_size=LIVE.batch_size, context=LIVE.context)
            for row in snapshot.boundaries
            if (row.module, row.batch_size, row.context) == ("model", 8, 4096)
        ),
        prior="predicted",
        verification=VERIFICATION,
        experts=EXPERTS,
    )


class Recorded:
    """What the server shows; tests change it while it runs."""

    def __init__(self, snapshot: Snapshot, folder: Path) -> None:
        self.snapshot = snapshot
        self.failing = False
        self._folder = folder
        self._scrapes = 0
        self._registry = CollectorRegistry()
        self._registry.register(NfpCollector(str(folder), registry=self._registry))
        labels = {"model_name": snapshot.model_name, "engine": snapshot.engine}
        self._counters = {
            name: Counter(f"vllm:{name}", name, list(labels), registry=self._registry).labels(
                **labels
            )
            for name in (
                "spec_decode_num_drafts", "spec_decode_num_draft_tokens",
                "spec_decode_num_accepted_tokens", "generation_tokens",
            )
        }  # fmt: skip
        per_position = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "by position",
            [*labels, "position"],
            registry=self._registry,
        )
        self._per_position = [per_position.labels(**labels, position=str(i)) for i in range(3)]
        start = Gauge("process_start_time_seconds", "start", registry=self._registry)
        start.set(1.79e9)

    def text(self) -> bytes:
        self._scrapes += 1
        for name, step in zip(self._counters, (10, 30, 18, 28), strict=True):
            self._counters[name].inc(step)
        for counter, step in zip(self._per_position, (9, 6, 3), strict=True):
            counter.inc(step)
        measured = self.snapshot.probes["measured"] + self._scrapes
        verification = self.snapshot.verification
        if verification is not None:
            verification = dataclasses.replace(
                verification,
                steps=verification.steps + 10 * self._scrapes,
                measured_steps=verification.measured_steps + 9 * self._scrapes,
                scheduled=verification.scheduled + 50 * self._scrapes,
                admitted=verification.admitted + 30 * self._scrapes,
                expected=verification.expected + 20.0 * self._scrapes,
            )
        write_snapshot(
            engine_file(str(self._folder), self.snapshot.engine),
            dataclasses.replace(
                self.snapshot,
                verification=verification,
                probes={**self.snapshot.probes, "measured": measured},
                probe_seconds=self.snapshot.probe_seconds + 0.01 * self._scrapes,
                layers=tuple(
                    LayerHistogram(layer, module, (1e-5, 1e-4), (n, 3 * n, 4 * n), 2e-4 * n)
                    for n in (self._scrapes,)
                    for layer in (0, 1)
                    for module in ("attention", "dense_ffn", "moe_ffn")
                ),
            ),
        )
        controlled = ControlSnapshot(
            self.snapshot.model_name,
            self.snapshot.engine,
            ControlState.DECIDING,
            live_draft_length=3,
        )
        write_whole(control_file(str(self._folder), self.snapshot.engine), encode(controlled))
        return generate_latest(self._registry)


@contextmanager
def serving(shown: Recorded, port: int = 0) -> Iterator[str]:
    """The URL of a server that shows it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if shown.failing or self.path != "/metrics":
                self.send_error(500 if shown.failing else 404)
                return
            body = shown.text()
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)
