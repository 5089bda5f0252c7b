"""The console of the commands: control characters in text from elsewhere are not shown."""

from __future__ import annotations

from collections.abc import Iterable

import rich.console
from rich.console import ConsoleOptions, RenderableType
from rich.segment import Segment

from vllm_nfp.text import harmless


class Console(rich.console.Console):
    """Shows ``?`` in place of control characters, which names from files and servers may hold.

    Rich passes escape characters on. Its own control codes are not text and stay.
    """

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterable[Segment]:
        """The segments to show; see :meth:`rich.console.Console.render`."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else harmless(text), style, control)
