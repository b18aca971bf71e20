"""The containers that are opened, and how libav opens a file of unknown origin and seeks in it."""

from __future__ import annotations

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg,mxf"
"""libavformat's names of the containers that are opened: not `hls`, `concat`, `image2` and others that open
more files."""

SEEK_MARGIN_S = 10.0
"""A seek starts this far before the wanted time and drops frames exactly: in some containers a seek lands
seconds off."""


def demuxer_options(max_pixels: int) -> dict[str, str]:
    """Options that refuse other protocols, other containers and larger frames."""
    return {"protocol_whitelist": "file", "format_whitelist": DEMUXERS, "max_pixels": str(max_pixels)}
