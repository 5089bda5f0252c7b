"""Versions of the measured costs: when there is another one, and how all ranks get the same."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

from vllm_nfp.draft.cost_tables import PricedCosts, TableMaker
from vllm_nfp.draft.verify_costs import (
    CostRow,
    Rest,
    VerifyCosts,
    cost_file,
    same_rests,
    same_rows,
)
from vllm_nfp.results.run_folder import RunFolder
from vllm_nfp.strict_json import encode


@dataclass(frozen=True, slots=True)
class CostFile:
    """The file from which the other ranks read the costs."""

    folder: RunFolder
    name: str

    @classmethod
    def of(cls, run_dir: str, engine: str) -> CostFile:
        """That of an engine.

        Args:
            run_dir: the launcher's hand-over folder.
            engine: the engine's index.
        """
        return cls(RunFolder(run_dir), cost_file(run_dir, engine).name)

    def write(self, costs: VerifyCosts) -> None:
        """Replace what is in it.

        Raises:
            OSError: if it cannot be written.
        """
        self.folder.write(self.name, encode(costs))


class CostVersions:
    """Numbers the costs and hands them over. The publisher's thread alone uses it.

    Args:
        engine: its index.
        maker: makes the tables of each version.
        file: of the other ranks; None: there are none.
    """

    def __init__(self, engine: str, maker: TableMaker, file: CostFile | None) -> None:
        self._engine, self._maker, self._file = engine, maker, file
        # Ranks that outlive their leader must not take new costs for old ones.
        self._latest = 1 + secrets.randbelow(1 << 30)
        self.renewals = 0
        """Versions that were handed over."""

    def after(
        self,
        wanted: VerifyCosts | None,
        context: int,
        rows: tuple[CostRow, ...],
        rests: tuple[Rest, ...],
    ) -> VerifyCosts:
        """The costs that are to be wanted now: the same if no choice depends on what is new.

        Args:
            wanted: until now.
            context: in tokens.
        """
        if wanted is not None and same_rows(rows, wanted.rows):
            if same_rests(rows, rests, wanted.rests):
                return wanted
            rows = wanted.rows  # their tables of the device's work stay
        return VerifyCosts(self._engine, self._latest + 1, context, rows, rests)

    def hand_over(self, costs: VerifyCosts) -> PricedCosts:
        """Make the tables of another version, and let the other ranks have the same.

        Raises:
            OSError: if the other ranks cannot be given it; its number is used again then.
        """
        made = self._maker.made(costs)
        if self._file is not None:
            self._file.write(costs)
        self._latest = costs.version
        self.renewals += 1
        return made
