"""Operations of a micro-step by formula, against those that PyTorch dispatches."""

from dataclasses import replace

import pytest
import torch
from dispatch import OperationCounter

from uniavgen.train.batch import LatentBatch
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.objective import compute_losses
from uniavgen.train.model.operations import operations
from uniavgen.train.model.uniavgen import ALL_PARTS, AUDIO_PARTS, UniAVGen
from uniavgen.train.tasks import Task


def batch() -> LatentBatch:
    """One clip of five latents."""
    return LatentBatch(
        keys=["clip"],
        mel=torch.randn(1, 100, 94),
        reference_mel=torch.randn(1, 100, 94),
        speech_ids=torch.ones(1, 8, dtype=torch.int64),
        speech_mask=torch.ones(1, 8, dtype=torch.bool),
        video=torch.randn(1, 48, 5, 4, 4),
        reference=torch.randn(1, 48, 1, 4, 4),
        caption=torch.randn(1, 8, 384),
        caption_mask=torch.ones(1, 8, dtype=torch.bool),
        face=torch.rand(1, 5, 2, 2),
    )


@pytest.mark.parametrize("layers", [3, 7])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_video", [False, True])
def test_formula_counts_what_is_dispatched(
    layers: int, checkpointing: bool, dtype: torch.dtype, has_video: bool
) -> None:
    tiny = ModelConfig.tiny()
    branches = {
        name: getattr(tiny, name).model_copy(update={"layers": layers}) for name in ("video", "audio")
    }
    config = tiny.model_copy(update=branches)
    model = UniAVGen(config).build(ALL_PARTS if has_video else AUDIO_PARTS).to(dtype)
    data = batch()
    if not has_video:
        data = replace(data, video=None, reference=None, caption=None, caption_mask=None, face=None)
    with OperationCounter() as counter:
        compute_losses(
            model,
            data,
            Task.JOINT,
            Draw(0, 0, (0,)),
            ObjectiveConfig(),
            config.face,
            0.1,
            checkpointing=checkpointing,
        )["total"].backward()
    half = dtype != torch.float32
    planned = operations(config, has_video=has_video, half=half, checkpointing=checkpointing)
    assert planned == pytest.approx(counter.count, rel=0.05)


def test_paper_audio_stage_launches_what_was_counted() -> None:
    """11,400 operations per micro-step, counted independently on the full-size model with checkpointing."""
    planned = operations(ModelConfig.paper(), has_video=False, half=True, checkpointing=True)
    assert planned == pytest.approx(11_400, rel=0.02)
