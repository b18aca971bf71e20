"""FLOPs and memory of a forward pass of the video-to-audio transformer, by formula. Imports no torch.

FLOPs are counted as in `train.model.flops`: two for a multiplication and its addition, nothing for
element-wise operations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from uniavgen.train.model.memory import FP32, Activations
from uniavgen.train.model.mmdit.config import AUDIO, SYNC, MMDiTConfig

PER_BLOCK = {(False, False): 130, (False, True): 182, (True, False): 162, (True, True): 225}
"""Operations of one block of one layer, by half precision and activation checkpointing. Counted."""
ENDS, PER_STREAM = 120, 60
"""Operations of conditions, last layer and loss, and of embedding each input. Counted."""


@dataclass(frozen=True)
class SoundShapes:
    """Sizes of one sample's input: `audio` latents, tokens of each stream, features of `sync`, by name."""

    lengths: Mapping[str, int]


def block_lengths(config: MMDiTConfig, shapes: SoundShapes) -> dict[str, int]:
    """Tokens of each block."""
    lengths = {
        name: sum(shapes.lengths[stream.name] for stream in streams)
        for name, streams in config.blocks.items()
    }
    return lengths | {AUDIO: shapes.lengths[AUDIO]}


def forward_flops(config: MMDiTConfig, shapes: SoundShapes) -> dict[str, float]:
    """FLOPs of one sample's forward pass: `inputs`, `joint`, `fused`, `conditions`, `total`."""
    lengths, dim = block_lengths(config, shapes), config.dim
    whole, joint = sum(lengths.values()), 0
    for layer in range(config.joint_layers):
        joint += 2 * dim * whole**2
        for name, streams in config.blocks.items():
            last = layer == config.joint_layers - 1
            reads_only = bool(streams) and (last or not streams[0].updates)
            joint += _stream_block(config, name, lengths[name], reads_only)
    audio = lengths[AUDIO]
    fused = config.audio_layers * (_stream_block(config, AUDIO, audio, False) + 2 * dim * audio**2)
    counts = {
        "inputs": 2.0 * _inputs(config, shapes.lengths),
        "joint": 2.0 * joint,
        "fused": 2.0 * fused,
        "conditions": 2.0 * _conditions(config, audio),
    }
    return counts | {"total": sum(counts.values())}


def _stream_block(config: MMDiTConfig, block: str, tokens: int, reads_only: bool) -> int:
    """Multiplications of a block's weights: attention's projection, modulation, MLP."""
    dim, kernel = config.dim, 3 if config.convolutional(block) else 1
    # audio is modulated frame by frame
    conditions = tokens if block == AUDIO and config.frame else 1
    count = tokens * 3 * dim**2 + conditions * (2 if reads_only else 6) * dim**2
    if not reads_only:
        count += tokens * kernel * (dim**2 + 3 * dim * config.hidden)
    return count


def _inputs(config: MMDiTConfig, lengths: Mapping[str, int]) -> int:
    dim, mlp = config.dim, 3 * config.dim * config.hidden
    kernel = 7 if config.convolutional(AUDIO) else 1
    count = lengths[AUDIO] * (7 * config.channels * dim + kernel * mlp)
    for stream in config.streams:
        kernel = 3 if stream.feed_forward == "conv" else 1
        count += lengths[stream.name] * (stream.channels * dim + kernel * mlp)
        encoder = config.transcript
        if stream.ids and encoder is not None:
            per_token = 2 * encoder.dim**2 * encoder.expansion + encoder.dim * encoder.kernel
            count += lengths[stream.name] * encoder.layers * per_token
    if config.frame:
        count += lengths[SYNC] * (7 * config.frame.channels * dim + 3 * mlp)
    return count


def _conditions(config: MMDiTConfig, audio: int) -> int:
    dim, mlp = config.dim, 3 * config.dim * config.hidden
    pools = [stream.pools_into for stream in config.streams]
    pools += [config.frame.pools_into] if config.frame else []
    pooled = {block for blocks in pools for block in blocks}
    count = config.time_width * dim + dim**2 + sum(len(blocks) for blocks in pools) * dim**2
    count += len(pooled) * mlp if config.condition_mlp else 0
    final = audio if config.final_condition == "frame" and config.frame else 1
    return count + final * 2 * dim**2 + audio * 7 * dim * config.channels


def activations(config: MMDiTConfig, shapes: SoundShapes, samples: int, item: int) -> Activations:
    """Activations of a micro-batch; `item` is the bytes of a number in the model's dtype."""
    lengths = block_lengths(config, shapes)
    joint = sum(_kept(config, name, tokens, item) for name, tokens in lengths.items())
    last = sum(
        _kept(config, name, tokens, item, reads_only=name != AUDIO) for name, tokens in lengths.items()
    )
    fused = _kept(config, AUDIO, lengths[AUDIO], item)
    by_layer = (*[samples * joint] * (config.joint_layers - 1), samples * last)
    ends = sum(tokens * item * (config.dim * 2 + 4 * config.hidden) for tokens in shapes.lengths.values())
    widest = max(lengths.values())
    return Activations(
        components={"joint": sum(by_layer), "fused": samples * config.audio_layers * fused},
        by_layer=(*by_layer, *[samples * fused] * config.audio_layers),
        boundary=samples * item * float(sum(lengths.values()) * config.dim),
        ends=samples * float(ends),
        working=samples * float(widest * (item * config.hidden + FP32 * config.dim)),
    )


def operations(config: MMDiTConfig, *, half: bool, checkpointing: bool) -> int:
    """Operations of the forward and backward pass of one micro-batch, as in `train.model.operations`.

    `half`: bf16 or fp16; `checkpointing`: activations are recomputed.
    """
    blocks = len({stream.block for stream in config.streams} | {AUDIO})
    layers = config.joint_layers * blocks + config.audio_layers
    return ENDS + PER_STREAM * len(config.streams) + layers * PER_BLOCK[half, checkpointing]


def _kept(config: MMDiTConfig, block: str, tokens: int, item: int, *, reads_only: bool = False) -> float:
    """Bytes that one block keeps: normalised inputs, q, k, v, attention's result, and the MLP's branches."""
    dim, modulated = config.dim, tokens if block == AUDIO and config.frame else 1
    # input and result of the normalisation in fp32, its modulated value; q, k before and after their
    # normalisation and rotation, v
    attention = tokens * dim * (2 * FP32 + item + 7 * item)
    rows = modulated * dim * item * (2 if reads_only else 6)
    if reads_only:
        return attention + rows
    # attention's result, both gated terms, the second normalisation; silu's input and result, w3's, product
    rest = tokens * dim * (3 * item + 2 * FP32 + item) + tokens * config.hidden * 4 * item
    return attention + rows + rest
