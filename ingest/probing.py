"""Opens one file of unknown origin and says what is in it. Runs as a child process: `python -m ingest.probing FILE MAX_PIXELS`.

Goes in: a path. Comes out: one line of JSON on stdout, the fields of `records.Probe` plus `start_s`, or {"error", "kind"}.
A hostile file can hang or eat memory, so the parent (`media.probe`) bounds this process; here only named containers on
local files are opened, which leaves out playlists and lists of other files.
"""

from __future__ import annotations

import json
import sys
from typing import Any

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg,mxf"
"""libavformat's names of the containers that are opened; `hls`, `concat`, `image2` and other openers of files are not."""


def describe(path: str, max_pixels: int) -> dict[str, Any]:
    """Open the file, decode one picture and one block of sound, and report. Errors come back as `error` and `kind`."""
    import av

    options = {"protocol_whitelist": "file", "format_whitelist": DEMUXERS, "max_pixels": str(max_pixels)}
    try:
        with av.open(f"file:{path}", mode="r", options=options) as container:
            if not container.streams.video:
                return {"error": "there is no picture in the file", "kind": "no-video"}
            return _streams(container, max_pixels)
    except av.error.FFmpegError as error:
        return {"error": f"not a video that can be opened: {error.strerror}", "kind": "not-a-video"}


def _streams(container: Any, max_pixels: int) -> dict[str, Any]:
    video = container.streams.video[0]
    width, height = video.codec_context.width, video.codec_context.height
    if width * height > max_pixels:
        return {"error": f"the picture has {width}x{height} pixels, the limit is {max_pixels}", "kind": "too-large"}
    frame = next(container.decode(video), None)
    if frame is None:
        return {"error": "no picture can be decoded", "kind": "decode-failed"}
    aspect = frame.sample_aspect_ratio if getattr(frame, "sample_aspect_ratio", None) else video.sample_aspect_ratio
    shown_width, shown_height = round(frame.width * float(aspect or 1)), frame.height
    if abs(getattr(frame, "rotation", 0)) % 180 == 90:
        shown_width, shown_height = shown_height, shown_width
    audio = next(iter(container.streams.audio), None)
    rate = video.average_rate or video.guessed_rate or 0
    return {
        "duration_s": _duration(container, video),
        "width": shown_width,
        "height": shown_height,
        "fps": float(rate),
        "video_codec": video.codec_context.name,
        "audio_codec": audio.codec_context.name if audio is not None else "",
        "has_audio": audio is not None,
    }


def _duration(container: Any, video: Any) -> float:
    """Seconds by the container, else by the video stream, else 0 (unknown)."""
    if container.duration:
        return container.duration / 1e6
    if video.duration and video.time_base:
        return float(video.duration * video.time_base)
    return 0.0


if __name__ == "__main__":
    print(json.dumps(describe(sys.argv[1], int(sys.argv[2]))))
