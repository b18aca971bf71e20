"""Audio codec: waveform to normalised log-mel (the audio latent), and vocoders for the way back.

    waveform [B, n] float in -1..1 at 24 kHz
    mel [B, 100, L] of about unit variance; frame j is centred on sample j * hop

`GriffinLim` needs no weights and replaces `Vocos`, the paper's vocoder.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.train.codec.config import MelConfig


class MelCodec:
    """Vocos-compatible log-mel: magnitude STFT, Hann window, centred frames, HTK mel bands, natural log."""

    name = "mel"

    def __init__(self, config: MelConfig, device: str = "cpu") -> None:
        from torchaudio.transforms import MelSpectrogram

        self.config = config
        self.digest = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:16]
        self.spectrogram = MelSpectrogram(
            config.sample_rate,
            n_fft=config.n_fft,
            hop_length=config.hop,
            n_mels=config.mels,
            center=True,
            power=1,
        ).to(device)
        self.filters: Tensor = self.spectrogram.mel_scale.fb  # [n_fft / 2 + 1, mels]

    @torch.no_grad()
    def encode(self, waveform: Tensor, frames: int) -> Tensor:
        """Waveform [B, n] -> mel [B, mels, frames]. Raises UserError if the waveform is too short."""
        log_mel = self.spectrogram(waveform.to(self.filters.device)).clamp(min=self.config.floor).log()
        if log_mel.shape[-1] < frames:
            raise UserError(
                f"{waveform.shape[-1]} samples give {log_mel.shape[-1]} mel frames, {frames} are needed",
                kind="bad-length",
            )
        return (log_mel[..., :frames] - self.config.mean) / self.config.std

    def log_mel(self, mel: Tensor) -> Tensor:
        """Log-mel of a normalised mel: the input of vocoders."""
        return mel * self.config.std + self.config.mean


class Vocoder(Protocol):
    """Converts a mel to a waveform."""

    name: str
    description: str

    def decode(self, mel: Tensor, samples: int) -> Tensor:
        """Normalised mel [B, mels, L] -> waveform float32 [B, samples] in -1..1, cut or padded at the end."""
        ...


class GriffinLim:
    """Non-negative least squares for the magnitudes, then torchaudio's fast Griffin-Lim for the phase."""

    name = "griffin-lim"
    description = "Griffin-Lim phase reconstruction without weights, sounds metallic: a stand-in for Vocos"

    def __init__(self, codec: MelCodec, iterations: int = 64) -> None:
        self.codec = codec
        self.iterations = iterations

    @torch.no_grad()
    def decode(self, mel: Tensor, samples: int) -> Tensor:
        """See Vocoder. Deterministic."""
        from torchaudio.functional import griffinlim

        config = self.codec.config
        magnitude = invert_filters(self.codec.log_mel(mel.float()).exp(), self.codec.filters)
        with torch.random.fork_rng(devices=[mel.device] if mel.is_cuda else []):
            torch.manual_seed(0)  # griffinlim starts from random phases
            waveform = griffinlim(
                magnitude,
                window=torch.hann_window(config.n_fft, device=mel.device),
                n_fft=config.n_fft,
                hop_length=config.hop,
                win_length=config.n_fft,
                power=1,
                n_iter=self.iterations,
                momentum=0.99,
                length=None,
                rand_init=True,
            )
        return fit_length(waveform, samples)


def invert_filters(mel: Tensor, filters: Tensor, iterations: int = 32) -> Tensor:
    """Magnitudes [B, bins, L] >= 0 whose mel is closest to `mel` [B, mels, L] (Lee & Seung updates)."""
    target = filters @ mel
    gram = filters @ filters.T
    # a bin under no filter stays silent; the others start from the bands around them
    magnitude = target / (filters.sum(1)[:, None] ** 2).clamp(min=1e-6)
    for _ in range(iterations):
        magnitude = magnitude * target / (gram @ magnitude).clamp(min=1e-8)
    return magnitude


def fit_length(waveform: Tensor, samples: int) -> Tensor:
    """Cut or zero-pad [B, n] at the end to [B, samples], and clamp to -1..1."""
    short = max(0, samples - waveform.shape[-1])
    return torch.nn.functional.pad(waveform[..., :samples], (0, short)).clamp(-1, 1)


class Vocos:
    """The paper's vocoder, through the `vocos` package."""

    name = "vocos"
    description = "the Vocos vocoder, as in the paper"

    def __init__(self, model: Any, codec: MelCodec) -> None:
        self.model = model
        self.codec = codec

    @staticmethod
    def load(source: str, codec: MelCodec, device: str = "cpu") -> Vocos:
        """Load a folder with `config.yaml` and `pytorch_model.bin`, or a hub id.

        Raises UserError if it cannot.
        """
        hint = (
            "name train.data.codecs.vocoder_weights (charactr/vocos-mel-24khz), "
            "or use train.data.codecs.vocoder=griffin-lim"
        )
        try:
            from vocos import Vocos as Model
        except ImportError as error:
            raise UserError(
                "the vocos package is not installed",
                hint="pip install vocos, or use train.data.codecs.vocoder=griffin-lim",
            ) from error
        if not source:
            raise UserError(
                "vocoder vocos needs weights",
                where="train.data.codecs.vocoder_weights",
                hint=hint,
                kind="missing-weights",
            )
        try:
            if not Path(source).is_dir():
                model = Model.from_pretrained(source)
            else:
                model = Model.from_hparams(str(Path(source) / "config.yaml"))
                model.load_state_dict(
                    torch.load(Path(source) / "pytorch_model.bin", map_location="cpu", weights_only=True)
                )
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"Vocos cannot be loaded: {str(error).splitlines()[0]}",
                where=source,
                hint=hint,
                kind="missing-weights",
            ) from error
        return Vocos(model.eval().to(device), codec)

    @torch.no_grad()
    def decode(self, mel: Tensor, samples: int) -> Tensor:
        """See Vocoder."""
        return fit_length(self.model.decode(self.codec.log_mel(mel.float())), samples)
