"""Claim: a server at the defaults answers truly within a minute of traffic.

    python -m benchmarks.answers.at_defaults --shape qwen3-8b --out DIR
    python -m benchmarks.answers.at_defaults --score DIR

A server of the shape starts with ``--nfp-probe`` and nothing else of the probe. It gets the traffic
of :mod:`benchmarks.serving.user_traffic`. Its /metrics is kept when it answers for the first time
and after each phase, and ``vllm-nfp recommend`` is asked at the end. Then every point of a table is
timed, pair by pair, with the code and settings of ``vllm-nfp measure``: that is the truth. The same
server takes it, once its own probe has ended (:mod:`benchmarks.answers.truth_extension`). With
``--truth engine``, ``vllm-nfp measure`` itself takes it in a second engine, whose start takes as
long again. With ``--wide-weights`` tokens choose their own experts
(:mod:`benchmarks.serving.wide_weights`); vLLM's dummy weights have nearly all choose the same.
``--score`` compares the two, without a GPU: see :mod:`benchmarks.answers.at_defaults_score`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.answers.at_defaults_score import print_scores
from benchmarks.hosts import environment
from benchmarks.hosts.flag_text import split_flags
from benchmarks.serving import load, shapes, user_traffic
from benchmarks.serving.remote import Remote
from benchmarks.serving.server import Spec, end_servers_on_sigterm
from benchmarks.serving.traffic import Load
from benchmarks.serving.wide_weights import WIDE_VARIABLE
from vllm_nfp.cli.measure import CAPTURE_SECONDS, DEFAULTS, GRAPH_MEMORY_MIB
from vllm_nfp.files import write_whole
from vllm_nfp.principle import shape_from_config
from vllm_nfp.results.profile import ProfileError, profile_file
from vllm_nfp.start.ports import free_port
from vllm_nfp.start.server import Server

START = "start"
"""Name of the moment at which the server answers for the first time."""
TRUTH = "truth.json"
BATCH_SIZES, CONTEXTS = "1,2,4,8,16,32,64,128", "1024,4096,16384"
SAMPLES = 6
"""Pairs of the truth at each point."""
TRUTH_LIMIT_SECONDS = 900.0
SHORTEST_TRUTH_SECONDS = 20.0
ALONE_CAPTURE_SECONDS = 15.0
"""Of a limited time this is left for the captures of one rank, which go on in the scan: recorded
truths took 1 to 14 s more than their scan. Several ranks make all graphs before it."""
START_SHARE, END_SECONDS = 0.7, 30.0
"""Of a limited time a truth in an engine of its own leaves this share of the server's start for the
start of that engine (seen: 0.5 to 0.65, with what the server has compiled). Every truth leaves some
seconds for the end, in which the KV cache is proved untouched and the server stops."""
CONTENT_STREAMS, CONTENT_TOKENS, CONTENT_OUTPUT, CONTENT_SECONDS = 96, 4224, 512, 2.0
"""Of prompts that leave a context to read for each sequence of the truth up to 4096 tokens. All
stay until the last one was read (the seconds are counted from then on): without prefix caching vLLM
gives the blocks of one that has ended to the next. Some are read in two steps, and the blocks of
the second one are not noted."""
EXTENSION = "benchmarks.answers.truth_extension.TruthServer"
IN_SERVER, IN_ENGINE = "server", "engine"


def serve(
    model: Path,
    flags: Sequence[str],
    vocab_size: int,
    scale: float,
    wide_weights: bool,
    out: Path,
    then: Callable[[Server, float], None],
) -> float:
    """Serve at the probe's defaults, send the traffic, and keep what the server says.

    Args:
        wide_weights: see :mod:`benchmarks.serving.wide_weights`.
        then: called at the end, with the running server and the seconds of its start.

    Returns:
        The seconds that the server took to start.
    """
    begun = time.monotonic()
    spec = Spec(
        model, out / "server.log", free_port(),
        ("--no-enable-prefix-caching", "--worker-extension-cls", EXTENSION, *flags),
        probe={}, extra={"VLLM_SERVER_DEV_MODE": "1", WIDE_VARIABLE: str(int(wide_weights))},
    )  # fmt: skip
    with spec.start() as server:
        server.wait_until_healthy()
        started = time.monotonic() - begun
        keep_metrics(server, START, out)
        clients = {}
        name = user_traffic.model_name(server.url)
        for seed, phase in enumerate(user_traffic.PHASES):
            scaled = replace(phase, seconds=scale * phase.seconds)
            row = user_traffic.run_phase(server.url, name, vocab_size, scaled, seed)
            keep_metrics(server, f"phase-{seed + 1}", out)
            clients[f"phase-{seed + 1}"] = {**asdict(scaled), "client": row["client"]}
            write_whole(out / "clients.json", json.dumps(clients))
        keep_recommendation(server, out)
        then(server, started)
    return started


def fill_contexts(server: Server, vocab_size: int, scale: float) -> None:
    """Send prompts whose contexts the truth reads: without them positions share no experts."""
    card = user_traffic.model_card(server.url)
    model, longest = card["id"], int(card["max_model_len"]) - CONTENT_OUTPUT
    tokens, seconds = min(CONTENT_TOKENS, longest), scale * CONTENT_SECONDS
    load.run(
        Load(
            server.url, model, vocab_size, CONTENT_STREAMS, tokens, CONTENT_OUTPUT, seconds, seed=99
        ),
        0.0,
    )  # fmt: skip


def keep_metrics(server: Server, moment: str, out: Path) -> None:
    """Write the probe's part of /metrics."""
    write_whole(out / f"{moment}.prom", user_traffic.probe_lines(server.metrics()))


def keep_recommendation(server: Server, out: Path) -> None:
    """Write what ``vllm-nfp recommend`` says of the server, for a reader and as JSON."""
    command = [sys.executable, "-m", "vllm_nfp.cli", "recommend", server.url, "--acceptance", "0.7"]
    for name, further in (("recommend.txt", []), ("recommend.json", ["--json"])):
        done = subprocess.run(
            [*command, *further], capture_output=True, text=True, timeout=120, check=False
        )
        write_whole(out / name, done.stdout or done.stderr)


def truth_settings(seconds: float, out: Path) -> dict[str, Any]:
    """The settings with which ``vllm-nfp measure`` measures such a table.

    Args:
        seconds: of the scan, beside the capture of graphs.
        out: takes the profile and the raw samples.
    """
    return {
        "batch_sizes": [int(b) for b in BATCH_SIZES.split(",")],
        "contexts": [int(length) for length in CONTEXTS.split(",")],
        "wanted_samples": SAMPLES,
        "max_samples": max(SAMPLES, DEFAULTS.max_samples),
        "startup_seconds": seconds,
        "capture_seconds": CAPTURE_SECONDS,
        "graph_memory_mib": GRAPH_MEMORY_MIB,
        "output_dir": str(out),
    }


def captures_of(flags: str) -> float:
    """Seconds that the captures of a truth in the same server may take, by its flags."""
    several = any("parallel-size" in flag or flag == "-tp" for flag in split_flags(flags))
    return CAPTURE_SECONDS if several else ALONE_CAPTURE_SECONDS


def truth_in_server(server: Server, seconds: float, out: Path) -> Mapping[str, Any]:
    """End the server's probe and measure every point of the table in its place.

    Returns:
        What the server's first rank says of it, or the fault.
    """
    folder = (out / "truth").resolve()
    folder.mkdir(exist_ok=True)
    settings = json.dumps(truth_settings(seconds, folder))
    limit = CAPTURE_SECONDS + seconds + TRUTH_LIMIT_SECONDS
    try:
        answer = Remote(server.url).call("nfp_truth", settings, seconds=limit)[0]
        write_whole(out / TRUTH, profile_file(folder, "0").read_bytes())
    except OSError as error:  # what the server said before is worth keeping
        return {"fault": f"{error}; see server.log"}
    return answer


def measure_truth(model: Path, engine_args: str, seconds: float, out: Path) -> None:
    """Measure the same shape at every point of the table, in an engine of its own.

    Args:
        engine_args: of vllm.LLM, as JSON, beside the dummy weights.
    """
    arguments = json.dumps({"load_format": "dummy", **json.loads(engine_args)})
    command = [
        sys.executable, "-m", "vllm_nfp.cli", "measure", str(model), "-o", str(out / TRUTH),
        "--batch-sizes", BATCH_SIZES, "--contexts", CONTEXTS, "--samples", str(SAMPLES),
        "--seconds", f"{seconds:g}", "--engine-args", arguments,
    ]  # fmt: skip
    with (out / "measure.log").open("w") as log:
        subprocess.run(command, stdout=log, stderr=log, timeout=TRUTH_LIMIT_SECONDS, check=False)


@click.command()
@click.option("--shape", default="qwen3-8b", show_default=True)
@click.option("--layers", type=int, default=None, help="Fewer layers than published.")
@click.option(
    "--flags", default="", help="Further flags of vllm serve, such as --quantization fp8."
)
@click.option(
    "--truth",
    type=click.Choice((IN_SERVER, IN_ENGINE)),
    default=IN_SERVER,
    show_default=True,
    help="Take the truth in the same server, or in an engine of its own.",
)
@click.option("--engine-args", default="{}", help="The flags for that engine, as JSON.")
@click.option("--scale", default=1.0, show_default=True, help="Factor on the phases' lengths.")
@click.option(
    "--truth-seconds", default=120.0, show_default=True, help="Longest scan of the truth."
)
@click.option(
    "--within", type=float, default=None, help="Shorten that scan so that all ends in so many s."
)
@click.option("--wide-weights", is_flag=True, help="Random weights, not vLLM's nearly equal ones.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--score", "scored", type=click.Path(exists=True, path_type=Path), multiple=True)
def main(
    shape: str,
    layers: int | None,
    flags: str,
    truth: str,
    engine_args: str,
    scale: float,
    truth_seconds: float,
    within: float | None,
    wide_weights: bool,
    out: Path | None,
    scored: tuple[Path, ...],
) -> None:
    """Run one server and its truth, or score what runs have left in their folders."""
    if scored or out is None:
        try:
            print_scores(scored)
        except ProfileError as error:
            raise click.ClickException(f"no truth to score by: {error}") from None
        return
    if wide_weights and truth == IN_ENGINE:
        raise click.UsageError(f"--wide-weights works with --truth {IN_SERVER} alone")
    begun = time.monotonic()
    end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    model = shapes.shared_model(shape, layers)
    about: dict[str, Any] = {
        "shape": shape, "layers": layers or shapes.layer_count(shape), "flags": flags,
        "scale": scale, "truth": truth, "wide_weights": wide_weights,
        "environment": environment.record(),
    }  # fmt: skip
    write_whole(out / "about.json", json.dumps(about))

    vocab_size = shapes.vocab_size(shape)

    def take_truth(server: Server, start: float) -> None:
        if truth == IN_SERVER and shape_from_config(shapes.SHAPES[shape]).num_moe_layers:
            fill_contexts(server, vocab_size, scale)
        seconds = truth_seconds
        if within is not None:
            left = within - (time.monotonic() - begun) - END_SECONDS
            left -= captures_of(flags) if truth == IN_SERVER else START_SHARE * start
            seconds = min(truth_seconds, max(SHORTEST_TRUTH_SECONDS, left))
        about.update(server_start_seconds=round(start, 1), truth_seconds=round(seconds, 1))
        if truth == IN_SERVER:
            write_whole(out / "about.json", json.dumps(about))
            about["truth_answer"] = truth_in_server(server, seconds, out)
        write_whole(out / "about.json", json.dumps(about))

    serve(model, split_flags(flags), vocab_size, scale, wide_weights, out, take_truth)
    if truth == IN_ENGINE:
        measure_truth(model, engine_args, about["truth_seconds"], out)
    write_whole(out / "about.json", json.dumps({**about, "after": environment.gpu_state()}))


if __name__ == "__main__":
    main()
