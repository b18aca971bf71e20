"""Caption the kept clips by a vision model: many at a time, resumable, within a budget; a bad answer is a failure row.

In: the clips that the decisions keep, and their pictures. Out: rows of `captions`, keyed by clip, model and prompt, so that
nothing is asked twice; and rows of `failures` with stage `caption` for answers that are no captions.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from uniavgen.curation.captions.embedded_captions import MODEL, caption
from uniavgen.curation.captions.vlm_backends import (
    BadAnswerError,
    Describer,
    UnreachableError,
    make_describer,
)
from uniavgen.curation.config import CaptionConfig
from uniavgen.shards.atomic_files import locked
from uniavgen.shards.corpus.deletion import read_tombstones
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import decode_video

STAGE = "caption"
COMMIT = 64
"""Answers that are committed together (our choice): what a killed run asks for again at most."""

MANY_FILES = 100
"""Table files from which they are put together (our choice)."""


@dataclass
class CaptionSummary:
    """What one run did. `left` clips of the kept ones still have no caption of this model and prompt."""

    model: str
    prompt_digest: str
    kept: int = 0
    captioned: int = 0
    had_one: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    left: int = 0
    tokens: int = 0
    seconds: float = 0.0
    stopped: str = ""
    """Why the run ended before its work did: a budget, or an endpoint that does not answer."""


def load_prompt(config: CaptionConfig) -> tuple[str, str]:
    """The prompt and its digest, over the text and what is shown with it. Raises UserError where the file is absent."""
    shipped = resources.files("uniavgen.curation.captions") / "prompts" / f"{config.prompt}.txt"
    path = Path(config.prompt)
    if shipped.is_file():
        text = shipped.read_text()
    elif path.is_file():
        text = path.read_text(errors="replace")
    else:
        raise UserError(
            "no such prompt", where=config.prompt, hint="name a text file, or talking_head", kind="no-prompt"
        )
    shown = f"{text}\0{config.pictures}\0{config.side}"
    return text, hashlib.sha256(shown.encode()).hexdigest()[:16]


def caption_clips(
    corpus: Corpus,
    config: CaptionConfig,
    on_progress: Callable[[int, int], None] | None = None,
    retry: bool = False,
) -> CaptionSummary:
    """Ask for a caption of every kept clip that has none of this model and prompt.

    With the backend `measurements` there is nothing to ask: the sentence is made when shards are written. Raises UserError
    where nothing was decided, the prompt or the model is missing, or the endpoint refuses.
    """
    began = time.perf_counter()
    prompt, digest = load_prompt(config)
    kept = corpus.query(
        "SELECT clip_id, source_id FROM decisions JOIN clips USING (clip_id) WHERE kept ORDER BY clip_id"
    ).to_pylist()
    if not kept:
        raise UserError(
            "no clip is kept", where=corpus.root, hint="decide first: uniavgen curate", kind="no-decisions"
        )
    summary = CaptionSummary(
        config.model if config.backend != "measurements" else MODEL, digest, kept=len(kept)
    )
    if config.backend == "measurements":
        summary.had_one = len(kept)
        return summary
    with locked(corpus.root / ".captions.lock", "another run captions here"):
        have = _have(corpus, summary.model, digest)
        summary.had_one = sum(row["clip_id"] in have for row in kept)
        failed = set() if retry else _failed(corpus, digest)
        todo = [row for row in kept if row["clip_id"] not in have and row["clip_id"] not in failed]
        if todo:
            job = _Job(
                corpus,
                config,
                make_describer(config),
                prompt,
                summary,
                on_progress or (lambda done, total: None),
            )
            asyncio.run(job.run(todo))
    summary.left = len(kept) - summary.had_one - summary.captioned
    summary.seconds = time.perf_counter() - began
    return summary


def captions_of(corpus: Corpus, config: CaptionConfig) -> Callable[[Mapping[str, Any]], tuple[str, str]]:
    """A clips row to its caption and what made it: the configured model's where it has captioned, else the one model's
    that has; else, and for clips without one, the sentence from the measurements.

    Raises UserError where several models have captioned and the configuration names none of them.
    """
    import pyarrow.compute as pc

    table = corpus.read("captions", ["clip_id", "caption", "model", "prompt_digest"])
    pairs = table.group_by(["model", "prompt_digest"]).aggregate([]).to_pylist()
    made = {(row["model"], row["prompt_digest"]) for row in pairs}
    wanted = {key for key in made if key == (config.model, load_prompt(config)[1])} or made
    if len(wanted) > 1:
        named = ", ".join(f"{model} ({digest})" for model, digest in sorted(wanted))
        raise UserError(
            f"captions of several models or prompts: {named}", hint="name one: --set caption.model=NAME"
        )
    if not wanted:
        return caption
    ((model, digest),) = wanted
    own = table.filter((pc.field("model") == model) & (pc.field("prompt_digest") == digest))
    found = dict(zip(own["clip_id"].to_pylist(), own["caption"].to_pylist(), strict=True))
    return lambda row: (text, model) if (text := found.get(row["clip_id"])) else caption(row)


def pictures_of(corpus: Corpus, clip: str, count: int, side: int) -> list[bytes]:
    """`count` pictures at equal distances as JPEG, longest side at most `side` pixels. Raises OSError or UserError."""
    import numpy as np
    from PIL import Image

    frames = decode_video(corpus.media_path(clip, "mp4").read_bytes())
    at = np.unique(((np.arange(count) + 0.5) * len(frames) / count).astype(int))
    files = []
    for index in at:
        image = Image.fromarray(frames[index])
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


class _Job:
    """One run over the clips that need a caption."""

    def __init__(
        self,
        corpus: Corpus,
        config: CaptionConfig,
        describer: Describer,
        prompt: str,
        summary: CaptionSummary,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.corpus, self.config, self.describer, self.prompt = corpus, config, describer, prompt
        self.summary, self.on_progress = summary, on_progress
        self._captions: list[dict[str, Any]] = []
        self._failures: list[dict[str, Any]] = []
        self._asked = self._done = self._unreachable = 0
        self._attempts = _attempts(corpus)
        self._erasures = read_tombstones(corpus.root).deletions

    async def run(self, todo: list[dict[str, Any]]) -> None:
        """Workers take clips from one iterator, so that no more than `concurrency` requests are under way."""
        clips = iter(todo)

        async def work() -> None:
            for row in clips:
                if self._over():
                    return
                self._asked += 1
                await self._one(row)
                self._done += 1
                self.on_progress(self._done, len(todo))

        refused: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.config.concurrency if self.config.backend == "openai" else 1):
                    group.create_task(work())
        except* UserError as errors:
            refused = errors.exceptions[0]  # raised in here it would come out as a group again
        finally:
            self._commit()
        if refused:
            raise refused

    def _over(self) -> bool:
        config, summary = self.config, self.summary
        if self._unreachable >= config.give_up_after:
            summary.stopped = summary.stopped or f"{self._unreachable} requests in a row were not answered"
        elif config.budget_requests and self._asked >= config.budget_requests:
            summary.stopped = f"the budget of {config.budget_requests} requests is used up"
        elif config.budget_tokens and summary.tokens >= config.budget_tokens:
            summary.stopped = f"the budget of {config.budget_tokens} tokens is used up"
        return bool(summary.stopped)

    async def _one(self, row: dict[str, Any]) -> None:
        began = time.perf_counter()
        try:
            pictures = await asyncio.to_thread(
                pictures_of, self.corpus, row["clip_id"], self.config.pictures, self.config.side
            )
            found = await self.describer.describe(pictures, self.prompt)
        except UnreachableError as error:
            self._unreachable += 1
            self.summary.stopped = f"the endpoint does not answer: {error}" if self._over() else ""
            return
        except BadAnswerError as error:
            self._fail(row, "bad-answer", str(error))
            return
        except (OSError, ValueError) as error:
            self._fail(row, "no-pictures", str(error))
            return
        except UserError as error:
            if error.kind != "damaged-sample":
                raise
            self._fail(row, "no-pictures", str(error))
            return
        self._unreachable = 0
        summary = self.summary
        summary.captioned += 1
        summary.tokens += found.tokens
        made = {
            "clip_id": row["clip_id"],
            "caption": found.text,
            "model": summary.model,
            "prompt_digest": summary.prompt_digest,
        }
        made |= {"caption_id": caption_id(row["clip_id"], summary.model, summary.prompt_digest)}
        self._captions.append(made | {"tokens": found.tokens, "seconds": time.perf_counter() - began})
        self._commit_if_many()

    def _fail(self, row: dict[str, Any], kind: str, message: str) -> None:
        self._unreachable = 0
        self.summary.failed[kind] = self.summary.failed.get(kind, 0) + 1
        uri = _failure_uri(row["clip_id"])
        self._failures.append(
            {
                "uri": uri,
                "stage": STAGE,
                "error_type": kind,
                "message": message,
                "source_id": row["source_id"],
                "attempts": self._attempts.get(uri, 0) + 1,
                "digest": self.summary.prompt_digest,
            }
        )
        self._commit_if_many()

    def _commit_if_many(self) -> None:
        if len(self._captions) + len(self._failures) >= COMMIT:
            self._commit()

    def _commit(self) -> None:
        """The lock is held and the clips had no caption, so that these are new rows: what they cost does not grow."""
        with self.corpus.writing():
            gone = read_tombstones(self.corpus.root).deletions != self._erasures
            there = self._still_there() if gone else None
            captions = [row for row in self._captions if there is None or row["clip_id"] in there]
            failures = [
                row for row in self._failures if there is None or row["uri"].removeprefix("clip:") in there
            ]
            self.corpus.append("captions", captions)
            told = {_failure_uri(row["clip_id"]) for row in captions} & self._attempts.keys()
            self.corpus.remove("failures", sorted(told))
            if any(row["uri"] in self._attempts for row in failures):
                self.corpus.upsert("failures", failures)
            else:
                self.corpus.append("failures", failures)
            self.corpus.compact("captions", MANY_FILES)
        self._captions, self._failures = [], []

    def _still_there(self) -> set[str]:
        """Those of the clips at hand that nobody has forgotten meanwhile."""
        at_hand = [row["clip_id"] for row in self._captions]
        at_hand += [row["uri"].removeprefix("clip:") for row in self._failures]
        return set(self.corpus.read("clips", ["clip_id"], only=("clip_id", at_hand))["clip_id"].to_pylist())


def caption_id(clip: str, model: str, prompt_digest: str) -> str:
    """Identity of a caption: what is asked of whom about which clip."""
    return hashlib.sha256(f"{clip}\0{model}\0{prompt_digest}".encode()).hexdigest()[:20]


def _failure_uri(clip: str) -> str:
    return f"clip:{clip}"


def _have(corpus: Corpus, model: str, digest: str) -> set[str]:
    rows = corpus.read("captions", ["clip_id", "model", "prompt_digest"]).to_pylist()
    return {row["clip_id"] for row in rows if (row["model"], row["prompt_digest"]) == (model, digest)}


def _failed(corpus: Corpus, digest: str) -> set[str]:
    rows = corpus.read("failures", ["uri", "stage", "digest"]).to_pylist()
    return {
        row["uri"].removeprefix("clip:") for row in rows if row["stage"] == STAGE and row["digest"] == digest
    }


def _attempts(corpus: Corpus) -> dict[str, int]:
    rows = corpus.read("failures", ["uri", "stage", "attempts"]).to_pylist()
    return {row["uri"]: row["attempts"] for row in rows if row["stage"] == STAGE}
