"""Tars that are either whole or not there: written under a name of their own, then put in place with their index.

In: samples as members by extension. Out: a `.part` file, where its samples stand, its hash. The same samples give the same
bytes: owner, rights and times in the tar are fixed.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from uniavgen.shards.atomic_files import replace_file
from uniavgen.shards.tar.index import SampleSpan, ShardIndex, index_name


@dataclass(frozen=True)
class TarSample:
    """One sample to be written; seconds and picture size go into the index."""

    key: str
    members: Mapping[str, bytes]
    seconds: float = 0.0
    width_px: int = 0
    height_px: int = 0


@dataclass(frozen=True)
class TarPart:
    """A tar that is whole but for its name."""

    path: Path
    spans: tuple[SampleSpan, ...]
    sha256: str
    bytes: int


def write_tar(tar: Path, samples: Iterable[TarSample]) -> TarPart:
    """Write samples, in their order, to a part beside the tar's place, safe on disk. A failure leaves nothing."""
    from webdataset import TarWriter

    part = tar.with_name(f".{tar.name}.{uuid4().hex}.part")
    spans: list[SampleSpan] = []
    try:
        with part.open("w+b") as out:
            with TarWriter(out, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
                for sample in samples:
                    start = writer.tarstream.offset
                    members = dict(sorted(sample.members.items()))  # as webdataset's writer orders them
                    writer.write({"__key__": sample.key, **members})
                    sizes = {name: len(data) for name, data in members.items()}
                    about = (sample.seconds, sample.width_px, sample.height_px, sizes)
                    spans.append(SampleSpan(sample.key, start, writer.tarstream.offset - start, 0, *about))
            out.flush()
            os.fsync(out.fileno())
            digest, spans = _digests(out, spans)
            size = out.tell()
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return TarPart(part, tuple(spans), digest, size)


def put_in_place(folder: Path, part: TarPart, entry: Any) -> None:
    """Give a tar the name in its entry (a dataclass); the index comes last, since it is the proof that the tar is whole."""
    tar, index = folder / entry.name, folder / index_name(entry.name)
    index.unlink(missing_ok=True)
    os.replace(part.path, tar)
    replace_file(index, ShardIndex.of(part.spans, asdict(entry)).to_bytes())


def _digests(file: Any, spans: Sequence[SampleSpan]) -> tuple[str, list[SampleSpan]]:
    """One pass over what stands in the file: its SHA-256, and the spans with the CRC-32 of their bytes."""
    file.seek(0)
    whole, summed = hashlib.sha256(), []
    for span in spans:
        data = file.read(span.length)
        whole.update(data)
        summed.append(replace(span, crc32=zlib.crc32(data)))
    whole.update(file.read())
    return whole.hexdigest(), summed
