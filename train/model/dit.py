"""The Wan-shaped diffusion transformer of both branches: one for video latents, one for mel frames.

A sequence mixes clean frames (t = 0) and noisy ones (t). Tokens have shape [B, N, S, C]: N frames of S = h/2
* w/2 tokens (S = 1 for audio), width C. Computes the same function as Wan 2.1 and 2.2 (Apache-2.0,
github.com/Wan-Video); modulation is computed once per distinct time and broadcast. Parameters are read only
inside their own module's forward, so that DeepSpeed ZeRO-3 can gather them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import NOISY, BranchInput, TokenLayout
from uniavgen.train.model.config import BranchConfig

TIME_SCALE = 1000.0
"""Wan scales diffusion time to 0..1000."""

SMALLEST_TIME = 1e-3
"""Times below it count as it where a velocity is computed from x0: the division would magnify rounding."""

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, each float32 [N * S, head_dim / 2]."""

Rows = tuple[Tensor, ...]
"""Shifts, scales and gates of a block or head, each fp32 [B, 2, C]: at t = 0 and at the sample's t."""


@dataclass
class Stream:
    """The state of a branch between blocks.

    x [B, N, S, C]; time_embedding [B, 2, C] and modulation [B, 2, 6, C] in fp32, at t = 0 and at the sample's
    t; context [B, Lt, C] with context_mask bool [B, 1, 1, Lt] or None; rope; layout of the N frames; grid
    (h/2, w/2); mask bool [B, 1, 1, N * S], False for padding, or None.
    """

    x: Tensor
    time_embedding: Tensor
    modulation: Tensor
    context: Tensor
    context_mask: Tensor | None
    rope: Rope
    layout: TokenLayout
    grid: tuple[int, int]
    mask: Tensor | None = None


def time_features(t: Tensor, width: int) -> Tensor:
    """Sinusoidal features, cosines first: t float [...] in 0..1 -> fp32 [..., width] (Wan, DDPM)."""
    half = width // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angle = (t.float() * TIME_SCALE)[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def per_frame(pair: Tensor, layout: TokenLayout) -> Tensor:
    """Values at (t = 0, t) for each frame by role: [B, 2, C] -> [B, N, 1, C], N rows instead of N * S."""
    rows = [pair[:, int(s.role == NOISY)].unsqueeze(1).expand(-1, s.length, -1) for s in layout]
    return torch.cat(rows, dim=1).unsqueeze(2)


def token_mask(visible: Tensor, side: int) -> Tensor:
    """The mask of self-attention from the visible frames bool [B, N]: [B, 1, 1, N * side]."""
    return visible.repeat_interleave(side, dim=1)[:, None, None, :]


def normalise(x: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights, in fp32."""
    return F.layer_norm(x.float(), x.shape[-1:], eps=eps)


def rotary_angles(position: Tensor, size: int, theta: float) -> Tensor:
    """Angles position * theta^(-2 c / size), [n, size / 2], of positions float64 [n] (RoFormer, Wan)."""
    frequency = theta ** (-torch.arange(0, size, 2, dtype=torch.float64) / size)
    return torch.outer(position, frequency)


def as_rope(angle: Tensor, device: torch.device) -> Rope:
    """Cosines and sines of float64 angles, in fp32 on `device`."""
    return angle.cos().float().to(device), angle.sin().float().to(device)


@lru_cache(maxsize=64)
def rope_table(
    config: BranchConfig, layout: TokenLayout, grid: tuple[int, int], device: torch.device
) -> Rope:
    """Rotary angles of every token, 2 x fp32 [N * S, head_dim / 2], computed on the host in float64.

    A frame's time coordinate is its position in the clip (negative for references). Attention depends on
    differences of positions only, so a single run of frames is rotated as in Wan.
    """
    frames = torch.cat([torch.arange(s.start, s.start + s.length, dtype=torch.float64) for s in layout])
    height, width = (torch.arange(n, dtype=torch.float64) for n in grid)
    if config.rope_axes == "time":
        widths, positions = [config.head_dim], [frames]
    else:
        side = 2 * (config.head_dim // 6)
        widths, positions = [config.head_dim - 2 * side, side, side], [frames, height, width]
    angles = []
    for axis, (size, position) in enumerate(zip(widths, positions, strict=True)):
        shape = [1, 1, 1, size // 2]
        shape[axis] = len(position)
        angles.append(
            rotary_angles(position, size, config.rope_theta).view(shape).expand(len(frames), *grid, -1)
        )
    return as_rope(torch.cat(angles, dim=-1).flatten(0, 2), device)


def rotate(x: Tensor, rope: Rope) -> Tensor:
    """Rotate neighbouring channel pairs of each head by the token's angles: x [B, L, H, d]."""
    cos, sin = (part.unsqueeze(1) for part in rope)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2).to(x.dtype)


class Attention(nn.Module):
    """Multi-head attention with RMSNorm over the full width of q and k (Wan)."""

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = nn.RMSNorm(dim, eps), nn.RMSNorm(dim, eps)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, rope: Rope | None = None
    ) -> Tensor:
        """x [B, L, C]; context [B, Lt, C], default x; mask bool [B, 1, 1, Lt], True for visible keys."""
        source = x if context is None else context
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(source)), self.v(source)
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in (q, k, v))
        if rope is not None:
            q, k = rotate(q, rope), rotate(k, rope)
        out = F.scaled_dot_product_attention(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), attn_mask=mask
        )
        return self.o(out.transpose(1, 2).flatten(2))


class Modulation(nn.Module):
    """Learned offsets of a block to the shift, scale and gate computed from the diffusion time."""

    def __init__(self, rows: int, dim: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(1, rows, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.table, std=self.table.shape[-1] ** -0.5)

    def forward(self, time: Tensor) -> Rows:
        """time fp32 [B, 2, rows, C] or [B, 2, 1, C] -> `rows` tensors fp32 [B, 2, C]."""
        return (self.table.unsqueeze(1).float() + time).unbind(2)


class Block(nn.Module):
    """Self-attention, cross-attention to the text and feed-forward; the interaction runs in between."""

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        dim, self.eps = config.dim, config.eps
        self.modulation = Modulation(6, dim)
        self.self_attn = Attention(dim, config.heads, config.eps)
        self.norm3 = nn.LayerNorm(dim, config.eps)
        self.cross_attn = Attention(dim, config.heads, config.eps)
        self.ffn = nn.Sequential(
            nn.Linear(dim, config.ffn_dim), nn.GELU("tanh"), nn.Linear(config.ffn_dim, dim)
        )

    def attend_self(
        self, x: Tensor, rows: Rows, layout: TokenLayout, rope: Rope, mask: Tensor | None = None
    ) -> Tensor:
        shift, scale, gate = (per_frame(part, layout) for part in rows[:3])
        y = torch.addcmul(shift, normalise(x, self.eps), 1 + scale).to(x.dtype)
        y = self.self_attn(y.flatten(1, 2), mask=mask, rope=rope).view_as(x)
        return torch.addcmul(x.float(), y.float(), gate).to(x.dtype)

    def attend_text(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        return x + self.cross_attn(self.norm3(x).flatten(1, 2), context, mask).view_as(x)

    def feed_forward(self, x: Tensor, rows: Rows, layout: TokenLayout) -> Tensor:
        shift, scale, gate = (per_frame(part, layout) for part in rows[3:])
        y = torch.addcmul(shift, normalise(x, self.eps), 1 + scale).to(x.dtype)
        return torch.addcmul(x.float(), self.ffn(y).float(), gate).to(x.dtype)


class Head(nn.Module):
    """Last normalisation, modulation and projection to patches.

    Initialised to zero: training starts at velocity 0.
    """

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.modulation = Modulation(2, config.dim)
        numbers = config.in_channels * math.prod(config.patch)
        if config.places is None:
            self.head: nn.Module = ZeroLinear(config.dim, numbers)
        else:
            self.head = PlaceLinear(config.dim, numbers, math.prod(config.places), zero=True)

    def forward(self, x: Tensor, time_embedding: Tensor, layout: TokenLayout) -> Tensor:
        shift, scale = (per_frame(part, layout) for part in self.modulation(time_embedding.unsqueeze(2)))
        return self.head(torch.addcmul(shift, normalise(x, self.eps), 1 + scale).to(x.dtype))


def velocity_from_data(predicted: Tensor, data: BranchInput) -> Tensor:
    """dx/dt = (x_t - x0) / t from a predicted x0 [B, c, N, h, w], since x_t = (1 - t) x0 + t noise."""
    state = data.latent.reshape(predicted.shape).float()
    t = data.timestep.float().clamp(min=SMALLEST_TIME).view(-1, 1, 1, 1, 1)
    return (state - predicted.float()) / t


class ZeroLinear(nn.Linear):
    """A linear layer that is initialised to zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class PlaceLinear(nn.Module):
    """A linear layer with its own weight and bias for each of the S tokens of a frame (ours, not Wan's).

    The bias of an embedding is thus an embedding of the place. `zero`: initialised to zero.
    """

    def __init__(self, inputs: int, outputs: int, places: int, *, zero: bool = False) -> None:
        super().__init__()
        self.zero = zero
        self.weight = nn.Parameter(torch.empty(places, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(places, outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.zero:
            nn.init.zeros_(self.weight)
            nn.init.zeros_(self.bias)
            return
        bound = self.weight.shape[2] ** -0.5  # as nn.Linear
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, N, S, inputs] -> [B, N, S, outputs]."""
        return torch.einsum("bnsi,soi->bnso", x, self.weight) + self.bias


class TimeLinear(nn.Linear):
    """A linear layer of the time embedding; with `fp32` it computes in fp32 whatever the dtype of its
    weights.

    bf16 has 8 bits of mantissa: it rounds neighbouring times, and the shifts, scales and gates computed from
    them, to the same values (Wan computes both in fp32).
    """

    def __init__(self, inputs: int, outputs: int, *, fp32: bool) -> None:
        super().__init__(inputs, outputs)
        self.fp32 = fp32

    def forward(self, x: Tensor) -> Tensor:
        if not self.fp32:
            return F.linear(x.to(self.weight.dtype), self.weight, self.bias)
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class Branch(nn.Module):
    """One diffusion transformer.

    `begin` embeds the inputs, the blocks transform the stream, and `finish` projects it to velocities.
    """

    def __init__(self, config: BranchConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        numbers = config.in_channels * math.prod(config.patch)
        if config.places is None:
            self.patch_embedding: nn.Module = nn.Linear(numbers, dim)
        else:
            self.patch_embedding = PlaceLinear(numbers, dim, math.prod(config.places))
        self.text_embedding = nn.Sequential(
            nn.Linear(config.text_dim, dim), nn.GELU("tanh"), nn.Linear(dim, dim)
        )
        linear = partial(TimeLinear, fp32=config.fp32_time)
        self.time_embedding = nn.Sequential(linear(config.freq_dim, dim), nn.SiLU(), linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.head = Head(config)

    @property
    def dtype(self) -> torch.dtype:
        weight = self.head.head.weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    def rope(self, data: BranchInput) -> Rope:
        """Rotary table of an input, from its shape and layout.

        Raises UserError if they do not fit the branch.
        """
        shape, (ph, pw) = data.latent.shape, self.config.patch
        height, width = shape[3:] if len(shape) == 5 else (1, 1)
        frames = sum(s.length for s in data.layout)
        if (
            len(shape) < 3
            or shape[1] != self.config.in_channels
            or height % ph
            or width % pw
            or frames != shape[2]
        ):
            raise UserError(
                f"latent {list(shape)} does not fit {self.config.in_channels} channels, patch {ph}x{pw} "
                f"and a layout of {frames} frames",
                kind="bad-shape",
            )
        grid = height // ph, width // pw
        if self.config.places not in (None, grid):
            raise UserError(
                f"the model has places {self.config.places}, the latent a grid of {grid} tokens",
                where="train.model.video.places",
                kind="bad-shape",
            )
        return rope_table(self.config, data.layout, grid, data.latent.device)

    def begin(self, data: BranchInput, text: Tensor, rope: Rope) -> Stream:
        """Embed latent, time and text.

        `text` features [B, Lt, text_dim] (for audio: the speech text encoder's).
        """
        patches, grid = self._patchify(data.latent)
        times = torch.stack([torch.zeros_like(data.timestep), data.timestep], dim=1)
        time_embedding = self.time_embedding(time_features(times, self.config.freq_dim))
        modulation = self.time_projection(time_embedding).float().unflatten(-1, (6, -1))
        context, mask = self._context(text, data.text_mask)
        return Stream(
            self.patch_embedding(patches),
            time_embedding.float(),
            modulation,
            context,
            mask,
            rope,
            data.layout,
            grid,
            None if data.visible is None else token_mask(data.visible, math.prod(grid)),
        )

    def finish(self, stream: Stream, data: BranchInput) -> Tensor:
        """Velocity [B, c, N, h, w] of the noisy frames; audio has h = w = 1.

        Of clean frames the output is not defined.
        """
        y = self.head(stream.x, stream.time_embedding, stream.layout)
        (rows, columns), (ph, pw) = stream.grid, self.config.patch
        y = y.unflatten(2, (rows, columns)).unflatten(-1, (ph, pw, -1))
        y = y.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)
        return y if self.config.prediction == "velocity" else velocity_from_data(y, data)

    def _patchify(self, latent: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """[B, c, N, h, w] (audio: no h, w) -> [B, N, h/ph * w/pw, c * ph * pw], in convolution order."""
        latent = latent if latent.dim() == 5 else latent[..., None, None]
        ph, pw = self.config.patch
        patches = latent.to(self.dtype).unflatten(4, (-1, pw)).unflatten(3, (-1, ph))
        grid = (patches.shape[3], patches.shape[5])
        return patches.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(2, 3), grid

    def _context(self, text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Text features and mask for cross-attention.

        Padding is zeroed; it is masked, or attended to as in Wan (`text_len`).
        """
        text = text.to(self.dtype) * mask.unsqueeze(-1)
        if self.config.text_len is not None:
            if text.shape[1] > self.config.text_len:
                raise UserError(
                    f"text has {text.shape[1]} tokens, text_len is {self.config.text_len}", kind="bad-shape"
                )
            return self.text_embedding(F.pad(text, (0, 0, 0, self.config.text_len - text.shape[1]))), None
        empty = ~mask.any(dim=1, keepdim=True)
        visible = torch.cat([mask[:, :1] | empty, mask[:, 1:]], dim=1)
        return self.text_embedding(text), visible[:, None, None, :]
