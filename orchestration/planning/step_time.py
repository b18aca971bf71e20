"""Seconds of an optimizer step by what it waits for, and seconds of a stage beside its steps. Nothing is run.

A worker computes while its host launches operations and a thread loads the next batches: the slowest of the
three decides. Codecs on line use the same device, so their time is added. Not counted: communication between
workers.
"""

from __future__ import annotations

from dataclasses import dataclass

from uniavgen.orchestration.planning.cards import OPERATION_S, Gpu
from uniavgen.shards.timing import mels_for_frames
from uniavgen.train.codec.registry import CAPTION_ENCODERS, VIDEO_CODECS
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.planning import (
    planned_window,
    sample_flops,
    stage_operations,
    stage_parameters,
)

CODEC_SHARE = 0.5
"""Share of the fp32 peak that codecs reach on line; they compute in fp32. Heuristic."""
DECODE_S_PER_PIXEL = 9e-9
"""CPU seconds to decode one pixel of H.264 in one thread, as in the loader. Measured at 480 x 832."""
AUDIO_S_PER_S = 1e-3
"""CPU seconds to decode and transform one second of audio. Heuristic."""
OPTIMIZER_BYTES = 30
"""Bytes per parameter of AdamW: reads masters, moments, gradient, writes masters, moments, weights."""
STATE_BYTES, WEIGHT_BYTES = 12, 4
"""Bytes of a checkpoint per trained parameter (fp32 masters and two moments), and of a weights file."""
DISK_BYTES_S = 1e9
"""Bytes per second that all workers together write to and read from the run folder. Heuristic."""
START_S = 90.0
"""Seconds until the workers of a stage run: Ray, processes, libraries, communication. Heuristic."""


@dataclass(frozen=True)
class Machine:
    """A device and its host. `overlaps`: the host runs ahead of the device, as with CUDA."""

    tflops: float
    mfu: float
    bandwidth_gb_s: float
    codec_tflops: float
    operation_s: float = OPERATION_S
    overlaps: bool = True


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step by part; `loader` runs beside the others. `total`: the whole step."""

    compute: float
    launches: float
    codecs: float
    optimizer: float
    loader: float
    total: float

    @property
    def waits_for(self) -> str:
        """The part that decides the time of the step."""
        device = max(self.compute, self.launches) + self.codecs + self.optimizer
        if self.loader > device:
            return "loader"
        if self.codecs > max(self.compute, self.launches):
            return "codecs"
        return "launches" if self.launches > self.compute else "compute"


def gpu_machine(gpu: Gpu, mfu: float) -> Machine:
    """A GPU of which training reaches the share `mfu` of the peak."""
    return Machine(gpu.tflops, mfu, gpu.bandwidth_gb_s, CODEC_SHARE * gpu.fp32_tflops)


def step_time(
    config: TrainConfig, stage: StageConfig, workers: int, machine: Machine, *, cached: bool
) -> StepTime:
    """Time of a step of `stage` on each of `workers`. `cached`: latents are read, no codec runs."""
    share = stage.batch / workers
    passes = share / config.micro_batch(stage, workers)
    compute = share * sample_flops(config, stage) / (machine.tflops * 1e12 * machine.mfu)
    launches = passes * stage_operations(config, stage) * machine.operation_s
    trained = stage_parameters(config, stage)[1]
    sharded = workers if config.deepspeed.zero_stage else 1
    optimizer = OPTIMIZER_BYTES * trained / sharded / (machine.bandwidth_gb_s * 1e9)
    codecs = 0.0 if cached else share * codec_flops(config, stage) / (machine.codec_tflops * 1e12)
    loader = share * (0.0 if cached else load_seconds(config, stage))
    device = (max(compute, launches) if machine.overlaps else compute + launches) + codecs + optimizer
    return StepTime(compute, launches, codecs, optimizer, loader, max(device, loader))


def codec_flops(config: TrainConfig, stage: StageConfig) -> float:
    """FLOPs to encode one sample on line: the window, the reference frame, the caption."""
    if not stage.has_video:
        return 0.0
    data = planned_window(config, stage)
    video = VIDEO_CODECS[data.codecs.video].flops * (data.frames + 1) * data.height * data.width
    return video + CAPTION_ENCODERS[data.codecs.caption].flops * data.caption_tokens


def load_seconds(config: TrainConfig, stage: StageConfig) -> float:
    """CPU seconds to load one sample: its window and its reference voice."""
    data = planned_window(config, stage)
    seconds = AUDIO_S_PER_S * (data.mels + data.reference_mels) / mels_for_frames(16)
    if not stage.has_video:
        return seconds
    return seconds + DECODE_S_PER_PIXEL * (data.frames + 1) * data.height * data.width


def checkpoint_bytes(config: TrainConfig, stage: StageConfig) -> float:
    """Bytes of one checkpoint: weights, optimizer states, moving average."""
    held, trained = stage_parameters(config, stage)
    return held * WEIGHT_BYTES + trained * (STATE_BYTES + (WEIGHT_BYTES if config.ema else 0))


def saving_seconds(config: TrainConfig, stage: StageConfig) -> float:
    """Seconds of a stage in which training waits for its checkpoints."""
    saves = -(-stage.steps // config.checkpoint.every)
    return saves * checkpoint_bytes(config, stage) / DISK_BYTES_S


def starting_seconds(config: TrainConfig, stage: StageConfig, *, cached: bool) -> float:
    """Seconds before the first step: processes, and reading the weights of the model and of its codecs."""
    weights = float(stage_parameters(config, stage)[0] * WEIGHT_BYTES)
    if stage.has_video and not cached:
        weights += config.data.codecs.parameters * WEIGHT_BYTES
    return START_S + weights / DISK_BYTES_S
