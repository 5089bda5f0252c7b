"""vLLM's ``--worker-extension-cls`` of ``at_defaults``: takes the truth in the same server.

It does what ``vllm-nfp measure`` does in an engine of its own: it opens a session whose first scan
times every point of a table. That saves the start of a second engine. The probe at the defaults is
ended first, so that nothing else of the probe runs in the process. Before that this module only
notes where the probe's CUDA graphs are captured, which the truth's graphs share as well. The truth
knows which KV blocks the traffic wrote, as the probe has noted them.

Its methods are called by ``POST /collective_rpc``, which vLLM offers with
``VLLM_SERVER_DEV_MODE=1``. Imported by workers alone.
"""

from __future__ import annotations

import functools
import json
import time
from typing import Any
from unittest import mock

from benchmarks.serving.wide_weights import widen_if_asked
from vllm_nfp.config import config_from_mapping
from vllm_nfp.probe import engine
from vllm_nfp.probe.written_blocks import WrittenBlocks
from vllm_nfp.session import open_session
from vllm_nfp.session.session import Session

ENDED = "its part is done; what follows measures the truth"
UNPROBED = "its part is done; what follows is served without it"

_ATTACHED: list[tuple[Session, Any]] = []
"""Sessions that have been given a runner, each with the place of vLLM's CUDA graphs."""


def _note_sessions() -> None:
    original = Session.after_warm_up

    @functools.wraps(original)
    def noted(session: Session, runner: Any, place: Any = None, *rest: Any) -> None:
        _ATTACHED.append((session, place))
        original(session, runner, place, *rest)

    Session.after_warm_up = noted  # type: ignore[assignment]


_note_sessions()
widen_if_asked()


def _written_by_traffic(live: Session) -> WrittenBlocks | None:
    """The KV blocks that the probe's session has noted; None where they do not matter."""
    started = live._started
    return None if started is None or started.engine is None else started.engine.written


class TruthServer:
    """Methods that vLLM adds to its workers; arguments and answers are JSON."""

    vllm_config: Any
    model_runner: Any

    def nfp_end(self) -> str:
        """End the probe; the server goes on without its hooks. The answer says how many ended."""
        for session, _ in _ATTACHED:
            session.disable(UNPROBED, expected=True)
        return json.dumps({"ended": len(_ATTACHED)})

    def nfp_truth(self, settings: str) -> str:
        """Measure every point of the settings' table; the profile is in their output directory.

        The answer holds whether the session probed, its seconds, and its pairs.
        """
        begun = time.monotonic()
        live, place = _ATTACHED[0]
        written = _written_by_traffic(live)
        for session, _ in _ATTACHED:
            session.disable(ENDED, expected=True)
        config = config_from_mapping(json.loads(settings))
        truth = open_session(config, self.vllm_config, begun)
        with mock.patch.object(engine, "written_blocks", lambda *_: written):
            truth.after_warm_up(self.model_runner, place)
        active = truth.active
        truth.disable(ENDED, expected=True)
        return json.dumps({"active": active, "seconds": round(time.monotonic() - begun, 1)})
