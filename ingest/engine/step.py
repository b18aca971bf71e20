"""Base classes of the ingest steps, and the keys under which their results are stored.

A step's key covers everything that its result depends on besides the source: the version of its code, its
settings, and the keys of the steps whose results it reads. Equal keys mean equal results: a stored result is
reused, and a changed setting recomputes only what depends on it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from uniavgen.ingest.config import IngestConfig
from uniavgen.ingest.records import SourceRecord

POOLS = ("prepare", "speech", "sight", "cut")
"""Worker pools, in the order in which a source passes through them."""


class Step:
    """One measurement of a source. A subclass declares what identifies its result, and measures it.

    A step knows nothing of Ray: tests call it directly.
    """

    name: ClassVar[str]
    pool: ClassVar[str]
    version: ClassVar[str]
    """Version of the code; raise it when results change."""
    key_version: ClassVar[str] = ""
    """Version in the keys of later steps, if it is not `version`.

    For a version that changed only results that have a `variant`: that is in the keys of these sources, and
    stored results of all others stay valid."""
    has_variants: ClassVar[bool] = False
    """Whether the result has a `variant`, which is in the keys of later steps unless it is empty."""
    earlier_version: ClassVar[str] = ""
    """An earlier version many of whose results are still right: `revise` says which.

    It stays in the keys of later steps; results that `revise` did not take over have a `variant`."""
    in_keys: ClassVar[bool] = True
    """Whether the step is in the keys of the steps that need it. One that only hands on a file is not."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Steps whose results this step's result depends on."""
    settings: ClassVar[tuple[str, ...]] = ()
    """Sections or fields of the configuration that the result depends on (`faces`, `clips.pad_s`)."""
    result: ClassVar[type | None] = None
    """Class of the result; None for a pass that only serves other steps."""
    stored: ClassVar[bool] = True
    """Whether the step cache keeps the result. Others are local files that each worker makes for itself."""
    on_demand: ClassVar[bool] = False
    """Whether the step runs in any pool, just before a step that needs it."""

    def __init__(self, graph: StepGraph, run_dir: Path, corpus_root: Path) -> None:
        """`run_dir` holds temporary files of this ingest run."""
        self.graph = graph
        self.config = graph.config
        self.run_dir = run_dir
        self.corpus_root = corpus_root
        self.member_seconds: dict[str, float] = {}
        """Working seconds of the last call by step name, where several steps share it."""

    @property
    def members(self) -> tuple[Step, ...]:
        """Steps whose results one call gives: the step itself, or those that share its decode pass."""
        return (self,)

    @classmethod
    def check(cls, config: IngestConfig) -> None:
        """Raise UserError if a file that the step needs is missing. Called once, before any worker starts."""

    @classmethod
    def program(cls, config: IngestConfig) -> str:
        """The version of another program than the usual one, on which the result depends; "" for the usual.

        Workers use the value of the process that started the run (`StepGraph.programs`).
        """
        return ""

    def load(self) -> None:
        """Load the models, unless they are loaded. Loading does not count against a source's time limit."""

    def try_models(self) -> None:
        """Use the models once on made input, after `load` and before the first source. An error is the
        machine's fault, like one of `load`.
        """

    def measure(self, record: SourceRecord) -> Any:
        """The step's result for one source."""
        raise NotImplementedError

    def revise(self, record: SourceRecord, earlier: Any) -> Any:
        """The result of `earlier_version` as it is if it is right, or corrected without measuring; None if
        the source must be measured again.
        """
        return None

    def measure_members(self, record: SourceRecord, missing: Sequence[Step]) -> dict[str, Any]:
        """Results by step name of the `missing` members."""
        return {self.name: self.measure(record)}

    def release(self, record: SourceRecord) -> None:
        """Called when this process is done with the source."""

    def discard(self, record: SourceRecord) -> None:
        """Called when the run is done with the source: delete its temporary files."""

    @staticmethod
    def signals(record: SourceRecord, index: int) -> dict[str, float | None]:
        """The step's signals of clip proposal `index`, complete; None where a signal cannot be measured."""
        return {}


class FrameCollector(Protocol):
    """Receives the frames of one source in order and returns a step's result."""

    def add_frame(self, index: int, frame: np.ndarray) -> None:
        """`frame` is uint8 [H, W, 3] RGB, shown at `index` / 16 s."""

    def result(self) -> Any: ...


class FrameStep(Step):
    """A step that reads every frame of a source. All such steps share one decode pass (`measures.decode`)."""

    reads_shot_frames: ClassVar[bool] = False
    """Whether the step reads the shot detector's small frames, which the pass writes to a file."""

    def collector(self, record: SourceRecord, shot_frames: Path) -> FrameCollector:
        """The collector of one source. `shot_frames` is complete when the collector's result is asked for."""
        raise NotImplementedError


class StepGraph:
    """The steps of ingest in order, under one configuration."""

    def __init__(self, steps: Sequence[type[Step]], config: IngestConfig) -> None:
        self.steps = tuple(steps)
        self.config = config
        self.by_name = {step.name: step for step in self.steps}

    @cached_property
    def keys(self) -> dict[str, str]:
        """Key of every step, 16 hex digits. Limits, resources and commit settings do not change it."""
        return {step.name: self._key_of(step, step.version) for step in self.steps}

    @cached_property
    def _later_keys(self) -> dict[str, str]:
        """What each step adds to the keys of the steps that need it."""
        later: dict[str, str] = {}
        for step in self.steps:
            needed = [later[need] for need in step.needs if need in later]
            values = self._values_of(step)
            if step.key_version:
                later[step.name] = _digest([step.name, step.key_version, [], needed])
            elif step.in_keys:
                version = step.earlier_version or step.version
                later[step.name] = _digest([step.name, version, values, needed])
        return later

    def _key_of(self, step: type[Step], version: str) -> str:
        needed = [self._later_keys[need] for need in step.needs if need in self._later_keys]
        program = self.programs[step.name]
        return _digest([step.name, version, self._values_of(step), needed, *([program] if program else [])])

    def _values_of(self, step: type[Step]) -> list[Any]:
        return [_setting(self._settings, path) for path in step.settings]

    @cached_property
    def _settings(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json")

    def key(self, name: str, result_of: Callable[[type], Any]) -> str:
        """Key of a step for one source. `result_of` gives the source's result of a class, or None."""
        return self._with_variants(self.keys[name], name, result_of)

    def earlier_key(self, name: str, result_of: Callable[[type], Any]) -> str:
        """Key under which a step's `earlier_version` stored its result for one source."""
        step = self.by_name[name]
        return self._with_variants(self._key_of(step, step.earlier_version), name, result_of)

    def _with_variants(self, key: str, name: str, result_of: Callable[[type], Any]) -> str:
        before = self._before[name]
        varying = [step.result for step in self.steps if step.has_variants and step.name in before]
        results = [result_of(kind) for kind in varying if kind is not None]
        variants = [result.variant for result in results if result is not None and result.variant]
        return _digest([key, *variants]) if variants else key

    @cached_property
    def _before(self) -> dict[str, frozenset[str]]:
        """Every step that a step's result depends on, directly or not."""
        before: dict[str, frozenset[str]] = {}
        for step in self.steps:
            before[step.name] = frozenset(step.needs).union(*(before[need] for need in step.needs))
        return before

    @cached_property
    def programs(self) -> dict[str, str]:
        """`Step.program` of every step. Workers get these values with the graph."""
        return {step.name: step.program(self.config) for step in self.steps}

    @cached_property
    def digest(self) -> str:
        """Digest of all keys: a source whose row carries it is done."""
        return hashlib.sha256(json.dumps(self.keys, sort_keys=True).encode()).hexdigest()[:16]

    def step_of(self, result: type) -> str:
        """Name of the step whose result is of this class."""
        return next(step.name for step in self.steps if step.result is result)


def _digest(facts: list[Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _setting(settings: Mapping[str, Any], path: str) -> Any:
    value: Any = settings
    for name in path.split("."):
        value = value[name]
    return value
