"""Run as a program: load vLLM's plugins as ``vllm WORDS`` would, and print every attribute of vLLM
that comes from this project, as JSON.

    untouched.py serve MODEL ...
"""

from __future__ import annotations

import importlib
import json
import sys
from types import FunctionType, ModuleType
from typing import Any


def ours(value: Any) -> bool:
    inner = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
    if not isinstance(inner, (FunctionType, type)):
        return False  # and do not wake lazily imported modules
    return hasattr(inner, "__nfp_original__") or inner.__module__.split(".")[0] == "vllm_nfp"


def replaced() -> list[str]:
    found = []
    for name, module in list(sys.modules.items()):
        if not isinstance(module, ModuleType) or name.split(".")[0] != "vllm":
            continue
        for attribute, value in list(vars(module).items()):
            if ours(value):
                found.append(f"{name}.{attribute}")
            if isinstance(value, type) and value.__module__.startswith("vllm."):
                members = list(vars(value).items())
                found += [f"{name}.{attribute}.{key}" for key, member in members if ours(member)]
    return sorted(set(found))


LATER = ("entrypoints.cli.serve", "v1.metrics.prometheus", "v1.worker.worker_base")
"""What a server imports by and by."""
PARSER_MODULES = ("launchers.cli_args", "common.cli_args")
"""Where releases keep make_arg_parser: 0.29 and 0.32, 0.33."""


def parser_factory() -> Any:
    for name in PARSER_MODULES:
        try:
            return importlib.import_module(f"vllm.entrypoints.{name}").make_arg_parser
        except (ImportError, AttributeError):
            continue
    raise SystemExit("this vLLM's make_arg_parser is nowhere known")


def main() -> dict[str, object]:
    """What ``vllm serve`` with these words leaves of vLLM."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for name in LATER:
        importlib.import_module(f"vllm.{name}")
    parser = parser_factory()(FlexibleArgumentParser())
    if "--config" in sys.argv:  # the flags may be in a file; these are not
        args = parser.parse_args([])
        args.model = sys.argv[2]
        AsyncEngineArgs.from_cli_args(args)
    loaded = sorted(
        name
        for name in sys.modules
        if name.startswith(("vllm_nfp.adapter.", "vllm_nfp.probe", "vllm_nfp.session"))
    )
    flags = any("--nfp-probe" in action.option_strings for action in parser._actions)
    return {"replaced": replaced(), "loaded": loaded, "flags": flags}


if __name__ == "__main__":
    print("RESULT " + json.dumps(main()))
