"""Step `listen`: audio quality of each clip by signal measurements and DNSMOS, and the pitch of its voice."""

from __future__ import annotations

from typing import Any

import numpy as np

from uniavgen.ingest.config import IngestConfig, SoundQualityConfig
from uniavgen.ingest.engine.step import Step
from uniavgen.ingest.io import media
from uniavgen.ingest.io.audio import AudioFile, made_audio
from uniavgen.ingest.records import (
    AUDIO_RATE,
    AudioMeasures,
    ClipAudio,
    PlayableCopy,
    Proposals,
    SourceRecord,
)
from uniavgen.shards.corpus.signals import signals_of
from uniavgen.shards.weights import resolve

FULL_RATE = 48_000
"""Sample rate at which the bandwidth is measured: nobody hears what audio holds above 24 kHz."""

SILENCE_DB = -100.0
"""Level reported for digital silence."""

QUIET_DB = -40.0
"""Level of a silent cell, relative to the loudest second. Heuristic."""

EDGE_DB = -65.0
"""Level of the weakest band that holds energy, relative to the strongest. Heuristic: codecs cut deeper."""

SIGNAL_OVER_NOISE_DB = 10.0
"""Loud over quiet moments of a band that holds more than background. Heuristic: noise stays under 6 dB."""

DNSMOS_SAMPLES = 144_160
"""Length of DNSMOS's input: 9.01 s. As in the reference code, shorter clips are repeated and longer ones are
rated in windows one second apart; one more window at the end makes all of a clip count."""

_SIGNAL_FIT = (-0.08397278, 1.22083953, 0.0052439)
_BACKGROUND_FIT = (-0.13166888, 1.60915514, -0.39604546)
_OVERALL_FIT = (-0.06766283, 1.11546468, 0.04602535)
"""Polynomials from the network's outputs to opinion scores, as published with DNSMOS P.835."""

LOW_HZ, HIGH_HZ = 60.0, 400.0
"""Range of the fundamental frequency, from low male voices to high children's voices. Heuristic."""

PITCH_FRAME, PITCH_HOP = AUDIO_RATE * 50 // 1000, AUDIO_RATE * 20 // 1000
"""50 ms, three periods of 60 Hz, as the method requires; every 20 ms."""

VOICED = 0.45
"""Autocorrelation peak from which a frame is voiced (Praat's default)."""

OCTAVE_COST = 0.01
"""Cost per octave of a lower candidate (Praat's default), against subharmonics."""


class ListenStep(Step):
    """Audio signals of each clip. The bandwidth is the source's, decoded at a rate that shows it."""

    name = "listen"
    pool = "sight"
    version = "3"
    needs = ("sound", "propose")
    settings = ("sound_quality",)
    result = AudioMeasures
    _meter: Any = None

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        resolve("dnsmos", config.sound_quality.dnsmos_folder or None)

    def load(self) -> None:
        self._meter = self._meter or AudioMeter(self.config.sound_quality)

    def try_models(self) -> None:
        with made_audio(1.0) as audio:
            self._meter.signals(audio.span(0.0, 1.0))

    def measure(self, record: SourceRecord) -> AudioMeasures:
        audio, clips = record.result(AudioFile), record.result(Proposals).clips
        if not audio.samples:
            return AudioMeasures([ClipAudio({}) for _ in clips])
        seconds = min(self.config.sound_quality.bandwidth_seconds, audio.duration_s)
        playable = record.result(PlayableCopy)
        full_rate = media.decode_audio_span(
            playable.path, playable.probe, 0.0, seconds, FULL_RATE, self.config.limits
        )
        bandwidth = {"bandwidth_hz": bandwidth_hz(full_rate, FULL_RATE)}
        return AudioMeasures(
            [
                ClipAudio(self._meter.signals(audio.span(clip.start_s, clip.end_s)) | bandwidth)
                for clip in clips
            ]
        )

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        measured = record.result(AudioMeasures).clips[index].signals
        return {name: measured.get(name) for name in signals_of("listen")}


class AudioMeter:
    """Audio signals of clips; holds the DNSMOS network."""

    def __init__(self, config: SoundQualityConfig) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = resolve("dnsmos", config.dnsmos_folder or None) / "sig_bak_ovr.onnx"
        self._dnsmos = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def signals(self, pcm: np.ndarray) -> dict[str, float | None]:
        """Signals of a clip's audio, int16 [n] at 16 kHz, except the bandwidth; empty without samples."""
        if not len(pcm):
            return {}
        return {
            "snr_db": snr_db(pcm),
            "loudness_db": level_db(pcm),
            "clipping_ratio": clipped_ratio(pcm),
            "silence_ratio": silence_ratio(pcm),
            "pitch_hz": pitch_hz(pcm),
            **self._dnsmos_scores(pcm),
        }

    def _dnsmos_scores(self, pcm: np.ndarray) -> dict[str, float | None]:
        """DNSMOS P.835, mean over windows; None for digital silence.

        speechmos (0.0.1) covers only whole steps of a second, which changes the score of 3-10 s clips by
        0.006-0.16, takes twice the time (it also runs P.808) and needs librosa with 210 MB of compiler.
        """
        if not pcm.any():
            return dict.fromkeys(("dnsmos_signal", "dnsmos_background", "dnsmos_overall"))
        audio = pcm.astype(np.float32) / 32768
        audio = np.tile(audio, -(-DNSMOS_SAMPLES // len(audio)))[: max(DNSMOS_SAMPLES, len(audio))]
        last = len(audio) - DNSMOS_SAMPLES
        starts = sorted({*range(0, last + 1, AUDIO_RATE), last})
        windows = [audio[start : start + DNSMOS_SAMPLES] for start in starts]
        raw = np.concatenate([self._dnsmos.run(None, {"input_1": window[None]})[0] for window in windows])
        return {
            "dnsmos_signal": float(np.polyval(_SIGNAL_FIT, raw[:, 0]).mean()),
            "dnsmos_background": float(np.polyval(_BACKGROUND_FIT, raw[:, 1]).mean()),
            "dnsmos_overall": float(np.polyval(_OVERALL_FIT, raw[:, 2]).mean()),
        }


def level_db(pcm: np.ndarray) -> float | None:
    """RMS level in dBFS of int16 [n]."""
    if not len(pcm):
        return None
    power = np.square(pcm.astype(np.float64) / 32768).mean()
    return max(SILENCE_DB, float(10 * np.log10(power))) if power > 0 else SILENCE_DB


def clipped_ratio(pcm: np.ndarray) -> float | None:
    """Share of samples in runs of two or more at full scale (a single one may be an honest peak)."""
    if not len(pcm):
        return None
    full = np.abs(pcm.astype(np.int32)) >= 32700
    beside = np.zeros(len(full), bool)
    beside[1:] |= full[:-1]
    beside[:-1] |= full[1:]
    return float((full & beside).mean())


def snr_db(pcm: np.ndarray) -> float | None:
    """Speech over background in dB: power of the loud half of 20 ms cells over that of the quietest tenth.

    Speech pauses even between words, so the quietest cells hold background only. Limited to 0..80 dB.
    """
    cells = _cell_power(pcm)
    if len(cells) < 10:
        return None
    ordered = np.sort(cells)
    background = ordered[: max(1, len(ordered) // 10)].mean() + 1e-10
    speech = ordered[len(ordered) // 2 :].mean()
    return float(np.clip(10 * np.log10(max(speech - background, 1e-10) / background), 0.0, 80.0))


def silence_ratio(pcm: np.ndarray) -> float | None:
    """Share of 20 ms cells that are 40 dB or more below the loudest second; 1 for digital silence."""
    cells = _cell_power(pcm)
    if not len(cells):
        return None
    second = min(50, len(cells))
    loudest = np.convolve(cells, np.full(second, 1 / second), "valid").max()
    return float((cells <= loudest * 10 ** (QUIET_DB / 10)).mean())


def bandwidth_hz(samples: np.ndarray, rate: int) -> float | None:
    """Highest frequency in Hz at which int16 [n] at `rate` holds more than background; None below one second.

    In bands of 250 Hz, the loudest twentieth of moments (only an S shows what is above 5 kHz) is compared
    with the quietest tenth: hiss and shaped dither are the same in both. The result is the edge of the
    highest band that differs; 0 if none does.
    """
    from scipy.ndimage import uniform_filter1d
    from scipy.signal import stft

    if len(samples) < rate:
        return None
    width = round(rate / 100) * 2
    _, _, spectrum = stft(
        samples.astype(np.float32) / 32768, rate, window="blackmanharris", nperseg=width, padded=False
    )
    power = np.square(np.abs(spectrum[1:]))  # without the constant part
    bins = max(1, round(250 / (rate / width)))
    bands = power[: len(power) // bins * bins].reshape(-1, bins, power.shape[1]).mean(axis=1)
    loud, quiet = np.percentile(uniform_filter1d(bands, 5, axis=1), (95, 10), axis=1)
    bands_with_signal = np.flatnonzero(
        (loud > loud.max() * 10 ** (EDGE_DB / 10)) & (loud > quiet * 10 ** (SIGNAL_OVER_NOISE_DB / 10))
    )
    return float((bands_with_signal[-1] + 1) * bins * rate / width) if len(bands_with_signal) else 0.0


def pitch_hz(pcm: np.ndarray) -> float | None:
    """Median fundamental frequency in Hz of int16 [n] at 16 kHz; None with under ten voiced frames (0.2 s).

    librosa.pyin (0.11) agrees within 5 % on 15 of 21 clips of 3-10 s and takes 33 times as long.
    """
    frequencies = fundamental(pcm)
    voiced = frequencies[np.isfinite(frequencies)]
    return float(np.median(voiced)) if len(voiced) >= 10 else None


def fundamental(pcm: np.ndarray) -> np.ndarray:
    """Fundamental frequency of every frame, float [F]; NaN where nothing is voiced.

    Source: Boersma 1993. The autocorrelation of a windowed frame is divided by that of the window; a frame is
    voiced where the peak between 60 and 400 Hz is high.
    """
    audio = pcm.astype(np.float32) / 32768
    if len(audio) < PITCH_FRAME:
        return np.zeros(0)
    frames = np.lib.stride_tricks.sliding_window_view(audio, PITCH_FRAME)[::PITCH_HOP]
    level = np.sqrt(np.square(frames).mean(axis=1))
    shortest, longest = int(AUDIO_RATE / HIGH_HZ), int(AUDIO_RATE / LOW_HZ)
    window = np.hanning(PITCH_FRAME).astype(np.float32)
    similarity = _autocorrelation((frames - frames.mean(axis=1, keepdims=True)) * window)[:, : longest + 2]
    similarity = similarity / _autocorrelation(window[None])[:, : longest + 2]
    lags = np.arange(shortest, longest + 1)
    strength = similarity[:, shortest : longest + 1] - OCTAVE_COST * np.log2(
        lags * LOW_HZ / AUDIO_RATE * (HIGH_HZ / LOW_HZ)
    )
    best = strength.argmax(axis=1)
    rows = np.arange(len(frames))
    before, peak, after = (similarity[rows, best + shortest + shift] for shift in (-1, 0, 1))
    bend = before - 2 * peak + after
    vertex = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, 1.0), 0.0)
    voiced = (peak >= VOICED) & (level > 0.03 * max(level.max(), 1e-4))
    return np.where(voiced, AUDIO_RATE / (lags[best] + np.clip(vertex, -1, 1)), np.nan)


def _autocorrelation(frames: np.ndarray) -> np.ndarray:
    """Autocorrelation of every row at lags 0, 1, ...; 1 at lag 0, and 0 for a silent row."""
    size = 1 << (2 * frames.shape[1] - 1).bit_length()
    power = np.abs(np.fft.rfft(frames, size, axis=1)) ** 2
    correlation = np.fft.irfft(power, size, axis=1)[:, : frames.shape[1]]
    return correlation / np.maximum(correlation[:, :1], 1e-9)


def _cell_power(pcm: np.ndarray) -> np.ndarray:
    """Mean power float64 [cells] of 20 ms cells."""
    cell = AUDIO_RATE // 50
    return np.asarray(
        np.square(pcm[: len(pcm) // cell * cell].astype(np.float64) / 32768).reshape(-1, cell).mean(axis=1)
    )
