"""The report in a real Chromium: both themes, narrow and wide, and nothing asked from outside.

With NFP_SCREENSHOT_DIR set, leaves the pictures of docs/report.md there. With
NFP_REQUIRE_CHROMIUM set, a machine without a Chromium fails the tests instead of skipping them.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vllm_nfp.report import write_report
from vllm_nfp.results.profile import Profile

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from made_surface import made_snapshot

pytestmark = pytest.mark.browser

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
VIEWS = [(w, theme) for w in (400, 1600) for theme in ("light", "dark")]

PATIENCE_MS = 300_000
"""For what never happens; a busy machine is slow."""
LEAST_CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3, level AA."""

# For each text: its contrast with whatever lies behind it, as WCAG defines it.
CONTRASTS = """
() => {
  const parse = text => {
    const n = text.match(/-?[\\d.]+/g).map(Number);
    const scale = text.startsWith('color(') ? 1 : 255;
    return {rgb: n.slice(0, 3).map(v => v / scale), a: n.length > 3 ? n[3] : 1};
  };
  const over = (top, under) => ({
    rgb: top.rgb.map((v, i) => v * top.a + under.rgb[i] * (1 - top.a)), a: 1});
  const behind = element => {
    const layers = [];
    for (let e = element; e; e = e.parentElement)
      layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), {rgb: [1, 1, 1], a: 1});
  };
  const luminance = ({rgb}) => {
    const [r, g, b] = rgb.map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const found = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    if (!own || ['title', 'desc'].includes(e.tagName) || !e.getClientRects().length) continue;
    const style = getComputedStyle(e), back = behind(e);
    const color = over(parse(e.namespaceURI.endsWith('svg') ? style.fill : style.color), back);
    const [low, high] = [luminance(color), luminance(back)].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), e.textContent.trim().slice(0, 40)]);
  }
  return found;
}
"""


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    reason = f"needs a Chromium: none of {', '.join(NAMES)} is on the path"
    if os.environ.get("NFP_REQUIRE_CHROMIUM"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def surface_profile(dense_profile: Profile) -> Profile:
    """Nine batch sizes and four contexts: measured, inferred and predicted."""
    made = made_snapshot()
    return replace(dense_profile, curves=made.curves, boundaries=made.boundaries,
                   predictions=(), layer_times=())  # fmt: skip


@pytest.fixture(scope="module", params=["dense", "moe", "surface"])
def report(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    profile: Profile = request.getfixturevalue(f"{request.param}_profile")
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(path, profile)
    return request.param, path


@pytest.fixture(scope="module", params=VIEWS, ids=[f"{w}-{theme}" for w, theme in VIEWS])
def browser(
    request: pytest.FixtureRequest, chromium: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    """A browser with a profile folder of its own, of one width and theme."""
    from playwright.sync_api import sync_playwright

    width, theme = request.param
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            str(tmp_path_factory.mktemp("user-data")),
            executable_path=chromium,
            args=list(FLAGS),
            viewport={"width": width, "height": 1000},
            color_scheme=theme,
            timeout=PATIENCE_MS,
        )
        yield context
        context.close()


@pytest.fixture
def view(browser: Any) -> Iterator[Any]:
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    yield page
    page.close()


def open_page(page: Any, path: Path) -> tuple[list[str], list[str]]:
    """Open the report; what the console said, and all addresses that were asked for."""
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(path.as_uri())
    return messages, requests


def test_it_reads_well(view: Any, report: tuple[str, Path], request: Any) -> None:
    name, path = report
    messages, requests = open_page(view, path)
    assert messages == []
    assert requests == [path.as_uri()]
    width, theme = view.viewport_size["width"], request.node.callspec.params["browser"][1]
    assert view.evaluate("document.documentElement.scrollWidth") <= width
    outside = view.evaluate(
        "[...document.querySelectorAll('h1,h2,p,li,figure,details,dl,.scroll')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth + 0.5).map(e => e.outerHTML)"
    )
    assert outside == []
    light = view.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(246, 247, 249)"
    assert light == (theme == "light")
    sizes = view.evaluate(
        "[...document.querySelectorAll('figure svg text')].map(e => {"
        "const m = e.getScreenCTM();"
        "return parseFloat(getComputedStyle(e).fontSize) * Math.hypot(m.a, m.b); })"
    )
    assert len(sizes) > 100
    assert min(sizes) >= 10.0, "the plots' text is too small to read"
    leave_picture(view, f"report-{name}", width, theme)


def test_texts_stand_out(view: Any, report: tuple[str, Path]) -> None:
    open_page(view, report[1])
    view.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    contrasts = view.evaluate(CONTRASTS)
    assert len(contrasts) > 1000
    assert [c for c in contrasts if c[0] < LEAST_CONTRAST] == []


def test_open_details_do_not_widen_the_page(view: Any, report: tuple[str, Path]) -> None:
    open_page(view, report[1])
    view.evaluate("document.querySelectorAll('details').forEach(e => e.open = true)")
    assert view.evaluate("document.documentElement.scrollWidth") <= view.viewport_size["width"]


PICTURES = {("report-dense", 1600, "light"): 1500, ("report-dense", 400, "dark"): 1000}
"""Pictures of the docs and their height in pixels, from the plots on."""


def leave_picture(page: Any, name: str, width: int, theme: str) -> None:
    """Save a picture for the docs, in 256 colours, so that it stays small."""
    folder, height = os.environ.get("NFP_SCREENSHOT_DIR"), PICTURES.get((name, width, theme))
    if not folder or height is None:
        return
    from PIL import Image

    page.evaluate("document.querySelector('.howto').open = false")
    raw = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": width, "height": height})
    picture = Image.open(io.BytesIO(raw)).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    picture.save(Path(folder) / f"{name}-{width}-{theme}.png", optimize=True)
