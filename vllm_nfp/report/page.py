"""From a profile to the report: one HTML file, laid out by the template."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vllm_nfp import __version__
from vllm_nfp.crossing import usual_epsilon
from vllm_nfp.files import write_whole
from vllm_nfp.report.drafts import drafts
from vllm_nfp.report.facts import environment_facts, run_facts, settings_facts, timed_layers
from vllm_nfp.report.layers import heat_maps
from vllm_nfp.report.modules import matrix, sections, times
from vllm_nfp.results.completeness import basis_counts, unfinished
from vllm_nfp.results.profile import Profile
from vllm_nfp.text import duration, harmless

ACCEPTANCES = (0.5, 0.7, 0.9)
"""Acceptance of each draft, given that those before it were accepted."""


class ReportError(RuntimeError):
    """The report cannot be made; the message gives the reason and the remedy."""


def choose_epsilon(profile: Profile, epsilon: float | None) -> float:
    """The report's tolerance: ``epsilon`` if given, else the usual one.

    Raises:
        ReportError: if the profile has no boundary at it.
    """
    known = profile.epsilons
    if not known:
        raise ReportError("the profile has no boundary: nothing was measured or predicted")
    if epsilon is None:
        return usual_epsilon(known)
    if epsilon not in known:
        measured = ", ".join(f"{value:g}" for value in known)
        raise ReportError(f"epsilon {epsilon:g} is not in the profile; it has {measured}")
    return epsilon


def render(
    profile: Profile, epsilon: float | None = None, acceptances: Sequence[float] = ACCEPTANCES
) -> str:
    """The report as the text of one HTML file.

    Args:
        epsilon: tolerance to draw; None: 0.1, or the measured one closest to it.
        acceptances: a column of the table of draft lengths for each.

    Raises:
        ReportError: if the profile has no boundary there, or a library is missing.
    """
    epsilon = choose_epsilon(profile, epsilon)
    template = _template()
    text: str = template.render(
        profile=profile,
        epsilon=epsilon,
        version=__version__,
        date=datetime.fromtimestamp(profile.environment.date_unix_seconds, UTC),
        layers=timed_layers(profile),
        matrix=matrix(profile, epsilon),
        sections=sections(profile, epsilon),
        drafts=drafts(profile, acceptances),
        acceptances=acceptances,
        heat_maps=heat_maps(profile, epsilon),
        times=times(profile),
        unfinished=unfinished(profile),
        bases=basis_counts(row for row in profile.boundaries if row.epsilon == epsilon),
        environment=environment_facts(profile),
        run=run_facts(profile),
        settings=settings_facts(profile),
        predicted=bool(profile.predictions),
    )
    return text


def write_report(path: Path, profile: Profile, epsilon: float | None = None) -> None:
    """Write the report; an existing file is replaced as a whole or stays unchanged.

    Raises:
        ReportError: see :func:`render`.
        OSError: if the file cannot be written.
    """
    write_whole(path, render(profile, epsilon))


def _template() -> Any:
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ReportError(
            f"a report needs {error.name}, which is not installed: pip install 'vllm-nfp[report]'"
        ) from None
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vllm_nfp.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_plain,
    )
    environment.filters["duration"] = duration
    return environment.get_template("report.html.j2")


def _plain(value: object) -> object:
    """A value for the page without control characters, which escaping lets through."""
    # Markup is our own. Strings may come from a foreign profile.
    return harmless(value) if type(value) is str else value
