"""Builds the documentation site from docs/, the README, and the files that they link to.

Pages link to files outside docs/ by their paths in a checkout, so links work there as well. On the
site each such file is a page or a file under ``source/``; a directory is a list of its contents.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
NAV = {
    "Use": [
        "quick-start.md",
        "answers.md",
        "supported.md",
        "models.md",
        "glossary.md",
        "draft-lengths.md",
        "draft-control.md",
        "adaptive-verification.md",
        "predict.md",
        "devices.md",
        "predicted-drafts.md",
        "report.md",
        "watch.md",
        "calibrate.md",
        "doctor.md",
    ],
    "Operate": [
        "metrics.md",
        "settings.md",
        "dashboards/index.md",
        "dashboards/overview.md",
        "dashboards/fleet.md",
        "dashboards/*",
        "kubernetes.md",
        "runbook.md",
        "parallel.md",
        "versions.md",
    ],
    "Trust": [
        "measured.md",
        "theory.md",
        "surface.md",
        "surface-results.md",
        "validation.md",
        "draft-results.md",
        "adaptive-results.md",
        "overhead.md",
        "faults.md",
        "security.md",
    ],
    "Develop": ["CONTRIBUTING.md", "CHANGELOG.md"],
}
"""Pages by section. Missing pages are skipped; other pages come last."""

_LINK = re.compile(r"(?<=\]\()(?![a-z+]+:|#)([^)#\s]+)")
_CODE = {".py": "python", ".yml": "yaml", ".yaml": "yaml", ".toml": "toml", ".sh": "sh"}


def on_config(config: MkDocsConfig) -> None:
    """Sort the existing pages into sections."""
    docs = Path(config.docs_dir)
    left = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    nav: list[dict[str, Any]] = [{"Start": "index.md"}]
    for section, patterns in NAV.items():
        found = [name for name in left if any(Path(name).match(p) for p in patterns)]
        # A folder's index comes first.
        found.sort(key=lambda name: (posixpath.dirname(name), not name.endswith("index.md")))
        left = [name for name in left if name not in found]
        nav.append({section: _in_order(found, patterns)})
    config.nav = nav + ([{"More": left}] if left else [])


def _in_order(names: list[str], patterns: list[str]) -> list[str]:
    return sorted(names, key=lambda n: [Path(n).match(p) for p in patterns].index(True))


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the README as the first page, and the linked files outside docs/."""
    wanted = [ROOT / "README.md", *_linked_by(Path(config.docs_dir).rglob("*.md"))]
    seen: set[Path] = set()
    while wanted:
        path = wanted.pop()
        if path in seen or _site_name(path) in files.src_uris or not path.exists():
            continue
        seen.add(path)
        content = _content(path)
        if path.suffix not in _CODE and isinstance(content, str):
            wanted += _targets(path, content)
        files.append(
            File.generated(
                config,
                _site_name(path),
                content=content,
                inclusion=InclusionLevel.INCLUDED
                if path == ROOT / "README.md"
                else InclusionLevel.NOT_IN_NAV,
            )
        )


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrite links of the checkout to links of the site."""
    here = page.file.src_uri
    origin = _origin(here)
    if origin.suffix in _CODE:
        return markdown

    def link(match: re.Match[str]) -> str:
        target = _resolve(origin, match[1])
        if not target.is_relative_to(ROOT):
            return match[1]  # mkdocs reports it as broken
        return posixpath.relpath(_site_name(target), posixpath.dirname(here) or ".")

    return _LINK.sub(link, markdown)


def _linked_by(pages: Iterator[Path]) -> list[Path]:
    return [target for page in pages for target in _targets(page, page.read_text())]


def _targets(page: Path, markdown: str) -> list[Path]:
    """Links of a page to files of the checkout outside docs/."""
    found = [_resolve(page, match[1]) for match in _LINK.finditer(markdown)]
    docs = ROOT / "docs"
    return [t for t in found if t.is_relative_to(ROOT) and not t.is_relative_to(docs)]


def _resolve(page: Path, link: str) -> Path:
    folder = page if page.is_dir() else page.parent
    return Path(os.path.normpath(folder / link))


def _content(path: Path) -> str | bytes:
    name = path.relative_to(ROOT).as_posix()
    if path.is_dir():
        entries = sorted(p for p in path.iterdir() if not p.name.startswith((".", "__pycache__")))
        lines = [f"- [{p.name}{'/' * p.is_dir()}]({p.name})" for p in entries]
        return "\n".join([f"# {name}", "", *lines]) + "\n"
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    if path.suffix in _CODE:
        code = path.read_text(encoding="utf-8")
        return f"# {name}\n\n``````{_CODE[path.suffix]}\n{code}\n``````\n"
    return path.read_bytes()


def _site_name(path: Path) -> str:
    """The site's source path of a file of the checkout."""
    name = path.relative_to(ROOT).as_posix()
    if name in ("README.md", "."):
        return "index.md"
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    if path.is_dir():
        return f"source/{name}/folder.md"
    return f"source/{name}.md" if path.suffix in _CODE else f"source/{name}"


def _origin(site_name: str) -> Path:
    """The file or directory of the checkout from which a page was made."""
    if site_name == "index.md":
        return ROOT / "README.md"
    if not site_name.startswith("source/"):
        return ROOT / "docs" / site_name
    name = site_name.removeprefix("source/")
    if name.endswith("/folder.md"):
        return ROOT / name.removesuffix("/folder.md")
    return ROOT / (name if (ROOT / name).exists() else name.removesuffix(".md"))
