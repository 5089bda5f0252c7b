"""Completion requests to a server: one, or a steady load of them."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

TIMEOUT_SECONDS = 120.0


def complete(
    url: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The server's answer to a completion request.

    Raises:
        OSError: if the server cannot be reached or refuses the request (URLError).
    """
    kind = "chat/completions" if "messages" in body else "completions"
    request = urllib.request.Request(
        f"{url}/v1/{kind}",
        json.dumps(body).encode(),
        {"Content-Type": "application/json", **(headers or {})},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


class Load:
    """Threads that each send one request after the other.

    Args:
        url: of the server.
        model: name that the server gives its model.
        senders: requests in flight.
        prompt_tokens: length of a prompt; its tokens are random.
        vocab_size: token ids are below this.
        texts: what chat requests ask, in turn; empty: prompts are random tokens.
    """

    def __init__(
        self,
        url: str,
        model: str,
        senders: int,
        prompt_tokens: int = 0,
        vocab_size: int = 0,
        texts: Sequence[str] = (),
    ) -> None:
        self._url = url
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._vocab_size = vocab_size
        self._texts = texts
        self._stop = threading.Event()
        self.answered = 0
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._send, args=(i,), daemon=True) for i in range(senders)
        ]

    def run(self, seconds: float) -> None:
        """Send requests for this long; an error of the server ends it early."""
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.errors and not self._stop.wait(0.2):
            pass
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=TIMEOUT_SECONDS)

    def stop(self) -> None:
        """End :meth:`run` early; it returns when the requests in flight are answered."""
        self._stop.set()

    def _prompt(self, rng: random.Random, number: int) -> dict[str, Any]:
        if self._texts:
            asked = self._texts[number % len(self._texts)]
            return {"messages": [{"role": "user", "content": asked}], "max_tokens": 128}
        tokens = [rng.randrange(2, self._vocab_size) for _ in range(self._prompt_tokens)]
        return {"prompt": tokens, "max_tokens": 64, "ignore_eos": True}

    def _send(self, seed: int) -> None:
        rng = random.Random(seed)
        for number in itertools.count(seed):
            if self._stop.is_set() or self.errors:
                return
            body = {
                "model": self._model,
                **self._prompt(rng, number),
                "temperature": 0,
            }
            try:
                complete(self._url, body)
                self.answered += 1
            except (urllib.error.URLError, OSError) as error:
                self.errors.append(str(error))
