from __future__ import annotations

import re
import sys
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from made_surface import made_snapshot

from vllm_nfp.cli import main
from vllm_nfp.draft.recommend import recommend
from vllm_nfp.draft.sources import SourceError
from vllm_nfp.report import ReportError, render, write_report
from vllm_nfp.report.facts import run_facts
from vllm_nfp.report.modules import sections
from vllm_nfp.results.profile import Profile, save_profile
from vllm_nfp.types import (
    Basis,
    Boundary,
    CurvePoint,
    Device,
    Environment,
    LayerLatency,
    ModelDescription,
    Prediction,
    ProbeRun,
    ProbeSettings,
    State,
)

MADE = Profile(
    Environment(0.0, Device("cpu", "x", None, None, None), "", "", "", None, ""),
    ModelDescription("m"),
    ProbeSettings((0.1,), (8,), (64,), (1, 2), 2, 2, 2, 0, 0.0, 0.0, 0),
    ProbeRun("0", "cpu", State.STEADY),
)
VOID = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps ids, references, tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def values(self, name: str) -> list[str]:
        return [value for _, attribute, value in self.attributes if attribute == name]

    def prose(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def html(dense_profile: Profile) -> str:
    return render(dense_profile)


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def small(dense_profile: Profile) -> Profile:
    """Batch size 8 at one context: quick to draw."""

    def keep(rows: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(r for r in rows if (r.batch_size, r.context) == (8, 1024))

    return replace(
        dense_profile,
        curves=keep(dense_profile.curves),
        boundaries=keep(dense_profile.boundaries),
        predictions=keep(dense_profile.predictions),
        layer_times=keep(dense_profile.layer_times),
    )


def test_the_page_asks_for_nothing_from_outside(html: str, page: Page) -> None:
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == page.tags["iframe"] == 0
    outside = {url for url in re.findall(r"https?://[^\s\"'<)]+", html)}
    assert outside == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert "@import" not in html
    assert set(re.findall(r"url\((.)", html)) == {"#"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "default-src 'none'" in html
    assert len(html) < 600_000


def test_ids_are_unique_and_references_have_a_target(html: str, page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    wanted = set(re.findall(r"url\(#([^)]+)\)", html))
    wanted |= {value[1:] for value in page.values("xlink:href")}
    wanted |= {part for value in page.values("aria-labelledby") for part in value.split()}
    assert wanted <= set(ids)
    assert wanted


def predicted_of(profile: Profile) -> Prediction:
    """Of the whole step of eight sequences; it changes with the predictor, not with this page."""
    wanted = ("model", 8, 1024, 0.1)
    return next(
        row
        for row in profile.predictions
        if (row.module, row.batch_size, row.context, row.epsilon) == wanted
    )


def test_every_plot_speaks_and_takes_its_colours_from_the_page(
    html: str, page: Page, dense_profile: Profile
) -> None:
    plots = re.findall(r"<svg viewBox[^>]*role=\"img\".*?</svg>", html, re.DOTALL)
    assert len(plots) == 3 + 3 + 1, "the dense FFN is alike in all contexts"
    for plot in plots:
        assert re.search(r"<title id=[^>]+>[^<]{20,}</title><desc id=[^>]+>[^<]{40,}</desc>", plot)
        assert not re.findall(r"#[0-9a-f]{6}\b", plot), "a colour does not follow the theme"
        assert "t(N) / t(1)" in plot
    predicted = predicted_of(dense_profile).positions
    assert f"Within 10%: 16 (16 to 16), measured. Predicted {predicted}, idle-compute 38." in html
    assert page.tags["svg"] == 7 + 6 + 3 * 3, (
        "plots, marks, and a line for each batch size of a module"
    )


def test_a_batch_size_has_one_colour_in_all_plots(dense_profile: Profile) -> None:
    """Also where a smaller one has no line, as one that does not fit the KV cache."""
    curves = tuple(
        row
        for row in dense_profile.curves
        if row.module == "model" and (row.batch_size, row.context) != (1, 16384)
    )
    found = next(s for s in sections(replace(dense_profile, curves=curves), 0.1))
    assert [(size, re.findall(r"series-\d", mark)[0]) for size, mark in found.legend] == [
        (1, "series-0"), (8, "series-1"), (32, "series-2"),
    ]  # fmt: skip
    plots = dict(found.plots)
    assert "series-0" in plots["L = 4096"]
    assert "series-0" not in plots["L = 16384"]
    assert "series-1" in plots["L = 16384"]


def test_the_measured_numbers_are_on_the_page(page: Page, dense_profile: Profile) -> None:
    predicted = predicted_of(dense_profile)
    text = page.prose()
    assert "Near-free positions of qwen3-8b" in text
    layers = "whole step of 8 of the model's 36 layers, 4 of each kind timed alone"
    assert "Only 8 of 36" not in text, "the subtitle says it once"
    assert f"NVIDIA H100 80GB HBM3 · vLLM 0.32.0 · bfloat16 · {layers} · 24 November 2026" in text
    answers = text.split("B L = 1024 L = 4096 L = 16384 ", 1)[1].split(" How to read", 1)[0]
    # The numbers of docs/measured.md, without their intervals and marks.
    assert re.sub(r"\[.*?\]|[~?]", "", answers).split() == [
        "1", "64+", "64+", "64+", "8", "16", "16", "24", "32", "6", "6", "8",
    ]  # fmt: skip
    assert f"8 1024 1.9 ms 16 measured {predicted.positions} 38 {predicted.limited_by}" in text
    row = next(
        row for row in dense_profile.boundaries
        if (*row.cell, row.epsilon) == ("attention", 1, 1024, 0.1)
    )  # fmt: skip
    assert row.lower < row.upper
    assert f"1 1024 14.8 µs {row.positions} [{row.lower}, {row.upper}] measured" in text
    assert "Driver 580.159.04" in text


def test_a_cpu_is_not_spoken_of_as_a_gpu(dense_profile: Profile) -> None:
    of_gpu = dict(run_facts(dense_profile))
    assert "Memory of the probe's CUDA graphs" in of_gpu
    device = replace(dense_profile.environment.device, type="cpu")
    environment = replace(dense_profile.environment, device=device)
    run = replace(dense_profile.run, overhead_ratio=0.004)
    of_cpu = dict(run_facts(replace(dense_profile, environment=environment, run=run)))
    assert of_cpu["Fraction of the serving time"] == "0.40%"
    assert not any("GPU" in name or "CUDA" in name for name in of_cpu)


def test_draft_lengths_follow_from_the_curve(dense_profile: Profile, page: Page) -> None:
    curve = {r.positions: r.ratio for r in dense_profile.curves_by_cell()["model", 8, 1024]}
    grid = sorted(curve)
    gains = {}
    for positions in range(1, grid[-1] + 1):
        # Between two measured counts the slower one is assumed.
        low = max(n for n in grid if n <= positions)
        high = min(n for n in grid if n >= positions)
        tokens = sum(0.7**j for j in range(positions))
        gains[positions - 1] = tokens / max(curve[low], curve[high])
    best = min(k for k, gain in gains.items() if gain >= 0.995 * max(gains.values()))
    assert f"K = {best} {gains[best]:.2f}\N{MULTIPLICATION SIGN}" in page.prose()


def test_draft_lengths_that_were_not_measured_say_so(small: Profile) -> None:
    """Gaps in the grid are marked as ``recommend`` marks them."""
    here = small.curves_by_cell()["model", 8, 1024]
    cells = [(1, 1024), (32, 1024), (8, 4096)]
    more = [replace(r, batch_size=b, context=c) for b, c in cells for r in here]
    text = Page(render(replace(small, curves=(*small.curves, *more)))).prose()
    assert re.search(r"\b32 4096 K = [1-9]\S* \d\.\d\d.*?inferred", text)
    assert re.search(r"\b1 4096 K = [1-9]\S* \d\.\d\d.*?inferred", text)
    assert "*: this batch size" not in text
    more += [replace(r, batch_size=b, context=4096) for b in (1, 32) for r in here]
    between = [r for r in (*small.curves, *more) if (r.batch_size, r.context) != (8, 4096)]
    text = Page(render(replace(small, curves=tuple(between)))).prose()
    assert "*: this batch size was not measured at this context" in text
    assert re.search(r"8\* 4096 K = \d+ \d\.\d\d", text)
    assert "0?" not in text


def test_step_times_that_recommend_refuses_are_refused_alike(small: Profile) -> None:
    """A count that no server runs: the page is drawn, and says why it recommends nothing."""
    curves = tuple(replace(r, positions=r.positions * (1 << 20)) for r in small.curves)
    curves += tuple(r for r in small.curves if r.positions == 1)
    with pytest.raises(SourceError) as refusal:
        recommend(replace(small, curves=curves), 0.7)
    text = Page(render(replace(small, curves=curves))).prose()
    assert f"No draft lengths: {refusal.value}." in text


HOSTILE = "</title><script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}&amp;"


def test_strings_of_a_profile_are_escaped(small: Profile) -> None:
    one = small.environment
    environment = replace(
        one,
        device=replace(one.device, name=HOSTILE, driver=HOSTILE),
        vllm=HOSTILE,
        dtype=HOSTILE,
        quantization=HOSTILE,
        attention_backends=(HOSTILE,),
    )
    row = small.predictions[0]
    hostile = replace(
        small,
        environment=environment,
        model=replace(small.model, name=HOSTILE, architecture=HOSTILE),
        run=replace(
            small.run,
            reason=HOSTILE,
            runner=HOSTILE,
            engine=HOSTILE,
            state=type(small.run.state).DISABLED,
            skipped_cells={HOSTILE: HOSTILE},
            probes={HOSTILE: 1},
        ),
        curves=tuple(replace(r, execution=HOSTILE) for r in small.curves),
        predictions=(replace(row, limited_by=HOSTILE),),
    )
    text = render(hostile)
    page = Page(text)
    assert page.tags["script"] == page.tags["img"] == 0
    assert "<script" not in text
    assert "49&amp;" not in text
    assert text.count("&lt;script&gt;") > 10
    assert HOSTILE in "".join(page.text)


def test_the_same_profile_gives_the_same_page(small: Profile) -> None:
    assert render(small) == render(small)


def test_what_a_profile_lacks_is_said_or_left_out(small: Profile) -> None:
    curves = tuple(r for r in small.curves if r.module == "attention")
    bare = replace(
        small,
        curves=curves,
        boundaries=tuple(r for r in small.boundaries if r.module == "attention"),
        predictions=(),
        layer_times=(),
        run=replace(small.run, missing_pairs=5),
        probe=replace(small.probe, wanted_samples=12),
    )
    text = Page(render(bare)).prose()
    assert "The profile has no times of the whole step." in text
    assert "The profile has no layer times." in text
    assert "Time ran out before every point had its samples: 5 pairs are missing." in text
    # A live server asks for no pairs in particular.
    live = replace(bare, probe=replace(bare.probe, wanted_samples=0))
    assert "missing" not in Page(render(live)).prose().lower()
    assert "idle-compute" not in text
    assert "Dense FFN" not in text


def marks(page: Page) -> Counter[str]:
    """How often each kind of mark is drawn: filled, hollow, upright and dashed."""
    styles = [style for tag, name, style in page.attributes if (tag, name) == ("use", "style")]
    dashes = [style for style in page.values("style") if "stroke-dasharray" in style]
    hollow = [style for style in styles if "fill-opacity: 0" in style]
    return Counter({"filled": len(styles) - len(hollow), "hollow": len(hollow),
                    "dashed": len(dashes)})  # fmt: skip


def test_points_out_of_their_graph_are_marked(small: Profile) -> None:
    def ran(*, elsewhere: bool) -> Profile:
        return replace(
            small,
            curves=tuple(
                replace(r, execution="none" if elsewhere and r.positions > 8 else "full")
                for r in small.curves
            ),
        )

    plain, changed = (
        marks(Page(render(ran(elsewhere=False)))),
        marks(Page(render(ran(elsewhere=True)))),
    )
    beyond = sum(row.positions > 8 and row.ratio < 2.0 for row in small.curves)
    assert sum(changed.values()) - sum(plain.values()) >= beyond > 0


def with_basis(profile: Profile, basis: Basis) -> Profile:
    return replace(
        profile,
        curves=tuple(replace(r, basis=basis) for r in profile.curves),
        boundaries=tuple(replace(r, basis=basis) for r in profile.boundaries),
    )


def test_what_a_point_rests_on_is_seen_without_colours(small: Profile) -> None:
    measured, inferred, predicted = (
        marks(Page(render(with_basis(small, basis))))
        for basis in (Basis.MEASURED, Basis.INFERRED, Basis.PREDICTED)
    )
    points = sum(row.ratio < 2.0 for row in small.curves)
    assert inferred["hollow"] - measured["hollow"] >= points
    assert measured["filled"] - inferred["filled"] >= points
    assert inferred["dashed"] == measured["dashed"]
    # A curve and a bar of each module.
    assert predicted["dashed"] - measured["dashed"] >= 2 * 3
    assert measured["filled"] - predicted["filled"] >= points
    assert predicted["hollow"] == measured["hollow"]


@pytest.mark.parametrize(
    ("basis", "number", "told"),
    [
        (Basis.INFERRED, "~16", "Answers: 9 inferred."),
        (Basis.PREDICTED, "16?", "Answers: 9 predicted."),
    ],
)
def test_numbers_that_were_not_measured_say_so(
    small: Profile, basis: Basis, number: str, told: str
) -> None:
    text = Page(render(with_basis(small, basis))).prose()
    assert f"B L = 1024 8 {number} " in text
    assert f"1.9 ms {number} {basis}" in text
    assert told in text
    assert "Answers:" not in Page(render(small)).prose()


def test_nine_batch_sizes_and_four_contexts_stay_readable(small: Profile) -> None:
    """At most six lines a plot; what does not depend on the context is shown once."""
    made = made_snapshot()
    page = Page(render(replace(small, curves=made.curves, boundaries=made.boundaries,
                               predictions=(), layer_times=())))  # fmt: skip
    captions = re.findall(r"(?:any L|L = \d+), B = (\d+) to (\d+)", page.prose())
    assert captions.count(("1", "16")) == captions.count(("32", "256")) == 4 + 4 + 1
    rows = re.findall(r"(\d+) any [\d.]+ [mµ]s (~?\d+\+?\??) ", page.prose())
    assert [int(b) for b, _ in rows] == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert "Answers: 54 measured" in page.prose()


def test_many_batch_sizes_and_layers_stay_bounded(small: Profile) -> None:
    curve = small.curves_by_cell()["model", 8, 1024]
    curves: list[CurvePoint] = []
    for context in range(1024, 1024 + 3):
        for batch_size in range(1, 17):
            curves += [replace(r, batch_size=batch_size, context=context) for r in curve]
    row = next(r for r in small.boundaries if r.module == "model")
    layers = tuple(
        LayerLatency(layer, "attention", b, c, n, 5, 1e-5 * n)
        for layer in range(12)
        for b in range(1, 17)
        for c in (1024, 1025)
        for n in (1, 2, 4)
    )
    big = replace(
        small,
        curves=tuple(curves),
        boundaries=(replace(row, batch_size=1),),
        predictions=(),
        layer_times=layers,
    )
    page = Page(render(big))
    maps = [v for t, n, v in page.attributes if (t, n, v) == ("table", "class", "heat")]
    assert 1 <= len(maps) <= 9
    assert len(page.values("id")) == len(set(page.values("id")))


EXTREME = st.sampled_from([1e-300, 1e-9, 0.3, 1.0, 1.1, 7.0, 1e9, 1e300])


@given(
    ratios=st.lists(EXTREME, min_size=1, max_size=4),
    seconds=EXTREME,
    epsilon=st.sampled_from([1e-300, 0.001, 0.1, 10.0, 1e300]),
    positions=st.integers(1, 1 << 31),
    largest=st.integers(2, 1 << 31),
)
@settings(max_examples=25, deadline=None)
def test_whatever_a_profile_may_hold_can_be_drawn(
    ratios: list[float], seconds: float, epsilon: float, positions: int, largest: int
) -> None:
    counts = (1, *sorted({largest + i for i in range(len(ratios))}))
    curves = tuple(
        CurvePoint("model", 8, 64, n, 3, seconds, ratio, 0.0, None, "")
        for n, ratio in zip(counts, (1.0, *ratios), strict=True)
    )
    boundary = Boundary("model", 8, 64, epsilon, positions, 1, 1 << 32, False, positions)
    layers = tuple(
        LayerLatency(0, "attention", 8, 64, n, 1, seconds * min(1.0, r))
        for n, r in ((1, 1), (2, 9))
    )
    Page(render(replace(MADE, curves=curves, boundaries=(boundary,), layer_times=layers)))


def test_a_tolerance_that_was_not_measured_is_refused(small: Profile) -> None:
    assert "within 5" in Page(render(small, 0.05)).prose()
    with pytest.raises(
        ReportError, match=r"epsilon 0\.3 is not in the profile; it has 0\.05, 0\.1"
    ):
        render(small, 0.3)
    with pytest.raises(ReportError, match="has no boundary"):
        render(replace(small, boundaries=()))


def test_a_missing_library_is_named(
    dense_profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ReportError, match=r"needs jinja2.*pip install 'vllm-nfp\[report\]'"):
        render(dense_profile)


def test_a_report_that_fails_leaves_the_old_file(tmp_path: Path, small: Profile) -> None:
    path = tmp_path / "out.html"
    write_report(path, small)
    before = path.read_bytes()
    with pytest.raises(ReportError):
        write_report(path, small, 0.3)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_command(tmp_path: Path, small: Profile) -> None:
    profile, out = tmp_path / "profile.json", tmp_path / "out.html"
    save_profile(profile, small)
    done = CliRunner().invoke(main, ["report", str(profile), "-o", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert f'"bytes": {out.stat().st_size}' in done.output
    for arguments, part in (
        ([str(tmp_path / "no.json"), "-o", str(out)], "cannot be read: No such file"),
        ([str(profile), "-o", str(tmp_path / "no" / "out.html")], "does not exist: create it"),
        ([str(profile), "-o", str(out), "--epsilon", "0.7"], "epsilon 0.7 is not in the profile"),
    ):
        done = CliRunner().invoke(main, ["report", *arguments])
        assert done.exit_code == 2
        assert part in done.output
