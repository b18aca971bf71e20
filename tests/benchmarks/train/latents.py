"""Speed of loading batches from cached latents against decoding and encoding on line.

    python tests/benchmarks/train/latents.py [--shards demo-output/corpus/shards] [--frames 17]
                                             [--side 128] [--turns 6]

Copies the shards of a corpus (those of `make demo` by default), caches latents of this window there, and lets
two `BatchLoader`s load the same positions in one process and one thread, in turns, so that load on the
machine affects both. The codecs are the embedded ones: a DCT costs far less than the Wan VAE, whose ratio
would be larger. Then prints the rounding error of float16 storage.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from uniavgen.shards.errors import UserError
from uniavgen.shards.read.stream import SampleStream
from uniavgen.train.codec.registry import load_codecs
from uniavgen.train.data.cached_latents import find_latents
from uniavgen.train.data.config import DataConfig
from uniavgen.train.data.latent_caching import cache_latents, cut_fixed_windows
from uniavgen.train.data.loader import BatchLoader, CropEncoder, EncodedWindows

BATCH = 4
MEMBERS = ("video", "reference", "mel", "reference_mel", "caption")


def spent(loaders: dict[str, BatchLoader], turns: int) -> dict[str, tuple[float, float]]:
    """Seconds of (wall, CPU) per sample of each loader, after one warm-up batch each."""
    total = {name: [0.0, 0.0] for name in loaders}
    for step in range(turns + 1):
        for name in sorted(loaders, reverse=bool(step % 2)):
            wall, cpu = time.perf_counter(), time.process_time()
            loaders[name].load(step, range(BATCH))
            if step:
                total[name][0] += time.perf_counter() - wall
                total[name][1] += time.process_time() - cpu
    return {name: (wall / turns / BATCH, cpu / turns / BATCH) for name, (wall, cpu) in total.items()}


def rounding(stream: SampleStream, encoder: CropEncoder, clips: int) -> dict[str, tuple[float, float]]:
    """Error of float16 by batch member: root mean square over standard deviation, and the largest."""
    crops = [
        cut_fixed_windows(stream.sample_by_index(index), encoder.config)[0]
        for index in range(min(clips, len(stream)))
    ]
    batch, found = encoder.encode(crops), {}
    for name in MEMBERS:
        exact = getattr(batch, name).cpu().numpy().astype(np.float64)
        error = exact.astype(np.float16).astype(np.float64) - exact
        found[name] = float(np.sqrt((error**2).mean()) / exact.std()), float(np.abs(error).max())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=Path, default=Path("demo-output/corpus/shards"))
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--side", type=int, default=128, help="height and width in px")
    parser.add_argument("--turns", type=int, default=6, help="batches of each loader")
    parser.add_argument("--folder", type=Path, help="folder of the copy; default: a temporary folder")
    options = parser.parse_args()
    if not (options.shards / "manifest.json").is_file():
        sys.exit(f"no shards at {options.shards}: run `make demo`, or name a corpus's shards with --shards")
    torch.set_num_threads(1)
    config = DataConfig(
        frames=options.frames, height=options.side, width=options.side, reference_frames=options.frames
    )
    codecs = load_codecs(config.codecs)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        shards = Path(
            shutil.copytree(options.shards, Path(folder) / "shards", ignore=shutil.ignore_patterns("latents"))
        )
        made = cache_latents(shards, config)
        stream = SampleStream(str(shards))
        windows, line = find_latents(stream, config, codecs)
        if windows is None:
            raise UserError(line)
        encoded = EncodedWindows(stream, config, codecs)
        loaders = {"on line": BatchLoader(stream, config, encoded, BATCH)}
        loaders["cached"] = BatchLoader(stream, config, windows, BATCH)
        print(
            f"{made.samples} clips, {config.cached.windows} windows of {config.frames} frames "
            f"at {config.height} px each"
        )
        print(
            f"cache made at {made.samples / made.seconds:.1f} clips/s, "
            f"{made.bytes / made.samples / 1e3:.0f} kB a clip"
        )
        used = spent(loaders, options.turns)
        print(f"\n{'':<12}{'samples/s':>12}{'CPU ms':>10}")
        for name, (wall, cpu) in used.items():
            print(f"{name:<12}{1 / wall:>12.1f}{cpu * 1e3:>10.2f}")
        ratio = [used["on line"][clock] / used["cached"][clock] for clock in (0, 1)]
        print(f"ratio cached / on line: {ratio[0]:.1f} by wall time, {ratio[1]:.1f} by CPU time")
        print("\nfloat16: error over the standard deviation, and the largest error")
        for name, (share, largest) in rounding(stream, CropEncoder(config, codecs), 8).items():
            print(f"{name:<14}{share:>10.1e}{largest:>10.1e}")


if __name__ == "__main__":
    main()
