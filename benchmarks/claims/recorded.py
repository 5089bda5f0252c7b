"""The claims that README and docs make today, and those whose runs are still to come."""

from __future__ import annotations

from benchmarks.claims import (
    at_defaults_claims,
    draft_claims,
    overhead_claims,
    prediction_claims,
    probe_claims,
    replay_claims,
    serving_claims,
)

CLAIMS = (
    *at_defaults_claims.claims(),
    *overhead_claims.claims(),
    *draft_claims.claims(),
    *prediction_claims.claims(),
    *probe_claims.claims(),
    *replay_claims.claims(),
    *serving_claims.claims(),
)
PLANNED = (
    *overhead_claims.PLANNED,
    *draft_claims.PLANNED,
    *serving_claims.PLANNED,
)
