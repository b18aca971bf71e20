"""Generate video and audio with a trained model: codecs around the sampling of its family.

Conditions come from a sample of the corpus, or from a user's own image, words and media. Nothing is written
to disk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import FaceTrack, Sample
from uniavgen.shards.timing import (
    LATENT_STRIDE,
    SAMPLE_RATE,
    VIDEO_FPS,
    frames_for_latents,
    samples_for_frames,
)
from uniavgen.train.batch import LatentBatch
from uniavgen.train.checkpoint.trained_model import load_trained
from uniavgen.train.codec.audio import Vocoder
from uniavgen.train.codec.registry import Codecs, load_vocoder
from uniavgen.train.codec.relative import add_still, encode_still, subtract_still
from uniavgen.train.codec.text import encode_speech
from uniavgen.train.codec.video import to_pixels
from uniavgen.train.config import SamplingConfig
from uniavgen.train.data.codec_fitting import RUN_CODEC, load_data_codecs
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import Focus, box_centre, crop_sample, fit_frame, random_for
from uniavgen.train.data.face_crop import Placement, cut_crops, paste_back, place_crops
from uniavgen.train.model.family import family_of
from uniavgen.train.sampling import continuation_share
from uniavgen.train.tasks import ClipCondition, Task, clip_condition, task_named

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Portrait:
    """A picture uint8 [H, W, 3] with even sides, and where in it the generated crops belong."""

    image: np.ndarray
    placement: Placement


def portrait_of(image: np.ndarray, face: FaceTrack, data: DataConfig) -> tuple[np.ndarray, Portrait]:
    """Crop the face of a picture as the run's training did: (reference uint8 [h, w, 3], portrait).

    image uint8 [H, W, 3]; `face` is the track of one frame. Raises UserError of kind `damaged-sample` if it
    has no face.
    """
    placement = place_crops(face, (image.shape[0], image.shape[1]), (data.height, data.width), data.crop)
    image = image[: len(image) // 2 * 2, : image.shape[1] // 2 * 2]  # as H.264 needs them
    return cut_crops(image[None], placement)[0], Portrait(image, placement)


@dataclass(frozen=True)
class Conditions:
    """Inputs of a generation.

    caption describes the scene; speech is the text to speak; reference uint8 [H, W, 3] shows the person;
    reference_waveform float32 [n] is the voice; frames uint8 [F, H, W, 3] at 16 fps and waveform float32 [n]
    at 24 kHz are given media. Images of any size are scaled and cropped to the run's size, around the face
    whose box (x0, y0, x1, y1), in fractions of the frame, is given (`reference_face`, `frames_face`), else
    around the centre. Media longer than the run's window are cut at its end; shorter ones serve where the
    task needs less (continuation needs the beginning).

    For a run on crops that follow the face, reference and frames are such crops already. `portrait` is then
    the picture that the reference was cut from (`portrait_of`), and the generated video shows all of it.
    """

    caption: str = ""
    speech: str = ""
    reference: np.ndarray | None = None
    reference_waveform: np.ndarray | None = None
    frames: np.ndarray | None = None
    waveform: np.ndarray | None = None
    reference_face: Box | None = None
    frames_face: Box | None = None
    portrait: Portrait | None = None


@dataclass(frozen=True)
class Generated:
    """frames uint8 [F, H, W, 3] at 16 fps and waveform float32 [1500 F] at 24 kHz, of the same duration.

    The frames have the portrait's size if the conditions have one, else the run's.

    A modality that the task gets complete (video in dubbing, audio in audio-driven) is returned unchanged.
    """

    frames: np.ndarray
    waveform: np.ndarray
    fps: int = VIDEO_FPS
    sample_rate: int = SAMPLE_RATE


def conditions_from(sample: Sample, config: DataConfig, seed: int = 0) -> Conditions:
    """All conditions of a sample, from a window chosen by the seed, cropped as in training.

    Without a reference voice if the sample has no audio outside the window. A sample that is shorter than the
    window is taken whole: tasks that need less can use it. Raises UserError of kind `damaged-sample`.
    """
    total = len(sample.face.score)
    if total < config.frames:
        latents = max(1, 1 + (total - 1) // LATENT_STRIDE)
        config = config.model_copy(update={"frames": frames_for_latents(latents)})
    try:
        crop = crop_sample(sample, config, random_for(seed, 0, 0), needs_voice=True)
    except UserError as error:
        if error.kind != "no-voice":
            raise
        crop = crop_sample(sample, config, random_for(seed, 0, 0))
    assert crop.reference_frame is not None
    return Conditions(
        crop.caption,
        crop.speech_text,
        crop.reference_frame[0],
        None if crop.voice_inside else crop.reference_waveform,
        crop.frames,
        crop.waveform,
    )


class ClipGenerator:
    """A finished stage's model and its codecs, loaded once for any number of clips."""

    def __init__(self, run_dir: str | Path, stage: str | None = None, device: str = "cpu") -> None:
        """`stage` None takes the last finished one with both branches.

        Raises UserError if the run is not trained.
        """
        model, self.config = load_trained(run_dir, stage)
        self.kept_codec = Path(run_dir) / RUN_CODEC
        self.family = family_of(self.config.model)
        self.model, self.device = model.to(device), device

    @cached_property
    def codecs(self) -> Codecs:
        """Raises UserError if weights are missing."""
        return load_data_codecs(self.config.data, self.kept_codec, device=self.device)

    @cached_property
    def vocoder(self) -> Vocoder:
        """Raises UserError if weights are missing."""
        return load_vocoder(self.config.data.codecs, self.codecs.mel, self.device)

    def generate(
        self,
        task: Task,
        source: Conditions | Sample,
        sampling: SamplingConfig | None = None,
        seed: int = 0,
        *,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Generated:
        """One clip; the same arguments give the same clip, bit for bit on a CPU.

        `on_step(done, steps)` reports progress.

        Raises UserError for conditions that the task needs and `source` lacks.
        """
        data = self.config.data
        conditions = conditions_from(source, data, seed) if isinstance(source, Sample) else source
        sampling = sampling or SamplingConfig()
        fitted = fit_conditions(conditions, task, data, sampling)
        batch = encode_conditions(fitted, task, data, self.codecs).to(self.device)
        video, mel = self.family.sample(
            self.model,
            batch,
            task,
            sampling,
            seed,
            objective=self.config.objective,
            on_step=on_step,
        )
        assert video is not None
        assert self.codecs.video is not None
        frames, waveform = fitted.frames, fitted.waveform
        if frames is None or "video" in task.spec.generates:
            if data.relative:
                assert fitted.reference is not None
                reference = torch.from_numpy(fitted.reference)[None, None]
                video = add_still(video, encode_still(self.codecs.video, reference).to(video))
            frames = to_pixels(self.codecs.video.decode(video))[0].cpu().numpy()
            if fitted.portrait is not None:
                frames = paste_back(fitted.portrait.image, frames, fitted.portrait.placement)
        if waveform is None or "audio" in task.spec.generates:
            waveform = self.vocoder.decode(mel, samples_for_frames(data.frames))[0].cpu().numpy()
        return Generated(frames, waveform)

    def close(self) -> None:
        """Free all weights, so that the workers of the next stage can use the GPU's memory."""
        vars(self).clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def generate(
    run_dir: str | Path,
    task: Task | str,
    source: Conditions | Sample,
    sampling: SamplingConfig | None = None,
    seed: int = 0,
    *,
    stage: str | None = None,
    device: str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> Generated:
    """Generate one clip with the run's last finished two-branch stage, or with `stage`.

    Raises UserError for an unknown task, and as `ClipGenerator` does.
    """
    task = task_named(str(task))
    return ClipGenerator(run_dir, stage, device).generate(task, source, sampling, seed, on_step=on_step)


def choose_device(wanted: str) -> str:
    """The device for generation: the GPU if there is one, unless `wanted` (`train.device`) is `cpu`.

    Raises UserError if `wanted` is `cuda` and there is no GPU.
    """
    has_gpu = torch.cuda.is_available()
    if wanted == "cuda" and not has_gpu:
        raise UserError(
            "this machine has no GPU", where="train.device", hint="set train.device=cpu", kind="no-gpu"
        )
    return "cuda" if has_gpu and wanted != "cpu" else "cpu"


def fit_conditions(
    conditions: Conditions, task: Task, config: DataConfig, sampling: SamplingConfig | None = None
) -> Conditions:
    """Conditions at the run's size and length; media that the task does not use are left out.

    Media of which the task needs the beginning alone (`sampling`: how much a continuation gets) may end after
    it; what follows is filled up and not used. Raises UserError if a condition that the task needs is missing
    or too short.
    """
    for name in task.spec.sample_needs:
        value = getattr(conditions, name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise UserError(
                f"task {task} needs {name.replace('_', ' ')}",
                hint="give it, or choose another task",
                kind="missing-condition",
            )
    if config.follows_face:
        _check_cropped(conditions, config)
    condition = given_part(task, config, sampling or SamplingConfig())
    needed = frames_for_latents(condition.latents) if condition.latents else 0
    samples = samples_for_frames(config.frames)
    needed_samples = samples_for_frames(needed or config.frames) if condition.mels else 0
    frames, waveform, reference = conditions.frames, conditions.waveform, conditions.reference
    face = conditions.reference_face if reference is not None else conditions.frames_face
    if reference is None and frames is not None:
        reference = frames[0]
    for name, media, length, rate in (
        ("frames", frames, needed, VIDEO_FPS),
        ("waveform", waveform, needed_samples, SAMPLE_RATE),
    ):
        if media is not None and len(media) < length:
            raise UserError(
                f"the given {name} last {len(media) / rate:.2f} s, task {task} needs {length / rate:.2f} s",
                hint="give longer media",
                kind="short-clip",
            )
    if frames is not None:
        focus, size = _focus(conditions.frames_face), (config.height, config.width)
        frames = np.stack([fit_frame(f, *size, focus) for f in frames[: config.frames]]) if needed else None
    return replace(
        conditions,
        reference=None
        if reference is None
        else fit_frame(reference, config.height, config.width, _focus(face)),
        frames=None if frames is None else _filled(frames, config.frames, "edge"),
        waveform=None
        if waveform is None or not needed_samples
        else _filled(waveform[:samples].astype(np.float32), samples, "constant"),
    )


def _check_cropped(conditions: Conditions, config: DataConfig) -> None:
    """Raise UserError for media that are no crops of the run's size."""
    given = [("reference", conditions.reference), ("frames", conditions.frames)]
    for name, pixels in given:
        if pixels is not None and pixels.shape[-3:-1] != (config.height, config.width):
            raise UserError(
                f"the run was trained on {config.crop} crops of {config.width} x {config.height} px, the "
                f"given {name} is {pixels.shape[-2]} x {pixels.shape[-3]} px",
                hint="crop it first, with train.generation.portrait_of",
                kind="bad-size",
            )


def given_part(task: Task, config: DataConfig, sampling: SamplingConfig) -> ClipCondition:
    """The part of a clip of the run's window that a task gets from its media."""
    latents = config.latent_shape[0]
    share = continuation_share(sampling, latents)
    return clip_condition(task, latents, config.mels, share=share, has_voice=True)


def _focus(face: Box | None) -> Focus | None:
    return None if face is None else box_centre(face)


def _filled(media: np.ndarray, length: int, mode: Literal["edge", "constant"]) -> np.ndarray:
    """Media of `length` entries: the last one is repeated, or zeros follow."""
    return np.pad(media, [(0, length - len(media)), *[(0, 0)] * (media.ndim - 1)], mode=mode)


def encode_conditions(conditions: Conditions, task: Task, config: DataConfig, codecs: Codecs) -> LatentBatch:
    """Fitted conditions as a batch of one; what is missing is zeros of the right shape."""
    assert codecs.video is not None
    assert codecs.caption is not None
    assert conditions.reference is not None
    latents, height, width = config.latent_shape
    pixels = torch.from_numpy(conditions.reference)[None, None]
    still = encode_still(codecs.video, pixels) if config.relative else codecs.video.encode(pixels)
    reference = still[:, :, :1]
    video = reference.new_zeros(1, reference.shape[1], latents, height, width)
    if conditions.frames is not None:
        video = codecs.video.encode(torch.from_numpy(conditions.frames)[None])
        if config.relative:
            video = subtract_still(video, still)
    mel = reference.new_zeros(1, config.codecs.mel.mels, config.mels)
    if conditions.waveform is not None:
        mel = codecs.mel.encode(torch.from_numpy(conditions.waveform)[None], config.mels)
    reference_mel = mel[:, :, :0]
    if conditions.reference_waveform is not None and task.spec.reference_voice != "never":
        reference_mel = _encode_voice(conditions.reference_waveform, config, codecs)
    caption, caption_mask = codecs.caption.encode([conditions.caption], config.caption_tokens)
    speech_ids, speech_mask = encode_speech([conditions.speech], config.speech_bytes)
    return LatentBatch(
        keys=["generated"],
        mel=mel,
        reference_mel=reference_mel,
        speech_ids=speech_ids,
        speech_mask=speech_mask,
        video=video,
        reference=reference,
        caption=caption,
        caption_mask=caption_mask,
    )


def _encode_voice(waveform: np.ndarray, config: DataConfig, codecs: Codecs) -> Tensor:
    """Mel of a reference voice, cut or repeated to the length used in training."""
    filled = np.resize(waveform.astype(np.float32), samples_for_frames(config.reference_frames))
    return codecs.mel.encode(torch.from_numpy(filled)[None], config.reference_mels)
