"""A reference voice is never cut from the audio that a task generates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_emilia import Spoken, write_spoken
from made_samples import encode_audio, make_sample
from made_shards import write_tars

from uniavgen.shards import weights
from uniavgen.shards.config import EmiliaConfig
from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import Sample
from uniavgen.train.batch import NOISY, REFERENCE, LatentBatch
from uniavgen.train.codec.registry import CodecConfig, load_codecs
from uniavgen.train.config import ObjectiveConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import Crop, crop_sample, random_for
from uniavgen.train.data.loader import BatchLoader, EncodedWindows, UtteranceWindows
from uniavgen.train.flow_matching import Draw, voice_is_used
from uniavgen.train.model.config import FaceConfig
from uniavgen.train.model.objective import prepare_inputs
from uniavgen.train.tasks import Task

CONFIG = DataConfig(frames=9, height=64, width=64, reference_frames=5, codecs=CodecConfig())
BATCH, STEPS = 3, 6


def timed_sample(key: str, frames: int) -> Sample:
    """A clip without a picture, whose audio at time n is n / 2^20: each value occurs once."""
    waveform = np.arange(1, frames * 1500 + 1) / 2**20
    return replace(make_sample(key, frames), audio=encode_audio(waveform))


def share_audio(crop: Crop, length: int = 16) -> bool:
    """Whether some samples in a row of the voice are in the target, too."""
    voice, target = crop.reference_waveform, crop.waveform.tobytes()
    parts = [voice[start : start + length] for start in range(0, len(voice) - length, length)]
    return any(part.tobytes() in target for part in parts if part.any())


def test_shared_audio_is_recognised() -> None:
    sample = timed_sample("clip", CONFIG.frames)  # all of it is the window
    assert share_audio(crop_sample(sample, CONFIG, random_for(0, 0, 0), with_video=False))


@settings(deadline=None, max_examples=60)
@given(frames=st.integers(9, 40), seed=st.integers(0, 2**16))
def test_voice_and_window_share_no_audio_in_any_clip(frames: int, seed: int) -> None:
    sample = timed_sample("clip", frames)
    given = sample, CONFIG, random_for(seed, 0, 0)
    if frames < CONFIG.frames + 4:  # less than a quarter of a second is left
        with pytest.raises(UserError) as caught:
            crop_sample(*given, with_video=False, needs_voice=True)
        assert caught.value.kind == "no-voice"
        return
    crop = crop_sample(*given, with_video=False, needs_voice=True)
    assert not crop.voice_inside
    assert not share_audio(crop)


def test_window_is_where_it_was_if_it_leaves_room_for_a_voice() -> None:
    sample = timed_sample("clip", 40)
    for seed in range(20):
        with_voice, without = (
            crop_sample(sample, CONFIG, random_for(seed, 0, 0), with_video=False, needs_voice=needs)
            for needs in (True, False)
        )
        assert with_voice.start == without.start


class Recorded:
    """A source of windows that remembers the crops of the last batch."""

    def __init__(self, windows: EncodedWindows | UtteranceWindows) -> None:
        self.windows, self.crops = windows, list[Crop]()

    def take(self, position: int, random: np.random.Generator, **needs: bool) -> Crop:
        return self.windows.take(position, random, **needs)

    def make_batch(self, windows: Sequence[Crop]) -> LatentBatch:
        self.crops = list(windows)
        return self.windows.make_batch(self.crops)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Recorded]:
    samples = [timed_sample(f"clip{i}", frames) for i, frames in enumerate((9, 10, 12, 13, 15, 17, 30))]
    folder = write_tars(tmp_path_factory.mktemp("shards"), [samples])
    stream, codecs = SampleStream(str(folder)), load_codecs(CONFIG.codecs, with_video=False)
    return stream, Recorded(EncodedWindows(stream, CONFIG, codecs))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Recorded]:
    """Two speakers with several utterances, one with a single one."""
    speakers = ("anna", "anna", "ben", "ben", "ben", "alone")
    spoken = [
        Spoken(f"EN_B00000_S0000{i}_W000000", name, 200 + 30 * i, 0.4) for i, name in enumerate(speakers)
    ]
    tar = write_spoken(tmp_path_factory.mktemp("EN") / "EN-B000000.tar", spoken)
    stream = EmiliaStream(EmiliaConfig(shards=[str(tar)]), CONFIG.frames / 16)
    codecs = load_codecs(CONFIG.codecs, with_video=False)
    return stream, Recorded(UtteranceWindows(stream, CONFIG, codecs))


@pytest.mark.parametrize("source", ["clips", "speech"])
@pytest.mark.parametrize("task", [task for task in Task if not task.spec.needs_video])
def test_no_sample_of_any_task_has_its_voice_from_its_target(
    source: str, task: Task, request: pytest.FixtureRequest
) -> None:
    check_task(*request.getfixturevalue(source), task)


@pytest.mark.parametrize("task", [task for task in Task if task.spec.needs_video])
def test_no_sample_of_tasks_with_video_has_its_voice_from_its_target(task: Task, tmp_path: Path) -> None:
    """These need pictures: fewer clips, because the codecs are slower."""
    samples = [
        replace(make_sample(f"clip{i}", frames, seed=i), audio=timed_sample("", frames).audio)
        for i, frames in enumerate((9, 11, 14, 20))
    ]
    stream = SampleStream(str(write_tars(tmp_path, [samples])))
    if not weights.is_cached("minilm"):
        pytest.skip("the embedded MiniLM weights are not in the cache")
    check_task(stream, Recorded(EncodedWindows(stream, CONFIG, load_codecs(CONFIG.codecs))), task)


def check_task(stream: Any, windows: Recorded, task: Task) -> None:
    """Where the inputs of a step hold a reference voice, no sample's voice and target share audio."""
    objective = ObjectiveConfig(dubbing_reference=0.5)
    loader = BatchLoader(stream, CONFIG, windows, BATCH)
    loader.needs_voice = lambda step: voice_is_used(task, 0, step, objective.dubbing_reference)
    with_voice = 0
    for step in range(STEPS):
        loaded = loader.load(step, range(BATCH))
        draw = Draw(0, step, tuple(range(BATCH)))
        inputs = prepare_inputs(loaded.batch, task, draw, objective, FaceConfig())
        roles = {segment.role for segment in inputs.audio.layout}
        if REFERENCE not in roles:
            continue
        with_voice += 1
        assert NOISY in roles
        assert [crop.key for crop in windows.crops if share_audio(crop)] == []
    expected = {"never": {0}, "required": {STEPS}, "optional": set(range(1, STEPS))}
    assert with_voice in expected[task.spec.reference_voice]
