"""Conversion between pixel frames (16 fps), video latents (1 + 4 + 4 + ... frames) and mel frames (24 kHz).

All code that relates video and audio in time uses these functions. Sources: 16 fps, 24 kHz and the temporal
stride of 4 are from the paper. n_fft 1024, hop 256 and 100 mels are those of Vocos; the paper does not give
them.
"""

from __future__ import annotations

import math
from fractions import Fraction

from uniavgen.shards.errors import UserError

VIDEO_FPS = 16
SAMPLE_RATE = 24_000
MEL_HOP = 256
LATENT_STRIDE = 4

MELS_PER_FRAME = Fraction(SAMPLE_RATE, MEL_HOP * VIDEO_FPS)
"""Mel frames per pixel frame, 375/64 = 5.859...: not an integer, so alignment uses index tables."""


def latents_for_frames(frames: int) -> int:
    """Number of video latents T = 1 + (F - 1) / 4 of F pixel frames (paper, section 3.1).

    Raises UserError if F is not 4n + 1.
    """
    if frames < 1 or (frames - 1) % LATENT_STRIDE:
        near = max(1, 1 + LATENT_STRIDE * round((frames - 1) / LATENT_STRIDE))
        raise UserError(f"frames must be 4n + 1, got {frames}", hint=f"use frames={near}", kind="bad-length")
    return 1 + (frames - 1) // LATENT_STRIDE


def frames_for_latents(latents: int) -> int:
    """Number of pixel frames F = 1 + 4 (T - 1) of T video latents; the inverse of `latents_for_frames`."""
    return 1 + LATENT_STRIDE * (latents - 1)


def latent_of_frame(frame: int) -> int:
    """Index of the latent of a pixel frame: latent 0 has frame 0, latent i has frames 4i-3 .. 4i."""
    return 0 if frame == 0 else 1 + (frame - 1) // LATENT_STRIDE


def mels_for_frames(frames: int, mels_per_frame: Fraction = MELS_PER_FRAME) -> int:
    """Number of mel frames that cover F pixel frames in time, rounded up (81 frames -> 475)."""
    return math.ceil(frames * mels_per_frame)


def frame_of_mel(mel: int, mels_per_frame: Fraction = MELS_PER_FRAME) -> int:
    """Index of the pixel frame during which mel frame j starts: floor(j / k), computed in exact rationals."""
    return int(mel / mels_per_frame)


def samples_for_frames(frames: int) -> int:
    """Number of audio samples with exactly the duration of F pixel frames (1500 per frame)."""
    return frames * SAMPLE_RATE // VIDEO_FPS
