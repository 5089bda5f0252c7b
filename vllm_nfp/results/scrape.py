"""Reads a server's /metrics and lays out what the probe says there."""

from __future__ import annotations

import http.client
import math
import re
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO

from vllm_nfp.config import MOST_BATCH_SIZES, MOST_CONTEXTS, MOST_EPSILONS, MOST_POSITION_COUNTS
from vllm_nfp.text import printable
from vllm_nfp.types import Basis
from vllm_nfp.web import UrlError, metrics_address, open_url

TIMEOUT_SECONDS = 10.0
"""Longest wait for a part of an answer."""
LIMIT_IN_TIMEOUTS = 3
"""Reading all of an answer and its metrics takes at most so many timeouts."""
MAX_BYTES = 64 << 20
"""Largest answer, unpacked."""
MOST_LINE_CHARACTERS = 1 << 16
"""Longest line of metrics: ten labels of the longest that this package writes
(:data:`vllm_nfp.text.MOST_LABEL`) and more. The parser's time grows with the square of a line."""
MOST_ENGINES = 1024
MOST_ROWS = 1 << 16
"""As in the hand-over file of an engine (:data:`vllm_nfp.results.snapshot.MOST_ROWS`)."""
MOST_DRAWN_ROWS = 4096
"""Estimates that a table for people holds; drawing one takes about a millisecond."""
LARGEST_VALUE = 1e300
_GZIP, _GZIP_BITS = b"\x1f\x8b", 31
"""How gzip data begin (RFC 1952), and what zlib calls them."""
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


class _UnpackError(OSError):
    """An answer that is packed in a way, or so, that it cannot be unpacked."""


def deadline(timeout_seconds: float = TIMEOUT_SECONDS) -> float:
    """By when a reading that begins now has to end, as ``time.monotonic`` counts seconds."""
    return time.monotonic() + LIMIT_IN_TIMEOUTS * timeout_seconds


def fetch(url: str, timeout_seconds: float = TIMEOUT_SECONDS) -> str:
    """The text of ``url``/metrics.

    Raises:
        ScrapeError: if the server does not answer, or with nothing that can be read.
    """
    try:
        address = metrics_address(url)
    except UrlError as error:
        raise ScrapeError(str(error)) from None
    try:
        raw = get(address, timeout_seconds, MAX_BYTES + 1)
    except _UnpackError as error:
        raise ScrapeError(f"{address} cannot be read: {error}; is it a vLLM server?") from None
    except OSError as error:
        # The server may have had a say in what went wrong.
        why = printable(f"{error}")[:200]
        raise ScrapeError(f"{address} cannot be read ({why}): is the server up?") from None
    if len(raw) > MAX_BYTES:
        raise ScrapeError(f"{address} is larger than {MAX_BYTES} bytes: is it a vLLM server?")
    return raw.decode("utf-8", errors="replace")


def get(address: str, timeout_seconds: float, most_bytes: int) -> bytes:
    """The first ``most_bytes`` of what an address answers, unpacked if it is gzip data.

    Args:
        timeout_seconds: longest wait for a part of the answer; three times that for all of it.

    Raises:
        OSError: whatever goes wrong, a late end included.
    """
    limit = LIMIT_IN_TIMEOUTS * timeout_seconds
    end = deadline(timeout_seconds)
    received = bytearray()
    try:
        with open_url(address, timeout_seconds, end) as answer:
            encoding = answer.headers.get("Content-Encoding", "")
            while len(received) < most_bytes:
                # The timeout holds for one packet: a server that drips would never reach it.
                if time.monotonic() > end:
                    raise TimeoutError(f"it did not end within {limit:g} s")
                part = answer.read1(min(1 << 16, most_bytes - len(received)))
                if not part:
                    break
                received += part
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from None
    return _unpacked(bytes(received), encoding, most_bytes, end)


def _unpacked(raw: bytes, encoding: str, most_bytes: int, end: float) -> bytes:
    """What was packed, up to ``most_bytes`` of it.

    We ask for no packing; a server or a proxy may pack all the same, and not say so.

    Raises:
        _UnpackError: for another packing than gzip, and for gzip data that are not whole.
    """
    named = encoding.strip().lower()
    if named not in ("", "identity", "gzip", "x-gzip"):
        raise _UnpackError(f"it is packed as {printable(encoding)!r:.60}, not as gzip")
    if "gzip" not in named and not raw.startswith(_GZIP):
        return raw
    found = bytearray()
    while raw and len(found) < most_bytes:
        if time.monotonic() > end:
            raise _UnpackError("unpacking its gzip data took too long")
        member = zlib.decompressobj(_GZIP_BITS)
        try:
            found += member.decompress(raw, most_bytes - len(found))
        except zlib.error:
            raise _UnpackError("its gzip data are damaged") from None
        if not member.eof and len(found) < most_bytes:
            raise _UnpackError("its gzip data end too early")
        raw = member.unused_data
    return bytes(found)


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
        end: by when it has to be done, see :func:`deadline`; None: as if fetching began now.

    Raises:
        ScrapeError: if the text is no Prometheus exposition, cannot be read in time, or holds more
            batch sizes, contexts, tolerances or counts of positions than settings allow.
    """
    from prometheus_client.parser import text_fd_to_metric_families  # most imports do without

    others = frozenset(names)
    samples: dict[str, list[tuple[Mapping[str, str], float]]] = {}
    lines = _lines_in_time(text, deadline() if end is None else end)
    try:
        for family in text_fd_to_metric_families(lines):  # type: ignore[arg-type]  # it iterates
            for sample in family.samples:
                # NaN: a series that is gone, where vLLM itself carries the metrics.
                ours = sample.name.startswith("vllm_nfp_") and not math.isnan(sample.value)
                if ours or sample.name in others:
                    samples.setdefault(sample.name, []).append((sample.labels, sample.value))
    except ScrapeError:
        raise
    except Exception as error:  # whatever the parser meets: it is written for its own output
        raise ScrapeError(
            f"the metrics are not in Prometheus' text format: {_quoted(error, text)}"
        ) from None
    strange = [name for name, found in samples.items() if not all(map(_is_finite, found))]
    if strange:
        raise ScrapeError(f"the server's {strange[0]} is not a finite number")
    _check_grid(samples)
    return samples


def _lines_in_time(text: str, end: float) -> Iterator[str]:
    """The lines of a text.

    Raises:
        ScrapeError: where they are still asked for after ``end``, or one is too long.
    """
    for line in StringIO(text):
        if time.monotonic() > end:
            raise ScrapeError(
                f"the metrics are too large to be read in time ({len(text) >> 20} MiB): is it a "
                f"vLLM server?"
            )
        if len(line) > MOST_LINE_CHARACTERS:
            raise ScrapeError(
                f"the metrics hold a line of more than {MOST_LINE_CHARACTERS} characters: is it a "
                f"vLLM server?"
            )
        yield line


def _quoted(error: Exception, text: str) -> str:
    """An error of the parser, which quotes the server; bytes that are no text are not shown."""
    told = f"{error}"
    # Of such bytes it may quote a part that looks like text.
    if "\ufffd" in text or not all(sign.isprintable() or sign.isspace() for sign in told):
        return "they hold bytes that are no text"
    return f"{error!r:.200}"


_GRID = {
    "batch_size": MOST_BATCH_SIZES,
    "context": MOST_CONTEXTS,
    "epsilon": MOST_EPSILONS,
    "positions": MOST_POSITION_COUNTS,
}
"""Labels that settings bound, and how many values they allow."""


def _check_grid(samples: Samples) -> None:
    """No more than a probe may measure, so that showing it and choosing by it stay quick."""
    for name in ("vllm_nfp_positions", "vllm_nfp_module_latency_seconds"):
        found = samples.get(name, ())
        for label, most in _GRID.items():
            if len({labels.get(label) for labels, _ in found}) > most:
                raise ScrapeError(
                    f"the server's {name} has more than {most} values of {label}, which no "
                    f"settings allow: is it a server with this vllm-nfp?"
                )


def _is_finite(sample: tuple[Mapping[str, str], float]) -> bool:
    return abs(sample[1]) < LARGEST_VALUE  # which NaN is not; an integer may be beyond all floats


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
