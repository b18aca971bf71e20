"""Asymmetric cross-modal interaction and face-aware modulation (paper, sections 3.2 and 3.3) by equation.

    FAM   M = sigmoid(Wm (gamma LayerNorm(Hv) + beta) + bm)                    FaceMask
    A2V   C_i = [Ha_(i-w), .., Ha_i, .., Ha_(i+w)]                             AudioWindows
          Hbar_v_i = Wo_v (Hv_i + Attn(Q = Wq Hv_i, K = Wk C_i, V = Wv C_i))   CrossModal.audio_to_video
    V2A   C_j = (1 - alpha) M Hv_i + alpha M Hv_(i+1)                          LatentPairs
          Hbar_a_j = Wo_a (Ha_j + Attn(Q = Wq Ha_j, K = Wk C_j, V = Wv C_j))   CrossModal.video_to_audio
          Hv <- Hv + M Hbar_v,   Ha <- Ha + Hbar_a                             Interaction.forward

Hv [B, N, S, Dv] are video tokens: N latents of S tokens. Ha [B, L, Da] are audio tokens.
`train.model.alignment` computes the index tables of C_i and C_j; both directions are vectorised over latents,
tokens and samples. Conditions serve as keys and values and are returned unchanged; references take no part.
Two things are not in the paper's equations and can be switched off: `pre_norm` normalises H first, and
`positions: time` rotates queries and keys by the time of their frames.
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


class Interaction(nn.Module):
    """Both directions and the face mask of one layer, from the same input streams."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config: InteractionConfig = config.interaction
        self.eps = config.video.eps
        self.a2v = CrossModal(config.video.dim, config.audio.dim, config.video.heads)
        self.v2a = CrossModal(config.audio.dim, config.video.dim, config.audio.heads)
        self.face = None if config.face.mode == "none" else FaceMask(config.video.dim, config.video.eps)

    def forward(
        self, video: Tensor, audio: Tensor, alignment: Alignment, gate: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Hv [B, N, S, Dv], Ha [B, L, 1, Da] -> both updated, and M [B, N, S] or None.

        `gate` [B]: 0 leaves the streams of a sample as they are.
        """
        mask = None if self.face is None else self.face(video)
        hv, ha = (normalise(x, self.eps).to(x.dtype) if self.config.pre_norm else x for x in (video, audio))
        ha = ha.squeeze(2)
        masked_hv = hv if mask is None else mask * hv
        a2v, v2a = alignment.a2v, alignment.v2a
        # V2A first: the backward pass gathers the pairs of V2A, its largest tensors, after the tensors of A2V
        # are freed
        queries, keys = slice(v2a.queries.start, v2a.queries.stop), slice(*v2a.keys)
        # contiguous: a slice is copied once, and not by each projection
        hbar_a = self.v2a.video_to_audio(ha[:, queries].contiguous(), masked_hv[:, keys].contiguous(), v2a)
        queries, keys = slice(a2v.queries.start, a2v.queries.stop), slice(*a2v.keys)
        hbar_v = self.a2v.audio_to_video(hv[:, queries].contiguous(), ha[:, keys].contiguous(), a2v)
        if mask is not None:
            hbar_v = mask[:, queries] * hbar_v
        if gate is not None:
            gate = gate.to(hbar_v.dtype)[:, None, None, None]
            hbar_v, hbar_a = gate * hbar_v, gate[:, 0] * hbar_a
        masks = None if mask is None else mask.squeeze(-1)
        return (
            add_update(video, hbar_v, a2v.queries),
            add_update(audio, hbar_a.unsqueeze(2), v2a.queries),
            masks,
        )


class FaceMask(nn.Module):
    """M = sigmoid(Wm (gamma * LayerNorm(Hv) + beta) + bm)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps)
        self.linear = nn.Linear(dim, 1)

    def forward(self, video: Tensor) -> Tensor:
        """Hv [B, N, S, D] -> M [B, N, S, 1]."""
        return torch.sigmoid(self.linear(self.norm(video)))


class CrossModal(nn.Module):
    """Wq, Wk, Wv and Wo (initialised to zero) of one direction.

    Width and heads are those of the querying branch.
    """

    def __init__(self, query_dim: int, key_dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(query_dim, query_dim)
        self.k, self.v = nn.Linear(key_dim, query_dim), nn.Linear(key_dim, query_dim)
        self.o = ZeroLinear(query_dim, query_dim)

    def audio_to_video(self, video: Tensor, audio: Tensor, table: AudioWindows) -> Tensor:
        """Hbar_v: each latent of video [B, T, S, Dv] attends to its window C_i of audio [B, L, Da]."""
        q, k, v = self._project(video, audio, table.times)
        if table.index is None:  # sgi: all tokens
            return self.o(video + attend(q.flatten(1, 2), k, v).reshape_as(video))
        return self.o(video + recompute(lambda q, k, v: attend_windows(q, k, v, table), q, k, v))

    def video_to_audio(self, audio: Tensor, video: Tensor, table: LatentPairs) -> Tensor:
        """Hbar_a: each token of audio [B, n, Da] attends to its latents C_j of video [B, T, S, Dv].

        Latents are projected (and their keys rotated) before the interpolation. This is exact: projections
        are affine, and the two weights of a pair sum to 1.
        """
        q, k, v = self._project(audio, video, table.times)
        if table.frames is None:  # sgi: all tokens
            return self.o(audio + attend(q, k.flatten(1, 2), v.flatten(1, 2)).flatten(2))
        return self.o(audio + recompute(lambda q, k, v: attend_latents(q, k, v, table), q, k, v))

    def _project(self, queries: Tensor, keys: Tensor, times: Times | None) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K and V with heads apart [B, N, ..., h, d]; `times` rotates Q and K by frame times."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)) for part in (self.q(queries), self.k(keys), self.v(keys))
        )
        if times is not None:
            q, k = rotate_frames(q, times.queries), rotate_frames(k, times.keys)
        return q, k, v


def attend_windows(q: Tensor, k: Tensor, v: Tensor, table: AudioWindows) -> Tensor:
    """q [B, T, S, h, d] of each latent over its window of k, v [B, L, h, d]: [B, T, S, h * d]."""
    batch, latents = q.shape[:2]
    assert table.index is not None
    k, v = (part.index_select(1, table.index).unflatten(1, (latents, -1)).flatten(0, 1) for part in (k, v))
    bias = None if table.bias is None else table.bias.to(q.dtype).repeat(batch, 1, 1, 1)
    return attend(q.flatten(0, 1), k, v, bias).unflatten(0, (batch, latents)).flatten(3)


def attend_latents(q: Tensor, k: Tensor, v: Tensor, table: LatentPairs) -> Tensor:
    """q [B, n, h, d] of each audio token over its latents of k, v [B, T, S, h, d]: [B, n, h * d].

    One attention call serves both latents of a pair: [(1 - alpha) q, alpha q] . [k_i, k_(i+1)] is q . k
    interpolated.
    """
    assert table.token_of_slot is not None
    assert table.slot_of_token is not None
    assert table.frames is not None
    batch, size, side = len(q), q.shape[-1], k.shape[2]
    pair = 1 if table.alpha is None else 2
    groups = len(table.frames) // (table.slots * pair)
    q = q.index_select(1, table.token_of_slot).unflatten(1, (groups, -1))
    k, v = (_gather_pairs(part, table.frames, groups, pair) for part in (k, v))
    alpha = None if table.alpha is None else table.alpha.to(q.dtype)
    if alpha is not None:
        q = torch.cat([(1 - alpha) * q, alpha * q], dim=-1)
    bias = None
    if table.bias is not None:
        bias = table.bias.to(q.dtype).repeat_interleave(side, dim=1)[:, None, None, :].repeat(batch, 1, 1, 1)
    out = attend(q.flatten(0, 1), k, v, bias, size**-0.5).unflatten(0, (batch, groups))
    if alpha is not None:
        this, following = out.split(size, dim=-1)
        out = torch.lerp(this, following, alpha.expand_as(this))
    return out.flatten(1, 2).index_select(1, table.slot_of_token).flatten(2)


def _gather_pairs(part: Tensor, frames: Tensor, groups: int, pair: int) -> Tensor:
    """Keys or values [B, T, S, h, d] by group: [B * G, m * S, h, pair * d], a latent beside the next."""
    chosen = part.index_select(1, frames).unflatten(1, (groups, -1, pair))
    return chosen.permute(0, 1, 2, 4, 5, 3, 6).flatten(5).flatten(2, 3).flatten(0, 1)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Attention over [B, L, h, d] with heads kept apart: [B, Lq, h, d]."""
    q, k, v = (part.transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale).transpose(1, 2)


def rotate_frames(x: Tensor, rope: Rope) -> Tensor:
    """x [B, N, ..., d] with all tokens and heads of a frame rotated alike; the rope has one row per frame."""
    return rotate(x.flatten(2, -2), rope).view_as(x)


def recompute(work: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`work(*inputs)`, computed again in the backward pass.

    Windows overlap, so gathered keys and values are larger than their source.
    """
    if not torch.is_grad_enabled():
        return work(*inputs)
    out: Tensor = checkpoint(work, *inputs, use_reentrant=False, preserve_rng_state=False)
    return out


def add_update(stream: Tensor, update: Tensor, queries: Queries) -> Tensor:
    """The stream [B, N, ...] with `update` added to the frames that queried."""
    before, run, after = stream.split(
        [queries.start, queries.stop - queries.start, stream.shape[1] - queries.stop], dim=1
    )
    return torch.cat([before, run + queries.gate * update, after], dim=1)
