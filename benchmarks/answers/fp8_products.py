"""Claim: the FFN of a model in FP8 steps with its tokens as predicted.

    python -m benchmarks.answers.fp8_products PROFILE.json.gz... --shape qwen3-8b --hardware H200

Compares t(T) / t(1) of a profile's dense FFN with the prediction, in CUDA graphs. A point is one
number of tokens that a graph holds: the median over all batch sizes and contexts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

from benchmarks.answers.steps_again import unpacked
from benchmarks.serving.shapes import SHAPES
from vllm_nfp.calibrate.fit_gemm import BASELINE_TOKENS, GemmCurve, product_seconds
from vllm_nfp.principle import ModelShape, shape_from_config, target_of
from vllm_nfp.principle.ffn import activation_seconds
from vllm_nfp.principle.graphs import CapturedGraphs
from vllm_nfp.principle.hardware_file import Target
from vllm_nfp.results.profile import Profile
from vllm_nfp.types import Module


def medians(profile: Profile) -> Mapping[int, float]:
    """Seconds of one layer's FFN by the tokens of its graph."""
    found = defaultdict(list)
    graphs = CapturedGraphs(profile.environment.cudagraph_capture_sizes)
    for curve in profile.curves:
        tokens = graphs.padded_tokens(curve.batch_size, curve.positions)
        if curve.module == Module.DENSE_FFN and curve.execution == "full" and tokens:
            found[tokens].append(curve.median_seconds)
    return {tokens: float(np.median(found[tokens])) for tokens in sorted(found)}


def ratios(
    measured: Mapping[int, float], shape: ModelShape, target: Target
) -> Mapping[int, tuple[float, float]]:
    """Measured and predicted t(T) over that of few tokens, by tokens."""
    tokens, seconds = np.array([*measured], dtype=float), np.array([*measured.values()])
    extra = activation_seconds(target.hardware, shape, tokens)
    curve = GemmCurve(shape.dense_ffn_gemms, tokens, seconds, extra)
    predicted = product_seconds(target.hardware, target.calibration.gemm, curve)
    few = tokens <= BASELINE_TOKENS
    pairs = zip(
        seconds / np.median(seconds[few]), predicted / np.median(predicted[few]), strict=True
    )
    return {t: (float(a), float(b)) for t, (a, b) in zip(measured, pairs, strict=True)}


@click.command()
@click.argument("profiles", type=click.Path(exists=True, path_type=Path), nargs=-1)
@click.option("--shape", default="qwen3-8b", help="The profile's model.")
@click.option("--hardware", default="H200", help="A name or a hardware file.")
def main(profiles: tuple[Path, ...], shape: str, hardware: str) -> None:
    """Compare; see the module's text."""
    for path in profiles:
        measured = medians(unpacked(path))
        found = ratios(
            measured, shape_from_config(SHAPES[shape], weight_bits=8), target_of(hardware)
        )
        for tokens, (true, said) in found.items():
            click.echo(f"{tokens:5d} tokens: {true:.3f}, predicted {said:.3f}")
        errors = np.array([abs(np.log(b / a)) for t, (a, b) in found.items() if t > 1])
        middle, high = np.quantile(errors, (0.5, 0.9))
        click.echo(f"{len(errors)} points: {middle:.1%}, {high:.1%}, {errors.max():.1%}")


if __name__ == "__main__":
    main()
