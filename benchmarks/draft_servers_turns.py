"""The order of benchmarks.draft_servers on one GPU: what is asked of which server, and when."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import load, shapes, user_traffic
from benchmarks.draft_fleet import DRAFTS, EACH_LENGTH, FIXED, LIVE, NONE, Fleet
from benchmarks.draft_servers_rates import counted_rates
from benchmarks.draft_servers_score import FAILED, REFUSED, SERVED, stalls
from benchmarks.traffic import Load
from vllm_nfp.start.process import ProcessError

TRAFFIC_SCALE = 60.0 / sum(phase.seconds for phase in user_traffic.PHASES)
"""A minute of the user's traffic."""
AGAIN_SCALE = 0.15
"""Before the points of an acceptance that the live server's drafts did not have last."""
TINY_SCALE = 0.03
PROMPT_TOKENS, OUTPUT_TOKENS = 256, 512
WINDOW_SECONDS, WARM_UP_SECONDS = 2.2, 0.8
SEED = 17


class Turns:
    """Everything that one GPU measures.

    Args:
        fleet: its servers, none of which runs yet.
        acceptances: of synthetic drafts, the first one first.
        batch_sizes: streams, in the order of the rounds.
        out: takes ``rows.jsonl``, and what was recommended.
        alone: measure fixed lengths alone, on a server that has the GPU for itself.
    """

    def __init__(
        self,
        fleet: Fleet,
        acceptances: Sequence[float],
        batch_sizes: Sequence[int],
        out: Path,
        alone: bool = False,
    ) -> None:
        self._fleet, self._out, self._alone = fleet, out, alone
        self._acceptances, self._sizes = tuple(acceptances), tuple(batch_sizes)
        self._at: dict[str, float] = {}
        """The acceptance that each server's drafts have now."""
        self._tables: dict[float, dict[str, Any] | None] = {}
        """What was recommended; None: no drafts."""
        self._refused: set[float] = set()
        """Acceptances for which ``recommend`` answered with an error."""
        self._failed = False
        """The servers of the tables did not start."""
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
            self._traffic(TRAFFIC_SCALE)
            after = server.metrics()
            lines = [line for line in after.splitlines() if "nfp_" in line or "spec_dec" in line]
            (self._out / f"live-{acceptance:g}.prom").write_text("\n".join([*lines, ""]))
            self._tables[acceptance] = self._asked(server.url, acceptance, before, after)
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
        """What one round takes without tables."""
        loads = (len(FIXED) + 1) * len(self._sizes) * len(self._acceptances)
        return loads * (WINDOW_SECONDS + 2 * WARM_UP_SECONDS)

    def _table_state(self, acceptance: float) -> str:
        """What became of what was recommended."""
        if acceptance in self._refused:
            return REFUSED
        if not self._tables[acceptance]:
            return NONE
        return FAILED if self._failed else SERVED

    def measure(self) -> None:
        """Go round all points until the time is up; the acceptance of the last traffic first."""
        round_number = 0
        while self._fleet.left > 0.0:
            for acceptance in reversed(self._acceptances):
                self._return_to(acceptance)
                for batch_size in self._sizes:
                    self._point(acceptance, batch_size, round_number)
            round_number += 1

    def _point(self, acceptance: float, batch_size: int, number: int) -> None:
        """Every policy at one point, in random order."""
        policies = [f"fixed:{k}" for k in FIXED] + [LIVE] * (not self._alone)
        if self._table_state(acceptance) == SERVED:
            policies.append(_table(acceptance))
        for policy in self._random.sample(policies, len(policies)):
            if self._fleet.left < WINDOW_SECONDS + 2 * WARM_UP_SECONDS:
                return
            fixed = policy.partition(":")
            name = DRAFTS if fixed[0] == "fixed" else policy
            self._fleet.run(name)
            if name in self._at:
                self._accept(name, acceptance)
            if name == DRAFTS:
                self._fleet.set_length(DRAFTS, int(fixed[2]))
            kind = "table" if name == _table(acceptance) else policy
            self._measure(name, kind, acceptance, batch_size, number)

    def _measure(
        self, name: str, policy: str, acceptance: float | None, batch_size: int, number: int
    ) -> None:
        server = self._fleet.run(name)
        summary = load.run(self._load(server.url, batch_size, number), WARM_UP_SECONDS).summary()
        row = {
            "gpu": self._fleet.gpu, "policy": policy, "acceptance": acceptance,
            "batch_size": batch_size, "round": number, "at": self._fleet.now, **summary,
        }  # fmt: skip
        if stalls(row):
            silent = summary["silent_seconds"]
            self._fleet.say(f"{policy} at B={batch_size} made no token for {silent:.2f} s")
        if acceptance is not None:
            row["table"] = self._table_state(acceptance)
        with (self._out / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def _load(self, url: str, streams: int, number: int) -> Load:
        shape = self._fleet.shape
        few = shape.tiny
        return Load(
            url, str(self._fleet.model), shapes.vocab_size(shape.name), streams,
            16 if few else PROMPT_TOKENS, 64 if few else OUTPUT_TOKENS,
            0.5 if few else WINDOW_SECONDS, seed=SEED + number,
        )  # fmt: skip

    def _return_to(self, acceptance: float) -> None:
        """Let the live server learn an acceptance that changed while others were measured."""
        if not self._alone and self._at[LIVE] != acceptance:
            self._fleet.run(LIVE)
            self._accept(LIVE, acceptance)
            self._traffic(AGAIN_SCALE)

    def _accept(self, name: str, acceptance: float) -> None:
        if self._at[name] != acceptance:
            self._fleet.set_acceptance(name, acceptance)
            self._at[name] = acceptance

    def _traffic(self, scale: float) -> None:
        """A user's traffic to the live server."""
        fleet = self._fleet
        url, vocabulary = fleet.run(LIVE).url, shapes.vocab_size(fleet.shape.name)
        for seed, phase in enumerate(user_traffic.PHASES):
            seconds = phase.seconds * (TINY_SCALE if fleet.shape.tiny else scale)
            prompt = 16 if fleet.shape.tiny else phase.prompt_tokens
            changed = replace(phase, seconds=seconds, prompt_tokens=prompt)
            user_traffic.run_phase(url, str(fleet.model), vocabulary, changed, seed)
        fleet.say(f"live has had its traffic at acceptance {self._at[LIVE]:g}")

    def _asked(
        self, url: str, acceptance: float, before: str | None, after: str
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
            path = self._out / f"recommend-{acceptance:g}.{name}"
            path.write_text(done.stdout or done.stderr, encoding="utf-8")
        self._fleet.say(f"recommended in {time.monotonic() - begun:.0f} s for {acceptance:g}")
        if answers["json"].returncode:
            self._fleet.say(f"recommend failed: {answers['json'].stderr.strip()}")
            self._refused.add(acceptance)
        done = answers["config"]
        return json.loads(done.stdout) if done.returncode == 0 else None


def _table(acceptance: float) -> str:
    """Name of the server with what was recommended."""
    return f"table-{acceptance:g}"
