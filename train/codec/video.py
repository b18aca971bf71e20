"""Video codecs: pixel frames to latents of Wan2.2's shape, and back.

    frames [B, F, H, W, 3]  uint8, or float in -1..1; F = 4n + 1, H and W multiples of 16
    latent [B, 48, T, H/16, W/16]  float32 of about unit variance; T = 1 + (F - 1) / 4

`WanCodec` is the paper's VAE. `DctCodec` replaces it: a fixed linear transform without weights.
`train.codec.fitted` replaces it for one corpus.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import LATENT_STRIDE, frames_for_latents, latents_for_frames
from uniavgen.train.codec.config import VIDEO_CHANNELS, VIDEO_STRIDE
from uniavgen.train.codec.digests import weights_digest


class VideoCodec(Protocol):
    """The methods of a video codec that training and sampling use."""

    name: str
    description: str
    """One sentence for reports and model cards. A stand-in says that it is one."""

    @property
    def digest(self) -> str:
        """Changes if the latents would; part of the key of cached latents."""
        ...

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, F, H, W, 3] (uint8, or float in -1..1) -> latent [B, 48, T, H/16, W/16]."""
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Latent [B, 48, T, h, w] -> frames float32 [B, F, 16h, 16w, 3] in -1..1."""
        ...


def to_unit(frames: Tensor) -> Tensor:
    """Frames as float32 in -1..1; float frames must be in that range already."""
    return frames.float() / 127.5 - 1 if frames.dtype == torch.uint8 else frames.float()


def to_pixels(frames: Tensor) -> Tensor:
    """Frames in -1..1 as uint8."""
    return ((frames.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def check_frames(frames: Tensor) -> None:
    """Raise UserError naming the side that is no multiple of the codec's stride."""
    latents_for_frames(frames.shape[1])
    for side, length in zip(("height", "width"), frames.shape[2:4], strict=True):
        if length % VIDEO_STRIDE or not length:
            raise UserError(
                f"{side} is {length} px, codecs take multiples of {VIDEO_STRIDE}",
                hint=f"change train.data.{side}",
                kind="bad-size",
            )


# Standard deviations of the DCT coefficients of talking-head clips in -1..1, measured on eight real clips at
# 128, 256 and 480 px: the three colour means of a 4x16x16 block, and AC_STD / cost ** AC_POWER for all
# others. A block of one frame has half of each, as it sums a quarter of the pixels. Divided by them, latents
# have about unit variance.
DC_STD = (22.0, 10.7, 3.5)
AC_STD, AC_POWER = 5.5, 1.1
# Cost of a coefficient: half-cycles in height and width count 1, in time 3, in colour 2.5. With these weights
# the measured energy falls about equally along each axis.
TIME_COST, COLOUR_COST = 3.0, 2.5


def dct_matrix(n: int) -> Tensor:
    """Orthonormal DCT-II, float64 [n, n]; row k is the cosine of k half-cycles."""
    k = torch.arange(n, dtype=torch.float64)[:, None]
    i = torch.arange(n, dtype=torch.float64)[None]
    rows = torch.cos(math.pi * (i + 0.5) * k / n) * math.sqrt(2 / n)
    rows[0] /= math.sqrt(2)
    return rows


def lowest_coefficients(frames: int) -> list[tuple[float, tuple[int, int, int, int]]]:
    """The 48 cheapest (cost, (time, height, width, colour)) of a frames x 16 x 16 x 3 block, in order."""
    n = VIDEO_STRIDE
    indices = [(t, y, x, c) for t in range(frames) for y in range(n) for x in range(n) for c in range(3)]
    # among equal costs, motion and colour first: a face lacks them soonest
    ranked = sorted(
        (TIME_COST * t + y + x + COLOUR_COST * c, -t, -c, abs(y - x), y, x) for t, y, x, c in indices
    )
    return [(cost, (-t, y, x, -c)) for cost, t, c, _, y, x in ranked[:VIDEO_CHANNELS]]


def block_basis(frames: int) -> tuple[Tensor, Tensor]:
    """Orthonormal basis float32 [48, frames * 16 * 16 * 3] and the expected deviation [48] of each row."""
    time, space, colour = dct_matrix(frames), dct_matrix(VIDEO_STRIDE), dct_matrix(3)
    rows, spread = [], []
    for cost, (t, y, x, c) in lowest_coefficients(frames):
        rows.append(torch.einsum("a,b,d,e->abde", time[t], space[y], space[x], colour[c]).flatten())
        spread.append(DC_STD[c] if cost == COLOUR_COST * c else AC_STD / cost**AC_POWER)
    return torch.stack(rows).float(), torch.tensor(spread) * math.sqrt(frames / LATENT_STRIDE)


class DctCodec:
    """Lowest 48 DCT coefficients of each 4 x 16 x 16 block; the first frame is a block, as in Wan's VAE."""

    name = "dct"
    description = (
        "fixed space-time cosine transform without weights, blurry by design: a stand-in for the Wan2.2 VAE"
    )

    def __init__(self, device: str = "cpu") -> None:
        self.first = tuple(x.to(device) for x in block_basis(1))
        self.rest = tuple(x.to(device) for x in block_basis(LATENT_STRIDE))
        constants = [self.name, DC_STD, AC_STD, AC_POWER, TIME_COST, COLOUR_COST]
        self.digest = hashlib.sha256(json.dumps(constants).encode()).hexdigest()[:16]

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See VideoCodec. Raises UserError if F is not 4n + 1 or a side is no multiple of 16."""
        check_frames(frames)
        pixels = to_unit(frames.to(self.first[0].device))
        parts = [_project(pixels[:, :1], 1, self.first)]
        if pixels.shape[1] > 1:
            parts.append(_project(pixels[:, 1:], LATENT_STRIDE, self.rest))
        return torch.cat(parts, dim=2)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See VideoCodec."""
        latent = latent.to(self.first[0].device).float()
        parts = [_rebuild(latent[:, :, :1], 1, self.first)]
        if latent.shape[2] > 1:
            parts.append(_rebuild(latent[:, :, 1:], LATENT_STRIDE, self.rest))
        return torch.cat(parts, dim=1).clamp(-1, 1)


def _project(pixels: Tensor, depth: int, block: tuple[Tensor, ...]) -> Tensor:
    """Frames [B, n * depth, H, W, 3] -> latent [B, 48, n, H/16, W/16]."""
    basis, spread = block
    b, f, height, width, _ = pixels.shape
    h, w = height // VIDEO_STRIDE, width // VIDEO_STRIDE
    blocks = pixels.reshape(b, f // depth, depth, h, VIDEO_STRIDE, w, VIDEO_STRIDE, 3).permute(
        0, 1, 3, 5, 2, 4, 6, 7
    )
    return (blocks.flatten(4) @ basis.T / spread).permute(0, 4, 1, 2, 3).contiguous()


def _rebuild(latent: Tensor, depth: int, block: tuple[Tensor, ...]) -> Tensor:
    """Latent [B, 48, n, h, w] -> frames [B, n * depth, 16h, 16w, 3]: the transpose of `_project`."""
    basis, spread = block
    b, _, n, h, w = latent.shape
    blocks = (latent.permute(0, 2, 3, 4, 1) * spread) @ basis
    blocks = blocks.reshape(b, n, h, w, depth, VIDEO_STRIDE, VIDEO_STRIDE, 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
    return blocks.reshape(b, n * depth, h * VIDEO_STRIDE, w * VIDEO_STRIDE, 3)


class WanCodec:
    """Wan2.2's VAE (diffusers' AutoencoderKLWan), normalised by the statistics of its configuration."""

    name = "wan2.2"
    description = "the Wan2.2 VAE, as in the paper"

    def __init__(self, vae: Any) -> None:
        """`vae` is an AutoencoderKLWan of z 48 and strides (4, 16, 16)."""
        config = vae.config
        strides = (config.z_dim, config.scale_factor_temporal, config.scale_factor_spatial)
        if strides != (VIDEO_CHANNELS, LATENT_STRIDE, VIDEO_STRIDE):
            raise UserError(
                f"the VAE has z and strides {strides}",
                hint="name the Wan2.2 VAE (48, 4, 16), not the Wan2.1 one",
                kind="wrong-weights",
            )
        self.vae = vae.eval().requires_grad_(False)
        self.mean = torch.tensor(config.latents_mean).view(1, -1, 1, 1, 1)
        self.std = torch.tensor(config.latents_std).view(1, -1, 1, 1, 1)

    @cached_property
    def digest(self) -> str:
        """See VideoCodec: digest of the weights and their configuration."""
        return weights_digest(self.vae, dict(self.vae.config))

    @staticmethod
    def load(folder: str, device: str = "cpu") -> WanCodec:
        """Load a folder in diffusers layout, or its subfolder `vae`. Raises UserError if it is missing."""
        from diffusers import AutoencoderKLWan

        path = Path(folder) / "vae" if (Path(folder) / "vae").is_dir() else Path(folder)
        if not folder or not (path / "config.json").is_file():
            raise UserError(
                "no Wan2.2 VAE here" if folder else "codec wan2.2 needs weights",
                where=folder or "train.data.codecs.video_weights",
                hint="download Wan-AI/Wan2.2-TI2V-5B-Diffusers (folder vae) and name it, "
                "or use train.data.codecs.video=dct",
                kind="missing-weights",
            )
        vae = AutoencoderKLWan.from_pretrained(path, torch_dtype=torch.float32).to(device)
        return WanCodec(vae)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """See VideoCodec. Takes the mode of the posterior, so that equal frames give equal latents."""
        check_frames(frames)
        pixels = to_unit(frames.to(self.vae.device)).permute(0, 4, 1, 2, 3)
        latent = self.vae.encode(pixels).latent_dist.mode()
        return (latent - self.mean.to(latent)) / self.std.to(latent)

    @torch.no_grad()
    def decode(self, latent: Tensor) -> Tensor:
        """See VideoCodec."""
        latent = latent.to(self.vae.device).float()
        pixels = self.vae.decode(latent * self.std.to(latent) + self.mean.to(latent)).sample
        assert pixels.shape[2] == frames_for_latents(latent.shape[2])
        return pixels.permute(0, 2, 3, 4, 1).clamp(-1, 1)
