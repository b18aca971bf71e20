"""A user's current folder that is named like a package and holds files named like modules."""

from pathlib import Path

NAMES = (
    "train",
    "ingest",
    "shards",
    "curation",
    "orchestration",
    "test",
    "types",
    "random",
    "queue",
    "ray",
    "numpy",
    "mlflow",
    "uniavgen",
)


def make_hostile_folder(parent: Path) -> Path:
    """A new folder `parent`/uniavgen whose modules end the process that imports them, and leave a mark."""
    folder = parent / "uniavgen"
    folder.mkdir(parents=True)
    for name in NAMES:
        mark = folder / f"{name}.imported"
        (folder / f"{name}.py").write_text(
            f"open({str(mark)!r}, 'w').close()\nraise SystemExit('imported {name}.py')\n"
        )
    return folder


def imported_names(folder: Path) -> list[str]:
    """Modules of the folder that some process imported."""
    return sorted(path.stem for path in folder.glob("*.imported"))
