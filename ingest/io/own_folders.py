"""Folders that this program wrote, whose videos are no sources: a corpus, a training run, MLflow's
artifacts.
"""

from __future__ import annotations

import glob
import os
from functools import cache

from uniavgen.shards.corpus.schema import KEYS

CORPUS = "a corpus of this program"
STAGE = "a training stage of this program"
SAMPLES = "samples of a training run"
ARTIFACTS = "artifacts of MLflow"

_IN_CORPUS = frozenset(KEYS) | {"media", "measured", "shards", "report"}
"""Folders in a corpus that hold what this program wrote; a user may keep videos in others."""


def prune_own_folders(root: str, folders: list[str], names: list[str], top: bool) -> dict[str, str]:
    """One step of `os.walk`: remove the program's own folders from `folders`, or all of them where `root` is
    one; `top` for the folder where the walk starts. Returns what was removed: path -> what it is.
    """
    kind = "" if top else _kind_of(root)
    if kind:
        folders.clear()
        names.clear()
        return {root: kind}
    kinds = {name: _kind_in(root, name) for name in folders}
    folders[:] = [name for name in folders if not kinds[name]]
    return {os.path.join(root, name): kind for name, kind in kinds.items() if kind}


def own_folder_of(path: str) -> str:
    """What of this program's own a file or folder is or lies in, links followed; "" if nothing.

    Folders are looked at once: `look_again` forgets what was seen.
    """
    target = os.path.realpath(path)
    if os.path.isdir(target):
        return _kind_of(target) or _own_parent(target)
    return _own_parent(target)


def look_again() -> None:
    """Forget what `own_folder_of` has seen."""
    _own_parent_folder.cache_clear()


def _own_parent(path: str) -> str:
    folder, name = os.path.split(path)
    return _kind_in(folder, name) or _own_parent_folder(folder)


@cache
def _own_parent_folder(folder: str) -> str:
    """What the folder is as a parent, or one of its own parents."""
    if os.path.isfile(os.path.join(folder, "stage.json")):
        return STAGE
    parent, name = os.path.split(folder)
    if parent == folder:
        return ""
    return _kind_in(parent, name) or _own_parent_folder(parent)


def _kind_of(folder: str) -> str:
    """What a folder is by the files in it."""
    if os.path.isfile(os.path.join(folder, "corpus.json")):
        return CORPUS
    return STAGE if os.path.isfile(os.path.join(folder, "stage.json")) else ""


def _kind_in(root: str, name: str) -> str:
    """What `name` in the folder `root` is by what lies beside it."""
    if (name in _IN_CORPUS or name.startswith(".")) and os.path.isfile(os.path.join(root, "corpus.json")):
        return CORPUS
    if name == "mlruns" or (name == "artifacts" and os.path.isfile(os.path.join(root, "mlflow.db"))):
        return ARTIFACTS
    if name == "samples" and glob.glob(os.path.join(glob.escape(root), "*", "stage.json")):
        return SAMPLES
    return ""
