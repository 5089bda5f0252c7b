"""Text for users uses the words of docs/glossary.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from vllm_nfp.cli import main

ROOT = Path(__file__).resolve().parents[2]
GLOSSARY = ROOT / "docs" / "glossary.md"
WORDS = "## Words"
CODE = re.compile(r"^```.*?^```|`[^`]*`|\]\([^)]*\)|<[^>]+>|--[\w-]+", re.DOTALL | re.MULTILINE)
"""Not text: code, links, HTML tags."""


def unwanted() -> dict[str, str]:
    """Each word that text for users avoids, and what it says instead."""
    table = GLOSSARY.read_text().split(WORDS, 1)[1]
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \|$", table, re.MULTILINE)
    return {word.lower(): say for say, words in rows[2:] for word in words.split(", ")}


UNWANTED = unwanted()
FINDER = re.compile(rf"\b({'|'.join(map(re.escape, UNWANTED))})s?\b", re.IGNORECASE)


def found_in(text: str) -> list[str]:
    plain = re.sub(r"\s+", " ", CODE.sub(" ", text))
    return [
        f"...{plain[max(0, m.start() - 30) : m.end() + 30]}... say {UNWANTED[m[1].lower()]}"
        for m in FINDER.finditer(plain)
    ]


def test_the_list_finds_its_words() -> None:
    assert len(UNWANTED) > 15
    for word in UNWANTED:
        assert found_in(f"The text\n{word} here."), word
    assert not found_in(
        "The `folder` of [it](folder.md), <a href='folder'>and</a>\n```\nfolder\n```"
    )


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_use_the_words_of_the_glossary(page: Path) -> None:
    text = page.read_text()
    if page == GLOSSARY:
        text = text.split(WORDS, 1)[0]
    if page.name != "CHANGELOG.md":  # it quotes older texts
        assert found_in(text) == []


def commands(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for each in command.list_commands(context):
            found = command.get_command(context, each)
            assert found is not None
            yield from commands(found, f"{name} {each}")


def test_help_uses_the_words_of_the_glossary() -> None:
    wrong = {}
    for name, command in commands(main, "vllm-nfp"):
        with click.Context(command, info_name=name) as context:
            wrong[name] = found_in(command.get_help(context))
    assert len(wrong) > 10
    assert {name: found for name, found in wrong.items() if found} == {}


def test_dashboards_and_alerts_use_the_words_of_the_glossary() -> None:
    files = [p for p in (ROOT / "dashboards").rglob("*") if p.suffix in (".json", ".yml", ".yaml")]
    assert len(files) > 2
    for path in files:
        text = path.read_text().replace("\n    folder: ", "\n")  # Grafana's own key
        if path.suffix == ".json":
            text = json.dumps(json.loads(text), ensure_ascii=False)
        assert found_in(text) == [], path.name
