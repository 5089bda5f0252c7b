"""Reads Prometheus' text format from a server that may send anything."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING

from vllm_nfp.config import MOST_BATCH_SIZES, MOST_CONTEXTS, MOST_EPSILONS, MOST_POSITION_COUNTS
from vllm_nfp.results.fetching import ScrapeError

if TYPE_CHECKING:
    from prometheus_client.samples import Sample

MOST_LINE_CHARACTERS = 1 << 16
"""Longest line of metrics: ten labels of the longest that this package writes
(:data:`vllm_nfp.text.MOST_LABEL`) and more. The parser's time grows with the square of a line."""
FIRST_LINES = 1000
"""Lines that are parsed whatever they are, so that what is no exposition is seen."""
LARGEST_VALUE = 1e300
_Sample = tuple[Mapping[str, str], float]


def samples_in(text: str, end: float, names: Collection[str] = ()) -> Iterator[Sample]:
    """The samples of a scrape's text, in its order.

    Args:
        end: by when it has to be done, as ``time.monotonic`` counts seconds.
        names: metrics that are wanted beside the probe's. Of a long text no others are parsed.

    Raises:
        ScrapeError: if the text is no Prometheus exposition, or cannot be read in time.
    """
    from prometheus_client.parser import text_fd_to_metric_families  # most imports do without

    read = [""]
    lines = _remembered(_wanted(_lines_in_time(text, end), frozenset(names)), read)
    try:
        for family in text_fd_to_metric_families(lines):  # type: ignore[arg-type]  # it iterates
            yield from family.samples
    except ScrapeError:
        raise
    except Exception:  # whatever the parser meets: it is written for its own output
        raise ScrapeError(
            f"the metrics are not in Prometheus' text format ({_quoted(read[0], text)}): is it a "
            f"vLLM server?"
        ) from None


def _remembered(lines: Iterator[str], last: list[str]) -> Iterator[str]:
    """The same lines; ``last`` holds the one that was asked for last, which the parser is at."""
    for line in lines:
        last[0] = line
        yield line


def _wanted(lines: Iterator[str], names: frozenset[str]) -> Iterator[str]:
    """The lines of the probe's metrics and of these; the first of any, which may be no metrics.

    A parsed line takes some 30 us, so that a server's tens of thousands of histograms would take
    longer than one waits.
    """
    for number, line in enumerate(lines):
        if number < FIRST_LINES:
            yield line
            continue
        name = line.split("{", 1)[0].split(" ", 1)[0]
        if name == "#":
            name = line.split(" ", 3)[2] if line.count(" ") > 2 else ""
        if name.startswith("vllm_nfp_") or name in names:
            yield line


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


def _quoted(line: str, text: str) -> str:
    """The line that the parser refused; bytes that are no text are not shown."""
    # Of such bytes a part may look like text.
    if "\ufffd" in text or not all(sign.isprintable() or sign.isspace() for sign in line):
        return "they hold bytes that are no text"
    return f"a line is {line.strip()!r:.200}"


_GRID = {
    "batch_size": MOST_BATCH_SIZES,
    "context": MOST_CONTEXTS,
    "epsilon": MOST_EPSILONS,
    "positions": MOST_POSITION_COUNTS,
}
"""Labels that settings bound, and how many values they allow."""


def check_samples(samples: Mapping[str, Sequence[_Sample]]) -> None:
    """Refuse more than a probe may show, so that reading and choosing by it stay quick.

    Args:
        samples: by metric, as labels and value.

    Raises:
        ScrapeError: naming the metric.
    """
    strange = [name for name, found in samples.items() if not all(map(_is_finite, found))]
    if strange:
        raise ScrapeError(f"the server's {strange[0]} is not a finite number")
    for name in ("vllm_nfp_positions", "vllm_nfp_module_latency_seconds"):
        found = samples.get(name, ())
        for label, most in _GRID.items():
            if len({labels.get(label) for labels, _ in found}) > most:
                raise ScrapeError(
                    f"the server's {name} has more than {most} values of {label}, which no "
                    f"settings allow: is it a server with this vllm-nfp?"
                )


def _is_finite(sample: _Sample) -> bool:
    return abs(sample[1]) < LARGEST_VALUE  # which NaN is not; an integer may be beyond all floats
