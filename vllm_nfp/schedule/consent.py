"""Who has to agree before a chosen pair is launched: nobody, or all ranks that run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from vllm_nfp.schedule.flights import Account
from vllm_nfp.schedule.lockstep import Lockstep
from vllm_nfp.schedule.pair import Pair
from vllm_nfp.types import RefusedForNowError


class OwnConsent:
    """Of one rank: each pair is launched at once."""

    alone = True
    """No other rank has to launch what this one launches."""
    pending = False
    """No pair waits for an answer."""

    def given(self, pair: Pair, account: Account) -> bool:
        """Always."""
        return True


class RanksConsent:
    """Of all ranks, asked by a rank that has a plan.

    At the start the ranks wait for each other, so that the answer is there at once. In serving a
    pair is proposed, and comes back some steps later.

    Args:
        lockstep: this rank's part.
        can_launch: whether this rank can launch both runs of a pair.
    """

    alone = False

    def __init__(self, lockstep: Lockstep, can_launch: Callable[[Pair], bool]) -> None:
        self._lockstep = lockstep
        self._can_launch = can_launch
        self._proposal: Pair | None = None
        self._asked = False

    @property
    def proposes(self) -> bool:
        """Whether a pair waits to be put to the other ranks."""
        return self._proposal is not None

    @property
    def pending(self) -> bool:
        """Whether a pair is proposed, and neither launched nor refused yet."""
        return self._asked or self._proposal is not None

    def given(self, pair: Pair, account: Account) -> bool:
        """Whether the pair is to be launched now. In serving it is proposed to the others instead.

        Raises:
            RefusedForNowError: at the start, if a rank cannot launch it.
        """
        if account is not Account.STARTUP:
            self._proposal = pair
            return False
        self._lockstep.decide(pair)
        if self._lockstep.agree(self._can_launch(pair), "can the pair run"):
            return True
        raise RefusedForNowError("another rank cannot launch the pair")

    def take_proposal(self) -> Pair | None:
        """The proposed pair, which is now put to the other ranks."""
        pair, self._proposal = self._proposal, None
        self._asked = pair is not None
        return pair

    def answered(self) -> bool:
        """The ranks have launched a pair, or refused it; whether this rank had proposed it.

        One pair at a time is put to the ranks.
        """
        asked, self._asked = self._asked, False
        return asked


Consent: TypeAlias = OwnConsent | RanksConsent
