"""The Python API: read a corpus, decide with a policy, read a training run, generate videos.

Each method does what a command of the same purpose does, in this process and without MLflow. Heavy libraries
are imported by the method that needs them. Errors are `UserError`, as on the command line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uniavgen.shards.errors import UserError
from uniavgen.shards.uris import local_folder

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pandas as pd
    import pyarrow as pa

    from uniavgen.curation.policy.decisions import CurationSummary
    from uniavgen.shards.corpus.tables import Corpus as CorpusTables
    from uniavgen.shards.read.stream import SampleStream
    from uniavgen.shards.sample import Sample
    from uniavgen.train.config import SamplingConfig
    from uniavgen.train.generation import ClipGenerator, Conditions


@dataclass(frozen=True)
class Decisions:
    """What a policy decides.

    `table` has the columns of the corpus's `decisions` table, a row per clip. `summary` counts clips and
    hours, kept and rejected, by rule and by split; `summary.written` is true where the table was committed
    and changed.
    """

    table: pa.Table
    summary: CurationSummary


class Corpus:
    """A corpus folder, opened for reading.

    Tables: `sources`, `clips`, `failures`, `decisions`, `captions`. A table that was never written is empty.
    Raises UserError where `path` holds no corpus.
    """

    def __init__(self, path: str | Path) -> None:
        from uniavgen.shards.corpus.tables import Corpus as CorpusTables

        self._corpus: CorpusTables = CorpusTables.open(path)
        self._streams: dict[tuple[str, str], SampleStream] = {}

    def __repr__(self) -> str:
        return f"uniavgen.Corpus({str(self.path)!r})"

    @property
    def path(self) -> Path:
        """The corpus folder, absolute."""
        return self._corpus.root

    def arrow(self, table: str, columns: Sequence[str] | None = None) -> pa.Table:
        """A table, or some of its columns, as pyarrow. Raises UserError for an unknown table or column."""
        from uniavgen.shards.corpus.schema import KEYS, schema

        _require_known("table", [table], KEYS)
        _require_known(f"column of {table}", columns or (), schema(table).names)
        return self._corpus.read(table, list(columns) if columns else None)

    def pandas(self, table: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """A table, or some of its columns, as pandas. Raises UserError for an unknown table or column."""
        return self.arrow(table, columns).to_pandas()

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection in memory with a view of each table. Close it after use."""
        return self._corpus.connect()

    def query(self, sql: str) -> pa.Table:
        """The result of one SQL query over the tables."""
        return self._corpus.query(sql)

    def samples(self, split: str = "train", shards: str | None = None) -> Iterator[Sample]:
        """The samples of a split, once each, in the order of the shards.

        A sample has `meta` (transcript, words, caption, speaker, signals), `video` (.mp4 bytes), `audio`
        (.flac bytes), `face` (outline per frame), `frames()` and `waveform()`. `shards` is another folder or
        URL of shards (default: the corpus's own). Raises UserError where there are no shards or a sample is
        damaged.
        """
        stream = self._stream(split, shards)
        for index in range(len(stream)):
            yield stream.sample_by_index(index)

    def sample(self, clip_id: str | None = None, split: str = "train", shards: str | None = None) -> Sample:
        """A sample by its clip id, or the first one. Raises UserError where the split has no such clip."""
        stream = self._stream(split, shards)
        return stream.sample_by_index(0) if clip_id is None else stream.sample_by_key(clip_id)

    def decide(
        self,
        policy: str | Path | None = None,
        *,
        settings: Sequence[str] = (),
        preset: str = "tiny",
        config: str | Path | None = None,
        write: bool = False,
    ) -> Decisions:
        """Decide every clip as `uniavgen curate` does: rules, then duplicates, then splits.

        `policy` is the name of a shipped policy or a YAML file; default: `curate.policy`. `settings` are
        `--set` values, as `["curate.split.val_share=0.1"]`. Nothing is written unless `write` is true; then
        the decisions are committed. Raises UserError where the corpus has no clips or the policy is wrong.
        """
        from uniavgen.curation.policy.decisions import compute_decisions, decide
        from uniavgen.curation.policy.rules import load_policy
        from uniavgen.orchestration.config import load_config

        curate = load_config(preset, Path(config) if config else None, settings).curate
        chosen = load_policy(str(policy or curate.policy))
        if write:
            summary = decide(self._corpus, chosen, curate.split, curate.duplicates)
            return Decisions(self._corpus.read("decisions"), summary)
        table, summary = compute_decisions(self._corpus, chosen, curate.split, curate.duplicates, cache=False)
        return Decisions(table, replace(summary, written=False))

    def _stream(self, split: str, shards: str | None) -> SampleStream:
        from uniavgen.shards.read.stream import SampleStream

        root = shards or str(self.path / "shards")
        if (root, split) not in self._streams:
            self._streams[root, split] = SampleStream(root, split)
        return self._streams[root, split]


@dataclass(frozen=True)
class Video:
    """A generated video: `frames` uint8 [F, H, W, 3] in RGB, `waveform` float32 [n] in -1..1."""

    frames: np.ndarray
    waveform: np.ndarray
    fps: int
    sample_rate: int

    def save(self, path: str | Path) -> Path:
        """Write an .mp4 file. Raises UserError where ffmpeg fails."""
        from uniavgen.orchestration.output.video_file import write_video

        size = self.frames.shape[1], self.frames.shape[2]
        return write_video(
            Path(path), self.frames, size, self.waveform, fps=self.fps, sample_rate=self.sample_rate
        )


class Run:
    """The folder of a training run, or a model that `uniavgen export` wrote (then only `generate` works)."""

    def __init__(self, path: str | Path) -> None:
        self.path = local_folder(path, "the run").absolute()
        self._generator: ClipGenerator | None = None
        if not self.path.is_dir():
            raise UserError("no training run here", where=path, hint="train one: uniavgen train all")

    def __repr__(self) -> str:
        return f"uniavgen.Run({str(self.path)!r})"

    @property
    def stages(self) -> list[str]:
        """The stages that were started, in the order of training."""
        from uniavgen.train.checkpoint.run_folder import RunFolder

        started = {name: RunFolder(self.path, name).read() for name in self._stage_names()}
        planned = [stage["name"] for content in started.values() for stage in content["config"]["stages"]]
        return sorted(started, key=planned.index)

    def metrics(self, stage: str | None = None) -> pd.DataFrame:
        """Metrics of a stage (default: the last one), a row per step: losses, speed, learning rate and more.

        `fixed/...` columns are losses on the same draws before and after the stage. Raises UserError for an
        unknown stage.
        """
        import pandas as pd

        from uniavgen.shards.jsonl import read_rows

        rows = read_rows(self._folder(stage) / "metrics.jsonl").rows
        frame = pd.DataFrame(rows, columns=None if rows else ["step", "time"])
        # several lines may describe one step, and a step that was repeated after a rewind counts as it ended
        return frame.groupby("step", as_index=False).last()

    def events(self, stage: str | None = None) -> list[dict[str, object]]:
        """Warnings and events of a stage (default: the last one), as dicts with `time`, `event`, `text` and
        numbers.
        """
        from uniavgen.shards.jsonl import read_rows

        return read_rows(self._folder(stage) / "events.jsonl").rows

    def generate(
        self,
        task: str,
        given: Sample | Conditions,
        *,
        seed: int = 0,
        sampling: SamplingConfig | None = None,
        device: str = "auto",
    ) -> Video:
        """Generate one video, as `uniavgen sample` does. The model is loaded by the first call and kept.

        `task` is joint, reference, continuation, dubbing or audio-driven; `given` is a sample, which gives
        every condition, or `uniavgen.Conditions`. The same arguments give the same video. Raises UserError
        for an unknown task, for a condition that the task needs and that is missing, and where no stage with
        both branches is finished.
        """
        from uniavgen.train.generation import ClipGenerator, choose_device
        from uniavgen.train.tasks import task_named

        named, where = task_named(task), choose_device(device)
        if self._generator is None or self._generator.device != where:
            self._generator = ClipGenerator(self.path, device=where)
        made = self._generator.generate(named, given, sampling, seed)
        return Video(made.frames, made.waveform, made.fps, made.sample_rate)

    def _folder(self, stage: str | None) -> Path:
        stages = self.stages
        if not stages:
            raise UserError("no stage was started in this run", where=self.path, hint="uniavgen train all")
        _require_known("stage", [stage] if stage else [], stages)
        return self.path / (stage or stages[-1])

    def _stage_names(self) -> list[str]:
        return [file.parent.name for file in self.path.glob("*/stage.json")]


def _require_known(what: str, names: Sequence[str], known: Sequence[str] | dict[str, str]) -> None:
    for name in names:
        if name not in known:
            raise UserError(f"unknown {what} {name!r}", hint=f"one of: {', '.join(known)}")
