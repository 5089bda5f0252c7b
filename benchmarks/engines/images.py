"""Claim: the probe works while a model reads pictures, and changes no answer about them.

    python -m benchmarks.engines.images --out DIR

One server of the Qwen2.5-VL-7B shape starts with ``--nfp-probe`` and no setting of the probe. It
needs no hub: :mod:`benchmarks.serving.vision_files` makes its tokenizer and processor.

1. Chats with no, one and two pictures are sent again and again, one at a time, while the probe
   runs.
2. Chats with a picture and chats without one are sent by several senders at once. Then the table
   is read: what ``vllm-nfp table`` prints, /metrics, the probe's snapshot, and every pair.
3. The chats of 1 are sent once more. Then the probe is ended in the same server
   (:mod:`benchmarks.answers.truth_extension`), which takes its hooks away, and they are sent
   without it. Token ids and log-probabilities of all rounds must be equal.

Prefix caching and vLLM's cache of read pictures are off, so that each chat is computed anew.
``--trial`` runs a tiny model on a CPU. It needs torchvision, as the model's processor does.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.hosts import environment
from benchmarks.hosts.packing import pack
from benchmarks.serving import server, vision_files
from benchmarks.serving.remote import Remote
from benchmarks.serving.table_servers import PUBLISH_SECONDS, Plan, Session
from benchmarks.serving.user_traffic import measured_pairs, probe_lines, probe_samples
from vllm_nfp.results import fetching
from vllm_nfp.start.requests import Load, complete

NAME = "images"
FLAGS = (
    "--no-skip-tokenizer-init", "--no-enable-prefix-caching", "--mm-processor-cache-gb", "0",
    "--limit-mm-per-prompt", json.dumps({"image": 2, "video": 0}),
    "--worker-extension-cls", "benchmarks.engines.images_extension.ImageServer",
)  # fmt: skip
"""Of vllm serve, beside those of :class:`benchmarks.serving.table_servers.Session`."""
DEVELOPER = {"VLLM_SERVER_DEV_MODE": "1"}
"""Has the server offer ``POST /collective_rpc``."""
GPU_FLAGS = ("--max-model-len", "16384")
TRIAL_FLAGS = ("--enforce-eager", "--max-model-len", "1024")
TRIAL_PROBE: Mapping[str, object] = {
    "startup_seconds": 1.0, "batch_sizes": [1, 4], "contexts": [64, 256], "max_positions": 8,
    "overhead_budget": 0.5, "step_share": 1.0, "publish_seconds": 1.0,
}  # fmt: skip
END_SECONDS = 30.0
"""Left at the end of a limited time: two more rounds of the chats, the files, the server's stop."""
PART_SECONDS = 6.0
"""Of each part of the load beside its own time: the last answers, and the wait for /metrics."""
EPSILON = 0.1
WORDS = 100_000
"""Words of chats are below this: every tokenizer here has them."""


@dataclass(frozen=True, slots=True)
class Chat:
    """What one request asks."""

    words: int
    seed: int
    """Of the words."""
    pictures: tuple[int, ...] = ()
    """The seed of each."""
    blocks: tuple[int, int] = (16, 16)
    """Height and width of each picture in tokens."""

    def body(self) -> dict[str, Any]:
        """The messages of a request."""
        rng = random.Random(self.seed)
        text = " ".join(f"w{rng.randrange(WORDS)}" for _ in range(self.words))
        parts: list[dict[str, Any]] = [
            {"type": "image_url", "image_url": {"url": vision_files.picture(one, self.blocks)}}
            for one in self.pictures
        ]
        parts.append({"type": "text", "text": text})
        return {"messages": [{"role": "user", "content": parts}]}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is sent."""

    chats: tuple[Chat, ...]
    """Those whose answers are compared."""
    answer_tokens: int
    streams: tuple[int, ...]
    """Senders of each part of the load."""
    words: int
    """Of each chat of the load."""
    blocks: tuple[tuple[int, int], ...]
    """Sizes of its pictures."""
    output_tokens: int


def _chats(words: int, small: tuple[int, int], large: tuple[int, int]) -> tuple[Chat, ...]:
    """Two differ in their picture alone."""
    return (
        Chat(2 * words, 1),
        Chat(words, 2, (1,), small), Chat(words, 2, (2,), small),
        Chat(words, 3, (3,), large), Chat(words, 4, (4, 5), small),
        Chat(4 * words, 5),
    )  # fmt: skip


GPU = Scale(
    _chats(200, (16, 16), (24, 32)), 96, (1, 8, 32), 400, ((16, 16), (24, 32), (40, 24)), 200
)
TRIAL = Scale(_chats(12, (2, 2), (3, 4)), 24, (1, 4), 30, ((2, 2), (3, 4)), 24)


class Mixed(Load):
    """Senders whose requests alternate between chats with a picture and chats without one.

    Args:
        url: of the server.
        model: name that the server gives its model.
        senders: requests in flight.
        scale: what is sent.
    """

    def __init__(self, url: str, model: str, senders: int, scale: Scale) -> None:
        super().__init__(url, model, senders)
        self._scale = scale
        self.asked: list[bool] = []
        """Whether each request had a picture."""

    def _prompt(self, rng: random.Random, number: int) -> dict[str, Any]:
        seen = number % 2 == 1
        self.asked.append(seen)
        blocks = self._scale.blocks[number // 2 % len(self._scale.blocks)]
        pictures = (rng.randrange(16),) if seen else ()
        chat = Chat(self._scale.words, rng.randrange(1 << 30), pictures, blocks)
        return {**chat.body(), "max_tokens": self._scale.output_tokens, "ignore_eos": True}


class ImageSession(Session):
    """A server that reads pictures, its load, and the files of a run."""

    def _spec(self, plan: Plan, port: int) -> server.Spec:
        spec = super()._spec(plan, port)
        vision_files.write(spec.model, plan.shape)
        # Without it the model's name in all records is the path of a folder of this run.
        return replace(spec, flags=(*spec.flags, "--served-model-name", plan.shape))

    def round(self, plan: Plan, scale: Scale) -> list[dict[str, Any]]:
        """The answers to all chats, asked one at a time."""
        return [self._answer(plan, chat, scale.answer_tokens) for chat in scale.chats]

    def _answer(self, plan: Plan, chat: Chat, tokens: int) -> dict[str, Any]:
        body = {
            "model": plan.shape, **chat.body(), "max_tokens": tokens, "temperature": 0,
            "ignore_eos": True, "return_token_ids": True, "logprobs": True, "top_logprobs": 1,
        }  # fmt: skip
        answer = complete(self.urls[plan.name], body)
        choice = answer["choices"][0]
        return {
            "prompt_tokens": answer["usage"]["prompt_tokens"],
            "tokens": choice["token_ids"],
            "logprobs": [one["logprob"] for one in choice["logprobs"]["content"]],
        }

    def pairs(self, plan: Plan) -> int:
        """Pairs that the probe has measured so far."""
        time.sleep(PUBLISH_SECONDS)
        return measured_pairs(probe_samples(fetching.fetch(self.urls[plan.name])))

    def load(self, plan: Plan, senders: int, scale: Scale, seconds: float) -> dict[str, Any]:
        """Send one part of the load; what the client counted.

        Raises:
            SystemExit: if the server refuses a request.
        """
        traffic = Mixed(self.urls[plan.name], plan.shape, senders, scale)
        begun = time.monotonic()
        traffic.run(seconds)
        if traffic.errors:
            raise SystemExit(f"the load failed: {traffic.errors[0]}")
        found = {
            "senders": senders, "seconds": round(time.monotonic() - begun, 1),
            "answered": traffic.answered, "with_picture": sum(traffic.asked),
            "without_picture": len(traffic.asked) - sum(traffic.asked),
            "tokens_per_answer": scale.output_tokens,
        }  # fmt: skip
        self.say(f"load: {found}")
        return found

    def keep_table(self, plan: Plan) -> None:
        """Write the table as a reader sees it, /metrics, the probe's snapshot and every pair."""
        url, folder = self.urls[plan.name], self.work / f"probe-{plan.name}"
        (self.out / "metrics.prom").write_text(probe_lines(fetching.fetch(url)))
        command = [sys.executable, "-m", "vllm_nfp.cli", "table", url, "--epsilon", str(EPSILON)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        (self.out / "table.txt").write_text(done.stdout or done.stderr)
        snapshot, samples = folder / "engine-0.json", folder / "samples-0.jsonl"
        if not snapshot.exists() or not samples.exists():  # answers are still worth comparing
            self.say("the probe has kept no pairs: see the server's log")
            return
        found = json.loads(snapshot.read_text())
        self.write("table", {"environment": self.environment, "snapshot": found})
        pack(samples, self.out / "pairs.jsonl.gz")
        self.say(f"table: {found['state']} {found['reason']} {found['probes']}")


def compare(
    probed: Sequence[Sequence[Mapping[str, Any]]],
    plain: Sequence[Mapping[str, Any]],
    chats: Sequence[Chat],
) -> dict[str, Any]:
    """Whether each round with the probe was answered as the one without it.

    Args:
        probed: the answers of each round, in the order of the chats.
        plain: those without the probe.
        chats: what was asked.
    """

    def alike(field: str) -> bool:
        return all(
            [answer[field] for answer in one] == [answer[field] for answer in plain]
            for one in probed
        )

    by_words: dict[tuple[int, int], set[tuple[int, ...]]] = {}
    for chat, answer in zip(chats, plain, strict=True):
        by_words.setdefault((chat.seed, chat.words), set()).add(tuple(answer["tokens"]))
    asked = [(chat.seed, chat.words) for chat in chats]
    return {
        "chats": len(chats),
        "with_pictures": sum(bool(chat.pictures) for chat in chats),
        "rounds": len(probed),
        "token_ids_equal": bool(probed) and alike("tokens"),
        "logprobs_equal": bool(probed) and alike("logprobs"),
        "prompt_tokens": [answer["prompt_tokens"] for answer in plain],
        "distinct_tokens": len({token for answer in plain for token in answer["tokens"]}),
        "picture_changes_answer": all(len(by_words[one]) == asked.count(one) for one in asked),
    }


def plan_of(trial: bool, layers: int | None = None) -> Plan:
    """The server; a tiny one to try the script without a GPU."""
    if trial:
        return Plan(
            NAME, "tiny-vl", layers or 2, 0.25, TRIAL_PROBE, flags=(*FLAGS, *TRIAL_FLAGS),
            environment=DEVELOPER,
        )  # fmt: skip
    return Plan(
        NAME, "qwen2.5-vl-7b", layers or 28, 40.0, {}, flags=(*FLAGS, *GPU_FLAGS),
        environment=DEVELOPER,
    )  # fmt: skip


def run(
    session: ImageSession, plan: Plan, scale: Scale, identity_seconds: float, load_seconds: float
) -> None:
    """All parts with a server that has started; each is written as soon as it is there."""
    result: dict[str, Any] = {
        "shape": plan.shape, "layers": plan.layers, "flags": plan.flags, "probe": plan.probe,
        "environment": session.environment, "loads": [],
    }  # fmt: skip
    session.round(plan, scale)  # compiles what the first pictures need
    before = session.pairs(plan)
    probed = [session.round(plan, scale)]
    until = time.monotonic() + identity_seconds
    while time.monotonic() < until:
        probed.append(session.round(plan, scale))
    meanwhile = session.pairs(plan) - before
    result |= {"pairs_before": before, "pairs_meanwhile": meanwhile}
    session.say(f"{len(probed)} rounds, {meanwhile} pairs meanwhile")
    each = min(load_seconds, session.left - END_SECONDS) / len(scale.streams) - PART_SECONDS
    for senders in scale.streams:
        part = session.load(plan, senders, scale, max(2.0, each))
        result["loads"].append({**part, "pairs_so_far": session.pairs(plan)})
        session.write(NAME, result)
    session.keep_table(plan)
    probed.append(session.round(plan, scale))
    session.write(NAME, {**result, "answers": {"first": probed[0], "last": probed[-1]}})
    ended = Remote(session.urls[plan.name]).call("nfp_end")
    plain = session.round(plan, scale)
    result |= {
        "ended": ended,
        "outputs": compare(probed, plain, scale.chats),
        "answers": {"first": probed[0], "last": probed[-1], "without": plain},
        "after": environment.gpu_state(),
    }
    session.write(NAME, result)
    session.say(f"outputs: {result['outputs']}")


@click.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
@click.option("--layers", type=int, default=None, help="Fewer layers than published.")
@click.option("--identity-seconds", type=float, default=25.0, help="Rounds while the probe runs.")
@click.option("--load-seconds", type=float, default=60.0, help="Longest load.")
@click.option("--limit-seconds", type=float, default=235.0, help="Of everything.")
@click.option("--trial", is_flag=True, help="A tiny model on a CPU.")
def main(
    out: Path,
    layers: int | None,
    identity_seconds: float,
    load_seconds: float,
    limit_seconds: float,
    trial: bool,
) -> None:
    """Serve pictures on one GPU; see the module's text."""
    server.end_servers_on_sigterm()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="nfp-images-") as work, ExitStack() as stack:
        session = ImageSession(out, Path(work), limit_seconds)
        plan = plan_of(trial, layers)
        session.start(stack, (plan,))
        if plan.name not in session.urls:
            raise SystemExit("the server has not started: see its log")
        try:
            run(session, plan, TRIAL if trial else GPU, identity_seconds, load_seconds)
        finally:
            session.keep_log(plan)


if __name__ == "__main__":
    main()
