"""Checks of what this vLLM offers to the probe, by its version and its sources."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_nfp import releases
from vllm_nfp.adapter import sources
from vllm_nfp.adapter.targets import Feature
from vllm_nfp.doctor.facts import Facts
from vllm_nfp.doctor.findings import Finding, Status

_NEEDED = (Feature.FLAGS, Feature.WORKER)


def observation(facts: Facts) -> Iterator[Finding]:
    """Whether steps are observed through vLLM's extension point or through hooks."""
    name = "observation of steps"
    if facts.version is None:
        yield Finding(name, Status.UNKNOWN, "vLLM is not installed")
    elif sources.has_extension_point():
        yield Finding(name, Status.OK, "vLLM's extension point (patches/)")
    else:
        yield Finding(name, Status.OK, "hooks, as in every vLLM without patches/")


def targets(facts: Facts) -> Iterator[Finding]:
    """Whether this vLLM has all that the probe replaces."""
    tree = sources.installed_tree()
    if facts.version is None or tree is None:
        return
    missing = sources.missing_targets(tree, releases.parse_release(facts.version))
    if not missing:
        yield Finding("hooks", Status.OK, "this vLLM has everything that the probe replaces")
        return
    features = dict.fromkeys(target.feature for target in missing)
    yield Finding(
        "hooks",
        Status.BROKEN if any(feature in _NEEDED for feature in features) else Status.WARNING,
        f"this vLLM lacks {', '.join(target.name for target in missing)}",
        f"without: {', '.join(features)}",
    )


def draft_lengths(facts: Facts) -> Iterator[Finding]:
    """Whether this vLLM takes draft lengths by batch size."""
    if facts.version is None:
        return
    name = "draft lengths by batch size"
    refusal = releases.draft_schedule_refusal(facts.version)
    advice = refusal or releases.draft_schedule_warning(facts.version)
    if advice is None:
        yield Finding(name, Status.OK, "supported by this vLLM")
    else:
        yield Finding(name, Status.WARNING, "not by every way of serving", advice)
