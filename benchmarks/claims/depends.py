"""What a record rests on: the code whose change could give the run another outcome."""

from __future__ import annotations

CHOOSING = ("vllm_nfp/draft/schedule.py", "vllm_nfp/draft/demand.py", "vllm_nfp/draft/sharing.py")
"""Draft lengths from step times."""
_OTHER_MODELS = (
    ":(exclude)vllm_nfp/principle/drafter",
    ":(exclude)vllm_nfp/principle/example_models.json",
    ":(exclude)vllm_nfp/principle/families",
    ":(exclude)vllm_nfp/principle/reading",
    ":(exclude)vllm_nfp/principle/weights",
)
"""They read descriptions of models; those of the runs are read alike, or the figures would differ
from the prior on."""
ANSWERING = (
    "vllm_nfp/surface",
    "vllm_nfp/principle",
    *_OTHER_MODELS,
    "vllm_nfp/probe",
    "vllm_nfp/schedule",
    "vllm_nfp/timing",
)
"""What a server at the defaults answers, from the prior to the pairs that it chooses."""
SPENDING = (
    "vllm_nfp/config",
    "vllm_nfp/probe",
    "vllm_nfp/schedule",
    "vllm_nfp/timing",
    "vllm_nfp/adapter/graph_place.py",
    "vllm_nfp/adapter/light_ops.py",
)
"""Memory, time at the start, and the time that probes take."""
HOOKING = (
    *SPENDING,
    "vllm_nfp/adapter/hooks.py",
    "vllm_nfp/adapter/idle.py",
    "vllm_nfp/give_way.py",
    "vllm_nfp/session/agreement.py",
    "vllm_nfp/session/delivery.py",
    "vllm_nfp/session/latest_agenda.py",
    "vllm_nfp/session/looks.py",
    "vllm_nfp/session/new_pairs.py",
    "vllm_nfp/session/pace.py",
    "vllm_nfp/session/publisher.py",
    "vllm_nfp/session/session.py",
    "vllm_nfp/session/snapshot_maker.py",
)
"""What a served step meets."""
CONTROLLING = (*CHOOSING, "vllm_nfp/draft/live")
TIMING_KERNELS = ("benchmarks/prediction/kernel_sweep.py", "vllm_nfp/calibrate")
PROBING = ("vllm_nfp/probe", "vllm_nfp/adapter/graph_place.py")
"""What could change an output."""
STATES = (
    "vllm_nfp/adapter/state_layers.py",
    "vllm_nfp/probe/forward.py",
    "vllm_nfp/probe/launcher.py",
    "vllm_nfp/probe/state_room.py",
    "vllm_nfp/probe/states.py",
)
"""Where layers find recurrent states, and how runs on them are timed."""
