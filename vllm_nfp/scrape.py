"""Reads a server's /metrics and lays out what the probe says there."""

from __future__ import annotations

import math
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

MAX_BYTES = 64 << 20

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""Name of a metric -> its samples, as labels and value."""


class ScrapeError(RuntimeError):
    """The server's metrics could not be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """NFP of one module in one cell."""

    engine: str
    module: str
    batch_size: int
    context: int
    epsilon: float
    positions: int
    lower: int
    upper: int
    at_limit: bool
    idle_compute: int | None
    predicted: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """What the probe of one engine is doing."""

    model_name: str
    engine: str
    state: str
    overhead_ratio: float
    probes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Scrape:
    """The probe's part of one scrape."""

    rows: tuple[Row, ...]
    statuses: tuple[Status, ...]


def fetch(url: str, timeout_seconds: float = 10.0) -> str:
    """The text of ``url``/metrics.

    Raises:
        ScrapeError: if the server does not answer.
    """
    address = url.rstrip("/")
    if not address.startswith(("http://", "https://")):
        raise ScrapeError(f"{url!r} is no URL: give one like http://localhost:8000")
    address = address if address.endswith("/metrics") else f"{address}/metrics"
    try:
        with urllib.request.urlopen(address, timeout=timeout_seconds) as answer:
            raw: bytes = answer.read(MAX_BYTES + 1)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ScrapeError(f"{address} cannot be read ({error}): is the server up?") from None
    if len(raw) > MAX_BYTES:
        raise ScrapeError(f"{address} is larger than {MAX_BYTES} bytes: is it a vLLM server?")
    return raw.decode("utf-8", errors="replace")


def parse(text: str) -> Scrape:
    """The probe's metrics in a scrape's text.

    Raises:
        ScrapeError: if the text is no Prometheus exposition or has no probe in it.
    """
    return scrape_of(read_samples(text))


def read_samples(text: str, names: Iterable[str] = ()) -> Samples:
    """The probe's samples in a scrape's text, by metric; and those of the further names.

    Raises:
        ScrapeError: if the text is no Prometheus exposition or has no probe in it.
    """
    samples = find_samples(text, names)
    if "vllm_nfp_state" not in samples:
        raise ScrapeError("the server has no NFP probe: start it with --nfp-probe")
    return samples


def find_samples(text: str, names: Iterable[str]) -> Samples:
    """The samples of these names and the probe's, of a server that may have no probe.

    Raises:
        ScrapeError: if the text is no Prometheus exposition.
    """
    others = frozenset(names)
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                # NaN: a series that is gone, where vLLM itself carries the metrics.
                ours = sample.name.startswith("vllm_nfp_") and not math.isnan(sample.value)
                if ours or sample.name in others:
                    samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    except (ValueError, IndexError, KeyError) as error:
        raise ScrapeError(f"the metrics are not in Prometheus' text format: {error}") from None
    return samples


def scrape_of(samples: Samples) -> Scrape:
    """The probe's results and states among the samples."""
    return Scrape(_rows(samples), _statuses(samples))


_LINE = ("engine", "module", "batch_size", "context", "epsilon")


def _rows(samples: Samples) -> tuple[Row, ...]:
    def by_line(name: str) -> dict[tuple[str, ...], float]:
        found = samples.get(f"vllm_nfp_{name}", ())
        return {tuple(labels[key] for key in _LINE): value for labels, value in found}

    lower, upper = by_line("positions_lower"), by_line("positions_upper")
    at_limit = by_line("positions_at_limit")
    idle, predicted = by_line("idle_compute_positions"), by_line("predicted_positions")
    rows = [
        Row(
            engine=line[0],
            module=line[1],
            batch_size=int(line[2]),
            context=int(line[3]),
            epsilon=float(line[4]),
            positions=int(value),
            lower=int(lower[line]),
            upper=int(upper[line]),
            at_limit=bool(at_limit[line]),
            idle_compute=int(idle[line]) if line in idle else None,
            predicted=int(predicted[line]) if line in predicted else None,
        )
        for line, value in by_line("positions").items()
    ]
    return tuple(
        sorted(
            rows, key=lambda row: (row.engine, row.module, row.context, row.batch_size, row.epsilon)
        )
    )


def _statuses(samples: Samples) -> tuple[Status, ...]:
    ratios = {labels["engine"]: v for labels, v in samples.get("vllm_nfp_overhead_ratio", ())}
    probes: dict[str, dict[str, int]] = {}
    for labels, value in samples.get("vllm_nfp_probes_total", ()):
        probes.setdefault(labels["engine"], {})[labels["outcome"]] = int(value)
    return tuple(
        Status(
            labels["model_name"],
            labels["engine"],
            labels["state"],
            ratios.get(labels["engine"], 0.0),
            probes.get(labels["engine"], {}),
        )
        for labels, value in samples["vllm_nfp_state"]
        if value == 1.0
    )
