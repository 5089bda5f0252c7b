"""Runs all checks, and says what they come to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm_nfp import __version__
from vllm_nfp.adapter import versions
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.doctor import adaptive, drafting, hooks, machine, packages, server
from vllm_nfp.doctor.asking import Answer, Question, ask_vllm
from vllm_nfp.doctor.facts import Check, Facts
from vllm_nfp.doctor.findings import Finding, Status

CHECKS: tuple[Check, ...] = (
    packages.python,
    packages.torch,
    packages.vllm,
    packages.cpu_packaging,
    server.imports,
    packages.plugin,
    packages.settings,
    machine.device,
    server.runner,
    server.model,
    drafting.server_flags,
    adaptive.drafts,
    hooks.observation,
    hooks.targets,
    hooks.draft_lengths,
    packages.extras,
    machine.prometheus,
    machine.output_folder,
    machine.temporary_folder,
)
"""All checks, in the order in which their findings are shown."""


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


def diagnose(question: Question, ask: Callable[[Question], Answer] | None = None) -> Diagnosis:
    """Run all checks.

    Args:
        ask: puts the question to vLLM; by default in a process of its own.

    Raises:
        BadQuestionError: for flags or a model that cannot be used.
    """
    version = versions.installed_version()
    answer = Answer() if version is None else (ask or ask_vllm)(question)
    facts = Facts(question, os.environ, version, answer)
    findings = tuple(finding for check in CHECKS for finding in check(facts))
    return Diagnosis(findings, Mode(answer.values.get("mode", versions.decide(version).mode)))
