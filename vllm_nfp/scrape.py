"""Reads a server's /metrics and lays out what the probe says there."""

from __future__ import annotations

import http.client
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from vllm_nfp.text import printable
from vllm_nfp.web import UrlError, metrics_address, open_url

MAX_BYTES = 64 << 20
LARGEST_VALUE = 1e300
_COUNT = re.compile("[0-9]{1,10}")

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
    try:
        address = metrics_address(url)
    except UrlError as error:
        raise ScrapeError(str(error)) from None
    try:
        raw = get(address, timeout_seconds, MAX_BYTES + 1)
    except OSError as error:
        # The server may have had a say in what went wrong.
        why = printable(f"{error}")[:200]
        raise ScrapeError(f"{address} cannot be read ({why}): is the server up?") from None
    if len(raw) > MAX_BYTES:
        raise ScrapeError(f"{address} is larger than {MAX_BYTES} bytes: is it a vLLM server?")
    return raw.decode("utf-8", errors="replace")


def get(address: str, timeout_seconds: float, most_bytes: int) -> bytes:
    """The first ``most_bytes`` of what an address answers.

    Args:
        timeout_seconds: longest wait for a part of the answer; three times that for all of it.

    Raises:
        OSError: whatever goes wrong, a late end included.
    """
    limit = 3 * timeout_seconds
    deadline = time.monotonic() + limit
    received = bytearray()
    try:
        with open_url(address, timeout_seconds, deadline) as answer:
            while len(received) < most_bytes:
                # The timeout holds for one packet: a server that drips would never reach it.
                if time.monotonic() > deadline:
                    raise TimeoutError(f"it did not end within {limit:g} s")
                part = answer.read1(min(1 << 16, most_bytes - len(received)))
                if not part:
                    break
                received += part
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    return bytes(received)


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
    except Exception as error:  # whatever the parser meets: it is written for its own output
        raise ScrapeError(
            f"the metrics are not in Prometheus' text format: {error!r:.200}"
        ) from None
    strange = [name for name, found in samples.items() if not all(map(_is_finite, found))]
    if strange:
        raise ScrapeError(f"the server's {strange[0]} is not a finite number")
    return samples


def _is_finite(sample: tuple[Mapping[str, str], float]) -> bool:
    return abs(sample[1]) < LARGEST_VALUE  # which NaN is not; an integer may be beyond all floats


def scrape_of(samples: Samples) -> Scrape:
    """The probe's results and states among the samples.

    Raises:
        ScrapeError: if they are not labelled as this version of the probe labels them.
    """
    with refusing_strange_labels():
        return Scrape(_rows(samples), _statuses(samples))


@contextmanager
def refusing_strange_labels() -> Iterator[None]:
    """Turn what a missing label, or one that is no number, leads to into a refusal.

    Raises:
        ScrapeError: in place of a KeyError or ValueError.
    """
    try:
        yield
    except KeyError as error:
        raise ScrapeError(
            f"the probe's metrics lack {error.args[0]!r:.80}: is the server's vllm-nfp of "
            f"another version?"
        ) from None
    except ValueError as error:
        raise ScrapeError(f"the probe's metrics hold a strange label: {error!s:.120}") from None


def count(text: str) -> int:
    """A batch size, context or count of positions among the labels.

    Raises:
        ValueError: if it is none.
    """
    if not _COUNT.fullmatch(text):
        raise ValueError(f"{text!r:.80} is no count")
    return int(text)


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
            batch_size=count(line[2]),
            context=count(line[3]),
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
