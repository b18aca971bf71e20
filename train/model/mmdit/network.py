"""The video-to-audio transformer: N1 joint layers over all streams, N2 layers of audio alone.

Time runs as in `train.flow_matching`: t = 0 is data, t = 1 is noise, the velocity is noise - data. MMAudio
runs the other way; `velocity` is where the two meet.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniavgen.shards.errors import UserError
from uniavgen.train.model.dit import Rope
from uniavgen.train.model.mmdit.batch import Conditions
from uniavgen.train.model.mmdit.config import AUDIO, SYNC, MMDiTConfig, StreamConfig
from uniavgen.train.model.mmdit.layers import (
    Clock,
    Empty,
    FinalLayer,
    FrameProjection,
    InputProjection,
    LatentScale,
    StreamBlock,
    SwiGLU,
    TimeEmbedding,
    XavierLinear,
    attend,
    nearest_frames,
    rope_of,
)
from uniavgen.train.model.speech_text import SpeechText


@dataclass(frozen=True)
class Encoded:
    """Conditions that do not depend on the diffusion time; computed once for all steps of sampling.

    tokens: block -> [B, L, D]; pooled: block -> sum of the pooled inputs [B, 1, D], None for a block without;
    frame [B, N, D] or None; visible: bool [B, L] of all keys, or None if all are visible; ropes: block ->
    rotary table.
    """

    tokens: Mapping[str, Tensor]
    pooled: Mapping[str, Tensor | None]
    frame: Tensor | None
    visible: Tensor | None
    ropes: Mapping[str, Rope | None]


class JointLayer(nn.Module):
    """All blocks attend to the concatenation of all tokens; each has its own weights."""

    def __init__(self, config: MMDiTConfig, *, last: bool) -> None:
        super().__init__()
        for name, streams in config.blocks.items():
            # after the last layer only audio is used
            reads_only = bool(streams) and (last or not streams[0].updates)
            block = StreamBlock(config, convolutional=config.convolutional(name), reads_only=reads_only)
            self.add_module(name, block)

    def forward(
        self,
        tokens: Mapping[str, Tensor],
        conditions: Mapping[str, Tensor],
        ropes: Mapping[str, Rope | None],
        visible: Tensor | None,
    ) -> dict[str, Tensor]:
        """Tokens [B, L, D] of each block, after attention to all visible tokens and the block's MLP."""
        blocks = {name: block for name, block in self.named_children() if isinstance(block, StreamBlock)}
        rows = {name: block.rows(conditions[name]) for name, block in blocks.items()}
        qkv = [block.before(tokens[name], rows[name], ropes[name]) for name, block in blocks.items()]
        q, k, v = (torch.cat(parts, dim=1) for parts in zip(*qkv, strict=True))
        split = attend(q, k, v, visible).split([tokens[name].shape[1] for name in blocks], dim=1)
        return {
            name: block.after(tokens[name], attended, rows[name])
            for (name, block), attended in zip(blocks.items(), split, strict=True)
        }


class Inputs(nn.Module):
    """Projections of audio, streams and frame condition, their stand-ins, and the transcript encoder."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        mlp_kernel = 7 if config.convolutional(AUDIO) else 1
        self.audio = InputProjection(config, config.channels, 7, mlp_kernel, config.audio_activation)
        self.streams, self.empty = nn.ModuleDict(), nn.ModuleDict()
        for stream in config.streams:
            kernel = 3 if stream.feed_forward == "conv" else 1
            self.streams[stream.name] = InputProjection(config, stream.channels, 1, kernel, stream.activation)
            learned = stream.empty == "learned"
            self.empty[stream.name] = Empty(1 if learned else stream.tokens, stream.channels, learned=learned)
        if config.frame:
            self.sync = FrameProjection(config, config.frame)
            self.empty[SYNC] = Empty(1, config.frame.channels, learned=True)
        if config.transcript:
            self.transcript = SpeechText(config.transcript)


class Pools(nn.Module):
    """Projections of the pooled inputs, and the MLP over their sum."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        pooled = [stream.name for stream in config.streams if stream.pools_into]
        pooled += [SYNC] if config.frame and config.frame.pools_into else []
        self.streams = nn.ModuleDict({name: XavierLinear(config.dim, config.dim) for name in pooled})
        if config.condition_mlp:
            self.mlp = SwiGLU(config.dim, config.hidden)


class MMDiT(nn.Module):
    """Velocity of audio latents under any subset of conditions."""

    def __init__(self, config: MMDiTConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = LatentScale(config.channels)
        self.inputs, self.pools = Inputs(config), Pools(config)
        self.time = TimeEmbedding(config)
        self.joint = nn.ModuleList(
            JointLayer(config, last=index == config.joint_layers - 1) for index in range(config.joint_layers)
        )
        self.fused = nn.ModuleList(
            StreamBlock(config, convolutional=config.convolutional(AUDIO)) for _ in range(config.audio_layers)
        )
        self.final = FinalLayer(config)

    @property
    def dtype(self) -> torch.dtype:
        return self.final.conv.weight.dtype

    def forward(
        self, latent: Tensor, t: Tensor, conditions: Conditions, *, checkpointing: bool = False
    ) -> Tensor:
        """Velocity [B, C, N] of normalised noisy latents [B, C, N] at t [B].

        `checkpointing` keeps only the tokens between layers and recomputes the rest in the backward pass.
        """
        encoded = self.encode(conditions, len(latent), latent.shape[2], latent.device)
        return self.velocity(latent, t, encoded, checkpointing=checkpointing)

    def encode(
        self, conditions: Conditions, samples: int, latents: int, device: torch.device | str = "cpu"
    ) -> Encoded:
        """Project, pool and mask the conditions for `latents` of audio. Raises UserError for bad lengths."""
        by_name, seen = {}, {}
        for stream in self.config.streams:
            by_name[stream.name] = self._stream(stream, conditions, samples, latents, device)
            seen[stream.name] = self._visible(stream, conditions, by_name[stream.name])
        pooled = {
            name: pool(x, seen[name] if self.config.mask_padding else None) for name, x in by_name.items()
        }
        frame = self._frame(conditions, samples, latents, device)
        if frame is not None:
            pooled[SYNC] = frame.mean(dim=1, keepdim=True)
            frame = nearest_frames(frame, latents)
        tokens, masks = {}, [torch.ones(samples, latents, dtype=torch.bool, device=device)]
        for name, streams in self.config.blocks.items():
            if streams:
                tokens[name] = torch.cat([by_name[stream.name] for stream in streams], dim=1)
                masks += [self._all_or(seen[stream.name], by_name[stream.name]) for stream in streams]
        hidden = any(mask is not None for mask in seen.values())
        lengths = tuple((name, x.shape[1]) for name, x in by_name.items())
        return Encoded(
            tokens,
            {block: self._pooled(block, pooled) for block in self.config.blocks},
            frame,
            torch.cat(masks, dim=1) if hidden else None,
            rope_tables(self.config, latents, lengths, torch.device(device)),
        )

    def velocity(self, latent: Tensor, t: Tensor, encoded: Encoded, *, checkpointing: bool = False) -> Tensor:
        """Velocity noise - data of normalised noisy latents [B, C, N] at t [B], 1 for noise.

        MMAudio's time is 1 - t and its velocity data - noise.
        """
        time = self.time(1 - t.to(torch.float32), self.dtype)
        conditions = {name: time if c is None else time + c for name, c in encoded.pooled.items()}
        final = conditions[AUDIO]
        if encoded.frame is not None:
            conditions[AUDIO] = conditions[AUDIO] + encoded.frame
        if self.config.final_condition == "frame":
            final = conditions[AUDIO]
        tokens = {AUDIO: self.inputs.audio(latent.transpose(1, 2).to(self.dtype)), **encoded.tokens}
        for layer in self.joint:
            tokens = _run(checkpointing, layer, tokens, conditions, encoded.ropes, encoded.visible)
        x = tokens[AUDIO]
        for block in self.fused:
            x = _run(checkpointing, block, x, conditions[AUDIO], encoded.ropes[AUDIO])
        return -self.final(x, final).transpose(1, 2)

    def _stream(
        self,
        stream: StreamConfig,
        conditions: Conditions,
        samples: int,
        latents: int,
        device: torch.device | str,
    ) -> Tensor:
        """Tokens [B, L, D] of a stream, from its stand-in where it is absent."""
        length = self.config.length(stream, self.config.grid.seconds(latents))
        value = conditions.inputs.get(stream.name)
        if value is None:
            shape = (samples, length) if stream.ids else (samples, length, stream.channels)
            value = torch.zeros(shape, dtype=torch.int64 if stream.ids else self.dtype, device=device)
        fixed = stream.ids or stream.empty == "frozen"
        if fixed and value.shape[1] != length:
            raise UserError(
                f"{stream.name} has {value.shape[1]} tokens, the model needs {length}", kind="bad-length"
            )
        present = torch.tensor(conditions.has(stream.name, samples), device=device)
        if stream.ids:
            # an absent text is all filler, so that its symbols are never looked up
            value = torch.where(present[:, None], value, 0)
            value = self.inputs.transcript(value, torch.ones_like(value, dtype=torch.bool))
        features = self.inputs.empty[stream.name](value.to(self.dtype), present)
        out: Tensor = self.inputs.streams[stream.name](features)
        return out

    def _frame(
        self, conditions: Conditions, samples: int, latents: int, device: torch.device | str
    ) -> Tensor | None:
        """Features [B, S, D] of the frame condition."""
        config = self.config.frame
        if config is None:
            return None
        value = conditions.inputs.get(SYNC)
        if value is None:
            length = config.length(self.config.grid.seconds(latents))
            value = torch.zeros(samples, length, config.channels, device=device)
        present = torch.tensor(conditions.has(SYNC, samples), device=device)
        features: Tensor = self.inputs.sync(self.inputs.empty[SYNC](value.to(self.dtype), present))
        return features

    def _visible(self, stream: StreamConfig, conditions: Conditions, tokens: Tensor) -> Tensor | None:
        """Tokens of a stream that others may see, bool [B, L]; None for all."""
        samples, length = tokens.shape[:2]
        here = conditions.has(stream.name, samples)
        present = torch.tensor(here, device=tokens.device)[:, None].expand(-1, length)
        mask = conditions.masks.get(stream.name) if self.config.mask_padding else None
        if mask is not None and mask.shape != (samples, length):
            raise UserError(f"the mask of {stream.name} has shape {list(mask.shape)}", kind="bad-shape")
        if self.config.mask_missing and not all(here):
            return present if mask is None else present & mask
        return None if mask is None else mask | ~present

    def _all_or(self, mask: Tensor | None, tokens: Tensor) -> Tensor:
        return torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device) if mask is None else mask

    def _pooled(self, block: str, pooled: Mapping[str, Tensor]) -> Tensor | None:
        """Sum of the inputs that pool into a block, [B, 1, D]."""
        names = [stream.name for stream in self.config.streams if block in stream.pools_into]
        if self.config.frame and block in self.config.frame.pools_into:
            names.append(SYNC)
        if not names:
            return None
        total = torch.stack([self.pools.streams[name](pooled[name]) for name in names]).sum(dim=0)
        return self.pools.mlp(total) if self.config.condition_mlp else total


def pool(x: Tensor, mask: Tensor | None) -> Tensor:
    """Mean of the tokens [B, L, D] that `mask` shows, [B, 1, D]; of all of them where it shows none."""
    if mask is None:
        return x.mean(dim=1, keepdim=True)
    mask = (mask | ~mask.any(dim=1, keepdim=True)).unsqueeze(-1)
    return torch.where(mask, x, 0.0).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True)


def clock_of(config: MMDiTConfig, stream: StreamConfig, tokens: int, latents: int) -> Clock:
    """Positions of a stream's tokens in audio latents."""
    timed = stream.rate is not None
    if config.positions == "none" or (not timed and config.positions != "all"):
        return Clock(tokens, None)
    if config.positions == "unaligned" or not timed:
        return Clock(tokens, 1.0)
    if stream.ids:  # as many as latents, whatever the rate
        return Clock(tokens, 1.0)
    assert stream.rate is not None
    by_rate = float(config.grid.rate) / stream.rate
    return Clock(tokens, latents / tokens if config.align_by == "length" else by_rate)


@lru_cache(maxsize=64)
def rope_tables(
    config: MMDiTConfig, latents: int, lengths: tuple[tuple[str, int], ...], device: torch.device
) -> dict[str, Rope | None]:
    """Rotary table of each block, from the audio's length and the (name, tokens) of each stream."""
    audio = Clock(latents, None if config.positions == "none" else 1.0)
    by_name, tables = dict(lengths), {}
    for name, streams in config.blocks.items():
        clocks = [clock_of(config, stream, by_name[stream.name], latents) for stream in streams] or [audio]
        rope = rope_of(clocks, config.head_dim, config.rope_theta)
        tables[name] = None if rope is None else (rope[0].to(device), rope[1].to(device))
    return tables


def _run(checkpointing: bool, layer: nn.Module, *arguments: object) -> Any:
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, *arguments, use_reentrant=False)
    return layer(*arguments)


def with_frozen_inputs(model: MMDiT, **values: Tensor) -> MMDiT:
    """Set what a training run measures once: `mean`, `std` of the latents [C], and stand-ins by stream name.

    A stand-in is [tokens, channels], such as a text encoder's features of an empty text. Returns the model.
    """
    for name, value in values.items():
        owner = model.scale if name in ("mean", "std") else model.inputs.empty[name]
        target: Tensor = getattr(owner, name if owner is model.scale else "features")
        if isinstance(target, nn.Parameter) or target.numel() != value.numel():
            raise UserError(
                f"{name} of {list(value.shape)} is no frozen input of the model", kind="bad-shape"
            )
        target.copy_(value.view_as(target))
    return model
