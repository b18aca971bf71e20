"""Opens files of unknown origin and says what is in them. Runs as a child process: `python -m uniavgen.ingest.io.probe_server`.

Goes in: a line of JSON per file on stdin (path, max_pixels, seconds, memory). Comes out: a line of JSON per file on stdout,
the fields of `records.Probe`, or {"error", "kind"}. A hostile file can hang, crash or eat memory, so each is opened in a
process of its own with limits, forked from this one, which has the library loaded already and never opens a file itself.
Only named containers on local files are opened, which leaves out playlists and lists of other files.
"""

from __future__ import annotations

import json
import math
import os
import re
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from typing import Any

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg,mxf"
"""libavformat's names of the containers that are opened; `hls`, `concat`, `image2` and other openers of files are not."""

TOO_LARGE = re.compile(r"Picture size (\d+x\d+)")
"""What libavutil says of a picture beyond `max_pixels`, or beyond all measure."""

STARVED = {"error": "opening needs more memory than its limit; raise limits.memory_gb", "kind": "memory"}

LOOKS = (0.25, 0.6)
"""Where in a film fields are looked for, as shares of its length: beginnings are often black (our choice)."""
LOOK_FRAMES = 8
"""Frames in a row that are looked at in each place (our choice)."""


def serve() -> None:
    """Answer requests until stdin ends."""
    import av.subtitles.stream  # noqa: F401 - loaded once, for all the forks, with what it loads late itself

    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_in_a_fork(request)), flush=True)


def describe(path: str, max_pixels: int, seconds: float) -> dict[str, Any]:
    """Open the file, decode a few pictures, and report. Errors come back as `error` and `kind`."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS, "max_pixels": str(max_pixels)}
    av.logging.set_level(av.logging.ERROR)
    with av.logging.Capture() as log:
        try:
            with av.open(f"file:{path}", mode="r", options=options) as container:
                if not container.streams.video:
                    return {"error": "there is no picture in the file", "kind": "no-video"}
                facts = _streams(container, max_pixels)
                if "error" not in facts:
                    facts["bytes"] = os.stat(path).st_size
                    facts["bit_rate"] = _bit_rate(container, facts)
                    facts |= _fields(container, facts["duration_s"], time.monotonic() + seconds / 4)
                return facts
        except av.error.MemoryError:
            return STARVED
        except av.error.FFmpegError as error:
            said = [" ".join(message.split()) for _, _, message in log]
            size = next((found[1] for text in said if (found := TOO_LARGE.match(text))), "")
            if size:
                return {
                    "error": f"a picture in it has {size} pixels, the limit is {max_pixels}",
                    "kind": "too-large",
                }
            why = said[0] if said else error.strerror
            return {"error": f"not a video that can be opened: {why}"[:300], "kind": "not-a-video"}


def _streams(container: Any, max_pixels: int) -> dict[str, Any]:
    video = container.streams.video[0]
    if video.codec_context is None:
        return {"error": "the picture is coded in an unknown way", "kind": "decode-failed"}
    width, height = video.codec_context.width, video.codec_context.height
    if width * height > max_pixels:
        return {
            "error": f"the picture has {width}x{height} pixels, the limit is {max_pixels}",
            "kind": "too-large",
        }
    # smooth edges of blocks, a quarter of the work, show nothing of fields
    video.codec_context.options = {"max_pixels": str(max_pixels), "skip_loop_filter": "all"}
    frame = next(container.decode(video), None)
    if frame is None:
        return {"error": "no picture can be decoded", "kind": "decode-failed"}
    aspect = (
        frame.sample_aspect_ratio
        if getattr(frame, "sample_aspect_ratio", None)
        else video.sample_aspect_ratio
    )
    shown_width, shown_height = round(frame.width * float(aspect or 1)), frame.height
    if shown_width < 1 or shown_width * shown_height > max_pixels:
        return {
            "error": f"the picture is shown as {shown_width}x{shown_height} pixels, the limit is {max_pixels}",
            "kind": "too-large",
        }
    if abs(getattr(frame, "rotation", 0)) % 180 == 90:
        shown_width, shown_height = shown_height, shown_width
    audio = next(iter(container.streams.audio), None)
    rate = float(video.average_rate or video.guessed_rate or 0)
    return {
        "duration_s": _duration(container, video),
        "width": shown_width,
        "height": shown_height,
        "fps": rate if math.isfinite(rate) else 0.0,
        "video_codec": video.codec_context.name,
        "audio_codec": audio.codec_context.name
        if audio is not None and audio.codec_context is not None
        else "",
        "has_audio": audio is not None,
    }


def _duration(container: Any, video: Any) -> float:
    """Seconds by the container, else by the video stream, else 0 (unknown)."""
    if container.duration:
        return max(0.0, container.duration / 1e6)
    if video.duration and video.time_base:
        return max(0.0, float(video.duration * video.time_base))
    return 0.0


def _bit_rate(container: Any, facts: dict[str, Any]) -> float:
    """Of the picture, as its stream says if the file is as large, else what its size leaves beside the sound's."""
    said = float(container.streams.video[0].bit_rate or 0)
    if not facts["duration_s"]:
        return said
    whole = facts["bytes"] * 8 / facts["duration_s"]
    sound = sum(stream.bit_rate or 0 for stream in container.streams.audio)
    return said if 0 < said <= whole else max(0.0, whole - sound)


def _fields(container: Any, duration_s: float, until: float) -> dict[str, Any]:
    """How many of the frames looked at show two fields, by ffmpeg's idet, and which field is first. A film whose second
    half is damaged is told by what comes before; looking stops at the clock's `until`."""
    import av

    seen: list[str] = []
    for share in LOOKS if duration_s > 2.0 else (0.0,):
        with suppress(av.error.FFmpegError):
            container.seek(int((container.start_time or 0) + share * duration_s * 1e6))
            seen += _looks(container, until)
    combed = [look for look in seen if look in ("tff", "bff")]
    known = len(combed) + seen.count("progressive")
    return {
        "interlaced_ratio": len(combed) / known if known else 0.0,
        "top_field_first": combed.count("tff") >= combed.count("bff"),
    }


def _looks(container: Any, until: float) -> list[str]:
    """What idet thinks of the next frames: tff, bff, progressive or undetermined each."""
    import av

    graph: Any = None
    looks: list[str] = []
    for count, frame in enumerate(container.decode(container.streams.video[0])):
        if graph is None:
            graph = av.filter.Graph()
            graph.link_nodes(
                graph.add_buffer(template=container.streams.video[0]),
                graph.add("idet"),
                graph.add("buffersink"),
            )
            graph.configure()
        graph.vpush(frame)
        with suppress(BlockingIOError):  # it sees a frame's neighbours before it tells
            while True:
                looks.append(graph.vpull().metadata.get("lavfi.idet.multiple.current_frame", ""))
        if count + 1 >= LOOK_FRAMES or time.monotonic() > until:
            break
    return looks


def _in_a_fork(request: dict[str, Any]) -> dict[str, Any]:
    """`describe` in a forked process with limits on its memory, its processor time and the clock."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _describe_and_exit(request, writer)
    os.close(writer)
    answer, until = b"", time.monotonic() + request["seconds"]
    try:
        while select.select([reader], [], [], max(0.0, until - time.monotonic()))[0]:
            block = os.read(reader, 65536)
            if not block:
                break
            answer += block
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            what = f"opening took longer than {request['seconds']:g} s; raise limits.probe_seconds"
            return {"error": what, "kind": "timeout"}
    finally:
        os.close(reader)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code or not answer:
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"error": f"opening the file ended the reader ({how})", "kind": "not-a-video"}
    found: dict[str, Any] = json.loads(answer)
    return found


def _describe_and_exit(request: dict[str, Any], writer: int) -> None:
    """In the fork: limits, then the work; never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
        seconds = math.ceil(request["seconds"]) + 1
        resource.setrlimit(
            resource.RLIMIT_CPU, (seconds * 4, seconds * 4)
        )  # should the one who watches the clock be gone
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        try:
            facts = describe(request["path"], request["max_pixels"], request["seconds"])
        except MemoryError:
            facts = STARVED
        except Exception as error:  # a library's surprise is this file's failure
            facts = {"error": f"opening failed: {type(error).__name__}: {error}"[:300], "kind": "not-a-video"}
        os.write(writer, json.dumps(facts).encode())
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve()
