"""Data of a training step: latents of a batch, inputs of the two branches, outputs of the model."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import MELS_PER_FRAME, frames_for_latents, mels_for_frames

REFERENCE, CONDITION, NOISY = 0, 1, 2
"""Role of a token: clean reference, clean condition, or the noisy part that is denoised and scored."""


class Segment(NamedTuple):
    """Consecutive latent frames (video) or mel frames (audio) of one role.

    `start` is the clip position of the first one (latent index or mel index). A condition and a noisy part of
    the same instant have the same position; references precede the clip, at negative positions.
    """

    role: int
    start: int
    length: int


TokenLayout = tuple[Segment, ...]
"""Roles and positions of a branch's sequence `[ref | cond | noisy]`; shapes and index tables follow from it.
"""


def on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`. A copy to a GPU is made from pinned memory, so that the host does not wait."""
    if tensor.device.type == "cpu" and str(device).startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass
class LatentBatch:
    """A batch after the codecs, for any task. All clips have the same length and size.

    video [B, 48, T, h, w]; reference [B, 48, 1, h, w] (one frame of the same person); mel [B, 100, L];
    reference_mel [B, 100, Lr] (the same voice, if possible with other words); caption [B, Lc, Dc] with
    caption_mask bool [B, Lc]; speech_ids int64 [B, Ls] (text to be spoken, as byte ids) with speech_mask bool
    [B, Ls]; face [B, T, h/2, w/2] in 0..1, share of a video token inside the face oval; mouth [B, T, h, w] in
    0..1, share of a latent inside the mouth's box, or None. Video members are None in audio-only work.
    mel_lengths int64 [B], in audio-only work alone: mel frames that hold audio, the rest is padding, which is
    neither attended to nor scored; None: all of them.
    """

    keys: list[str]
    mel: Tensor
    reference_mel: Tensor
    speech_ids: Tensor
    speech_mask: Tensor
    video: Tensor | None = None
    reference: Tensor | None = None
    caption: Tensor | None = None
    caption_mask: Tensor | None = None
    face: Tensor | None = None
    mouth: Tensor | None = None
    mel_lengths: Tensor | None = None

    @property
    def tokens(self) -> tuple[int, int]:
        """Size of a clip as timesteps count it: video tokens (2 x 2 latent positions, 0 without video), mel
        frames."""
        return (0 if self.video is None else self.video[0, 0].numel() // 4), self.mel.shape[2]

    def to(self, device: torch.device | str) -> LatentBatch:
        """The same batch with every tensor on `device`."""
        members = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            n: on_device(value, device) for n, value in members.items() if hasattr(value, "device")
        }
        return replace(self, **moved)


def validate_batch(batch: LatentBatch, mels_per_frame: Fraction = MELS_PER_FRAME) -> None:
    """Raise UserError naming the first member that does not fit the others or holds NaN or infinity.

    Call it where batches are made: reading values on a GPU would wait for the GPU.
    """
    size = len(batch.keys)
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            if len(value) != size:
                raise UserError(
                    f"batch.{name} holds {len(value)} samples, batch.keys {size}", kind="bad-shape"
                )
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                bad = [batch.keys[i] for i in range(size) if not bool(torch.isfinite(value[i]).all())]
                raise UserError(
                    f"batch.{name} holds NaN or infinity", where=", ".join(bad), kind="not-finite"
                )
    if batch.mel_lengths is not None:
        if batch.video is not None:
            raise UserError("batch.mel_lengths is for audio without video", kind="bad-shape")
        if not bool(((batch.mel_lengths >= 1) & (batch.mel_lengths <= batch.mel.shape[2])).all()):
            raise UserError(
                f"batch.mel_lengths must be 1 to {batch.mel.shape[2]}, got {batch.mel_lengths.tolist()}",
                kind="bad-length",
            )
    if batch.video is None:
        return
    for name in ("reference", "caption", "caption_mask"):
        if getattr(batch, name) is None:
            raise UserError(f"batch.{name} is missing, which a batch with video needs", kind="bad-shape")
    expected = mels_for_frames(frames_for_latents(batch.video.shape[2]), mels_per_frame)
    if batch.mel.shape[2] != expected:
        raise UserError(
            f"batch.mel has {batch.mel.shape[2]} frames, {batch.video.shape[2]} video latents last "
            f"{expected}",
            kind="bad-length",
        )


@dataclass
class BranchInput:
    """The `[ref | cond | noisy]` sequence of one branch, of latent frames (video) or mel frames (audio).

    latent: video [B, 48, N, h, w], audio [B, 100, N]; layout: roles and positions of the N frames; timestep
    float [B]: diffusion time in 0..1 of the noisy part (1 is noise), clean parts are at 0; text: video
    [B, Lc, Dc] features, audio int64 [B, Ls] byte ids; text_mask bool [B, Lc | Ls], True where there is text;
    visible bool [B, N], False for frames that no frame attends to (padding); None: all are visible.
    """

    latent: Tensor
    layout: TokenLayout
    timestep: Tensor
    text: Tensor
    text_mask: Tensor
    visible: Tensor | None = None

    @property
    def role(self) -> Tensor:
        """Role of every frame: int64 [N] on the CPU."""
        return torch.cat([torch.full((s.length,), s.role, device="cpu") for s in self.layout])

    @property
    def position(self) -> Tensor:
        """Position of every frame in the clip: int64 [N] on the CPU, negative for references."""
        return torch.cat([torch.arange(s.start, s.start + s.length, device="cpu") for s in self.layout])


@dataclass
class DualOutput:
    """Velocities shaped like the inputs' latents (None for an absent branch).

    face_masks [layers, B, N, h/2 * w/2].
    """

    video: Tensor | None
    audio: Tensor | None
    face_masks: Tensor | None
