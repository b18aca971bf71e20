"""Step `listen`: every signal responds monotonically to planted degradation; pitch is exact."""

import itertools
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from scipy.signal import butter, resample_poly, sosfilt

from uniavgen.ingest.config import SoundQualityConfig
from uniavgen.ingest.measures.listen import (
    DNSMOS_SAMPLES,
    SILENCE_DB,
    AudioMeter,
    bandwidth_hz,
    clipped_ratio,
    fundamental,
    level_db,
    pitch_hz,
    silence_ratio,
    snr_db,
)
from uniavgen.ingest.records import AUDIO_RATE
from uniavgen.shards.corpus.signals import signals_of


@pytest.fixture(scope="module")
def meter() -> AudioMeter:
    return AudioMeter(SoundQualityConfig())


@pytest.fixture(scope="module")
def reading() -> np.ndarray:
    """Six seconds of recorded speech, float at 16 kHz, peak at half of full scale."""
    import soundfile

    from uniavgen.shards.weights import resolve

    waveform, rate = soundfile.read(resolve("two-cities") / "two_cities.wav", dtype="float32")
    waveform = resample_poly(waveform[rate : 7 * rate], AUDIO_RATE, rate)
    return np.asarray(0.5 * waveform / np.abs(waveform).max())


def as_pcm(sound: np.ndarray) -> np.ndarray:
    return (sound * 32768).clip(-32768, 32767).astype(np.int16)


def falls(values: Sequence[float | None]) -> bool:
    return all(a > b for a, b in itertools.pairwise(values))  # type: ignore[operator]


def test_noise_lowers_snr_and_every_dnsmos_score(meter: AudioMeter, reading: np.ndarray) -> None:
    noise = np.random.default_rng(0).standard_normal(len(reading))
    found = [meter.signals(as_pcm(reading + level * noise)) for level in (0.0, 0.01, 0.03, 0.1)]
    assert {*found[0], "bandwidth_hz"} == set(signals_of("listen"))
    for name in ("snr_db", "dnsmos_overall", "dnsmos_signal", "dnsmos_background"):
        assert falls([signals[name] for signals in found]), name
    assert found[0]["dnsmos_overall"] > 2.8  # type: ignore[operator]
    assert found[-1]["dnsmos_overall"] < 1.6  # type: ignore[operator]


def test_clipping_raises_clipping_ratio_and_lowers_dnsmos(meter: AudioMeter, reading: np.ndarray) -> None:
    found = [meter.signals(as_pcm(reading * gain)) for gain in (1, 4, 12, 40)]
    assert found[0]["clipping_ratio"] == 0
    assert falls([-signals["clipping_ratio"] for signals in found])  # type: ignore[operator]
    assert falls([signals["dnsmos_overall"] for signals in found])
    assert falls([-signals["loudness_db"] for signals in found])  # type: ignore[operator]


def test_low_pass_lowers_dnsmos_signal(meter: AudioMeter, reading: np.ndarray) -> None:
    muffled = [
        sosfilt(butter(8, edge, fs=AUDIO_RATE, output="sos"), reading) for edge in (7000, 2500, 1200, 600)
    ]
    assert falls([meter.signals(as_pcm(sound))["dnsmos_signal"] for sound in muffled])


def test_gaps_raise_silence_ratio_by_their_length(reading: np.ndarray) -> None:
    found = []
    for share in (0.0, 0.1, 0.3, 0.6):
        cells = reading.copy().reshape(10, -1)
        cells[:, : round(share * cells.shape[1])] = 0
        found.append(silence_ratio(as_pcm(cells.ravel())))
    assert falls([-ratio for ratio in found if ratio is not None])
    assert found[-1] == pytest.approx(0.6 + 0.4 * found[0], abs=0.1)  # type: ignore[operator]


def test_silence_ratio_is_independent_of_level(reading: np.ndarray) -> None:
    assert silence_ratio(as_pcm(reading)) == pytest.approx(silence_ratio(as_pcm(reading * 0.1)), abs=0.02)


def test_bandwidth_follows_low_pass_at_source_rate() -> None:
    import soundfile

    from uniavgen.shards.weights import resolve

    waveform, rate = soundfile.read(resolve("two-cities") / "two_cities.wav", dtype="float32")
    waveform = waveform[: 8 * rate]
    found = []
    for edge in (6500, 4500, 3000, 1500):
        found.append(bandwidth_hz(as_pcm(sosfilt(butter(16, edge, fs=rate, output="sos"), waveform)), rate))
        assert edge <= found[-1] <= 1.6 * edge  # type: ignore[operator]
    assert falls(found)
    # the recording was upsampled from 16 kHz; above 8 kHz it holds dither
    assert 7000 <= bandwidth_hz(as_pcm(waveform), rate) <= 8250  # type: ignore[operator]
    upsampled = resample_poly(resample_poly(waveform, 1, 6), 6, 1)
    assert bandwidth_hz(as_pcm(upsampled), rate) == pytest.approx(4000, abs=750)


def test_bandwidth_of_hiss_is_zero_and_of_short_audio_none() -> None:
    hiss = np.random.default_rng(0).standard_normal(96_000)
    assert bandwidth_hz(as_pcm(0.1 * hiss), 48_000) == 0
    assert bandwidth_hz(np.zeros(96_000, np.int16), 48_000) == 0
    assert bandwidth_hz(as_pcm(hiss[:1000]), 48_000) is None


def test_dnsmos_repeats_short_clip_and_rates_all_of_long_one(meter: AudioMeter, reading: np.ndarray) -> None:
    short = as_pcm(reading[: 3 * AUDIO_RATE])
    by_hand = np.tile(short, 4)[:DNSMOS_SAMPLES]
    assert meter.signals(short)["dnsmos_overall"] == pytest.approx(meter.signals(by_hand)["dnsmos_overall"])
    clean = np.tile(reading, 2)[: 11 * AUDIO_RATE]
    spoilt = clean.copy()
    spoilt[10 * AUDIO_RATE :] += 0.2 * np.random.default_rng(0).standard_normal(AUDIO_RATE)
    assert meter.signals(as_pcm(spoilt))["dnsmos_overall"] < meter.signals(as_pcm(clean))["dnsmos_overall"]  # type: ignore[operator]


def test_signals_of_silence_and_of_no_audio(meter: AudioMeter) -> None:
    assert meter.signals(np.zeros(0, np.int16)) == {}
    silent = meter.signals(np.zeros(2 * AUDIO_RATE, np.int16))
    assert (silent["loudness_db"], silent["silence_ratio"], silent["clipping_ratio"]) == (SILENCE_DB, 1, 0)
    assert silent["dnsmos_overall"] is None


def test_full_scale_square_wave_is_at_0_dbfs() -> None:
    square = np.where(np.arange(16_000) % 100 < 50, 1.0, -1.0)
    assert level_db(as_pcm(square)) == pytest.approx(0, abs=0.01)
    assert level_db(as_pcm(square / 10)) == pytest.approx(-20, abs=0.01)
    assert level_db(np.zeros(0, np.int16)) is None


def test_snr_matches_planted_noise() -> None:
    times = np.arange(48_000) / AUDIO_RATE
    bursts = 0.1 * np.random.default_rng(0).standard_normal(len(times)) * (np.sin(4 * np.pi * times) > -0.2)
    noise = np.random.default_rng(1).standard_normal(len(times))
    for level in (0.003, 0.01, 0.03):
        assert snr_db(as_pcm(bursts + level * noise)) == pytest.approx(20 * np.log10(0.1 / level), abs=3)


def test_single_peak_is_no_clipping() -> None:
    lone = np.zeros(1000, np.int16)
    lone[500] = 32767
    assert clipped_ratio(lone) == 0
    lone[501] = 32767
    assert clipped_ratio(lone) == pytest.approx(0.002)


def hum(hertz: float, seconds: float = 2.0, noise: float = 0.0) -> np.ndarray:
    """Voice-like int16 audio at 16 kHz: harmonics falling by 6 dB per octave, one formant at 600 Hz."""
    at = np.arange(int(seconds * AUDIO_RATE)) / AUDIO_RATE
    parts = [
        np.sin(2 * np.pi * hertz * k * at + k) / k * np.exp(-(((hertz * k - 600) / 500) ** 2))
        for k in range(1, 25)
    ]
    wave = np.sum(parts, axis=0) + 0.05 * np.sin(2 * np.pi * hertz * at)
    wave = wave / np.abs(wave).max() + noise * np.random.default_rng(0).standard_normal(len(at))
    return (np.clip(0.4 * wave, -1, 1) * 32767).astype(np.int16)


@pytest.mark.parametrize("hertz", [75.0, 110.0, 147.0, 210.0, 260.0, 330.0])
@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_pitch_matches_planted_frequency(hertz: float, noise: float) -> None:
    assert pitch_hz(hum(hertz, noise=noise)) == pytest.approx(hertz, rel=0.01)


def test_noise_silence_and_short_audio_have_no_pitch() -> None:
    noise = (np.random.default_rng(1).standard_normal(AUDIO_RATE * 2) * 4000).astype(np.int16)
    assert pitch_hz(noise) is None
    assert pitch_hz(np.zeros(AUDIO_RATE, np.int16)) is None
    assert pitch_hz(np.zeros(10, np.int16)) is None


def test_pauses_do_not_change_pitch() -> None:
    sound = np.concatenate([hum(120), np.zeros(AUDIO_RATE, np.int16), hum(120)])
    found = fundamental(sound)
    assert pitch_hz(sound) == pytest.approx(120, rel=0.01)
    assert np.isnan(found[110:140]).all()


def test_pitch_of_speech_rises_with_playback_speed() -> None:
    import soundfile
    from scipy.signal import resample_poly

    package = find_spec("pyannote.audio")  # only its data is wanted
    assert package is not None
    assert package.origin is not None
    speech, rate = soundfile.read(Path(package.origin).parent / "sample" / "sample.wav", dtype="int16")
    assert rate == AUDIO_RATE
    speech = speech[8 * rate : 12 * rate]
    plain = pitch_hz(speech)
    faster = pitch_hz(resample_poly(speech.astype(np.float64), 4, 5).astype(np.int16))
    assert plain is not None
    assert faster == pytest.approx(1.25 * plain, rel=0.04)
    assert 70 < plain < 300
