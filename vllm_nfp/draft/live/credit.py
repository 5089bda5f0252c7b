"""What trials of draft lengths may lose."""

from __future__ import annotations

from vllm_nfp.draft.live.trial import TRIAL_STEPS, Trial

FIRST_CREDIT = 24.0
"""Steps' worth of tokens that trials may lose before any step has earned it."""
MOST_CREDIT = 48.0
WIDE_CREDIT = 25.0
"""Credit from which surprises are looked for: nothing else has used it for a while."""
LATE_STEPS = 2
"""Steps of the length under way when a trial ends in its turn: one runs, one is planned."""


class Credit:
    """Steps' worth of tokens that trials may still lose: each step earns some, each trial costs.

    A trial's loss is set aside as it begins, so that trials of many batch sizes do not count on the
    same credit, and settled as it ends.

    Args:
        share: what a step earns.
    """

    def __init__(self, share: float) -> None:
        self._share = share
        self.left = FIRST_CREDIT

    @property
    def is_wide(self) -> bool:
        """Whether there is some to spare."""
        return self.left >= WIDE_CREDIT

    def earn(self) -> None:
        """A step was made."""
        self.left = min(MOST_CREDIT, self.left + self._share)

    def covers(self, loss: float) -> bool:
        """Whether a trial each of whose steps loses so much may begin.

        A gain is looked for even where the credit is used up, within bounds: the length in force
        may be bad.
        """
        return self.left >= TRIAL_STEPS * loss if loss else self.left > -MOST_CREDIT

    def begin(self, trial: Trial) -> None:
        """Set aside what a trial is expected to lose."""
        self.left -= TRIAL_STEPS * trial.loss

    def settle(self, trial: Trial, loss: float) -> None:
        """A trial has ended, each of whose steps has lost so much."""
        steps = trial.ran + (LATE_STEPS if trial.its_turn else 0)
        self.left += TRIAL_STEPS * trial.loss - steps * loss
