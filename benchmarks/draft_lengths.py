"""Claim: the chosen draft lengths are as fast as the best fixed one, at every load.

    python -m benchmarks.draft_lengths --shape qwen3-8b --out DIR
    python -m benchmarks.draft_lengths --method eagle3 --shape qwen3-8b --out DIR

Two real vLLM engines share one GPU and are stepped in turn, never at once: one without
speculation, one that drafts and accepts at vLLM's synthetic rates, with FULL CUDA graphs for every
draft length. ``--method`` says how it drafts: ngram_gpu looks n-grams up, at next to no cost; eagle
and eagle3 run a head of one layer, with dummy weights, for each drafted token.

The second goes round the fixed lengths, a few steps of each, so that slow spells of the host meet
all of them alike; and it steps under the live controller, one for each acceptance. The time of a
step hangs on its length, not on whose choice that was: so a table, and the controller, are judged
by the lengths that they ran and what those took on the round. Over a ramp of the load each policy
runs by itself. Rows are written as they come; ``benchmarks.draft_table`` makes tables of them.

The models have dummy weights, and are made to talk (:mod:`benchmarks.talk`): left alone, such a
model repeats itself, and with experts its drafts cost less than any text's would.

Memory, of some 70 GiB that the weights and KV caches of both engines may take on an 80 GB H100. A
token takes 4 KiB for each layer of qwen3-8b (8 KV heads of 128, keys and values, 2 bytes) and 2 KiB
of qwen3-30b-a3b (4 KV heads), and an EAGLE head is one layer more. With eagle3 and ``--long-batch``
sequences of 9000 tokens, in GiB:

    shape           long-batch   --layers   --kv-gib   --plain-kv-gib   weights   in all
    qwen3-8b                64         12         29               27        14       70
    qwen3-8b               128          6         31               27        10       68
    qwen3-30b-a3b           64         14         17               16        35       68
    qwen3-30b-a3b          128          9         22               20        24       66

``--only-long`` leaves context 1024 and the ramp out. The fewer the layers, the more of a step is
the LM head, and the more a drafted token costs beside it: compare nothing across these rows.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from benchmarks import environment, shapes, step_cost, talk
from benchmarks.draft_cost import METHODS, draft_cost
from benchmarks.kernel_sweep import wait_for
from vllm_nfp import predict
from vllm_nfp.draft import constant
from vllm_nfp.draft.recommend import StepTimes, recommend
from vllm_nfp.draft.schedule import FREE, DraftCost
from vllm_nfp.draft.speculative_config import table

LENGTHS = (0, 1, 2, 3, 4, 6, 8)
LONGEST = LENGTHS[-1]
DOCUMENTED = [[1, 64, 3], [65, 128, 1], [129, 512, 0]]
"""The example of vLLM's page on dynamic speculative decoding."""
LEVELS = (1, 2, 4, 8, 16, 32, 64, 128)
LEVEL_SECONDS = 0.25
"""Of each level of the ramp."""
TINY_LEVEL_SECONDS = 0.05
LONG_CONTEXT = 8192
LONG_TOKENS = 9000
"""Of a sequence that began with the long context, when it is measured."""
ACCEPTANCES = (0.5, 0.7, 0.9)
MAIN_ACCEPTANCE = 0.7
FIXED = tuple(f"fixed:{k}" for k in LENGTHS)
ROUND = "round"
"""All fixed lengths, one after the other, again and again."""
ROUNDS_OF_LENGTHS = 2
MORE_ROUNDS = 4
"""Measured beyond the first two where they disagree: a slow spell of the host met one of them."""
AGREE = 0.03
"""Median distance of a length's rounds from their median, as a share of it, that is let pass; of
lengths with a CUDA graph, since without one every step waits for the host."""
WIDEST_GRAPH = 512
"""vLLM's default, in tokens, which the engines keep."""
STEPS_OF_ROUND, SKIPPED_OF_ROUND = 16, 6
"""Steps of each length at a time, and how many of them are not timed: they were in flight,
verified the drafts of the length before, or were launched by a host that had run ahead."""
SETTLING_STEPS = 300
TINY_SETTLING_STEPS = 10
PROBED_CONTEXTS = (1072, 8240)
"""About where the sequences of 1024 and 8192 tokens are while they are timed."""
PROBE = {
    "batch_sizes": [1, 4, 8, 16, 32, 64, 128],
    "contexts": list(PROBED_CONTEXTS),
    "positions": [1, 2, 3, 4, 5, 7, 9],
    "max_positions": 9,
    "capture_seconds": 40.0,
    "graph_memory_mib": 1024,
    "min_samples": 6,
    "overhead_budget": 0.0,
}
"""The probe scans at the start and never again: what it costs is measured elsewhere."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What an engine is started with."""

    shape: str
    layers: int
    kv_gib: float
    speculates: bool
    tiny: bool
    scan_seconds: float
    method: str = METHODS[0]


@dataclass(frozen=True, slots=True)
class Command:
    """One measurement that an engine is asked for; ``seconds`` counts rounds for ``round``."""

    batch_size: int
    context: int
    policy: str
    """none, fixed:K, round, table:JSON or live."""
    acceptance: float
    seconds: float
    warm_steps: int
    fresh: bool = False
    """Begin with a controller that has learned nothing."""


class Count:
    """Steps, tokens and times, by draft length."""

    def __init__(self) -> None:
        self._begun = self._last = time.perf_counter()
        self._seconds: dict[int, list[float]] = {}
        self._tokens = 0

    @property
    def steps(self) -> int:
        """Steps so far."""
        return sum(map(len, self._seconds.values()))

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begun

    def add(self, tokens: int, length: int) -> None:
        """A step has ended."""
        now = time.perf_counter()
        self._seconds.setdefault(length, []).append(now - self._last)
        self._last = now
        self._tokens += tokens

    def skip(self) -> None:
        """A step that does not count has ended."""
        self._last = time.perf_counter()

    def row(self) -> dict[str, Any]:
        """What is written.

        The median of a length's steps leaves out what stops the host for a moment; ``elapsed``
        holds it.
        """
        return {
            "tokens": self._tokens,
            "steps": self.steps,
            "elapsed": self._last - self._begun,
            "lengths": {k: len(times) for k, times in self._seconds.items()},
            "medians": {k: statistics.median(times) for k, times in self._seconds.items()},
        }


class Engine:
    """A vLLM engine in this process, stepped by hand."""

    def __init__(self, settings: Settings, out: Path) -> None:
        self.settings, self.out = settings, out
        self.control: Any = None
        self._controls: dict[float, Any] = {}
        self._running: dict[int, tuple[str, ...]] = {}
        self._serial = 0
        self._config = _probe_config(settings, out)
        if settings.speculates:
            self._hook()
        from vllm_nfp.adapter.graph_place import CaptureWatch

        with CaptureWatch() as captures:
            self.llm = _start(settings, out)
        self._place = captures.place
        self.core = self.llm.llm_engine.engine_core.engine_core
        self.scheduler = self.core.scheduler
        self.runner = self.core.model_executor.driver_worker.worker.model_runner
        talk.teach(self.runner.get_model())
        if settings.method in shapes.DRAFT_HEADS and settings.speculates:
            talk.teach_head(drafter(self.runner).model)
        self.static = list(getattr(self.scheduler, "dynamic_sd_lookup", None) or ())
        self.random = random.Random(7)

    def _hook(self) -> None:
        from vllm_nfp.adapter import draft_lengths
        from vllm_nfp.adapter.patch import PatchSet

        draft_lengths.install_sizes(PatchSet(), self._config)
        draft_lengths.install_graphs(PatchSet(), self._config)

    def scan(self) -> None:
        """Let the probe measure the step's curve, and write it where the controller looks."""
        from vllm_nfp.session.session import Session

        session = Session(self._config, self.llm.llm_engine.vllm_config)
        session.attach(self.runner, self._place)
        session.disable("the scan has ended", expected=True)

    def draft_seconds(self) -> list[dict[str, Any]]:
        """What the controller of each acceptance has learned of a drafted token's cost."""
        return [
            {"acceptance": acceptance, "draft_seconds": control.controller.draft_seconds}
            for acceptance, control in self._controls.items()
            if control.controller is not None
        ]

    def trials(self) -> list[dict[str, Any]]:
        """The trials of the controller of each acceptance since this was asked last."""
        found = []
        for acceptance, control in self._controls.items():
            results = [] if control.controller is None else control.controller.results
            found += [{"acceptance": acceptance, **dataclasses.asdict(one)} for one in results]
            results.clear()
        return found

    def step_cost(self, seconds: float, out: Path) -> None:
        """Measure what the probe's hooks cost a step."""
        most = self.llm.llm_engine.vllm_config.scheduler_config.max_num_seqs
        context = 64 if self.settings.tiny else 1024
        hooked = (self.llm, self.runner, self._place)
        step_cost.measure(*hooked, self._hold, self._step, most, context, seconds, out)

    def measure(self, command: Command) -> dict[str, Any]:
        """Hold the batch, set the policy, warm up, then step for a while."""
        self._set_acceptance(command.acceptance)
        self._hold(command.batch_size, command.context)
        self._set_policy(command)
        for _ in range(command.warm_steps):
            self._step()
        count = Count()
        if command.policy == ROUND:
            self._go_round(count, command)
        else:
            self._go_on(count, command, 8, command.batch_size)
        return {**dataclasses.asdict(command), **count.row()}

    def _go_on(self, count: Count, command: Command, least: int, batch_size: int) -> None:
        """Step for the command's time, and for so many steps at least."""
        while count.elapsed < command.seconds or count.steps < least:
            made = self._step()
            if made is not None:
                count.add(made, self._live_length(command, batch_size))

    def _go_round(self, count: Count, command: Command) -> None:
        """Every length several times, each time from the same contexts on.

        A round makes some 500 tokens for each sequence. Were they kept, a step at 128 sequences
        would read a tenth more at its end than at its beginning.
        """
        for _ in range(round(command.seconds)):
            for length in self.random.sample(LENGTHS, len(LENGTHS)):
                self.scheduler.dynamic_sd_lookup = [length] * len(self.static)
                self._hold(command.batch_size, command.context)
                for number in range(STEPS_OF_ROUND):
                    made = self._step()
                    if made is None or number < SKIPPED_OF_ROUND:
                        count.skip()
                    else:
                        count.add(made, length)

    def ramp(self, command: Command, levels: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The levels one after the other, with arrivals and departures in between, timed too."""
        self._set_acceptance(command.acceptance)
        self._hold(levels[0], command.context)
        self._set_policy(command)
        for place, level in enumerate(levels):
            self._resize(level, command.context)
            count = Count()
            self._go_on(count, command, 4, level)
            yield {
                "policy": command.policy,
                "acceptance": command.acceptance,
                "context": command.context,
                "place": place,
                "level": level,
                **count.row(),
            }

    def _live_length(self, command: Command, batch_size: int) -> int:
        if self.control is not None:
            return int(self.control.last_length or 0)
        kind, _, rest = command.policy.partition(":")
        if kind == "fixed":
            return int(rest)
        if kind == "none":
            return 0
        return int(self.scheduler.dynamic_sd_lookup[batch_size])

    def _set_acceptance(self, acceptance: float) -> None:
        sampler = getattr(self.runner, "rejection_sampler", None)
        rates = getattr(sampler, "synthetic_conditional_rates", None)
        if rates is not None:
            rates.fill_(acceptance)

    def _set_policy(self, command: Command) -> None:
        kind, _, rest = command.policy.partition(":")
        if self.control is not None:
            self.control.pause()
            self.control = None
        if kind == "live":
            self.control = self._controller(command.acceptance, command.fresh)
        elif kind == "fixed":
            self.scheduler.dynamic_sd_lookup = [int(rest)] * len(self.static)
        elif kind == "table":
            self.scheduler.dynamic_sd_lookup = _dense(json.loads(rest), len(self.static))

    def _controller(self, acceptance: float, fresh: bool) -> Any:
        """One controller for each acceptance, which keeps what it has learned between its turns."""
        from vllm_nfp.adapter.draft_control import DraftControl
        from vllm_nfp.adapter.patch import PatchSet

        control = self._controls.get(acceptance)
        if control is not None and not fresh:
            control.resume()
            return control
        self.scheduler.dynamic_sd_lookup = list(self.static)
        control = self._controls[acceptance] = DraftControl(
            self.scheduler, self._config, PatchSet()
        )
        control.begin()
        return control

    def _hold(self, batch_size: int, context: int) -> None:
        """Start anew with these sequences; their prompts come from the prefix cache."""
        self._abort([name for names in self._running.values() for name in names])
        self._running.clear()
        self._resize(batch_size, context)

    def _resize(self, batch_size: int, context: int) -> None:
        names = list(self._running.get(context, ()))
        self._abort(names[batch_size:])
        names = names[:batch_size]
        added = batch_size > len(names)
        while len(names) < batch_size:
            names.append(self._add(len(names), context))
        self._running[context] = tuple(names)
        while added and self._prefilling():
            self._step()

    def _add(self, place: int, context: int) -> str:
        from vllm import SamplingParams

        self._serial += 1
        name = str(self._serial)
        prompt = talk.prompt(place, context - 1)
        params = SamplingParams(max_tokens=1 << 14, temperature=0.0, ignore_eos=True)
        self.llm.llm_engine.add_request(name, {"prompt_token_ids": prompt}, params)
        return name

    def _abort(self, names: Sequence[str]) -> None:
        if names:
            ids = set(names)
            running = [r for r in self.scheduler.requests if r.split("-")[0] in ids]
            self.core.abort_requests(running)
            self.llm.llm_engine.output_processor.abort_requests(names, internal=False)

    def _prefilling(self) -> bool:
        return bool(self.scheduler.waiting) or any(
            request.num_computed_tokens < request.num_prompt_tokens
            for request in self.scheduler.running
        )

    def _step(self) -> int | None:
        """One call of the engine's loop; the tokens of a finished step, None if none finished."""
        if not self.scheduler.has_unfinished_requests():
            raise RuntimeError("all sequences have ended: they are too long for this model")
        outputs, executed = self.core.step_fn()
        self.core.post_step(executed)
        if not outputs:
            return None
        return sum(len(o.new_token_ids) for of in outputs.values() for o in of.outputs)


def _dense(table: Sequence[Sequence[int]], size: int) -> list[int]:
    from vllm.v1.spec_decode.dynamic.utils import build_dynamic_sd_schedule_lookup

    found: list[int] = build_dynamic_sd_schedule_lookup(table, size - 1, LONGEST)
    return found


def _probe_config(settings: Settings, out: Path) -> Any:
    from vllm_nfp.config import config_from_mapping

    changes: Mapping[str, Any] = {
        "startup_seconds": settings.scan_seconds,
        "draft_control": True,
        "draft_lengths": list(LENGTHS),
        "run_dir": str(out / "run"),
        "output_dir": str(out / "probe"),
        "publish_seconds": 0.5,
    }
    (out / "run").mkdir(parents=True, exist_ok=True)
    small = {"batch_sizes": [1, 2], "contexts": [64]} if settings.tiny else {}
    return config_from_mapping({**PROBE, **changes, **small})


def _start(settings: Settings, out: Path) -> Any:
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM

    folder = shapes.write_model(out / "model", settings.shape, settings.layers)
    longest = 4096 if settings.tiny else 12288
    arguments: dict[str, Any] = {
        "kv_cache_memory_bytes": int(settings.kv_gib * (1 << 30)),
        "max_model_len": longest,
        "max_num_seqs": 128 if not settings.tiny else 8,
        "max_num_batched_tokens": 8192 if not settings.tiny else 4096,
        "enable_prefix_caching": True,
    }
    if settings.tiny:
        arguments["enforce_eager"] = True
    else:
        arguments["gpu_memory_utilization"] = 0.05
    if settings.speculates:
        arguments["speculative_config"] = speculation(settings, out / "draft")
        if settings.method in shapes.DRAFT_HEADS:
            prepare_head(settings.method)
    return LLM(
        model=str(folder),
        load_format="dummy",
        skip_tokenizer_init=True,
        disable_log_stats=True,
        seed=0,
        **arguments,
    )


def speculation(settings: Settings, folder: Path) -> dict[str, Any]:
    """What vLLM is told of drafting; a head's config.json is written to the folder."""
    config: dict[str, Any] = {
        "method": settings.method,
        "num_speculative_tokens": LONGEST,
        "num_speculative_tokens_per_batch_size": [[1, 1, 3]],
    }
    if settings.method in shapes.DRAFT_HEADS:
        head = shapes.write_draft_head(folder, settings.shape, settings.method, settings.layers)
        config["model"] = str(head)
    else:
        config |= {"prompt_lookup_min": 1, "prompt_lookup_max": 2}
    if not settings.tiny:  # vLLM's CPU sampler knows no synthetic acceptance
        rates = [0.7 ** (i + 1) for i in range(LONGEST)]
        return config | {
            "rejection_sample_method": "synthetic",
            "synthetic_acceptance_rates": rates,
        }
    return config | ({"method": "ngram"} if settings.method == "ngram_gpu" else {})


def prepare_head(method: str) -> None:
    """Before an engine starts: have its heads hear what is read, and draft as real ones do.

    An EAGLE-3 head has an LM head of its own. vLLM tells from the names of loaded weights that
    there is one, and dummy weights have none: it would take the target's, with nearly five times
    the tokens.
    """
    from vllm.model_executor.models.llama_eagle import EagleLlamaForCausalLM
    from vllm.model_executor.models.llama_eagle3 import Eagle3LlamaForCausalLM

    if method == "eagle3":
        talk.listen(Eagle3LlamaForCausalLM)
        Eagle3LlamaForCausalLM.has_own_lm_head = True
    else:
        talk.listen(EagleLlamaForCausalLM)


def drafter(runner: Any) -> Any:
    """What drafts in a model runner of vLLM: the V2 runner names it otherwise than V1's."""
    found = getattr(runner, "speculator", None)
    return runner.drafter if found is None else found


def work(settings: Settings, out: Path) -> None:
    """An engine's process: a command for each line on standard input, an answer for each."""
    engine = Engine(settings, out)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        try:
            if order["order"] == "scan":
                engine.scan()
            elif order["order"] == "cost":
                engine.step_cost(order["seconds"], Path(order["out"]))
            else:
                for row in answers(engine, order):
                    print(json.dumps(row), flush=True)
        except Exception as error:
            print(json.dumps({"error": repr(error)}), flush=True)
            raise
        print("done", flush=True)


def answers(engine: Engine, order: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
    """The rows of an order that has some, as they come."""
    if order["order"] == "draft_seconds":
        return engine.draft_seconds()
    if order["order"] == "trials":
        return engine.trials()
    command = Command(**order["command"])
    if order["order"] == "measure":
        return [engine.measure(command)]
    return engine.ramp(command, order["levels"])


class Worker:
    """An engine's process, from outside."""

    def __init__(self, settings: Settings, out: Path, environ: Mapping[str, str]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.log = out / "engine.log"
        command = [sys.executable, "-m", "benchmarks.draft_lengths", "--out", str(out)]
        command += ["--worker", json.dumps(dataclasses.asdict(settings))]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={
                    **os.environ,
                    **environ,
                    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
                    "VLLM_CACHE_ROOT": str(out / "cache"),
                },
            )

    def ready(self) -> bool:
        """Wait until it serves; false if it has ended."""
        assert self.process.stdout is not None
        return any(line.startswith("ready") for line in self.process.stdout)

    def ask(self, order: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Have an order carried out; its rows.

        Raises:
            RuntimeError: if the engine failed.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        rows: list[dict[str, Any]] = []
        for line in self.process.stdout:
            if line.startswith("done"):
                return rows
            if line.startswith("{"):
                row = json.loads(line)
                if "error" in row:
                    raise RuntimeError(row["error"])
                rows.append(row)
        raise RuntimeError(f"the engine has ended; see {self.log}")

    def measure(self, command: Command) -> list[dict[str, Any]]:
        """One measurement."""
        return self.ask({"order": "measure", "command": dataclasses.asdict(command)})


def profile_of(spec: Path) -> Path:
    """Where an engine's probe keeps its profile."""
    return spec / "probe" / "profile-0.json"


def agree(rounds: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rounds of a point tell each length's time alike.

    Of more than two, most of them: their median is what counts.
    """
    return all(
        _deviation(found) <= AGREE * statistics.median(found) for found in graphed_medians(rounds)
    )


def graphed_medians(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Medians over all rows of each policy's draft lengths that have a CUDA graph."""
    times: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for length, seconds in row["medians"].items():
            if row["batch_size"] * (int(length) + 1) <= WIDEST_GRAPH:
                times.setdefault((row["policy"], length), []).append(seconds)
    return list(times.values())


def _deviation(values: Sequence[float]) -> float:
    """Median distance from the median; of two values, half of what is between them."""
    middle = statistics.median(values)
    return statistics.median(abs(value - middle) for value in values)


def up_and_down(levels: Sequence[int]) -> tuple[int, ...]:
    """A ramp over the levels and back."""
    return (*levels, *reversed(levels[:-1]))


def step_times(spec: Path) -> StepTimes:
    """The probe's profile of an engine; where it measured nothing, what ``predict`` says."""
    profile = profile_of(spec)
    if profile.exists() and json.loads(profile.read_text(encoding="utf-8"))["curves"]:
        return profile
    return predict(
        spec / "model",
        hardware="H100-SXM",
        batch_sizes=LEVELS,
        contexts=PROBED_CONTEXTS,
        max_positions=LONGEST + 1,
    )


def recommended(
    source: StepTimes, acceptance: float, largest: int, cost: DraftCost = FREE
) -> list[list[int]]:
    """The table that ``recommend`` makes of the step's curves.

    Args:
        cost: of the drafts, as :mod:`benchmarks.draft_cost` finds it: for a head the controllers'
            measured time of a drafted token, or else that of the measured round.
    """
    found = recommend(
        source, constant(acceptance), cost=cost, max_batch_size=largest, draft_lengths=LENGTHS
    )
    return table(found.schedule)


@dataclass(slots=True)
class Run:
    """The whole benchmark: what is measured, in what order, until when."""

    plain: Worker
    spec: Worker
    out: Path
    ends: float
    tiny: bool
    seconds: float
    method: str = METHODS[0]
    _told: list[dict[str, Any]] = field(default_factory=list)
    """What the controllers have told of a drafted token's cost."""
    _rounds: list[dict[str, Any]] = field(default_factory=list)

    def warm_up(self, context: int, sizes: Sequence[int]) -> None:
        """Compile what is compiled at first use, outside of every measurement."""
        for batch_size in sizes:
            for policy in ("none", *FIXED):
                worker = self.plain if policy == "none" else self.spec
                worker.measure(Command(batch_size, context, policy, 0.7, 0.0, 4))

    def left(self) -> float:
        """Seconds left."""
        return self.ends - time.monotonic()

    def points(self, contexts: Mapping[int, Sequence[int]], rounds: int) -> None:
        """Every policy at every batch size and context, interleaved.

        The time of a step of K drafts does not hang on how many are accepted. So the round of the
        fixed lengths is at one acceptance, and the live controllers at their own.
        """
        rng = random.Random(3)
        for context, sizes in contexts.items():
            for batch_size in sizes:
                if self.left() >= 5.0:
                    self._point(batch_size, context, rounds, rng)
            for row in self.spec.ask({"order": "trials"}):
                self._write("trials.jsonl", row)
            self._ask_cost(context)

    def _point(self, batch_size: int, context: int, rounds: int, rng: random.Random) -> None:
        settling = SETTLING_STEPS if batch_size <= 32 else SETTLING_STEPS // 2
        if self.tiny:
            settling = TINY_SETTLING_STEPS
        base = Command(batch_size, context, "live", MAIN_ACCEPTANCE, 0.0, settling)
        for acceptance in ACCEPTANCES:  # the controllers settle
            self.spec.measure(dataclasses.replace(base, acceptance=acceptance))
        known = [("none", MAIN_ACCEPTANCE), (ROUND, MAIN_ACCEPTANCE)]
        everything = [*known, *(("live", acceptance) for acceptance in ACCEPTANCES)]
        taken: list[dict[str, Any]] = []
        for number in range(rounds + MORE_ROUNDS):
            if number >= rounds and (agree(taken) or self.left() < 5.0):
                return
            cases = everything if number < rounds else known
            for policy, acceptance in rng.sample(cases, len(cases)):
                taken += self._one(dataclasses.replace(
                    base, policy=policy, acceptance=acceptance, warm_steps=6,
                    seconds=ROUNDS_OF_LENGTHS if policy == ROUND else self.seconds,
                ), number)  # fmt: skip

    def _ask_cost(self, context: int) -> None:
        """Note what the controllers have learned of drafts at this context."""
        if self.method not in shapes.DRAFT_HEADS:
            return
        for row in self.spec.ask({"order": "draft_seconds"}):
            self._told.append({**row, "context": context})
            self._write("draft_costs.jsonl", self._told[-1])

    def _one(self, command: Command, number: int) -> list[dict[str, Any]]:
        """Measure and write; the rows of a round of the lengths, none of another policy."""
        worker = self.plain if command.policy == "none" else self.spec
        rows = worker.measure(command)
        for row in rows:
            self._write("points.jsonl", {**row, "round": number})
        found = rows if command.policy == ROUND else []
        self._rounds += found
        return found

    def ramps(self, acceptance: float, context: int, rounds: int) -> None:
        """A load that grows from one sequence to the most and shrinks again."""
        levels = up_and_down(LEVELS if not self.tiny else LEVELS[:3])
        seconds = TINY_LEVEL_SECONDS if self.tiny else LEVEL_SECONDS
        source = step_times(self.spec.log.parent)
        cost = draft_cost(self.method, self._told, self._rounds, source)
        ours = recommended(source, acceptance, max(levels), cost)
        self._write("tables.jsonl", {
            "acceptance": acceptance, "recommended": ours,
            "draft_token_seconds": cost.seconds_per_token,
        })  # fmt: skip
        tables = [f"table:{json.dumps(table)}" for table in (DOCUMENTED, ours)]
        everything = ["none", *FIXED[1:], *tables, "live"]
        rng = random.Random(5)
        for number in range(rounds + 2):
            # At last the controller twice more: the first time it began knowing nothing.
            policies = rng.sample(everything, len(everything)) if number < rounds else ["live"]
            for policy in policies:
                need = 1.3 * seconds * len(levels)
                if self.left() < need:
                    return
                fresh = policy == "live" and number == 0
                command = Command(1, context, policy, acceptance, seconds, 0, fresh)
                worker = self.plain if policy == "none" else self.spec
                order = {
                    "order": "ramp", "command": dataclasses.asdict(command),
                    "levels": list(levels),
                }  # fmt: skip
                for row in worker.ask(order):
                    self._write("ramps.jsonl", {**row, "round": number})

    def _write(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.out / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps({"method": self.method, **row}) + "\n")


@click.command()
@click.option("--method", type=click.Choice(METHODS), default=METHODS[0], help="How to draft.")
@click.option("--shape", default="qwen3-8b")
@click.option("--layers", type=int, default=20)
@click.option("--kv-gib", type=float, default=24.0, help="KV cache of the engine that drafts.")
@click.option("--plain-kv-gib", type=float, default=22.0, help="KV cache of the other one.")
@click.option("--long-batch", type=int, default=32, help="Largest batch size at context 8192.")
@click.option("--gpu", default=None, help="CUDA_VISIBLE_DEVICES of both engines.")
@click.option("--limit-seconds", type=float, default=540.0, help="Ends by then, start included.")
@click.option("--seconds", type=float, default=0.2, help="Length of one measurement.")
@click.option("--tiny", is_flag=True, help="A tiny model, to try the script without a GPU.")
@click.option("--wait-for", "awaited", type=click.Path(path_type=Path), default=None)
@click.option(
    "--cost-seconds", type=float, default=0.0, help="First measure what hooks cost, for so long."
)
@click.option("--smoke", is_flag=True, help="A few points only.")
@click.option("--only-long", is_flag=True, help="Context 8192 alone, and no ramp.")
@click.option("--only-short", is_flag=True, help="Context 1024 alone, and no ramp.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--worker", default=None, hidden=True)
def main(
    method: str,
    shape: str,
    layers: int,
    kv_gib: float,
    plain_kv_gib: float,
    long_batch: int,
    gpu: str | None,
    limit_seconds: float,
    seconds: float,
    tiny: bool,
    awaited: Path | None,
    cost_seconds: float,
    smoke: bool,
    only_long: bool,
    only_short: bool,
    out: Path,
    worker: str | None,
) -> None:
    """Compare draft lengths; see the module's text."""
    if worker is not None:
        work(Settings(**json.loads(worker)), out)
        return
    if only_long and only_short:
        raise click.UsageError("--only-long and --only-short leave no context: give one of them")
    ends = time.monotonic() + limit_seconds
    if not (tiny or smoke):
        extra = method in shapes.DRAFT_HEADS
        _check_room(shape, layers, plain_kv_gib, long_batch, "--plain-kv-gib")
        _check_room(shape, layers + extra, kv_gib, long_batch, "--kv-gib")
    out.mkdir(parents=True, exist_ok=True)
    environ = {} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}
    plain = Worker(Settings(shape, layers, plain_kv_gib, False, tiny, 0.0), out / "plain", environ)
    spec = Worker(
        Settings(shape, layers, kv_gib, True, tiny, 10.0 if smoke or tiny else 25.0, method),
        out / "spec",
        environ,
    )
    record = environment.record()
    begun = time.monotonic()
    try:
        if not (plain.ready() and spec.ready()):
            raise SystemExit(f"an engine did not start; see {plain.log} and {spec.log}")
        print(f"engines up after {time.monotonic() - begun:.0f} s", flush=True)
        if awaited is not None:
            wait_for(awaited)
        if cost_seconds:
            plain.ask({"order": "cost", "seconds": cost_seconds, "out": str(out)})
        spec.ask({"order": "scan"})
        run = Run(plain, spec, out, ends, tiny, seconds, method)
        _carry_out(run, smoke, tiny, long_batch, only_long, only_short)
    finally:
        for process in (plain.process, spec.process):
            process.kill()
            process.wait()
        about = {
            **record, "after": environment.gpu_state(), "shape": shape, "layers": layers,
            "method": method,
        }  # fmt: skip
        (out / "environment.json").write_text(json.dumps(about, indent=1))
    print(f"done with {run.left():.0f} s left", flush=True)


def _check_room(shape: str, layers: int, kv_gib: float, long_batch: int, flag: str) -> None:
    """Refuse a cache in which long sequences would push each other out while they are timed."""
    need = shapes.kv_gib(shape, layers, long_batch * LONG_TOKENS)
    if kv_gib < need:
        raise click.UsageError(
            f"{flag} {kv_gib:g} does not hold {long_batch} sequences of {LONG_TOKENS} tokens: "
            f"give {need:.1f} or more, fewer --layers or a smaller --long-batch"
        )


def _carry_out(
    run: Run, smoke: bool, tiny: bool, long_batch: int, only_long: bool, only_short: bool
) -> None:
    if tiny:
        run.points({64: (1, 4)}, 1)
        run.ramps(MAIN_ACCEPTANCE, 64, 1)
        return
    if smoke:
        run.points({1024: (1, 32, 128)}, 1)
        return
    sizes = (1, 4, 16, 32, 64, 128)
    if only_long:
        run.warm_up(LONG_CONTEXT, (1, long_batch))
    else:
        run.warm_up(1024, (1, 128))
        run.points({1024: sizes}, 2)
        if only_short:
            return
        run.ramps(MAIN_ACCEPTANCE, 1024, 2)
    shorter = [batch_size for batch_size in reversed(sizes) if batch_size < long_batch]
    run.points({LONG_CONTEXT: (long_batch, *shorter)}, 2)


if __name__ == "__main__":
    main()
