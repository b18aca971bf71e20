"""The paper's ablation tables as rows, and the experiment of every row and seed. Imports no torch.

An experiment has a key: a digest of everything on which its result depends. Equal experiments of different
tables have the same key and run once.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict

from uniavgen.train.ablation.config import BANDS, CHANNELS, AblateConfig, TableName, WorldConfig
from uniavgen.train.config import ObjectiveConfig, SamplingConfig
from uniavgen.train.model.config import (
    BranchConfig,
    FaceConfig,
    InteractionConfig,
    ModelConfig,
    SpeechTextConfig,
)
from uniavgen.train.tasks import PAPER_MIX, Task

RECIPE = 1
"""Part of every key: raise it if made data, training or measures change, as old results then differ.

Raise it if the made data, the training or the measures change: old results are then not reused.
"""

ADDED: dict[str, Any] = {
    "positions": "none",
    "video_timestep": None,
    "audio_timestep": None,
    "shift_tokens": 0,
    "interaction_dropout": 0.0,
    "interaction_dropout_text": True,
    "fp32_time": False,
    "audio_shift": None,
    "prediction": "velocity",
    "places": None,
    "weight_bound": None,
    "mouth_weight": 1.0,
    "mel_augmentation": {"gain": 0.0, "shift": 0, "noise": 0.0},
}
"""Fields added after `RECIPE`, with the value that keeps the earlier behaviour.

Keys leave a field out at that value, so that earlier results are reused.
"""

ROLES = {"LS": "sync", "TC": "timbre", "EC": "expression"}
"""Measures of the paper (lip sync, timbre and emotion consistency) and their replacements here."""

JOINT_ONLY: dict[Task, int] = {Task.JOINT: 1}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def key(self) -> str:
        """Digest of all fields, without those of `ADDED` at their earlier value: 12 hex digits."""
        document = json.dumps(
            [RECIPE, type(self).__name__, _without_added(self.model_dump(mode="json"))], sort_keys=True
        )
        return hashlib.sha256(document.encode()).hexdigest()[:12]


def _without_added(document: Any) -> Any:
    """The document without the fields of `ADDED` that have their earlier value."""
    if isinstance(document, dict):
        if "audio_shift" in document and document.get("shift") is None:
            document = document | {"shift": 1.0}  # the sampler's shift was 1 before it followed the training
        return {
            name: _without_added(value)
            for name, value in document.items()
            if name not in ADDED or value != ADDED[name]
        }
    return [_without_added(value) for value in document] if isinstance(document, list) else document


class Phase(_Frozen):
    """A part of a training: its share of the steps, and its task mix."""

    share: float
    tasks: dict[Task, int]


class Training(_Frozen):
    """Everything on which the weights of a small model depend."""

    world: WorldConfig
    model: ModelConfig
    objective: ObjectiveConfig
    phases: tuple[Phase, ...]
    steps: int
    batch: int
    lr: float
    warmup: int
    seed: int
    interact: bool = True
    begins_with: Training | None = None
    """Training whose branches this one starts from; the interaction starts at random."""


class Experiment(_Frozen):
    """Everything on which a measurement depends."""

    training: Training
    sampler: SamplingConfig
    clips: int


@dataclass(frozen=True)
class Row:
    """A row of a table: its changes to the base configuration, and the paper's values by `ROLES`."""

    name: str
    paper: dict[str, float] = field(default_factory=dict)
    interaction: dict[str, Any] = field(default_factory=dict)
    face: dict[str, Any] = field(default_factory=dict)
    phases: tuple[Phase, ...] = (Phase(share=1.0, tasks=JOINT_ONLY),)
    sampler: dict[str, Any] = field(default_factory=dict)
    objective: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    """Rows to compare. `best`: name of the best row, if that is all that the paper reports."""

    name: TableName
    title: str
    rows: tuple[Row, ...]
    best: str | None = None

    def orders(self) -> list[tuple[str, str, str]]:
        """(better row, worse row, measure of the paper) for every pair whose order the paper reports."""
        if self.best is not None:
            return [
                (self.best, row.name, role) for role in ROLES for row in self.rows if row.name != self.best
            ]
        pairs = [(role, *pair) for role in ROLES for pair in itertools.combinations(self.rows, 2)]
        known = [
            (role, a, b)
            for role, a, b in pairs
            if role in a.paper and role in b.paper and a.paper[role] != b.paper[role]
        ]
        return [
            (a.name, b.name, role) if a.paper[role] > b.paper[role] else (b.name, a.name, role)
            for role, a, b in known
        ]


def _aligners(a2v: str, v2a: str, *figures: float) -> Row:
    name = f"{a2v.upper()} / {v2a.upper()}"
    return Row(name, dict(zip(ROLES, figures, strict=True)), interaction={"a2v": a2v, "v2a": v2a})


def _positions(a2v: str, v2a: str, positions: str, **changes: Any) -> Row:
    name = ", ".join(
        [
            f"{a2v.upper()} / {v2a.upper()}",
            *(f"{field} {value}" for field, value in changes.items()),
            positions,
        ]
    )
    return Row(name, interaction={"a2v": a2v, "v2a": v2a, "positions": positions, **changes})


def _face(mode: str, *figures: float) -> Row:
    return Row(mode, dict(zip(ROLES, figures, strict=True)), face={"mode": mode})


TABLES: dict[TableName, Table] = {
    table.name: table
    for table in (
        Table(
            "interaction",
            "interaction, A2V / V2A",
            (
                _aligners("sgi", "sgi", 3.46, 0.667, 0.459),
                _aligners("sti", "sti", 3.73, 0.685, 0.472),
                _aligners("sti", "ati", 3.88, 0.705, 0.492),
                _aligners("ati", "sti", 3.97, 0.691, 0.483),
                _aligners("ati", "ati", 4.09, 0.725, 0.504),
            ),
        ),
        Table(
            "face",
            "face-aware modulation",
            (
                _face("none", 3.89, 0.705, 0.489),
                _face("unsupervised", 3.92, 0.701, 0.492),
                _face("fixed", 4.11, 0.719, 0.497),
                _face("decayed", 4.09, 0.725, 0.504),
            ),
        ),
        Table(
            "layers",
            "layers that interact (paper, Table 7)",
            tuple(
                Row(name, interaction={"layers": name})
                for name in ("all", "first-half", "last-half", "interleaved")
            ),
            best="interleaved",
        ),
        Table(
            "position",
            "place of the interaction in a block (paper, Table 8)",
            tuple(
                Row(name, interaction={"position": name})
                for name in ("before-ffn", "before-cross-attention", "before-self-attention")
            ),
            best="before-self-attention",
        ),
        Table(
            "strategy",
            "training strategy (paper, Fig. 7): JGO joint only, MTO multi-task at once, JFML joint first",
            (
                Row("JGO"),
                Row("MTO", phases=(Phase(share=1.0, tasks=PAPER_MIX),)),
                # the paper's 30k and 10k steps
                Row("JFML", phases=(Phase(share=0.75, tasks=JOINT_ONLY), Phase(share=0.25, tasks=PAPER_MIX))),
            ),
            best="JFML",
        ),
        Table(
            "guidance",
            "guidance of one and the same model (the paper's scales: video 3, audio 2)",
            (
                Row("none"),
                Row("text", sampler={"guidance": "text", "interval": (0.0, 1.0)}),
                Row("modality-aware", sampler={"guidance": "modality-aware", "interval": (0.0, 1.0)}),
                Row(
                    "modality-aware, t 0.5..1", sampler={"guidance": "modality-aware", "interval": (0.5, 1.0)}
                ),
            ),
            best="modality-aware, t 0.5..1",
        ),
        Table(
            "positions",
            "time positions of queries and keys; windows in pixel frames on either side (not in the paper)",
            tuple(
                row
                for positions in ("none", "time")
                for row in (
                    _positions("sti", "sti", positions),
                    _positions("ati", "ati", positions, window=1),
                    _positions("ati", "ati", positions),
                )
            ),
        ),
        Table(
            "timesteps",
            "distribution of the diffusion time; shift of the preset paper at its size (not in the paper)",
            (
                Row("one for both"),
                Row(
                    "video shifted, audio uniform",
                    objective={
                        "video_timestep": {"distribution": "shifted", "shift": 2.74},
                        "audio_timestep": {"distribution": "uniform"},
                    },
                ),
            ),
        ),
    )
}


def model_config(config: AblateConfig, row: Row) -> ModelConfig:
    """The small model of a row: equal branches, patches of one latent, defaults for everything else."""
    size = config.model
    shape: dict[str, Any] = {
        "dim": size.dim,
        "layers": size.layers,
        "heads": size.heads,
        "ffn_dim": size.ffn_dim,
    }
    interaction = {"window": size.window, "mels_per_frame": config.world.mels_per_frame, **row.interaction}
    return ModelConfig(
        video=BranchConfig(**shape, in_channels=CHANNELS, text_dim=2, freq_dim=64),
        audio=BranchConfig(**shape, in_channels=BANDS, text_dim=16, freq_dim=64, rope_axes="time"),
        speech_text=SpeechTextConfig(dim=16, layers=1),
        interaction=InteractionConfig(**interaction),
        face=FaceConfig(**row.face),
    )


def experiment(config: AblateConfig, row: Row, seed: int) -> Experiment:
    """The experiment of one row and seed."""
    common: dict[str, Any] = {
        name: getattr(config, name) for name in ("world", "objective", "batch", "lr", "warmup")
    }
    branches = Training(
        **common,
        # trained without interaction: none of its settings may change the key
        model=model_config(config, Row("", interaction={"positions": "none"})),
        phases=Row("").phases,
        steps=config.branch_steps,
        seed=seed,
        interact=False,
    )
    training = Training(
        **common | {"objective": ObjectiveConfig(**{**config.objective.model_dump(), **row.objective})},
        model=model_config(config, row),
        phases=row.phases,
        steps=config.steps,
        seed=seed,
        begins_with=branches,
    )
    sampler = SamplingConfig(**{**config.sampler.model_dump(), **row.sampler})
    return Experiment(training=training, sampler=sampler, clips=config.clips)


def experiments(config: AblateConfig) -> dict[tuple[TableName, str, int], Experiment]:
    """The experiment of every (table, row, seed).

    Seeds are outermost: an early stop leaves complete comparisons.
    """
    return {
        (name, row.name, seed): experiment(config, row, seed)
        for seed in range(config.seeds)
        for name in config.tables
        for row in TABLES[name].rows
    }
