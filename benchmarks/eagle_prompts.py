"""Prompts over chat, code and copying, for :mod:`benchmarks.eagle_head`.

The project writes them. What is to be copied comes from Python's standard library, which every
Python carries. Each eighth prompt is held out: no head is trained on what a model answers to it.
"""

from __future__ import annotations

import itertools
import random
import sysconfig
from collections.abc import Sequence
from pathlib import Path

TASKS = ("chat", "code", "copying")
HELD_OUT_EVERY = 8
COPIED_LINES = 12
"""Lines of a passage: some 120 tokens."""

_ASKED = (
    "Explain {} to a child in a few sentences.",
    "What are the main advantages and disadvantages of {}?",
    "Write a short story about {}.",
    "Give me five facts about {}.",
    "I want to learn more about {}. Where should I begin?",
    "Write an email to a friend about {}.",
    "Summarize the history of {} in one paragraph.",
    "What do people often get wrong about {}?",
)
_TOPICS = (
    "volcanoes", "the moon", "bicycles", "bread", "libraries", "the heart", "trains", "chess",
    "rain", "coffee", "bees", "sleep", "maps", "money", "rivers", "photography", "vaccines",
    "the ocean", "music", "gardening", "electricity", "glass", "dinosaurs", "clocks", "forests",
    "running", "salt", "bridges", "language", "the weather", "steam engines", "cats", "paper",
    "earthquakes", "tea", "satellites", "painting", "soil", "lighthouses", "mathematics",
)  # fmt: skip
_WRITTEN = (
    "Write a Python function that {}.",
    "Write a C function that {}, with comments.",
    "Write a JavaScript function that {} and show how to call it.",
    "Write a Python class with a method that {}.",
    "Show me Python code that {}, then explain it line by line.",
    "Write unit tests in Python for a function that {}.",
)
_JOBS = (
    "sorts a list of numbers", "reverses a string", "counts the words of a text",
    "finds the largest number of a list", "checks whether a number is prime",
    "computes Fibonacci numbers", "merges two sorted lists", "reads a CSV file",
    "removes duplicates from a list", "converts Celsius to Fahrenheit", "computes a factorial",
    "checks whether a word is a palindrome", "finds the common elements of two lists",
    "computes the mean and the median", "counts how often each letter occurs",
    "searches a sorted list", "draws a triangle of stars", "sums the digits of a number",
    "flattens a nested list", "validates an email address", "rotates a matrix",
    "computes the greatest common divisor", "parses a date", "implements a stack",
    "implements a queue", "generates a random password", "transposes a table",
    "finds the shortest word of a sentence", "rounds prices", "formats a phone number",
)  # fmt: skip
_COPIED = (
    "Repeat the following text exactly:\n\n{}",
    "Copy this code and change nothing:\n\n{}",
    "Correct spelling mistakes in this text and leave the rest as it is:\n\n{}",
)
_MODULES = (
    "argparse", "ast", "bisect", "calendar", "cmd", "copy", "csv", "datetime", "difflib", "enum",
    "fractions", "functools", "glob", "heapq", "inspect", "locale", "optparse", "pprint", "queue",
    "random", "sched", "shlex", "statistics", "string", "tarfile", "textwrap", "threading",
    "timeit", "tokenize", "traceback", "turtle", "uuid", "weakref", "zipfile",
)  # fmt: skip


def prompts(task: str, number: int, held_out: bool) -> list[str]:
    """So many prompts of a task, always the same ones; fewer if there are not so many.

    Args:
        task: one of TASKS.
        held_out: those that no head is trained on.

    Raises:
        KeyError: for another task.
    """
    everything = {"chat": _chat, "code": _code, "copying": _copying}[task]()
    random.Random(task).shuffle(everything)
    return [
        prompt
        for place, prompt in enumerate(everything)
        if (place % HELD_OUT_EVERY == 0) == held_out
    ][:number]


def _chat() -> list[str]:
    return _filled(_ASKED, _TOPICS)


def _code() -> list[str]:
    return _filled(_WRITTEN, _JOBS)


def _copying() -> list[str]:
    return _filled(_COPIED, _passages())


def _filled(forms: Sequence[str], subjects: Sequence[str]) -> list[str]:
    return [form.format(subject) for form, subject in itertools.product(forms, subjects)]


def _passages() -> list[str]:
    """Passages of the standard library's sources, one after the other."""
    found = []
    for module in _MODULES:
        path = Path(sysconfig.get_path("stdlib"), f"{module}.py")
        if path.exists():  # some releases of Python dropped some of them
            lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
            starts = range(0, len(lines) - COPIED_LINES, COPIED_LINES)
            found += ["\n".join(lines[at : at + COPIED_LINES]) for at in starts]
    return found
