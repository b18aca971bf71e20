"""Video latents relative to a still video of the reference frame.

A model of relative latents learns motion; the person comes back when the still's latents are added. Exact for
codecs whose blocks are independent (`dct`, `fitted`); for a causal codec, later latents of a still are taken
to equal its second one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uniavgen.shards.timing import LATENT_STRIDE
from uniavgen.train.codec.video import VideoCodec


def encode_still(codec: VideoCodec, reference: Tensor) -> Tensor:
    """Reference frame [B, 1, H, W, 3] -> latent [B, 48, 2, h, w] of a still video of it.

    The first is that of the frame alone, the second that of each later block.
    """
    return codec.encode(reference.expand(-1, 1 + LATENT_STRIDE, -1, -1, -1))


def subtract_still(video: Tensor, still: Tensor) -> Tensor:
    """Latents [B, 48, T, h, w] minus those of the still video."""
    return video - _like(still, video)


def add_still(video: Tensor, still: Tensor) -> Tensor:
    """The inverse of `subtract_still`."""
    return video + _like(still, video)


def _like(still: Tensor, video: Tensor) -> Tensor:
    later = still[:, :, 1:].expand(-1, -1, video.shape[2] - 1, -1, -1)
    return torch.cat([still[:, :, :1], later], dim=2).to(video)
