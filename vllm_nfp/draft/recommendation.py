"""A recommendation: draft lengths, what they assume, and what to know before serving them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm_nfp import releases
from vllm_nfp.dataframe import to_dataframe
from vllm_nfp.draft.adaptive import AdaptiveDrafts
from vllm_nfp.draft.demand import Demand
from vllm_nfp.draft.notebook import html_table
from vllm_nfp.draft.rows import Schedule, ScheduleRow
from vllm_nfp.draft.sources import Source
from vllm_nfp.draft.speculative_config import speculative_config

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1


@dataclass(frozen=True, slots=True, repr=False)
class Recommendation:
    """Draft lengths, what they assume and what to know before serving them.

    Attributes:
        method: how drafts are made, in vLLM's words.
        draft_model: directory or name of the draft model's weights; None: not given.
        parallel_drafting: one pass of the drafter makes all drafts (P-EAGLE, PARD).
        vllm: version of vLLM that will serve the table; None: not known.
        assumptions: what the lengths rest on, one sentence each.
        warnings: why they may not do as they say, one sentence each.
        live: of a server: the best length at the batch size and context of the last step, one row
            for each engine.
        verdict: what to do, a sentence or two.
        adaptive: how many tokens to draft with vLLM's adaptive verification; None: nobody asked.
    """

    source: Source
    demand: Demand
    schedule: Schedule
    method: str
    draft_model: str | None
    vllm: str | None
    assumptions: tuple[str, ...]
    warnings: tuple[str, ...]
    parallel_drafting: bool = False
    live: tuple[ScheduleRow, ...] = ()
    verdict: tuple[str, ...] = ()
    adaptive: AdaptiveDrafts | None = None

    @property
    def rows(self) -> tuple[ScheduleRow, ...]:
        """Each range of batch sizes at each context."""
        return self.schedule.rows

    @property
    def refusal(self) -> str | None:
        """Why the vLLM that will serve cannot use the table; None if it can, or is not known."""
        return None if self.vllm is None else releases.draft_schedule_refusal(self.vllm)

    def speculative_config(
        self, method: str | None = None, draft_model: str | None = None
    ) -> dict[str, Any]:
        """The table as vLLM's ``--speculative-config`` takes it, as JSON.

        Args:
            method: None: the recommendation's.
            draft_model: None: the recommendation's, if the method is.

        Raises:
            ValueError: if drafts pay nowhere, or the method's model is missing.
        """
        if method is None:
            model = draft_model or self.draft_model
            return speculative_config(self.schedule, self.method, model, self.parallel_drafting)
        return speculative_config(self.schedule, method, draft_model)

    def to_dict(self) -> dict[str, Any]:
        """What ``vllm-nfp recommend --json`` prints."""
        demand, source = self.demand, self.source
        return {
            "schema": SCHEMA,
            "verdict": list(self.verdict),
            "source": {
                "kind": source.kind,
                "name": source.name,
                "model": source.model,
                "device": source.device,
                "vllm": source.vllm,
                "cut_layers": None if source.cut_layers is None else list(source.cut_layers),
            },
            "acceptance": {
                "per_position": list(demand.acceptance.per_position),
                "beyond": demand.acceptance.beyond,
                "drafts": demand.acceptance.drafts,
            },
            "running_draft_length": demand.running,
            "host_seconds": demand.host_seconds,
            "draft_cost": demand.cost.numbers(),
            "draft_cost_by_batch": [list(of) for of in demand.cost.by_batch],
            "draft_cost_predicted": demand.cost.note,
            "max_draft_length": demand.max_draft_length,
            "draft_lengths": None if demand.draft_lengths is None else list(demand.draft_lengths),
            "epsilon": demand.epsilon,
            "slack": demand.slack,
            "schedule": [dataclasses.asdict(entry) for entry in self.schedule.ranges],
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "live": [dataclasses.asdict(row) for row in self.live],
            "adaptive_verification": None
            if self.adaptive is None
            else dataclasses.asdict(self.adaptive),
            "draft_method": self.method,
            "parallel_drafting": self.parallel_drafting,
            "speculative_config": self._config_or_none(),
            "assumptions": list(self.assumptions),
            "warnings": list(self.warnings),
        }

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a pandas DataFrame.

        Raises:
            NoPandasError: if pandas is not installed.
        """
        return to_dataframe(self.rows, ScheduleRow)

    def __repr__(self) -> str:
        return f"Recommendation({'. '.join(self.verdict)})"

    def _repr_html_(self) -> str:
        return html_table(self.verdict, self.rows)

    def _config_or_none(self) -> dict[str, Any] | None:
        if self.refusal is not None:
            return None
        try:
            return self.speculative_config()
        except ValueError:
            return None
