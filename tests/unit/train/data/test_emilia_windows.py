"""Audio stage on Emilia's tars: crops, rule for lengths, exact resume, training without a corpus."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from made_emilia import Spoken, members_of, write_emilia, write_spoken
from made_runs import SMALL_DATA, Run, small_config, train_together
from pydantic import ValidationError

from uniavgen.shards.config import EmiliaConfig
from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.train.codec.registry import load_codecs
from uniavgen.train.config import StageConfig
from uniavgen.train.data.crops import text_in_window
from uniavgen.train.data.loader import BatchLoader, make_loader
from uniavgen.train.data.stage_stream import open_stream

FRAMES = SMALL_DATA.frames
"""13 frames: the window lasts 0.8125 s, 19500 samples."""
SPOKEN = [
    Spoken("EN_B00000_S00000_W000000", "anna", 200, 0.5, text="anna says this"),
    Spoken("EN_B00000_S00000_W000001", "anna", 300, 0.7, text="and this"),
    Spoken("EN_B00000_S00001_W000000", "bert", 500, 0.6, text="bert alone"),
    Spoken("EN_B00000_S00002_W000000", "carl", 700, 2.0, text="carl speaks for longer than that"),
]
BY_KEY = {spoken.key: spoken for spoken in SPOKEN}


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_spoken(tmp_path_factory.mktemp("emilia") / "EN-B000000.tar", SPOKEN)


def stage_on(tar: Path, steps: int = 2, **filters) -> StageConfig:
    return StageConfig(
        name="audio", batch=2, steps=steps, warmup=1, emilia=EmiliaConfig(shards=[str(tar)], **filters)
    )


def loader_on(stage: StageConfig, run_dir: Path) -> tuple[BatchLoader, EmiliaStream]:
    plan = small_config([stage])
    stream = open_stream(plan, stage, "/there/is/no/corpus", str(run_dir))
    assert isinstance(stream, EmiliaStream)
    codecs = load_codecs(plan.data.codecs, with_video=False, device="cpu")
    return make_loader(stream, plan.data, stage, codecs), stream


def pitch_of(waveform: np.ndarray) -> float:
    spectrum = np.abs(np.fft.rfft(waveform * np.hanning(len(waveform)), 2**17))
    return float(np.argmax(spectrum) * 24_000 / 2**17)


def test_short_utterances_are_whole_with_text_silence_and_reference_of_the_same_speaker(
    tar: Path, tmp_path: Path
) -> None:
    loader, _ = loader_on(stage_on(tar), tmp_path)
    crops = {}
    for position in range(3):
        crop = loader.windows.take(position, np.random.default_rng(position))
        crops[crop.key] = crop
        made = BY_KEY[crop.key]
        spoken = round(made.seconds * 24_000)
        assert crop.waveform.shape == (FRAMES * 1500,)
        assert pitch_of(crop.waveform) == pytest.approx(made.hz, abs=5)
        assert np.sqrt(np.mean(crop.waveform[:spoken] ** 2)) == pytest.approx(0.5 / np.sqrt(2), rel=0.1)
        assert not crop.waveform[spoken + 3 * 1152 :].any()
        assert crop.speech_text == made.text
        assert crop.reference_waveform.shape == (SMALL_DATA.reference_frames * 1500,)
    assert sorted(crops) == [spoken.key for spoken in SPOKEN[:3]]
    reference = {key: round(pitch_of(crop.reference_waveform) / 50) * 50 for key, crop in crops.items()}
    assert reference == {SPOKEN[0].key: 300, SPOKEN[1].key: 200, SPOKEN[2].key: 500}
    assert [crops[spoken.key].reference_inside for spoken in SPOKEN[:3]] == [False, False, True]
    batch = loader.load(0, (0, 1)).batch
    assert batch.video is None
    assert batch.mel.shape[0] == 2
    assert bool(torch.isfinite(batch.mel).all())


def test_batch_of_a_step_is_independent_of_rank_and_history(tar: Path, tmp_path: Path) -> None:
    loader, stream = loader_on(stage_on(tar), tmp_path)
    straight = [loader.load(step, (0, 1)).batch for step in range(5)]
    fresh, _ = loader_on(stage_on(tar), tmp_path)
    halves = [fresh.load(4, (place,)).batch for place in (1, 0)]
    assert straight[4].keys == [halves[1].keys[0], halves[0].keys[0]]
    assert torch.equal(straight[4].mel, torch.cat([halves[1].mel, halves[0].mel]))
    assert torch.equal(
        straight[4].reference_mel, torch.cat([halves[1].reference_mel, halves[0].reference_mel])
    )
    keys = [key for batch in straight for key in batch.keys]
    assert sorted(keys[:3]) == sorted(keys[3:6]) == sorted(stream.keys)


def test_long_utterance_is_cropped_with_the_text_of_that_part(tar: Path, tmp_path: Path) -> None:
    loader, _ = loader_on(stage_on(tar, longer="crop", speakers=["carl"]), tmp_path)
    crops = [loader.windows.take(0, np.random.default_rng(seed)) for seed in range(12)]
    assert len({crop.start for crop in crops}) > 4
    for crop in crops:
        assert 0 <= crop.start <= 32 - FRAMES
        assert pitch_of(crop.waveform) == pytest.approx(700, abs=5)
        assert np.sqrt(np.mean(crop.waveform[-3000:] ** 2)) > 0.2  # audio up to the end of the window
        assert crop.speech_text == text_in_window(SPOKEN[3].text, 2.0, crop.start, FRAMES)
        assert 0 < len(crop.speech_text) < len(SPOKEN[3].text)


def test_text_in_window_assumes_an_even_pace() -> None:
    text = "aa bb cc dd ee "  # 15 characters in 3 s of 48 frames: a word and its space last 9.6 frames
    assert text_in_window(text, 3.0, 0, 48) == "aa bb cc dd ee"
    assert text_in_window(text, 3.0, 0, 16) == "aa bb"
    assert text_in_window(text, 3.0, 16, 16) == "cc"
    assert text_in_window(text, 3.0, 32, 16) == "dd ee"
    assert text_in_window("没有空格的文字很长", 9.0, 16, 32) == "有空"
    assert text_in_window("aa  bb-cc  dd", 4.0, 0, 48) == "aa  bb-cc"
    assert text_in_window("我们今天去 Apple Store 买东西", 18.0, 0, 48) == "我们今"


def test_damaged_utterance_is_replaced_and_counted(tmp_path: Path) -> None:
    samples = {spoken.key: members_of(spoken) for spoken in SPOKEN[1:3]}
    samples["EN_B00000_S00009_W000000"] = members_of(Spoken("x", "dora", 400, 0.6)) | {
        "mp3": b"no sound" * 50
    }
    loader, stream = loader_on(stage_on(write_emilia(tmp_path / "a.tar", samples)), tmp_path)
    loaded = loader.load(0, (0, 1, 2))
    assert "EN_B00000_S00009_W000000" not in loaded.batch.keys
    assert loaded.counts["damaged"] >= 1
    assert list(stream.error_budget.damaged) == ["EN_B00000_S00009_W000000"]


def test_stage_with_video_refuses_audio_shards(tar: Path) -> None:
    with pytest.raises(ValidationError, match="stage joint needs video, which audio shards lack"):
        StageConfig(name="joint", emilia=EmiliaConfig(shards=[str(tar)]))


@pytest.mark.slow
def test_audio_stage_trains_and_resumes_on_audio_shards_without_a_corpus(tar: Path, tmp_path: Path) -> None:
    plan = small_config([stage_on(tar, steps=4)], workers=1, every=2).model_copy(update={"trace": True})
    whole, resumed = Run(plan, "audio", tmp_path / "whole"), Run(plan, "audio", tmp_path / "resumed")
    for run in (whole, resumed):
        run.run_dir.mkdir()
    saved = whole.run_dir / "audio" / "checkpoints" / "step-2"
    train_together([whole, replace(resumed, from_checkpoints=(saved,))], tmp_path / "no-corpus", world=1)
    assert not list(tmp_path.rglob("error-*.txt")), [
        path.read_text() for path in tmp_path.rglob("error-*.txt")
    ]

    def trace(run: Run) -> list[dict]:
        return [
            json.loads(line) for line in (run.run_dir / "audio" / "trace-0.jsonl").read_text().splitlines()
        ]

    straight = trace(whole)
    assert [line["step"] for line in straight] == [0, 1, 2, 3]
    assert {key for line in straight for key in line["keys"].values()} == {
        spoken.key for spoken in SPOKEN[:3]
    }
    assert trace(resumed) == straight[2:]
    events = [
        json.loads(line)["text"]
        for line in (whole.run_dir / "audio" / "events.jsonl").read_text().splitlines()
    ]
    assert any("3 utterances in 1 audio shards; left out: length 1" in text for text in events)
