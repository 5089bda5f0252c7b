"""Where a recorded comparison lost: drafting, the choice, or the host. Needs no GPU.

    python -m benchmarks.verification.offline RECORD.json.gz --traces TRACES.npz

Takes what :mod:`benchmarks.verification.compare` recorded with fixed draft lengths as the truth of
what steps take, and replays the same streams of drafts through vLLM's choice: its estimator, its
confidences of the step before, and its table of costs. Three shares of the best fixed length make
up what an adaptive way reached:

- ``drafting``: what the choice reaches with the true costs and no host time of its own. It drafts
  as many tokens at every step, and a fixed length only those that pay;
- ``choice``: what the recorded tokens of a step reach of that;
- ``host``: what is left at the recorded time of a step.

The second table has what the prices of this project reach if the host takes longer for a step:
``bare`` prices hold the device's work, ``one`` the host's time of a mean step as well, and ``two``
that of whole and of cut steps. The third table has what fewer drafts at every step reach with the
true costs and no host time: each draft that is not made saves its time. The fourth table has what
is lost where a step takes what the slower of host and device takes, and the host's time is added to
the device's in the prices. Below it stands what ``vllm-nfp recommend`` says of these steps, with
the acceptance that a server would have counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from benchmarks.serving.traces import read_traces
from benchmarks.verification.load import Point
from benchmarks.verification.plan import FIXED, LONGEST, STREAM_PLACES, STREAMS, WARM_UP, points
from benchmarks.verification.streams import FIRST_TOKEN, Streams, make_streams
from benchmarks.verification.table import MEASURED, NONE, OWN, Load, read_record
from benchmarks.verification.walk import Estimator, Walk, walk
from vllm_nfp.draft.acceptance import from_counters
from vllm_nfp.draft.adaptive import AdaptiveDrafts, adaptive_drafts, adaptive_sentence
from vllm_nfp.draft.curve import curve_of_seconds
from vllm_nfp.draft.demand import Demand, DraftCost
from vllm_nfp.types import Basis

FloatArray = NDArray[np.float64]

DRAFT_MS = 0.25
"""One more draft of up to 4 requests: K = 3 to K = 7 took 0.21 to 0.27 ms for each (2026-11-28,
H200, Qwen3-8B, 24 layers, contexts of 1024 and 8192)."""
SPECULATION_MS = 0.2
"""A step without drafts takes that less than one that could have verified some: the same record."""
UNPRICED_MS = 0.5
"""Sampling, which prices do not hold, in the second table: an assumption, as the host's times."""
SHORTER = (3, 4, 5, 6, LONGEST)
"""Drafts of a step in the third table."""
HOST_MS = 1.4
"""More than with a fixed length: the least that was seen from 1 to 8 requests."""
CUT_MS = 1.0
"""Once more, of steps that cut drafts: an assumption."""
SLOWER = (1.0, 1.5, 2.0, 3.0)
"""In the fourth table the host needs so many times what the device takes at least. With 1 to 4
requests it needed 1.2 to 2.1 times that (2026-11-29, H200, Qwen3-30B-A3B, 20 layers)."""
ROUNDS = 4
"""Walks after which what is added to a step changes no more."""
COUNTED_STEPS = 400
"""Steps of each stream over which acceptance is counted."""
BEYOND = {("1k", 64): 13.9, ("mixed", 64): 20.5, ("1k", 128): 33.5}
"""Milliseconds with K = 7 where the record left it out, from 2026-11-28-h200x2-at-defaults."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a recorded way did under a load."""

    tokens: float
    """Of a step, for each request."""
    milliseconds: float
    """From step to step."""

    @property
    def speed(self) -> float:
        """Tokens each millisecond, for each request."""
        return self.tokens / self.milliseconds


def rows(record: Mapping[str, Any]) -> dict[Load, dict[str, Row]]:
    """The last pass of each way, by load; loads that were not held are left out."""
    found: dict[Load, dict[str, Row]] = {}
    for row in record["rows"]:
        if not row["whole"]:
            continue
        counted = row["counted"]
        drafts = counted.get("vllm:spec_decode_num_drafts_total", 0.0)
        accepted = counted.get("vllm:spec_decode_num_accepted_tokens_total", 0.0)
        tokens = 1.0 + accepted / drafts if drafts else 1.0
        period = 1e3 * row["requests"] * tokens / row["tokens_per_second"]
        found.setdefault((row["context"], row["requests"]), {})[row["contender"]] = Row(
            tokens, period
        )
    return found


def true_ms(load: Load, held: Mapping[str, Row]) -> FloatArray:
    """A step that drafts LONGEST, by drafts that are verified, without an adaptive host time.

    A shorter fixed length takes what it verifies and fewer drafts. Where the host limited one, a
    longer one was no slower, and tells what the device takes at most. Beyond the longest length of
    a record, which left out those that lose, a step takes ever more, as it did up to there.
    """
    _, requests = load
    steps = {0: held[NONE].milliseconds + SPECULATION_MS} if NONE in held else {}
    for length in FIXED:
        name = f"fixed-{length}"
        took = held[name].milliseconds if name in held else None
        if took is None and length == LONGEST:
            took = BEYOND.get(load)
        if took is not None:
            steps[length * requests] = took - DRAFT_MS * length
    drafts, least = np.array([*steps]), np.array([*steps.values()])
    least = np.minimum.accumulate(least[::-1])[::-1]
    all_drafts = np.arange(LONGEST * requests + 1)
    verifying = np.interp(all_drafts, drafts, least)
    slope = (least[-1] - least[-2]) / (drafts[-1] - drafts[-2]) if len(least) > 1 else 0.0
    verifying += slope * np.maximum(0, all_drafts - drafts[-1])
    return np.asarray(verifying + DRAFT_MS * LONGEST)


def drafting(true: FloatArray, requests: int, drafts: int) -> FloatArray:
    """The same of steps that draft fewer tokens; ``true`` drafts LONGEST."""
    return true[: drafts * requests + 1] - DRAFT_MS * (LONGEST - drafts)


@dataclass(frozen=True, slots=True)
class Shares:
    """Of the best fixed length's speed."""

    drafting: float
    choice: float
    host: float

    @property
    def all(self) -> float:
        """What was reached."""
        return self.drafting * self.choice * self.host


def shares(best: Row, ideal: Walk, reached: Sequence[Walk], found: Row) -> Shares:
    """Where a way lost.

    Args:
        ideal: what the choice reaches with the true costs.
        reached: with ever more drafts verified, whatever they cost.
    """
    tokens = [walk.tokens for walk in reached]
    device = float(np.interp(found.tokens, tokens, [walk.milliseconds for walk in reached]))
    return Shares(
        ideal.speed / best.speed,
        found.tokens / device / ideal.speed,
        device / found.milliseconds,
    )


class Offline:
    """Walks over the streams of a record.

    Args:
        streams: what requests meet.
        held: by load.
        drafts: of each step of the ways that verified adaptively.
    """

    def __init__(
        self, streams: Streams, held: Mapping[Load, Mapping[str, Row]], drafts: int = LONGEST
    ) -> None:
        self._streams, self._held, self._drafts = streams, held, drafts
        warm = Estimator(LONGEST)
        true = true_ms(("1k", WARM_UP.requests), held["1k", WARM_UP.requests])
        walk(streams, WARM_UP, true, true, warm)
        self._fit = warm

    def best(self, load: Load) -> tuple[str, Row]:
        """The best fixed length, none among them."""
        fixed = {n: r for n, r in self._held[load].items() if n == NONE or n.startswith("fixed-")}
        return max(fixed.items(), key=lambda item: item[1].speed)

    def shares(self, name: str) -> dict[Load, Shares]:
        """Of a way that verifies adaptively."""
        found, streams = {}, self._streams.cut(self._drafts)
        for point, load in self._loads():
            if name not in self._held[load]:
                continue  # it was not held
            true = drafting(true_ms(load, self._held[load]), point.requests, self._drafts)
            ideal = walk(streams, point, true, true, self._fit.cut(self._drafts))
            reached = [
                walk(streams, point, true, true, self._fit.cut(self._drafts), fixed=drafts)
                for drafts in range(0, len(true), max(1, point.requests // 2))
            ]
            found[load] = shares(self.best(load)[1], ideal, reached, self._held[load][name])
        return found

    def _loads(self) -> Iterator[tuple[Point, Load]]:
        """Those that the record has."""
        for point in points():
            load = point.context, point.requests
            if load in self._held:
                yield point, load

    def priced(self, host: float, cut: float) -> dict[Load, tuple[float, float, float]]:
        """Shares of the best fixed length with bare prices, one host time in them, and two.

        Args:
            host: milliseconds that each step takes more than with a fixed length.
            cut: those that steps which cut drafts take once more.
        """
        found = {}
        for point, load in self._loads():
            work = true_ms(load, self._held[load])
            took, price = work + host, work - UNPRICED_MS
            took[:-1] += cut
            bare, one, both = (
                walk(self._streams, point, costs, took, self._fit.copy()).speed
                / self.best(load)[1].speed
                for costs in (price, price + UNPRICED_MS + host + cut, took)
            )
            found[load] = bare, one, both
        return found

    def shorter(self) -> dict[Load, list[float]]:
        """Shares of the best fixed length if each step drafts so many of SHORTER."""
        found: dict[Load, list[float]] = {}
        for point, load in self._loads():
            true, best = true_ms(load, self._held[load]), self.best(load)[1]
            for drafts in SHORTER:
                took = drafting(true, point.requests, drafts)
                ran = walk(self._streams.cut(drafts), point, took, took, self._fit.cut(drafts))
                found.setdefault(load, []).append(ran.speed / best.speed)
        return found

    def added(self, slower: float) -> dict[Load, float]:
        """Speed if the host's time is added to the device's, over that with both known apart.

        Args:
            slower: times that the host needs of what the device takes for no verified draft.
        """
        streams, found = self._streams.cut(self._drafts), {}
        for point, load in self._loads():
            work = drafting(true_ms(load, self._held[load]), point.requests, self._drafts)
            took = np.maximum(work, slower * work[0])
            known = walk(streams, point, took, took, self._fit.cut(self._drafts))
            beside = 0.0
            for _ in range(ROUNDS):
                ran = walk(streams, point, work + beside, took, self._fit.cut(self._drafts))
                verified = round(ran.verified * point.requests)
                beside = max(0.0, ran.milliseconds - float(work[verified]))
            found[load] = float(ran.speed / known.speed)
        return found

    def chosen_by(self, prices: Callable[[Load], FloatArray | None]) -> dict[Load, float | None]:
        """What a choice by other prices reaches of that by the true ones.

        Args:
            prices: of a load: milliseconds by drafts that a step verifies; None where it has none.
        """
        streams, found = self._streams.cut(self._drafts), {}
        for point, load in self._loads():
            took = drafting(true_ms(load, self._held[load]), point.requests, self._drafts)
            known = walk(streams, point, took, took, self._fit.cut(self._drafts))
            costs = prices(load)
            found[load] = (
                None
                if costs is None
                else walk(streams, point, costs, took, self._fit.cut(self._drafts)).speed
                / known.speed
            )
        return found

    def advised(self) -> AdaptiveDrafts:
        """What ``recommend`` says to draft, if a server with LONGEST drafts has counted."""
        curves = []
        for index, (point, load) in enumerate(self._loads()):
            verifying = true_ms(load, self._held[load]) - DRAFT_MS * LONGEST
            seconds = {k + 1: verifying[k * point.requests] / 1e3 for k in range(LONGEST + 1)}
            curve = curve_of_seconds(point.requests, index + 1, seconds)
            curves.append(replace(curve, bases=(Basis.MEASURED,) * len(curve.points)))
        cost = DraftCost(seconds_per_token=DRAFT_MS / 1e3)
        accepted = counted(self._streams)
        acceptance = from_counters(
            float(accepted.size), [float((accepted > place).sum()) for place in range(LONGEST)]
        )
        found = adaptive_drafts(curves, Demand(acceptance, cost, running=LONGEST))
        assert found is not None
        return found


def counted(streams: Streams) -> NDArray[np.int64]:
    """Accepted tokens of each step if all drafts are verified; [steps, streams]."""
    places, found = np.zeros(len(streams.accepted), dtype=np.int64), []
    for _ in range(COUNTED_STEPS):
        accepted = streams.accepted[np.arange(len(places)), places % streams.accepted.shape[1]]
        found.append(accepted)
        places = places + 1 + accepted
    return np.array(found)


def offline_of(record: Mapping[str, Any], traces: Path) -> Offline:
    """The walks of a record over the streams that its servers met."""
    streams = make_streams(read_traces(traces)[0], STREAMS, STREAM_PLACES, STREAMS + FIRST_TOKEN)
    return Offline(streams, rows(record), record.get("adaptive_drafts", LONGEST))


def tables(record: Mapping[str, Any], traces: Path, host: float, cut: float) -> str:
    """All tables, in Markdown."""
    offline = offline_of(record, traces)
    lines = [
        "| context, requests | best | measured: drafting, choice, host | vLLM's: the same |",
        "| --- " * 4 + "|",
    ]
    measured, own = offline.shares(MEASURED), offline.shares(OWN)
    for load, of in measured.items():
        parts = [
            f"{s.drafting:.2f} x {s.choice:.2f} x {s.host:.2f} = {s.all:.2f}" if s else ""
            for s in (of, own.get(load))
        ]
        lines.append(f"| {load[0]}, {load[1]} | {offline.best(load)[0]} | {' | '.join(parts)} |")
    lines += ["", "| context, requests | bare | one | two |", "| --- " * 4 + "|"]
    for load, speeds in offline.priced(host, cut).items():
        lines.append(f"| {load[0]}, {load[1]} | {' | '.join(f'{s:.3f}' for s in speeds)} |")
    named = " | ".join(f"{drafts} drafts" for drafts in SHORTER)
    lines += ["", f"| context, requests | {named} |", "| --- " * (1 + len(SHORTER)) + "|"]
    for load, of_drafts in offline.shorter().items():
        lines.append(f"| {load[0]}, {load[1]} | {' | '.join(f'{s:.3f}' for s in of_drafts)} |")
    named = " | ".join(f"host {slower:g} times the device" for slower in SLOWER)
    lines += ["", f"| context, requests | {named} |", "| --- " * (1 + len(SLOWER)) + "|"]
    of_hosts = [offline.added(slower) for slower in SLOWER]
    for load in of_hosts[0]:
        shares = " | ".join(f"{of_host[load]:.3f}" for of_host in of_hosts)
        lines.append(f"| {load[0]}, {load[1]} | {shares} |")
    lines += ["", f"recommend: {adaptive_sentence(offline.advised())}"]
    return "\n".join(lines)


@click.command()
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--traces", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True
)
@click.option("--host-ms", default=HOST_MS, show_default=True, help="In the second table.")
@click.option("--cut-ms", default=CUT_MS, show_default=True, help="In the second table.")
def main(record: Path, traces: Path, host_ms: float, cut_ms: float) -> None:
    """Tell where a recorded comparison lost; see the module's text."""
    click.echo(tables(read_record(record), traces, host_ms, cut_ms))


if __name__ == "__main__":
    main()
