"""Layers of the video-to-audio transformer: SwiGLU, modulated attention blocks, input projections.

Tokens have shape [B, L, D]. Computes the same function as MMAudio (MIT, github.com/hkchengrex/MMAudio).
Parameters are read only inside their own module's forward, so that DeepSpeed ZeRO-3 can gather them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen.train.model.dit import Rope, ZeroLinear, normalise, rotate
from uniavgen.train.model.mmdit.config import Activation, FrameConfig, MMDiTConfig

EPS = 1e-5
"""Epsilon of the LayerNorms (PyTorch's default)."""

ACTIVATIONS = {"none": nn.Identity, "selu": nn.SELU, "silu": nn.SiLU}


class XavierLinear(nn.Linear):
    """A linear layer with Xavier-uniform weights and zero bias."""

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class TokenConv(nn.Conv1d):
    """A convolution over tokens [B, L, C] that keeps their number."""

    def __init__(self, channels: int, out: int, kernel: int, *, bias: bool = True) -> None:
        super().__init__(channels, out, kernel, padding=kernel // 2, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ZeroConv(TokenConv):
    """A convolution that is initialised to zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def dense(channels: int, out: int, kernel: int, *, bias: bool = True) -> nn.Module:
    """A convolution over `kernel` tokens; a linear layer if `kernel` is 1."""
    if kernel > 1:
        return TokenConv(channels, out, kernel, bias=bias)
    return XavierLinear(channels, out, bias=bias)


class SwiGLU(nn.Module):
    """w2(silu(w1 x) * w3 x) without biases; a ConvMLP if `kernel` exceeds 1."""

    def __init__(self, dim: int, hidden: int, kernel: int = 1) -> None:
        super().__init__()
        self.w1, self.w3 = (dense(dim, hidden, kernel, bias=False) for _ in range(2))
        self.w2 = dense(hidden, dim, kernel, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.w2(F.silu(self.w1(x)) * self.w3(x))
        return out


class TimeLinear(XavierLinear):
    """A layer of the time embedding."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)


class TimeEmbedding(nn.Module):
    """MMAudio's time, 0 for noise and 1 for data, as a vector: [B] -> [B, 1, D]. The time is not scaled."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.width, self.period = config.time_width, config.time_period
        self.mlp = nn.Sequential(
            TimeLinear(self.width, config.dim), nn.SiLU(), TimeLinear(config.dim, config.dim)
        )

    def forward(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        half = self.width // 2
        exponent = torch.arange(half, dtype=torch.float32, device=t.device) / half
        frequency = 10_000.0**-exponent * (10_000.0 / self.period)
        angle = t.float()[:, None] * frequency
        out: Tensor = self.mlp(torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype))
        return out.unsqueeze(1)


class Modulation(ZeroLinear):
    """Shifts, scales and gates from a condition [B, 1 | L, D]: `rows` tensors of its shape."""

    def __init__(self, rows: int, dim: int) -> None:
        self.rows = rows
        super().__init__(dim, rows * dim)

    def forward(self, condition: Tensor) -> Tensor:
        return super().forward(F.silu(condition)).unflatten(-1, (self.rows, -1))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """LN(x) (1 + scale) + shift."""
    return (normalise(x, EPS) * (1 + scale) + shift).to(x.dtype)


class QueryKeyValue(nn.Module):
    """Queries, keys and values [B, L, heads, d], with RMSNorm over the d channels of each query and key.

    The 3 D outputs of `qkv` are ordered (head, channel, q | k | v), as in MMAudio's weights.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = XavierLinear(dim, 3 * dim)
        # epsilon None: that of the dtype
        self.q_norm, self.k_norm = (nn.RMSNorm(dim // heads) for _ in range(2))

    def forward(self, x: Tensor, rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, -1, 3)).unbind(-1)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rope is None else (rotate(q, rope), rotate(k, rope), v)


def attend(q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> Tensor:
    """Attention of [B, L, heads, d] -> [B, L, D]; `visible` bool [B, L] of the keys, None for all."""
    mask = None if visible is None else visible[:, None, None, :]
    # cuDNN's kernel needs contiguous memory
    q, k, v = (part.transpose(1, 2).contiguous() for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


class StreamBlock(nn.Module):
    """One stream's part of a layer: before attention, and after it (absent if `reads_only`).

    reads_only: the stream's tokens are keys and values of the others and change no more.
    """

    def __init__(self, config: MMDiTConfig, *, convolutional: bool, reads_only: bool = False) -> None:
        super().__init__()
        dim, kernel, self.reads_only = config.dim, 3 if convolutional else 1, reads_only
        self.modulation = Modulation(2 if reads_only else 6, dim)
        self.attn = QueryKeyValue(dim, config.heads)
        if not reads_only:
            self.linear1 = dense(dim, dim, kernel)
            self.ffn = SwiGLU(dim, config.hidden, kernel)

    def rows(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Condition [B, 1 | L, D] -> shift1, scale1, gate1, shift2, scale2, gate2."""
        rows: Tensor = self.modulation(condition)
        return rows.unbind(-2)

    def before(self, x: Tensor, rows: tuple[Tensor, ...], rope: Rope | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the tokens."""
        qkv: tuple[Tensor, Tensor, Tensor] = self.attn(modulate(x, rows[0], rows[1]), rope)
        return qkv

    def after(self, x: Tensor, attended: Tensor, rows: tuple[Tensor, ...]) -> Tensor:
        """Tokens after attention's result and the feed-forward part, each added through its gate."""
        if self.reads_only:
            return x
        _, _, gate1, shift2, scale2, gate2 = rows
        x = x + gate1 * self.linear1(attended)
        out: Tensor = x + gate2 * self.ffn(modulate(x, shift2, scale2))
        return out

    def forward(self, x: Tensor, condition: Tensor, rope: Rope | None) -> Tensor:
        """A whole layer of one stream: the fused block."""
        rows = self.rows(condition)
        return self.after(x, attend(*self.before(x, rows, rope), None), rows)


class InputProjection(nn.Module):
    """Projection of features to tokens, and an MLP (not residual)."""

    def __init__(
        self, config: MMDiTConfig, channels: int, kernel: int, mlp_kernel: int, activation: Activation
    ) -> None:
        super().__init__()
        self.project = dense(channels, config.dim, kernel)
        self.activation = ACTIVATIONS[activation]()
        self.mlp = SwiGLU(config.dim, config.hidden, mlp_kernel)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.activation(self.project(features)))
        return out


class Empty(nn.Module):
    """Features [rows, channels] used instead of a missing input: one learned row, or frozen rows (a buffer).

    A buffer, because training unfreezes parameters; it is saved and loaded with the weights.
    """

    def __init__(self, rows: int, channels: int, *, learned: bool) -> None:
        super().__init__()
        if learned:
            self.features = nn.Parameter(torch.empty(rows, channels))
        else:
            self.register_buffer("features", torch.empty(rows, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.features)

    def forward(self, features: Tensor, present: Tensor) -> Tensor:
        """features [B, L, channels] where present bool [B], else the stand-in."""
        return torch.where(present[:, None, None], features, self.features.to(features.dtype))


class FrameProjection(nn.Module):
    """Synchronisation features [B, S, channels] with learned positions in each segment -> [B, S, D]."""

    def __init__(self, config: MMDiTConfig, frame: FrameConfig) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.empty(1, 1, frame.segment, frame.channels))
        self.projection = InputProjection(config, frame.channels, 7, 3, frame.activation)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.positions)

    def forward(self, features: Tensor) -> Tensor:
        segments = features.unflatten(1, (-1, self.positions.shape[2])) + self.positions.to(features.dtype)
        out: Tensor = self.projection(segments.flatten(1, 2))
        return out


class FinalLayer(nn.Module):
    """Modulated normalisation and a convolution to velocities; initialised to velocity 0."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.modulation = Modulation(2, config.dim)
        self.conv = ZeroConv(config.dim, config.channels, 7)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition).unbind(-2)
        out: Tensor = self.conv(modulate(x, shift, scale))
        return out


class LatentScale(nn.Module):
    """Mean and standard deviation of the latents' channels, frozen."""

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1, 1, channels))
        self.register_buffer("std", torch.ones(1, 1, channels))

    def normalise(self, latent: Tensor) -> Tensor:
        """[B, C, N] -> zero mean and unit variance."""
        return (latent - self.mean.transpose(1, 2)) / self.std.transpose(1, 2)

    def denormalise(self, latent: Tensor) -> Tensor:
        """The inverse of `normalise`."""
        return latent * self.std.transpose(1, 2) + self.mean.transpose(1, 2)


@dataclass(frozen=True)
class Clock:
    """Positions of a stream's tokens, in audio latents: `step * index`; None: no position."""

    tokens: int
    step: float | None


def rope_of(clocks: list[Clock], head_dim: int, theta: float, offset: float = 0.0) -> Rope | None:
    """Rotary angles of concatenated streams, 2 x fp32 [L, d / 2]; None if no token has a position.

    A token without a position is not rotated. `offset` moves all positions, which changes no attention
    between tokens that have one.
    """
    if all(clock.step is None for clock in clocks):
        return None
    frequency = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angles = []
    for clock in clocks:
        position = torch.arange(clock.tokens, dtype=torch.float64) * (clock.step or 0.0)
        if clock.step is not None:
            position = position + offset
        angles.append(torch.outer(position, frequency))
    angle = torch.cat(angles)
    return angle.cos().float(), angle.sin().float()


def nearest_frames(x: Tensor, length: int) -> Tensor:
    """[B, S, D] at `length` frames: the feature whose span holds each frame's middle."""
    return F.interpolate(x.transpose(1, 2), size=length, mode="nearest-exact").transpose(1, 2)
