"""Benchmark of the stream against plain webdataset and Megatron-Energon: read speed, resume time, memory.

    python tests/benchmarks/shards/stream.py [--samples 400] [--turns 60] [--folder DIR]

Makes a corpus of clips (5 s, 512 px, a few hundred kB each) and writes its shards. Three readers read them in
one process and one thread, in turns, so that other load affects all alike. All decode the same members with
the same functions. The stream and Energon save their exact state every 50 samples; webdataset has none. Then
an index of 1.3 million samples (over the same bytes) is resumed at sample 1,000,000 in a separate process.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from uniavgen.shards.config import ShardConfig
from uniavgen.shards.corpus.signals import SIGNALS
from uniavgen.shards.corpus.tables import Corpus, clip_id
from uniavgen.shards.read.stream import SampleStream
from uniavgen.shards.sample import FaceTrack, Sample, decode_audio, decode_video, from_members
from uniavgen.shards.tar.index import ShardIndex, index_name
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS
from uniavgen.shards.write.writer import write_shards

SECONDS, SIDE_PX, DISTINCT = 5, 512, 6
SHUFFLE = 1000
STATE_EVERY = 50
WINDOW = 17
"""Pixel frames of a training window by default."""
TURN = 10
MILLION, INDEXED = 1_000_000, 1_300_000
Reader = Callable[[], Iterator[Sample]]


def make_shards(folder: Path, samples: int) -> Path:
    """Write shards of `samples` clips with a few distinct media files; returns their folder."""
    root = folder / f"corpus-{samples}"
    if (root / "shards" / "manifest.json").exists():
        return root / "shards"
    corpus, media = Corpus.create(root), [_media(seed) for seed in range(DISTINCT)]
    rows, decisions = [], []
    for number in range(samples):
        row: dict[str, Any] = {
            "source_id": f"s{number}",
            "start_s": 0.0,
            "end_s": float(SECONDS),
            "speaker": "a",
        }
        row |= {
            "clip_id": clip_id(f"s{number}", 0, SECONDS),
            "language": "en",
            "transcript": "",
            "words": [],
            "versions": {},
        }
        rows.append({**row, **dict.fromkeys(SIGNALS)})
        decided = {"kept": True, "reason": "", "failed_rules": [], "policy_digest": "", "split": "train"}
        decisions.append({"clip_id": row["clip_id"], **decided})
        for extension, data in media[number % DISTINCT].items():
            path = corpus.media_path(row["clip_id"], extension)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    corpus.upsert("clips", rows)
    corpus.upsert("decisions", decisions)
    write_shards(corpus, ShardConfig(shard_mb=20), caption=lambda row: ("a caption", "benchmark"))
    return root / "shards"


def _media(seed: int) -> dict[str, bytes]:
    """Media of a typical size: smooth drifting noise as video, and noise as audio."""
    import av
    import cv2
    import soundfile

    draw, frames = np.random.default_rng(seed), SECONDS * VIDEO_FPS
    field = cv2.GaussianBlur(
        draw.normal(128, 90, (SIDE_PX, SIDE_PX + frames, 3)).astype(np.float32), (0, 0), 2
    )
    field = np.clip((field - field.mean()) * 6 + 128, 0, 255).astype(np.uint8)
    video, audio = io.BytesIO(), io.BytesIO()
    with av.open(video, "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=VIDEO_FPS, options={"crf": "20", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = SIDE_PX, SIDE_PX, "yuv420p"
        for at in range(frames):
            frame = np.ascontiguousarray(field[:, at : at + SIDE_PX])
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    soundfile.write(
        audio,
        0.02 * draw.standard_normal(SECONDS * SAMPLE_RATE),
        SAMPLE_RATE,
        format="FLAC",
        subtype="PCM_16",
    )
    shape = draw.random((frames, 36, 2)).astype(np.float32)
    face = FaceTrack(shape, np.concatenate([shape.min(1), shape.max(1)], 1), np.ones(frames, np.float32))
    return {"mp4": video.getvalue(), "flac": audio.getvalue(), "face.npz": face.to_bytes()}


def stream_reader(shards: Path) -> Reader:
    stream = SampleStream(str(shards))

    def read() -> Iterator[Sample]:
        for position, sample in stream.read():
            if position % STATE_EVERY == 0:
                json.dumps(stream.state(position + 1))
            yield sample

    return read


def webdataset_reader(shards: Path) -> Reader:
    import webdataset

    tars = sorted(str(path) for path in shards.glob("*.tar"))

    def read() -> Iterator[Sample]:
        dataset = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0, empty_check=False).repeat()
        return iter(dataset.shuffle(SHUFFLE, initial=1, rng=random.Random(0)).map(from_members))

    return read


def energon_reader(shards: Path) -> Reader:
    from megatron.energon import (
        Cooker,
        DefaultTaskEncoder,
        WorkerConfig,
        get_savable_loader,
        get_train_dataset,
        stateless,
    )

    class RawSamples(DefaultTaskEncoder):
        cookers = (Cooker(stateless(lambda members: members)),)

        def batch(self, samples: list[Any]) -> Any:
            return samples

    def read() -> Iterator[Sample]:
        workers = WorkerConfig(rank=0, world_size=1, num_workers=0)
        order: dict[str, Any] = {"shuffle_buffer_size": 1, "max_samples_per_sequence": 100, "batch_size": 1}
        dataset = get_train_dataset(str(shards), worker_config=workers, task_encoder=RawSamples(), **order)
        loader = get_savable_loader(dataset)
        for count, batch in enumerate(loader):
            if count % STATE_EVERY == 0:
                loader.save_state_rank()
            yield from_members(batch[0])

    return read


DECODING: dict[str, Callable[[Sample], Any]] = {
    "members only": lambda sample: sample.key,
    "audio": lambda sample: decode_audio(sample.audio),
    "audio, 17 frames": lambda sample: (
        decode_audio(sample.audio),
        decode_video(sample.video, range(WINDOW)),
    ),
}


def seconds_per_sample(
    readers: dict[str, Reader], decode: Callable[[Sample], Any], turns: int
) -> dict[str, tuple[float, float]]:
    """(wall, CPU) seconds per sample of each reader, in turns, after files are open and buffers full."""
    total = {name: [0.0, 0.0] for name in readers}
    running = {name: reader() for name, reader in readers.items()}
    for samples in running.values():
        decode(next(samples))
    for turn in range(turns):
        for name in sorted(running, key=lambda name: (turn + list(running).index(name)) % len(running)):
            wall, cpu = time.perf_counter(), time.process_time()
            for sample in islice(running[name], TURN):
                decode(sample)
            total[name][0] += time.perf_counter() - wall
            total[name][1] += time.process_time() - cpu
    return {name: (wall / turns / TURN, cpu / turns / TURN) for name, (wall, cpu) in total.items()}


def make_million_index(shards: Path, folder: Path) -> Path:
    """A folder with indexes of 1.3 million samples: the same tar under many names, each span many times."""
    out = folder / "million"
    if (out / "manifest.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    manifest = json.loads((shards / "manifest.json").read_text())
    entry = manifest["shards"][0]
    index = ShardIndex.from_bytes((shards / index_name(entry["name"])).read_bytes())
    rows, entries = np.arange(10_000) % len(index), []
    for number in range(INDEXED // len(rows)):
        name = f"train-{number:06d}.tar"
        os.link(shards / entry["name"], out / name)
        columns = ("key", "offset", "length", "crc32", "seconds", "width_px", "height_px", "sizes")
        many = replace(index, **{column: getattr(index, column)[rows] for column in columns})
        (out / index_name(name)).write_bytes(many.to_bytes())
        entries.append({**entry, "name": name, "samples": len(rows), "index": index_name(name)})
    (out / "manifest.json").write_text(json.dumps({**manifest, "shards": entries}))
    return out


RESUME = """
import json, resource, sys, time
from itertools import islice
from pathlib import Path
import numpy, fsspec.implementations.local, tarfile, pydantic
from uniavgen.shards.read.stream import SampleStream

def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6

state = json.loads(sys.stdin.read())
before, started = resident_mb(), time.perf_counter()
stream, position = SampleStream.resume(sys.argv[1], state)
opened = time.perf_counter() - started
samples = stream.read(position)
next(samples)
first = time.perf_counter() - started
held = [round(resident_mb() - before)]
for _ in range(4):
    for _ in islice(samples, int(sys.argv[2])):
        pass
    held.append(round(resident_mb() - before))
print(json.dumps({"opened_s": opened, "first_sample_s": first, "held_mb": held}))
"""


def resume_at_a_million(shards: Path, folder: Path, buckets: dict[str, Any] | None) -> dict[str, Any]:
    million = make_million_index(shards, folder)
    names = {
        entry["name"]: entry["sha256"]
        for entry in json.loads((million / "manifest.json").read_text())["shards"]
    }
    order = {"split": "train", "seed": 0, "batch": 64 if buckets else 1, "buckets": buckets}
    state = {"version": 1, **order, "shards": names, "position": MILLION}
    command = [sys.executable, "-c", RESUME, str(million), "500"]
    done = subprocess.run(command, input=json.dumps(state), capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument(
        "--turns", type=int, default=60, help="number of turns of each reader, ten samples each"
    )
    parser.add_argument("--folder", type=Path, default=Path("/tmp/bench-shards"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    shards = make_shards(options.folder, options.samples)
    sizes = [path.stat().st_size for path in shards.glob("*.tar")]
    print(
        f"{options.samples} samples of {sum(sizes) / options.samples / 1e3:.0f} kB in {len(sizes)} tars, "
        "one thread"
    )
    readers = {
        "stream": stream_reader(shards),
        "webdataset": webdataset_reader(shards),
        "energon": energon_reader(shards),
    }
    columns = "".join(f"{name:>12}" for name in readers) + f"{'/webdataset':>13}{'/energon':>10}"
    print(f"\n{'samples/s (CPU ms)':<20}{columns}   ratio of wall times (of CPU times)")
    plain = 0.0
    for kind, decode in DECODING.items():
        used = seconds_per_sample(readers, decode, max(1, options.turns // (4 if "frames" in kind else 1)))
        plain = plain or 1 / used["webdataset"][0]
        row = "".join(f"{f'{1 / wall:.0f} ({cpu * 1e3:.1f})':>12}" for wall, cpu in used.values())
        ratio = [
            [used[other][clock] / used["stream"][clock] for clock in (0, 1)]
            for other in ("webdataset", "energon")
        ]
        print(f"{kind:<20}{row}" + "".join(f"{f'{wall:.2f} ({cpu:.2f})':>13}" for wall, cpu in ratio))
    print(
        f"\nresume at {MILLION:,} of {INDEXED:,}   index read  first sample  "
        "MB in memory then, and after 500, 1000, ... samples"
    )
    for name, buckets in (
        ("no buckets", None),
        ("buckets, batches", {"seconds": [3.0, 5.0, 7.0], "aspects": [0.8, 1.25]}),
    ):
        result = resume_at_a_million(shards, options.folder, buckets)
        times = f"{result['opened_s']:>10.2f} s{result['first_sample_s']:>12.2f} s"
        print(f"{name:<32}{times}   {' '.join(map(str, result['held_mb']))}")
    print(f"{'webdataset, by replay':<32}{'':>12}{MILLION / plain:>12.0f} s  (from its rate above)")


if __name__ == "__main__":
    main()
