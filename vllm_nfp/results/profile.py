"""A profile: all that one engine's probe found out, and on what, in one JSON file.

``vllm-nfp measure`` writes one, and so does a live server with ``--nfp-output-dir``
(``profile-<engine>.json``). ``vllm-nfp report`` and ``vllm-nfp compare`` read them, and so does
:func:`load_profile`. Field by field the file is the :class:`Profile` below; docs/report.md says
it in words. A change that older readers cannot take raises :data:`SCHEMA`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from vllm_nfp.config import (
    ProbeConfig,
)
from vllm_nfp.dataframe import to_dataframe
from vllm_nfp.files import FileError, write_whole
from vllm_nfp.results.notebook import html_table
from vllm_nfp.results.profile_checks import (
    check_boundary,
    check_distinct,
    check_grid,
    check_point,
    describe,
    place_of,
)
from vllm_nfp.results.snapshot import ENGINE_INDEX, Snapshot
from vllm_nfp.strict_json import JsonObject, encode, read_object
from vllm_nfp.types import (
    Boundary,
    Cell,
    CurvePoint,
    Environment,
    ExpertRouting,
    LayerLatency,
    ModelDescription,
    Prediction,
    ProbeRun,
    ProbeSettings,
)

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 1
KIND = "vllm-nfp profile"
MAX_FILE_BYTES = 64 << 20

Table = Literal["boundaries", "curves", "predictions", "layer_times"]

_DAMAGED = "it is not a profile of vllm-nfp: give another file, or measure again"


class ProfileError(ValueError):
    """A profile that cannot be used; the message is one sentence that names file and field."""


@dataclass(frozen=True, slots=True, repr=False)
class Profile:
    """One engine's results and what they were measured on.

    Raises:
        ValueError: for rows that contradict each other or cannot be.
    """

    environment: Environment
    model: ModelDescription
    probe: ProbeSettings
    run: ProbeRun
    curves: tuple[CurvePoint, ...] = ()
    """t(N) of each module in each cell (batch size, context), ascending in N from 1."""
    boundaries: tuple[Boundary, ...] = ()
    """NFP with its interval, of each module, cell and epsilon."""
    predictions: tuple[Prediction, ...] = ()
    """What the model without measurement and the idle-compute rule say."""
    layer_times: tuple[LayerLatency, ...] = ()
    """Time of each timed layer's modules."""
    experts: ExpertRouting | None = None
    """How real steps reached the experts; None where it was not counted."""
    kind: str = KIND
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        for point in self.curves:
            check_point(point)
        for line in self.boundaries:
            check_boundary(line)
        check_distinct("curves", [(row.cell, row.positions) for row in self.curves])
        # In boundaries and predictions the positions are the answer, not part of the question.
        check_distinct("boundaries", [(row.cell, row.epsilon) for row in self.boundaries])
        check_distinct("predictions", [(row.cell, row.epsilon) for row in self.predictions])
        check_distinct(
            "layer_times", [(row.layer, row.cell, row.positions) for row in self.layer_times]
        )
        check_grid(self.curves)
        for cell, points in self.curves_by_cell().items():
            if points[0].positions != 1:
                raise ValueError(f"the curve of {describe(cell)} lacks its point at N = 1")

    def __repr__(self) -> str:
        return (
            f"Profile({self.model.name} on {self.environment.device.name}: {len(self.curves)} "
            f"points, {len(self.boundaries)} boundaries)"
        )

    def _repr_html_(self) -> str:
        return html_table(self)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """(module, batch size, context) of each curve, the whole step first."""
        return tuple(self.curves_by_cell())

    @property
    def epsilons(self) -> tuple[float, ...]:
        """Tolerances that boundaries are given for, ascending."""
        return tuple(sorted({row.epsilon for row in self.boundaries}))

    def curves_by_cell(self) -> dict[Cell, tuple[CurvePoint, ...]]:
        """The curve of each cell, ascending in positions; cells in reading order."""
        grouped: dict[Cell, list[CurvePoint]] = {}
        for row in self.curves:
            grouped.setdefault(row.cell, []).append(row)
        return {
            key: tuple(sorted(grouped[key], key=lambda row: row.positions))
            for key in sorted(grouped, key=place_of)
        }

    def to_dict(self) -> dict[str, Any]:
        """The profile as plain JSON values."""
        values: dict[str, Any] = json.loads(encode(self))
        return values

    def to_dataframe(self, table: Table = "boundaries") -> pd.DataFrame:
        """One of the profile's tables as a pandas DataFrame, a column for each field.

        Raises:
            NoPandasError: if pandas is not installed.
            ProfileError: if there is no such table.
        """
        kinds = {
            "boundaries": Boundary,
            "curves": CurvePoint,
            "predictions": Prediction,
            "layer_times": LayerLatency,
        }
        if table not in kinds:
            raise ProfileError(
                f"a profile has no table {table!r}: "
                f"take boundaries, curves, predictions or layer_times"
            )
        return to_dataframe(getattr(self, table), kinds[table])


def profile_of(
    snapshot: Snapshot, environment: Environment, model: ModelDescription, config: ProbeConfig
) -> Profile:
    """The profile of what a probe has found so far."""
    return Profile(
        environment=environment,
        model=model,
        probe=_settings_of(config),
        run=ProbeRun(
            engine=snapshot.engine,
            runner=snapshot.runner,
            state=snapshot.state,
            reason=snapshot.reason,
            probes=dict(snapshot.probes),
            missing_pairs=snapshot.missing_pairs,
            probe_seconds=snapshot.probe_seconds,
            overhead_ratio=snapshot.overhead_ratio,
            startup_seconds=snapshot.startup_seconds,
            graph_bytes=snapshot.graph_bytes,
            skipped_cells=dict(snapshot.skipped_cells),
        ),
        curves=snapshot.curves,
        boundaries=snapshot.boundaries,
        predictions=snapshot.predictions,
        layer_times=snapshot.layer_times,
        experts=snapshot.experts,
    )


def _settings_of(config: ProbeConfig) -> ProbeSettings:
    """The part of the settings that belongs in a profile: no folders."""
    names = {field.name for field in dataclasses.fields(ProbeSettings)} - {"positions"}
    return ProbeSettings(**{name: getattr(config, name) for name in names}, positions=config.grid)


def profile_file(folder: Path | str, engine: str) -> Path:
    """Where a live server leaves the profile of one engine.

    Raises:
        ValueError: for an engine index that is not a number.
    """
    if not ENGINE_INDEX.fullmatch(engine):
        raise ValueError(f"engine index {engine!r:.80} is not a number")
    return Path(folder) / f"profile-{engine}.json"


def save_profile(path: Path | str, profile: Profile) -> None:
    """Write a profile; an older file is replaced whole or left as it was.

    Raises:
        OSError: if it cannot be written.
    """
    write_whole(Path(path), encode(profile))


def load_profile(path: Path | str) -> Profile:
    """Read a profile, trusting nothing in it.

    Raises:
        ProfileError: if the file cannot be read or is no profile of this schema; the message names
            the field.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ProfileError(f"{path} is not a file: give a profile.json")
        found = read_object(path, MAX_FILE_BYTES)
        _check_kind(found)
        return found.decode(Profile)
    except OSError as error:
        raise ProfileError(f"{path} cannot be read: {error.strerror or error}") from None
    except FileError as error:
        raise ProfileError(f"{error}; {_DAMAGED}") from None
    except ProfileError:
        raise
    except ValueError as error:
        raise ProfileError(f"{str(path)!r} is not a file path: {error}") from None


def _check_kind(found: JsonObject) -> None:
    if found.values.get("kind") != KIND:
        raise ProfileError(
            f"{found.where} is not a profile: make one with vllm-nfp measure, or take "
            f"profile-0.json from a server's --nfp-output-dir"
        )
    if found.values.get("schema") != SCHEMA:
        raise ProfileError(
            f"{found.where} has schema {found.values.get('schema')!r:.20}, this vllm-nfp reads "
            f"{SCHEMA}: read it with the vllm-nfp that wrote it, or measure again"
        )
