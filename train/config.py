"""Configuration of a training run: model, objective, data, DeepSpeed, and its stages.

The rooms of `train` keep the parts that they read (`model.config`, `data.config`, `codec.config`,
`diagnostics.config`). Imports nothing heavy. The defaults are the `tiny` run, which a 2-core machine trains
in minutes; the paper's table is the preset `paper`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from uniavgen.shards.config import EmiliaConfig
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import latents_for_frames
from uniavgen.train.codec.config import VIDEO_CHANNELS
from uniavgen.train.data.config import DataConfig
from uniavgen.train.diagnostics.config import HealthConfig, ValidationConfig
from uniavgen.train.model.config import FaceConfig, ModelConfig, PretrainedConfig
from uniavgen.train.optimizer_config import OptimizerConfig, lr_factor_at
from uniavgen.train.own_options import OwnObjectiveConfig, check_own_options
from uniavgen.train.tasks import PAPER_MIX, Task
from uniavgen.train.timestep_config import TimestepConfig

StageName = Literal["audio", "joint", "multitask"]


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ObjectiveConfig(OwnObjectiveConfig):
    """The loss of one micro-step."""

    timestep: TimestepConfig = TimestepConfig()
    video_timestep: TimestepConfig | None = Field(
        default=None, description="Distribution of the video branch's t; none: `timestep`."
    )
    audio_timestep: TimestepConfig | None = Field(
        default=None, description="Distribution of the audio branch's t; none: `timestep`."
    )
    shared_timestep: bool = Field(
        default=True,
        description="Same draw in both branches, so the same t where their distributions agree, else the "
        "times of one step of the sampler. Undisclosed; true, because sampling moves both together.",
    )
    interaction_dropout: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of samples that are trained with both interactions removed, as in the u0 of "
        "MA-CFG. Undisclosed; 0 as the paper names none, 0.1 is usual for guidance.",
    )
    interaction_dropout_text: bool = Field(
        default=True,
        description="These samples have empty texts too, as the sampler's u0 (sample.empty_text).",
    )
    caption_dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of samples trained on an empty caption. Undisclosed; 0.1 is usual for guidance.",
    )
    speech_dropout: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="Share of samples trained on an empty speech text, drawn independently of the caption.",
    )
    video_weight: float = Field(
        default=1.0, ge=0, description="Weight of the video velocity loss (paper: 1)."
    )
    audio_weight: float = Field(
        default=1.0, ge=0, description="Weight of the audio velocity loss (paper: 1)."
    )
    continuation_min: float = Field(
        default=0.2, gt=0, lt=1, description="Smallest share of a clip that continuation gets."
    )
    continuation_max: float = Field(
        default=0.5, gt=0, lt=1, description="Largest share of a clip that continuation gets."
    )
    dubbing_reference: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of dubbing steps with a reference voice, which the paper calls optional.",
    )
    reference_gap: int = Field(
        default=0,
        ge=0,
        description="Positions left empty between a reference and the clip. Undisclosed; 0 is directly "
        "before.",
    )
    mix: dict[Task, int] = Field(
        default=PAPER_MIX, description="Draws of each task in one period of the schedule (paper: 4:1:1:2:2)."
    )

    @field_validator("mix")
    @classmethod
    def _check_mix(cls, mix: dict[Task, int]) -> dict[Task, int]:
        if any(count < 0 for count in mix.values()) or not sum(mix.values()):
            raise ValueError(f"mix needs counts of at least 0 that do not sum to 0, got {mix}")
        return mix

    @property
    def timesteps(self) -> tuple[TimestepConfig, TimestepConfig]:
        """The distributions of the video and the audio branch."""
        return self.video_timestep or self.timestep, self.audio_timestep or self.timestep

    def sampler_shifts(self, tokens: tuple[int, int]) -> tuple[float, float]:
        """The shifts of `video_timestep` and `audio_timestep` for a clip of so many tokens; 1 where none."""
        video, audio = (
            1.0 if of_branch is None else of_branch.shift_at(count)
            for of_branch, count in zip((self.video_timestep, self.audio_timestep), tokens, strict=True)
        )
        return video, audio

    @model_validator(mode="after")
    def _check_shared(self) -> ObjectiveConfig:
        video, audio = self.timesteps
        if self.shared_timestep and video.draw != audio.draw:
            raise ValueError(
                f"shared_timestep needs one draw for both branches, got {video.draw} and {audio.draw}: "
                "set shared_timestep to false"
            )
        return self

    @model_validator(mode="after")
    def _check_shares(self) -> ObjectiveConfig:
        if self.continuation_min > self.continuation_max:
            raise ValueError(
                f"continuation_min {self.continuation_min} exceeds continuation_max {self.continuation_max}"
            )
        return self


class SamplingConfig(_Frozen):
    """Euler steps from noise (t = 1) to data (t = 0), with guidance in an interval of t."""

    steps: int = Field(default=50, ge=1, description="Euler steps (paper: 50).")
    guidance: Literal["none", "text", "modality-aware"] = Field(
        default="modality-aware",
        description="text: against an empty text; modality-aware: against one pass with both "
        "interactions removed (MA-CFG).",
    )
    video_scale: float = Field(default=3.0, description="s_v of the paper.")
    audio_scale: float = Field(default=2.0, description="s_a of the paper.")
    interval: tuple[float, float] = Field(
        default=(0.5, 1.0), description="Guided range of t, ends included; 1 is noise (paper: 0.5..1)."
    )
    empty_text: bool = Field(
        default=True,
        description="Empty text also in the pass without interaction, as in the paper, for efficiency.",
    )
    shift: float | None = Field(
        default=None,
        gt=0,
        description="s of the times t = s u / (1 + (s - 1) u). None: each branch has that of "
        "objective.video_timestep and audio_timestep at this size, 1 where they name none. Undisclosed; "
        "Wan 2.2 TI2V uses 5.",
    )
    audio_shift: float | None = Field(
        default=None, gt=0, description="The same for the audio alone; none: `shift`."
    )
    continuation_share: float = Field(
        default=0.35,
        gt=0,
        lt=1,
        description="Share of the clip that continuation gets; within objective.continuation_min and _max, "
        "with which it is trained.",
    )
    continuation_latents: int | None = Field(
        default=None, ge=1, description="Video latents that continuation gets, instead of the share."
    )

    @field_validator("interval")
    @classmethod
    def _check_interval(cls, interval: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise ValueError(f"interval must be two times in order in 0..1, got {interval}")
        return interval


class StageConfig(OptimizerConfig):
    """One training stage: parts, tasks, optimizer and its steps, and weights from the stage before."""

    name: StageName = Field(description="audio: the audio branch alone; joint and multitask: both branches")
    batch: int = Field(default=4, gt=0, description="samples per optimizer step over all workers")
    steps: int = Field(default=40, gt=0, description="optimizer steps")
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
        default_factory=list, description="name prefixes of the trained parts; empty: all parts of the stage"
    )
    starts_fresh: list[str] = Field(
        default_factory=list,
        description="name prefixes of parts that the stage before does not have, initialised at random",
    )
    pretrained: PretrainedConfig = Field(
        default_factory=PretrainedConfig,
        description="checkpoints for branches that the stage before does not have",
    )
    from_scratch: bool = Field(
        default=True,
        description="whether the video branch may start from random weights; false: stop unless `pretrained` "
        "or the stage before gives it",
    )
    emilia: EmiliaConfig = Field(
        default_factory=EmiliaConfig,
        description="audio shards that stage audio trains on instead of the corpus's clips",
    )

    @model_validator(mode="after")
    def _check_sources(self) -> StageConfig:
        if self.pretrained.export and self.takes_from:
            raise ValueError(
                f"stage {self.name} takes its weights from stage {self.takes_from} and from "
                "pretrained.export: name one"
            )
        return self

    @model_validator(mode="after")
    def _check_audio_shards(self) -> StageConfig:
        if self.emilia.shards and self.has_video:
            raise ValueError(
                f"stage {self.name} needs video, which audio shards lack: only stage audio takes "
                f"emilia.shards"
            )
        return self

    @property
    def has_video(self) -> bool:
        """Whether the stage has a video branch, so that its data needs video."""
        return self.name != "audio"

    def scored(self, task: Task) -> list[str]:
        """Modalities that the stage scores: the task generates them and the stage has their branch."""
        return [name for name in task.spec.generates if self.has_video or name == "audio"]

    def face_config(self, face: FaceConfig) -> FaceConfig:
        """The model's face configuration with the stage's own lambda_m schedule, if it has one."""
        schedule = {"lambda_start": self.lambda_start, "lambda_end": self.lambda_end}
        return face.model_copy(update={name: value for name, value in schedule.items() if value is not None})


def tiny_stages() -> list[StageConfig]:
    """The default: three short stages with every mechanism of the paper's run, at a size for two cores."""
    return [
        StageConfig(name="audio"),
        StageConfig(name="joint", takes_from="audio", starts_fresh=["video", "interactions"]),
        StageConfig(name="multitask", takes_from="joint", tasks=PAPER_MIX, lambda_start=0.0, lambda_end=0.0),
    ]


class DeepSpeedConfig(_Config):
    """How DeepSpeed spreads a run over workers; see `train.engine.deepspeed_engine.deepspeed_settings`."""

    zero_stage: Literal[0, 1, 2, 3] = Field(
        default=2, description="ZeRO: 1 shards optimizer states, 2 gradients too, 3 parameters too"
    )
    dtype: Literal["fp32", "bf16", "fp16"] = Field(
        default="fp32",
        description="bf16 and fp16 keep fp32 master weights; fp16 uses DeepSpeed's dynamic loss scale",
    )
    offload: Literal["none", "cpu"] = Field(
        default="none", description="cpu: optimizer states (and at stage 3 parameters) in host memory"
    )
    micro_batch: int = Field(
        default=0,
        ge=0,
        description="samples per forward pass on one worker, with gradient accumulation; 0: its full share",
    )
    activation_checkpointing: bool = Field(
        default=False, description="recompute activations in the backward pass"
    )


class CheckpointConfig(_Config):
    """When to save and what to keep."""

    every: int = Field(
        default=500, gt=0, description="steps between checkpoints; the last step is always saved"
    )
    keep: int = Field(default=2, gt=0, description="newest checkpoints kept per stage")
    keep_every: int = Field(
        default=0, ge=0, description="keep checkpoints of every step that this divides; 0: none"
    )


class TrainConfig(_Config):
    """A training run; any of its stages can be started from it."""

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
        default_factory=ValidationConfig, description="losses and videos on clips of val"
    )
    health: HealthConfig = Field(
        default_factory=HealthConfig, description="steps that are skipped, and warnings"
    )
    ema: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights, which sampling and exports then use; 0: "
        "none. Undisclosed; 0.9999 is usual for diffusion models",
    )
    trace: bool = Field(
        default=False,
        description="write losses and sample ids of each step to <stage>/trace-<rank>.jsonl",
    )
    fixed_steps: int = Field(
        default=10,
        ge=0,
        description="fixed batches whose losses are measured before and after a stage",
    )
    workers: int = Field(default=2, gt=0, description="training processes, one per GPU or CPU")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description="auto: cuda if the cluster has a GPU per worker; for sampling, if this machine has one",
    )
    cpus_per_worker: int = Field(
        default=1, gt=0, description="CPUs that Ray reserves, and threads that PyTorch uses, per worker"
    )
    max_restarts: int = Field(
        default=0,
        ge=0,
        description="restarts from the last checkpoint after a worker or its node was lost or crashed; "
        "errors that a person must correct are not retried",
    )
    room_wait_s: int = Field(
        default=300,
        gt=0,
        description="seconds that each start waits for CPUs or GPUs that are in use or were lost with a node",
    )
    seed: int = Field(default=0, ge=0, description="initial weights, tasks, noise and timesteps")

    @model_validator(mode="after")
    def _check_stages(self) -> TrainConfig:
        seen: list[str] = []
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"stage {stage.name} is listed twice")
            if stage.takes_from and stage.takes_from not in seen:
                raise ValueError(
                    f"stage {stage.name} takes from {stage.takes_from}, which is not an earlier stage"
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
    def _check_model_fits_data(self) -> TrainConfig:
        video, audio, codecs = self.model.video, self.model.audio, self.data.codecs
        if audio.in_channels != codecs.mel.mels:
            raise ValueError(
                f"model.audio.in_channels is {audio.in_channels}, data.codecs.mel.mels {codecs.mel.mels}"
            )
        if audio.text_len is not None and self.data.speech_bytes > audio.text_len:
            raise ValueError(
                f"data.speech_bytes {self.data.speech_bytes} exceeds model.audio.text_len {audio.text_len}"
            )
        if not any(stage.has_video for stage in self.stages):
            return self
        if video.in_channels != VIDEO_CHANNELS:
            raise ValueError(
                f"model.video.in_channels is {video.in_channels}, video latents have {VIDEO_CHANNELS}"
            )
        check_own_options(self.objective, video, self.data)
        if video.text_dim != codecs.caption_width:
            width = f"captions of {codecs.caption} are {codecs.caption_width} wide"
            raise ValueError(f"model.video.text_dim is {video.text_dim}, {width}")
        if video.text_len is not None and self.data.caption_tokens > video.text_len:
            raise ValueError(
                f"data.caption_tokens {self.data.caption_tokens} exceeds model.video.text_len "
                f"{video.text_len}"
            )
        interaction = self.model.interaction
        windows = {
            f"data.buckets.{number}.frames": shape.frames for number, shape in enumerate(self.data.buckets)
        }
        for name, frames in {"data.frames": self.data.frames, **windows}.items():
            span = {"frame": frames, "latent": latents_for_frames(frames)}[interaction.window_unit]
            if interaction.a2v == "ati" and interaction.window >= span:
                raise ValueError(
                    f"model.interaction.window is {interaction.window} {interaction.window_unit}s, "
                    f"{name} has only {span}"
                )
        return self

    def stage(self, name: str) -> StageConfig:
        """The stage of that name. Raises UserError listing the known stages."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(
            f"no stage {name!r} in this configuration",
            hint=f"stages: {', '.join(s.name for s in self.stages)}",
            kind="unknown-stage",
        )

    def micro_batch(self, stage: StageConfig, world_size: int) -> int:
        """Samples per forward pass on each of `world_size` workers.

        Raises UserError if the batch does not split evenly.
        """
        share, remainder = divmod(stage.batch, world_size)
        micro = self.deepspeed.micro_batch or share
        if remainder or not share or share % micro:
            raise UserError(
                f"batch {stage.batch} of stage {stage.name} does not split into {world_size} workers x "
                f"{micro or 1} samples",
                where=f"train.stages.{stage.name}.batch",
                hint="make the batch a multiple of train.workers x train.deepspeed.micro_batch",
                kind="bad-batch",
            )
        return micro


def lr_at(stage: StageConfig, step: int) -> float:
    """Learning rate of 0-based `step`: linear warm-up, then the schedule of the stage."""
    return stage.lr * lr_factor_at(stage, step, stage.steps)
