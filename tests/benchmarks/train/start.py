"""Imports of a training worker before its first step: lean against plain, in separate processes, by turns.

    python tests/benchmarks/train/start.py [--rounds N]

Prints CPU and wall seconds, the medians of the rounds, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median

from rich.console import Console
from rich.table import Table

COMPAT = "from uniavgen.train.engine.deepspeed_compat import"
PLAIN = f"{COMPAT} set_environment; set_environment('cpu'); import deepspeed"
LEAN = f"{COMPAT} import_lean; import_lean('cpu')"
WORK = """
import json, time
import torch
began, cpu = time.perf_counter(), time.process_time()
{imports}
from deepspeed.runtime.zero.muon import muon_optimizer
from transformers import AutoModel, AutoTokenizer, BertModel
print(json.dumps([time.process_time() - cpu, time.perf_counter() - began]))
"""


def seconds(imports: str) -> tuple[float, float]:
    """CPU and wall seconds of the imports of DeepSpeed, its first engine and the caption encoder, after
    torch."""
    done = subprocess.run(
        [sys.executable, "-c", WORK.format(imports=imports)], capture_output=True, text=True, check=True
    )
    cpu, wall = json.loads(done.stdout.splitlines()[-1])
    return cpu, wall


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    ways = {"plain": PLAIN, "lean": LEAN}
    for imports in ways.values():  # warm up file cache and bytecode
        seconds(imports)
    taken = {way: ([], []) for way in ways}  # type: dict[str, tuple[list[float], list[float]]]
    for _ in range(rounds):
        for way, imports in ways.items():
            for kept, value in zip(taken[way], seconds(imports), strict=True):
                kept.append(value)
    table = Table(
        "imports", "CPU s", "wall s", "CPU ratio", title=f"start of a training worker, medians of {rounds}"
    )
    base = median(taken["plain"][0])
    for way, (cpu, wall) in taken.items():
        table.add_row(way, f"{median(cpu):.2f}", f"{median(wall):.2f}", f"{median(cpu) / base:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
