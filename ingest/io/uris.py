"""What an argument lists: videos, list files, and files that are passed over."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from uniavgen.shards.errors import UserError

MEDIA_EXTENSIONS = frozenset(
    [
        *(".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg"),
        *(".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    ]
)
"""Extensions of the files that are taken from a folder. A file named explicitly is always taken."""

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegvideo,mpegts,flv,asf,ogg,mxf"
"""libavformat's names of the containers that are opened: not `hls`, `concat`, `image2` and others that open
more files."""


@dataclass(frozen=True)
class Entry:
    """One video to ingest.

    An equal `uri` with an equal `stamp` has the same content; a stamp "" says nothing.
    """

    uri: str
    stamp: str = ""
    bytes: int | None = None
    """None where the store does not tell, or where there is no such file (reading it then raises)."""
    problem: str = ""
    """Why the source cannot be read, if that is known; it is not tried then."""
    origin: str = field(default="", compare=False)
    """The line of a list file that names it, for the message if it fails."""


@dataclass
class Listing:
    """What one argument names: videos, `.txt` list files, and other files with the reason why they are not
    taken.
    """

    entries: list[Entry] = field(default_factory=list)
    lists: list[str] = field(default_factory=list)
    passed_over: dict[str, str] = field(default_factory=dict)


def is_video_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in MEDIA_EXTENSIONS


def no_videos(files: int, where: str) -> UserError:
    """The error for a folder with `files` files of which none is a video by its name."""
    what = f"none of the {files} files in the folder is a video" if files else "the folder is empty"
    return UserError(
        what, where=where, hint=f"known extensions: {' '.join(sorted(MEDIA_EXTENSIONS))}", kind="no-sources"
    )
