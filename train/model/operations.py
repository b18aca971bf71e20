"""Operations that a micro-step launches, by formula. Imports no torch.

An operation reads or writes tensors; views are not counted. Small models and short sequences wait for
launches, not for FLOPs. The numbers are counted on the real objective and model, forward and backward pass.
"""

from __future__ import annotations

from uniavgen.train.model.config import ModelConfig

PER_LAYER = {("fp32", False): 226, ("fp32", True): 297, ("half", False): 280, ("half", True): 371}
"""Operations of one layer of one branch, by dtype and activation checkpointing. Half precision adds casts."""
PER_INTERACTION = {("fp32", False): 237, ("fp32", True): 310, ("half", False): 277, ("half", True): 360}
"""Operations of both interactions of one layer, with the face mask."""
ENDS = {"audio": 260, "joint": 430}
"""Embeddings, speech text encoder, heads and losses, of the audio branch alone and of both branches."""


def operations(config: ModelConfig, *, has_video: bool, half: bool, checkpointing: bool) -> int:
    """Operations of the forward and backward pass of one micro-batch, of any number of samples.

    `half`: bf16 or fp16; `checkpointing`: activations are recomputed.
    """
    how = ("half" if half else "fp32", checkpointing)
    layers = config.video.layers
    if not has_video:
        return ENDS["audio"] + layers * PER_LAYER[how]
    meetings = len(config.interaction.layer_indices(layers))
    return ENDS["joint"] + 2 * layers * PER_LAYER[how] + meetings * PER_INTERACTION[how]
