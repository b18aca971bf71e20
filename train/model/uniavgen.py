"""UniAVGen's dual-branch model as a model family (`train.model.family`). Imports no torch until a method
needs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.flops import Shapes, forward_flops
from uniavgen.train.model.memory import Activations, activations
from uniavgen.train.model.operations import operations
from uniavgen.train.model.parts import count_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from uniavgen.train.batch import LatentBatch
    from uniavgen.train.config import ObjectiveConfig, SamplingConfig, StageConfig
    from uniavgen.train.data.config import DataConfig
    from uniavgen.train.model.dual_branch import DualBranch
    from uniavgen.train.model.objective import UniAVGenObjective
    from uniavgen.train.tasks import Task

AUDIO_PARTS = ("audio", "speech_text")
ALL_PARTS = ("video", *AUDIO_PARTS, "interactions")
"""Parts of the model: the first components of its parameters' names."""


class UniAVGen:
    """The dual-branch model of one configuration.

    Stage audio has the audio branch only, the other stages have all parts.
    """

    def __init__(self, config: ModelConfig) -> None:
        self.config = config

    def parts(self, stage: str) -> tuple[str, ...]:
        return AUDIO_PARTS if stage == "audio" else ALL_PARTS

    def build(self, parts: Collection[str] = ALL_PARTS) -> DualBranch:
        from uniavgen.train.model.dual_branch import DualBranch

        # all parts are initialised, so that the random weights of one do not depend on the others
        model = DualBranch(self.config)
        for part in dict(model.named_children()):
            if part not in parts:
                delattr(model, part)
        return model

    def load_pretrained(
        self, model: nn.Module, checkpoints: Mapping[str, str], skip: Sequence[str], loaded: Collection[str]
    ) -> list[str]:
        from uniavgen.train.model.pretrained import load_branches

        reports = load_branches(model, checkpoints, skip, loaded)
        return [f"  {branch} from {checkpoints[branch]}: {report}" for branch, report in reports.items()]

    def objective(
        self, config: ObjectiveConfig, stage: StageConfig, *, checkpointing: bool = False
    ) -> UniAVGenObjective:
        from uniavgen.train.model.objective import UniAVGenObjective

        return UniAVGenObjective(config, stage.face_config(self.config.face), checkpointing=checkpointing)

    def sample(
        self,
        model: nn.Module,
        batch: LatentBatch,
        task: Task,
        config: SamplingConfig,
        seed: int,
        *,
        objective: ObjectiveConfig,
        on_step: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        from uniavgen.train.sampling import sample

        return sample(
            model,
            batch,
            task,
            config,
            seed,
            gap=objective.reference_gap,
            shifts=objective.sampler_shifts(batch.tokens),
            on_step=on_step,
        )

    def parameter_counts(self) -> dict[str, int]:
        return dict(_count_parameters(self.config))

    def sample_shapes(self, data: DataConfig, stage: StageConfig, *, with_voice: bool) -> Shapes:
        latents, height, width = data.latent_shape
        reference_mels = data.reference_mels if with_voice else 0
        return Shapes(
            latents=latents + 1 if stage.has_video else 0,
            height=height,
            width=width,
            mels=data.mels + reference_mels,
            reference_latents=1 if stage.has_video else 0,
            reference_mels=reference_mels,
            caption_tokens=data.caption_tokens,
            speech_tokens=data.speech_bytes,
        )

    def forward_flops(self, shapes: Shapes) -> float:
        return forward_flops(self.config, shapes)["total"]

    def operations(self, stage: StageConfig, *, half: bool, checkpointing: bool) -> int:
        return operations(self.config, has_video=stage.has_video, half=half, checkpointing=checkpointing)

    def activations(self, shapes: Shapes, samples: int, item_bytes: int) -> Activations:
        return activations(self.config, shapes, samples, item_bytes)

    def mask_modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The face masks, by layer."""
        return {
            name: module
            for name, module in model.named_modules()
            if name.startswith("interactions.") and name.endswith(".face")
        }

    def zero_started(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Wo of each trained interaction, by layer and direction: `1.a2v`, `1.v2a`, ..."""
        return {
            ".".join(name.split(".")[1:3]): parameter
            for name, parameter in model.named_parameters()
            if name.startswith("interactions.") and name.endswith(".o.weight") and parameter.requires_grad
        }

    def export_tensors(self, model: nn.Module) -> dict[str, dict[str, Tensor]]:
        from uniavgen.train.model.pretrained import export_tensors

        return export_tensors(cast("DualBranch", model))

    def load_export(self, folder: Path) -> tuple[DualBranch, list[str]]:
        from uniavgen.train.model.pretrained import load_export

        return load_export(self.config, folder)


@lru_cache(maxsize=8)
def _count_parameters(config: ModelConfig) -> tuple[tuple[str, int], ...]:
    import torch

    from uniavgen.train.model.dual_branch import DualBranch

    with torch.device("meta"):
        counts = count_parameters(DualBranch(config))
    return tuple((part, count) for part, count in counts.items() if part != "total")
