"""CPU seconds of real DeepSpeed steps beside those that `uniavgen plan` counts, for small models.

    python tests/benchmarks/model/planned_time.py [--steps 12]

The machine is calibrated first: seconds of an operation from a step of a model so narrow that nothing else
counts, and the FLOP/s that a step of another model reaches. The plan then uses these numbers in place of a
GPU's. One thread; CPU time, so that the load of the machine counts little. Prints planned / measured for each
model and stage.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from statistics import median

import torch
from planned_memory import join_group, random_batch

from uniavgen.orchestration.planning.step_time import Machine, step_time
from uniavgen.train.config import DeepSpeedConfig, StageConfig, TrainConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.engine.deepspeed_engine import create_engine
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.config import BranchConfig, ModelConfig
from uniavgen.train.model.family import family_of
from uniavgen.train.model.objective import compute_losses
from uniavgen.train.planning import sample_flops, stage_operations
from uniavgen.train.tasks import Task

BANDWIDTH_GB_S = 10.0
"""Memory bandwidth of one core, for the optimizer."""


def small_model(width: int, layers: int) -> ModelConfig:
    video = BranchConfig(
        dim=width, layers=layers, heads=4, ffn_dim=3 * width, in_channels=48, patch=(2, 2), text_dim=384
    )
    audio = video.model_copy(
        update={
            "dim": width // 2,
            "ffn_dim": 3 * width // 2,
            "in_channels": 100,
            "patch": (1, 1),
            "text_dim": 64,
        }
    )
    return ModelConfig(video=video, audio=audio.model_copy(update={"rope_axes": "time"}))


CASES = {
    "audio stage, width 128, 8 layers": (small_model(256, 8), "audio", 17, 2),
    "joint stage, width 128, 4 layers": (small_model(128, 4), "joint", 17, 2),
    "joint stage, width 384, 6 layers": (small_model(384, 6), "joint", 33, 2),
}
"""Model, stage, frames of the window, and samples of a step."""


def case_of(model: ModelConfig, stage_name: str, frames: int, batch: int) -> tuple[TrainConfig, StageConfig]:
    stage = StageConfig(name=stage_name, batch=batch, tasks={Task.JOINT: 1})
    config = TrainConfig(
        model=model,
        data=DataConfig(frames=frames, reference_frames=6),
        stages=[stage],
        deepspeed=DeepSpeedConfig(zero_stage=0),
        workers=1,
    )
    return config, stage


def seconds_of(action: Callable[[], object], turns: int) -> float:
    """Median CPU seconds of an action, after a first one."""
    action()
    times = []
    for _ in range(turns):
        since = time.process_time()
        action()
        times.append(time.process_time() - since)
    return median(times)


def calibrated() -> Machine:
    """This machine's figures, from a narrow model and from one of another depth."""
    narrow, stage = case_of(small_model(48, 4), "joint", 17, 2)
    operation = measured(narrow, stage, 10) / stage_operations(narrow, stage)
    wide, stage = case_of(small_model(384, 3), "joint", 33, 2)
    rest = step_time(
        wide, stage, 1, Machine(1e9, 1.0, BANDWIDTH_GB_S, 1.0, operation, overlaps=False), cached=True
    )
    rate = stage.batch * sample_flops(wide, stage) / (measured(wide, stage, 10) - rest.total)
    return Machine(rate / 1e12, 1.0, BANDWIDTH_GB_S, rate / 1e12, operation, overlaps=False)


def measured(config: TrainConfig, stage: StageConfig, steps: int) -> float:
    """Median CPU seconds of a step of the stage's model under DeepSpeed."""
    family = family_of(config.model)
    model = family.build(family.parts(stage.name))
    engine = create_engine(model, config, stage, 1, "cpu")
    batch = random_batch(config)
    if not stage.has_video:
        batch = replace(batch, video=None, reference=None, caption=None, caption_mask=None, face=None)
    turn = iter(range(steps + 1))

    def step() -> None:
        draw = Draw(0, next(turn), tuple(range(stage.batch)))
        losses = compute_losses(engine, batch, Task.JOINT, draw, config.objective, config.model.face, 0.1)
        engine.backward(losses["total"])
        engine.step()

    return seconds_of(step, steps)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    steps = parser.parse_args().steps
    torch.set_num_threads(1)
    join_group()
    machine = calibrated()
    print(f"{machine.tflops * 1e3:.1f} GFLOP/s, {machine.operation_s * 1e6:.1f} us per operation")
    for name, (model, stage_name, frames, batch) in CASES.items():
        config, stage = case_of(model, stage_name, frames, batch)
        planned, real = step_time(config, stage, 1, machine, cached=True), measured(config, stage, steps)
        print(
            f"{name}: planned / measured {planned.total / real:.2f} "
            f"({planned.total:.3f} s, {real:.3f} s); {planned}"
        )


if __name__ == "__main__":
    main()
