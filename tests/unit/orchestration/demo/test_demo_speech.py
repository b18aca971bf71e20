"""Speech of the demo: words, phones and times agree with the audio; voices differ."""

from __future__ import annotations

import numpy as np
import pytest

from uniavgen.orchestration.demo import script, speech
from uniavgen.orchestration.demo.reading import PASSAGES, PHRASES
from uniavgen.orchestration.demo.visemes import REST, SHAPES, Phone, mouth_track
from uniavgen.shards.weights import resolve


def _times_by_aligner(waveform: np.ndarray, text: str) -> list[tuple[str, float]]:
    """Word starts by pocketsphinx, an independent reference. `waveform`: float32 at 16 kHz."""
    from pocketsphinx import Decoder

    decoder = Decoder(samprate=16_000, loglevel="FATAL")
    decoder.set_align_text(" ".join(w for w in text.split() if decoder.lookup_word(w)))
    decoder.start_utt()
    decoder.process_raw((np.clip(waveform, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
    decoder.end_utt()
    return [(s.word.split("(")[0], s.start_frame / 100) for s in decoder.seg() if not s.word.startswith("<")]


def _at_16k(waveform: np.ndarray) -> np.ndarray:
    """48 kHz to 16 kHz by the mean of three samples: good enough for the references."""
    return waveform[: len(waveform) // 3 * 3].reshape(-1, 3).mean(axis=1)


def test_every_word_of_the_script_has_one_pronounced_token() -> None:
    from piper.phonemize_espeak import ESPEAK_DATA_DIR, EspeakPhonemizer

    phonemizer = EspeakPhonemizer(ESPEAK_DATA_DIR)
    for sentence in script.SENTENCES:
        spoken = phonemizer.phonemize("en-us", sentence)
        tokens = [token for part in spoken for token in "".join(part).split(" ") if token]
        assert len(spoken) == 1, sentence
        assert len(tokens) == len(sentence.split()), sentence


def test_sentence_has_the_same_samples_every_time() -> None:
    first = speech.say(script.SENTENCES[1], "ann")
    speech.say(script.SENTENCES[2], "ann")
    again = speech.say(script.SENTENCES[1], "ann")
    assert np.array_equal(first.waveform, again.waveform)
    assert first.words == again.words


@pytest.mark.parametrize("voice", sorted(speech.VOICES))
def test_word_starts_agree_with_a_forced_aligner(voice: str) -> None:
    spoken = speech.say(script.SENTENCES[7], voice)
    found = _times_by_aligner(_at_16k(spoken.waveform), " ".join(w.text.lower() for w in spoken.words))
    assert [w for w, _ in found] == [w.text.lower() for w in spoken.words]
    errors = [abs(start - word.start_s) for (_, start), word in zip(found, spoken.words, strict=True)]
    assert np.median(errors) < 0.045


def test_phones_and_words_are_in_order_without_overlap() -> None:
    spoken = speech.say(script.SENTENCES[0], "bob")
    assert all(p.end_s > p.start_s for p in spoken.phones)
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in zip(spoken.phones, spoken.phones[1:], strict=False))
    assert all(a.end_s <= b.start_s + 1e-9 for a, b in zip(spoken.words, spoken.words[1:], strict=False))
    assert {p.symbol for p in spoken.phones} <= set(SHAPES)


def test_recorded_reading_has_its_stored_words() -> None:
    import soundfile

    waveform, rate = soundfile.read(resolve("two-cities") / "two_cities.wav", dtype="float32")
    first, last = PASSAGES[3]
    phrases = PHRASES[first:last]
    begin_s, end_s = phrases[0][0][1] / 100 - 0.3, phrases[-1][-1][1] / 100 + 1.0
    part = _at_16k(waveform[round(begin_s * rate) : round(end_s * rate)])
    assert rate == 48_000
    written = [(text, start / 100 - begin_s) for phrase in phrases for text, start, _ in phrase]
    found = _times_by_aligner(part, " ".join(text for text, _ in written))
    assert [w for w, _ in found] == [w for w, _ in written]
    assert np.median([abs(a - b) for (_, a), (_, b) in zip(found, written, strict=True)]) < 0.03


def test_track_has_words_turns_and_gaps_on_one_clock() -> None:
    utterances = [speech.say(script.SENTENCES[i], voice) for i, voice in ((1, "joe"), (2, "ann"))]
    track = speech.assemble(utterances, seed=5)
    assert [turn[0] for turn in track.turns] == ["joe", "ann"]
    assert 0.5 <= track.turns[1][1] - track.turns[0][2] <= 0.85
    assert track.turns[0][2] < track.gaps[0] < track.turns[1][1]
    inside = track.waveform[
        round((track.gaps[0] - 0.1) * speech.RATE) : round((track.gaps[0] + 0.1) * speech.RATE)
    ]
    assert 20 * np.log10(np.sqrt(np.mean(inside**2))) < -50
    for utterance, turn in zip(utterances, track.turns, strict=True):
        begin = round((turn[1] - utterance.words[0].start_s) * speech.RATE)
        lag = _best_lag(track.waveform[begin + 24_000 : begin + 72_000], utterance.waveform[24_000:72_000])
        assert abs(lag) <= 1


def _best_lag(a: np.ndarray, b: np.ndarray) -> int:
    spectrum = np.fft.irfft(np.fft.rfft(a, 2 * len(a)) * np.conj(np.fft.rfft(b, 2 * len(b))))
    lag = int(np.argmax(spectrum))
    return lag if lag < len(a) else lag - 2 * len(a)


def test_lips_close_for_b_and_open_for_a() -> None:
    phones = [Phone("ɑ", 0.3, 0.5), Phone("b", 0.5, 0.6), Phone("ɑ", 0.6, 0.8)]
    opening, _ = mouth_track(phones, np.array([0.05, 0.4, 0.55, 0.7, 1.5]))
    assert opening[[1, 3]].min() > 0.9
    assert opening[2] < 0.1
    assert opening[[0, 4]] == pytest.approx([REST, REST], abs=1e-3)


def test_rounding_follows_the_vowel() -> None:
    phones = [Phone("u", 0.3, 0.6), Phone("i", 0.6, 0.9)]
    _, rounding = mouth_track(phones, np.array([0.45, 0.75]))
    assert rounding[0] > 0.9
    assert rounding[1] < -0.5


@pytest.mark.slow
def test_speaker_embedding_separates_the_four_voices() -> None:
    from uniavgen.ingest.config import DiarizationConfig
    from uniavgen.ingest.models.speaker_embedding import VoiceEncoder, unit_length

    encoder = VoiceEncoder(DiarizationConfig(voice_seconds=60))
    voices, spoken = [], []
    for voice in speech.VOICES:
        spoken += [speech.say(script.SENTENCES[i], voice).waveform for i in (1, 2)]
        voices += [voice] * 2
    spoken += [speech.read_passage(0).waveform, speech.read_passage(2).waveform]
    voices += ["reader"] * 2
    prints = unit_length(encoder.encode([_at_16k(waveform) for waveform in spoken]))
    likeness = prints @ prints.T
    same = np.array(voices)[:, None] == np.array(voices)[None]
    assert likeness[same].min() > 0.55
    assert likeness[~same].max() < 0.5
