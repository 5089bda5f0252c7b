"""What a prediction rests on and what it leaves out, one sentence each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm_nfp.principle.calibration import ASSUMPTION
from vllm_nfp.principle.granularity import UNPREDICTED
from vllm_nfp.principle.memory import GIB
from vllm_nfp.text import printable
from vllm_nfp.types import Module

if TYPE_CHECKING:
    from vllm_nfp.principle.predictions import Predictions

MOST_CELLS = 8
"""Cells that do not fit and get a sentence of their own."""


def notes(found: Predictions) -> tuple[str, ...]:
    """Where the constants and rules come from, and what is not predicted."""
    return (
        *(f"Assumed: {printable(sentence)}" for sentence in found.shape.assumptions),
        origin(found),
        *_rules(found),
        *_routing_note(found),
        *_memory_notes(found),
        *_graph_notes(found),
        *_host_notes(found),
    )


def origin(found: Predictions) -> str:
    """What the constants rest on."""
    calibration = found.target.calibration
    constants = printable(calibration.source)
    if calibration.fitted:
        return f"Constants: fitted to {constants}."
    some = any(basis != ASSUMPTION for basis in calibration.origins.values())
    own = "not all fitted" if some else "not fitted"
    return (
        f"Constants: {own} to {printable(found.hardware)}, {constants}. "
        f"The weakest of dense products, attention and experts rests on: {found.target.basis}."
    )


def _rules(found: Predictions) -> tuple[str, ...]:
    """Of transfers and of the attention backend, where they were never timed."""
    backend = found.backend
    timed = found.target.calibration.origins.get("attention", ASSUMPTION) != ASSUMPTION
    known = "only steps of one position were" if timed else "its constants are assumed, too"
    rules = f"The rules of {backend.name} were never timed ({backend.source}): {known}."
    transfers = "The constants of transfers between ranks are assumed, not fitted."
    assumed = found.shape.num_ranks > 1 and not found.target.calibration.link.fitted
    return (*((transfers,) if assumed else ()), *((rules,) if backend.assumed else ()))


def _routing_note(found: Predictions) -> tuple[str, ...]:
    if not found.shape.num_moe_layers:
        return ()
    skew, source = found.serving.routing_skew, found.serving.routing_source
    if source:
        return (f"Routing is {source}.",)
    if not skew:
        return (
            "Routing is assumed uniform; routers that prefer some experts take less time: give "
            "--routing PROFILE.json of a server that counted them, or --routing typical.",
        )
    return (f"Routing is assumed skewed: the experts' shares fall with rank to the -{skew:g}.",)


def _memory_notes(found: Predictions) -> tuple[str, ...]:
    """One sentence for each cell that does not fit, up to MOST_CELLS; one if no weights do."""
    cells = found.too_large
    if not cells:
        return ()
    name, ranks = printable(found.hardware), found.shape.num_ranks
    memory = f"the {_gib(cells[0].memory_bytes)} of {'each' if ranks > 1 else 'one'} {name}"
    if cells[0].weights_alone:
        return (
            f"Does not fit: {_gib(cells[0].weight_bytes)} of weights are more than {memory}; use "
            f"more GPUs (--tensor-parallel-size) or smaller weights.",
        )
    further = len(cells) - MOST_CELLS
    return (
        *(
            f"Does not fit at B = {cell.batch_size}, L = {cell.context}: {_gib(cell.weight_bytes)} "
            f"of weights and {_gib(cell.cache_bytes)} of KV cache are more than {memory}."
            for cell in cells[:MOST_CELLS]
        ),
        *((f"Nor do {further} further cells (all are in --json).",) if further > 0 else ()),
    )


def _gib(amount: float) -> str:
    return f"{amount / GIB:.3g} GiB" if amount < 1000 * GIB else f"{amount / GIB / 1024:.3g} TiB"


def _host_notes(found: Predictions) -> tuple[str, ...]:
    """Steps that the GPU finishes before an engine's host has the next one ready."""
    host = found.host_time
    short = [
        batch_size
        for batch_size in found.batch_sizes
        if any(
            found.cell(Module.MODEL, batch_size, context).seconds[0] < host.step_seconds
            for context in found.contexts
        )
    ]
    if not short:
        return ()
    return (
        f"At B = {', '.join(map(str, short))} steps take less than the "
        f"{host.step_seconds * 1e3:.3g} ms that an engine's host needs for one, so that more "
        f"positions are free there than shown (from {host.source}).",
    )


def _graph_notes(found: Predictions) -> tuple[str, ...]:
    if not found.serving.graphs.sizes:
        return (f"Without CUDA graphs {UNPREDICTED}.",)
    largest: dict[int, int] = {}
    for row in found.rows:
        if row.module == "model":
            largest[row.batch_size] = max(row.nfp, largest.get(row.batch_size, 0))
    edges = {batch_size: found.in_graphs(batch_size) for batch_size in largest}
    beyond = [b for b, nfp in largest.items() if edges[b] < nfp]
    if not beyond:
        return ()
    cells = ", ".join(f"N = {edges[b]} at B = {b}" for b in beyond if edges[b])
    never = ", ".join(f"B = {b}" for b in beyond if not edges[b])
    return (
        *((f"Beyond {cells} the step leaves its CUDA graphs: {UNPREDICTED}.",) if cells else ()),
        *((f"At {never} no step fits a CUDA graph: {UNPREDICTED}.",) if never else ()),
    )
