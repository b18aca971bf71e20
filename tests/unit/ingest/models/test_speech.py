"""Transcription and alignment: known texts, planted words, noise, chunks, both aligners."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from paths import MEDIA
from texts import SENTENCES, texts

from uniavgen.ingest.config import LimitConfig, TranscriptionConfig
from uniavgen.ingest.io.audio import AudioFile
from uniavgen.ingest.io.media import decode_audio
from uniavgen.ingest.io.probe_client import probe_video
from uniavgen.ingest.measures.transcribe import word_signals
from uniavgen.ingest.models.forced_alignment import (
    Wav2Vec2Aligner,
    fill_gaps,
    spelled_pronunciation,
    word_aligner,
)
from uniavgen.ingest.models.transcriber import (
    Transcriber,
    assign_word_speakers,
    choose_languages,
    compression_ratio,
    words_of_pieces,
)
from uniavgen.ingest.records import AUDIO_RATE, Proposal, Span, SpokenWord
from uniavgen.shards.errors import UserError
from uniavgen.shards.text import has_letters, is_unspaced


def saved(folder: Path, pcm: np.ndarray) -> AudioFile:
    path = folder / "sound.s16"
    pcm.astype(np.int16).tofile(path)
    return AudioFile(str(path), len(pcm))


@pytest.fixture(scope="module")
def transcriber() -> Transcriber:
    return Transcriber(TranscriptionConfig())


def plain(words: list[str]) -> list[str]:
    return [re.sub(r"[^a-z']", "", word.lower()) for word in words]


@pytest.mark.slow
def test_planted_words_and_their_start_times_are_recognised(tmp_path: Path, transcriber: Transcriber) -> None:
    import jiwer
    from scipy.signal import resample_poly

    from uniavgen.orchestration.demo import script, speech

    said = [
        speech.say(script.SENTENCES[i], voice)
        for i, voice in ((0, "joe"), (3, "ann"), (19, "bob"), (8, "joe"), (9, "ann"))
    ]
    track = speech.assemble(said, seed=0)
    pcm = (resample_poly(track.waveform, 1, 3) * 32767).astype(np.int16)
    turns = [Span(start, end, voice) for voice, start, end in track.turns]
    passages, words = transcriber.transcribe(saved(tmp_path, pcm), turns)
    truth, heard = plain([w.text for w in track.words]), plain([w.text for w in words])
    scored = jiwer.process_words(" ".join(truth), " ".join(heard))
    assert scored.wer <= 0.06
    same = [
        (chunk.ref_start_idx + i, chunk.hyp_start_idx + i)
        for chunk in scored.alignments[0]
        if chunk.type == "equal"
        for i in range(chunk.ref_end_idx - chunk.ref_start_idx)
    ]
    late = np.abs([words[b].start_s - track.words[a].start_s for a, b in same])
    assert np.median(late) <= 0.030
    assert {(p.language, p.language_probability > 0.9, p.no_speech_probability < 0.3) for p in passages} == {
        ("en", True, True)
    }
    assert all(a.end_s <= b.start_s + 1e-6 for a, b in itertools.pairwise(words))
    by_turn = [
        next(t.label for t in turns if t.start_s - 0.1 <= track.words[a].start_s <= t.end_s) for a, _ in same
    ]
    assert np.mean([words[b].speaker == label for (_, b), label in zip(same, by_turn, strict=True)]) > 0.98
    for passage in passages:
        inside = [w for w in words if passage.start_s <= w.start_s < passage.end_s]
        found = word_signals(Proposal(passage.start_s, passage.end_s, "", inside), passage, turns)
        assert (found["repeated_ratio"], found["stock_phrase"]) == (0, 0)
        assert found["unvoiced_word_ratio"] < 0.1  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.skipif(not MEDIA.is_dir(), reason=f"the development videos are not here ({MEDIA})")
def test_english_after_russian_starts_at_its_first_word(tmp_path: Path, transcriber: Transcriber) -> None:
    parts = []
    for name, seconds in (("russian_speech_hevc.mp4", 9.95), ("studio_english_16khz.mp4", 12.4)):
        probe = probe_video(str(MEDIA / name), LimitConfig())
        audio = decode_audio(str(MEDIA / name), probe, tmp_path / f"{name}.s16", LimitConfig())
        parts.append(audio.span(0.0, seconds))
    joined = saved(tmp_path, np.concatenate(parts))
    change_s = len(parts[0]) / AUDIO_RATE
    turns = [Span(0, change_s, "first"), Span(change_s, joined.duration_s, "second")]
    passages, words = transcriber.transcribe(joined, turns)
    assert [(p.language, p.speaker) for p in passages] == [("ru", "first"), ("en", "second")]
    assert passages[0].text.startswith("Всем привет")
    assert passages[1].text.startswith("If your goal is")
    by_speaker = {label: [w for w in words if w.speaker == label] for label in ("first", "second")}
    for passage in passages:
        assert Proposal(0, 1, "", by_speaker[passage.speaker]).text == passage.text
    # as one speaker, whose language is detected once, the English is lost
    one = [Span(turn.start_s, turn.end_s, "both") for turn in turns]
    assert "goal" not in " ".join(p.text for p in transcriber.transcribe(joined, one)[0])


def _noises(seconds: float = 3.0) -> dict[str, np.ndarray]:
    """Audio without speech, float at 16 kHz."""
    times = np.arange(round(seconds * AUDIO_RATE)) / AUDIO_RATE
    hiss = np.random.default_rng(0).standard_normal(len(times))
    beats = np.where(times % 0.5 < 0.03, 0.5 * hiss, 0)
    notes = np.sin(
        2 * np.pi * np.repeat([262, 330, 392, 523, 440, 349], len(times) // 6) * times[: len(times) // 6 * 6]
    )
    return {
        "silence": 0 * times,
        "hiss": 0.01 * hiss,
        "tone": 0.2 * np.sin(880 * np.pi * times),
        "beats": beats,
        "notes": 0.2 * notes,
    }


@pytest.mark.slow
def test_hallucinated_text_shows_in_the_signals(tmp_path: Path, transcriber: Transcriber) -> None:
    marked = {}
    for name, noise in _noises().items():
        sound = saved(tmp_path, noise * 32767)
        # the speakers' turns keep such sound from Whisper; here one claims that somebody spoke
        (passage,), words = transcriber.transcribe(sound, [Span(0, sound.duration_s, "SPEAKER_00")])
        found = word_signals(Proposal(0.0, sound.duration_s, "", words), passage, [])
        assert passage.no_speech_probability > 0.4, name  # 0.01-0.2 where somebody speaks
        assert not words or found["unvoiced_word_ratio"] == 1
        marked[name] = (
            bool(found["stock_phrase"])
            or (found["repeated_ratio"] or 0) > 0.5
            or passage.compression_ratio > 2.5
        )
    assert marked["silence"]
    assert marked["tone"]
    assert transcriber.transcribe(sound, []) == ([], [])


def test_word_belongs_to_the_turn_that_covers_most_of_it() -> None:
    turns = [Span(0, 1.0, "A"), Span(0.9, 3, "B")]
    words = [SpokenWord("w", a, b, 1.0) for a, b in ((0.5, 0.95), (0.85, 1.4), (5, 6))]
    speakers = [word.speaker for word in assign_word_speakers(words, turns)]
    assert speakers == ["A", "B", ""]
    both = [SpokenWord("w", 0.92, 0.98, 1.0, speaker) for speaker in ("A", "B")]
    assert [word.speaker for word in assign_word_speakers(both, turns)] == ["A", "B"]


def test_language_is_chosen_for_each_speaker() -> None:
    ranked = {
        "german": [("de", 0.97), ("nl", 0.02)],
        "english": [("en", 0.9), ("de", 0.05)],
        "says little": [("cy", 0.3), ("en", 0.25), ("de", 0.1)],
    }
    seconds = {"german": 20.0, "english": 9.0, "says little": 1.0}
    chosen = choose_languages(ranked, seconds)
    assert chosen == {"german": ("de", 0.97), "english": ("en", 0.9), "says little": ("en", 0.25)}
    much = choose_languages(ranked, seconds | {"says little": 12.0})
    assert much["says little"] == ("cy", 0.3)
    alone = {"says little": ranked["says little"]}
    assert choose_languages(alone, seconds) == {"says little": ("cy", 0.3)}


@pytest.fixture(scope="module")
def pieces_of() -> Callable[[str, str], list[dict[str, Any]]]:
    """Whisper's own pieces of a text in a language, each with a time of its own."""
    from tokenizers import Tokenizer

    from uniavgen.ingest.models.transcriber import piece_tokenizer
    from uniavgen.shards.weights import resolve

    whisper = Tokenizer.from_file(str(resolve("whisper-base") / "tokenizer.json"))

    def divide(text: str, language: str) -> list[dict[str, Any]]:
        tokenizer = piece_tokenizer()(whisper, True, task="transcribe", language=language)
        texts, tokens = tokenizer.split_to_word_tokens(tokenizer.encode(" " + text) if text else [])
        return [
            {"word": t, "tokens": ids, "start": float(i), "end": i + 1.0, "probability": 0.5}
            for i, (t, ids) in enumerate(zip(texts, tokens, strict=True))
        ]

    return divide


@given(texts.map(str.strip))
@settings(deadline=None)
def test_words_are_whispers_passage_character_by_character(
    pieces_of: Callable[[str, str], list[dict[str, Any]]], text: str
) -> None:
    pieces = pieces_of(text, "en")
    assert "".join(piece["word"] for piece in pieces) == (" " + text if text else "")
    words = words_of_pieces(text, pieces, 60.0)
    clip = Proposal(0.0, 60.0, "", words)
    assert clip.text == (text if has_letters(text) else "")
    assert all(a.end_s <= b.start_s < b.end_s for a, b in itertools.pairwise(words))
    assert all(word.score == pytest.approx(0.5) for word in words)
    if not is_unspaced(text) and not re.search(r"[^\w\s]", text):
        assert [word.text for word in words] == text.split()


@pytest.mark.parametrize("language", sorted(SENTENCES))
def test_part_of_passage_is_its_own_substring(
    pieces_of: Callable[[str, str], list[dict[str, Any]]], language: str
) -> None:
    text = SENTENCES[language]
    words = words_of_pieces(text, pieces_of(text, "ja"), 60.0)
    for first, last in itertools.combinations(range(len(words) + 1), 2):
        part = Proposal(0.0, 60.0, "", words[first:last]).text
        assert part in text
        assert part.startswith(words[first].text)
        assert part.endswith(words[last - 1].text)


def test_text_that_the_pieces_do_not_give_shares_the_time() -> None:
    words = words_of_pieces("ab cd", [], 5.0)
    assert [(w.text, w.start_s, w.end_s, w.score) for w in words] == [("ab", 0, 2, 0), ("cd", 3, 5, 0)]


def test_word_takes_time_and_score_from_its_letters() -> None:
    pieces = [
        {"word": word, "tokens": [0] * n, "start": start, "end": start + 1.0, "probability": p}
        for word, n, start, p in (
            (" twenty", 2, 0, 0.9),
            ("-", 1, 1, 0.1),
            ("three", 1, 2, 0.6),
            (".", 1, 3, 0.1),
        )
    ]
    (word,) = words_of_pieces("twenty-three.", pieces, 4.0)
    assert (word.text, word.start_s, word.end_s) == ("twenty-three.", 0.0, 3.0)
    assert word.score == pytest.approx(0.8)


def test_words_without_times_share_the_gap_by_length() -> None:
    assert fill_gaps([None, (1.0, 2.0), None, None], [3, 1, 1, 3], 4.0) == [
        (0.0, 1.0),
        (1.0, 2.0),
        (2.0, 2.5),
        (2.5, 4.0),
    ]


def test_unknown_name_is_spelled_into_phones() -> None:
    assert spelled_pronunciation("gaotian") == "G AE AA T IH AE N"
    assert spelled_pronunciation("thing") == "TH IH NG"


def test_repetition_compresses_better_than_a_sentence() -> None:
    assert (
        compression_ratio("thank you " * 40) > 2.5 > compression_ratio("a sentence that says something once")
    )


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a random wav2vec2 CTC model of 20 k parameters and its processor."""
    from transformers import (
        Wav2Vec2Config,
        Wav2Vec2CTCTokenizer,
        Wav2Vec2FeatureExtractor,
        Wav2Vec2ForCTC,
        Wav2Vec2Processor,
    )

    folder = tmp_path_factory.mktemp("wav2vec2")
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}))
    tokenizer = Wav2Vec2CTCTokenizer(str(folder / "vocab.json"))
    Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), tokenizer).save_pretrained(folder)
    shape = Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(8, 8, 8, 8, 8, 8, 8),
        num_feat_extract_layers=7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=2,
    )
    Wav2Vec2ForCTC(shape).save_pretrained(folder)
    return str(folder)


def test_named_wav2vec2_model_gives_word_times(wav2vec2: str) -> None:
    pcm = np.random.default_rng(0).normal(0, 3000, 3 * AUDIO_RATE).astype(np.int16)
    words = [SpokenWord(text, 0.0, 0.0, 0.7, "A") for text in ("It", "wasn't", "the", "2nd", "age.")]
    found = word_aligner(wav2vec2).retime(pcm, words, "en")
    assert [(w.text, w.score, w.speaker) for w in found] == [(w.text, 0.7, "A") for w in words]
    assert all(0 <= a.start_s < a.end_s <= b.start_s + 0.03 for a, b in itertools.pairwise(found))
    assert found[-1].end_s <= 3.0
    assert [w.gap for w in found] == [w.gap for w in words]
    for language, texts_ in {
        "ja": ("今日", "は", "。「い い」"),
        "th": ("กำ", "ลั", "ง"),
        "en": ("$ 5 -", "café", "23"),
    }.items():
        given_ = [SpokenWord(text, 0.0, 0.0, 0.7, gap="") for text in texts_]
        timed = word_aligner(wav2vec2).retime(pcm, given_, language)
        assert [(w.text, w.gap) for w in timed] == [(w.text, "") for w in given_]
        assert timed[-1].end_s > 0, language


def test_unavailable_alignment_model_is_a_one_line_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="alignment model for en cannot be loaded") as caught:
        word_aligner(str(tmp_path / "nothing"))
    assert caught.value.kind == "missing-weights"
    assert "\n" not in str(caught.value)


def test_words_in_unsupported_language_keep_their_times() -> None:
    words = [SpokenWord("dobrý", 1.0, 1.4, 0.5)]
    pcm = np.zeros(AUDIO_RATE, np.int16)
    assert word_aligner("pocketsphinx").retime(pcm, words, "cs") == words
    assert Wav2Vec2Aligner("whisperx").retime(pcm, words, "xx") == words
