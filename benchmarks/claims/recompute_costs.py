"""What the probe costs a server, from records of runs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.claims.claim import Figures
from benchmarks.hosts.records import unpacked
from benchmarks.overhead.switched_summary import Compared, all_loads
from benchmarks.serving.paired import Ratio
from vllm_nfp.results import scrape

MIB = 1 << 20
SETTLED_SHARE = 0.25
"""Part of a soak at its start that does not count, as benchmarks.overhead.soak has it."""
HOOKS, RAISED = "active", "raised"
"""The variants with probes at the defaults, and with more delayed steps."""


def account(record: Path) -> Figures:
    """A run of ``at_defaults``: the probe's memory, its start, and what it counted."""
    with unpacked(record, "*.prom*") as folder:
        first, *_, last = sorted(folder.glob("*.prom"), key=lambda path: path.stem != "start")
        start = scrape.read_samples(first.read_text(encoding="utf-8"))
        end = scrape.read_samples(last.read_text(encoding="utf-8"))
    return {
        "host": f"{_value(end, 'memory_bytes', kind='host') / MIB:.0f} MiB",
        "gpu": f"{_value(end, 'memory_bytes', kind='gpu') / MIB:.0f} MiB",
        "startup": f"{_value(end, 'startup_seconds'):.1f} s",
        "pairs": f"{_value(start, 'probes_total', outcome='startup'):.0f}",
        "pieces": f"{_value(start, 'probes_total', outcome='startup_prepared'):.0f}",
        "time": f"{100 * _value(end, 'overhead_ratio'):.2f} %",
        "steps": f"{100 * _value(end, 'delayed_steps_ratio'):.2f} %",
    }


def _value(samples: scrape.Samples, name: str, **labels: str) -> float:
    """Of the one sample with these labels."""
    (found,) = (
        value
        for has, value in samples[f"vllm_nfp_{name}"]
        if all(has[label] == wanted for label, wanted in labels.items())
    )
    return found


def switched(record: Path) -> Figures:
    """A run of benchmarks.overhead.switched: every ratio, by figure, load in percent and variant.

    Figures of the variant at the defaults carry no name of a variant.
    """
    named: dict[str, str] = {}
    for found in all_loads(record):
        end = f"_{found.share * 100:.0f}{'' if found.variant == HOOKS else '_' + found.variant}"
        named |= {f"rounds{end}": str(found.rounds), f"busy{end}": str(found.busy)}
        named |= {f"n{end}": str(found.intervals)}
        named |= {f"first{end}": str(found.first_tokens), f"off_p50{end}": _ms(found.off_p50_ms)}
        for name, ratio in found.ratios.items():
            named |= _ratio(f"{name}{end}", ratio)
        named |= {name + end: value for name, value in _counted(found).items()}
    return named


def _ratio(name: str, ratio: Ratio) -> dict[str, str]:
    return {
        name: f"{ratio.ratio:.3f}",
        f"{name}_lower": f"{ratio.lower:.3f}",
        f"{name}_upper": f"{ratio.upper:.3f}",
        f"{name}_tells": f"{100 * ratio.resolution:.1f} %",
    }


def _counted(found: Compared) -> dict[str, str]:
    named = {"hooks": f"{found.hook_share:.2%}".replace("%", " %")}
    if found.background_share is not None:
        named["threads"] = f"{found.background_share:.2%}".replace("%", " %")
    if found.core_share is not None:
        named["core"] = f"{found.core_share:.2%}".replace("%", " %")
    if found.delayed is not None:
        named["delayed"] = str(found.delayed)
        share = found.delayed / found.decode_steps if found.decode_steps else 0.0
        named["delayed_share"] = f"{100 * share:.2f} %"
        named["idle"] = str(found.idle_probes)
    if found.delay_ms is not None:
        delay = found.delay_ms
        named["delay"] = f"{delay.ratio:.1f}"
        named["delay_interval"] = f"[{delay.lower:.1f}, {delay.upper:.1f}]"
    return named


def _ms(value: float) -> str:
    return f"{value:.2f}"


def soak(record: Path) -> Figures:
    """A run of benchmarks.overhead.soak."""
    run = json.loads(record.read_text(encoding="utf-8"))
    samples, growth = run["samples"], run["growth"]
    kept = samples[int(SETTLED_SHARE * len(samples)) :]
    named = {
        "scrapes": str(len(samples)),
        "minutes": f"{samples[-1]['seconds'] / 60:.0f}",
        "resident": f"{growth['resident_mib']:.0f} MiB",
        "of": f"{kept[0]['resident_mib'] / 1024:.0f} GiB",
        "files": f"{growth['files']:.0f}",
        "threads": f"{growth['threads']:.0f}",
    }
    if "gpu_mib" in growth:
        named["gpu"] = f"{growth['gpu_mib']:.0f} MiB"
    if "answers" in run:
        changed = sum("another at the end" in problem for problem in run["problems"])
        named |= {"answers": str(len(run["answers"])), "changed": str(changed)}
    return named


def two_engines(record: Path) -> Figures:
    """A run of benchmarks.engines.data_parallel: engines that take their steps together.

    Raises:
        ValueError: if a token or a log-probability differed from those without the probe.
    """
    with unpacked(record, "*.json.gz") as folder:
        outputs = json.loads((folder / "outputs.json").read_text(encoding="utf-8"))
        if not (outputs["token_ids_equal"] and outputs["logprobs_equal"]):
            raise ValueError(f"{record}: outputs differ")
        engines = json.loads((folder / "dp-ep-table.json").read_text(encoding="utf-8"))
    probes = engines["snapshot"]["probes"]
    return {
        "meanwhile": f"{outputs['pairs_meanwhile']:.0f}",
        "prompts": str(outputs["prompts"]),
        "tokens": str(outputs["tokens"]),
        "between": str(probes["measured"]),
        "idle": str(probes["idle"]),
    }


def pictures(record: Path) -> Figures:
    """A run of ``images``: chats with pictures, probed and after the probe has ended.

    Raises:
        ValueError: if an answer differed, or did not depend on its picture.
    """
    run = json.loads((record / "images.json").read_text(encoding="utf-8"))
    outputs = run["outputs"]
    if not (outputs["token_ids_equal"] and outputs["logprobs_equal"]):
        raise ValueError(f"{record}: outputs differ")
    if not outputs["picture_changes_answer"]:
        raise ValueError(f"{record}: answers do not depend on the picture")
    read = sum(load["with_picture"] for load in run["loads"])
    return {
        "chats": str(outputs["chats"]),
        "with_pictures": str(outputs["with_pictures"]),
        "rounds": str(outputs["rounds"]),
        "meanwhile": str(run["pairs_meanwhile"]),
        "read": str(read),
        "pairs": str(run["loads"][-1]["pairs_so_far"]),
    }


def identity(record: Path) -> Figures:
    """A run of benchmarks.memory.graph_memory: an engine without the probe, and one with it.

    Raises:
        ValueError: if a token or a log-probability differed.
    """
    run = json.loads(record.read_text(encoding="utf-8"))
    same = run["same_as_off"]["on"] if "same_as_off" in run else run["same_tokens"]
    if not same:
        raise ValueError(f"{record}: outputs differ")
    probes = run["probe"]["probes"]
    return {"pairs": str(probes["measured"]), "pieces": str(probes["prepared"])}
