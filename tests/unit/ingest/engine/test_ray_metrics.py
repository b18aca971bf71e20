"""What workers count is there for Prometheus and Ray's dashboard to read, under the names that the README gives."""

import time
import urllib.request

import pytest

from uniavgen.ingest.engine.run_state import Board, Reporter

pytestmark = pytest.mark.slow


def exported(port: int) -> dict[str, float]:
    """Samples of `uniavgen_*` at a Ray node's metrics port, by name and the tags that are ours."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("ray_uniavgen_"):
            sample, value = line.rsplit(" ", 1)
            name, _, tags = sample.partition("{")
            own = [tag for tag in tags.rstrip("}").split(",") if tag.split("=")[0] in ("step", "kind", "le")]
            found[f"{name.removeprefix('ray_')} {' '.join(sorted(own))}".strip()] = float(value)
    return found


def test_steps_failures_and_video_are_exported() -> None:
    import ray

    often = {"metrics_report_interval_ms": 500}  # ten seconds otherwise
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, _system_config=often)
    try:
        board = ray.remote(num_cpus=0)(Board).remote()
        reporter = Reporter(board)
        reporter.ended("a", {"faces": 2.0, "shots": 0.2}, 30.0)
        reporter.ended("b", {"faces": 4.0}, 12.0)
        reporter.ended("b", {"faces": 1.0}, 12.0, again=True)
        reporter.ended("c", {"probe": 0.1}, 0.0, failed="probe", kind="not-a-video")
        reporter.began("d", "shots")
        totals = ray.get(board.totals.remote())
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
