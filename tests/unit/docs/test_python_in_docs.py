"""The Python blocks of README and docs, and the notebook, run as they are printed."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from paths import ROOT
from test_commands_in_docs import fenced_blocks

from uniavgen.train import generation
from uniavgen.train.config import SamplingConfig

RUN_PAGES = ["README.md", "docs/formats.md", "docs/troubleshooting.md"]


@pytest.mark.parametrize("name", RUN_PAGES)
def test_python_blocks_run(
    name: str, demo_output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (demo_output.parent / "data").symlink_to(demo_output)
    monkeypatch.chdir(demo_output.parent)
    # the text is run as it is, with fewer sampling steps
    monkeypatch.setattr(generation, "SamplingConfig", lambda: SamplingConfig(steps=2))
    blocks = fenced_blocks(ROOT / name, ("python",))
    assert blocks
    for block in blocks:
        exec(compile(block, name, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out
    assert (demo_output.parent / "dubbed.mp4").is_file() == (name == "README.md")


@pytest.mark.slow
def test_the_notebook_runs(demo_output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel chooses inline pictures
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    nbformat.validate(notebook)
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    paths = f"CORPUS, RUN = {str(demo_output / 'corpus')!r}, {str(demo_output / 'run')!r}"
    parameters.source = f"{paths}\nTASK, SAMPLING_STEPS = 'dubbing', 2"
    folder = demo_output.parent
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    assert (folder / "tour.mp4").stat().st_size > 1000
    shown = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 3
