"""Cost of the trainer against a bare PyTorch loop, of each ZeRO stage, and of a checkpoint.

    python tests/benchmarks/train/trainer.py [--only tiny laptop zero save gpu] [--steps 60] [--folder DIR]

tiny      `StageTrainer.run` on one gloo worker, ZeRO 0, fp32, against three loops that take turns with it in
          one process on the same model, batches and draws: a bare PyTorch loop, a second one (difference of
          two equal loops), and the same loop over DeepSpeed's default engine. Their losses are compared. Then
          the trainer's step by section. The model is that of `make demo`, with very short steps.
laptop    the same for the laptop preset, the smallest useful model; a fifth of the steps.
zero      the step by ZeRO stage on two gloo workers, in turns.
save      the parts of writing a file; one checkpoint of the tiny model and of one of 50 M parameters, into
          memory and onto the disk; and, computed from that, the share of time for saving at the paper's size.
gpu       as laptop, on the GPU. Prints one line if there is no GPU.

Batches are synthetic and made before the clock starts. CPU time is printed beside wall time, which depends on
the load of the machine. About eight minutes on two cores.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import os
import socket
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

sys.path.insert(1, str(Path(__file__).resolve().parents[2] / "factories"))
from in_memory import KEPT, Clocks, InMemory, training_config
from made_samples import make_sample, write_shards
from saving import saves

from uniavgen.orchestration.config import load_config
from uniavgen.train import trainer
from uniavgen.train.config import StageConfig, TrainConfig, lr_at
from uniavgen.train.data.loader import LoadedBatch
from uniavgen.train.engine.deepspeed_engine import deepspeed_settings
from uniavgen.train.flow_matching import Draw, task_at
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import compute_losses, lambda_at
from uniavgen.train.trainer import Job, StageTrainer, build_model

WARM = 5
"""Warm-up steps."""


class BareLoop:
    """A minimal loop for the same losses: forward, backward, clipping, AdamW, or DeepSpeed's engine."""

    def __init__(self, job: Job, clocks: Clocks, name: str, *, deepspeed: bool = False) -> None:
        self.job, self.config, self.stage = job, job.config, job.config.stage(job.stage)
        self.clocks, self.name, self.face = clocks, name, self.stage.face_config(self.config.model.face)
        self.model: Any = build_model(job, self.stage, 1).to(job.device)
        self.engine = default_engine(self.model, self.config, self.stage) if deepspeed else None
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.stage.lr, weight_decay=self.stage.weight_decay
        )
        self.losses: list[float] = []

    def step(self, step: int, loaded: LoadedBatch) -> None:
        since, config, stage = self.clocks.now(), self.config, self.stage
        optimizer = self.engine.optimizer if self.engine else self.optimizer
        optimizer.param_groups[0]["lr"] = lr_at(stage, step)
        draw, lambda_m = (
            Draw(config.seed, step, tuple(range(stage.batch))),
            lambda_at(self.face, step / (stage.steps - 1)),
        )
        objective = config.objective.model_copy(update={"mix": stage.tasks})
        task, batch = task_at(config.seed, step, stage.tasks), loaded.batch.to(self.job.device)
        loss = self.section(
            "forward",
            compute_losses,
            self.engine or self.model,
            batch,
            task,
            draw,
            objective,
            self.face,
            lambda_m,
        )["total"]
        self.section("backward", self.engine.backward if self.engine else torch.Tensor.backward, loss)
        self.section("clip, optimizer", self.engine.step if self.engine else self.update)
        self.losses.append(float(loss.detach()))
        del loss  # freeing its graph is part of a step
        self.clocks.note(self.name, since)

    def section(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.clocks.timed(f"{self.name}: {name}", function)(*arguments)

    def update(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.stage.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()


def default_engine(model: DualBranch, config: TrainConfig, stage: StageConfig) -> Any:
    """DeepSpeed's engine without the trainer's changes: clips, and reduces gradients also over one rank."""
    import deepspeed

    settings = deepspeed_settings(config, stage, 1) | {"gradient_clipping": stage.grad_clip}
    return deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=settings)[0]


def overhead(shards: Path, folder: Path, steps: int, config: TrainConfig, device: str) -> None:
    """The trainer's full loop; the other loops make a step after each of its steps."""
    clocks = Clocks(torch.cuda.synchronize) if device == "cuda" else Clocks()
    job = Job(config, "joint", str(shards), str(folder), device)
    runner = InMemory(job)
    losses: list[float] = []
    loops = [BareLoop(job, clocks, name) for name in ("bare", "bare again")]
    loops.append(BareLoop(job, clocks, "DeepSpeed", deepspeed=True))
    order = itertools.permutations(loops)

    def receive(step: int, metrics: dict[str, float]) -> None:
        if "loss/total" not in metrics:
            return
        clocks.note("trainer", since[0])
        losses.append(metrics["loss/total"])
        for loop in next(turns):
            loop.step(step - 1, runner.kept[(step - 1) % KEPT])
        if step == WARM:
            clocks.forget()
        since[0] = clocks.now()

    turns, runner.on_metrics = itertools.cycle(order), receive
    watch_sections(runner, clocks)
    since = [clocks.now()]
    runner.run()
    differences = [max(abs(a - b) for a, b in zip(losses, loop.losses, strict=True)) for loop in loops]
    print(
        f"\n{steps} steps of {config.stage('joint').batch} clips, "
        f"{runner.parameters['total'] / 1e6:.1f} M parameters, ",
        end="",
    )
    print(f"windows of {config.data.frames} x {config.data.height} x {config.data.width}")
    print(f"on {device}; losses differ by at most {max(differences):.1e}\n")
    show_loops(clocks)
    show_sections(clocks)


def watch_sections(runner: StageTrainer, clocks: Clocks) -> None:
    """Time every part of the trainer's step."""
    for name, owner, attribute in (
        ("forward", runner, "losses"),
        ("backward", runner.engine, "backward"),
        ("clip, optimizer", runner.engine, "step"),
        ("metrics: losses added", trainer.StepMetrics, "add"),
        ("metrics: reduced over ranks", trainer.StepMetrics, "metrics"),
        ("metrics: hardware_metrics", trainer, "hardware_metrics"),
        ("loss over ranks", runner, "global_loss"),
        ("health: limits", runner.health, "limits"),
        ("health: step noted", runner.health, "take"),
        ("warnings: times", runner.warnings, "add"),
        ("warnings: check, every 25 steps", runner.warnings, "check"),
        ("history", runner.history, "add"),
    ):
        setattr(owner, attribute, clocks.timed(f"trainer: {name}", getattr(owner, attribute)))


def show_loops(clocks: Clocks) -> None:
    """Medians of the step, and median ratios to the bare loop's step of the same turn."""
    print(f"{'':<14}{'wall ms':>10}{'CPU ms':>10}{'over bare, wall':>18}{'CPU':>10}{'CPU, sum':>12}")
    for name in ("bare", "bare again", "DeepSpeed", "trainer"):
        wall, cpu = clocks.wall[name], clocks.cpu[name]
        by_wall = median(a / b for a, b in zip(wall, clocks.wall["bare"], strict=True)) - 1
        by_cpu = median(a / b for a, b in zip(cpu, clocks.cpu["bare"], strict=True)) - 1
        total = sum(cpu) / sum(clocks.cpu["bare"]) - 1
        print(
            f"{name:<14}{median(wall) * 1e3:>10.1f}{median(cpu) * 1e3:>10.1f}"
            f"{by_wall:>+18.1%}{by_cpu:>+10.1%}{total:>+12.1%}"
        )


def show_sections(clocks: Clocks) -> None:
    """CPU time of the trainer's step by section, beside the bare loop and DeepSpeed."""
    total, steps = sum(clocks.cpu["bare"]), len(clocks.cpu["bare"])
    print(
        f"\n{'CPU ms a step':<34}{'trainer':>10}{'DeepSpeed':>12}{'bare':>10}"
        f"{'trainer - bare, of the step':>30}"
    )
    names = [name.removeprefix("trainer: ") for name in clocks.cpu if name.startswith("trainer: ")]
    columns = {
        loop: [sum(clocks.cpu.get(f"{loop}: {name}", [])) for name in names]
        for loop in ("trainer", "DeepSpeed", "bare")
    }
    for column, values in columns.items():
        values.append(sum(clocks.cpu[column]) - sum(values))
    for row, name in enumerate([*names, "other"]):
        ours, theirs, bare = (columns[loop][row] for loop in columns)
        print(
            f"{name:<34}{ours / steps * 1e3:>10.2f}{theirs / steps * 1e3:>12.2f}{bare / steps * 1e3:>10.2f}",
            end="",
        )
        print(f"{(ours - bare) / total:>+30.2%}")


def zero_stages(shards: Path, folder: Path, steps: int) -> None:
    """Two workers, four trainers, one step of each in turn."""
    clocks, runners, linear = Clocks(), {}, {}
    for zero in range(4):
        job = Job(
            training_config(ModelConfig(), 2, steps, zero), "joint", str(shards), str(folder / f"zero-{zero}")
        )
        runners[f"ZeRO {zero}"] = InMemory(job)
        # ZeRO-3 replaces it in the process; each is timed with its own
        linear[f"ZeRO {zero}"] = torch.nn.functional.linear
    losses: dict[str, list[float]] = defaultdict(list)
    for step in range(steps):
        for name, runner in runners.items():
            batches = itertools.cycle(runner.kept[step % KEPT :])
            torch.nn.functional.linear = linear[name]
            dist.barrier()
            since = clocks.now()
            metrics, _ = runner.train_step(step, batches)
            clocks.note(name, since)
            losses[name].append(metrics["loss/total"])
    cpu = {name: trainer.all_reduce_sum([sum(clocks.cpu[name][WARM:])])[0] for name in runners}
    if dist.get_rank():
        return
    difference = max(
        abs(a - b) for name in runners for a, b in zip(losses[name], losses["ZeRO 0"], strict=True)
    )
    print(f"\n2 workers, {steps} steps of 4 clips; losses differ by at most {difference:.1e}\n")
    print(f"{'':<10}{'wall ms':>10}{'CPU ms, both':>14}{'over ZeRO 0, wall':>20}{'CPU':>10}")
    for name in runners:
        wall = (
            median(a / b for a, b in zip(clocks.wall[name][WARM:], clocks.wall["ZeRO 0"][WARM:], strict=True))
            - 1
        )
        print(
            f"{name:<10}{median(clocks.wall[name][WARM:]) * 1e3:>10.1f}"
            f"{cpu[name] / (steps - WARM) * 1e3:>14.1f}",
            end="",
        )
        print(f"{wall:>+20.1%}{cpu[name] / cpu['ZeRO 0'] - 1:>+10.1%}")


def laptop(shards: Path, folder: Path, steps: int, device: str) -> None:
    preset = load_config("laptop").train
    config = training_config(preset.model, 1, steps, data=preset.data)
    overhead(shards, folder, steps, config, device)


PARTS: dict[str, tuple[int, Callable[[Path, Path, int], None]]] = {
    "tiny": (
        1,
        lambda shards, folder, steps: overhead(
            shards, folder, steps, training_config(ModelConfig(), 1, steps), "cpu"
        ),
    ),
    "laptop": (1, lambda shards, folder, steps: laptop(shards, folder, WARM + steps // 5, "cpu")),
    "zero": (2, lambda shards, folder, steps: zero_stages(shards, folder, WARM + steps // 8)),
    "save": (1, lambda shards, folder, steps: saves(shards, folder)),
    "gpu": (1, lambda shards, folder, steps: laptop(shards, folder, steps, "cuda")),
}


def work(part: str, rank: int, port: int, shards: Path, folder: Path, steps: int) -> None:
    """Body of a process: one worker of one part."""
    world = PARTS[part][0]
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if part == "gpu" else "gloo", rank=rank, world_size=world)
    PARTS[part][1](shards, folder / part, steps)
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=[*PARTS], default=[*PARTS])
    parser.add_argument(
        "--steps",
        type=int,
        default=60,
        help="steps of the trainer beside the bare loops; ZeRO takes an eighth",
    )
    parser.add_argument("--folder", type=Path, help="folder of the runs; default: a temporary folder")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shards = write_shards(
            Path(folder) / "shards", [make_sample(f"clip{i}", 40 + i, seed=i) for i in range(8)]
        )
        for part in options.only:
            if part == "gpu" and not torch.cuda.is_available():
                print("\nno GPU on this machine: part gpu skipped")
                continue
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            start = partial(context.Process, target=work, daemon=True)
            workers = [
                start(args=(part, r, port, shards, Path(folder), options.steps))
                for r in range(PARTS[part][0])
            ]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            if any(worker.exitcode for worker in workers):
                sys.exit(f"{part}: a worker failed")


if __name__ == "__main__":
    main()
