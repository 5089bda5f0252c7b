"""vLLM's ``--worker-extension-cls`` of ``images``: wider weights, and an end of the probe.

Imported by workers alone, before they load the model.
"""

from __future__ import annotations

from benchmarks.answers.truth_extension import TruthServer
from benchmarks.serving.wide_weights import widen_after_loading

widen_after_loading()


class ImageServer(TruthServer):
    """The methods of the class that it extends."""
