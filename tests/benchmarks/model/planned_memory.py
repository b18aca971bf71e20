"""Peak memory of real DeepSpeed steps against `uniavgen plan`, by ZeRO stage and dtype, on one CPU worker.

    python tests/benchmarks/model/planned_memory.py [--zero 0,1,2,3] [--dtype fp32,bf16]

A small model (35 M parameters) makes two full steps: forward, backward, optimizer. Measured from the
allocator's record. DeepSpeed's bucket is lowered to a million numbers, because its default is larger than the
model. With one worker, ZeRO shards nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from speed import peak_bytes

from uniavgen.train.batch import LatentBatch
from uniavgen.train.config import DeepSpeedConfig, StageConfig, TrainConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.engine import deepspeed_engine as engine_module
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.config import BranchConfig, ModelConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.objective import compute_losses
from uniavgen.train.planning import stage_memory
from uniavgen.train.tasks import Task

BUCKET, SAMPLES = 1_000_000, 2
MODEL = ModelConfig(
    video=BranchConfig(dim=512, layers=6, heads=8, ffn_dim=1536, in_channels=48, patch=(2, 2), text_dim=384),
    audio=BranchConfig(
        dim=256, layers=6, heads=4, ffn_dim=768, in_channels=100, text_dim=64, rope_axes="time"
    ),
)
STAGE = StageConfig(name="joint", batch=SAMPLES, tasks={Task.REFERENCE: 1})


def training_config(zero: int, dtype: str) -> TrainConfig:
    setting = DeepSpeedConfig.model_validate({"zero_stage": zero, "dtype": dtype})
    data = DataConfig(frames=33, reference_frames=6)
    return TrainConfig(model=MODEL, data=data, stages=[STAGE], deepspeed=setting, workers=1)


def random_batch(config: TrainConfig) -> LatentBatch:
    data, (latents, height, width) = config.data, config.data.latent_shape
    return LatentBatch(
        keys=[str(number) for number in range(SAMPLES)],
        mel=torch.randn(SAMPLES, 100, data.mels),
        reference_mel=torch.randn(SAMPLES, 100, data.reference_mels),
        speech_ids=torch.ones(SAMPLES, data.speech_bytes, dtype=torch.int64),
        speech_mask=torch.ones(SAMPLES, data.speech_bytes, dtype=torch.bool),
        video=torch.randn(SAMPLES, 48, latents, height, width),
        reference=torch.randn(SAMPLES, 48, 1, height, width),
        caption=torch.randn(SAMPLES, data.caption_tokens, 384),
        caption_mask=torch.ones(SAMPLES, data.caption_tokens, dtype=torch.bool),
        face=torch.rand(SAMPLES, latents, height // 2, width // 2),
    )


def steps(config: TrainConfig) -> None:
    """Build model and engine, and make two steps."""
    engine: Any = engine_module.create_engine(DualBranch(MODEL), config, STAGE, 1, "cpu")
    batch = random_batch(config)
    for step in range(2):
        draw = Draw(0, step, tuple(range(SAMPLES)))
        loss = compute_losses(engine, batch, Task.REFERENCE, draw, config.objective, MODEL.face, 0.1)["total"]
        engine.backward(loss)
        del loss
        engine.step()


def with_small_bucket(settings: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    def made(*arguments: Any) -> dict[str, Any]:
        content = settings(*arguments)
        content["zero_optimization"]["reduce_bucket_size"] = BUCKET
        return content

    return made


def join_group() -> None:
    """A group of one process."""
    for name, value in (
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29541"),
        ("RANK", "0"),
        ("WORLD_SIZE", "1"),
    ):
        os.environ.setdefault(name, value)
    os.environ.setdefault("LOCAL_RANK", "0")
    dist.init_process_group("gloo")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--zero", default="0,1,2,3")
    parser.add_argument("--dtype", default="fp32,bf16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    join_group()
    engine_module.deepspeed_settings = with_small_bucket(engine_module.deepspeed_settings)
    for dtype in options.dtype.split(","):
        for zero in map(int, options.zero.split(",")):
            config = training_config(zero, dtype)
            measured = peak_bytes(lambda config=config: steps(config), "cpu")
            planned = stage_memory(config, STAGE, 1, device="cpu", codecs=False, bucket=BUCKET).peak
            line = f"measured {measured / 1e6:7.1f} MB, planned {planned / 1e6:7.1f} MB"
            print(f"{dtype} ZeRO {zero}: {line}, ratio {planned / measured:.3f}", flush=True)
            gc.collect()


if __name__ == "__main__":
    main()
