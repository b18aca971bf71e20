"""Configuration of the objective's options that are ours and not the paper's, for small talking models.

Off by default; the preset `talk` uses them. Imports nothing heavy.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from uniavgen.train.data.config import DataConfig
from uniavgen.train.model.config import BranchConfig


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MelAugmentationConfig(_Frozen):
    """Changes of mels that are given to the model, in tasks that generate no audio. Ours, not the paper's.

    Each sample gets its own. 0 switches a change off.
    """

    gain: float = Field(
        default=0.0, ge=0, description="Standard deviation of an offset to all bands, in units of the mel."
    )
    shift: int = Field(
        default=0, ge=0, description="Most bands by which the spectrum is moved up or down: other voices."
    )
    noise: float = Field(
        default=0.0, ge=0, description="Standard deviation of noise on every number, in units of the mel."
    )


class OwnObjectiveConfig(_Frozen):
    """The part of `ObjectiveConfig` that is ours."""

    weight_bound: float | None = Field(
        default=None,
        gt=0,
        description="Largest weight of a squared error in x0: a velocity error is one in x0 divided by t, so "
        "the velocity loss weighs x0 by 1 / t^2. Each sample's loss is multiplied by min(1, bound * t^2). "
        "None: plain velocity losses (paper). Ours.",
    )
    mouth_weight: float = Field(
        default=1.0,
        ge=1,
        description="Weight of video latents inside the mouth's box in the mean over a frame; others weigh "
        "1. It needs data.mouth_mask. 1: an even mean (paper). Ours.",
    )
    mel_augmentation: MelAugmentationConfig = MelAugmentationConfig()


def check_own_options(objective: OwnObjectiveConfig, video: BranchConfig, data: DataConfig) -> None:
    """Raise ValueError if these settings do not fit each other."""
    if objective.mouth_weight != 1 and not data.mouth_mask:
        raise ValueError("objective.mouth_weight needs data.mouth_mask=true")
    if video.places is None:
        return
    if data.buckets:
        raise ValueError("model.video.places fits one window shape, data.buckets has several")
    _, height, width = data.latent_shape
    grid = (height // video.patch[0], width // video.patch[1])
    if video.places != grid:
        raise ValueError(f"model.video.places is {video.places}, the window has a grid of {grid} tokens")
