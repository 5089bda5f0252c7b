"""Lays out what the probe says in a scrape's text."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vllm_nfp.results.exposition import check_samples, samples_in
from vllm_nfp.results.fetching import ScrapeError, deadline
from vllm_nfp.types import Basis

MOST_ENGINES = 1024
MOST_ROWS = 1 << 16
"""As in the hand-over file of an engine (:data:`vllm_nfp.results.snapshot.MOST_ROWS`)."""
MOST_DRAWN_ROWS = 4096
"""Estimates that a table for people holds; drawing one takes about a millisecond."""
_COUNT = re.compile("[0-9]{1,10}")

Samples = Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
"""Name of a metric -> its samples, as labels and value."""


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
    basis: Basis = Basis.MEASURED
    """Servers from before the cost surface show measured estimates alone."""


@dataclass(frozen=True, slots=True)
class Status:
    """What the probe of one engine is doing."""

    model_name: str
    engine: str
    state: str
    overhead_ratio: float
    probes: Mapping[str, int]
    prior: str = ""
    """What answers rest on where nothing was measured; empty: not told."""
    prior_reason: str = ""
    """Why it is generic, or why a profile was refused; empty otherwise."""
    jumps: int = 0
    """Times that older measurements lost their weight."""


@dataclass(frozen=True, slots=True)
class Scrape:
    """The probe's part of one scrape."""

    rows: tuple[Row, ...]
    statuses: tuple[Status, ...]


def parse(text: str, end: float | None = None) -> Scrape:
    """The probe's metrics in a scrape's text.

    Args:
        end: see :func:`find_samples`.

    Raises:
        ScrapeError: if the text is no Prometheus exposition, has no probe in it, or cannot be read
            in time.
    """
    return scrape_of(read_samples(text, end=end))


def read_samples(text: str, names: Iterable[str] = (), end: float | None = None) -> Samples:
    """The probe's samples in a scrape's text, by metric; and those of the further names.

    Args:
        end: see :func:`find_samples`.

    Raises:
        ScrapeError: if the text is no Prometheus exposition, has no probe in it, or cannot be read
            in time.
    """
    samples = find_samples(text, names, end)
    if "vllm_nfp_state" not in samples:
        raise ScrapeError("the server has no NFP probe: start it with --nfp-probe")
    return samples


def find_samples(text: str, names: Iterable[str], end: float | None = None) -> Samples:
    """The samples of these names and the probe's, of a server that may have no probe.

    Args:
        end: by when it has to be done, see :func:`vllm_nfp.results.fetching.deadline`; None: as if
            fetching began now.

    Raises:
        ScrapeError: if the text is no Prometheus exposition, cannot be read in time, or holds more
            batch sizes, contexts, tolerances or counts of positions than settings allow.
    """
    others = frozenset(names)
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    for sample in samples_in(text, deadline() if end is None else end, others):
        # NaN: a series that is gone, where vLLM itself carries the metrics.
        ours = sample.name.startswith("vllm_nfp_") and not _is_nan(sample.value)
        if ours or sample.name in others:
            samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    check_samples(samples)
    return samples


def _is_nan(value: float) -> bool:
    return isinstance(value, float) and math.isnan(value)  # an integer may be beyond all floats


def scrape_of(samples: Samples) -> Scrape:
    """The probe's results and states among the samples.

    Raises:
        ScrapeError: if they are not labelled as this version of the probe labels them, or are of
            more engines or estimates than a server may have.
    """
    with refusing_strange_labels():
        found = Scrape(_rows(samples), _statuses(samples))
    for what, many, most in (
        ("engines", len(found.statuses), MOST_ENGINES),
        ("estimates", len(found.rows), MOST_ROWS),
    ):
        if many > most:
            raise ScrapeError(
                f"the server shows {many} {what}, more than {most}: is it a vLLM server?"
            )
    return found


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
    bases = {
        tuple(labels[key] for key in _LINE): Basis(labels["basis"])
        for labels, _ in samples.get("vllm_nfp_positions_basis", ())
    }
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
            basis=bases.get(line, Basis.MEASURED),
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
    jumps = {labels["engine"]: v for labels, v in samples.get("vllm_nfp_surface_jumps_total", ())}
    priors = {
        labels["engine"]: (labels["prior"], labels["reason"])
        for labels, _ in samples.get("vllm_nfp_prior_info", ())
    }
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
            *priors.get(labels["engine"], ("", "")),
            int(jumps.get(labels["engine"], 0)),
        )
        for labels, value in samples["vllm_nfp_state"]
        if value == 1.0
    )
