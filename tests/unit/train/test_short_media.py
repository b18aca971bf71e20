"""Media shorter than the window serve the tasks that need less of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_runs import SMALL_DATA
from made_samples import make_sample

from uniavgen.shards.errors import UserError
from uniavgen.train.config import SamplingConfig
from uniavgen.train.generation import Conditions, conditions_from, fit_conditions
from uniavgen.train.tasks import Task

IMAGE = np.full((64, 64, 3), 90, np.uint8)
"""The window of SMALL_DATA has 13 frames, or 4 latents; a continuation of 35 % gets one latent, of 50 %
two."""
HALF = SamplingConfig(continuation_share=0.5)


def media(frames: int, samples: int) -> Conditions:
    pixels = np.arange(frames, dtype=np.uint8)[:, None, None, None] + np.zeros((frames, 64, 64, 3), np.uint8)
    return Conditions("", "Hello.", IMAGE, None, pixels, np.ones(samples, np.float32))


def test_continuation_takes_media_that_last_as_long_as_its_beginning() -> None:
    # two latents are 5 frames, or 7500 samples
    fitted = fit_conditions(media(5, 7500), Task.CONTINUATION, SMALL_DATA, HALF)
    assert fitted.frames is not None
    assert fitted.waveform is not None
    assert fitted.frames[:, 0, 0, 0].tolist() == [0, 1, 2, 3, *[4] * 9]
    assert len(fitted.waveform) == 13 * 1500
    assert fitted.waveform[:7500].all()
    assert not fitted.waveform[7500:].any()


@pytest.mark.parametrize(("frames", "samples", "name"), [(4, 7500, "frames"), (5, 7500 - 1, "waveform")])
def test_continuation_refuses_media_shorter_than_its_beginning(frames: int, samples: int, name: str) -> None:
    with pytest.raises(UserError, match=f"the given {name} last .* task continuation needs 0.3"):
        fit_conditions(media(frames, samples), Task.CONTINUATION, SMALL_DATA, HALF)


@pytest.mark.parametrize("task", [Task.JOINT, Task.DUBBING, Task.AUDIO_DRIVEN])
def test_tasks_ignore_media_that_they_do_not_use(task: Task) -> None:
    short = media(13 if task is Task.DUBBING else 2, 13 * 1500 if task is Task.AUDIO_DRIVEN else 9)
    fitted = fit_conditions(short, task, SMALL_DATA)
    assert (fitted.frames is None) == (task is not Task.DUBBING)
    assert (fitted.waveform is None) == (task is not Task.AUDIO_DRIVEN)


@pytest.mark.parametrize("task", [Task.DUBBING, Task.AUDIO_DRIVEN])
def test_tasks_that_need_the_whole_refuse_less(task: Task) -> None:
    with pytest.raises(UserError, match="needs 0.81 s") as caught:
        fit_conditions(media(12, 12 * 1500), task, SMALL_DATA)
    assert caught.value.kind == "short-clip"


def test_clip_shorter_than_the_window_gives_image_words_and_its_beginning() -> None:
    sample = make_sample("a", 8)
    conditions = conditions_from(sample, SMALL_DATA)
    assert conditions.speech
    assert conditions.reference_waveform is None
    assert conditions.frames is not None
    assert len(conditions.frames) == 5  # the longest 4n + 1 frames
    assert fit_conditions(conditions, Task.JOINT, SMALL_DATA).reference is not None
    assert fit_conditions(conditions, Task.CONTINUATION, SMALL_DATA, HALF).frames is not None
    with pytest.raises(UserError, match="needs 0.81 s"):
        fit_conditions(conditions, Task.DUBBING, SMALL_DATA)


def test_image_and_frames_are_cropped_around_their_own_faces() -> None:
    portrait = np.zeros((256, 64, 3), np.uint8)
    portrait[10:40] = 255
    given = replace(media(13, 13 * 1500), reference=portrait, reference_face=(0.3, 0.05, 0.7, 0.15))
    fitted = fit_conditions(given, Task.JOINT, SMALL_DATA)
    assert fitted.reference is not None
    assert fitted.reference.max() == 255
    without = fit_conditions(replace(given, reference_face=None), Task.JOINT, SMALL_DATA)
    assert without.reference is not None
    assert without.reference.max() == 0
    low = np.zeros((13, 256, 64, 3), np.uint8)
    low[:, 200:230] = 255
    dubbed = fit_conditions(
        replace(given, frames=low, frames_face=(0.3, 0.8, 0.7, 0.9)), Task.DUBBING, SMALL_DATA
    )
    assert dubbed.frames is not None
    assert dubbed.frames.max() == 255
