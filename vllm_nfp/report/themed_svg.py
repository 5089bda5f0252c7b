"""Figures of matplotlib as SVG with the page's colours, so that both themes are readable."""

from __future__ import annotations

import io
import re
from html import escape
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

SERIES = 6
"""Number of line colours."""
MARKERS = ("o", "s", "D", "p", "h", "P")
"""One for each colour; without triangles and crosses, which mark predictions and the roofline."""
_MARKER_PATHS = (
    "M11 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M11.5 2.5h7v7h-7z", "M15 1.2 19.8 6 15 10.8 10.2 6z",
    "M15 1.5 19.3 4.6 17.6 9.6H12.4L10.7 4.6z", "M15 1.5 18.9 3.8V8.2L15 10.5 11.1 8.2V3.8z",
    "M13.5 1.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
)  # fmt: skip
"""The markers as SVG paths in a box of 30 by 12."""


def legend_mark(look: int) -> str:
    """A piece of line with its marker as an SVG element, for a legend."""
    color = f"var(--series-{look})"
    return (
        f'<svg viewBox="0 0 30 12" aria-hidden="true"><path d="M2 6h26" stroke="{color}" '
        f'stroke-width="1.6"/><path d="{_MARKER_PATHS[look]}" fill="{color}"/></svg>'
    )


# matplotlib cannot write CSS variables: each gets a placeholder colour, replaced afterwards.
ROLES = ("text", "muted", "grid", "free", "card", *(f"series-{i}" for i in range(SERIES)))
COLOR = {role: f"#0a0b{index:02x}" for index, role in enumerate(ROLES, start=1)}

# Any: matplotlib's type of its own settings' names changes with each release.
STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 10.0,
    "axes.edgecolor": COLOR["muted"],
    "axes.labelcolor": COLOR["text"],
    "axes.linewidth": 0.8,
    "text.color": COLOR["text"],
    "xtick.color": COLOR["muted"],
    "ytick.color": COLOR["muted"],
    "xtick.labelcolor": COLOR["text"],
    "ytick.labelcolor": COLOR["text"],
    "grid.color": COLOR["grid"],
    "grid.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}


def themed_svg(figure: Figure, title: str, description: str, slug: str) -> str:
    """The figure as an SVG element.

    Args:
        title: for screen readers, as the description.
        slug: letters, digits and dashes; makes the ids unique on the page.
    """
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": slug}):
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _for_page(buffer.getvalue(), title, description, slug)


def _for_page(svg: str, title: str, description: str, slug: str) -> str:
    """Reduce matplotlib's file to an SVG element for the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<style .*?</style>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    # Older releases write one "font", newer ones its parts; the family is the page's.
    svg = re.sub(r"\bfont: ((?:bold |\d+ )?[\d.]+px) [^;\"]+", r"font: \1 var(--font)", svg)
    svg = re.sub(r"\bfont-family: [^;\"]+; ", "", svg)
    svg = _own_ids(svg, slug)
    for role, color in COLOR.items():
        svg = svg.replace(color, f"var(--{role})")
    view_box = re.search(r'viewBox="([^"]+)"', svg)
    assert view_box is not None, "matplotlib writes a viewBox"
    opening = (
        f'<svg viewBox="{view_box[1]}" role="img" aria-labelledby="{slug}-title {slug}-desc" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{slug}-title">{escape(title)}</title>'
        f'<desc id="{slug}-desc">{escape(description)}</desc>'
    )
    return opening + re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :]).strip()


def _own_ids(svg: str, slug: str) -> str:
    """Remove unused ids and prefix the others with the plot's slug."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))

    def rename(match: re.Match[str]) -> str:
        return f' id="{slug}-{match[1]}"' if match[1] in used else ""

    svg = re.sub(r'\sid="([^"]*)"', rename, svg)
    return re.sub(r'(url\(|href=")#([^)"]+)', rf"\1#{slug}-\2", svg)
