"""Claims of servers that are simulated from recorded times."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.claims import recompute
from benchmarks.claims.claim import Claim, Quote, Run, each
from benchmarks.claims.depends import ANSWERING

PAGE = "docs/surface-results.md"
MOMENTS = (0, 60, 600)
GROUPS = ("recorded", "fitted", "others")
SIMULATING = (
    "benchmarks/answers/replay.py",
    "benchmarks/answers/replay_methods.py",
    "benchmarks/answers/replay_recorded.py",
)


def claims() -> Iterator[Claim]:
    """The replay of all recorded servers."""
    yield Claim(
        "replay",
        "Servers simulated from recorded times, at the defaults, each family scored with sizes "
        "fitted on the others; after the start, 60 s and 10 min: draft lengths within 2 % of the "
        f"best {each('good', MOMENTS)}, the worst {each('worst', MOMENTS)}; boundaries near "
        f"{each('near', MOMENTS)}; 95 % intervals of t(N) / t(1) hold for "
        f"{each('covered', MOMENTS)}",
        "three repetitions with other noise, taken together",
        "{servers} servers, {pairs_0}, {pairs_60} and {pairs_600} pairs on average",
        recompute.replay,
        "benchmarks/results/2026-11-29-replay",
        Run(
            (
                "python -m benchmarks.answers.replay benchmarks/results --method surface,prior "
                "--seeds 3 --out {out}",
            )
        ),
        "91b0221",
        "2026-11-29",
        "none: times of H100",
        (*ANSWERING, *SIMULATING),
        (
            *_rows(),
            Quote(PAGE, f"draft lengths {each('good', MOMENTS, '_bare')} % (goal 90, 95, 98 %)"),
        ),
    )


def _rows() -> Iterator[Quote]:
    """Both tables."""
    yield Quote(
        PAGE,
        "| prior alone | any time | 0 | {prior_near_0} | {prior_held_0} | {prior_error_0}, "
        "{prior_error_p90_0} | {prior_covered_0} | {prior_good_0} | {prior_worst_0} |",
    )
    for moment in MOMENTS:
        yield Quote(
            PAGE,
            "| {moment} s | {pairs} | **{near}** | {held} | {error}, {error_p90} | **{covered}** | "
            "**{good}** | {worst} |".replace("{moment}", str(moment)).replace("}", f"_{moment}}}"),
        )
        for group in GROUPS:
            cells = "{pairs} | {near} | {covered} | {good} | {worst} |"
            named = cells.replace("{", f"{{{group}_").replace("}", f"_{moment}}}")
            yield Quote(PAGE, f"| {moment} s | {named}")
