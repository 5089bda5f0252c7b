"""The agenda that is in force, and when it is chosen anew."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_nfp.config import ProbeConfig
from vllm_nfp.results.gather import Results
from vllm_nfp.results.real_steps import Traffic
from vllm_nfp.schedule.agenda import NO_AGENDA, Agenda
from vllm_nfp.schedule.counters import Counters
from vllm_nfp.session.agenda_maker import AgendaMaker
from vllm_nfp.timing import RealSteps
from vllm_nfp.types import Shape


class LatestAgenda:
    """Has the next agenda made whenever something has happened since the last one.

    One thread at a time renews it. Any thread may read it at any time: one assignment replaces it.

    Args:
        config: the probe's settings; in passive mode nothing is ever chosen.
        results: of the server.
    """

    def __init__(self, config: ProbeConfig, results: Results) -> None:
        self._results = results
        self._maker = None if config.passive else AgendaMaker(config, results)
        self._traffic = Traffic()
        self._agenda = NO_AGENDA
        self._chosen_for: tuple[int, frozenset[Shape], frozenset[Shape]] | None = None
        """Pairs, and what was refused or put off, as of the latest agenda."""

    @property
    def agenda(self) -> Agenda:
        """As chosen last; any thread may read it at any time."""
        return self._agenda

    def renew(self, counters: Counters, kinds: Iterable[RealSteps], now: float) -> None:
        """Choose again where something has happened, after an update of the results; gives way.

        Args:
            kinds: real steps, which say where the traffic is.
            now: seconds of the monotonic clock.
        """
        self._traffic.update(kinds, now)
        known = self._results.findings.pairs, counters.refused, counters.put_off
        if self._maker is not None and (counters.wants_agenda or known != self._chosen_for):
            self._agenda = self._maker.make(counters, self._traffic.shares)
            self._chosen_for = known
