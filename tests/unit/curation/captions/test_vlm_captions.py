"""Captioning with a chat-completions HTTP server, and with a tiny local model."""

import base64
import contextlib
import io
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from PIL import Image

from uniavgen.curation.captions.vlm_backends import BadAnswerError, parse_caption
from uniavgen.curation.captions.vlm_captions import caption_clips, captions_of, load_prompt
from uniavgen.curation.config import CaptionConfig
from uniavgen.curation.deletion import delete, find_source
from uniavgen.curation.policy.decisions import decide
from uniavgen.curation.policy.rules import load_policy
from uniavgen.shards.corpus.tables import Corpus
from uniavgen.shards.errors import UserError

Make = Callable[..., Any]
GOOD = "A grey room with a bright disc that wanders to the right."


@dataclass
class Server:
    """Requests received, and answers: status and text by request number, else `always`, else `GOOD`."""

    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    answers: dict[int, tuple[int, str]] = field(default_factory=dict)
    always: tuple[int, str] | None = None
    concurrent: int = 0
    max_concurrent: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def completion(text: str) -> str:
    message = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    usage = {"prompt_tokens": 90, "completion_tokens": 10, "total_tokens": 100}
    return json.dumps(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [message],
            "usage": usage,
        }
    )


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                number = len(state.requests)
                state.requests.append(body | {"path": self.path, "key": self.headers["Authorization"]})
                state.concurrent += 1
                state.max_concurrent = max(state.max_concurrent, state.concurrent)
            status, text = state.answers.get(number) or state.always or (200, completion(GOOD))
            threading.Event().wait(0.05)
            with state.lock:
                state.concurrent -= 1
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Retry-After", "0")
            self.end_headers()
            with contextlib.suppress(BrokenPipeError):  # a client that gave up
                self.wfile.write(text.encode())

        def log_message(self, *_: Any) -> None: ...

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{http.server_port}/v1"
    yield state
    http.shutdown()


@pytest.fixture
def corpus(make_corpus: Make, make_clip: Make) -> Corpus:
    made: Corpus = make_corpus(
        [make_clip(f"s{i}", 0.0, f"p{i}") for i in range(6)] + [make_clip("s9", 0.0, "p", snr_db=0.0)]
    )
    decide(made, load_policy("default"))
    return made


def config(server: Server, **changes: Any) -> CaptionConfig:
    values = {
        "backend": "openai",
        "model": "qwen",
        "base_url": server.url,
        "concurrency": 3,
        "retries": 2,
        "pictures": 2,
    }
    return CaptionConfig.model_validate(values | changes)


def test_kept_clips_are_captioned_once_from_their_frames(
    corpus: Corpus, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    seen = []
    summary = caption_clips(
        corpus, config(server), on_progress=lambda done, total: seen.append((done, total))
    )
    assert (summary.kept, summary.captioned, summary.left, summary.tokens) == (6, 6, 0, 600)
    assert seen[-1] == (6, 6)
    assert 1 < server.max_concurrent <= 3
    request = server.requests[0]
    assert (request["path"], request["key"], request["model"]) == (
        "/v1/chat/completions",
        "Bearer secret",
        "qwen",
    )
    text, *pictures = request["messages"][0]["content"]
    assert text["text"] == load_prompt(config(server))[0]
    image = Image.open(io.BytesIO(base64.b64decode(pictures[0]["image_url"]["url"].partition(",")[2])))
    assert (len(pictures), image.size, image.format) == (2, (128, 96), "JPEG")
    rows = corpus.read("captions").to_pylist()
    assert {(row["caption"], row["model"], row["prompt_digest"]) for row in rows} == {
        (GOOD, "qwen", summary.prompt_digest)
    }
    again = caption_clips(corpus, config(server))
    assert (again.had_one, again.captioned, len(server.requests)) == (6, 0, 6)
    assert caption_clips(corpus, config(server, pictures=3)).captioned == 6


def test_busy_server_is_retried_and_bad_answer_becomes_failure_row(corpus: Corpus, server: Server) -> None:
    server.answers = {
        0: (429, "{}"),
        1: (503, "{}"),
        2: (200, completion("")),
        3: (200, "no json"),
        4: (400, '{"error": "x"}'),
    }
    summary = caption_clips(corpus, config(server, concurrency=1))
    assert (summary.captioned, summary.failed, summary.left) == (3, {"bad-answer": 3}, 3)
    failures = corpus.read("failures").to_pylist()
    assert {(row["stage"], row["error_type"], row["attempts"]) for row in failures} == {
        ("caption", "bad-answer", 1)
    }
    assert any("empty" in row["message"] for row in failures)
    asked = len(server.requests)
    assert caption_clips(corpus, config(server)).captioned == 0
    assert len(server.requests) == asked
    assert caption_clips(corpus, config(server), retry=True).captioned == 3
    assert len(corpus.read("failures")) == 0


def test_bad_answers_are_committed_in_batches_by_one_run_at_a_time(
    corpus: Corpus, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        FileLock(corpus.root / ".captions.lock"),
        pytest.raises(UserError, match="another caption run"),
    ):
        caption_clips(corpus, config(server))
    assert server.requests == []
    monkeypatch.setattr("uniavgen.curation.captions.vlm_captions.COMMIT_EVERY", 2)
    server.always = (200, completion(""))
    rows: list[int] = []

    def count_failures(done: int, total: int) -> None:
        rows.append(len(corpus.read("failures")))

    caption_clips(corpus, config(server, concurrency=1), on_progress=count_failures)
    assert rows == [0, 2, 2, 4, 4, 6]


def test_clip_deleted_during_captioning_gets_no_caption(
    corpus: Corpus, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = find_source(corpus, "s0")

    def delete_midway(done: int, total: int) -> None:
        if done == 3:
            delete(Corpus.open(corpus.root), target)

    caption_clips(corpus, config(server, concurrency=1), on_progress=delete_midway)
    assert set(corpus.read("captions")["clip_id"].to_pylist()).isdisjoint(target.clips)
    assert (len(corpus.read("captions")), len(corpus.read("failures"))) == (5, 0)


def test_budget_stops_run_and_next_run_continues(corpus: Corpus, server: Server) -> None:
    first = caption_clips(corpus, config(server, concurrency=1, budget_requests=2))
    assert (first.captioned, first.left) == (2, 4)
    assert "budget of 2 requests" in first.stopped
    second = caption_clips(corpus, config(server, concurrency=1, budget_tokens=150))
    assert (second.captioned, second.left) == (2, 2)
    assert caption_clips(corpus, config(server)).left == 0


def test_unreachable_server_stops_run_without_failure_rows(corpus: Corpus, server: Server) -> None:
    server.always = (500, "{}")
    summary = caption_clips(corpus, config(server, concurrency=1, retries=0, give_up_after=2))
    assert (summary.captioned, summary.left, summary.failed) == (0, 6, {})
    assert "does not answer" in summary.stopped
    assert len(corpus.read("failures")) == 0
    assert len(server.requests) == 2


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_key_or_model_is_user_error(corpus: Corpus, server: Server, status: int) -> None:
    server.always = (status, '{"error": {"message": "model qwen does not exist"}}')
    with pytest.raises(UserError, match=r"refuses.*caption\.model"):
        caption_clips(corpus, config(server))


def test_captions_of_uses_model_caption_else_measurements(corpus: Corpus, server: Server) -> None:
    caption_clips(corpus, config(server, budget_requests=1, concurrency=1))
    models = {captions_of(corpus, CaptionConfig())(row)[1] for row in corpus.read("clips").to_pylist()}
    assert models == {"qwen", "measurements-v1"}
    caption_clips(corpus, config(server, model="other", budget_requests=1, concurrency=1))
    with pytest.raises(UserError, match=r"several models.*qwen"):
        captions_of(corpus, CaptionConfig())
    models = {captions_of(corpus, config(server))(row)[1] for row in corpus.read("clips").to_pylist()}
    assert models == {"qwen", "measurements-v1"}


@pytest.mark.parametrize(
    ("answer", "complaint"),
    [
        ("", "empty"),
        (None, "empty"),
        ("I'm sorry, I cannot describe people.", "declines"),
        ("A man.", "2 words"),
        ("la " * 300, "300"),
    ],
)
def test_parse_caption_rejects_bad_answers(answer: str | None, complaint: str) -> None:
    with pytest.raises(BadAnswerError, match=complaint):
        parse_caption(answer, CaptionConfig())
    assert parse_caption(f'  "{GOOD}"\n', CaptionConfig()) == GOOD


def test_missing_prompt_model_and_decisions_are_named(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such prompt"):
        load_prompt(CaptionConfig(prompt=str(tmp_path / "none.txt")))
    with pytest.raises(UserError, match=r"caption\.model"):
        caption_clips(corpus, CaptionConfig(backend="openai"))
    with pytest.raises(UserError, match="cannot be loaded"):
        caption_clips(corpus, CaptionConfig(backend="transformers", model=str(tmp_path)))
    with pytest.raises(UserError, match="uniavgen curate"):
        caption_clips(Corpus.create(tmp_path / "empty"), CaptionConfig())


@pytest.mark.slow
def test_local_model_captions_clips(corpus: Corpus, tmp_path: Path) -> None:
    from transformers import (
        BertTokenizerFast,
        BlipConfig,
        BlipForConditionalGeneration,
        BlipImageProcessor,
        BlipProcessor,
    )

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(90))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = BertTokenizerFast(str(tmp_path / "vocab.txt"))
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = size | {
        "vocab_size": len(words),
        "bos_token_id": 2,
        "eos_token_id": 3,
        "sep_token_id": 3,
        "pad_token_id": 0,
    }
    text |= {"encoder_hidden_size": 16}
    model = BlipForConditionalGeneration(
        BlipConfig(text_config=text, vision_config=size | {"image_size": 32, "patch_size": 8})
    )
    model.save_pretrained(tmp_path / "model")
    BlipProcessor(BlipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(
        tmp_path / "model"
    )
    local = CaptionConfig(backend="transformers", model=str(tmp_path / "model"), max_tokens=12, min_words=1)
    summary = caption_clips(corpus, local)
    assert summary.captioned + sum(summary.failed.values()) == 6
    assert summary.captioned, summary.failed
    caption = corpus.read("captions", ["caption"])["caption"][0].as_py()
    assert set(caption.split()) <= set(words)
