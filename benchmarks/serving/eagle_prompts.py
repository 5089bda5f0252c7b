"""Prompts over chat, code and copying, for :mod:`benchmarks.verification.eagle_head`.

The project writes them. What is to be copied comes from Python's standard library, which every
Python carries. Each eighth subject is held out: no head is trained on any prompt about it.
"""

from __future__ import annotations

import itertools
import random
import sysconfig
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
    "Why does {} matter in everyday life?",
    "Write a dialogue between a teacher and a student about {}.",
    "Give me a short quiz about {}, with the answers.",
    "Describe how {} may change in the next fifty years.",
)
_TOPICS = (
    "volcanoes", "the moon", "bicycles", "bread", "libraries", "the heart", "trains", "chess",
    "rain", "coffee", "bees", "sleep", "maps", "money", "rivers", "photography", "vaccines",
    "the ocean", "music", "gardening", "electricity", "glass", "dinosaurs", "clocks", "forests",
    "running", "salt", "bridges", "language", "the weather", "steam engines", "cats", "paper",
    "earthquakes", "tea", "satellites", "painting", "soil", "lighthouses", "mathematics",
    "airplanes", "algae", "ants", "archery", "astronomy", "bamboo", "banking", "baseball", "birds",
    "board games", "bones", "camping", "canals", "candles", "caves", "cheese", "chocolate",
    "cinema", "clouds", "comets", "cooking", "copper", "coral reefs", "cotton", "dance", "deserts",
    "diamonds", "dogs", "dreams", "elections", "elephants", "exercise", "farming", "fireworks",
    "fishing", "football", "friendship", "fungi", "glaciers", "gold", "gravity", "hiking", "honey",
    "horses", "hospitals", "ice cream", "insects", "islands", "jazz", "kites", "lakes", "laughter",
    "lightning", "magnets", "memory", "mirrors", "mountains", "museums", "newspapers", "oil",
    "owls", "penguins", "pianos", "plastic", "poetry", "pottery", "rainbows", "recycling", "rice",
    "robots", "rockets", "sailing", "schools", "seasons", "sharks", "silk", "skiing", "snow",
    "solar power", "spiders", "stars", "submarines", "sugar", "swimming", "teeth", "telephones",
    "theater", "tides", "tigers", "tourism", "toys", "trees", "tunnels", "vitamins", "water",
    "whales", "wheat", "wind", "wolves", "wool", "writing", "yoga",
)  # fmt: skip
_WRITTEN = (
    "Write a Python function that {}.",
    "Write a C function that {}, with comments.",
    "Write a JavaScript function that {} and show how to call it.",
    "Write a Python class with a method that {}.",
    "Show me Python code that {}, then explain it line by line.",
    "Write unit tests in Python for a function that {}.",
    "Write a Java method that {}.",
    "How do I write a program that {}? Show an example in Python.",
    "Write a Go function that {}.",
    "Write a shell script that {}.",
    "Write a short Python script that {}, with type hints and a docstring.",
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
    "adds two matrices", "capitalizes each word", "checks a password's strength",
    "checks whether a year is a leap year", "checks whether two words are anagrams",
    "compresses a string by counting runs", "computes compound interest",
    "computes the area of a circle", "computes the distance between two points",
    "computes the power of a number", "converts a decimal number to binary",
    "converts a list to a dictionary", "converts Roman numerals", "converts seconds to hours",
    "counts the lines of a file", "counts the vowels of a word", "deletes empty lines of a file",
    "draws a multiplication table", "encrypts text with a Caesar cipher",
    "extracts all links from a page", "finds all divisors of a number",
    "finds duplicate files in a folder", "finds the longest common prefix",
    "finds the missing number of a sequence", "finds the second largest number",
    "finds the shortest path in a graph", "groups words by their first letter",
    "implements a binary search tree", "implements a linked list", "implements bubble sort",
    "joins a list of strings with commas", "lists all permutations of a string",
    "logs messages to a file", "moves zeros to the end of a list", "plays rock, paper, scissors",
    "prints the current time", "renames all files in a folder", "replaces words in a text",
    "reverses a linked list", "rolls two dice", "shuffles a deck of cards",
    "simulates a bank account", "solves a quadratic equation", "sorts a dictionary by value",
    "splits a list into chunks", "sums the even numbers of a list", "swaps two variables",
    "tells whether brackets are balanced", "tracks a shopping list", "writes JSON to a file",
)  # fmt: skip
_COPIED = (
    "Repeat the following text exactly:\n\n{}",
    "Copy this code and change nothing:\n\n{}",
    "Correct spelling mistakes in this text and leave the rest as it is:\n\n{}",
    "{}\n\nWrite the text above once more, word for word.",
    "Print this file without any change:\n\n{}",
)
_MODULES = (
    "argparse", "ast", "base64", "bdb", "bisect", "calendar", "cmd", "code", "codecs",
    "configparser", "contextlib", "copy", "csv", "datetime", "difflib", "dis", "doctest", "enum",
    "filecmp", "fileinput", "fractions", "ftplib", "functools", "getopt", "gettext", "glob",
    "gzip", "heapq", "imaplib", "inspect", "ipaddress", "locale", "mailbox", "mimetypes",
    "numbers", "optparse", "os", "pathlib", "pdb", "pickle", "platform", "plistlib", "poplib",
    "pprint", "profile", "queue", "random", "sched", "selectors", "shelve", "shlex", "shutil",
    "smtplib", "socket", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile",
    "textwrap", "threading", "timeit", "tokenize", "traceback", "turtle", "typing", "uuid", "wave",
    "weakref", "webbrowser", "zipfile",
)  # fmt: skip


def prompts(task: str, number: int, held_out: bool) -> list[str]:
    """So many prompts of a task, always the same ones; fewer if there are not so many.

    Args:
        task: one of TASKS.
        held_out: those that no head is trained on.

    Raises:
        KeyError: for another task.
    """
    forms, subjects = {
        "chat": (_ASKED, list(_TOPICS)),
        "code": (_WRITTEN, list(_JOBS)),
        "copying": (_COPIED, _passages()),
    }[task]
    chance = random.Random(task)
    chance.shuffle(subjects)
    chosen = [
        subject
        for place, subject in enumerate(subjects)
        if (place % HELD_OUT_EVERY == 0) == held_out
    ]
    found = [form.format(subject) for form, subject in itertools.product(forms, chosen)]
    chance.shuffle(found)
    return found[:number]


def _passages() -> list[str]:
    """Passages of the standard library's sources, one after the other."""
    found = []
    for module in _MODULES:
        path = Path(sysconfig.get_path("stdlib"), f"{module}.py")
        if path.exists():  # some releases of Python dropped some of them
            lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
            starts = range(0, len(lines) - COPIED_LINES, COPIED_LINES)
            found += ["\n".join(lines[at : at + COPIED_LINES]) for at in starts]
    return list(dict.fromkeys(found))  # some passages are in two modules
