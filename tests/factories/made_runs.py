"""Train a very small model in several processes without Ray, many configurations in one start."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import socket
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from uniavgen.shards.errors import UserError
from uniavgen.train.config import CheckpointConfig, DeepSpeedConfig, StageConfig, TrainConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.loader import BatchLoader, LoadedBatch, make_loader
from uniavgen.train.model.config import BranchConfig, ModelConfig, SpeechTextConfig

SMALL_MODEL = ModelConfig(
    video=BranchConfig(
        dim=32, layers=2, heads=2, ffn_dim=64, in_channels=48, patch=(2, 2), text_dim=384, freq_dim=32
    ),
    audio=BranchConfig(
        dim=32, layers=2, heads=2, ffn_dim=64, in_channels=100, text_dim=16, freq_dim=32, rope_axes="time"
    ),
    speech_text=SpeechTextConfig(dim=16, layers=1),
)
SMALL_DATA = DataConfig(frames=13, height=64, width=64, reference_frames=5, caption_tokens=12, prefetch=1)


def small_config(
    stages: Sequence[StageConfig], workers: int = 2, every: int = 100, **deepspeed: Any
) -> TrainConfig:
    return TrainConfig(
        model=SMALL_MODEL,
        data=SMALL_DATA,
        stages=list(stages),
        workers=workers,
        fixed_steps=2,
        checkpoint=CheckpointConfig(every=every, keep=5),
        deepspeed=DeepSpeedConfig(**deepspeed),
    )


@dataclass(frozen=True)
class Run:
    """A stage to train into its own folder.

    `from_checkpoints` are copied there first, as if the run had been interrupted; an earlier run may write
    them. `spoiled`: steps (0-based) in which the last sample of the global batch is NaN; only the last worker
    sees it. `largest_file`: limit in bytes for each file of the last worker, like a full disk.
    `shards_of_last`: the folder that the last worker reads instead, like a node that sees other shards.
    `accept_changes`: as `uniavgen train --accept-changes`. `shards`: a folder of its own.
    """

    config: TrainConfig
    stage: str
    run_dir: Path
    from_checkpoints: tuple[Path, ...] = ()
    spoiled: tuple[int, ...] = ()
    largest_file: int = resource.RLIM_INFINITY
    shards_of_last: Path | None = None
    accept_changes: bool = False
    shards: Path | None = None


def write_metrics(path: Path):
    """A metrics receiver that appends lines of JSON."""

    def receive(step: int, metrics: dict[str, float]) -> None:
        with path.open("a") as file:
            file.write(json.dumps([step, metrics]) + "\n")

    return receive


def read_metrics(run_dir: Path) -> dict[int, dict[str, float]]:
    """Metrics by step; the fixed draws' are merged into theirs."""
    found: dict[int, dict[str, float]] = {}
    for line in (run_dir / "metrics.jsonl").read_text().splitlines():
        step, metrics = json.loads(line)
        found.setdefault(step, {}).update(metrics)
    return found


def train_together(runs: Sequence[Run], shards_dir: Path, world: int) -> None:
    """Train the runs one after another on the same `world` processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("spawn")
    # as daemons they end with a test that runs into its time limit
    workers = [
        context.Process(target=_work, args=(runs, shards_dir, rank, world, port), daemon=True)
        for rank in range(world)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [0] * world, codes


def _work(runs: Sequence[Run], shards_dir: Path, rank: int, world: int, port: int) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    from uniavgen.train.engine.deepspeed_compat import import_lean

    import_lean("cpu")
    import torch

    from uniavgen.train import stage_data, trainer
    from uniavgen.train.engine import ema
    from uniavgen.train.engine.deepspeed_engine import create_engine

    ema.CHUNK_NUMBERS = 100  # so that the shards of a very small model are swapped in several chunks
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    for run in runs:
        for checkpoint in run.from_checkpoints if rank == 0 else ():
            target = run.run_dir / run.stage / "checkpoints" / checkpoint.name
            shutil.copytree(checkpoint, target, dirs_exist_ok=True)
        torch.distributed.barrier()
        factory = partial(write_metrics, run.run_dir / "metrics.jsonl")
        trainer.create_engine = count_living_models(create_engine, run.run_dir / f"living-{rank}.txt")
        stage_data.make_loader = partial(make_spoiling_loader, run.spoiled) if run.spoiled else make_loader
        shards = run.shards or shards_dir
        if rank == world - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (run.largest_file, resource.RLIM_INFINITY))
            shards = run.shards_of_last or shards
        try:
            trainer.train_stage(
                trainer.Job(
                    run.config,
                    run.stage,
                    str(shards),
                    str(run.run_dir),
                    "cpu",
                    factory,
                    run.accept_changes,
                )
            )
        except UserError as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            (run.run_dir / f"error-{rank}.txt").write_text(f"{error.kind}: {error}")
    torch.distributed.destroy_process_group()


def count_living_models(create: Callable[..., Any], path: Path) -> Callable[..., Any]:
    """`create_engine` that first logs how many earlier models of the run are still in memory."""
    models: list[weakref.ref[Any]] = []

    def counted(model: Any, *given: Any, **named: Any) -> Any:
        with path.open("a") as file:
            file.write(f"{sum(reference() is not None for reference in models)}\n")
        models.append(weakref.ref(model))
        return create(model, *given, **named)

    return counted


def make_spoiling_loader(spoiled: Sequence[int], *arguments: Any) -> BatchLoader:
    """A loader whose batches of some steps hold NaN, as a broken codec or cache would make them."""
    loader = make_loader(*arguments)
    load = loader.load

    def load_with_nan(step: int, indices: Sequence[int]) -> LoadedBatch:
        loaded = load(step, indices)
        if step in spoiled and loader.batch - 1 in indices:
            loaded.batch.mel[-1, :, 0] = float("nan")
        return loaded

    loader.load = load_with_nan  # type: ignore[method-assign]
    return loader
