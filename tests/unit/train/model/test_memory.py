"""Memory and FLOP formulas against measurement on three small models: within 15 % and 5 %.

Memory is read from PyTorch's allocator through its profiler, which records every allocation in order: the
peak is exact and does not depend on the load of the machine.
"""

import pytest
import torch
from peak_memory import peak_bytes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from uniavgen.shards.timing import frames_for_latents, mels_for_frames
from uniavgen.train.batch import LatentBatch
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.flow_matching import Draw
from uniavgen.train.model.config import BranchConfig, InteractionConfig, ModelConfig, SpeechTextConfig
from uniavgen.train.model.dual_branch import DualBranch
from uniavgen.train.model.flops import Shapes, forward_flops
from uniavgen.train.model.memory import activations
from uniavgen.train.model.objective import compute_losses
from uniavgen.train.tasks import Task

VOICE, CAPTION, SPEECH = 33, 16, 32


def test_allocator_record_gives_peak() -> None:
    def work() -> None:
        first = torch.zeros(1000, 250)
        second = first + 1
        del first, second
        torch.zeros(1000, 100)

    assert peak_bytes(work) == pytest.approx(2_000_000, abs=100)


def model_of(
    video: int, audio: int, layers: int, widening: int = 4, interaction: InteractionConfig | None = None
) -> ModelConfig:
    return ModelConfig(
        video=BranchConfig(
            dim=video,
            layers=layers,
            heads=video // 64,
            ffn_dim=widening * video,
            in_channels=48,
            patch=(2, 2),
            text_dim=64,
        ),
        audio=BranchConfig(
            dim=audio,
            layers=layers,
            heads=audio // 64,
            ffn_dim=widening * audio,
            in_channels=100,
            text_dim=64,
            rope_axes="time",
        ),
        speech_text=SpeechTextConfig(),
        interaction=interaction or InteractionConfig(),
    )


CASES = {
    "activations outweigh weights": (
        model_of(256, 128, 4, interaction=InteractionConfig(positions="time")),
        2,
        5,
        16,
    ),
    "weights outweigh activations": (model_of(384, 256, 6, 3), 1, 9, 8),
    "all see all, every layer": (
        model_of(
            128, 64, 3, interaction=InteractionConfig(a2v="sgi", v2a="sgi", layers="all", positions="time")
        ),
        4,
        5,
        8,
    ),
}


def batch_of(config: ModelConfig, size: int, latents: int, side: int) -> LatentBatch:
    normal, mels = torch.randn, mels_for_frames(frames_for_latents(latents))
    return LatentBatch(
        keys=[str(number) for number in range(size)],
        mel=normal(size, 100, mels),
        reference_mel=normal(size, 100, VOICE),
        speech_ids=torch.randint(1, 257, (size, SPEECH)),
        speech_mask=torch.ones(size, SPEECH, dtype=torch.bool),
        video=normal(size, 48, latents, side, side),
        reference=normal(size, 48, 1, side, side),
        caption=normal(size, CAPTION, config.video.text_dim),
        caption_mask=torch.ones(size, CAPTION, dtype=torch.bool),
        face=torch.rand(size, latents, side // 2, side // 2),
    )


def shapes_of(batch: LatentBatch) -> Shapes:
    """The shapes of a task with a reference voice."""
    assert batch.video is not None
    _, _, latents, height, width = batch.video.shape
    return Shapes(
        latents=latents + 1,
        height=height,
        width=width,
        mels=batch.mel.shape[2] + VOICE,
        reference_latents=1,
        reference_mels=VOICE,
        caption_tokens=CAPTION,
        speech_tokens=SPEECH,
    )


def losses(model: DualBranch, batch: LatentBatch, checkpointing: bool = False) -> torch.Tensor:
    draw = Draw(0, 0, tuple(range(len(batch.keys))))
    face = model.config.face
    return compute_losses(
        model, batch, Task.REFERENCE, draw, ObjectiveConfig(), face, 0.1, checkpointing=checkpointing
    )["total"]


@pytest.mark.parametrize(("dtype", "checkpointing"), [(torch.float32, False), (torch.bfloat16, True)])
@pytest.mark.parametrize("case", CASES)
def test_peak_memory_formula_is_within_15_percent(case: str, dtype: torch.dtype, checkpointing: bool) -> None:
    config, size, latents, side = CASES[case]
    model, batch = DualBranch(config).to(dtype), batch_of(config, size, latents, side)
    losses(model, batch)  # tables are made and kept
    measured = peak_bytes(lambda: losses(model, batch, checkpointing).backward())
    gradients = sum(parameter.nbytes for parameter in model.parameters())
    kept = activations(config, shapes_of(batch), size, dtype.itemsize)
    assert kept.peak(checkpointing, gradients) == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("case", CASES)
def test_flop_formula_is_within_5_percent(case: str) -> None:
    config, size, latents, side = CASES[case]
    model, batch = DualBranch(config), batch_of(config, size, latents, side)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        losses(model, batch)
    assert size * forward_flops(config, shapes_of(batch))["total"] == pytest.approx(
        counter.get_total_flops(), rel=0.05
    )


def test_checkpointing_keeps_less_and_more_samples_keep_more() -> None:
    config, size, latents, side = CASES["activations outweigh weights"]
    shapes = shapes_of(batch_of(config, size, latents, side))
    one, two = (activations(config, shapes, samples, 4) for samples in (1, 2))
    assert one.peak(True) < one.peak(False) == pytest.approx(two.peak(False) / 2)
    alone = activations(config, shapes.model_copy(update={"latents": 0, "reference_latents": 0}), 1, 4)
    assert alone.components["video"] == alone.components["interactions"] == 0 < alone.components["audio"]
