"""The workers of a server that runs, asked over HTTP."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

import aiohttp


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
