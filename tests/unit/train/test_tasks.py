"""The table of tasks: complete rows, unknown names, and the given part of a clip."""

from enum import StrEnum

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import frames_for_latents, mels_for_frames
from uniavgen.train.generation import Conditions
from uniavgen.train.tasks import GivenPart, Task, clip_condition, describe_tasks, task_named


@given(latents=st.integers(2, 30), share=st.floats(0.01, 0.99))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_continuation_is_cut_at_same_time_in_both_modalities(latents: int, share: float) -> None:
    mels = mels_for_frames(frames_for_latents(latents))
    parts = clip_condition(Task.CONTINUATION, latents, mels, share=share)
    assert 0 < parts.latents < latents
    assert parts.mels == mels_for_frames(frames_for_latents(parts.latents)) < mels


def test_single_latent_cannot_be_continued() -> None:
    with pytest.raises(UserError, match="cannot be continued"):
        clip_condition(Task.CONTINUATION, 1, 6, share=0.5)


def test_every_task_has_a_complete_row() -> None:
    fields = set(Conditions.__dataclass_fields__)
    for task in Task:
        spec = task.spec
        assert spec.help
        assert spec.generates
        assert set(spec.generates) <= {"video", "audio"}
        assert set(spec.sample_needs) <= fields
        assert "video" not in spec.generates or spec.given is not GivenPart.WHOLE_VIDEO
        assert "audio" not in spec.generates or spec.given is not GivenPart.WHOLE_AUDIO
        assert clip_condition(task, 5, 100, share=0.4, has_voice=True)
    assert len({task.spec.help for task in Task}) == len(Task)


def test_task_without_row_is_an_error() -> None:
    with pytest.raises(TypeError, match="spec"):

        class Incomplete(StrEnum):
            SING = "sing"
            __new__ = Task.__new_member__


def test_unknown_task_is_an_error() -> None:
    with pytest.raises(ValueError, match="sing"):
        Task("sing")


def test_unknown_task_name_is_reported_with_known_ones() -> None:
    with pytest.raises(UserError, match="unknown task 'sing'.*joint, reference, continuation"):
        task_named("sing")
    assert task_named("audio-driven") is Task.AUDIO_DRIVEN


def test_help_describes_every_task() -> None:
    assert all(f"{task}: {task.spec.help}" in describe_tasks() for task in Task)
