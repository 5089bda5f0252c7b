"""Checks of what vLLM answers: runner, attention backend, CUDA graphs, drafting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from vllm_nfp.adapter.versions import Mode
from vllm_nfp.doctor.drafting import drafting
from vllm_nfp.doctor.facts import Facts
from vllm_nfp.doctor.findings import Finding, Status

_NO_TRITON = "V2 needs Triton, which is not available here"
_STATUS = {Mode.ACTIVE: Status.OK, Mode.PASSIVE: Status.WARNING, Mode.OFF: Status.BROKEN}
_MODE = {
    Mode.ACTIVE: "can be probed",
    Mode.PASSIVE: "passive: real steps are timed, nothing is probed",
    Mode.OFF: "the probe stays off",
}
_WORD = {Mode.ACTIVE: "probed", Mode.PASSIVE: "passive", Mode.OFF: "off"}


def imports(facts: Facts) -> Iterator[Finding]:
    """Whether vLLM can be imported."""
    if facts.version is None:
        return
    if not facts.answer.values:
        advice = "repair vLLM's installation"
        yield Finding("vllm import", Status.BROKEN, facts.answer.error, advice)
    else:
        platform = facts.answer.values["platform"]
        yield Finding("vllm import", Status.OK, f"works, platform {platform}")


def runner(facts: Facts) -> Iterator[Finding]:
    """Which model runner vLLM takes, and why."""
    values, name = facts.answer.values, "model runner"
    if not values:
        yield Finding(name, Status.UNKNOWN, "vLLM decides, and cannot be asked")
        return
    on_cpu = values["platform"] == "cpu"
    use_v2, why = _runner(values)
    kind = "V2" if use_v2 else "V1"
    yield Finding(name, Status.OK, f"{'CPU, derived from ' if on_cpu else ''}{kind}: {why}")


def _runner(values: Mapping[str, Any]) -> tuple[bool, str]:
    forced = values["forced_runner"]
    if "use_v2" in values:
        use_v2 = bool(values["use_v2"])
        return use_v2, _why(values, use_v2)
    if forced is not None:
        return forced.strip() not in ("0", "false", "False"), _forced(forced)
    if not values["triton"]:
        return False, _NO_TRITON
    return True, "the default; give --model to learn whether the model changes it"


def _why(values: Mapping[str, Any], use_v2: bool) -> str:
    forced = values["forced_runner"]
    if forced is not None:
        return _forced(forced)
    if use_v2:
        return "vLLM's choice for this model and these flags"
    if not values["triton"]:
        return _NO_TRITON
    if values["v2_unsupported"]:
        return f"V2 does not support {', '.join(values['v2_unsupported'])}"
    return "vLLM's choice for this model"


def _forced(value: str) -> str:
    return f"VLLM_USE_V2_MODEL_RUNNER={value} asks for it"


def model(facts: Facts) -> Iterator[Finding]:
    """Whether this model can be probed with these flags, and how vLLM would serve it."""
    values = facts.answer.values
    if facts.question.model is None or not values:
        return
    mode = Mode(values["mode"])
    yield Finding("this model", _STATUS[mode], _MODE[mode], values["reason"])
    for feature in values["features"]:
        kept = Mode(feature["mode"])
        why = "" if kept is Mode.ACTIVE else f"; {feature['why']}"
        found = f"{feature['name']}: {_WORD[kept]}{why}"
        yield Finding("feature", _STATUS[kept], found, feature["needs"])
    backend = values["backend"]
    yield Finding(
        "attention backend",
        Status.UNKNOWN if backend is None else Status.OK,
        "chosen when the server starts" if backend is None else backend,
    )
    graphs = values["graphs"]
    if graphs["eager"] or graphs["mode"] in (None, "NONE"):
        # vLLM drops the flags' graphs on a CPU, so that nothing of them can be checked.
        on_cpu = backend == "CPU_ATTN" and not graphs["eager"]
        advice = "run doctor on the server's GPU host to check its capture sizes" if on_cpu else ""
        yield Finding("CUDA graphs", Status.OK, "none: steps are launched kernel by kernel", advice)
    else:
        found = f"{graphs['mode']}, up to {graphs['largest']} tokens"
        yield Finding("CUDA graphs", Status.OK, found)
    yield drafting(values)
