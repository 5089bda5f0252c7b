"""The demonstration: a real ``vllm serve --nfp-probe`` on a small model made on the spot."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from vllm_nfp.files import FileError, read_bytes, write_whole
from vllm_nfp.start.requests import Load
from vllm_nfp.start.server import serve_command

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


SPECULATION = {
    "method": "ngram", "num_speculative_tokens": 4, "prompt_lookup_min": 2, "prompt_lookup_max": 4,
}  # fmt: skip
"""Needs no second model."""
REAL_NAME = "SmolLM2-135M-Instruct"
_CODE = """def area(width, height):
    return width * height

class Box:
    def __init__(self, width, height, depth):
        self.width, self.height, self.depth = width, height, depth

    def volume(self):
        return area(self.width, self.height) * self.depth
"""
TEXTS = (
    f"Repeat this code, then explain each line.\n\n{_CODE}",
    "Write a short story about a lighthouse keeper.",
    f"Rename Box to Crate in this code and print all of it.\n\n{_CODE}",
    "Explain why the sky is blue, then say the same in one sentence.",
)
"""Editing code, where lookups find drafts, and prose, where they hardly do."""


class DemoError(RuntimeError):
    """The demonstration failed; the message gives the reason and the log."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What the demonstration serves and for how long it sends requests."""

    folder: Path
    seconds: float
    batch_sizes: tuple[int, ...] = (1, 4)
    contexts: tuple[int, ...] = (256, 1024)
    max_positions: int = 8
    real: bool = False
    """Serve the real model of a package, with n-gram speculation and text, not the dummy one."""


def make_model(folder: Path) -> Path:
    """Write the small model's config.json; vLLM's dummy loader makes the weights.

    Raises:
        DemoError: if the directory holds another model's config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "config.json", json.dumps(SMALL_MODEL, indent=1)
    if os.path.lexists(path) and not _holds(path, text):
        raise DemoError(f"{path} belongs to another model: give another --folder")
    write_whole(path, text)
    return folder


def _holds(path: Path, text: str) -> bool:
    try:
        return read_bytes(path, len(text)) == text.encode()
    except FileError:  # it is longer
        return False


def server_command(settings: Settings, model: Path, port: int, on_gpu: bool) -> list[str]:
    """The command line of the server, as a user would type it.

    Raises:
        ProcessError: if there is no ``vllm`` command.
    """
    probe = {
        "batch_sizes": list(settings.batch_sizes),
        "contexts": list(settings.contexts),
        # More than a server would spend: there is half a minute, and a CPU may be slow.
        "overhead_budget": 0.2,
        "capture_seconds": 2.0,
        "startup_seconds": 15.0,
        "publish_seconds": 1.0,
    }
    weights = (
        ("--speculative-config", json.dumps(SPECULATION), "--served-model-name", REAL_NAME)
        if settings.real
        else ("--load-format", "dummy")
    )
    command = serve_command(
        model, port, *weights, "--max-model-len", str(settings.contexts[-1] * 2),
        "--nfp-probe", "--nfp-max-positions", str(settings.max_positions),
        "--nfp-config", json.dumps(probe),
        "--nfp-output-dir", str(settings.folder / "results"),
        tokenizer=settings.real,
    )  # fmt: skip
    return command if on_gpu else [*command, "--enforce-eager"]


def load_of(settings: Settings, url: str, model: str) -> Load:
    """The requests of the demonstration; a prompt is half of the shorter context.

    Args:
        url: of the server.
        model: name that the server gives its model.
    """
    if settings.real:
        return Load(url, REAL_NAME, senders=settings.batch_sizes[-1], texts=TEXTS)
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
