"""Configuration of the dual-branch model. Imports no torch.

The defaults are the `tiny` size, which trains on two CPU cores; `ModelConfig.paper()` is the published size.
A field that the paper (arXiv 2511.03334v2) does not disclose says so and gives the reason for its default.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from uniavgen.shards.timing import MELS_PER_FRAME

Aligner = Literal["sgi", "sti", "ati"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BranchConfig(_Config):
    """A Wan-shaped diffusion transformer over frames of h x w tokens (audio: one token a frame)."""

    dim: int = Field(ge=8, description="Width of the token stream.")
    layers: int = Field(ge=1, description="Transformer blocks.")
    heads: int = Field(ge=1, description="Attention heads; dim / heads must be an even number of at least 6.")
    ffn_dim: int = Field(ge=8, description="Inner width of the feed-forward part.")
    in_channels: int = Field(
        ge=1, description="Latent channels: 48 for Wan 2.2 latents, mel bands for audio."
    )
    patch: tuple[int, int] = Field(default=(1, 1), description="Patch height and width; time is not patched.")
    text_dim: int = Field(
        ge=1, description="Width of the text features: umT5 4096, MiniLM 384; audio: that of `speech_text`."
    )
    text_len: int | None = Field(
        default=None,
        description="Wan pads text with zero features to 512 and attends to all of them: 512 fits its "
        "weights. None masks padding instead, which is cheaper; then an empty text is one "
        "zero feature.",
    )
    freq_dim: int = Field(default=256, ge=2, description="Width of the sinusoidal time embedding (Wan: 256).")
    fp32_time: bool = Field(
        default=False,
        description="Compute the time embedding and the modulation from it in fp32 under bf16 and fp16, as "
        "Wan does; the stored weights keep their dtype. False: in the model's dtype, as in runs of 0.5 "
        "and older.",
    )
    eps: float = Field(default=1e-6, gt=0, description="Epsilon of every normalisation (Wan: 1e-6).")
    rope_theta: float = Field(
        default=10_000.0, gt=0, description="Base of the rotary frequencies (Wan: 10000)."
    )
    rope_axes: Literal["time-height-width", "time"] = Field(
        default="time-height-width",
        description="Wan splits a head 44/42/42 over time, height and width. `time` gives the whole head "
        "to time. The paper says only that audio has the 1.3B template: audio defaults to "
        "`time`, since it has one row and one column.",
    )
    prediction: Literal["velocity", "data"] = Field(
        default="velocity",
        description="What the network's output is: the velocity (paper, Wan), or the clean latent x0, from "
        "which the velocity (x_t - x0) / t follows. `data` is ours, for small models: what the target "
        "looks like does not depend on the noise.",
    )
    places: tuple[int, int] | None = Field(
        default=None,
        description="Height and width of the token grid, to give each of its places a patch embedding and a "
        "head projection of its own, biases included. None: one for all (paper, Wan). Ours, for small models "
        "on aligned crops at one size.",
    )

    @model_validator(mode="after")
    def _check(self) -> BranchConfig:
        if self.dim % self.heads or (self.dim // self.heads) % 2 or self.dim // self.heads < 6:
            raise ValueError(
                f"dim {self.dim} / heads {self.heads} must be an even whole number of at least 6"
            )
        if self.freq_dim % 2:
            raise ValueError(f"freq_dim must be even, got {self.freq_dim}")
        if self.places is not None and min(self.places) < 1:
            raise ValueError(f"places must be at least 1 x 1, got {self.places}")
        return self

    @property
    def head_dim(self) -> int:
        return self.dim // self.heads


class SpeechTextConfig(_Config):
    """ConvNeXt V2 blocks over the bytes of the text to be spoken (the paper names no sizes)."""

    dim: int = Field(
        default=64, ge=8, description="Width of the features. Undisclosed; `paper` takes 512, as F5-TTS does."
    )
    layers: int = Field(
        default=2, ge=0, description="ConvNeXt V2 blocks. Undisclosed; `paper` takes 4, as F5-TTS does."
    )
    expansion: int = Field(
        default=2, ge=1, description="Inner width over `dim`. Undisclosed; 2 as in F5-TTS."
    )
    kernel: int = Field(default=7, ge=1, description="Width of the depthwise convolution, odd (ConvNeXt: 7).")
    vocabulary: int = Field(
        default=257,
        ge=2,
        description="Byte ids 1..256 and 0 for padding. The paper's tokens are undisclosed.",
    )


class InteractionConfig(_Config):
    """Cross-modal interaction; `a2v` is audio into video, `v2a` video into audio (paper, section 3.2)."""

    a2v: Aligner = Field(
        default="ati",
        description="sgi: all tokens; sti: the block of the same time; ati: a window of blocks.",
    )
    v2a: Aligner = Field(
        default="ati",
        description="sgi: all tokens; sti: the latent of the same time; ati: interpolated latents.",
    )
    layers: Literal["interleaved", "all", "first-half", "last-half"] = Field(
        default="interleaved", description="Best in Table 7."
    )
    interleave_from: Literal[0, 1] = Field(
        default=1,
        description="First layer of `interleaved`. Undisclosed; 1, because layer 0 has patch embeddings "
        "only.",
    )
    position: Literal["before-self-attention", "before-cross-attention", "before-ffn"] = Field(
        default="before-self-attention", description="Where in a block the interaction is. Best in Table 8."
    )
    window: int = Field(
        default=12, ge=0, description="Blocks on either side in an A2V window: 12 in the paper."
    )
    window_unit: Literal["frame", "latent"] = Field(
        default="frame",
        description="Unit of `window`, unclear in the paper. 12 pixel frames are +-0.75 s; 12 latents of "
        "its 21 would be near-global, although its ablation shows a difference to sgi.",
    )
    interpolate_over: Literal["frame", "latent"] = Field(
        default="frame",
        description="Where V2A interpolates. Supplement 6.2 replicates a latent to its 4 pixel frames "
        "first (`frame`); the main text's formula runs over a latent's whole block "
        "(`latent`).",
    )
    mels_per_frame: Fraction = Field(
        default=MELS_PER_FRAME,
        gt=0,
        description="k per pixel frame: mel frames that start in one, 375/64 for 24 kHz, hop 256 and 16 "
        "fps. The paper's hop is undisclosed.",
    )
    positions: Literal["none", "time"] = Field(
        default="time",
        description="Positions of queries and keys. Undisclosed: the paper's equations show none, and the "
        "text does not say that there are none. `none`: exactly the equations. `time`: both "
        "are rotated by their time in video latents (full head, base of the querying branch; "
        "Ovi, arXiv 2510.01284, scales its audio's rotary embedding in the same way). `time`, "
        "because otherwise a window does not distinguish early from late audio: in `uniavgen "
        "ablate` sync is 0.27 (ATI) and 0.52 (STI) without, and 0.82 to 0.86 with it, for "
        "every aligner.",
    )
    pre_norm: bool = Field(
        default=True,
        description="Layer-normalise both streams before the interaction's projections. Not in the "
        "paper's equations; without it the large activations of pretrained streams saturate "
        "the softmax.",
    )

    def layer_indices(self, layers: int) -> tuple[int, ...]:
        """Indices of the blocks, of `layers` in all, that carry an interaction."""
        half = layers // 2
        chosen = {
            "interleaved": range(self.interleave_from, layers, 2),
            "all": range(layers),
            "first-half": range(half),
            "last-half": range(half, layers),
        }
        return tuple(chosen[self.layers])


class FaceConfig(_Config):
    """Face-aware modulation and its supervision (paper, section 3.3)."""

    mode: Literal["none", "unsupervised", "fixed", "decayed"] = Field(
        default="decayed", description="The four rows of the ablation."
    )
    lambda_start: float = Field(
        default=0.1, ge=0, description="lambda_m at the start (paper: 0.1); `fixed` keeps it."
    )
    lambda_end: float = Field(
        default=0.0, ge=0, description="lambda_m at the end of a `decayed` schedule (paper: 0)."
    )
    reduction: Literal["sum-layers", "mean", "sum"] = Field(
        default="sum-layers",
        description="The paper writes a sum over layers of a squared norm; whether tokens are summed is "
        "unclear. `sum-layers`: sum over layers, mean over tokens, so that 0.1 is "
        "commensurate with the velocity losses; `mean`: mean over both; `sum`: sum over both. "
        "Always the mean over samples.",
    )
    supervise: Literal["noisy", "clip"] = Field(
        default="noisy",
        description="Frames whose masks are scored. Undisclosed for tasks with conditions; `noisy` "
        "excludes clean tokens, as in every other loss; `clip` includes the condition's "
        "frames.",
    )


class ModelConfig(_Config):
    """The dual-branch model. Defaults: `tiny`."""

    video: BranchConfig = BranchConfig(
        dim=128, layers=4, heads=4, ffn_dim=384, in_channels=48, patch=(2, 2), text_dim=384
    )
    audio: BranchConfig = BranchConfig(
        dim=96, layers=4, heads=3, ffn_dim=288, in_channels=100, text_dim=64, rope_axes="time"
    )
    speech_text: SpeechTextConfig = SpeechTextConfig()
    interaction: InteractionConfig = InteractionConfig()
    face: FaceConfig = FaceConfig()

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.video.layers != self.audio.layers:
            raise ValueError(
                f"video.layers {self.video.layers} and audio.layers {self.audio.layers} must be equal"
            )
        if self.audio.text_dim != self.speech_text.dim:
            raise ValueError(
                f"audio.text_dim {self.audio.text_dim} must equal speech_text.dim {self.speech_text.dim}"
            )
        if self.audio.patch != (1, 1):
            raise ValueError(f"audio.patch must be (1, 1), got {self.audio.patch}")
        if self.speech_text.kernel % 2 == 0:
            raise ValueError(f"speech_text.kernel must be odd, got {self.speech_text.kernel}")
        return self

    @classmethod
    def tiny(cls) -> ModelConfig:
        """The size that trains on a laptop's CPU: about 2.3 M parameters."""
        return cls()

    @classmethod
    def paper(cls) -> ModelConfig:
        """The published size, 7.05 B parameters: Wan2.2-TI2V-5B for video, the 1.3B template for audio."""
        video = BranchConfig(
            dim=3072,
            layers=30,
            heads=24,
            ffn_dim=14336,
            in_channels=48,
            patch=(2, 2),
            text_dim=4096,
            text_len=512,
            fp32_time=True,
        )
        audio = BranchConfig(
            dim=1536,
            layers=30,
            heads=12,
            ffn_dim=8960,
            in_channels=100,
            text_dim=512,
            rope_axes="time",
            fp32_time=True,
        )
        return cls(video=video, audio=audio, speech_text=SpeechTextConfig(dim=512, layers=4))


class PretrainedConfig(_Config):
    """Weights for the start of a stage: checkpoints of Wan for its branches, or an export of this package."""

    video: str = Field(
        default="",
        description="safetensors file or folder for the video branch: Wan2.2-TI2V-5B, in the original or the "
        "diffusers layout; empty: none",
    )
    audio: str = Field(default="", description="the same for the audio branch, whose template is Wan2.1-1.3B")
    skip: list[str] = Field(
        default_factory=list,
        description="name prefixes of parts that are initialised at random, because the checkpoint has "
        "other shapes: for an audio branch from a Wan video model audio.patch_embedding, "
        "audio.text_embedding and audio.head",
    )
    export: str = Field(
        default="",
        description="folder that `uniavgen export` wrote: all parts of the model, except branches named here",
    )

    @property
    def checkpoints(self) -> dict[str, str]:
        """Branch -> checkpoint, without empty ones."""
        named = {"video": self.video, "audio": self.audio}
        return {branch: path for branch, path in named.items() if path}
