"""The order of benchmarks.drafts.servers on one GPU: what is asked of which server, and when."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.drafts.acceptance import Acceptance
from benchmarks.drafts.fleet import (
    DRAFTS,
    EACH_LENGTH,
    FIXED,
    LIVE,
    MAX_NUM_SEQS,
    NONE,
    OUTPUT_TOKENS,
    Fleet,
)
from benchmarks.drafts.servers_rates import counted, counted_rates
from benchmarks.drafts.servers_score import FAILED, LEFT_OUT, REFUSED, SERVED, TABLE, stalls
from benchmarks.serving import load, shapes, user_traffic
from benchmarks.serving.traffic import Load
from vllm_nfp.start.process import ProcessError

TRAFFIC_SCALE = 60.0 / sum(phase.seconds for phase in user_traffic.PHASES)
"""A minute of the user's traffic."""
AGAIN_SCALE = 0.15
"""Before the points of an acceptance that the live server's drafts did not have last."""
TINY_SCALE = 0.03
WINDOW_SECONDS, WARM_UP_SECONDS = 2.2, 0.8
FIRST_WARM_UP_SECONDS = 1.6
"""Of a server's first load with these lengths and so many requests, which may compile kernels."""
PROMPT_TOKENS_PER_SECOND = 50_000
"""Of a load, before its warm-up and window: 0.03 s for 1 prompt of 256 tokens to 0.6 s for 128 of
them, with 24 layers of Qwen3-8B (H200, 2026-11-28)."""
SLOW_START_SECONDS = 1.0
"""A load that takes so much longer has stalled outside its window; the log says so."""
ASKING_SECONDS = 30.0
"""For ``recommend`` (3 s), and what the traffic takes beyond its phases (25 s; 2026-11-28)."""
MARGIN, LOSERS = 0.05, 2
"""A longer draft is left out where the LOSERS before it were worse than the best by MARGIN. One is
not enough: on 2026-11-28 K = 2 lost to K = 1 by 8 % at one request, where K = 8 was the best."""
SEED = 17


class Turns:
    """Everything that one GPU measures.

    Args:
        fleet: its servers, none of which runs yet.
        acceptances: of synthetic drafts, the first one first.
        batch_sizes: streams, in the order of the rounds.
        out: takes ``rows.jsonl``, and what was recommended.
        alone: measure fixed lengths alone, on a server that has the GPU for itself.
        own_tables: start a server for each recommended table; otherwise the server of the fixed
            lengths drafts by it, which has the same CUDA graphs for its lengths.
    """

    def __init__(
        self,
        fleet: Fleet,
        acceptances: Sequence[Acceptance],
        batch_sizes: Sequence[int],
        out: Path,
        alone: bool = False,
        own_tables: bool = False,
    ) -> None:
        self._fleet, self._out, self._alone, self._own_tables = fleet, out, alone, own_tables
        self._acceptances, self._sizes = tuple(acceptances), tuple(batch_sizes)
        self._at: dict[str, Acceptance] = {}
        """The acceptance that each server's drafts have now."""
        self._tables: dict[Acceptance, dict[str, Any] | None] = {}
        """What was recommended; None: no drafts."""
        self._refused: set[Acceptance] = set()
        """Acceptances for which ``recommend`` answered with an error."""
        self._failed = False
        """The servers of the tables did not start."""
        self._lost: set[tuple[Acceptance, int, int]] = set()
        """Fixed lengths that are left out: (acceptance, batch size, length)."""
        self._visited: set[tuple[str, str, int]] = set()
        """(server, policy, batch size) that had a load."""
        self._random = random.Random(SEED)

    def begin(self) -> None:
        """Start the servers that need no recommendation, and measure no speculation."""
        fleet, first = self._fleet, self._acceptances[0]
        each = {"num_speculative_tokens_per_batch_size": EACH_LENGTH}
        if self._alone:
            self._tables = dict.fromkeys(self._acceptances)
            self._at = {DRAFTS: first}
            fleet.start({DRAFTS: fleet.speculation(first, each)})
            return
        fleet.start({
            NONE: [],
            DRAFTS: fleet.speculation(first, each),
            LIVE: [*fleet.speculation(first), "--nfp-probe", "--nfp-draft-control"],
        })  # fmt: skip
        self._at = {DRAFTS: first, LIVE: first}
        for batch_size in self._sizes:
            self._measure(NONE, NONE, None, batch_size, 0)
        fleet.end(NONE)  # its memory is for the tables

    def recommend(self) -> None:
        """After a minute of traffic at each acceptance, ask the live server; start its tables."""
        if self._alone:
            return
        for number, acceptance in enumerate(self._acceptances):
            server = self._fleet.run(LIVE)
            self._accept(LIVE, acceptance)
            before = None if number == 0 else server.metrics()
            self._traffic(self._traffic_scale(len(self._acceptances) - number))
            after = server.metrics()
            lines = [line for line in after.splitlines() if "nfp_" in line or "spec_dec" in line]
            (self._out / f"live-{acceptance.name}.prom").write_text("\n".join([*lines, ""]))
            self._tables[acceptance] = self._asked(server.url, acceptance, before, after)
        if self._own_tables:
            self._start_tables()

    def _start_tables(self) -> None:
        """Start the tables' own servers, alone on the GPU."""
        self._fleet.pause()
        tables = {
            _table(a): self._fleet.speculation(a, config)
            for a, config in self._tables.items() if config
        }  # fmt: skip
        try:
            self._fleet.start(tables, self._round_seconds())
        except ProcessError as error:  # fixed lengths and the controller are worth their time
            self._fleet.say(f"no table is measured: {error}")
            self._failed = True

    def _round_seconds(self) -> float:
        """What the first round takes without tables, if no length is left out."""
        each = sum(self._load_seconds(FIRST_WARM_UP_SECONDS, size) for size in self._sizes)
        return (len(FIXED) + 1) * len(self._acceptances) * each

    def _traffic_scale(self, acceptances: int) -> float:
        """Of the traffic before an acceptance: the time beside the first round, a minute at most.

        Args:
            acceptances: that still have to get it.
        """
        seconds = (self._fleet.left - self._round_seconds()) / acceptances - ASKING_SECONDS
        whole = sum(phase.seconds for phase in user_traffic.PHASES)
        return min(TRAFFIC_SCALE, max(AGAIN_SCALE, seconds / whole))

    def _table_state(self, acceptance: Acceptance) -> str:
        """What became of what was recommended."""
        if acceptance in self._refused:
            return REFUSED
        if not self._tables[acceptance]:
            return NONE
        return FAILED if self._failed else SERVED

    def measure(self) -> None:
        """Go round all points until the time is up; the acceptance of the last traffic first."""
        round_number = 0
        places = len(self._acceptances) * len(self._sizes)
        while self._fleet.left > 0.0:
            after = places
            for acceptance in reversed(self._acceptances):
                self._return_to(acceptance)
                for batch_size in self._sizes:
                    after -= 1
                    if round_number == 0:
                        self._first_round(acceptance, batch_size, after)
                    else:
                        self._later_round(acceptance, batch_size, round_number)
            round_number += 1

    def _chosen(self, acceptance: Acceptance) -> list[str]:
        """The policies that are judged."""
        served = self._table_state(acceptance) == SERVED
        return [LIVE] * (not self._alone) + [TABLE] * served

    def _first_round(self, acceptance: Acceptance, batch_size: int, after: int) -> None:
        """The judged policies at a point, then fixed lengths, short ones first.

        Fixed lengths leave the time that the judged policies need at the later points.

        Args:
            after: points that follow in this round.
        """
        for policy in self._chosen(acceptance):
            self._load_of(policy, acceptance, batch_size, 0)
        longest = self._load_seconds(FIRST_WARM_UP_SECONDS, max(self._sizes))
        kept = after * (1 + (not self._alone)) * longest
        rates: list[float] = []
        for length in FIXED:
            if lost(rates):
                self._lost.add((acceptance, batch_size, length))
                self._write(_fixed(length), acceptance, batch_size, 0, {LEFT_OUT: True})
                continue
            row = self._load_of(_fixed(length), acceptance, batch_size, 0, kept)
            if row is not None and not stalls(row):
                rates.append(row["tokens_per_second"])

    def _later_round(self, acceptance: Acceptance, batch_size: int, number: int) -> None:
        """Every policy that is not left out at a point, in random order."""
        policies = self._chosen(acceptance)
        policies += [
            _fixed(length) for length in FIXED
            if (acceptance, batch_size, length) not in self._lost
        ]  # fmt: skip
        for policy in self._random.sample(policies, len(policies)):
            self._load_of(policy, acceptance, batch_size, number)

    def _load_of(
        self, policy: str, acceptance: Acceptance, batch_size: int, number: int, kept: float = 0.0
    ) -> dict[str, Any] | None:
        """Measure a policy, and return its row; None: ``kept`` seconds would not be left."""
        name = self._server_of(policy, acceptance)
        seconds = self._load_seconds(self._warm_up(name, policy, batch_size), batch_size)
        if self._fleet.left < seconds + kept:
            return None
        self._fleet.run(name)
        if name in self._at:
            self._accept(name, acceptance)
        if name == DRAFTS:
            self._fleet.set_lengths(DRAFTS, self._lengths(policy, acceptance))
        return self._measure(name, policy, acceptance, batch_size, number)

    def _server_of(self, policy: str, acceptance: Acceptance) -> str:
        if policy == TABLE and self._own_tables:
            return _table(acceptance)
        return LIVE if policy == LIVE else DRAFTS

    def _lengths(self, policy: str, acceptance: Acceptance) -> list[list[int]]:
        """The table of a fixed length, or the recommended one."""
        if policy == TABLE:
            config = self._tables[acceptance]
            assert config is not None  # the policy is not judged without one
            every = [[1, MAX_NUM_SEQS, config["num_speculative_tokens"]]]
            found: list[list[int]] = config.get("num_speculative_tokens_per_batch_size", every)
            return found
        return [[1, MAX_NUM_SEQS, int(policy.partition(":")[2])]]

    def _load_seconds(self, warm_up: float, streams: int) -> float:
        """Of one load."""
        prompts = streams * self._fleet.shape.prompt_tokens / PROMPT_TOKENS_PER_SECOND
        return WINDOW_SECONDS + warm_up + prompts

    def _warm_up(self, name: str, policy: str, batch_size: int) -> float:
        known = (name, policy, batch_size) in self._visited
        return WARM_UP_SECONDS if known else FIRST_WARM_UP_SECONDS

    def _measure(
        self, name: str, policy: str, acceptance: Acceptance | None, batch_size: int, number: int
    ) -> dict[str, Any]:
        server = self._fleet.run(name)
        warm_up = self._warm_up(name, policy, batch_size)
        before, begun = server.metrics(), time.monotonic()
        summary = load.run(self._load(server.url, batch_size, number), warm_up).summary()
        seconds = time.monotonic() - begun
        drafts = counted(before, server.metrics())
        self._visited.add((name, policy, batch_size))
        if seconds > self._load_seconds(warm_up, batch_size) + SLOW_START_SECONDS:
            self._fleet.say(f"{policy} at B={batch_size} took {seconds:.1f} s in all")
        if stalls(summary):
            silent = summary["silent_seconds"]
            self._fleet.say(f"{policy} at B={batch_size} made no token for {silent:.2f} s")
        more = {"server": name, "load_seconds": seconds, "counted": drafts}
        return self._write(policy, acceptance, batch_size, number, {**more, **summary})

    def _write(
        self,
        policy: str,
        acceptance: Acceptance | None,
        batch_size: int,
        number: int,
        found: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Keep one row, and return it."""
        row = {
            "gpu": self._fleet.gpu, "policy": policy,
            "acceptance": None if acceptance is None else acceptance.name,
            "batch_size": batch_size, "round": number, "at": self._fleet.now, **found,
        }  # fmt: skip
        if acceptance is not None:
            row[TABLE] = self._table_state(acceptance)
        with (self._out / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        return row

    def _load(self, url: str, streams: int, number: int) -> Load:
        shape = self._fleet.shape
        few = shape.tiny
        return Load(
            url, str(self._fleet.model), shapes.vocab_size(shape.name), streams,
            shape.prompt_tokens, 64 if few else OUTPUT_TOKENS,
            0.5 if few else WINDOW_SECONDS, seed=SEED + number, talks=True,
        )  # fmt: skip

    def _return_to(self, acceptance: Acceptance) -> None:
        """Let the live server learn an acceptance that changed while others were measured."""
        if not self._alone and self._at[LIVE] != acceptance:
            self._fleet.run(LIVE)
            self._accept(LIVE, acceptance)
            self._traffic(AGAIN_SCALE)

    def _accept(self, name: str, acceptance: Acceptance) -> None:
        if self._at[name] != acceptance:
            self._fleet.set_acceptance(name, acceptance)
            self._at[name] = acceptance

    def _traffic(self, scale: float) -> None:
        """A user's traffic to the live server."""
        fleet = self._fleet
        url, vocabulary = fleet.run(LIVE).url, shapes.vocab_size(fleet.shape.name)
        for seed, phase in enumerate(user_traffic.PHASES):
            seconds = phase.seconds * (TINY_SCALE if fleet.shape.tiny else scale)
            prompt = fleet.shape.prompt_tokens if fleet.shape.tiny else phase.prompt_tokens
            changed = replace(phase, seconds=seconds, prompt_tokens=prompt)
            user_traffic.run_phase(url, str(fleet.model), vocabulary, changed, seed, talks=True)
        fleet.say(f"live has had its traffic at acceptance {self._at[LIVE].name}")

    def _asked(
        self, url: str, acceptance: Acceptance, before: str | None, after: str
    ) -> dict[str, Any] | None:
        """What ``recommend`` answers, kept in words and as JSON; None: no drafts pay, or an error.

        Args:
            before: /metrics from when drafts were last accepted otherwise, which the counters
                still hold; None: they hold this acceptance alone.
        """
        command = [sys.executable, "-m", "vllm_nfp.cli", "recommend", url]
        if before is not None:
            rates = ",".join(f"{rate:.4f}" for rate in counted_rates(before, after))
            command += ["--acceptance-rates", rates]
        if self._fleet.head is not None:
            command += ["--draft-model", str(self._fleet.head)]
        begun = time.monotonic()
        answers = {
            name: subprocess.run(
                [*command, *more], capture_output=True, text=True, timeout=120, check=False
            )
            for name, more in (
                ("txt", []), ("json", ["--json"]), ("config", ["--speculative-config"]),
            )
        }  # fmt: skip
        for name, done in answers.items():
            path = self._out / f"recommend-{acceptance.name}.{name}"
            path.write_text(done.stdout or done.stderr, encoding="utf-8")
        self._fleet.say(f"recommended in {time.monotonic() - begun:.0f} s for {acceptance.name}")
        if answers["json"].returncode:
            self._fleet.say(f"recommend failed: {answers['json'].stderr.strip()}")
            self._refused.add(acceptance)
        done = answers["config"]
        return json.loads(done.stdout) if done.returncode == 0 else None


def lost(rates: Sequence[float]) -> bool:
    """Whether longer drafts are left out after these rates of shorter ones."""
    return len(rates) > LOSERS and max(rates[-LOSERS:]) < (1.0 - MARGIN) * max(rates)


def _fixed(length: int) -> str:
    """Name of the policy."""
    return f"fixed:{length}"


def _table(acceptance: Acceptance) -> str:
    """Name of the server with what was recommended."""
    return f"table-{acceptance.name}"
