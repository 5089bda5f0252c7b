"""Fit the surface's hyperparameters to recorded errors of the prediction, each family left out.

    python -m benchmarks.answers.replay_fit benchmarks/results --out DIR

A part's hyperparameters maximize the evidence of log(measured / predicted) of that part over the
servers of the fit. A server's errors may be larger or smaller than usual: its own factor on the
variance is integrated out, as the surface does while it serves. Writes ``hyperparameters.json``:
one set for each family left out, one of all, and the same for quantized models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from benchmarks.answers.replay_recorded import Server, all_servers
from vllm_nfp.surface.constants import with_experts
from vllm_nfp.surface.functionals import covariance, placed, stacked
from vllm_nfp.surface.kernel import Hyperparameters, RoutingKernel, ShapeKernel, TokenKernel
from vllm_nfp.surface.parts import PART_OF, Part
from vllm_nfp.surface.rows import rows_at
from vllm_nfp.surface.scale import log_evidence
from vllm_nfp.types import Module, Shape

K = TypeVar("K", TokenKernel, ShapeKernel)
NOISE = {Part.DENSE_FFN: 0.004, Part.MOE_FFN: 0.006, Part.OTHER: 0.004, Part.ATTENTION: 0.004,
         Part.COMMUNICATION: 0.01}  # fmt: skip
"""Standard deviation of a composed server's times: medians of five passes."""
TOKEN_BOUNDS = ((0.003, 0.3), (0.002, 0.3), (0.3, 5.0), (0.002, 0.1), (5e-4, 1.0), (50, 1000),
                (0.02, 2.0))  # fmt: skip
SHAPE_BOUNDS = ((0.003, 0.4), (0.002, 0.4), (0.3, 8.0), (0.2, 6.0), (0.3, 8.0), (0.001, 0.2),
                (0.03, 3.0))  # fmt: skip
MOST_ROWS = 160
"""Of a server in a fit; more are thinned out."""
TOKENS_FIRST = TokenKernel(0.02, 0.02, 1.5, 0.006, 0.1, 200.0, 0.1)
SHAPES_FIRST = ShapeKernel(0.02, 0.03, 1.0, 1.0, 1.5, 0.01, 0.2)
LAUNCH = 0.4
KINDS: dict[str, Any] = {
    "attention": ShapeKernel, "step": ShapeKernel, "routing": RoutingKernel, "context": ShapeKernel,
    "linear_attention": ShapeKernel,
}  # fmt: skip
QUANTIZED = ":quantized"
"""Ends the names of sets for quantized models."""


@dataclass(frozen=True)
class Errors:
    """log(measured / predicted) of a part of one server."""

    family: str
    quantized: bool
    part: Part
    places: np.ndarray[Any, np.dtype[np.int64]]
    errors: np.ndarray[Any, np.dtype[np.float64]]
    noise: np.ndarray[Any, np.dtype[np.float64]]


def errors_of(server: Server) -> Iterable[Errors]:
    """The errors of all parts that were measured alone, in CUDA graphs."""
    for module in server.modules:
        if module is Module.MODEL:
            continue
        part = PART_OF[module]
        layers = server.layers(module)
        found: dict[Any, tuple[float, float]] = {}
        for cell in server.measured_cells(module):
            prior = server.prior(*cell)
            expected = prior.log_seconds(module)
            times = np.array(server.seconds[module, *cell]) * layers
            deviations = server.deviations(module, cell)
            for n, seconds, deviation in zip(
                server.positions[cell], times, deviations, strict=True
            ):
                if not (np.isfinite(seconds) and prior.in_graph[n - 1]):
                    continue
                place: Any = (cell[0], n, cell[1])
                if part is not Part.ATTENTION:
                    counts = prior.tokens if part is Part.MOE_FFN else prior.padded
                    place = int(counts[n - 1])
                found.setdefault(
                    place,
                    (float(np.log(seconds) - expected[n - 1]),
                     float(np.hypot(deviation, NOISE[part]))),
                )  # fmt: skip
        yield _thinned(server, part, found)
    if server.composed:
        yield _thinned(server, Part.OTHER, _others(server))


def _others(server: Server) -> dict[Any, tuple[float, float]]:
    found: dict[Any, tuple[float, float]] = {}
    for cell in server.cells:
        prior, counts = server.prior(*cell), np.array(server.positions[cell]) - 1
        other = np.array(server.seconds[Module.MODEL, *cell])
        for module in server.modules:
            if module is not Module.MODEL:
                other = other - server.layers(module) * np.array(server.seconds[module, *cell])
        error = np.log(np.maximum(other, 1e-9)) - np.log(prior.seconds[Part.OTHER][counts])
        for i, n in enumerate(counts):
            if prior.in_graph[n]:
                found.setdefault(int(prior.padded[n]), (float(error[i]), NOISE[Part.OTHER]))
    return found


def _thinned(server: Server, part: Part, found: dict[Any, tuple[float, float]]) -> Errors:
    places = sorted(found)[:: max(1, len(found) // MOST_ROWS)]
    values = np.array([found[place] for place in places]).reshape(-1, 2)
    quantized = server.shape.quantization != "none"
    at = np.array(places, dtype=np.int64)
    return Errors(server.family, quantized, part, at, values[:, 0], values[:, 1])


def fit_part(
    part: Part,
    known: Sequence[Errors],
    make: Callable[[Sequence[float]], K],
    first: K,
    bounds: Sequence[tuple[float, float]],
) -> K:
    """The kernel with the largest evidence."""
    mine = [e for e in known if e.part is part and len(e.errors) > 3]

    def evidence(values: Sequence[float]) -> float:
        kernel = make(values)
        return sum(
            log_evidence(kernel(e.places, e.places), np.diag(e.noise**2), e.errors)[1] for e in mine
        )

    return make(compass(evidence, list(asdict(first).values()), bounds)) if mine else first


def compass(
    gain: Callable[[Sequence[float]], float],
    first: Sequence[float],
    bounds: Sequence[tuple[float, float]],
    rounds: int = 5,
) -> list[float]:
    """Climb one coordinate after the other, by factors that shrink."""
    best = [float(np.clip(v, *b)) for v, b in zip(first, bounds, strict=True)]
    top = gain(best)
    factor = 2.5
    for _ in range(rounds):
        for i, (low, high) in enumerate(bounds):
            for step in (factor, 1.0 / factor):
                while True:
                    tried = [*best]
                    tried[i] = float(np.clip(best[i] * step, low, high))
                    if tried[i] == best[i] or (value := gain(tried)) <= top + 1e-3:
                        break
                    best, top = tried, value
        factor = factor**0.6
    return best


def fit(servers: Sequence[Server], known: Sequence[Errors]) -> Hyperparameters:
    """Hyperparameters from these servers."""
    tokens = {
        part: fit_part(part, known, lambda v: TokenKernel(*v), TOKENS_FIRST, TOKEN_BOUNDS)
        for part in (Part.DENSE_FFN, Part.MOE_FFN, Part.OTHER, Part.COMMUNICATION)
    }
    attention = fit_part(
        Part.ATTENTION, known, lambda v: ShapeKernel(*v), SHAPES_FIRST, SHAPE_BOUNDS
    )
    partly = Hyperparameters(
        tokens[Part.DENSE_FFN], tokens[Part.MOE_FFN], tokens[Part.COMMUNICATION],
        tokens[Part.OTHER], attention, SHAPES_FIRST, LAUNCH,
    )  # fmt: skip
    return _with_step(partly, [s for s in servers if not s.composed])


def fit_quantized(hyper: Hyperparameters, known: Sequence[Errors]) -> Hyperparameters:
    """The same with the sizes of the errors of products that quantized servers show."""
    found = {}
    for part in (Part.DENSE_FFN, Part.OTHER):
        usual = hyper.of(part)
        assert isinstance(usual, TokenKernel)
        mine = [e for e in known if e.part is part and e.quantized]

        def sized(values: Sequence[float], usual: TokenKernel = usual) -> TokenKernel:
            smooth, short, many = values
            return replace(usual, smooth=smooth, short=short, short_many=many)

        def evidence(
            values: Sequence[float],
            mine: Sequence[Errors] = mine,
            make: Callable[[Sequence[float]], TokenKernel] = sized,
        ) -> float:
            kernel = make(values)
            return sum(
                log_evidence(kernel(e.places, e.places), np.diag(e.noise**2), e.errors)[1]
                for e in mine
            )

        first = (usual.smooth, usual.short, usual.short_many)
        bounds = ((0.002, 0.3), (0.002, 0.1), (5e-4, 1.0))
        found[part] = sized(compass(evidence, first, bounds)) if mine else usual
    return replace(hyper, dense_ffn=found[Part.DENSE_FFN], other=found[Part.OTHER])


def name_of(server: Server) -> str:
    """The set with which a server is scored."""
    return server.family + (QUANTIZED if server.shape.quantization != "none" else "")


def _with_step(hyper: Hyperparameters, recorded: Sequence[Server]) -> Hyperparameters:
    """The whole step's own errors, from servers whose steps were recorded with their modules.

    The fourth value that is fitted is the standard deviation of log(module / step) measured in a
    second graph against the module's share of the step; it is not kept.
    """
    tables = [_whole_rows(server) for server in recorded]

    def made(values: Sequence[float]) -> Hyperparameters:
        scale, smooth, short, _ = values
        return replace(hyper, step=ShapeKernel(scale, smooth, 1.0, 1.0, 1.5, short, 0.1))

    def evidence(values: Sequence[float]) -> float:
        tried = made(values)
        total = 0.0
        for rows, errors, noise, biased in tables:
            at = covariance(rows, rows, tried)
            spread = noise**2 + biased * values[3] ** 2
            total += log_evidence(at, np.diag(spread), errors)[1]
        return total

    bounds = ((0.002, 0.1), (0.001, 0.1), (0.0005, 0.05), (0.003, 0.2))
    return made(compass(evidence, (0.01, 0.01, 0.003, 0.03), bounds, rounds=3))


def _whole_rows(server: Server) -> Any:
    modules, shapes, values, deviations = [], [], [], []
    shares: list[tuple[Module, Shape, float]] = []
    for cell in server.cells[::2]:
        inside = server.prior(*cell).in_graph
        step = np.array(server.seconds[Module.MODEL, *cell])
        for module in server.modules:
            ratios = np.log(server.ratios(module, cell))
            own = np.array(server.seconds[module, *cell]) * server.layers(module)
            for i, n in enumerate(server.positions[cell]):
                if not (inside[n - 1] and np.isfinite(ratios[i])):
                    continue
                shape = Shape(cell[0], cell[1], n)
                if n > 1:
                    modules.append(module)
                    shapes.append(shape)
                    values.append(ratios[i])
                    deviations.append(np.hypot(server.deviations(module, cell)[i], 0.002))
                if module is not Module.MODEL and n in (1, 4, 8):
                    shares.append((module, shape, float(np.log(own[i] / step[i]))))
    rows, expected = rows_at(server.prior, modules, shapes, over_one=True)
    share, expected_share = _share_rows(server, shares)
    errors = np.concatenate([values, [v for _, _, v in shares]])
    errors -= np.concatenate([expected, expected_share])
    noise = np.concatenate([deviations, np.full(len(shares), 0.003)])
    biased = np.concatenate([np.zeros(len(values)), np.ones(len(shares))])
    return placed(stacked([rows, share])), errors, noise, biased


def _share_rows(server: Server, shares: Sequence[tuple[Module, Shape, float]]) -> Any:
    """Rows of log(module / step) at the same shape, and what the prior says."""
    shapes = [shape for _, shape, _ in shares]
    rows, expected = rows_at(server.prior, [m for m, _, _ in shares], shapes, over_one=False)
    step, whole = rows_at(server.prior, [Module.MODEL] * len(shapes), shapes, over_one=False)
    rows.weights[:, 0] -= step.weights[:, 0]
    return rows, expected - whole


def hyperparameters_from(row: dict[str, Any]) -> Hyperparameters:
    """Read what this script wrote."""
    kernels: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            kind = KINDS.get(name, TokenKernel)
            kernels[name] = kind(**value)
        else:
            kernels[name] = value
    return Hyperparameters(**kernels)


def hyperparameters_for(server: Server, sets: dict[str, Any]) -> Hyperparameters:
    """Those for a server, from the sets that this script wrote: its family has no part in them."""
    found = hyperparameters_from(sets[name_of(server)])
    return with_experts(found) if server.routed else found


@click.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(results: Path, out: Path) -> None:
    """Fit; see the module's text."""
    servers = all_servers(results)
    known = [errors for server in servers for errors in errors_of(server)]
    sets = {}
    for left_out in ("", *dict.fromkeys(server.family for server in servers)):
        found = fit(
            [s for s in servers if s.family != left_out],
            [e for e in known if e.family != left_out],
        )
        sets[left_out or "all"] = asdict(found)
        others = [e for e in known if e.family != left_out]
        sets[(left_out or "all") + QUANTIZED] = asdict(fit_quantized(found, others))
        print(left_out or "all", found, flush=True)
    out.mkdir(parents=True, exist_ok=True)
    (out / "hyperparameters.json").write_text(json.dumps(sets, indent=1) + "\n")


if __name__ == "__main__":
    main()
