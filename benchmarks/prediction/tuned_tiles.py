"""Writes the tiles that vLLM's own files of tuned configurations name, for the catalogue's devices.

    python -m benchmarks.prediction.tuned_tiles FOLDER > vllm_nfp/principle/tuned_tiles.json

FOLDER is ``vllm/model_executor/layers/fused_moe/configs`` of an installed vLLM (Apache-2.0). The
sizes alone are taken: for each number of tokens BLOCK_SIZE_M, _N, _K and GROUP_SIZE_M.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import click

from vllm_nfp.principle.hardware import CATALOGUE
from vllm_nfp.principle.tuned_tiles import SIZES, file_device, written

_NAME = re.compile(r"E=(\d+),N=(\d+),device_name=([^,]+)(?:,dtype=(.+))?\.json")
DTYPES = {None: "", "fp8_w8a8": "fp8", "fp8_w8a8,block_shape=[128,128]": "fp8_block"}
"""Types that the prediction knows; others are left out."""


def tables(folder: Path) -> dict[str, str]:
    """Every file of a known device and type, by what ``tuned_tiles.key`` makes of it."""
    devices = {file_device(name) for one in CATALOGUE for name in one.device_names}
    found = {}
    for path in sorted(folder.glob("*.json")):
        match = _NAME.fullmatch(path.name)
        if match is None or match[3] not in devices or match[4] not in DTYPES:
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            int(tokens): {name: int(row[name]) for name in SIZES}
            for tokens, row in content.items()
            if tokens.isdigit()
        }
        found[f"{match[1]},{match[2]},{match[3]},{DTYPES[match[4]]}"] = written(rows)
    return found


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
def main(folder: Path) -> None:
    """Print the table of the files in FOLDER."""
    click.echo(json.dumps(tables(folder), indent=0, separators=(",", ":")))


if __name__ == "__main__":
    main()
