"""From names in a configuration to codecs: the one factory."""

from __future__ import annotations

from dataclasses import dataclass

from uniavgen.train.codec.audio import GriffinLim, MelCodec, Vocoder, Vocos
from uniavgen.train.codec.config import CodecConfig
from uniavgen.train.codec.text import CaptionEncoder, load_minilm, load_umt5
from uniavgen.train.codec.video import DctCodec, VideoCodec, WanCodec


@dataclass(frozen=True)
class Codecs:
    """The frozen codecs of a run; those of the picture are None in audio-only work."""

    mel: MelCodec
    video: VideoCodec | None = None
    caption: CaptionEncoder | None = None


def load_codecs(config: CodecConfig, *, with_video: bool = True, device: str = "cpu") -> Codecs:
    """Load what the configuration names. Raises UserError saying which weights are missing and where to name them."""
    mel = MelCodec(config.mel, device)
    if not with_video:
        return Codecs(mel)
    video: VideoCodec = (
        DctCodec(device) if config.video == "dct" else WanCodec.load(config.video_weights, device)
    )
    load_caption = {"minilm": load_minilm, "umt5": load_umt5}[config.caption]
    return Codecs(mel, video, load_caption(config.caption_weights, device))


def load_vocoder(config: CodecConfig, mel: MelCodec, device: str = "cpu") -> Vocoder:
    """The vocoder that the configuration names; only sampling needs one."""
    return (
        GriffinLim(mel)
        if config.vocoder == "griffin-lim"
        else Vocos.load(config.vocoder_weights, mel, device)
    )
