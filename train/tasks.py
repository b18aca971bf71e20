"""The table of tasks: what each one is given, what it generates and scores, which references it uses. Imports
no torch.

A task is one row of `Task`. Data, losses, sampler, planner, validation videos and command help read the row;
a member without a complete row does not import.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from fractions import Fraction
from typing import Literal, assert_never

from uniavgen.shards.errors import UsageError, UserError, choice_hint
from uniavgen.shards.timing import MELS_PER_FRAME, frames_for_latents, mels_for_frames

Modality = Literal["video", "audio"]


class GivenPart(Enum):
    """The part of a clip that a task gets as a clean condition; the other part is generated."""

    NOTHING = "nothing"
    BEGINNING = "the beginning of video and audio"
    WHOLE_VIDEO = "the whole video"
    WHOLE_AUDIO = "the whole audio"


@dataclass(frozen=True)
class TaskSpec:
    """What a task gets and makes.

    generates: modalities that are generated, and so scored. reference_voice: whether a recording of the voice
    precedes the audio; `optional` uses it where there is one. reference_image: where the image of the person
    comes from: another frame of the clip, or the clip's own first frame. sample_needs: fields of
    `generation.Conditions` that must be set to sample.
    """

    help: str
    given: GivenPart
    generates: tuple[Modality, ...]
    reference_voice: Literal["never", "optional", "required"]
    reference_image: Literal["own", "first frame"]
    sample_needs: tuple[str, ...]

    @property
    def needs_video(self) -> bool:
        """Whether the task makes no sense for audio-only data."""
        return self.given in (GivenPart.WHOLE_VIDEO, GivenPart.WHOLE_AUDIO)


class Task(StrEnum):
    """The five tasks of the paper, in its order (section 3.5).

    A member's value is its name in configuration and commands.
    """

    spec: TaskSpec

    JOINT = (
        "joint",
        TaskSpec(
            help="video and audio from a reference image and texts",
            given=GivenPart.NOTHING,
            generates=("video", "audio"),
            reference_voice="never",
            reference_image="own",
            sample_needs=("reference", "speech"),
        ),
    )
    REFERENCE = (
        "reference",
        TaskSpec(
            help="joint, with the voice of a reference recording",
            given=GivenPart.NOTHING,
            generates=("video", "audio"),
            reference_voice="required",
            reference_image="own",
            sample_needs=("reference", "speech", "reference_waveform"),
        ),
    )
    CONTINUATION = (
        "continuation",
        TaskSpec(
            help="the rest of a clip whose beginning is given",
            given=GivenPart.BEGINNING,
            generates=("video", "audio"),
            reference_voice="never",
            reference_image="own",
            sample_needs=("frames", "waveform", "speech"),
        ),
    )
    DUBBING = (
        "dubbing",
        TaskSpec(
            help="audio for a given video",
            given=GivenPart.WHOLE_VIDEO,
            generates=("audio",),
            reference_voice="optional",
            reference_image="first frame",
            sample_needs=("frames", "speech"),
        ),
    )
    AUDIO_DRIVEN = (
        "audio-driven",
        TaskSpec(
            help="video for a given audio track",
            given=GivenPart.WHOLE_AUDIO,
            generates=("video",),
            reference_voice="never",
            reference_image="own",
            sample_needs=("reference", "waveform"),
        ),
    )

    def __new__(cls, name: str, spec: TaskSpec) -> Task:
        member = str.__new__(cls, name)
        member._value_ = name
        member.spec = spec
        return member


PAPER_MIX: dict[Task, int] = {
    Task.JOINT: 4,
    Task.REFERENCE: 1,
    Task.CONTINUATION: 1,
    Task.DUBBING: 2,
    Task.AUDIO_DRIVEN: 2,
}
"""Draws of each task in ten (paper: 4:1:1:2:2)."""


def task_named(name: str) -> Task:
    """The task of that name. Raises UsageError listing the names otherwise."""
    for task in Task:
        if task.value == name:
            return task
    raise UsageError(f"unknown task {name!r}", hint=choice_hint(name, Task), kind="unknown-task")


def describe_tasks() -> str:
    """All tasks with their help sentences, in one line, for a command's help."""
    return "; ".join(f"{task}: {task.spec.help}" for task in Task) + "."


@dataclass(frozen=True)
class ClipCondition:
    """The clean part of a clip: number of given leading latents and mel frames, and its references."""

    latents: int
    mels: int
    reference_voice: bool
    reference_is_first_frame: bool = False


def clip_condition(
    task: Task,
    latents: int | None,
    mels: int,
    *,
    share: float = 0.0,
    has_voice: bool = False,
    mels_per_frame: Fraction = MELS_PER_FRAME,
) -> ClipCondition:
    """The clean part of a clip of so many latents and mel frames (paper, section 3.5).

    `latents` is None in audio-only work. `share`: part of the clip that `BEGINNING` means. `has_voice`: a
    reference voice is there and, where the task makes it optional, wanted. Raises UserError where the task
    lacks its video or its reference voice, or where a clip is too short to be continued.
    """
    spec = task.spec
    if latents is None and spec.needs_video:
        raise UserError(f"task {task} needs video, the batch holds audio only", kind="task-needs-video")
    if spec.reference_voice == "required" and not has_voice:
        raise UserError(f"task {task} needs reference_mel, which is empty", kind="task-needs-voice")
    given_latents, given_mels = _given_sizes(spec.given, latents, mels, share, mels_per_frame)
    return ClipCondition(
        given_latents,
        given_mels,
        reference_voice=has_voice and spec.reference_voice != "never",
        reference_is_first_frame=spec.reference_image == "first frame",
    )


def _given_sizes(
    given: GivenPart, latents: int | None, mels: int, share: float, mels_per_frame: Fraction
) -> tuple[int, int]:
    """Leading latents and mel frames that are given."""
    match given:
        case GivenPart.NOTHING:
            return 0, 0
        case GivenPart.WHOLE_VIDEO:
            return latents or 0, 0
        case GivenPart.WHOLE_AUDIO:
            return 0, mels
        case GivenPart.BEGINNING:
            if (latents or mels) < 2:
                raise UserError("a clip of one latent cannot be continued", kind="bad-length")
            if latents is None:
                return 0, min(max(round(share * mels), 1), mels - 1)
            given_latents = min(max(round(share * latents), 1), latents - 1)
            return given_latents, mels_for_frames(frames_for_latents(given_latents), mels_per_frame)
        case _:
            assert_never(given)
