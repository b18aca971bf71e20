"""Encoder of the text to be spoken: bytes -> ConvNeXt V2 blocks -> features for the audio branch's
cross-attention.

The paper names ConvNeXt V2 blocks (Woo et al., arXiv 2301.00808) and no sizes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen.train.model.config import SpeechTextConfig
from uniavgen.train.model.dit import time_features


class ResponseNorm(nn.Module):
    """Global response normalisation over time (ConvNeXt V2, eq. 1-3), initialised to the identity."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.empty(dim)), nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.gamma)
        nn.init.zeros_(self.beta)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, L, C], padding at zero."""
        # the epsilon inside the root keeps the gradient of an empty text finite
        energy = (x.float().square().sum(dim=1, keepdim=True) + 1e-6).sqrt()
        share = energy / (energy.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * share.to(x.dtype)) + self.beta + x


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time, then a widened MLP with response normalisation, with a residual."""

    def __init__(self, config: SpeechTextConfig) -> None:
        super().__init__()
        dim, wide = config.dim, config.dim * config.expansion
        self.conv = nn.Conv1d(dim, dim, config.kernel, padding=config.kernel // 2, groups=dim)
        self.norm = nn.LayerNorm(dim, 1e-6)
        self.widen, self.narrow = nn.Linear(dim, wide), nn.Linear(wide, dim)
        self.response = ResponseNorm(wide)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, L, C], mask [B, L, 1] of 0 and 1; padding is zero before and after."""
        y = self.conv(x.transpose(1, 2)).transpose(1, 2)
        y = F.gelu(self.widen(self.norm(y))) * mask
        return (x + self.narrow(self.response(y))) * mask


class SpeechText(nn.Module):
    """Byte ids int64 [B, L] and mask bool [B, L] -> features [B, L, dim], zero where the mask is False."""

    def __init__(self, config: SpeechTextConfig) -> None:
        super().__init__()
        self.dim = config.dim
        self.embedding = nn.Embedding(config.vocabulary, config.dim)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config) for _ in range(config.layers))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        position = torch.arange(ids.shape[1], device=ids.device) / 1000.0
        x = self.embedding(ids)
        keep = mask.unsqueeze(-1).to(x.dtype)
        x = (x + time_features(position, self.dim).to(x.dtype)) * keep
        for block in self.blocks:
            x = block(x, keep)
        return x
