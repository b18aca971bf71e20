"""Face-aware modulation (paper, section 3.3): where in the picture sound and image are let to meet.

In: video tokens. Out: a mask M in (0, 1) per token, its loss against the known face, and lambda_m over training.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen.train.model.config import FaceConfig


class FaceMask(nn.Module):
    """M = sigmoid(Wm (gamma * LayerNorm(Hv) + beta) + bm)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.linear = nn.Linear(dim, 1)

    def forward(self, video: Tensor) -> Tensor:
        """Hv [B, N, S, D] -> M [B, N, S, 1]."""
        return torch.sigmoid(self.linear(self.norm(video)))


def lambda_at(config: FaceConfig, progress: float) -> float:
    """lambda_m after the share `progress` (0..1) of a stage: 0.1 falling linearly to 0 by default (paper)."""
    if config.mode in ("none", "unsupervised"):
        return 0.0
    if config.mode == "fixed":
        return config.lambda_start
    return config.lambda_start + (config.lambda_end - config.lambda_start) * min(max(progress, 0.0), 1.0)


def mask_loss(masks: Tensor, face: Tensor, scored: Tensor, config: FaceConfig) -> Tensor:
    """L_m = sum_l || M_l - M_gt ||^2, reduced as `config.reduction` says; 0 where nothing is scored.

    masks [layers, B, N, S]; face [B, N, S] the share of each token inside the face; scored bool [N], frames that count.
    """
    error = F.mse_loss(masks.float(), face.float().expand_as(masks), reduction="none") * scored[:, None]
    per_sample = error.sum(dim=(0, 2, 3))
    if config.reduction != "sum":
        per_sample = per_sample / (scored.sum() * face.shape[-1]).clamp(min=1)
    if config.reduction == "mean":
        per_sample = per_sample / masks.shape[0]
    return per_sample.mean()


@torch.no_grad()
def mask_iou(masks: Tensor, face: Tensor, scored: Tensor) -> Tensor:
    """Intersection over union of each layer's mask with the face, both cut at one half: [layers]; 1 where both are empty."""
    found, known = (masks > 0.5) & scored[:, None], (face > 0.5) & scored[:, None]
    both, either = (found & known).sum((1, 2, 3)), (found | known).sum((1, 2, 3))
    return torch.where(either > 0, both / either.clamp(min=1), torch.ones_like(either, dtype=torch.float32))
