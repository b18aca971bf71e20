"""Caption the kept clips with a vision-language model: concurrent, resumable, within a budget.

Captions are rows of `captions`, keyed by clip, model and prompt, so that no clip is asked about twice. An
answer that is not a caption becomes a row of `failures` with stage `caption`.
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

from uniavgen.curation.captions.embedded_captions import MODEL, caption_from_measurements
from uniavgen.curation.captions.vlm_backends import (
    BadAnswerError,
    UnreachableError,
    VlmBackend,
    make_backend,
)
from uniavgen.curation.config import CaptionConfig
from uniavgen.shards.atomic_files import locked
from uniavgen.shards.corpus.deletion import read_tombstones
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError
from uniavgen.shards.sample import decode_video
from uniavgen.shards.text_files import read_text

STAGE = "caption"
"""Value of `failures.stage`."""

COMMIT_EVERY = 64
"""Answers per commit: a killed run asks for at most so many again. Heuristic."""

COMPACT_FROM_FILES = 100
"""Files of the captions table from which it is compacted. Heuristic."""


@dataclass
class CaptionSummary:
    """What one run did. `left` kept clips still have no caption of this model and prompt."""

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
    """Why the run ended early: a budget, or an endpoint that does not answer."""


def load_prompt(config: CaptionConfig) -> tuple[str, str]:
    """The prompt and the digest of its text, frame count and frame size.

    Raises UserError if the file is missing.
    """
    shipped = resources.files("uniavgen.curation.captions") / "prompts" / f"{config.prompt}.txt"
    path = Path(config.prompt)
    if shipped.is_file():
        text = shipped.read_text()
    elif path.is_file():
        text = read_text(path, "the prompt")
    else:
        raise UserError(
            "no such prompt", where=config.prompt, hint="name a text file, or talking_head", kind="no-prompt"
        )
    request = f"{text}\0{config.pictures}\0{config.side}"
    return text, hashlib.sha256(request.encode()).hexdigest()[:16]


def caption_clips(
    corpus: Corpus,
    config: CaptionConfig,
    on_progress: Callable[[int, int], None] | None = None,
    retry: bool = False,
) -> CaptionSummary:
    """Ask for a caption of every kept clip that has none of this model and prompt.

    The backend `measurements` asks nothing: its captions are made when shards are written. `retry` asks again
    about clips that failed. Raises UserError if no clip is kept, the prompt or the model is missing, or the
    endpoint refuses.
    """
    started = time.perf_counter()
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
    with locked(corpus.root / ".captions.lock", "another caption run uses this corpus"):
        captioned = _captioned_clips(corpus, summary.model, digest)
        summary.had_one = sum(row["clip_id"] in captioned for row in kept)
        failed = set() if retry else _failed_clips(corpus, digest)
        todo = [row for row in kept if row["clip_id"] not in captioned and row["clip_id"] not in failed]
        if todo:
            job = _CaptionJob(
                corpus,
                config,
                make_backend(config),
                prompt,
                summary,
                on_progress or (lambda done, total: None),
            )
            asyncio.run(job.run(todo))
    summary.left = len(kept) - summary.had_one - summary.captioned
    summary.seconds = time.perf_counter() - started
    return summary


def captions_of(corpus: Corpus, config: CaptionConfig) -> Callable[[Mapping[str, Any]], tuple[str, str]]:
    """A function from a row of the clips table to its caption and the caption's model.

    Captions of the configured model and prompt, else of the only model in the table; a clip without one is
    captioned from its measurements. Raises UserError if several models have captions and the configuration
    names none of them.
    """
    import pyarrow.compute as pc

    table = corpus.read("captions", ["clip_id", "caption", "model", "prompt_digest"])
    pairs = table.group_by(["model", "prompt_digest"]).aggregate([]).to_pylist()
    available = {(row["model"], row["prompt_digest"]) for row in pairs}
    chosen = {key for key in available if key == (config.model, load_prompt(config)[1])} or available
    if len(chosen) > 1:
        names = ", ".join(f"{model} ({digest})" for model, digest in sorted(chosen))
        raise UserError(
            f"captions of several models or prompts: {names}", hint="name one: --set caption.model=NAME"
        )
    if not chosen:
        return caption_from_measurements
    ((model, digest),) = chosen
    rows = table.filter((pc.field("model") == model) & (pc.field("prompt_digest") == digest))
    captions = dict(zip(rows["clip_id"].to_pylist(), rows["caption"].to_pylist(), strict=True))
    return lambda row: (
        (text, model) if (text := captions.get(row["clip_id"])) else caption_from_measurements(row)
    )


def frames_as_jpeg(corpus: Corpus, clip: str, count: int, side: int) -> list[bytes]:
    """`count` evenly spaced frames as JPEG, longest side at most `side` pixels.

    Raises OSError or UserError.
    """
    import numpy as np
    from PIL import Image

    frames = decode_video(corpus.media_path(clip, "mp4").read_bytes())
    indices = np.unique(((np.arange(count) + 0.5) * len(frames) / count).astype(int))
    files = []
    for index in indices:
        image = Image.fromarray(frames[index])
        image.thumbnail((side, side))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        files.append(buffer.getvalue())
    return files


class _CaptionJob:
    """One run over the clips that need a caption."""

    def __init__(
        self,
        corpus: Corpus,
        config: CaptionConfig,
        backend: VlmBackend,
        prompt: str,
        summary: CaptionSummary,
        on_progress: Callable[[int, int], None],
    ) -> None:
        self.corpus, self.config, self.backend, self.prompt = corpus, config, backend, prompt
        self.summary, self.on_progress = summary, on_progress
        self._captions: list[dict[str, Any]] = []
        self._failures: list[dict[str, Any]] = []
        self._asked = self._done = self._unreachable = 0
        self._attempts = _attempts(corpus)
        self._deletions = read_tombstones(corpus.root).deletions

    async def run(self, todo: list[dict[str, Any]]) -> None:
        """Caption the clips.

        Workers share one iterator, so that at most `concurrency` requests run at a time.
        """
        clips = iter(todo)

        async def work() -> None:
            for row in clips:
                if self._must_stop():
                    return
                self._asked += 1
                await self._caption(row)
                self._done += 1
                self.on_progress(self._done, len(todo))

        refusal: BaseException | None = None
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self.config.concurrency if self.config.backend == "openai" else 1):
                    group.create_task(work())
        except* UserError as errors:
            refusal = errors.exceptions[0]  # raised here it would be wrapped in a group again
        finally:
            self._commit()
        if refusal:
            raise refusal

    def _must_stop(self) -> bool:
        config, summary = self.config, self.summary
        if self._unreachable >= config.give_up_after:
            summary.stopped = summary.stopped or f"{self._unreachable} requests in a row were not answered"
        elif config.budget_requests and self._asked >= config.budget_requests:
            summary.stopped = f"the budget of {config.budget_requests} requests is used up"
        elif config.budget_tokens and summary.tokens >= config.budget_tokens:
            summary.stopped = f"the budget of {config.budget_tokens} tokens is used up"
        return bool(summary.stopped)

    async def _caption(self, row: dict[str, Any]) -> None:
        started = time.perf_counter()
        try:
            frames = await asyncio.to_thread(
                frames_as_jpeg, self.corpus, row["clip_id"], self.config.pictures, self.config.side
            )
            answer = await self.backend.caption(frames, self.prompt)
        except UnreachableError as error:
            self._unreachable += 1
            self.summary.stopped = f"the endpoint does not answer: {error}" if self._must_stop() else ""
            return
        except BadAnswerError as error:
            self._record_failure(row, "bad-answer", str(error))
            return
        except (OSError, ValueError) as error:
            self._record_failure(row, "no-pictures", str(error))
            return
        except UserError as error:
            if error.kind != "damaged-sample":
                raise
            self._record_failure(row, "no-pictures", str(error))
            return
        self._unreachable = 0
        summary = self.summary
        summary.captioned += 1
        summary.tokens += answer.tokens
        self._captions.append(
            {
                "caption_id": caption_id(row["clip_id"], summary.model, summary.prompt_digest),
                "clip_id": row["clip_id"],
                "caption": answer.text,
                "model": summary.model,
                "prompt_digest": summary.prompt_digest,
                "tokens": answer.tokens,
                "seconds": time.perf_counter() - started,
            }
        )
        self._commit_if_many()

    def _record_failure(self, row: dict[str, Any], kind: str, message: str) -> None:
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
        if len(self._captions) + len(self._failures) >= COMMIT_EVERY:
            self._commit()

    def _commit(self) -> None:
        """Append the rows at hand.

        The lock is held and the clips had no caption, so no upsert of the table is needed.
        """
        with self.corpus.writing():
            captions, failures = self._captions, self._failures
            if read_tombstones(self.corpus.root).deletions != self._deletions:
                existing = self._existing_clips()
                captions = [row for row in captions if row["clip_id"] in existing]
                failures = [row for row in failures if row["uri"].removeprefix("clip:") in existing]
            self.corpus.append("captions", captions)
            resolved = {_failure_uri(row["clip_id"]) for row in captions} & self._attempts.keys()
            self.corpus.remove("failures", sorted(resolved))
            if any(row["uri"] in self._attempts for row in failures):
                self.corpus.upsert("failures", failures)
            else:
                self.corpus.append("failures", failures)
            self.corpus.compact("captions", COMPACT_FROM_FILES)
        self._captions, self._failures = [], []

    def _existing_clips(self) -> set[str]:
        """Clips of the rows at hand that were not deleted during this run."""
        clips = [row["clip_id"] for row in self._captions]
        clips += [row["uri"].removeprefix("clip:") for row in self._failures]
        return set(self.corpus.read("clips", ["clip_id"], only=("clip_id", clips))["clip_id"].to_pylist())


def caption_id(clip: str, model: str, prompt_digest: str) -> str:
    """Key of a caption: clip, model and prompt."""
    return hashlib.sha256(f"{clip}\0{model}\0{prompt_digest}".encode()).hexdigest()[:20]


def _failure_uri(clip: str) -> str:
    return f"clip:{clip}"


def _captioned_clips(corpus: Corpus, model: str, digest: str) -> set[str]:
    rows = corpus.read("captions", ["clip_id", "model", "prompt_digest"]).to_pylist()
    return {row["clip_id"] for row in rows if (row["model"], row["prompt_digest"]) == (model, digest)}


def _failed_clips(corpus: Corpus, digest: str) -> set[str]:
    rows = corpus.read("failures", ["uri", "stage", "digest"]).to_pylist()
    return {
        row["uri"].removeprefix("clip:") for row in rows if row["stage"] == STAGE and row["digest"] == digest
    }


def _attempts(corpus: Corpus) -> dict[str, int]:
    rows = corpus.read("failures", ["uri", "stage", "attempts"]).to_pylist()
    return {row["uri"]: row["attempts"] for row in rows if row["stage"] == STAGE}
