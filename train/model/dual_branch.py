"""The dual-branch model of UniAVGen: a video and an audio diffusion transformer that interact in some layers.

Either branch may be absent: stage audio trains the audio branch alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uniavgen.shards.errors import UserError
from uniavgen.train.batch import BranchInput, DualOutput
from uniavgen.train.model.alignment import Alignment, align
from uniavgen.train.model.config import ModelConfig
from uniavgen.train.model.dit import Block, Branch, Rope, Rows, Stream
from uniavgen.train.model.interaction import Interaction
from uniavgen.train.model.speech_text import SpeechText


def _self_attention(block: Block, x: Tensor, rows: Rows, stream: Stream) -> Tensor:
    return block.attend_self(x, rows, stream.layout, stream.rope, stream.mask)


def _cross_attention(block: Block, x: Tensor, rows: Rows, stream: Stream) -> Tensor:
    return block.attend_text(x, stream.context, stream.context_mask)


def _feed_forward(block: Block, x: Tensor, rows: Rows, stream: Stream) -> Tensor:
    return block.feed_forward(x, rows, stream.layout)


STEPS: dict[str, Callable[..., Tensor]] = {
    "before-self-attention": _self_attention,
    "before-cross-attention": _cross_attention,
    "before-ffn": _feed_forward,
}
"""The three parts of a block, in order, by the configured position of an interaction before it."""


@dataclass(frozen=True)
class ForwardTables:
    """Tables of a forward pass that depend on shapes and layouts only."""

    video_rope: Rope | None
    audio_rope: Rope | None
    alignment: Alignment | None


class DualBranch(nn.Module):
    """UniAVGen's model. `interactions` holds one module per interacting layer, keyed by the layer's index."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.video, self.audio = Branch(config.video), Branch(config.audio)
        self.speech_text = SpeechText(config.speech_text)
        indices = config.interaction.layer_indices(config.video.layers)
        self.interactions = nn.ModuleDict({str(index): Interaction(config) for index in indices})

    def forward(
        self,
        video: BranchInput | None,
        audio: BranchInput | None,
        *,
        interact: bool = True,
        gate: Tensor | None = None,
        checkpointing: bool = False,
    ) -> DualOutput:
        """Velocities of both branches, and the face masks of every interacting layer.

        `interact=False` removes both interactions (the u0 of MA-CFG); so does an absent branch, and for
        single samples a `gate` [B] of 0, which keeps all parameters in the graph.
        `checkpointing` keeps only the streams between layers and recomputes the rest in the backward pass.
        """
        return self.run(video, audio, self.tables(video, audio, interact), checkpointing, gate)

    def tables(
        self, video: BranchInput | None, audio: BranchInput | None, interact: bool = True
    ) -> ForwardTables:
        """Rotary and alignment tables of these shapes and layouts, computed on the host and cached.

        Raises UserError.
        """
        if video is None and audio is None:
            raise UserError("the model needs at least one branch's input", kind="bad-shape")
        alignment = None
        if video is not None and audio is not None and interact:
            alignment = align(self.config, video.layout, audio.layout, video.latent.device)
        return ForwardTables(
            None if video is None else self.video.rope(video),
            None if audio is None else self.audio.rope(audio),
            alignment,
        )

    def run(
        self,
        video: BranchInput | None,
        audio: BranchInput | None,
        tables: ForwardTables,
        checkpointing: bool,
        gate: Tensor | None = None,
    ) -> DualOutput:
        """The forward pass on tensors only: `torch.compile(model.run, fullgraph=True)` compiles it."""
        v = a = None
        if video is not None and tables.video_rope is not None:
            v = self.video.begin(video, video.text, tables.video_rope)
        if audio is not None and tables.audio_rope is not None:
            a = self.audio.begin(audio, self.speech_text(audio.text, audio.text_mask), tables.audio_rope)
        masks = []
        for index in range(self.config.video.layers):
            arguments = (
                index,
                v,
                a,
                tables.alignment,
                None if v is None else v.x,
                None if a is None else a.x,
                gate,
            )
            if checkpointing and torch.is_grad_enabled():
                vx, ax, mask = checkpoint(self._layer, *arguments, use_reentrant=False)
            else:
                vx, ax, mask = self._layer(*arguments)
            if v is not None:
                v.x = vx
            if a is not None:
                a.x = ax
            if mask is not None:
                masks.append(mask)
        return DualOutput(
            video=None if v is None or video is None else self.video.finish(v, video),
            audio=None if a is None or audio is None else self.audio.finish(a, audio).flatten(2),
            face_masks=torch.stack(masks) if masks else None,
        )

    def _layer(
        self,
        index: int,
        v: Stream | None,
        a: Stream | None,
        alignment: Alignment | None,
        vx: Tensor | None,
        ax: Tensor | None,
        gate: Tensor | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Layer `index` with its interaction, if it has one: new video tokens, audio tokens, face mask."""
        mask = None
        # stage audio is built without the video branch
        video = cast(Block, None if v is None else self.video.blocks[index])
        audio = cast(Block, None if a is None else self.audio.blocks[index])
        position = (
            self.config.interaction.position
            if alignment is not None and str(index) in self.interactions
            else None
        )
        video_rows = None if v is None else video.modulation(v.modulation)
        audio_rows = None if a is None else audio.modulation(a.modulation)
        for before, step in STEPS.items():
            if before == position:
                vx, ax, mask = self.interactions[str(index)](vx, ax, alignment, gate)
            if v is not None:
                vx = step(video, vx, video_rows, v)
            if a is not None:
                ax = step(audio, ax, audio_rows, a)
        return vx, ax, mask
