"""Generates the reference pages from the code: ``python docs/reference.py``.

``metrics.md`` comes from the metric families, ``settings.md`` from ``ProbeConfig``, and the tables
in ``models.md`` and ``parallel.md`` from the list that decides what is probed. A test compares the
committed pages with these functions.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from prometheus_client.core import Metric

from vllm_nfp.adapter import versions
from vllm_nfp.adapter.decoding import BUILDERS
from vllm_nfp.adapter.feature import Feature, Kind
from vllm_nfp.adapter.feature_list import FEATURES
from vllm_nfp.adapter.runner_v2 import KNOWN_STATES
from vllm_nfp.adapter.state_kinds import KNOWN_LAYERS
from vllm_nfp.adapter.versions import Mode
from vllm_nfp.config import INTERNAL_FIELDS, ProbeConfig
from vllm_nfp.metrics.families import families_of
from vllm_nfp.metrics.families.control import control_families
from vllm_nfp.results.control import ControlSnapshot, ControlState
from vllm_nfp.results.snapshot import Snapshot
from vllm_nfp.types import LayerHistogram, State

FOLDER = Path(__file__).resolve().parent
_METRICS_HEAD = """# Metrics

Every metric that `vllm serve --nfp-probe` adds to the server's own `/metrics`. `python
docs/reference.py` generates this page from the code.

| label | meaning |
| --- | --- |
| `model_name`, `engine` | vLLM's labels, on every metric |
| `batch_size`, `context` | a row of the reported table; of real steps: upper bounds of buckets |
| `module` | `model` (the whole step), or a [module](glossary.md) of it such as `dense_ffn` |
| `epsilon` | tolerance: extra step time that counts as free, as a fraction |
| `positions` | N, positions per sequence |
| `basis` | `measured`, `inferred` or `predicted`: see [answers](answers.md) |

The [glossary](glossary.md) defines all terms.

The number of series per engine is bounded, because the settings bound each label. At the defaults,
for a dense model (MoE models: some 17 % more):

| `--max-num-seqs` | `--max-model-len` | rows (B x L) | series without pairs | with all pairs |
| --- | --- | --- | --- | --- |
| 256 | 40,960 | 9 x 4 | about 5,500 | about 6,400 |
| 1024 | 262,144 | 11 x 5 | about 8,400 | about 9,700 |

The largest table that settings allow (5120 points: batch sizes x contexts x positions) gives at
most 150,000 series, without those of real steps. A test counts them. A real server with a dense
model on a CPU and that table (16 x 16 x 20, 8 epsilons) showed 72,786 series, 11 MB of text: keep
such a table for experiments.

Fewer `batch_sizes`, `contexts` or `epsilons` in `--nfp-config` give fewer series. The cost surface
and live lookups do not depend on them.
"""
_SETTINGS_HEAD = """# Settings

Every setting of the probe. Pass them to `--nfp-config` as JSON or as `@FILE`. Frequent ones have
[flags](quick-start.md#flags). `python docs/reference.py` generates this page from `ProbeConfig`.

| setting | default | meaning |
| --- | --- | --- |
"""


def metrics_page() -> str:
    """docs/metrics.md."""
    probe = Snapshot("", "0", State.STEADY, layers=(LayerHistogram(0, "attention", (), (0,), 0.0),))
    control = ControlSnapshot("", "0", ControlState.LEARNING)
    sections = {
        "The probe": families_of([probe]),
        "Live draft control": control_families([control]),
    }
    heads = {"Live draft control": "\nOnly with `--nfp-draft-control`.\n"}
    parts = [_METRICS_HEAD]
    for title, families in sections.items():
        parts.append(f"\n## {title}\n{heads.get(title, '')}\n")
        parts.append("| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n")
        parts += [f"{row}\n" for row in _rows(families)]
    return "".join(parts)


def _rows(families: Iterator[Metric]) -> Iterator[str]:
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        names = [n for n in family._labelnames if n not in ("model_name", "engine")]
        labels = ", ".join(f"`{n}`" for n in names) or "-"
        yield f"| `{name}` | {family.type} | {labels} | {family.documentation} |"


def settings_page() -> str:
    """docs/settings.md."""
    meanings = _field_docs(ProbeConfig)
    rows = [
        f"| `{field.name}` | {_shown(field.default)} | {meanings[field.name]} |\n"
        for field in dataclasses.fields(ProbeConfig)
        if field.name not in INTERNAL_FIELDS
    ]
    return _SETTINGS_HEAD + "".join(rows)


def _field_docs(cls: type) -> dict[str, str]:
    """The string below each field."""
    pattern = r'^    (\w+): [^\n]+\n    """(.*?)"""'
    found = re.findall(pattern, inspect.getsource(cls), re.DOTALL | re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


def _shown(default: object) -> str:
    return "-" if default is None else f"`{json.dumps(default)}`"


_PROBED = """
| probed | flag | how |
| --- | --- | --- |
"""
_PASSIVE = """
| passive | flag | why | a timed step contains | prediction |
| --- | --- | --- | --- | --- |
"""
_OFF = """
| off | flag | why |
| --- | --- | --- |
"""


def feature_tables(kinds: tuple[Kind, ...]) -> str:
    """What is probed, what is only timed, and what is neither, of these kinds."""
    chosen = [feature for feature in FEATURES if feature.kind in kinds]
    heads = {Mode.ACTIVE: _PROBED, Mode.PASSIVE: _PASSIVE, Mode.OFF: _OFF}
    parts = []
    for mode, head in heads.items():
        rows = [_feature_row(feature) for feature in chosen if feature.mode is mode]
        parts += [head, *rows] if rows else []
    return "".join(parts)


def _feature_row(feature: Feature) -> str:
    flag = f"`{feature.flag}`" if feature.flag else "-"
    cells = [feature.name, flag, "; ".join(filter(None, (feature.explained, feature.needs)))]
    if feature.mode is Mode.PASSIVE:
        cells.append(feature.step or "a decode step")
        cells.append("none" if feature.unpredicted else "as without it")
    return f"| {' | '.join(cells)} |\n"


def kinds_of_cache() -> str:
    """Kinds of KV cache that a probe addresses, as a list."""
    return "".join(f"- `{kind}`\n" for kind in versions.KV_CACHE_KINDS)


def states_of_models() -> str:
    """The V2 runner's classes that prepare inputs as a probe does, as a list."""
    return "".join(f"- `{kind}`\n" for kind in KNOWN_STATES)


def layers_with_a_state() -> str:
    """vLLM's layers with a recurrent state that a probe can run, as a list."""
    return "".join(f"- `{layer}` ({kind})\n" for layer, kind in KNOWN_LAYERS.items())


_BACKENDS = """| backends | positions | of the probe's own | shared | run on a GPU |
| --- | --- | --- | --- | --- |
"""


def attention_backends() -> str:
    """What probes share with the live batch under each attention backend."""
    found = tomllib.loads((FOLDER / "backends.toml").read_text(encoding="utf-8"))
    rows = (
        f"| {', '.join(f'`{name}`' for name in each['names'])} | {_decoded(each['builders'])} "
        f"| {each['own']} | {each['shared']} | {each['gpu']} |\n"
        for each in found["backend"]
    )
    return _BACKENDS + "".join(rows)


def _decoded(builders: list[str]) -> str:
    """The most positions of a sequence that builders decode, where they differ by their names."""
    words = {name: BUILDERS[name].words for name in builders if name in BUILDERS}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    kinds = {name: word for name, word in words.items() if word != "any"} or words
    merged: dict[str, list[str]] = {}
    for name, word in kinds.items():
        merged.setdefault(word, []).append(f"`{name.removesuffix('MetadataBuilder')}`")
    return "; ".join(f"{', '.join(names)}: {word}" for word, names in merged.items()) or "-"


def public_recipes() -> str:
    """In how many public recipes the probe runs, from the recorded verdicts."""
    sys.path.insert(0, str(FOLDER.parent))  # benchmarks are not installed
    from benchmarks.recipes.page import section

    return section()


def measured_models() -> str:
    """NFP of the models that were run on GPUs, from their records."""
    sys.path.insert(0, str(FOLDER.parent))
    from benchmarks.prediction.measured_models import section

    return section()


_PARTS = {
    "models": lambda: feature_tables((Kind.MODEL, Kind.SERVER)),
    "parallelism": lambda: feature_tables((Kind.PARALLEL,)),
    "kinds of KV cache": kinds_of_cache,
    "states of models": states_of_models,
    "layers with a state": layers_with_a_state,
    "public recipes": public_recipes,
    "measured models": measured_models,
    "attention backends": attention_backends,
}
"""What stands in a page between a comment that names it and the next comment."""


def with_parts(name: str) -> str:
    """A page with its generated parts as they should be."""
    text = (FOLDER / name).read_text(encoding="utf-8")
    for part, made in _PARTS.items():
        begin, end = f"<!-- generated: {part} -->\n", f"<!-- end: {part} -->"
        if begin in text:
            head, rest = text.split(begin)
            text = f"{head}{begin}{made()}\n{end}{rest.split(end)[1]}"
    return text


PAGES = {
    "metrics.md": metrics_page,
    "settings.md": settings_page,
    "models.md": lambda: with_parts("models.md"),
    "parallel.md": lambda: with_parts("parallel.md"),
}


if __name__ == "__main__":
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")
