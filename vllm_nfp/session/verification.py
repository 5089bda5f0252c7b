"""Follows vLLM's adaptive verification, and feeds it where that is asked for."""

from __future__ import annotations

from collections.abc import Callable

import torch

from vllm_nfp.adapter.cut_steps import Capture
from vllm_nfp.adapter.graph_rules import captured_graphs
from vllm_nfp.adapter.patch import PatchSet
from vllm_nfp.adapter.ranks import tensor_wire
from vllm_nfp.adapter.verification import AdaptiveVerification, Admitted
from vllm_nfp.draft.verify_costs import cost_file
from vllm_nfp.probe.cuda_graph import SmallGraphs
from vllm_nfp.schedule.lockstep import Wire, done_by_all, wire_errors
from vllm_nfp.schedule.mailbox import faster
from vllm_nfp.session.cost_feed import CostFeed
from vllm_nfp.session.cost_follower import FollowingCosts
from vllm_nfp.session.cost_source import LeadingCosts
from vllm_nfp.session.started import Lead, Started
from vllm_nfp.session.worker import Worker

NOT_ASKED = "they were not asked for: add --nfp-verification-costs"
NOT_PROBED = "nothing is probed, so that no step cost is measured"
NOT_AGREED = "--prefill-context-parallel-size above 1: not all ranks could be given the same costs"


def follow_verification(
    started: Started,
    worker: Worker,
    verification: AdaptiveVerification,
    patches: PatchSet,
    trimmed: Callable[[int], None],
    open_wire: Callable[[], Wire] = lambda: faster(tensor_wire()),
) -> None:
    """Tell of the tokens that steps really run; feed the costs of steps, alike on all ranks.

    Args:
        patches: takes up what is hooked; undone, vLLM's own costs are in force.
        trimmed: takes the tokens of a step whose drafts were trimmed.
        open_wire: to the other tensor-parallel ranks; each calls it at the same point.

    Raises:
        WireError: if another rank cannot be reached.
    """
    never = _never(started, worker)
    together = not never and not started.agreement.ranks.alone
    if started.lead is None and not together:
        return
    wire = None
    if together:
        with wire_errors():
            wire = open_wire()
    if started.lead is not None:
        feed = _leading(started.lead, worker, verification, wire, never)
    else:
        feed = _following(worker, verification, wire, patches)

    def after(request_ids: list[str], admitted: Admitted) -> None:
        feed.after(request_ids, admitted)
        trimmed(admitted.tokens)

    if not never:
        verification.compile_choice()
        cut = verification.cut_steps(_captures())
        # Ranks that cut drafts together do it in one way, which decides between equals.
        if wire is not None and not done_by_all(wire, cut is not None):
            cut = None
        verification.spare_giving_out(patches, cut)
    verification.hook(patches, feed.before, after)
    patches.on_restore(feed.give_back)


def _leading(
    lead: Lead, worker: Worker, verification: AdaptiveVerification, wire: Wire | None, never: str
) -> CostFeed:
    """The feed of the rank whose publisher renews the costs."""
    config, engine = worker.config, worker.identity.engine
    costs = LeadingCosts(config, engine, *_bounds(worker), alone=wire is None, never=never)
    feed = CostFeed(verification, wire, costs.wanted)
    costs.attach(feed)
    lead.publisher.price(costs)
    return feed


def _following(
    worker: Worker, verification: AdaptiveVerification, wire: Wire | None, patches: PatchSet
) -> CostFeed:
    """The feed of a rank that reads the costs from the leader's file."""
    feed, folder = CostFeed(verification, wire), worker.config.run_dir
    if folder is not None:
        path = cost_file(folder, worker.identity.engine)
        follower = FollowingCosts(feed, path, *_bounds(worker))
        follower.start()
        patches.on_restore(follower.stop)
    return feed


def _bounds(worker: Worker) -> tuple[int, tuple[int, ...]]:
    """Most requests of a step, and tokens of the CUDA graphs."""
    requests = int(worker.vllm_config.scheduler_config.max_num_seqs)
    return requests, captured_graphs(worker.vllm_config).sizes


def _captures() -> Capture:
    """CUDA graphs; on a CPU the operations themselves."""
    return SmallGraphs().capture if torch.cuda.is_available() else lambda run: run


def _never(started: Started, worker: Worker) -> str:
    """Why vLLM's own costs stay until the server ends; empty if not; alike on all ranks."""
    if not worker.config.verification_costs:
        return NOT_ASKED
    if started.engine is None:
        return NOT_PROBED
    if worker.vllm_config.parallel_config.prefill_context_parallel_size > 1:
        return NOT_AGREED
    return ""
