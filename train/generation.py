"""From a finished run and conditions to picture and sound: codecs around the sampler.

In: a run folder, a task, Conditions (of a sample, or of a user's own image, words and media). Out: Generated. Writing a
file is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import Sample
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS, samples_for_frames
from uniavgen.train.batch import LatentBatch
from uniavgen.train.checkpoint.trained_model import load_trained
from uniavgen.train.codec.audio import Vocoder
from uniavgen.train.codec.registry import Codecs, load_codecs, load_vocoder
from uniavgen.train.codec.text import encode_speech
from uniavgen.train.codec.video import to_pixels
from uniavgen.train.config import SamplingConfig
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.crops import crop_sample, fit_frame, random_for
from uniavgen.train.sampling import sample as sample_latents
from uniavgen.train.tasks import Task, task_named


@dataclass(frozen=True)
class Conditions:
    """What a generation may start from.

    caption describes the scene, speech is what shall be said; reference uint8 [H, W, 3] shows the person;
    reference_waveform float32 [n] is the voice; frames uint8 [F, H, W, 3] at 16 fps and waveform float32 [n] at 24 kHz
    are given media. Pictures of any size are covered and centre-cropped to the run's; media longer than the run's window
    are cut at its end.
    """

    caption: str = ""
    speech: str = ""
    reference: np.ndarray | None = None
    reference_waveform: np.ndarray | None = None
    frames: np.ndarray | None = None
    waveform: np.ndarray | None = None


@dataclass(frozen=True)
class Generated:
    """frames uint8 [F, H, W, 3] at 16 fps and waveform float32 [1500 F] at 24 kHz, of the same length in time.

    A modality that the task gives whole (the picture in dubbing, the sound in audio-driven) is the given one itself.
    """

    frames: np.ndarray
    waveform: np.ndarray
    fps: int = VIDEO_FPS
    sample_rate: int = SAMPLE_RATE


def conditions_from(sample: Sample, config: DataConfig, seed: int = 0) -> Conditions:
    """Every condition that a sample can give, from a window chosen by the seed, as training would crop it."""
    crop = crop_sample(sample, config, random_for(seed, 0, 0))
    assert crop.reference_frame is not None
    return Conditions(
        crop.caption,
        crop.speech_text,
        crop.reference_frame[0],
        crop.reference_waveform,
        crop.frames,
        crop.waveform,
    )


class ClipGenerator:
    """A finished stage's model and its codecs, loaded once for any number of clips."""

    def __init__(self, run_dir: str | Path, stage: str | None = None, device: str = "cpu") -> None:
        """`stage` None takes the last finished one with both branches. Raises UserError for a run that is not trained."""
        model, self.config = load_trained(run_dir, stage)
        self.model, self.device = model.to(device), device

    @cached_property
    def codecs(self) -> Codecs:
        """Raises UserError where weights are missing."""
        return load_codecs(self.config.data.codecs, device=self.device)

    @cached_property
    def vocoder(self) -> Vocoder:
        """Raises UserError where weights are missing."""
        return load_vocoder(self.config.data.codecs, self.codecs.mel, self.device)

    def generate(
        self,
        task: Task,
        given: Conditions | Sample,
        sampler: SamplingConfig | None = None,
        seed: int = 0,
        *,
        on_step: Callable[[int, int], None] | None = None,
    ) -> Generated:
        """One clip; the same arguments give the same one, bit for bit on a CPU. `on_step(done, steps)` follows the sampler.

        Raises UserError for conditions that the task needs and that are missing.
        """
        data = self.config.data
        conditions = conditions_from(given, data, seed) if isinstance(given, Sample) else given
        fitted = fit_conditions(conditions, task, data)
        batch = encode_conditions(fitted, task, data, self.codecs).to(self.device)
        video, mel = sample_latents(
            self.model, batch, task, sampler or SamplingConfig(), seed, on_step=on_step
        )
        assert video is not None
        assert self.codecs.video is not None
        frames, waveform = fitted.frames, fitted.waveform
        if frames is None or "video" in task.spec.generates:
            frames = to_pixels(self.codecs.video.decode(video))[0].cpu().numpy()
        if waveform is None or "audio" in task.spec.generates:
            waveform = self.vocoder.decode(mel, samples_for_frames(data.frames))[0].cpu().numpy()
        return Generated(frames, waveform)

    def close(self) -> None:
        """Give up all weights; a card's memory is then free for other processes, such as the workers of the next stage."""
        vars(self).clear()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()


def generate(
    run_dir: str | Path,
    task: Task | str,
    given: Conditions | Sample,
    sampler: SamplingConfig | None = None,
    seed: int = 0,
    *,
    stage: str | None = None,
    device: str = "cpu",
    on_step: Callable[[int, int], None] | None = None,
) -> Generated:
    """Generate one clip with a run's last finished two-branch stage (or the `stage` named).

    Raises UserError for an unknown task, and as `ClipGenerator` does.
    """
    task = task_named(str(task))
    return ClipGenerator(run_dir, stage, device).generate(task, given, sampler, seed, on_step=on_step)


def device_here(wanted: str) -> str:
    """Where this process computes: on its card if there is one and `wanted` (`train.device`) does not say `cpu`.

    Raises UserError where `wanted` says `cuda` and there is none.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise UserError(
            "this machine has no GPU", where="train.device", hint="set train.device=cpu", kind="no-gpu"
        )
    return "cuda" if there and wanted != "cpu" else "cpu"


def fit_conditions(given: Conditions, task: Task, config: DataConfig) -> Conditions:
    """Conditions at the run's size and length. Raises UserError where something that the task needs is missing or short."""
    for name in task.spec.sample_needs:
        value = getattr(given, name)
        if value is None or (isinstance(value, str) and not value.strip()):
            raise UserError(
                f"task {task} needs {name.replace('_', ' ')}",
                hint="give it, or choose another task",
                kind="missing-condition",
            )
    samples = samples_for_frames(config.frames)
    for name, value, length in (
        ("frames", given.frames, config.frames),
        ("waveform", given.waveform, samples),
    ):
        if value is not None and len(value) < length:
            seconds = config.frames / VIDEO_FPS
            raise UserError(
                f"the given {name} are shorter than the run's {seconds:.2f} s",
                hint="give longer media",
                kind="short-clip",
            )
    reference = given.reference
    if reference is None and given.frames is not None:
        reference = given.frames[0]
    fit = (
        []
        if given.frames is None
        else [fit_frame(frame, config.height, config.width) for frame in given.frames[: config.frames]]
    )
    return replace(
        given,
        reference=None if reference is None else fit_frame(reference, config.height, config.width),
        frames=np.stack(fit) if fit else None,
        waveform=None if given.waveform is None else given.waveform[:samples].astype(np.float32),
    )


def encode_conditions(given: Conditions, task: Task, config: DataConfig, codecs: Codecs) -> LatentBatch:
    """Fitted conditions as a batch of one; what is not given is zeros of the right shape."""
    assert codecs.video is not None
    assert codecs.caption is not None
    assert given.reference is not None
    latents, height, width = config.latent_shape
    reference = codecs.video.encode(torch.from_numpy(given.reference)[None, None])
    video = reference.new_zeros(1, reference.shape[1], latents, height, width)
    if given.frames is not None:
        video = codecs.video.encode(torch.from_numpy(given.frames)[None])
    mel = reference.new_zeros(1, config.codecs.mel.mels, config.mels)
    if given.waveform is not None:
        mel = codecs.mel.encode(torch.from_numpy(given.waveform)[None], config.mels)
    reference_mel = mel[:, :, :0]
    if given.reference_waveform is not None and task.spec.reference_voice != "never":
        reference_mel = _encode_voice(given.reference_waveform, config, codecs)
    caption, caption_mask = codecs.caption.encode([given.caption], config.caption_tokens)
    speech_ids, speech_mask = encode_speech([given.speech], config.speech_bytes)
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
    """The reference sound, cut or repeated to the length that training used."""
    filled = np.resize(waveform.astype(np.float32), samples_for_frames(config.reference_frames))
    return codecs.mel.encode(torch.from_numpy(filled)[None], config.reference_mels)
