"""The plan of a training run: model, data, DeepSpeed, and the stages audio -> joint -> multitask. Imports nothing heavy.

The defaults are the `tiny` run, which a 2-core machine trains in minutes; the paper's own table is the preset `paper`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from uniavgen.shards.buckets import WindowShape
from uniavgen.shards.config import EmiliaConfig, ErrorBudgetConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import latents_for_frames, mels_for_frames
from uniavgen.train.codec.config import TOKEN_STRIDE, VIDEO_CHANNELS
from uniavgen.train.codec.registry import CodecConfig
from uniavgen.train.model.config import FaceConfig, ModelConfig
from uniavgen.train.options import PAPER_MIX, ObjectiveConfig, Task

StageName = Literal["audio", "joint", "multitask"]

AUDIO_PARTS = ("audio", "speech_text")
ALL_PARTS = ("video", *AUDIO_PARTS, "interactions")
"""Parts of the dual-branch model, as its parameters' names begin."""


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PretrainedConfig(_Config):
    """Wan checkpoints that a stage's branches start from, in the original or the diffusers layout."""

    video: str = Field(
        default="", description="safetensors file or folder for the video branch: Wan2.2-TI2V-5B; empty: none"
    )
    audio: str = Field(default="", description="the same for the audio branch, whose template is Wan2.1-1.3B")
    skip: list[str] = Field(
        default_factory=list,
        description="parts that the checkpoints have in another shape and that start at random, by name prefix: an audio "
        "branch from a Wan video model leaves out audio.patch_embedding, audio.text_embedding and audio.head",
    )


class StageConfig(_Config):
    """One stage: what it trains, on which tasks, how long, and what it takes from the stage before."""

    name: StageName = Field(description="audio: the audio branch alone; joint and multitask: both branches")
    batch: int = Field(default=4, gt=0, description="samples per optimizer step over all workers together")
    lr: float = Field(
        default=1e-3,
        gt=0,
        description="AdamW learning rate after the warm-up; constant, as the paper names no decay",
    )
    steps: int = Field(default=40, gt=0, description="optimizer steps")
    warmup: int = Field(default=4, ge=0, description="steps of linear warm-up (the paper is silent; ours)")
    grad_clip: float = Field(
        default=1.0,
        ge=0,
        description="largest global gradient norm, 0 for none (the paper is silent; Wan's is 1)",
    )
    weight_decay: float = Field(
        default=0.01, ge=0, description="AdamW's decay (the paper is silent; PyTorch's default)"
    )
    lambda_start: float | None = Field(
        default=None, ge=0, description="lambda_m at the first step; none: model.face.lambda_start"
    )
    lambda_end: float | None = Field(
        default=None, ge=0, description="lambda_m at the last step; none: model.face.lambda_end"
    )
    tasks: dict[Task, int] = Field(
        default_factory=lambda: {Task.JOINT: 1}, description="task mix, as integer weights"
    )
    takes_from: StageName | None = Field(
        default=None, description="stage whose weights this one starts from; none: random weights"
    )
    trains: list[str] = Field(
        default_factory=list, description="parts that learn, by name prefix; empty: all the stage has"
    )
    starts_fresh: list[str] = Field(
        default_factory=list,
        description="parts, by name prefix, that the stage before did not have and that start at random",
    )
    pretrained: PretrainedConfig = Field(
        default_factory=PretrainedConfig,
        description="checkpoints for branches that the stage before did not have",
    )
    emilia: EmiliaConfig = Field(
        default_factory=EmiliaConfig,
        description="audio shards that an audio stage trains on instead of the corpus's clips",
    )

    @model_validator(mode="after")
    def _audio_shards_are_for_audio(self) -> StageConfig:
        if self.emilia.shards and self.picture:
            raise ValueError(
                f"stage {self.name} needs pictures, which audio shards lack: only stage audio takes emilia.shards"
            )
        return self

    @property
    def picture(self) -> bool:
        """Whether the stage has a video branch, so that its data needs pictures."""
        return self.name != "audio"

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts of the model that the stage has; the others are not built into its weights."""
        return ALL_PARTS if self.picture else AUDIO_PARTS


def tiny_stages() -> list[StageConfig]:
    """The default: three short stages, every mechanism of the paper's run at a size for two cores."""
    return [
        StageConfig(name="audio"),
        StageConfig(name="joint", takes_from="audio", starts_fresh=["video", "interactions"]),
        StageConfig(name="multitask", takes_from="joint", tasks=PAPER_MIX, lambda_start=0.0, lambda_end=0.0),
    ]


class CacheConfig(_Config):
    """What `cache-latents` computes once: `windows` and `dtype` belong to the cache's digest, the rest says how it is made."""

    windows: int = Field(
        default=4,
        gt=0,
        description="windows of each clip that are encoded, evenly placed; with cached latents, training sees no others",
    )
    dtype: Literal["float16", "float32"] = Field(
        default="float16",
        description="how latents are stored; float16 rounds by 2e-4 of their spread (real clips, measured)",
    )
    workers: int = Field(default=1, gt=0, description="Ray actors, each with codecs of its own")
    num_cpus: float = Field(
        default=1, gt=0, description="CPUs that an actor reserves, and threads that PyTorch uses in it"
    )
    num_gpus: float = Field(
        default=0, ge=0, description="share of a GPU that an actor reserves; 0: it works on CPUs"
    )


class DataConfig(_Config):
    """The crop of a sample that training sees, and the codecs that turn it into latents."""

    frames: int = Field(
        default=17, gt=1, description="pixel frames of the window at 16 fps, 4n + 1 (paper-sized: 81)"
    )
    height: int = Field(default=128, gt=0, description="px, a multiple of 32 (paper-sized: 480)")
    width: int = Field(default=128, gt=0, description="px, a multiple of 32 (paper-sized: 832)")
    reference_frames: int = Field(
        default=17, gt=0, description="length of the reference sound, in pixel frames of time"
    )
    caption_tokens: int = Field(
        default=32, gt=0, description="caption length in tokens; longer ones are cut (Wan: 512)"
    )
    speech_bytes: int = Field(
        default=64, gt=0, description="speech text length in bytes; longer ones are cut and counted"
    )
    buckets: list[WindowShape] = Field(
        default_factory=list,
        description="windows {frames, height, width} to train on instead: each clip in the one that fits it, each step in one",
    )
    balance: Literal["samples", "flops"] = Field(
        default="samples",
        description="flops: steps of cheaper windows take whole multiples of the stage's batch",
    )
    shards: str = Field(
        default="", description="folder or URL (s3://...) that shards are read from; empty: the corpus's own"
    )
    seed: int = Field(default=0, ge=0, description="order of the samples and choice of their windows")
    prefetch: int = Field(default=2, ge=0, description="batches made ahead of the step that uses them")
    codecs: CodecConfig = Field(default_factory=CodecConfig, description="video, caption and sound codecs")
    latents: Literal["auto", "require", "off"] = Field(
        default="auto",
        description="auto: cached latents where they agree with codecs and window, else encoded on line; require: stop without",
    )
    cached: CacheConfig = Field(default_factory=CacheConfig, description="what cache-latents computes")
    damage: ErrorBudgetConfig = Field(
        default_factory=ErrorBudgetConfig, description="damaged samples that are passed over, per worker"
    )

    @field_validator("frames")
    @classmethod
    def _whole_latents(cls, frames: int) -> int:
        try:
            latents_for_frames(frames)
        except UserError as error:
            raise ValueError(str(error)) from error
        return frames

    @field_validator("height", "width")
    @classmethod
    def _whole_tokens(cls, side: int) -> int:
        if side % TOKEN_STRIDE:
            raise ValueError(f"must be a multiple of {TOKEN_STRIDE} px (VAE 16 x patch 2), got {side}")
        return side

    @model_validator(mode="after")
    def _buckets(self) -> DataConfig:
        if len(set(self.buckets)) < len(self.buckets):
            raise ValueError("buckets: a window stands twice")
        for shape in self.buckets:
            self._whole_latents(shape.frames)
            self._whole_tokens(shape.height)
            self._whole_tokens(shape.width)
        if self.buckets and self.latents == "require":
            raise ValueError("buckets: latents are cached for one window only; set latents to auto or off")
        return self

    @property
    def mels(self) -> int:
        """Mel frames L of the window."""
        return mels_for_frames(self.frames)

    @property
    def reference_mels(self) -> int:
        """Mel frames Lr of the reference sound."""
        return mels_for_frames(self.reference_frames)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Video latent (T, h, w) of the window."""
        return (
            latents_for_frames(self.frames),
            self.height // (TOKEN_STRIDE // 2),
            self.width // (TOKEN_STRIDE // 2),
        )


class DeepSpeedConfig(_Config):
    """What of DeepSpeed a run uses; the file it reads is made from this by `train.engine.deepspeed_file`."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=2, description="ZeRO: 1 shards optimizer states, 2 gradients too, 3 parameters too"
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="bf16 and fp16 keep fp32 master weights; fp16 runs under DeepSpeed's dynamic loss scale",
    )
    offload: Literal["none", "cpu"] = Field(
        default="none", description="cpu: optimizer states (and at stage 3 parameters) in host memory"
    )
    micro_batch: int = Field(
        default=0,
        ge=0,
        description="samples per forward on one worker; 0: its whole share. The rest is accumulated",
    )
    activation_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass"
    )


class CheckpointConfig(_Config):
    """When to save and what to keep."""

    every: int = Field(default=500, gt=0, description="steps between checkpoints; the last step always saves")
    keep: int = Field(default=2, gt=0, description="newest checkpoints kept per stage")
    keep_every: int = Field(
        default=0, ge=0, description="checkpoints of steps that this divides are kept for good; 0: none"
    )


class HealthConfig(_Config):
    """When a step is too bad to be taken, and what is worth a warning. The paper is silent on all of it: ours."""

    window: int = Field(
        default=100, gt=1, description="good steps of the same task that a new one is compared with"
    )
    loss_spike: float = Field(
        default=5.0,
        gt=1,
        description="a loss over so many times the window's median is a spike, once half the window is full",
    )
    grad_spike: float = Field(
        default=20.0, gt=1, description="the same for the norm of the gradient, before it is clipped"
    )
    rewind_after: int = Field(
        default=5, gt=0, description="bad steps in a row, after which training goes back to a checkpoint"
    )
    max_rewinds: int = Field(
        default=2, ge=0, description="times that a stage goes back before it stops with a verdict"
    )
    watch_every: int = Field(
        default=50, gt=0, description="steps between two looks at the figures that only warn"
    )
    slow_rank: float = Field(
        default=1.5, gt=1, description="a worker over so many times the median worker's time is slow"
    )
    data_wait: float = Field(
        default=0.2, gt=0, description="share of the step spent waiting for data that is worth a warning"
    )
    mask_mean: float = Field(
        default=0.01, ge=0, description="mean of the face masks under which they are vanishing"
    )


class ValidationConfig(_Config):
    """What is looked at on the clips of val: losses while a stage trains, films when it ends. The paper is silent: ours."""

    every: int = Field(default=0, ge=0, description="steps between validation losses; 0: none")
    clips: int = Field(
        default=4, gt=0, description="first clips of val, always the same; a multiple of the workers"
    )
    times: list[float] = Field(
        default=[0.1, 0.3, 0.5, 0.7, 0.9],
        min_length=1,
        description="diffusion times in 0..1 at which the loss is taken",
    )
    films: int = Field(
        default=0,
        ge=0,
        description="clips of val from which each task is sampled at a stage's end, guidance on and off; 0: none",
    )

    @field_validator("times")
    @classmethod
    def _inside(cls, times: list[float]) -> list[float]:
        if not all(0 < time < 1 for time in times):
            raise ValueError(f"must lie between 0 and 1, got {times}")
        return times


class TrainConfig(_Config):
    """A whole run, from which any of its stages can be started."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="the dual-branch model")
    objective: ObjectiveConfig = Field(
        default_factory=ObjectiveConfig, description="the loss; each stage sets its own `mix`"
    )
    data: DataConfig = Field(default_factory=DataConfig, description="windows and codecs")
    deepspeed: DeepSpeedConfig = Field(
        default_factory=DeepSpeedConfig, description="how the model is spread over workers"
    )
    stages: list[StageConfig] = Field(default_factory=tiny_stages, description="the stages, in order")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="saving")
    validation: ValidationConfig = Field(
        default_factory=ValidationConfig, description="losses and films on clips of val"
    )
    health: HealthConfig = Field(
        default_factory=HealthConfig, description="steps that are skipped, and warnings"
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of a moving average of the weights, which sampling and exports then use; 0: none. Undisclosed by "
        "the paper; 0.9999 is usual for diffusion models",
    )
    trace: bool = Field(
        default=False,
        description="every worker notes its losses and sample ids of each step in <stage>/trace-<rank>.jsonl",
    )
    fixed_steps: int = Field(
        default=10,
        ge=0,
        description="batches, the same before and after a stage, whose losses tell what it learnt",
    )
    workers: int = Field(default=2, gt=0, description="training processes, one per GPU or CPU")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="auto: cuda where the cluster has a GPU per worker; for sampling, where this machine has one",
    )
    cpus_per_worker: int = Field(
        default=1, gt=0, description="CPUs that Ray reserves, and threads that PyTorch uses, per worker"
    )
    max_restarts: int = Field(
        default=0,
        ge=0,
        description="times that the workers start again from the last checkpoint after one was lost, as with its node, or "
        "crashed; what a person must put right is not tried again",
    )
    room_wait_s: int = Field(
        default=300,
        gt=0,
        description="seconds that each start waits for CPUs or GPUs that are taken or went with a node",
    )
    seed: int = Field(default=0, ge=0, description="initial weights, tasks, noise and timesteps")

    @model_validator(mode="after")
    def _stages_make_sense(self) -> TrainConfig:
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"stage {stage.name} stands twice")
            if stage.takes_from and stage.takes_from not in seen:
                raise ValueError(
                    f"stage {stage.name} takes from {stage.takes_from}, which does not come before it"
                )
            seen.append(stage.name)
            if (
                not stage.tasks
                or any(weight < 0 for weight in stage.tasks.values())
                or not any(stage.tasks.values())
            ):
                raise ValueError(f"stage {stage.name} needs a task with a positive weight")
        return self

    @model_validator(mode="after")
    def _model_fits_the_data(self) -> TrainConfig:
        video, audio, codecs = self.model.video, self.model.audio, self.data.codecs
        if audio.in_channels != codecs.mel.mels:
            raise ValueError(
                f"model.audio.in_channels is {audio.in_channels}, data.codecs.mel.mels {codecs.mel.mels}"
            )
        if audio.text_len is not None and self.data.speech_bytes > audio.text_len:
            raise ValueError(
                f"data.speech_bytes {self.data.speech_bytes} exceeds model.audio.text_len {audio.text_len}"
            )
        if not any(stage.picture for stage in self.stages):
            return self
        if video.in_channels != VIDEO_CHANNELS:
            raise ValueError(
                f"model.video.in_channels is {video.in_channels}, video latents have {VIDEO_CHANNELS}"
            )
        if video.text_dim != codecs.caption_width:
            width = f"captions of {codecs.caption} are {codecs.caption_width} wide"
            raise ValueError(f"model.video.text_dim is {video.text_dim}, {width}")
        if video.text_len is not None and self.data.caption_tokens > video.text_len:
            raise ValueError(
                f"data.caption_tokens {self.data.caption_tokens} exceeds model.video.text_len {video.text_len}"
            )
        how = self.model.interaction
        windows = {
            f"data.buckets.{place}.frames": shape.frames for place, shape in enumerate(self.data.buckets)
        }
        for name, frames in {"data.frames": self.data.frames, **windows}.items():
            span = {"frame": frames, "latent": latents_for_frames(frames)}[how.window_unit]
            if how.a2v == "ati" and how.window >= span:
                raise ValueError(
                    f"model.interaction.window is {how.window} {how.window_unit}s, {name} make only {span}"
                )
        return self

    def stage(self, name: str) -> StageConfig:
        """The stage of that name. Raises UserError listing the stages there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(
            f"no stage {name!r} in this plan",
            hint=f"stages: {', '.join(s.name for s in self.stages)}",
            kind="unknown-stage",
        )

    def micro_batch(self, stage: StageConfig, world_size: int) -> int:
        """Samples per forward on each of `world_size` workers. Raises UserError where the batch cannot be split evenly."""
        share, rest = divmod(stage.batch, world_size)
        micro = self.deepspeed.micro_batch or share
        if rest or not share or share % micro:
            raise UserError(
                f"batch {stage.batch} of stage {stage.name} does not split into {world_size} workers x {micro or 1} samples",
                where=f"train.stages.{stage.name}.batch",
                hint="make the batch a multiple of train.workers x train.deepspeed.micro_batch",
                kind="bad-batch",
            )
        return micro


def lr_at(stage: StageConfig, step: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then constant."""
    return stage.lr * min(1.0, (step + 1) / (stage.warmup + 1))


def face_for(config: TrainConfig, stage: StageConfig) -> FaceConfig:
    """The face configuration with the stage's own lambda_m schedule, where it names one."""
    named = {"lambda_start": stage.lambda_start, "lambda_end": stage.lambda_end}
    return config.model.face.model_copy(
        update={name: value for name, value in named.items() if value is not None}
    )
