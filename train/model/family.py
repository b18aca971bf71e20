"""The protocol between training and a model family, and the table of families. Imports no torch.

Everything outside `train.model` reaches a model through `family_of(config.model)`; parameter names and
branches are known inside only. A new family is one class with these methods and one row of `FAMILIES`. Only
the ablation of the paper's tables uses UniAVGen's own modules.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel

from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.mmdit.config import MMDiTConfig
from uniavgen.train.model.mmdit.family import MMDiTFamily
from uniavgen.train.model.uniavgen import UniAVGen

if TYPE_CHECKING:
    from torch import Tensor, nn

    from uniavgen.train.config import StageConfig
    from uniavgen.train.data.config import DataConfig
    from uniavgen.train.flow_matching import Draw
    from uniavgen.train.model.memory import Activations


class Objective(Protocol):
    """The loss of one stage."""

    def weights(self, progress: float) -> dict[str, float]:
        """Scheduled loss weights by name, after the share `progress` (0..1) of the stage.

        They are logged at every step.
        """
        ...

    def losses(
        self,
        model: Callable[..., Any],
        batch: Any,
        task: Any,
        draw: Draw,
        weights: Mapping[str, float],
        details: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Scalars of one micro-batch: `total`, whose gradient trains, and one loss for each modality or term.

        `batch` is of the family's own kind, `LatentBatch` for UniAVGen. Means over samples. A name in
        `weights` that is absent weighs 0. The same parameters are in the graph for every task. `details`
        receives what the means hide, such as the loss of each sample.
        """
        ...


class ModelFamily(Protocol):
    """A model of one configuration."""

    def __init__(self, config: Any) -> None: ...

    def parts(self, stage: str) -> tuple[str, ...]:
        """Parts that the model has in a stage: the first components of its parameters' names."""
        ...

    def build(self, parts: Collection[str]) -> nn.Module:
        """A model with these parts, initialised from torch's global random generator."""
        ...

    def load_pretrained(
        self, model: nn.Module, checkpoints: Mapping[str, str], skip: Sequence[str], loaded: Collection[str]
    ) -> list[str]:
        """Load published checkpoints (branch -> path) except weights under `skip`; returns report lines.

        `loaded`: names of weights that another stage gave. Raises UserError where a checkpoint does not fit.
        """
        ...

    def objective(self, config: Any, stage: StageConfig, *, checkpointing: bool) -> Objective:
        """The loss of a stage. `config`: the family's own settings, `ObjectiveConfig` for UniAVGen.

        `checkpointing`: recompute activations in the backward pass.
        """
        ...

    def sample(
        self,
        model: nn.Module,
        batch: Any,
        task: Any,
        config: Any,
        seed: int,
        *,
        objective: Any,
        on_step: Callable[[int, int], None] | None = None,
    ) -> tuple[Tensor | None, Tensor]:
        """Video latents (None without a video) and mels of the full clip, given parts included.

        `objective`: that of the training; its layout of references is used.
        """
        ...

    def parameter_counts(self) -> dict[str, int]:
        """Parameters by part; no weights are allocated."""
        ...

    def sample_shapes(self, data: DataConfig, stage: StageConfig, *, with_voice: bool) -> Any:
        """Sizes of the input for one sample; `with_voice`: the task uses a reference voice."""
        ...

    def forward_flops(self, shapes: Any) -> float:
        """FLOPs of one sample's forward pass."""
        ...

    def operations(self, stage: StageConfig, *, half: bool, checkpointing: bool) -> int:
        """Operations that the forward and backward pass of one micro-batch launch; `half`: bf16 or fp16."""
        ...

    def activations(self, shapes: Any, samples: int, item_bytes: int) -> Activations:
        """Bytes that the forward pass of a micro-batch keeps. `item_bytes`: size of a number in the dtype."""
        ...

    def mask_modules(self, model: nn.Module) -> dict[str, nn.Module]:
        """Modules whose output is a mask in 0..1, by name; a warning says when all masks vanish."""
        ...

    def zero_started(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Trained weights that start at zero and must leave it, by name; a warning says when they do not."""
        ...

    def export_tensors(self, model: nn.Module) -> dict[str, dict[str, Tensor]]:
        """The weights as files that other programs read: file name -> tensors."""
        ...

    def load_export(self, folder: Path) -> tuple[nn.Module, list[str]]:
        """The model from an export, on the CPU, and the names of weights that the export lacks."""
        ...


FAMILIES: dict[type[BaseModel], type[ModelFamily]] = {ModelConfig: UniAVGen, MMDiTConfig: MMDiTFamily}
"""Configuration class -> the family that it configures."""


def family_of(config: BaseModel) -> ModelFamily:
    """The model family of a configuration. Raises KeyError for a class that no row of `FAMILIES` names."""
    return FAMILIES[type(config)](config)
