"""Describe, read through and repair files of unknown origin, in a child process.

Started with `python -P -m uniavgen.ingest.io.probe_server`. It reads one JSON object a line from stdin (a
task, a path, limits) and answers each with one line: fields of `records.Probe`, or {"error", "kind"}. A
hostile file can hang, crash or exhaust memory, so each is opened in a fork with limits; the server itself has
the library loaded and never opens a file. Only named containers on local files are opened, which excludes
playlists and lists of other files.
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

from uniavgen.ingest.io.repair import write_repaired
from uniavgen.ingest.io.scan import scan, seeks_right
from uniavgen.ingest.io.stream_choice import choose_video, is_secondary, rank_audio
from uniavgen.ingest.io.uris import DEMUXERS
from uniavgen.ingest.records import StreamInfo
from uniavgen.shards.errors import UserError

TOO_LARGE = re.compile(r"Picture size (\d+x\d+)")
"""Message of libavutil for a frame larger than `max_pixels`."""

HDR_TRANSFERS = {16: "smpte2084", 18: "arib-std-b67"}
"""Transfer functions of high dynamic range by their number in ITU-T H.273."""

MATRICES = {8: "ycgco", 10: "2020_cl", 14: "ictcp"}
"""Matrix coefficients that ffmpeg's scaler cannot read and its zscale can, by their number in H.273."""

UNREADABLE_MATRICES = (11, 12, 13, *range(15, 18))
"""Matrix coefficients of H.273 that neither can read, as those of Dolby Vision's profile 5."""

OUT_OF_MEMORY = {
    "error": "opening needs more memory than its limit; raise limits.memory_gb",
    "kind": "memory",
}

MAX_TRIED_TRACKS, SPARSE = 8, 0.05
"""Audio tracks that are tried for sound, and the share of the length with sound from which one is taken.
Heuristic."""

FIELD_CHECKS = (0.25, 0.6)
"""Positions, as shares of the duration, at which interlacing is checked: beginnings are often black.
Heuristic."""
FIELD_CHECK_FRAMES = 8
"""Consecutive frames that are checked at each position. Heuristic."""


def serve() -> None:
    """Answer requests until stdin ends."""
    import av.subtitles.stream  # noqa: F401 - loaded once for all forks, with the part that av loads late

    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_describe_in_fork(request)), flush=True)


def describe(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Choose the streams, decode a few frames, and return the fields of a `Probe`, or `error` and `kind`."""
    with _opened(path, request) as container:
        streams = [_stream_info(stream) for stream in container.streams]
        chosen = choose_video(streams)
        if chosen is None:
            known = any(stream.type == "video" for stream in container.streams)
            return {
                "error": "the video track has an unknown codec" if known else "the file has no video track",
                "kind": "decode-failed" if known else "no-video",
            }
        audios = rank_audio(streams, request["audio_track"], _related_audio(container, chosen.index))
        facts = _frame_facts(container, chosen.index, request["max_pixels"])
        if "error" in facts:
            return facts
        facts |= {
            "streams": [vars(stream) for stream in streams if stream.kind in ("video", "audio", "subtitle")],
            "video_stream": chosen.index,
            "audio_candidates": [stream.index for stream in _candidates(audios, request["audio_track"])],
            "has_audio": bool(audios),
            "bytes": os.stat(path).st_size,
            "duration_s": _duration(container, container.streams[chosen.index]),
        }
        facts |= _fields(
            container, chosen.index, facts["duration_s"], time.monotonic() + request["seconds"] / 4
        )
        return facts


def read_through(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `Probe` that need the whole file."""
    video = request["video_stream"]
    scans: list[dict[str, Any]] = []
    for audio in request["audio_candidates"] or [-1]:
        with _opened(path, request) as container:
            facts = scan(container, video, audio)
            facts["audio_codec"] = container.streams[audio].codec_context.name if audio >= 0 else ""
            facts["bit_rate"] = _bit_rate(container, video, request["bytes"], facts)
        scans.append(facts)
        if facts["sounding_s"] > SPARSE * facts["duration_s"]:
            break
    # all are nearly silent: the one with most sound, or the best by its flags
    facts = max(scans, key=lambda each: float(each["sounding_s"]))
    if not facts["repairs"] and not seeks_right(lambda: _opened(path, request), facts, video):
        facts |= {"repairs": ["seeking"], "start_s": None}
    return {name: value for name, value in facts.items() if name not in ("keyframes", "keyframe_gap_s")}


def repair(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """Write the repaired copy to `request["target"]`."""
    options = _demuxer_options(request["max_pixels"])
    write_repaired(
        path, request["target"], options, request["video_stream"], request["audio_stream"], request["mono"]
    )
    return {}


TASKS = {"describe": describe, "scan": read_through, "repair": repair}


def _demuxer_options(max_pixels: int) -> dict[str, str]:
    """Options that refuse other protocols, other containers and larger frames."""
    return {"protocol_whitelist": "file", "format_whitelist": DEMUXERS, "max_pixels": str(max_pixels)}


def _opened(path: str, request: dict[str, Any]) -> Any:
    import av

    return av.open(f"file:{path}", mode="r", options=_demuxer_options(request["max_pixels"]))


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Do what the request asks; errors of libav come back as `error` and `kind`."""
    import av

    av.logging.set_level(av.logging.ERROR)
    with av.logging.Capture() as log:
        try:
            return TASKS[request["task"]](request["path"], request)
        except av.error.MemoryError:
            return OUT_OF_MEMORY
        except UserError as error:
            return {"error": error.what, "kind": error.kind, "hint": error.hint}
        except av.error.FFmpegError as error:
            messages = [" ".join(message.split()) for _, _, message in log]
            size = next((match[1] for text in messages if (match := TOO_LARGE.match(text))), "")
            if size:
                return {
                    "error": f"a frame has {size} pixels, the limit is {request['max_pixels']}",
                    "kind": "too-large",
                }
            reason = messages[0] if messages else error.strerror
            return {"error": f"not a video that can be opened: {reason}"[:300], "kind": "not-a-video"}


def _stream_info(stream: Any) -> StreamInfo:
    context = stream.codec_context
    disposition = int(stream.disposition)
    language = stream.metadata.get("language", "")
    return StreamInfo(
        stream.index,
        stream.type,
        context.name if context is not None else "",
        language if language != "und" else "",
        stream.metadata.get("title") or stream.metadata.get("handler_name", ""),
        bool(disposition & 1),
        tuple(flag.name for flag in type(stream.disposition) if flag.value > 1 and disposition & flag.value),
        getattr(context, "width", 0) or 0,
        getattr(context, "height", 0) or 0,
        getattr(context, "channels", 0) or 0,
    )


def _related_audio(container: Any, video: int) -> int | None:
    """An audio stream of the video's programme, in a transport stream that may hold several."""
    if container.format.name != "mpegts" or len(container.streams.video) < 2:
        return None
    best = container.streams.best("audio", related=container.streams[video])
    return best.index if best is not None else None


def _candidates(audios: list[StreamInfo], wanted: str) -> list[StreamInfo]:
    """Audio streams of which the first with sound is taken: those of the best rank, or the one named."""
    main = [stream for stream in audios if not is_secondary(stream)] or audios
    return audios[:1] if wanted else main[:MAX_TRIED_TRACKS]


def _frame_facts(container: Any, index: int, max_pixels: int) -> dict[str, Any]:
    video = container.streams[index]
    width, height = video.codec_context.width, video.codec_context.height
    if width * height > max_pixels:
        return {
            "error": f"a frame has {width}x{height} pixels, the limit is {max_pixels}",
            "kind": "too-large",
        }
    # the loop filter is a quarter of the work and does not affect the field check
    video.codec_context.options = {"max_pixels": str(max_pixels), "skip_loop_filter": "all"}
    frame = next(container.decode(video), None)
    if frame is None:
        return {"error": "no frame can be decoded", "kind": "decode-failed"}
    aspect = (
        frame.sample_aspect_ratio
        if getattr(frame, "sample_aspect_ratio", None)
        else video.sample_aspect_ratio
    )
    shown_width, shown_height = round(frame.width * float(aspect or 1)), frame.height
    if shown_width < 1 or shown_width * shown_height > max_pixels:
        return {
            "error": f"a frame is shown with {shown_width}x{shown_height} pixels, the limit is {max_pixels}",
            "kind": "too-large",
        }
    matrix = int(frame.colorspace)
    if matrix in UNREADABLE_MATRICES:
        return {
            "error": f"colour matrix {matrix} of ITU-T H.273 cannot be converted",
            "kind": "decode-failed",
        }
    turned = abs(getattr(frame, "rotation", 0)) % 180 == 90
    if turned:
        shown_width, shown_height = shown_height, shown_width
    rate = float(video.average_rate or video.guessed_rate or 0)
    return {
        "width": shown_width,
        "height": shown_height,
        "turned": turned,
        "fps": rate if math.isfinite(rate) else 0.0,
        "video_codec": video.codec_context.name,
        "matrix": MATRICES.get(matrix, ""),
        "transfer": HDR_TRANSFERS.get(int(frame.color_trc), ""),
    }


def _duration(container: Any, video: Any) -> float:
    """Seconds according to the container, else the video stream, else 0 (unknown)."""
    if container.duration:
        return max(0.0, container.duration / 1e6)
    if video.duration and video.time_base:
        return max(0.0, float(video.duration * video.time_base))
    return 0.0


def _bit_rate(container: Any, index: int, size: int, facts: dict[str, Any]) -> float:
    """Bit rate of the video: as declared if the file is large enough for it, else file size minus audio."""
    declared = float(container.streams[index].bit_rate or 0)
    if not facts["duration_s"]:
        return declared
    total = size * 8 / facts["duration_s"]
    audio = sum(stream.bit_rate or 0 for stream in container.streams.audio)
    return declared if 0 < declared <= total else max(0.0, total - audio)


def _fields(container: Any, index: int, duration_s: float, until: float) -> dict[str, Any]:
    """The share of checked frames that are interlaced (ffmpeg's idet), and which field is first.

    Damaged parts are skipped; the check stops at the monotonic time `until`.
    """
    import av

    orders: list[str] = []
    for share in FIELD_CHECKS if duration_s > 2.0 else (0.0,):
        with suppress(av.error.FFmpegError):
            container.seek(int((container.start_time or 0) + share * duration_s * 1e6))
            orders += _field_orders(container, index, until)
    interlaced = [order for order in orders if order in ("tff", "bff")]
    known = len(interlaced) + orders.count("progressive")
    return {
        "interlaced_ratio": len(interlaced) / known if known else 0.0,
        "top_field_first": interlaced.count("tff") >= interlaced.count("bff"),
    }


def _field_orders(container: Any, index: int, until: float) -> list[str]:
    """idet's class of each of the next frames: tff, bff, progressive or undetermined."""
    import av

    graph: Any = None
    orders: list[str] = []
    for count, frame in enumerate(container.decode(container.streams[index])):
        if graph is None:
            graph = av.filter.Graph()
            graph.link_nodes(
                graph.add_buffer(template=container.streams[index]),
                graph.add("idet"),
                graph.add("buffersink"),
            )
            graph.configure()
        graph.vpush(frame)
        with suppress(BlockingIOError):  # idet needs a frame's neighbours first
            while True:
                orders.append(graph.vpull().metadata.get("lavfi.idet.multiple.current_frame", ""))
        if count + 1 >= FIELD_CHECK_FRAMES or time.monotonic() > until:
            break
    return orders


def _describe_in_fork(request: dict[str, Any]) -> dict[str, Any]:
    """Run `describe` in a fork with limits on memory, CPU time and wall-clock time."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _describe_and_exit(request, writer)
    os.close(writer)
    answer, deadline = b"", time.monotonic() + request["seconds"]
    try:
        while select.select([reader], [], [], max(0.0, deadline - time.monotonic()))[0]:
            block = os.read(reader, 65536)
            if not block:
                break
            answer += block
        else:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            message = f"opening took longer than {request['seconds']:g} s; raise limits.probe_seconds"
            return {"error": message, "kind": "timeout"}
    finally:
        os.close(reader)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code or not answer:
        reason = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"error": f"opening the file crashed the decoder ({reason})", "kind": "not-a-video"}
    facts: dict[str, Any] = json.loads(answer)
    return facts


def _describe_and_exit(request: dict[str, Any], writer: int) -> None:
    """In the fork: set limits, describe the file, exit. Never returns."""
    try:
        resource.setrlimit(resource.RLIMIT_AS, (request["memory"], request["memory"]))
        seconds = math.ceil(request["seconds"]) + 1
        # in case the parent, which watches the wall clock, is killed
        resource.setrlimit(resource.RLIMIT_CPU, (seconds * 4, seconds * 4))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (request.get("target_bytes", 0),) * 2)
        try:
            facts = answer(request)
        except MemoryError:
            facts = OUT_OF_MEMORY
        except Exception as error:  # any error of a library is this file's failure
            facts = {"error": f"opening failed: {type(error).__name__}: {error}"[:300], "kind": "not-a-video"}
        os.write(writer, json.dumps(facts).encode())
        os._exit(0)
    finally:
        os._exit(1)


if __name__ == "__main__":
    serve()
