"""Progress: counts by step, owners of contents, and metrics exported by Ray under the documented names."""

import time
import urllib.request

import pytest

from uniavgen.ingest.engine.progress import Reporter, RunState, StepProgress
from uniavgen.ingest.measures.registry import STEPS

STEP_NAMES = tuple(step.name for step in STEPS)


def by_step(state: RunState, sources: int) -> dict[str, StepProgress]:
    return {step.name: step for step in state.step_progress(sources)}


def test_every_source_is_done_running_queued_or_failed_in_every_step() -> None:
    state = RunState(STEP_NAMES)
    state.end_step("a", {"fetch": 0.5}, 0.0)
    state.end_step("a", {"probe": 0.1}, 10.0)
    state.end_step("b", {"fetch": 0.5}, 0.0)
    state.end_step("b", {"probe": 0.2}, 0.0, failed="probe", kind="not-a-video")
    state.start_step("a", "diarize")
    state.count_duplicate("c")
    found = by_step(state, 4)
    assert [(s.done, s.running, s.queued, s.failed) for s in (found["fetch"], found["probe"])] == [
        (2, 0, 1, 0),
        (1, 0, 1, 1),
    ]
    # b failed earlier and c is a duplicate: neither is queued
    assert (found["diarize"].running, found["diarize"].queued, found["cut"].queued) == (1, 1, 2)
    assert (found["probe"].video_seconds, round(found["probe"].seconds, 3)) == (10.0, 0.3)
    assert tuple(found) == STEP_NAMES


def test_source_past_a_later_step_is_not_queued() -> None:
    state = RunState(STEP_NAMES)
    state.count_reused(["probe", "diarize", "transcribe", "faces", "shots"])
    found = by_step(state, 2)
    assert (found["sound"].queued, found["fetch"].queued, found["decode"].queued) == (1, 1, 1)
    assert (found["shots"].queued, found["cut"].queued, found["shots"].done) == (1, 2, 0)


def test_repeated_step_counts_time_but_no_source() -> None:
    state = RunState(STEP_NAMES)
    state.end_step("a", {"sound": 1.0}, 9.0)
    state.end_step("a", {"sound": 1.0}, 9.0, repeated=True)
    step = state.totals()["sound"]
    assert (step.done, step.seconds, step.video_seconds) == (1, 2.0, 9.0)


def test_shared_pass_counts_each_of_its_steps() -> None:
    state = RunState(STEP_NAMES)
    state.end_step("a", {"decode": 1.0, "faces": 5.0, "shots": 2.0}, 30.0)
    totals = state.totals()
    assert [
        (totals[name].done, totals[name].seconds) for name in ("decode", "faces", "shots", "picture")
    ] == [
        (1, 1.0),
        (1, 5.0),
        (1, 2.0),
        (0, 0.0),
    ]


def test_first_claim_owns_content_and_moved_file_takes_over() -> None:
    state = RunState(STEP_NAMES, {"old": "/v/before.mp4"})
    assert state.claim("new", "/v/b.mp4") == "/v/b.mp4"
    assert state.claim("new", "/v/a.mp4") == "/v/b.mp4"
    assert state.claim("new", "/v/b.mp4") == "/v/b.mp4"
    assert state.claim("old", "/v/after.mp4") == "/v/before.mp4"
    assert state.claim("old", "/v/after.mp4", instead_of="/v/before.mp4") == "/v/after.mp4"
    assert state.claim("old", "/v/third.mp4", instead_of="/v/before.mp4") == "/v/after.mp4"


def exported(port: int) -> dict[str, float]:
    """Samples of `uniavgen_*` at a Ray node's metrics port, by name and own tags."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("ray_uniavgen_"):
            sample, value = line.rsplit(" ", 1)
            name, _, tags = sample.partition("{")
            tags_kept = [
                tag for tag in tags.rstrip("}").split(",") if tag.split("=")[0] in ("step", "kind", "le")
            ]
            found[f"{name.removeprefix('ray_')} {' '.join(sorted(tags_kept))}".strip()] = float(value)
    return found


@pytest.mark.slow
def test_ray_exports_steps_failures_and_video() -> None:
    import ray

    often = {"metrics_report_interval_ms": 500}  # ten seconds otherwise
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=often)
    try:
        state = ray.remote(num_cpus=0)(RunState).remote(STEP_NAMES)
        reporter = Reporter(state)
        reporter.end_step("a", {"faces": 2.0, "shots": 0.2}, 30.0)
        reporter.end_step("b", {"faces": 4.0}, 12.0)
        reporter.end_step("b", {"faces": 1.0}, 12.0, repeated=True)
        reporter.end_step("c", {"probe": 0.1}, 0.0, failed="probe", kind="not-a-video")
        reporter.start_step("d", "shots")
        totals = ray.get(state.totals.remote())
        assert (totals["faces"].done, totals["faces"].seconds, totals["probe"].failed) == (2, 7.0, 1)
        (node,) = ray.nodes()
        until = time.monotonic() + 40
        found: dict[str, float] = {}
        while (
            'uniavgen_failures_total kind="not-a-video" step="probe"' not in found
            and time.monotonic() < until
        ):
            time.sleep(0.5)
            found = exported(node["MetricsExportPort"])
    finally:
        ray.shutdown()
    assert found['uniavgen_steps_done_total step="faces"'] == 2
    assert found['uniavgen_video_seconds_total step="faces"'] == 42
    assert found['uniavgen_failures_total kind="not-a-video" step="probe"'] == 1
    assert found['uniavgen_steps_running step="shots"'] == 1
    assert found['uniavgen_step_seconds_count step="faces"'] == 3
