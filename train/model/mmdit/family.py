"""Video to audio as a model family (`train.model.family`). Imports no torch until a method needs it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import VIDEO_FPS
from uniavgen.train.model.memory import Activations
from uniavgen.train.model.mmdit.config import AUDIO, MMDiTConfig
from uniavgen.train.model.mmdit.costs import SoundShapes, activations, forward_flops, operations
from uniavgen.train.model.parts import count_parameters

if TYPE_CHECKING:
    from torch import Tensor, nn

    from uniavgen.train.data.config import DataConfig
    from uniavgen.train.model.mmdit.network import MMDiT
    from uniavgen.train.model.mmdit.objective import MMDiTObjective

PARTS = ("scale", "inputs", "pools", "time", "joint", "fused", "final")
"""Parts of the model: the first components of its weights' names. `scale` has no parameters."""

WEIGHTS_FILE = "mmdit.safetensors"


class MMDiTFamily:
    """The video-to-audio transformer of one configuration. Every stage has all parts."""

    def __init__(self, config: MMDiTConfig) -> None:
        self.config = config

    def parts(self, stage: str) -> tuple[str, ...]:
        return PARTS

    def build(self, parts: Collection[str] = PARTS) -> MMDiT:
        from uniavgen.train.model.mmdit.network import MMDiT

        missing = sorted(set(PARTS) - set(parts))
        if missing:
            raise UserError(f"the model needs all of its parts: {', '.join(missing)}", kind="bad-parts")
        return MMDiT(self.config)

    def load_pretrained(
        self, model: nn.Module, checkpoints: Mapping[str, str], skip: Sequence[str], loaded: Collection[str]
    ) -> list[str]:
        """A checkpoint in MMAudio's layout, named as that of `audio`."""
        from uniavgen.train.model.mmdit.checkpoint import load_released

        lines = []
        for branch, path in checkpoints.items():
            if branch != AUDIO:
                raise UserError(
                    f"pretrained.{branch} is named, but the model makes audio only",
                    where=path,
                    hint="name the checkpoint in pretrained.audio",
                    kind="pretrained-misplaced",
                )
            report = load_released(cast("MMDiT", model), path, skip=skip, loaded=loaded)
            lines.append(f"  {branch} from {path}: {report}")
        return lines

    def objective(self, config: Any, stage: object, *, checkpointing: bool = False) -> MMDiTObjective:
        """`config`: a `SoundObjectiveConfig`."""
        from uniavgen.train.model.mmdit.objective import MMDiTObjective

        return MMDiTObjective(config, self.config, checkpointing=checkpointing)

    def sample(
        self,
        model: nn.Module,
        batch: Any,
        task: object,
        config: Any,
        seed: int,
        *,
        objective: object = None,
        on_step: Callable[[int, int], None] | None = None,
    ) -> tuple[None, Tensor]:
        """Audio latents [B, C, N] of a `SoundBatch`; `config`: a `SoundSamplingConfig`.

        Of `batch.latent` only the shape is read.
        """
        from uniavgen.train.model.mmdit.objective import sample_latents

        latents = sample_latents(
            cast("MMDiT", model),
            batch.conditions,
            batch.latent.shape[2],
            config,
            samples=len(batch.keys),
            seed=seed,
            device=batch.latent.device,
            on_step=on_step,
        )
        return None, latents

    def parameter_counts(self) -> dict[str, int]:
        return dict(_count_parameters(self.config))

    def sample_shapes(self, data: DataConfig, stage: object, *, with_voice: bool = False) -> SoundShapes:
        """Lengths of all inputs for the duration of the data's window."""
        return SoundShapes(self.config.lengths(Fraction(data.frames, VIDEO_FPS)))

    def forward_flops(self, shapes: SoundShapes) -> float:
        return forward_flops(self.config, shapes)["total"]

    def operations(self, stage: object, *, half: bool, checkpointing: bool) -> int:
        return operations(self.config, half=half, checkpointing=checkpointing)

    def activations(self, shapes: SoundShapes, samples: int, item_bytes: int) -> Activations:
        return activations(self.config, shapes, samples, item_bytes)

    def mask_modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """The model has no masks."""
        return {}

    def zero_started(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The last convolution, and the modulation of each layer's audio."""
        names = {"final.conv.weight": "final"}
        names |= {f"joint.{i}.audio.modulation.weight": f"joint.{i}" for i in range(self.config.joint_layers)}
        names |= {f"fused.{i}.modulation.weight": f"fused.{i}" for i in range(self.config.audio_layers)}
        return {names[name]: p for name, p in model.named_parameters() if name in names and p.requires_grad}

    def export_tensors(self, model: nn.Module) -> dict[str, dict[str, Tensor]]:
        """One file in MMAudio's layout."""
        from uniavgen.train.model.mmdit.checkpoint import released_state

        return {WEIGHTS_FILE: released_state(cast("MMDiT", model))}

    def load_export(self, folder: Path) -> tuple[MMDiT, list[str]]:
        import torch

        from uniavgen.train.model.mmdit.checkpoint import load_released
        from uniavgen.train.model.mmdit.network import MMDiT

        with torch.device("meta"):
            model = MMDiT(self.config)
        load_released(model, folder / WEIGHTS_FILE)
        return model, []


@lru_cache(maxsize=8)
def _count_parameters(config: MMDiTConfig) -> tuple[tuple[str, int], ...]:
    import torch

    from uniavgen.train.model.mmdit.network import MMDiT

    with torch.device("meta"):
        counts = count_parameters(MMDiT(config))
    return tuple((part, count) for part, count in counts.items() if part != "total")
