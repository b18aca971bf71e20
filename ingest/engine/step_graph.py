"""Which steps there are, in which stage each runs, and what its answer depends on. Imports nothing.

Goes in: the configuration as plain values. Comes out: one key per step. A step's key names everything its answer comes from
besides the source itself: the version of its code, its settings, and the keys of the steps whose answers it reads. Equal key,
equal answer: a stored result is used again, and a changed setting measures only what depends on it anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class StepSpec:
    """One step: where it runs, the version of its code, the steps and the settings that its answer depends on.

    `settings` are sections or fields of the configuration (`faces`, `clips.pad_s`). Raise `version` when answers change.
    Results that are not `kept` are files on this machine's disk, made again for every stage that asks for them.
    """

    name: str
    stage: str
    version: str
    needs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    kept: bool = True


STEPS: tuple[StepSpec, ...] = (
    StepSpec("fetch", "prepare", "1", kept=False),
    StepSpec("probe", "prepare", "2", ("fetch",)),
    StepSpec("sound", "speech", "1", ("fetch", "probe"), kept=False),
    StepSpec("diarize", "speech", "2", ("sound",), ("diarization",)),
    StepSpec("transcribe", "speech", "2", ("sound", "diarize"), ("transcription",)),
    StepSpec("decode", "sight", "1", ("fetch", "probe"), ("faces.analysis_side",), kept=False),
    StepSpec("faces", "sight", "3", ("decode", "transcribe"), ("faces", "clips.unspoken_s", "clips.pad_s")),
    StepSpec("shots", "sight", "3", ("decode",), ("shots",)),
    StepSpec("picture", "sight", "2", ("decode",)),
    StepSpec("text", "sight", "1", ("decode", "transcribe"), ("text", "clips.unspoken_s", "clips.pad_s")),
    StepSpec("hash", "sight", "1", ("decode",)),
    StepSpec("propose", "sight", "1", ("sound", "transcribe", "shots", "picture"), ("clips",)),
    StepSpec("listen", "sight", "3", ("sound", "propose"), ("sound_quality",)),
    StepSpec("sync", "sight", "3", ("sound", "faces", "propose"), ("sync",)),
    StepSpec("fingerprint", "sight", "2", ("sound", "hash", "faces", "sync", "propose")),
    StepSpec(
        "measure", "sight", "4", ("diarize", "faces", "picture", "text", "listen", "sync", "fingerprint")
    ),
    StepSpec("cut", "cut", "2", ("measure",), ("cut",), kept=False),
)
"""Every step, in the order in which one source goes through them."""

STEP_NAMES = tuple(step.name for step in STEPS)

SPECS = {step.name: step for step in STEPS}

ON_DEMAND = ("fetch", "sound")
"""Steps that run where a step that needs them is about to run, in whatever stage that is."""

STAGES = tuple(dict.fromkeys(step.stage for step in STEPS))
"""The kinds of workers, in order."""


def step_keys(settings: Mapping[str, Any]) -> dict[str, str]:
    """The key of every step, 16 hex digits, under `settings` (the configuration as nested dictionaries)."""
    keys: dict[str, str] = {}
    for step in STEPS:
        chosen = [_setting(settings, path) for path in step.settings]
        text = json.dumps(
            [step.name, step.version, chosen, [keys[name] for name in step.needs]], sort_keys=True
        )
        keys[step.name] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return keys


def _setting(settings: Mapping[str, Any], path: str) -> Any:
    found: Any = settings
    for name in path.split("."):
        found = found[name]
    return found
