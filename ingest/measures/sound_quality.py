"""How good the sound is: level, noise, silence, clipping, bandwidth, and DNSMOS's guess of what listeners
would say.

Goes in: int16 [n] at 16 kHz (bandwidth: samples at the source's own rate). Comes out: numbers in the units
that `shards.corpus.signals` names; None where there is nothing to measure.
"""

from __future__ import annotations

import numpy as np

from uniavgen.ingest.config import SoundQualityConfig
from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.weights import resolve

SOUND_SIGNALS = (
    "snr_db",
    "loudness_db",
    "clipping_ratio",
    "silence_ratio",
    "dnsmos_overall",
    "dnsmos_signal",
    "dnsmos_background",
)
"""What `SoundMeter.signals` measures of a clip."""

SILENCE_DB = -100.0
"""Level given to digital silence."""

QUIET_DB = -40.0
"""A cell this much below the loudest second is silent (our choice)."""

EDGE_DB = -65.0
"""Level over the strongest band down to which a band counts as held (our choice: codecs cut deeper)."""

STANDS_OUT_DB = 10.0
"""Loud moments over quiet ones in a band that holds more than background (our choice; noise alone stays under
6)."""

DNSMOS_SAMPLES = 144_160
"""Length of DNSMOS's input: 9.01 s. Shorter clips are repeated, longer ones heard in steps of a second (its
own way), with one more window at the end (ours), so that all of a clip counts."""

_SIGNAL_FIT = (-0.08397278, 1.22083953, 0.0052439)
_BACKGROUND_FIT = (-0.13166888, 1.60915514, -0.39604546)
_OVERALL_FIT = (-0.06766283, 1.11546468, 0.04602535)
"""Polynomials from the network's outputs to opinion scores, as published with DNSMOS P.835 (not
personalised)."""


class SoundMeter:
    """All measurements of a clip's sound; holds DNSMOS, loaded once."""

    def __init__(self, config: SoundQualityConfig) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        path = resolve("dnsmos", config.dnsmos_folder or None) / "sig_bak_ovr.onnx"
        self._dnsmos = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def signals(self, pcm: np.ndarray) -> dict[str, float | None]:
        """`SOUND_SIGNALS` of int16 [n] at 16 kHz; all None of no sound."""
        if not len(pcm):
            return dict.fromkeys(SOUND_SIGNALS)
        return {
            "snr_db": snr_db(pcm),
            "loudness_db": level_db(pcm),
            "clipping_ratio": clipped_ratio(pcm),
            "silence_ratio": silence_ratio(pcm),
            **self._opinion(pcm),
        }

    def _opinion(self, pcm: np.ndarray) -> dict[str, float | None]:
        """DNSMOS P.835, the mean over windows; None for digital silence.

        speechmos (0.0.1) covers only whole steps of a second, which moves the score of 3-10 s clips by
        0.01-0.16, takes twice the time (it also runs P.808) and needs librosa with 210 MB of compiler.
        """
        if not pcm.any():
            return dict.fromkeys(("dnsmos_signal", "dnsmos_background", "dnsmos_overall"))
        sound = pcm.astype(np.float32) / 32768
        sound = np.tile(sound, -(-DNSMOS_SAMPLES // len(sound)))[: max(DNSMOS_SAMPLES, len(sound))]
        last = len(sound) - DNSMOS_SAMPLES
        starts = sorted({*range(0, last + 1, AUDIO_RATE), last})
        windows = [sound[start : start + DNSMOS_SAMPLES] for start in starts]
        raw = np.concatenate([self._dnsmos.run(None, {"input_1": window[None]})[0] for window in windows])
        return {
            "dnsmos_signal": float(np.polyval(_SIGNAL_FIT, raw[:, 0]).mean()),
            "dnsmos_background": float(np.polyval(_BACKGROUND_FIT, raw[:, 1]).mean()),
            "dnsmos_overall": float(np.polyval(_OVERALL_FIT, raw[:, 2]).mean()),
        }


def level_db(pcm: np.ndarray) -> float | None:
    """RMS level in dB of full scale of int16 [n]."""
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
    """Speech over background in dB: mean power of the loud half of 20 ms cells against the quietest tenth.

    Speech pauses even between words, so the quietest cells hold the background alone. Limited to 0..80 dB.
    """
    cells = _cell_power(pcm)
    if len(cells) < 10:
        return None
    ordered = np.sort(cells)
    background = ordered[: max(1, len(ordered) // 10)].mean() + 1e-10
    speech = ordered[len(ordered) // 2 :].mean()
    return float(np.clip(10 * np.log10(max(speech - background, 1e-10) / background), 0.0, 80.0))


def silence_ratio(pcm: np.ndarray) -> float | None:
    """Share of 20 ms cells that are 40 dB or more below the loudest second; 1 of digital silence."""
    cells = _cell_power(pcm)
    if not len(cells):
        return None
    second = min(50, len(cells))
    loudest = np.convolve(cells, np.full(second, 1 / second), "valid").max()
    return float((cells <= loudest * 10 ** (QUIET_DB / 10)).mean())


def bandwidth_hz(samples: np.ndarray, rate: int) -> float | None:
    """Frequency in Hz up to which int16 [n] at `rate` holds more than its own background; None of less than a
    second.

    In bands of 250 Hz, the loudest twentieth of moments (it takes an S to show what lies above 5 kHz) is held
    against the quietest tenth: hiss and shaped dither are the same in both. The edge is the highest band that
    stands out. 0: none does.
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
    held = np.flatnonzero(
        (loud > loud.max() * 10 ** (EDGE_DB / 10)) & (loud > quiet * 10 ** (STANDS_OUT_DB / 10))
    )
    return float((held[-1] + 1) * bins * rate / width) if len(held) else 0.0


def _cell_power(pcm: np.ndarray) -> np.ndarray:
    """Mean power float64 [cells] of 20 ms cells."""
    cell = AUDIO_RATE // 50
    return np.asarray(
        np.square(pcm[: len(pcm) // cell * cell].astype(np.float64) / 32768).reshape(-1, cell).mean(axis=1)
    )
