"""Who speaks when, and how each voice sounds: pyannote.audio's diarization with weights that need no account.

Goes in: int16 [n] at 16 kHz. Comes out: turns (`Span`s labelled SPEAKER_00, ...; they may overlap) and a mean voice
embedding of 192 numbers per speaker. Segmentation is the model bundled with WhisperX, voices are SpeechBrain's ECAPA-TDNN,
clustering is agglomerative. Settings: see `DiarizationConfig`; those of the clustering lie in the middle of a plateau.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ingest.config import DiarizationConfig
from ingest.records import AUDIO_RATE, Span
from shards.weights import resolve

VOICE_SIZE = 192
SHORTEST_VOICE_S = 0.5
"""Less speech than this gives no embedding (pyannote's own limit for SpeechBrain models)."""


class VoiceEncoder:
    """ECAPA-TDNN: waveforms to voice embeddings. Has the interface that pyannote asks of an embedding."""

    sample_rate = AUDIO_RATE
    dimension = VOICE_SIZE
    metric = "cosine"
    min_num_samples = round(SHORTEST_VOICE_S * AUDIO_RATE)

    def __init__(self, config: DiarizationConfig, device: str = "cpu") -> None:
        import torch
        from speechbrain.lobes.features import Fbank
        from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN

        _forget_lazy_modules()

        self.device = torch.device(device)
        self._longest = round(config.voice_seconds * AUDIO_RATE)
        self._features = Fbank(n_mels=80).to(self.device)
        self._model = ECAPA_TDNN(80, channels=[1024] * 4 + [3072], lin_neurons=VOICE_SIZE)
        weights = resolve("ecapa", config.ecapa_folder or None) / "embedding_model.ckpt"
        self._model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self._model.eval().to(self.device)

    def to(self, device: Any) -> VoiceEncoder:
        return self

    def __call__(self, waveforms: Any, masks: Any = None) -> np.ndarray:
        """Embeddings float32 [B, 192] of `waveforms` [B, 1, n]; `masks` [B, frames] choose the speech that counts.

        A row with less than half a second of speech is NaN; of more than `voice_seconds` the middle is used.
        """
        import torch

        voices = np.full((len(waveforms), VOICE_SIZE), np.nan, np.float32)
        for row, waveform in enumerate(waveforms[:, 0]):
            speech = waveform
            if masks is not None:
                mask = torch.nn.functional.interpolate(masks[row][None, None].float(), size=len(waveform), mode="nearest")
                speech = waveform[mask[0, 0] > 0.5]
            if len(speech) < self.min_num_samples:
                continue
            skip = max(0, len(speech) - self._longest) // 2
            with torch.inference_mode():
                features = self._features(speech[skip : skip + self._longest].to(self.device)[None])
                # sentence-mean normalisation, as the weights were trained
                voice = self._model(features - features.mean(dim=1, keepdim=True))
            voices[row] = voice[0, 0].cpu().numpy()
        return voices


def _forget_lazy_modules() -> None:
    """SpeechBrain leaves placeholders in sys.modules that raise when anyone inspects them (tracebacks and test tools do)."""
    for name, module in list(sys.modules.items()):
        if any(kind.__name__ == "LazyModule" for kind in type(module).__mro__):
            del sys.modules[name]


class Diarizer:
    """pyannote's SpeakerDiarization, loaded once."""

    def __init__(self, config: DiarizationConfig, device: str = "cpu") -> None:
        os.environ["PYANNOTE_METRICS_ENABLED"] = "0"  # before the import: it counts its users otherwise
        warnings.filterwarnings("ignore", module="pyannote|torchaudio|speechbrain")
        import pyannote.audio.pipelines.speaker_diarization as pipelines
        import torch
        import whisperx
        from pyannote.audio.core.plda import PLDA

        encoder = VoiceEncoder(config, device)
        segmentation = Path(whisperx.__file__).parent / "assets" / "pytorch_model.bin"
        makes_embedding = pipelines.PretrainedSpeakerEmbedding
        # the constructor knows embeddings by the names of hubs only, and asks for a PLDA that this clustering never uses
        pipelines.PretrainedSpeakerEmbedding = lambda *args, **kwargs: encoder
        try:
            self._pipeline = pipelines.SpeakerDiarization(
                segmentation=str(segmentation),
                segmentation_step=config.segmentation_step,
                segmentation_batch_size=config.batch_size,
                embedding="ecapa",
                embedding_batch_size=32,
                embedding_exclude_overlap=True,
                plda=object.__new__(PLDA),
                clustering="AgglomerativeClustering",
            )
        finally:
            pipelines.PretrainedSpeakerEmbedding = makes_embedding
        self._pipeline.to(torch.device(device))
        self._pipeline.instantiate(
            {
                "segmentation": {"threshold": config.segmentation_threshold, "min_duration_off": 0.0},
                "clustering": {
                    "method": "average",
                    "threshold": config.cluster_threshold,
                    "min_cluster_size": config.min_cluster_size,
                },
            }
        )

    def diarize(self, pcm: np.ndarray) -> tuple[list[Span], dict[str, list[float]]]:
        """Turns, in order, and each speaker's voice; nothing where nobody speaks."""
        import torch

        if not len(pcm):
            return [], {}
        waveform = torch.from_numpy(pcm.astype(np.float32) / 32768)[None]
        found = self._pipeline({"waveform": waveform, "sample_rate": AUDIO_RATE, "uri": "source"})
        labels = found.speaker_diarization.labels()
        length = len(pcm) / AUDIO_RATE
        turns = [
            Span(max(0.0, float(turn.start)), min(length, float(turn.end)), label)  # windows reach past the end
            for turn, _, label in found.speaker_diarization.itertracks(yield_label=True)
            if turn.start < length
        ]
        voices = {
            label: [float(x) for x in voice]
            for label, voice in zip(labels, found.speaker_embeddings, strict=False)
            if np.isfinite(voice).all() and np.any(voice)
        }
        return sorted(turns, key=lambda turn: (turn.start_s, turn.end_s, turn.label)), voices
