"""Memory that a forward pass keeps for the backward pass, by formula. Imports no torch.

Counts what autograd saves in `train.model.dit` and `train.model.interaction`, operation by operation: `item`
bytes for tensors in the model's dtype, 4 for what is always computed in fp32 (normalisation, modulation).
Attention is counted as a fused kernel, which keeps queries, keys, values and result but no scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from uniavgen.train.model.config import BranchConfig, ModelConfig
from uniavgen.train.model.flops import Shapes, audio_keys

FP32 = 4


@dataclass(frozen=True)
class Activations:
    """Bytes that the forward pass of a micro-batch keeps.

    components: by branch and in the interactions, without checkpointing; by_layer: the same by layer, first
    layer first; boundary: the streams between two layers, which is all that checkpointing keeps of a layer;
    ends: embeddings, heads and losses; working: what the backward pass of one layer needs temporarily.
    """

    components: dict[str, float]
    by_layer: tuple[float, ...]
    boundary: float
    ends: float
    working: float

    def peak(self, checkpointing: bool, gradients: float = 0.0) -> float:
        """Peak bytes in the backward pass; `gradients` are allocated while activations are freed."""
        layers = len(self.by_layer)
        most = gradients
        for index, layer in enumerate(self.by_layer):
            before = self.boundary * (index + 1) + layer if checkpointing else sum(self.by_layer[: index + 1])
            ends = self.ends if index == layers - 1 else 0.0
            most = max(most, before + ends + self.working + gradients * (layers - 1 - index) / layers)
        return most


def activations(config: ModelConfig, shapes: Shapes, samples: int, item: int) -> Activations:
    """Activations of a micro-batch; `item` is the bytes of a number in the model's dtype (bf16 2, fp32 4)."""
    ph, pw = config.video.patch
    side = (shapes.height // ph) * (shapes.width // pw)
    video, audio = shapes.latents * side, shapes.mels
    kept = {
        "video": _block(config.video, shapes.latents, side, shapes.caption_tokens, item),
        "audio": _block(config.audio, shapes.mels, 1, shapes.speech_tokens, item),
        "interactions": _interaction(config, shapes, side, item) if video and audio else 0.0,
    }
    blocks = config.video.layers
    interacting = config.interaction.layer_indices(blocks)
    ends = _ends(config.video, video, shapes.caption_tokens, item) + _ends(
        config.audio, audio, shapes.speech_tokens, item
    )
    ends += _speech_text(config, shapes.speech_tokens if audio else 0, item)
    wide = max(
        tokens * (item * branch.ffn_dim + FP32 * branch.dim)
        for tokens, branch in ((video, config.video), (audio, config.audio))
    )
    return Activations(
        components={
            "video": samples * blocks * kept["video"],
            "audio": samples * blocks * kept["audio"],
            "interactions": samples * len(interacting) * kept["interactions"],
        },
        by_layer=tuple(
            samples
            * (kept["video"] + kept["audio"] + (kept["interactions"] if index in interacting else 0.0))
            for index in range(blocks)
        ),
        boundary=samples * item * float(video * config.video.dim + audio * config.audio.dim),
        ends=samples * ends,
        # the interaction is first in a layer, so its backward pass gathers windows after the rest of the
        # layer is freed
        working=samples * max(wide, _gathered(config, shapes, side, item) - kept["video"] - kept["audio"]),
    )


def _block(config: BranchConfig, frames: int, side: int, text: int, item: int) -> float:
    """One block over frames x side tokens: self-attention, cross-attention, feed-forward."""
    tokens = frames * side
    if not tokens:
        return 0.0
    # normalised in fp32 (input, output), the input of q, k, v; fp32 RMSNorm of q and k; q, k, v, result;
    # gated fp32 result
    self_attention = 2 * FP32 + item + 2 * 2 * FP32 + 4 * item + FP32
    # input and output of LayerNorm; RMSNorm of q; q, result
    cross_attention = 2 * item + 2 * FP32 + 2 * item
    # normalised in fp32, input of the first linear layer, gated fp32 result; before and after the activation
    feed_forward = 2 * FP32 + item + FP32
    inner = 2 * item * config.ffn_dim
    # shift, scale and gate have one row per frame; keys and values of the text with their RMSNorm
    rows = frames * config.dim * 4 * FP32
    context = _text_tokens(config, text) * config.dim * (2 * FP32 + 2 * item)
    statistics = tokens * FP32 * (3 * 2 + 3 + 2 * config.heads)
    return float(
        tokens * (config.dim * (self_attention + cross_attention + feed_forward) + inner)
        + rows
        + context
        + statistics
    )


def _interaction(config: ModelConfig, shapes: Shapes, side: int, item: int) -> float:
    """Both directions and the face mask of one layer; references only pass the norms and the mask."""
    video, audio, how = config.video.dim, config.audio.dim, config.interaction
    latents, mels, up = shapes.clip_latents, shapes.clip_mels, FP32 if item < FP32 else 0
    tokens = latents * side
    # the stream, its fp32 copy, the mask's normalised input, the normalised stream, the masked stream
    streams = shapes.latents * side * video * (item + up + 3 * item) + shapes.mels * audio * (up + 2 * item)
    # q, residual and update; sgi keeps the attention result too, windows and pairs are recomputed in the
    # backward pass
    to_video = tokens * video * (4 if how.a2v == "sgi" else 3) * item + 2 * mels * video * item
    to_audio = mels * audio * (4 if how.v2a == "sgi" else 3) * item + 2 * tokens * audio * item
    return float(streams + to_video + to_audio)


def _gathered(config: ModelConfig, shapes: Shapes, side: int, item: int) -> float:
    """Keys and values that the backward pass of one direction gathers, with their gradients."""
    how, latents = config.interaction, shapes.clip_latents
    if not latents or not shapes.clip_mels:
        return 0.0
    window = latents * _padded(audio_keys(config, latents, shapes.clip_mels)) if how.a2v != "sgi" else 0
    to_video = (4 * window + 2 * latents * side) * config.video.dim
    pair = {"ati": 2, "sti": 1, "sgi": 0}[how.v2a]
    return float(item * max(to_video, 4 * latents * side * pair * config.audio.dim))


def _ends(config: BranchConfig, tokens: int, text: int, item: int) -> float:
    """Patches, text embedding, head and the squared error of the loss."""
    if not tokens:
        return 0.0
    patch = config.in_channels * math.prod(config.patch)
    head = tokens * config.dim * (2 * FP32 + item)
    embedded = _text_tokens(config, text) * (config.text_dim + 3 * config.dim) * item
    return float(head + tokens * patch * (item + 2 * FP32) + embedded)


def _speech_text(config: ModelConfig, tokens: int, item: int) -> float:
    speech = config.speech_text
    per_token = 5 * speech.dim + 6 * speech.dim * speech.expansion
    return float(speech.layers * tokens * per_token * item)


def _text_tokens(config: BranchConfig, text: int) -> int:
    return text if config.text_len is None else config.text_len


def _padded(window: float) -> int:
    """Slots of a window, padded to a multiple of 8 as in the index tables."""
    return 8 * math.ceil(window / 8)
