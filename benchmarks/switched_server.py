"""The server of benchmarks.switched as it is asked, and the files that keep what it did."""

from __future__ import annotations

import dataclasses
import json
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from benchmarks import environment
from benchmarks.load_result import Result
from benchmarks.overhead_summary import Row, Turn


class Remote:
    """The server's workers, asked over HTTP; answers are those of all ranks."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/collective_rpc"

    def call(self, method: str, *arguments: str, seconds: float = 120.0) -> list[dict[str, Any]]:
        """Ask while nothing else goes on."""
        request = urllib.request.Request(
            self._url,
            json.dumps({"method": method, "args": arguments}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=seconds) as answer:
            return _results(json.load(answer))

    async def switch(self, session: aiohttp.ClientSession, variant: str) -> list[dict[str, Any]]:
        """Switch between two steps of the load."""
        body = {"method": "nfp_switch", "args": [variant]}
        async with session.post(self._url, json=body) as answer:
            answer.raise_for_status()
            return _results(await answer.json())


def _results(answer: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [json.loads(result) for result in answer["results"]]


class Output:
    """The two files of a run, written anew after each round of loads."""

    def __init__(self, folder: Path, shape: str, settings: Mapping[str, object]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stem = str(folder / f"switched-{shape}")
        self._settings = settings
        self._environment = environment.record()
        self.rows: list[Row] = []
        self.times_us: dict[str, NDArray[np.uint32]] = {}
        """Inter-token times by the key of their turn, and times to first token."""
        self.about: dict[str, Any] = {}
        """Saturation, start-up and memory."""

    def add(self, turn: Turn, result: Result, cost: Mapping[str, Any]) -> None:
        """Keep one turn."""
        first = np.rint(np.array(result.ttft_seconds) * 1e6)
        self.times_us |= {turn.key: result.itl_us, turn.first_key: first.astype(np.uint32)}
        self.rows.append({**dataclasses.asdict(turn), **result.summary(), **cost})

    def write(self) -> None:
        """Write all that is there."""
        record = {
            "settings": self._settings,
            "environment": self._environment,
            "after": environment.gpu_state(),
            **self.about,
            "rounds": self.rows,
        }
        Path(f"{self._stem}.json").write_text(json.dumps(record), encoding="utf-8")
        np.savez_compressed(f"{self._stem}.npz", **self.times_us)  # type: ignore[arg-type]
