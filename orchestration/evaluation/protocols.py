"""Protocols: file layouts of public test sets, and which metrics each is about.

GRID and VGGSound are read in their published layouts. The other sets have no layout that could be verified;
they take the list `videos.csv` (see `videos.read_list`).
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from uniavgen.orchestration.evaluation.videos import LIST_NAME, SUFFIXES, Item, list_videos
from uniavgen.shards.errors import UserError
from uniavgen.shards.text_files import read_text

GRID_WORDS: tuple[Mapping[str, str], ...] = (
    {"b": "bin", "l": "lay", "p": "place", "s": "set"},
    {"b": "blue", "g": "green", "r": "red", "w": "white"},
    {"a": "at", "b": "by", "i": "in", "w": "with"},
    {letter: letter for letter in "abcdefghijklmnopqrstuvxyz"},
    {
        "z": "zero", "1": "one", "2": "two", "3": "three", "4": "four",
        "5": "five", "6": "six", "7": "seven", "8": "eight", "9": "nine",
    },
    {"a": "again", "n": "now", "p": "please", "s": "soon"},
)  # fmt: skip
"""Words of a GRID sentence by the letters of its file name: command, colour, preposition, letter, digit,
adverb (Cooke et al. 2006). There is no letter w."""

GRID_SILENT = ("sil", "sp")


@dataclass(frozen=True)
class Protocol:
    """How a test set lies in a folder. `read` lists its videos. `says` describes layout and purpose."""

    read: Callable[[Path], list[Item]]
    says: str


def grid_sentence(name: str) -> str | None:
    """The sentence of a GRID file name as `bbaf2n`; None for another name."""
    if len(name) != len(GRID_WORDS):
        return None
    words = [table.get(letter) for table, letter in zip(GRID_WORDS, name.lower(), strict=True)]
    return None if None in words else " ".join(word or "" for word in words)


def grid_alignment(text: str) -> str:
    """The sentence of a GRID `.align` file, whose lines are start, end and word."""
    words = [line.split() for line in text.splitlines() if line.strip()]
    return " ".join(word[2] for word in words if len(word) == 3 and word[2] not in GRID_SILENT)


def read_grid(folder: Path) -> list[Item]:
    """Videos of GRID: files named by their sentences, anywhere below `folder`; speakers are folders `s1`...

    The text is that of the `.align` file of the same name if there is one, else that of the name.
    """
    require_folder(folder)
    alignments = {path.stem: path for path in sorted(folder.rglob("*.align"))}
    items: dict[str, Item] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        aligned = alignments.get(path.stem)
        text = grid_alignment(read_text(aligned, "the alignment")) if aligned else grid_sentence(path.stem)
        if not text:
            continue
        speaker = next((part for part in reversed(path.parts[:-1]) if is_grid_speaker(part)), "")
        name = f"{speaker}-{path.stem}" if speaker else path.stem
        items[name] = Item(name, str(path), text=text, conditions={"speaker": speaker} if speaker else {})
    return found(items, folder, "no video is named as GRID's are", "for example s1/bbaf2n.mpg")


def is_grid_speaker(folder: str) -> bool:
    """Whether a folder is named as GRID's speakers are: `s1` to `s34`."""
    return folder[:1] == "s" and folder[1:].isdigit()


def read_vggsound(folder: Path) -> list[Item]:
    """Test clips of VGGSound: `vggsound.csv` (id, start, label, split) and videos `ID_000030.mp4`.

    Videos may be in a folder `video`. Rows without a video are passed over; videos without a row are refused.
    """
    require_folder(folder)
    table = folder / "vggsound.csv"
    if not table.is_file():
        raise UserError("VGGSound's table is not here", where=table, hint="copy vggsound.csv there")
    root = folder / "video" if (folder / "video").is_dir() else folder
    items: dict[str, Item] = {}
    rows = csv.reader(io.StringIO(read_text(table, "VGGSound's table"), newline=""))
    for line, row in enumerate(rows, start=1):
        if len(row) != 4 or not row[1].isdigit():
            raise UserError(
                "a line of VGGSound's table is not id, start, label, split",
                where=f"{table}, line {line}",
                hint="use the published table",
            )
        name = f"{row[0]}_{int(row[1]):06d}"
        path = root / f"{name}.mp4"
        if row[3] == "test" and path.is_file():
            items[name] = Item(name, str(path), conditions={"label": row[2]})
    return found(items, root, "no test clip of VGGSound is here", "name them ID_000030.mp4")


def read_listed(folder: Path) -> list[Item]:
    """Videos of the list `videos.csv`. Raises UserError without it."""
    require_folder(folder)
    if not (folder / LIST_NAME).is_file():
        raise UserError(
            f"this protocol needs the list {LIST_NAME}",
            where=folder,
            hint="columns video, text, voice, image, truth; any other is a condition",
        )
    return list_videos(folder)


def require_folder(folder: Path) -> None:
    """Raise UserError if there is no folder."""
    if not folder.is_dir():
        raise UserError("no folder of videos here", where=folder, hint="name the folder of the test set")


def found(items: Mapping[str, Item], folder: Path, what: str, hint: str) -> list[Item]:
    """The items. Raises UserError if there are none."""
    if not items:
        raise UserError(what, where=folder, hint=hint)
    return list(items.values())


PROTOCOLS: dict[str, Protocol] = {
    "paper": Protocol(list_videos, "UniAVGen's metrics on your own prompts: its test set is not public"),
    "verse-bench": Protocol(read_listed, "Verse-Bench's prompts, in a videos.csv"),
    "vggsound": Protocol(read_vggsound, "video to audio: vggsound.csv and ID_START.mp4"),
    "grid": Protocol(read_grid, "dubbing: s1/bbaf2n.mpg, with .align files or without"),
    "emtd": Protocol(read_listed, "half-body talks of EchoMimicV2, in a videos.csv"),
}
"""By the name of `--protocol`."""
