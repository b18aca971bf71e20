"""Atomic tar writer: write samples to a `.part` file, then rename it and write its index.

The same samples give the same bytes: owner, mode and times in the tar are fixed.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any
from uuid import uuid4

from uniavgen.shards.atomic_files import replace_file
from uniavgen.shards.tar.index import SampleSpan, ShardIndex, index_name


@dataclass(frozen=True)
class TarSample:
    """One sample to write. Its duration and frame size are stored in the index."""

    key: str
    members: Mapping[str, bytes]
    seconds: float = 0.0
    width_px: int = 0
    height_px: int = 0


@dataclass(frozen=True)
class TarPart:
    """A complete tar that still has a temporary name."""

    path: Path
    spans: tuple[SampleSpan, ...]
    sha256: str
    bytes: int


def write_tar(tar: Path, samples: Iterable[TarSample]) -> TarPart:
    """Write samples in their order to a part file beside `tar`, synced to disk. A failure leaves no file."""
    from webdataset import TarWriter

    part = tar.with_name(f".{tar.name}.{uuid4().hex}.part")
    spans: list[SampleSpan] = []
    try:
        with part.open("w+b") as out:
            with TarWriter(out, user="", group="", mode=0o644, mtime=0, encoder=False) as writer:
                for sample in samples:
                    start = writer.tarstream.offset
                    members = dict(sorted(sample.members.items()))  # the order of webdataset's writer
                    writer.write({"__key__": sample.key, **members})
                    sizes = {name: len(data) for name, data in members.items()}
                    facts = (sample.seconds, sample.width_px, sample.height_px, sizes)
                    spans.append(SampleSpan(sample.key, start, writer.tarstream.offset - start, 0, *facts))
            out.flush()
            os.fsync(out.fileno())
            digest, spans = _digests(out, spans)
            size = out.tell()
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return TarPart(part, tuple(spans), digest, size)


def commit_tar(folder: Path, part: TarPart, entry: Any) -> None:
    """Rename a tar to the name in its entry, a dataclass, and write its index.

    The index comes last: it is the proof that the tar is complete.
    """
    tar, index = folder / entry.name, folder / index_name(entry.name)
    index.unlink(missing_ok=True)
    os.replace(part.path, tar)
    replace_file(index, ShardIndex.of(part.spans, asdict(entry)).to_bytes())


def _digests(file: IO[bytes], spans: Sequence[SampleSpan]) -> tuple[str, list[SampleSpan]]:
    """SHA-256 of an open tar, and the spans with the CRC-32 of their bytes, in one pass."""
    file.seek(0)
    digest, with_crc32 = hashlib.sha256(), []
    for span in spans:
        data = file.read(span.length)
        digest.update(data)
        with_crc32.append(replace(span, crc32=zlib.crc32(data)))
    digest.update(file.read())
    return digest.hexdigest(), with_crc32
