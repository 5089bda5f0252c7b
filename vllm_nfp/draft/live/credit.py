"""What trials of draft lengths may lose."""

from __future__ import annotations

from vllm_nfp.draft.live.trial import TRIAL_STEPS, Trial

FIRST_CREDIT = 24.0
"""Steps' worth of tokens that trials may lose before any step has earned it."""
MOST_CREDIT = 48.0
WIDE_CREDIT = 25.0
"""Credit from which unlikely lengths are tried too: nothing has used it for a while."""
LATE_STEPS = 2
"""Steps of the length still to come when a trial ends in its turn: one runs, one is planned."""


class Credit:
    """Steps' worth of tokens that trials may still lose: each step earns some, each trial costs.

    A trial's expected loss is reserved when it begins, so that trials of many batch sizes do not
    use the same credit, and settled when it ends.

    Args:
        share: what a step earns.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.left = FIRST_CREDIT

    @property
    def is_wide(self) -> bool:
        """Whether there is credit to spare."""
        return self.left >= WIDE_CREDIT

    def earn(self) -> None:
        """A step was made."""
        self.left = min(MOST_CREDIT, self.left + self._share)

    def covers(self, loss: float) -> bool:
        """Whether a trial may begin whose steps lose this much each.

        Trials expected to cost nothing may overdraw the credit, within bounds: the length in force
        may be bad.
        """
        return self.left >= TRIAL_STEPS * loss if loss else self.left > -MOST_CREDIT

    def begin(self, trial: Trial) -> None:
        """Reserve what a trial is expected to lose."""
        self.left -= TRIAL_STEPS * trial.loss

    def settle(self, trial: Trial, loss: float) -> None:
        """Settle a trial that has ended and whose steps have lost this much each."""
        steps = trial.ran + (LATE_STEPS if trial.its_turn else 0)
        self.left += TRIAL_STEPS * trial.loss - steps * loss
