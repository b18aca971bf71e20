"""A stage-2 step of the full-size model on one GPU: step time, peak memory, MFU by the model's FLOP formula.

    python tests/benchmarks/model/gpu_step.py [--preset paper] [--zero 2] [--offload cpu] [--steps 5]
                                              [--compile] [--json FILE]

bf16, activation checkpointing, ZeRO on one worker, random latents: the trainer's work between data and
checkpoint. Prints the numbers of `uniavgen plan` beside the measured ones. Without a GPU it exits at once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from uniavgen.orchestration.config import load_config
from uniavgen.orchestration.planning.cards import GPUS
from uniavgen.shards.timing import mels_for_frames
from uniavgen.train.batch import LatentBatch
from uniavgen.train.config import TrainConfig
from uniavgen.train.engine.deepspeed_engine import create_engine
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import compute_losses
from uniavgen.train.planning import sample_flops, stage_memory
from uniavgen.train.tasks import Task


def random_batch(config: TrainConfig, device: str) -> LatentBatch:
    """One clip of the configured window, with the shapes of the codecs."""
    data, (latents, height, width) = config.data, config.data.latent_shape

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device)

    return LatentBatch(
        keys=["random"],
        mel=normal(1, data.codecs.mel.mels, mels_for_frames(data.frames)),
        reference_mel=normal(1, data.codecs.mel.mels, data.reference_mels),
        speech_ids=torch.randint(1, 257, (1, data.speech_bytes), device=device),
        speech_mask=torch.ones(1, data.speech_bytes, dtype=torch.bool, device=device),
        video=normal(1, 48, latents, height, width),
        reference=normal(1, 48, 1, height, width),
        caption=normal(1, data.caption_tokens, data.codecs.caption_width),
        caption_mask=torch.ones(1, data.caption_tokens, dtype=torch.bool, device=device),
        face=torch.rand(1, latents, height // 2, width // 2, device=device),
    )


def measure(config: TrainConfig, steps: int, compiled: bool) -> dict[str, Any]:
    """Median step time and peak memory of a joint stage with one sample per step, after two warm-up steps."""
    for name, value in (
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29533"),
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
    ):
        os.environ.setdefault(name, value)
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group("nccl")
    stage = config.stage("joint").model_copy(update={"batch": 1})
    config = config.model_copy(update={"stages": [stage], "workers": 1})
    with torch.device("meta"):
        model = DualBranch(config.model)
    from uniavgen.train.model.pretrained import initialise

    initialise(model, 0)
    engine = create_engine(model, config, stage, 1, "cuda")
    if compiled:
        engine.module.run = torch.compile(engine.module.run)
    batch, face = random_batch(config, "cuda"), stage.face_config(config.model.face)
    step_seconds: list[float] = []
    torch.cuda.reset_peak_memory_stats()
    for step in range(steps + 2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        checkpointing = config.deepspeed.activation_checkpointing
        losses = compute_losses(
            engine,
            batch,
            Task.JOINT,
            Draw(0, step, (0,)),
            config.objective,
            face,
            0.1,
            checkpointing=checkpointing,
        )
        engine.backward(losses["total"])
        engine.step()
        torch.cuda.synchronize()
        if step > 1:
            step_seconds.append(time.perf_counter() - began)
    peak, card = torch.cuda.max_memory_allocated(), torch.cuda.get_device_name()
    flops, step_s = sample_flops(config, stage), statistics.median(step_seconds)
    planned = stage_memory(config, stage, 1, codecs=False).peak
    tflops = next((gpu.tflops for gpu in GPUS.values() if gpu.name in card.lower()), None)
    return {
        "card": card,
        "step_s": step_s,
        "loss": float(losses["total"]),
        "tflops_per_s": flops / step_s / 1e12,
        "mfu": flops / step_s / 1e12 / tflops if tflops else None,
        "peak_gib": peak / 2**30,
        "peak_planned_gib": planned / 2**30,
        "planned_over_measured": planned / peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--zero", type=int, default=2, choices=[0, 1, 2, 3])
    parser.add_argument("--offload", default="none", choices=["none", "cpu"])
    parser.add_argument("--no-checkpointing", action="store_true")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU on this machine: nothing measured")
        sys.exit(0)
    assignments = [
        f"train.deepspeed.zero_stage={options.zero}",
        f"train.deepspeed.offload={options.offload}",
        "train.deepspeed.dtype=bf16",
    ]
    assignments += [
        "train.deepspeed.micro_batch=1",
        f"train.deepspeed.activation_checkpointing={not options.no_checkpointing}",
    ]
    results = measure(
        load_config(options.preset, assignments=assignments).train, options.steps, options.compile
    )
    print(json.dumps(results, indent=1))
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
