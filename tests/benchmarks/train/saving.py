"""What a checkpoint costs: the parts of writing a file, whole saves, and from them the stall at the paper's size.

Part `save` of `trainer.py`, which says how it is run.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch
from in_memory import Clocks, InMemory, plan

from uniavgen.orchestration.config import load_config
from uniavgen.orchestration.planning.training_plan import find_gpu, stage_cost
from uniavgen.train.checkpoint import saving
from uniavgen.train.checkpoint.run_folder import RunFolder, digest
from uniavgen.train.checkpoint.saving import write_hashed
from uniavgen.train.data.config import DataConfig
from uniavgen.train.model.config import BranchConfig, ModelConfig, SpeechTextConfig
from uniavgen.train.planning import stage_parameters
from uniavgen.train.trainer import Job, StageTrainer

WORKERS, CARD, MFU = 8, "h200", 0.4
"""The cluster for which the paper's interval is computed: the project's budget, not a measurement."""
COPY = 4e9
"""Bytes a second from a card into pageable memory of its host, which is how PyTorch saves: stated, not measured here."""
STORES = (1e9, 2e9, 5e9)
"""Bytes a second that a store takes from all workers together: a slow shared folder, a fair one, one node's own NVMe."""
MEMORY = Path("/dev/shm")
"""A folder that is no disk, where the system has one: what is written there costs what the program itself costs."""
MODEL_50M = ModelConfig(
    video=BranchConfig(dim=512, layers=8, heads=8, ffn_dim=2048, in_channels=48, patch=(2, 2), text_dim=384),
    audio=BranchConfig(
        dim=320, layers=8, heads=5, ffn_dim=1280, in_channels=100, text_dim=64, rope_axes="time"
    ),
    speech_text=SpeechTextConfig(),
)


def saves(shards: Path, folder: Path, times: int = 4) -> None:
    """Seconds of a save by model and place under ZeRO-2, and a plain write of as many bytes; then the paper's interval. The
    first save of each is not counted."""
    folder.mkdir(parents=True, exist_ok=True)
    parts_of_a_file(folder)
    columns = (
        "M parameters",
        "MB",
        "wall s",
        "CPU s",
        "MB/CPU s",
        "files",
        "commit",
        "plain write s",
        "ratio",
    )
    print("\n" + f"{'':<14}" + "".join(f"{column:>{len(column) + 3}}" for column in columns))
    rate = 0.0
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else folder) as memory:
        for name, model in (("tiny", ModelConfig()), ("50 M", MODEL_50M)):
            for place, home in (("disk", folder), ("memory", Path(memory))):
                data = DataConfig(frames=13, height=64, width=64, reference_frames=5)
                job = Job(
                    plan(model, 1, 10, zero=2, data=data), "joint", str(shards), str(home / f"save-{name}")
                )
                figures = timed_saves(InMemory(job), home / "plain", times)
                rate = figures["MB/CPU s"] * 1e6
                cells = "".join(f"{figures[c]:>{len(c) + 3}.2f}" for c in columns)
                print(f"{name + ', ' + place:<14}{cells}")
    at_the_papers_size(rate)


def timed_saves(runner: StageTrainer, plain: Path, times: int) -> dict[str, float]:
    """One step, which makes the moments, and some saves: medians by part."""
    clocks = Clocks()
    runner.train_step(0, runner.batches([0]))
    parts = {
        "files": (saving, "write_rank_files"),
        "commit": (runner.folder, "commit"),
        "save": (runner, "save"),
    }
    before = {part: getattr(*place) for part, place in parts.items()}
    for part, place in parts.items():
        setattr(*place, clocks.timed(part, before[part]))
    for step in range(1, times + 1):
        runner.save(step)
        clocks.timed("plain", plain_write)(plain, folder_bytes(runner.folder, step))
    for part, place in parts.items():
        setattr(*place, before[part])
    size, cpu = folder_bytes(runner.folder, times), median(clocks.cpu["save"][1:])
    wall = {part: median(found[1:]) for part, found in clocks.wall.items()}
    return {
        "M parameters": runner.parameters["total"] / 1e6,
        "MB": size / 1e6,
        "wall s": wall["save"],
        "CPU s": cpu,
        "MB/CPU s": size / cpu / 1e6,
        "files": wall["files"],
        "commit": wall["commit"],
        "plain write s": wall["plain"],
        "ratio": wall["save"] / wall["plain"],
    }


class Nowhere:
    """A file that takes everything and keeps nothing."""

    def write(self, data: memoryview) -> int:
        return len(data)

    def flush(self) -> None:
        pass


def parts_of_a_file(folder: Path, size: int = 2**28, times: int = 3) -> None:
    """MB/s of what writing a file of tensors consists of, each alone, and of all of it as the trainer does it."""
    state, content = {"weights": torch.randn(size // 4)}, bytes(size)

    def hashed(path: Path) -> None:
        write_hashed(path, partial(torch.save, state))

    def read_back(path: Path) -> None:
        torch.save(state, path)
        digest(path)

    clocks = Clocks()
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else folder) as memory:
        file = Path(memory) / "file"
        for name, part in {
            "SHA-256": lambda: hashlib.sha256(content),
            "torch.save to nowhere (crc32)": lambda: torch.save(state, Nowhere()),
            "torch.save into memory": lambda: torch.save(state, file),
            "torch.save into memory, then SHA-256 of it": lambda: read_back(file),
            "torch.save hashed on the way, into memory": lambda: hashed(file),
            "torch.save hashed on the way, onto the disk": lambda: hashed(folder / "file"),
            "plain write onto the disk": lambda: plain_write(folder / "file", size),
        }.items():
            for _ in range(times + 1):
                clocks.timed(name, part)()
    print(f"\n{'MB/s of a file of ' + str(size // 10**6) + ' MB':<46}{'wall':>8}{'CPU':>8}")
    for name in clocks.wall:
        wall, cpu = median(clocks.wall[name][1:]), median(clocks.cpu[name][1:])
        print(f"{name:<46}{size / wall / 1e6:>8.0f}{size / cpu / 1e6:>8.0f}")


def plain_write(path: Path, size: int) -> None:
    """So many bytes into a file and onto the disk."""
    piece = bytes(2**20)
    with path.open("wb") as file:
        for _ in range(-(-size // len(piece))):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def folder_bytes(folder: RunFolder, step: int) -> int:
    return sum(path.stat().st_size for path in folder.checkpoint(step).rglob("*") if path.is_file())


def at_the_papers_size(rate: float) -> None:
    """Computed, not measured. Under ZeRO-2 every worker writes its share of 12 bytes a parameter (master and moments), the
    first one the 2 bytes of the bf16 weights besides, as a second file at the same time. A file takes as long as the CPU time
    of a save into memory here, as if hashing and writing took turns, once it was copied off the card. The store may be slower
    than all workers together."""
    config = load_config("paper").train
    print(
        f"\ncomputed for the paper preset on {WORKERS} x {CARD} at {MFU:.0%} MFU, a save every {config.checkpoint.every} steps:"
    )
    print(
        f"each file at {rate / 1e6:.0f} MB/s (CPU time of a save into memory here), copied off its card at {COPY / 1e9:g} GB/s;"
    )
    print(
        "cores for two files a worker; no moving average; the share of the time by what the store takes in all"
    )
    print(
        f"{'':<12}{'GB':>5}{'every':>9}{'no limit':>18}"
        + "".join(f"{f'{store / 1e9:g} GB/s':>18}" for store in STORES),
        end="",
    )
    print(f"{'under 2 % from':>18}")
    for stage in config.stages:
        whole, learns = stage_parameters(config, stage)
        between = config.checkpoint.every * stage_cost(config, stage, WORKERS, find_gpu(CARD), MFU, 0).step_s
        size = 12 * learns + 2 * whole
        own = max(12 * learns / WORKERS, 2 * whole) * (1 / rate + 1 / COPY)
        stalls = [own, *(max(own, size / store) for store in STORES)]
        cells = "".join(f"{f'{stall:.0f} s, {stall / (between + stall):.1%}':>18}" for stall in stalls)
        print(
            f"{stage.name:<12}{size / 1e9:>5.0f}{between / 60:>5.0f} min{cells}{size / (between / 49) / 1e9:>13.1f} GB/s"
        )
