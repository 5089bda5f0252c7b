"""Colours and the names that they stand for.

The Okabe-Ito palette is safe for colour-blind readers. Where a colour has a meaning (a state, a
module), text has it too.
"""

from __future__ import annotations

BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY, YELLOW = "#CC79A7", "#56B4E9", "#999999", "#F0E442"

MODULES = ("attention", "linear_attention", "dense_ffn", "moe_ffn", "communication", "model")
MODULE_COLORS = dict(zip(MODULES, (BLUE, YELLOW, ORANGE, PURPLE, SKY, GREEN), strict=True))
STATES = {
    "warming": SKY,
    "probing": ORANGE,
    "steady": GREEN,
    "passive": GREY,
    "disabled": VERMILLION,
}
BASES = {"measured": GREEN, "inferred": BLUE, "predicted": ORANGE}
"""What an answer rests on, the best first."""
PRIORS = {"profile": GREEN, "predicted": BLUE, "generic": ORANGE}
"""What answers rest on without measurements, the best first."""
CONTEXT_FREE = ("linear_attention", "dense_ffn", "moe_ffn", "communication")
"""Modules whose curves are exported at the smallest context alone."""
GAIN_STEPS = ((None, GREEN), (0.02, ORANGE))
"""Of a gain over what runs. Recorded choices lie within 2 % of the best length
(docs/draft-lengths.md): below that there is nothing to change."""
