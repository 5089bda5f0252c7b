"""The documentation site builds, with every link, and fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("material")

ROOT = Path(__file__).resolve().parents[2]
Build = Callable[[Path, Path], "subprocess.CompletedProcess[str]"]


def build(checkout: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=checkout, capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_is_there_and_the_readme_comes_first(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        built = site / page.relative_to(ROOT / "docs").with_suffix(".html")
        assert built.is_file(), f"{page.name} is missing"
    assert "How many tokens per step can your server verify" in (site / "index.html").read_text()


def test_pages_link_to_each_other_in_one_menu(site: Path) -> None:
    menu = (site / "index.html").read_text().split('aria-label="Navigation"', 1)[1]
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        link = f'<a href="{name}" class="md-nav__link"'
        assert menu.count(link) == 1, f"{name} is not there once"


def test_links_out_of_the_folder_lead_to_pages_of_the_site(site: Path) -> None:
    index = (site / "index.html").read_text()
    assert 'href="source/benchmarks/index.html"' in index
    page = "source/vllm_nfp/config/settings.py.html"
    assert f'href="{page}"' in (site / "quick-start.html").read_text()
    code = (site / page).read_text()
    assert "ProbeConfig" in code
    assert (site / "source/benchmarks/results/2026-11-24-h100/folder.html").is_file()


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    loaded = re.compile(r"<(?:script|img|iframe|source)[^>]*\bsrc=\"?([^\"\s>]+)|<link([^>]*)>")
    assert loaded.findall('<script async src="//x/y.js"><link href="https://x">'), "finds nothing"
    found = 0
    for page in site.rglob("*.html"):
        for source, link in loaded.findall(page.read_text()):
            found += 1
            assert not source.startswith(("http:", "https:", "//")), f"{page.name}: {source}"
            assert not re.search(r"href=\"?(https?:)?//", link), f"{page.name}: {link}"
    assert found > 20
    styles = list(site.rglob("*.css"))
    assert styles
    for style in styles:
        assert not re.search(r"url\([\"']?(https?:)?//|@import", style.read_text()), style.name


def test_a_broken_link_or_anchor_fails_the_build(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    for name in ("vllm_nfp", "benchmarks", "dashboards"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name in ("README.md", "mkdocs.yml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    with (tmp_path / "docs" / "watch.md").open("a") as page:
        page.write("\n[a](none.md) [b](../vllm_nfp/none.py) [c](report.md#none)\n")
    done = build(tmp_path, tmp_path / "site")
    assert done.returncode != 0
    for link in ("none.md", "none.py", "report.md#none"):
        assert link in done.stderr
