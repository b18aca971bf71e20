"""Cuts clips out of a video: constant 16 fps H.264 without sound, 24 kHz mono FLAC, both from the same instant.

Goes in: the source's path and facts, a start on the 16 fps grid, a framing. Comes out: two files at their final place by
rename, after their lengths were checked. Everything is encoded anew: a copied stream starts at its packets' edges.
"""

from __future__ import annotations

import os
from pathlib import Path

from uniavgen.ingest.config import CutConfig, LimitConfig
from uniavgen.ingest.io.ffmpeg import SEEK_MARGIN_S, open_input_at, run_graph
from uniavgen.ingest.io.media import constant_rate_video, exact_audio, shown_video
from uniavgen.ingest.io.uris import printable
from uniavgen.ingest.measures.framing import Framing
from uniavgen.ingest.records import Probe
from uniavgen.shards.errors import UserError
from uniavgen.shards.timing import SAMPLE_RATE, VIDEO_FPS, samples_for_frames


def cut_clip(
    path: str,
    probe: Probe,
    start_s: float,
    frames: int,
    framing: Framing,
    target: tuple[Path, Path],
    work: Path,
    cut: CutConfig,
    limits: LimitConfig,
) -> None:
    """Encode `frames` pictures at 16 fps from `start_s`, and exactly as much sound, to `target` (.mp4, .flac).

    A picture of the source appears at the nearest instant of the 16 fps grid, so at most 31 ms from its time and 0 on
    average; sound is exact to the sample. A source without sound gives no .flac. Both are written in the folder `work`
    first. Raises UserError: cut-failed when an encode is not as long as asked, no-space, timeout, memory.
    """
    import ffmpeg

    source, clock_s = open_input_at(path, start_s, limits)
    mp4, flac = (work / final.name for final in target)
    picture = constant_rate_video(shown_video(source, probe), clock_s, VIDEO_FPS)
    if (framing.crop_width, framing.crop_height) != (framing.source_width, framing.source_height):
        across, down = 1 / framing.source_width, 1 / framing.source_height
        # in shares of the picture: the decoded one has fewer pixels than the shown one where pixels are not square
        crop = [f"iw*{framing.crop_width * across:.9f}", f"ih*{framing.crop_height * down:.9f}"]
        crop += [f"iw*{framing.x * across:.9f}", f"ih*{framing.y * down:.9f}"]
        picture = picture.filter("crop", *crop, exact=1)
    picture = picture.filter("scale", framing.width, framing.height, flags="bicubic").filter("setsar", "1")
    encoding = {
        "vcodec": "libx264",
        "pix_fmt": "yuv420p",
        "crf": cut.crf,
        "preset": cut.preset,
        "movflags": "+faststart",
    }
    graph = ffmpeg.output(
        picture, f"file:{mp4}", vframes=frames, threads=limits.decoder_threads, map_metadata=-1, **encoding
    )
    if probe.has_audio:
        heard = exact_audio(source, clock_s, SAMPLE_RATE, samples_for_frames(frames))
        lossless = {"acodec": "flac", "sample_fmt": "s16", "ac": 1, "ar": SAMPLE_RATE}
        graph = ffmpeg.merge_outputs(graph, ffmpeg.output(heard, f"file:{flac}", map_metadata=-1, **lossless))
    parts = (mp4, flac) if probe.has_audio else (mp4,)
    try:
        run_graph(
            graph, path, frames / VIDEO_FPS + SEEK_MARGIN_S, limits, "the clip cannot be cut", "cut-failed"
        )
        _check_lengths(parts, frames, path)
        for part, final in zip(parts, target, strict=False):
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(part, final)
    except BaseException:
        for part in parts:
            part.unlink(missing_ok=True)
        raise


def _check_lengths(parts: tuple[Path, ...], frames: int, path: str) -> None:
    import av
    import soundfile

    with av.open(str(parts[0]), mode="r") as container:
        video = container.streams.video[0]
        found, rate = video.frames, video.average_rate
    if found != frames or rate != VIDEO_FPS:
        what = f"the cut has {found} frames at {rate} a second instead of {frames} at {VIDEO_FPS}"
        raise UserError(what, where=printable(path), kind="cut-failed")
    wanted = samples_for_frames(frames)
    for part in parts[1:]:
        samples = soundfile.info(str(part)).frames
        if samples != wanted:
            what = f"the cut has {samples} samples instead of {wanted}"
            raise UserError(what, where=printable(path), kind="cut-failed")
