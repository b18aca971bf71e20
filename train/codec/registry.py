"""Table of codecs by name, the configuration that names them, and functions that load them.

Imports nothing heavy.

To add a codec, write a class with the methods of `VideoCodec`, `CaptionEncoder` or `Vocoder`, and add a row
here: configuration, help, memory planning and `uniavgen doctor` read the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from uniavgen.train.codec.config import MelConfig

if TYPE_CHECKING:
    from uniavgen.train.codec.audio import MelCodec, Vocoder
    from uniavgen.train.codec.text import CaptionEncoder
    from uniavgen.train.codec.video import VideoCodec

Load = TypeVar("Load", bound=Callable[..., object])


@dataclass(frozen=True)
class CodecSpec(Generic[Load]):
    """One codec. `load` imports its module and loads it from a weights folder or hub id, "" for none.

    `needs_weights`: the user must name weights. `fitted`: the weights are a file that is fitted to the
    corpus's training clips and kept beside its shards (`train.data.codec_fitting`). `parameters`: published
    count, for memory planning. `width`: width Dc of caption features. `flops`: to encode a pixel of a frame,
    or a token of a caption.
    """

    load: Load
    needs_weights: bool = False
    fitted: bool = False
    parameters: float = 0.0
    width: int = 0
    flops: float = 0.0


def _load_dct(weights: str, device: str) -> VideoCodec:
    from uniavgen.train.codec.video import DctCodec

    return DctCodec(device)


def _load_fitted(weights: str, device: str) -> VideoCodec:
    from uniavgen.train.codec.fitted import FittedCodec

    return FittedCodec.load(weights, device)


def _load_wan(weights: str, device: str) -> VideoCodec:
    from uniavgen.train.codec.video import WanCodec

    return WanCodec.load(weights, device)


def _load_minilm(weights: str, device: str) -> CaptionEncoder:
    from uniavgen.train.codec.text import load_minilm

    return load_minilm(weights, device)


def _load_umt5(weights: str, device: str) -> CaptionEncoder:
    from uniavgen.train.codec.text import load_umt5

    return load_umt5(weights, device)


def _load_griffin_lim(weights: str, mel: MelCodec, device: str) -> Vocoder:
    from uniavgen.train.codec.audio import GriffinLim

    return GriffinLim(mel)


def _load_vocos(weights: str, mel: MelCodec, device: str) -> Vocoder:
    from uniavgen.train.codec.audio import Vocos

    return Vocos.load(weights, mel, device)


VIDEO_CODECS: Mapping[str, CodecSpec[Callable[[str, str], VideoCodec]]] = {
    "dct": CodecSpec(_load_dct, flops=288.0),
    "fitted": CodecSpec(_load_fitted, needs_weights=True, fitted=True, flops=288.0),
    "wan2.2": CodecSpec(_load_wan, needs_weights=True, parameters=0.705e9, flops=3.51e6),
}
CAPTION_ENCODERS: Mapping[str, CodecSpec[Callable[[str, str], CaptionEncoder]]] = {
    "minilm": CodecSpec(_load_minilm, parameters=22.7e6, width=384, flops=21.3e6),
    "umt5": CodecSpec(_load_umt5, needs_weights=True, parameters=5.68e9, width=4096, flops=9.26e9),
}
VOCODERS: Mapping[str, CodecSpec[Callable[[str, MelCodec, str], Vocoder]]] = {
    "griffin-lim": CodecSpec(_load_griffin_lim),
    "vocos": CodecSpec(_load_vocos, needs_weights=True),
}

if TYPE_CHECKING:
    VideoCodecName: TypeAlias = str
    CaptionEncoderName: TypeAlias = str
    VocoderName: TypeAlias = str
else:
    VideoCodecName = Literal[tuple(VIDEO_CODECS)]
    CaptionEncoderName = Literal[tuple(CAPTION_ENCODERS)]
    VocoderName = Literal[tuple(VOCODERS)]


class CodecConfig(BaseModel):
    """Names of the codecs, and folders of weights that the user provides.

    The defaults need no download beyond the embedded weights. Each replaces a component of the paper.
    """

    model_config = ConfigDict(extra="forbid")
    video: VideoCodecName = Field(
        default="dct",
        description="`dct` needs no weights and replaces `wan2.2` (paper); `fitted` replaces it too, is "
        "fitted to the training clips and shows only what looks like them",
    )
    video_weights: str = Field(
        default="",
        description="`wan2.2`: folder of AutoencoderKLWan in diffusers layout; `fitted`: a codec file, empty "
        "for the one that is fitted and kept beside the shards",
    )
    caption: CaptionEncoderName = Field(
        default="minilm", description="`minilm` is embedded and replaces `umt5` (paper)"
    )
    caption_weights: str = Field(
        default="", description="folder or hub id of the encoder; empty: the embedded weights"
    )
    vocoder: VocoderName = Field(
        default="griffin-lim", description="`griffin-lim` needs no weights and replaces `vocos` (paper)"
    )
    vocoder_weights: str = Field(
        default="", description="folder or hub id of Vocos (config.yaml and pytorch_model.bin)"
    )
    mel: MelConfig = Field(default_factory=MelConfig, description="the audio latent")

    @property
    def caption_width(self) -> int:
        """Width Dc of the caption features, known before any weights are loaded."""
        return CAPTION_ENCODERS[self.caption].width

    @property
    def parameters(self) -> float:
        """Parameters of the video codec and the caption encoder together."""
        return VIDEO_CODECS[self.video].parameters + CAPTION_ENCODERS[self.caption].parameters


@dataclass(frozen=True)
class Codecs:
    """The frozen codecs of a run. `video` and `caption` are None in audio-only work."""

    mel: MelCodec
    video: VideoCodec | None = None
    caption: CaptionEncoder | None = None


def load_codecs(config: CodecConfig, *, with_video: bool = True, device: str = "cpu") -> Codecs:
    """Load the codecs that the configuration names.

    Raises UserError with the setting that names missing weights.
    """
    from uniavgen.train.codec.audio import MelCodec

    mel = MelCodec(config.mel, device)
    if not with_video:
        return Codecs(mel)
    video = VIDEO_CODECS[config.video].load(config.video_weights, device)
    return Codecs(mel, video, CAPTION_ENCODERS[config.caption].load(config.caption_weights, device))


def load_vocoder(config: CodecConfig, mel: MelCodec, device: str = "cpu") -> Vocoder:
    """Load the vocoder that the configuration names; only generation needs one."""
    return VOCODERS[config.vocoder].load(config.vocoder_weights, mel, device)
