"""The data of one stage on one rank: training and validation samples, from the start or from a checkpoint.

A stage keeps the samples with which it began, by their keys and numbers (`order.npz` in its folder). If the
corpus changes meanwhile, it goes on with the samples that are left, and new ones wait for the next stage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch.distributed as dist

from uniavgen.shards.emilia.stream import EmiliaStream
from uniavgen.shards.errors import UserError
from uniavgen.shards.read.sample_order import SampleOrder
from uniavgen.shards.read.sampler import Place
from uniavgen.shards.read.stream import SampleStream
from uniavgen.train.checkpoint.run_folder import RunFolder
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.data.codec_fitting import RUN_CODEC, load_data_codecs
from uniavgen.train.data.loader import make_loader
from uniavgen.train.data.stage_stream import Begun, begun_stage, open_stream, place_state
from uniavgen.train.diagnostics.validation import Validation
from uniavgen.train.engine.collectives import assert_same_on_all_ranks
from uniavgen.train.flow_matching import task_at, voice_is_used


@dataclass(frozen=True)
class DataSource:
    """Where a stage reads: shards of the corpus, and its run folder. `accept_changes`: see `Job`."""

    config: TrainConfig
    stage: StageConfig
    shards_dir: str
    run_dir: str
    device: str
    accept_changes: bool


class StageData:
    """Streams, loader and validation of a stage.

    `checkpoint`: the state of the checkpoint at `step` from which the stage resumes, None at its start. All
    ranks make one. Raises UserError as the streams do, and if ranks see different data.
    """

    def __init__(self, source: DataSource, step: int, checkpoint: Mapping[str, Any] | None) -> None:
        config, stage = source.config, source.stage
        self.stage, self.folder = stage, RunFolder(source.run_dir, stage.name)
        state = checkpoint or {}
        self.begun = Begun()
        self.lines: list[str] = []
        if checkpoint is not None:
            self.begun, self.lines = begun_stage(state, step, config, stage, self.read_order("train"))
        kept = Path(source.run_dir) / RUN_CODEC
        codecs = load_data_codecs(config.data, kept, with_video=stage.has_video, device=source.device)
        self.stream = self.open_training_stream(source, step)
        # a checkpoint without the entry was trained on latents encoded on line, which are of other windows
        latents = state.get("latents", "") if checkpoint is not None else None
        self.loader = make_loader(self.stream, config.data, stage, codecs, latents)
        self.loader.needs_voice = lambda step: voice_is_used(
            task_at(config.seed, step, stage.tasks), config.seed, step, config.objective.dubbing_reference
        )
        self.validation: Validation | None = None
        if config.validation.every:
            order = self.read_order("val") if checkpoint is not None else None
            begun = replace(self.begun, shards=state.get("val_shards"), order=order)
            self.validation = Validation(config, stage, source.shards_dir, codecs, begun)
        streams = {"train": self.stream, "val": self.validation and self.validation.stream}
        self.clips = {name: stream for name, stream in streams.items() if isinstance(stream, SampleStream)}
        """The streams that read clips of the corpus, by split."""
        assert_same_on_all_ranks(
            "shards or cached latents",
            [[(stream.shards, len(stream)) for stream in streams.values() if stream], self.loader.latents],
        )
        if dist.get_rank() == 0:
            for split, stream in self.clips.items():
                if checkpoint is None or not self.folder.order(split).is_file():
                    stream.order.save(self.folder.order(split))
        self.lines += [self.stream.line]

    def read_order(self, split: str) -> SampleOrder | None:
        """The order of samples with which the stage began, if its folder has it."""
        path = self.folder.order(split)
        return SampleOrder.load(path) if path.is_file() else None

    def open_training_stream(self, source: DataSource, step: int) -> SampleStream | EmiliaStream:
        """The training samples.

        If the shards changed and no order of samples is known, as in runs of 0.4 or older, the order begins
        anew where changes are accepted.
        """
        given = source.config, source.stage, source.shards_dir, source.run_dir
        try:
            return open_stream(*given, self.begun)
        except UserError as error:
            if error.kind != "shards-changed" or self.begun.order is not None or not source.accept_changes:
                raise
            self.lines.append(f"{error.what}: the order of samples begins anew on the present shards")
        self.begun = replace(self.begun, shards=None, place=Place(step))
        return open_stream(*given, self.begun)

    def state(self, step: int) -> dict[str, Any]:
        """What a later `StageData` needs of a checkpoint at `step`, as JSON."""
        return {
            "shards": self.stream.shards,
            "val_shards": self.validation.stream.shards if self.validation else None,
            "latents": self.loader.latents,
            "fitting_only": self.begun.fitting_only,
            **place_state(self.stream, self.stage, step),
        }

    def take_lines(self) -> list[str]:
        """New lines for people: what is read, and samples that are in no shard any more."""
        lines, self.lines = self.lines, []
        for stream in self.clips.values():
            lines, stream.notices = lines + stream.notices, []
        return lines
