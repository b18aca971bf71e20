"""Cost of a checkpoint: parts of writing a file, full saves, and the stall computed for the paper's size.

Part `save` of `trainer.py`; see there for the command.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import partial
from pathlib import Path
from statistics import median

import torch
from in_memory import Clocks, InMemory, training_config

from uniavgen.orchestration.config import load_config
from uniavgen.orchestration.planning.cards import find_gpu
from uniavgen.orchestration.planning.step_time import gpu_machine, step_time
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
"""Bytes per second from a GPU to pageable host memory, as PyTorch saves. Assumed, not measured."""
STORES = (1e9, 2e9, 5e9)
"""Bytes per second that storage takes from all workers: slow shared, good shared, local NVMe."""
MEMORY = Path("/dev/shm")
"""A folder in memory, if the system has one: writing there costs what the program itself costs."""
MODEL_50M = ModelConfig(
    video=BranchConfig(dim=512, layers=8, heads=8, ffn_dim=2048, in_channels=48, patch=(2, 2), text_dim=384),
    audio=BranchConfig(
        dim=320, layers=8, heads=5, ffn_dim=1280, in_channels=100, text_dim=64, rope_axes="time"
    ),
    speech_text=SpeechTextConfig(),
)


def saves(shards: Path, folder: Path, times: int = 4) -> None:
    """Seconds of a save by model and target under ZeRO-2, beside a plain write of as many bytes.

    The first save of each is not counted. Then the interval at the paper's size.
    """
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
            for target, home in (("disk", folder), ("memory", Path(memory))):
                data = DataConfig(frames=13, height=64, width=64, reference_frames=5)
                job = Job(
                    training_config(model, 1, 10, zero=2, data=data),
                    "joint",
                    str(shards),
                    str(home / f"save-{name}"),
                )
                numbers = timed_saves(InMemory(job), home / "plain", times)
                rate = numbers["MB/CPU s"] * 1e6
                cells = "".join(f"{numbers[c]:>{len(c) + 3}.2f}" for c in columns)
                print(f"{name + ', ' + target:<14}{cells}")
    at_the_papers_size(rate)


def timed_saves(runner: StageTrainer, plain: Path, times: int) -> dict[str, float]:
    """One step, which creates the moments, and some saves: medians by part."""
    clocks = Clocks()
    runner.train_step(0, runner.batches([0]))
    parts = {
        "files": (saving, "write_rank_files"),
        "commit": (runner.folder, "commit"),
        "save": (runner, "save"),
    }
    before = {part: getattr(*owner) for part, owner in parts.items()}
    for part, owner in parts.items():
        setattr(*owner, clocks.timed(part, before[part]))
    for step in range(1, times + 1):
        runner.save(step)
        clocks.timed("plain", plain_write)(plain, folder_bytes(runner.folder, step))
    for part, owner in parts.items():
        setattr(*owner, before[part])
    size, cpu = folder_bytes(runner.folder, times), median(clocks.cpu["save"][1:])
    wall = {part: median(values[1:]) for part, values in clocks.wall.items()}
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
    """A file that discards all data."""

    def write(self, data: memoryview) -> int:
        return len(data)

    def flush(self) -> None:
        pass


def parts_of_a_file(folder: Path, size: int = 2**28, times: int = 3) -> None:
    """MB/s of each part of writing a file of tensors, and of all parts together as in the trainer."""
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
            "torch.save, hashed while writing, into memory": lambda: hashed(file),
            "torch.save, hashed while writing, onto the disk": lambda: hashed(folder / "file"),
            "plain write onto the disk": lambda: plain_write(folder / "file", size),
        }.items():
            for _ in range(times + 1):
                clocks.timed(name, part)()
    print(f"\n{'MB/s of a file of ' + str(size // 10**6) + ' MB':<46}{'wall':>8}{'CPU':>8}")
    for name in clocks.wall:
        wall, cpu = median(clocks.wall[name][1:]), median(clocks.cpu[name][1:])
        print(f"{name:<46}{size / wall / 1e6:>8.0f}{size / cpu / 1e6:>8.0f}")


def plain_write(path: Path, size: int) -> None:
    """Write `size` bytes to a file and fsync it."""
    chunk = bytes(2**20)
    with path.open("wb") as file:
        for _ in range(-(-size // len(chunk))):
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


def folder_bytes(folder: RunFolder, step: int) -> int:
    return sum(path.stat().st_size for path in folder.checkpoint(step).rglob("*") if path.is_file())


def at_the_papers_size(rate: float) -> None:
    """Computed, not measured.

    Under ZeRO-2 every worker writes its share of 12 bytes per parameter (master weights and moments); rank 0
    also writes the 2 bytes of the bf16 weights, as a second file at the same time. After the copy from the
    GPU, a file takes the CPU time of a save into memory here, as if hashing and writing were sequential.
    Storage may be slower than all workers.
    """
    config = load_config("paper").train
    print(
        f"\ncomputed for the paper preset on {WORKERS} x {CARD} at {MFU:.0%} MFU, "
        f"a save every {config.checkpoint.every} steps:"
    )
    print(
        f"each file at {rate / 1e6:.0f} MB/s (CPU time of a save into memory here), "
        f"copied from its GPU at {COPY / 1e9:g} GB/s;"
    )
    print("cores for two files a worker; no moving average; share of the time by total speed of the storage")
    print(
        f"{'':<12}{'GB':>5}{'every':>9}{'no limit':>18}"
        + "".join(f"{f'{store / 1e9:g} GB/s':>18}" for store in STORES),
        end="",
    )
    print(f"{'under 2 % from':>18}")
    for stage in config.stages:
        held, trained = stage_parameters(config, stage)
        step = step_time(config, stage, WORKERS, gpu_machine(find_gpu(CARD), MFU), cached=True)
        between = config.checkpoint.every * step.total
        size = 12 * trained + 2 * held
        slowest = max(12 * trained / WORKERS, 2 * held) * (1 / rate + 1 / COPY)
        stalls = [slowest, *(max(slowest, size / store) for store in STORES)]
        cells = "".join(f"{f'{stall:.0f} s, {stall / (between + stall):.1%}':>18}" for stall in stalls)
        print(
            f"{stage.name:<12}{size / 1e9:>5.0f}{between / 60:>5.0f} min{cells}"
            f"{size / (between / 49) / 1e9:>13.1f} GB/s"
        )
