"""Asks vLLM, in a process of its own, what it would do here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vllm_nfp.adapter.examine import BAD_FLAGS
from vllm_nfp.config import ENV_VAR

LIMIT_SECONDS = 300.0
"""Importing vLLM from a cold disk takes long."""
_PARSER = re.compile(r"^vllm( serve)?: error: ")
_BEGIN = re.compile(r"^(Value error|Assertion failed), ")
_END = re.compile(r" ?\[type=\w+, input_value=.*\]$")
"""What pydantic puts around a message of vLLM's: a word, and all settings that were given."""
_LINK = "For further information visit"
"""Begin of pydantic's last line."""
EXAMINE = (sys.executable, "-m", "vllm_nfp.adapter.examine")


@dataclass(frozen=True, slots=True)
class Question:
    """What is to be examined."""

    model: Path | None = None
    flags: tuple[str, ...] = ()
    """As for ``vllm serve``."""
    output_dir: str | None = None


class BadQuestionError(ValueError):
    """The flags or the model's folder cannot be used; the message says why."""


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
        raise BadQuestionError(_PARSER.sub("", last))
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
    """The part of an error that says most: pydantic's message, of any length, or the last line."""
    lines = [line.strip() for line in text.splitlines()]
    own = [line for line in lines if line and not line.startswith(_LINK)]
    if not own:
        return "no message"
    if not _END.search(own[-1]):
        return own[-1]
    last = len(own) - 1
    before = max((at for at in range(last) if _END.search(own[at])), default=-1)
    first = next((at for at in range(before + 1, last) if _BEGIN.match(own[at])), last)
    told = _BEGIN.sub("", _END.sub("", " ".join(own[first:])))
    # pydantic says in the line above which setting it means, unless it means all of them.
    named = first > 0 and own[first - 1].isidentifier()
    return f"{own[first - 1]}: {told}" if named else told
