"""Imports for inference without what is needed for training and plots."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from uniavgen.ingest.models.lean_imports import UNUSED, lean_imports

LOAD = """
import contextlib, json, sys
import numpy as np, torch
from uniavgen.ingest.config import DiarizationConfig, TranscriptionConfig
from uniavgen.ingest.models import diarizer, transcriber
if sys.argv[1] == "all":
    diarizer.lean_imports = transcriber.lean_imports = contextlib.nullcontext
torch.set_num_threads(1)
diarizer = diarizer.Diarizer(DiarizationConfig())
transcriber = transcriber.Transcriber(TranscriptionConfig())
pcm = (np.random.default_rng(0).normal(size=16_000 * 8) * 3000).astype(np.int16)
scores = diarizer._model.segment(pcm).scores.data
print(json.dumps([len(sys.modules), scores.ravel().tolist()]))
import lightning, matplotlib.pyplot, torchmetrics, transformers, whisperx.vads
lightning.Trainer, matplotlib.pyplot.plot, torchmetrics.Accuracy, transformers.AutoModel
"""


def loaded(imports: str) -> tuple[int, list[float]]:
    """Number of imported modules, and the scores of the segmentation, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LOAD, imports], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    modules, scores = json.loads(done.stdout.splitlines()[-1])
    return modules, scores


@pytest.mark.slow
def test_models_load_with_fewer_modules_and_give_the_same_scores() -> None:
    (few, lean_scores), (all_modules, scores) = loaded("lean"), loaded("all")
    assert lean_scores == scores
    assert max(scores) > min(scores)
    assert few < 0.75 * all_modules


def test_placeholders_do_not_outlive_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uniavgen.ingest.models.lean_imports.UNUSED", ("xml.sax", "colorsys.parts"))
    for name in [name for name in sys.modules if name.startswith("xml.sax")]:
        monkeypatch.delitem(sys.modules, name)
    with lean_imports():
        import xml.sax.handler as placeholder

        class Handler(placeholder.ContentHandler):  # a name of a placeholder is a class without effect
            pass

        Handler(1, option=2)
        assert not hasattr(Handler, "startElement")
    assert not any(name.startswith("xml.sax") for name in sys.modules)
    import xml.sax.handler

    assert hasattr(xml.sax.handler.ContentHandler, "startElement")


def test_imported_modules_stay_as_they_are() -> None:
    import json.decoder as before

    assert "json" not in UNUSED
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uniavgen.ingest.models.lean_imports.UNUSED", ("json.decoder",))
        with lean_imports():
            import json.decoder as inside
    assert inside is before
    assert sys.modules["json.decoder"] is before
