"""The ffmpeg filters between a decoder and what ingest reads, in the words of ffmpeg-python.

Every function takes streams of a graph and returns streams of it. Nothing runs here.
"""

from __future__ import annotations

from typing import Any

from uniavgen.ingest.io.channels import MIXES
from uniavgen.ingest.records import Probe

SDR_WHITE_NITS, TONE_MAP_KNEE = 100, 0.7
"""Luminance of high dynamic range that becomes white of BT.709, and the share of it up to which tone mapping
changes nothing. Brighter light is compressed."""

WIDE = "bt2020", "bt2020nc"
"""Primaries and matrix of high dynamic range, by zscale's names (ITU-R BT.2100)."""

INTERLACED = 0.5
"""Share of interlaced frames from which a source is deinterlaced first. Heuristic."""


def shown_video(source: Any, probe: Probe) -> Any:
    """The input's video in one size, deinterlaced where needed (bwdif, one frame for a pair of fields)."""
    video = source[str(probe.video_stream)]
    if probe.matrix:  # the filters below cannot read it
        transfer, primaries, matrix = (
            (probe.transfer, *WIDE) if probe.transfer else ("bt709", "bt709", "bt709")
        )
        tags = {"tin": transfer, "t": transfer, "pin": primaries, "p": primaries}
        video = video.filter("zscale", min=probe.matrix, m=matrix, **tags)
    if probe.frame_sizes > 1:
        width, height = probe.width, probe.height
        fitted = f"min({width},2*round({height}*dar/2))", f"min({height},2*round({width}/dar/2))"
        video = video.filter("scale", *fitted, eval="frame")
        video = video.filter("pad", width, height, x=-1, y=-1, eval="frame").filter("setsar", "1")
    if probe.interlaced_ratio >= INTERLACED:
        parity = "tff" if probe.top_field_first else "bff"
        video = video.filter("bwdif", mode="send_frame", parity=parity)
    return video


def scaled(video: Any, probe: Probe, width: int, height: int, flags: str) -> Any:
    """The video at another size. High dynamic range (PQ or HLG) is tone-mapped to BT.709 after scaling.

    Its primaries and matrix are those of BT.2020, whatever the file says: many files leave them out. The
    gamma is computed: the approximation of old versions mirrors what is darker than black.
    """
    video = video.filter("scale", width, height, flags=flags)
    if not probe.transfer:
        return video
    primaries, matrix = WIDE
    linear = video.filter("format", "yuv444p10le").filter(
        "zscale", tin=probe.transfer, min=matrix, pin=primaries, p=primaries, t="linear", npl=SDR_WHITE_NITS
    )
    mapped = linear.filter("format", "gbrpf32le").filter("zscale", p="bt709")
    mapped = mapped.filter("tonemap", "mobius", param=TONE_MAP_KNEE, desat=0)
    return mapped.filter("zscale", t="bt709", m="bt709", r="tv", agamma=0).filter("format", "yuv444p")


def whole_video(source: Any, probe: Probe) -> Any:
    """The input's video from the container's time 0."""
    video = shown_video(source, probe)
    if probe.start_s is None:
        return video
    return video.filter("settb", "AVTB").filter("setpts", f"PTS-{probe.start_s:.6f}/TB")


def whole_audio(source: Any, probe: Probe) -> Any:
    """The input's audio in one channel from the container's time 0, gaps filled with silence."""
    audio = one_channel(source, probe)
    if probe.start_s is not None:
        audio = audio.filter("asetpts", f"PTS-{probe.start_s:.6f}/TB")
    return audio.filter("aresample", **{"async": 1, "first_pts": 0})


def one_channel(source: Any, probe: Probe) -> Any:
    """The input's audio, made mono here where the plain mix of its channels would lose it."""
    audio = source[str(probe.audio_stream)]
    # `<` is `=` for gains that sum to 1; ffmpeg-python escapes `=`, which `pan` does not undo
    return audio if probe.mono == "mix" else audio.filter("pan", f"mono|c0<{MIXES[probe.mono]}")


def constant_rate_video(video: Any, clock_s: float, fps: int) -> Any:
    """Frames at a constant rate from timestamp `clock_s` on, with a second of copies of the last frame.

    Encoders drop repeated frames, also at the end of a video, where versions of ffmpeg then stop early.
    """
    # AVTB: a container may count time in whole frames, in which the shift would be rounded
    shifted = (
        video.filter("settb", "AVTB")
        .filter("setpts", f"PTS-{clock_s:.6f}/TB")
        .filter("fps", fps=fps, start_time=0)
    )
    return shifted.filter("tpad", stop=fps, stop_mode="clone")


def exact_audio(source: Any, probe: Probe, clock_s: float, rate: int, samples: int) -> Any:
    """Exactly `samples` at `rate` from timestamp `clock_s` on, with silence where there is no audio."""
    return exact_span(one_channel(source, probe).filter("aresample", rate), clock_s, samples)


def exact_span(audio: Any, clock_s: float, samples: int) -> Any:
    """Exactly `samples` of an audio stream from timestamp `clock_s` on, with silence where there is none."""
    audio = audio.filter("atrim", start=f"{clock_s:.6f}")
    audio = audio.filter("asetpts", f"PTS-{clock_s:.6f}/TB")
    audio = audio.filter("aresample", **{"async": 1, "first_pts": 0}).filter("apad", whole_len=samples)
    # an encoder takes its block size from the first frame, which atrim may leave with 8 samples
    return audio.filter("atrim", end_sample=samples).filter("asetnsamples", n=1024, pad=0)
