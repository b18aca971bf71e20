"""What flows through training: latents of a batch, the branches' inputs that a task makes of them, and the outputs."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import Tensor

REFERENCE, CONDITION, NOISY = 0, 1, 2
"""Role of a token: clean reference, clean condition, or the noisy part that is denoised and scored."""


class Segment(NamedTuple):
    """A run of latent frames (video) or mel frames (audio) that share a role and follow one another in time.

    `start` is the first one's place on the clip's own clock (latent index or mel index), so that a condition and the
    noisy part of the same instant share it; references lie before the clip, at negative places.
    """

    role: int
    start: int
    length: int


Layout = tuple[Segment, ...]
"""A branch's sequence, `[ref | cond | noisy]`, as plain numbers: shapes and index tables follow from it on the host."""


def on_device(tensor: Tensor, device: torch.device | str) -> Tensor:
    """The tensor on `device`. A copy to a card is made from pinned memory, so that the host does not wait for it."""
    if tensor.device.type == "cpu" and str(device).startswith("cuda"):
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass
class LatentBatch:
    """A batch after the codecs and before a task is chosen. All clips of a batch have the same length and size.

    video [B, 48, T, h, w]; reference [B, 48, 1, h, w] (one frame of the same person); mel [B, 100, L];
    reference_mel [B, 100, Lr] (the same voice, other words where there are any); caption [B, Lc, Dc] with
    caption_mask bool [B, Lc]; speech_ids int64 [B, Ls] (text to be spoken, as byte ids) with speech_mask bool [B, Ls];
    face [B, T, h/2, w/2] in 0..1, share of a video token inside the face oval. Video members are None in audio-only work.
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

    def to(self, device: torch.device | str) -> LatentBatch:
        """The same batch with every tensor on `device`."""
        members = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            n: on_device(value, device) for n, value in members.items() if hasattr(value, "device")
        }
        return replace(self, **moved)


@dataclass
class BranchInput:
    """One branch's `[ref | cond | noisy]` sequence; frames are latent frames (video) or mel frames (audio).

    latent: video [B, 48, N, h, w], audio [B, 100, N]; layout: the N frames' roles and clock places; timestep float [B]:
    diffusion time in 0..1 of the noisy part (1 is noise), clean parts are at 0; text: video [B, Lc, Dc] features,
    audio int64 [B, Ls] byte ids; text_mask bool [B, Lc | Ls], True where there is text.
    """

    latent: Tensor
    layout: Layout
    timestep: Tensor
    text: Tensor
    text_mask: Tensor

    @property
    def role(self) -> Tensor:
        """Role of every frame: int64 [N] on the CPU."""
        import torch

        return torch.cat([torch.full((s.length,), s.role, device="cpu") for s in self.layout])

    @property
    def clock(self) -> Tensor:
        """Place of every frame on the clip's clock: int64 [N] on the CPU, negative for references."""
        import torch

        return torch.cat([torch.arange(s.start, s.start + s.length, device="cpu") for s in self.layout])


@dataclass
class DualOutput:
    """Velocities shaped like the inputs' latents (None for an absent branch); face_masks [layers, B, N, h/2 * w/2]."""

    video: Tensor | None
    audio: Tensor | None
    face_masks: Tensor | None
