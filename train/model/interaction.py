"""The asymmetric cross-modal interaction (paper, section 3.2), vectorised over frames, tokens and samples.

In: video tokens Hv [B, N, S, Dv], audio tokens Ha [B, L, Da] and the `Alignment` of their clocks. Out: both streams with
their noisy part updated; conditions serve as keys and values and come out unchanged, references take no part. The
equations, with H normalised first if `pre_norm` says so:

    A2V   C_i = [Ha_(i-w) .. Ha_(i+w)]                  Hv_i += M * Wo (Hv_i + Attn(Wq Hv_i, Wk C_i, Wv C_i))
    V2A   C_j = (1 - a) M Hv_i + a M Hv_(i+1)           Ha_j += Wo (Ha_j + Attn(Wq Ha_j, Wk C_j, Wv C_j))

With `positions: time` (ours: the paper writes none) queries and keys are turned by their own clocks' times. In V2A a latent's
keys are turned by the latent's time and then interpolated, so that a token also knows where in its latent it lies.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniavgen.train.model.alignment import Alignment, AudioWindows, LatentPairs, Queries, Times
from uniavgen.train.model.config import InteractionConfig, ModelConfig
from uniavgen.train.model.dit import Rope, ZeroLinear, normalise, rotate


class CrossModal(nn.Module):
    """Wq, Wk, Wv and the zero-initialised Wo of one direction; width and heads are those of the branch that asks."""

    def __init__(self, asking: int, answering: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(asking, asking)
        self.k, self.v = nn.Linear(answering, asking), nn.Linear(answering, asking)
        self.o = ZeroLinear(asking, asking)

    def attend_windows(self, video: Tensor, audio: Tensor, table: AudioWindows) -> Tensor:
        """Wo (Hv + Attn): video [B, T, S, Dv] asks audio [B, L, Da], each frame its own window of tokens."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)) for part in (self.q(video), self.k(audio), self.v(audio))
        )
        q, k = turned(q, k, table.times)
        if table.index is None:
            return self.o(video + attend(q.flatten(1, 2), k, v).reshape_as(video))
        return self.o(video + recomputed(lambda q, k, v: over_windows(q, k, v, table), q, k, v))

    def attend_latents(self, audio: Tensor, video: Tensor, table: LatentPairs) -> Tensor:
        """Wo (Ha + Attn): audio [B, n, Da] asks video [B, T, S, Dv], each token its own pair of latents.

        Keys and values are projected (and keys turned) once per latent: the projections are affine and the weights of a pair
        sum to 1, so interpolating after them is exact.
        """
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)) for part in (self.q(audio), self.k(video), self.v(video))
        )
        q, k = turned(q, k, table.times)
        if table.frames is None:
            return self.o(audio + attend(q, k.flatten(1, 2), v.flatten(1, 2)).flatten(2))
        return self.o(audio + recomputed(lambda q, k, v: over_latents(q, k, v, table), q, k, v))


def turned(q: Tensor, k: Tensor, times: Times | None) -> tuple[Tensor, Tensor]:
    """Queries and keys [B, N, ..., h, d] rotated by their frames' times, so that a score knows the time between the two."""
    if times is None:
        return q, k
    return by_frame(q, times.queries), by_frame(k, times.keys)


def by_frame(x: Tensor, rope: Rope) -> Tensor:
    """x [B, N, ..., d] with all heads of a frame's tokens rotated alike; the rope has one row a frame."""
    return rotate(x.flatten(2, -2), rope).view_as(x)


def recomputed(work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`work(*inputs)`, made again in the backward pass: windows overlap, so what they gather is larger than its sources."""
    if not torch.is_grad_enabled():
        return work(*inputs)
    out: Tensor = checkpoint(work, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out


def over_windows(q: Tensor, k: Tensor, v: Tensor, table: AudioWindows) -> Tensor:
    """q [B, T, S, h, d] of each frame over its window of k, v [B, L, h, d]: [B, T, S, h * d]."""
    batch, frames = q.shape[:2]
    assert table.index is not None
    k, v = (part.index_select(1, table.index).unflatten(1, (frames, -1)).flatten(0, 1) for part in (k, v))
    bias = None if table.bias is None else table.bias.to(q.dtype).repeat(batch, 1, 1, 1)
    return attend(q.flatten(0, 1), k, v, bias).unflatten(0, (batch, frames)).flatten(3)


def over_latents(q: Tensor, k: Tensor, v: Tensor, table: LatentPairs) -> Tensor:
    """q [B, n, h, d] of each token over its latents of k, v [B, T, S, h, d]: [B, n, h * d].

    One call serves all: [(1 - a) q, a q] . [k_i, k_(i+1)] is q . k interpolated.
    """
    assert table.ask is not None
    assert table.answer is not None
    assert table.frames is not None
    batch, size, side = len(q), q.shape[-1], k.shape[2]
    pair = 1 if table.alpha is None else 2
    groups = len(table.frames) // (table.slots * pair)
    q = q.index_select(1, table.ask).unflatten(1, (groups, -1))
    k, v = (_pairs(part, table.frames, groups, pair) for part in (k, v))
    alpha = None if table.alpha is None else table.alpha.to(q.dtype)
    if alpha is not None:
        q = torch.cat([(1 - alpha) * q, alpha * q], dim=-1)
    bias = None
    if table.bias is not None:
        bias = table.bias.to(q.dtype).repeat_interleave(side, dim=1)[:, None, None, :].repeat(batch, 1, 1, 1)
    out = attend(q.flatten(0, 1), k, v, bias, size**-0.5).unflatten(0, (batch, groups))
    if alpha is not None:
        own, after = out.split(size, dim=-1)
        out = torch.lerp(own, after, alpha.expand_as(own))
    return out.flatten(1, 2).index_select(1, table.answer).flatten(2)


def _pairs(part: Tensor, frames: Tensor, groups: int, pair: int) -> Tensor:
    """Keys or values [B, T, S, h, d] of each group: [B * G, m * S, h, pair * d], a latent and the next side by side."""
    chosen = part.index_select(1, frames).unflatten(1, (groups, -1, pair))
    return chosen.permute(0, 1, 2, 4, 5, 3, 6).flatten(5).flatten(2, 3).flatten(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention over [B, L, h, d], heads kept apart: [B, Lq, h, d]."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)


def add_update(stream: Tensor, update: Tensor, queries: Queries) -> Tensor:
    """The stream [B, N, ...] with `update` added to the run that asked."""
    before, run, after = stream.split(
        [queries.start, queries.stop - queries.start, stream.shape[1] - queries.stop], dim=1
    )
    return torch.cat([before, run + queries.gate * update, after], dim=1)


class FaceMask(nn.Module):
    """M = sigmoid(Wm (gamma * LayerNorm(Hv) + beta) + bm)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.linear = nn.Linear(dim, 1)

    def forward(self, video: Tensor) -> Tensor:
        """Hv [B, N, S, D] -> M [B, N, S, 1]."""
        return torch.sigmoid(self.linear(self.norm(video)))


class Interaction(nn.Module):
    """Both directions and the face mask of one layer, from the same incoming streams."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config: InteractionConfig = config.interaction
        self.eps = config.video.eps
        self.a2v = CrossModal(config.video.dim, config.audio.dim, config.video.heads)
        self.v2a = CrossModal(config.audio.dim, config.video.dim, config.audio.heads)
        self.face = None if config.face.mode == "none" else FaceMask(config.video.dim, config.video.eps)

    def forward(
        self, video: Tensor, audio: Tensor, alignment: Alignment
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hv [B, N, S, Dv], Ha [B, L, 1, Da] -> both updated, and M [B, N, S] (None without face modulation)."""
        mask = None if self.face is None else self.face(video)
        hv, ha = (normalise(x, self.eps).to(x.dtype) if self.config.pre_norm else x for x in (video, audio))
        ha = ha.squeeze(2)
        a2v, v2a = alignment.a2v, alignment.v2a
        # V2A first: the backward pass then gathers its pairs, the largest of all, when what A2V kept is gone
        seen = hv if mask is None else mask * hv
        asks, keys = slice(v2a.queries.start, v2a.queries.stop), slice(*v2a.keys)
        # contiguous, so that a slice is copied once and not by each projection
        to_audio = self.v2a.attend_latents(
            ha[:, asks].contiguous(), seen[:, keys].contiguous(), v2a
        ).unsqueeze(2)
        asks, keys = slice(a2v.queries.start, a2v.queries.stop), slice(*a2v.keys)
        to_video = self.a2v.attend_windows(hv[:, asks].contiguous(), ha[:, keys].contiguous(), a2v)
        to_video = to_video if mask is None else mask[:, asks] * to_video
        masks = None if mask is None else mask.squeeze(-1)
        return add_update(video, to_video, a2v.queries), add_update(audio, to_audio, v2a.queries), masks
