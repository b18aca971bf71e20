"""Make a `shards` folder from samples in memory with plain `tarfile`, without a corpus."""

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from uniavgen.shards.sample import FaceTrack, Sample, SampleMeta, to_members
from uniavgen.shards.tar.index import SampleSpan, ShardIndex, index_name
from uniavgen.shards.tar.manifest import MANIFEST_VERSION, ShardEntry


def sample_named(key: str, seconds: float = 2.0) -> Sample:
    """A sample without real media, for tests of positions and indexes."""
    meta = SampleMeta(
        clip_id=key,
        source_id="s",
        source_uri="s.mp4",
        start_s=0,
        end_s=seconds,
        speaker="a",
        language="en",
        transcript="",
        words=[],
        caption="",
        caption_model="",
        signals={},
        versions={},
    )
    face = FaceTrack(np.zeros((1, 36, 2), np.float32), np.zeros((1, 4), np.float32), np.zeros(1, np.float32))
    return Sample(meta, key.encode(), b"audio", face)


def made_tar(
    samples: Sequence[Sample], sizes_px: Mapping[str, tuple[int, int]]
) -> tuple[bytes, list[SampleSpan]]:
    """The bytes of a tar and the spans of its samples. `sizes_px` (width, height) by key, default 64 x 64."""
    out, spans = io.BytesIO(), []
    with tarfile.open(fileobj=out, mode="w") as tar:
        for sample in samples:
            start, members = tar.offset, to_members(sample)
            for extension, data in members.items():
                info = tarfile.TarInfo(f"{sample.key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
            sizes = {name: len(data) for name, data in members.items()}
            width, height = sizes_px.get(sample.key, (64, 64))
            crc32 = zlib.crc32(out.getbuffer()[start : tar.offset])
            seconds = sample.meta.end_s - sample.meta.start_s
            spans.append(
                SampleSpan(sample.key, start, tar.offset - start, crc32, seconds, width, height, sizes)
            )
    return out.getvalue(), spans


def write_tars(
    folder: Path,
    tars: Sequence[Sequence[Sample]],
    split: str = "train",
    sizes_px: Mapping[str, tuple[int, int]] | None = None,
) -> Path:
    """Write tars, indexes and manifest like `uniavgen shard`. Tars of other splits in the folder stay."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "manifest.json"
    entries = json.loads(path.read_text())["shards"] if path.exists() else []
    entries = [entry for entry in entries if entry["split"] != split]
    for number, samples in enumerate(tars):
        name = f"{split}-{number:06d}.tar"
        data, spans = made_tar(samples, sizes_px or {})
        digest, seconds = hashlib.sha256(data).hexdigest(), sum(span.seconds for span in spans)
        entry = ShardEntry(name, split, len(spans), seconds, len(data), digest, index_name(name), "", {})
        (folder / name).write_bytes(data)
        (folder / index_name(name)).write_bytes(ShardIndex.of(spans, asdict(entry)).to_bytes())
        entries.append(asdict(entry))
    path.write_text(
        json.dumps({"manifest_version": MANIFEST_VERSION, "schema_version": 1, "shards": entries})
    )
    return folder
