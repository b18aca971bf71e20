"""Starts a stage through Ray Train and says what came of it.

In: a TrainConfig, the name of a stage, a shards folder, a run folder. Out: StageResult. Ray is the one that runs
already, the cluster that RAY_ADDRESS names, or one on this machine. On several nodes both folders must be shared by all.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from uniavgen.shards.cluster import ray_running
from uniavgen.shards.errors import Stopped, UserError
from uniavgen.train.checkpoint.run_folder import RunFolder, changed_fields
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.engine.deepspeed_compat import import_lean

if TYPE_CHECKING:
    from uniavgen.train.trainer import Job, MetricsFactory


PATIENCE_S = 7200
"""Seconds that workers wait for one another before they give up: the first one alone converts a checkpoint or writes the
weights of billions of parameters, maybe into a slow folder. A worker that is lost Ray notices by itself."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage. `ran` is False where it had been finished before; the figures are those of `train.meters.Outcome`."""

    stage: str
    ran: bool
    steps: int
    seconds: float
    loss_start: dict[str, float]
    loss_end: dict[str, float]
    fixed_start: dict[str, float]
    fixed_end: dict[str, float]
    samples_per_s: float
    data_wait_share: float
    counts: dict[str, float]
    parameters: dict[str, int]
    key_report: list[str]
    checkpoint: Path
    weights: Path
    wall_seconds: float


def run_stage(
    config: TrainConfig,
    stage: str,
    shards_dir: str | Path,
    run_dir: str | Path,
    on_metrics_factory: MetricsFactory | None = None,
    *,
    accept_changes: bool = False,
) -> StageResult:
    """Train a stage, or go on from its last checkpoint, or do nothing where it is done.

    `on_metrics_factory()` runs in the first worker and gives the function that receives (steps done, metrics). Raises
    UserError for a stage without its predecessor, a configuration changed since it began (unless `accept_changes`), too few
    CPUs or GPUs, and failing workers; Stopped where SIGTERM, Ctrl-C or a file `<stage>/stop` asked for it, once the workers
    have saved after the step they were at.
    """
    began = time.monotonic()
    folder = RunFolder(run_dir, stage)
    if check_stage(config, stage, shards_dir, run_dir, accept_changes=accept_changes):
        return _result(folder, ran=False, began=began)
    folder.write(config=config.model_dump(mode="json"), done=False)
    with ray_running():
        device = _device(config)
        job = _job(config, stage, shards_dir, run_dir, device, on_metrics_factory, accept_changes)
        with _stop_asked(folder) as signals:
            _fit(config, folder, device, job)
    if not folder.done:
        raise Stopped(
            f"stopped after step {folder.steps()[-1]} of stage {stage}, which is saved",
            where=folder.path,
            hint="run the same command again to go on",
            code=128 + (signals[0] if signals else signal.SIGINT),
        )
    return _result(folder, ran=True, began=began)


def check_stages(
    config: TrainConfig,
    stages: Sequence[str],
    shards_dir: str | Path,
    run_dir: str | Path,
    *,
    accept_changes: bool = False,
) -> bool:
    """Whether all of these stages are done already; raises as `check_stage` does, before the first of them takes its days."""
    done = [
        check_stage(config, stage, shards_dir, run_dir, accept_changes=accept_changes, after=stages[:place])
        for place, stage in enumerate(stages)
    ]
    return all(done)


def check_stage(
    config: TrainConfig,
    stage: str,
    shards_dir: str | Path,
    run_dir: str | Path,
    *,
    accept_changes: bool = False,
    after: Sequence[str] = (),
) -> bool:
    """Whether a stage is done already; touches nothing. The stages `after` which it comes are trained by then.

    Raises UserError where it cannot be trained: its predecessor is not done, its plan changed since it was (unless
    `accept_changes`: then it stands as it is), its batch does not split, or there are no shards.
    An index of audio shards may be written.
    """
    plan = config.stage(stage)
    folder = RunFolder(run_dir, stage)
    if folder.done:
        if not accept_changes:
            _check_same_plan(folder, folder.read(), config, stage)
        return True
    if plan.takes_from and plan.takes_from not in after and not RunFolder(run_dir, plan.takes_from).done:
        raise UserError(
            f"stage {stage} starts from stage {plan.takes_from}, which is not done",
            where=Path(run_dir).absolute() / plan.takes_from,
            hint=f"run first: uniavgen train {plan.takes_from}",
            kind="missing-stage",
        )
    config.micro_batch(plan, config.workers)
    _check_data(config, plan, shards_dir, run_dir)
    return False


def _check_same_plan(folder: RunFolder, known: dict[str, Any], config: TrainConfig, stage: str) -> None:
    """A finished stage answers for the plan it was trained with, not for another."""
    from uniavgen.train.checkpoint.resume import NO_MATTER, settings_that_matter

    try:
        before = TrainConfig.model_validate(known["config"])
    except (KeyError, ValidationError) as error:
        raise UserError(
            "stage.json holds no readable plan", where=folder.path, hint="use another --run folder"
        ) from error
    then, now = (
        settings_that_matter(before, before.stage(stage)),
        settings_that_matter(config, config.stage(stage)),
    )
    changed = changed_fields(then, now, ignore=NO_MATTER)
    if changed:
        raise UserError(
            f"stage {stage} is done, with another {', '.join(changed[:4])}",
            where=folder.path,
            hint="use another --run folder for the new plan, or delete the stage's folder to train it again",
            kind="changed-configuration",
        )


def _check_data(config: TrainConfig, stage: StageConfig, shards_dir: str | Path, run_dir: str | Path) -> None:
    from uniavgen.shards.read.stream import SampleStream
    from uniavgen.train.data.stage_stream import open_stream

    open_stream(config, stage, str(shards_dir), str(run_dir))
    # audio shards have no val of their own: validation keeps to the corpus's clips
    if config.validation.every or (config.validation.films and stage.has_video):
        SampleStream(str(shards_dir), "val")


def _job(
    config: TrainConfig,
    stage: str,
    shards_dir: str | Path,
    run_dir: str | Path,
    device: str,
    factory: MetricsFactory | None,
    accept_changes: bool,
) -> Job:
    from uniavgen.train.trainer import Job

    shards = str(shards_dir) if "://" in str(shards_dir) else str(Path(shards_dir).absolute())
    return Job(config, stage, shards, str(Path(run_dir).absolute()), device, factory, accept_changes)


def _device(config: TrainConfig) -> str:
    """The device that the workers use. Raises UserError where the cluster is too small for them."""
    import ray

    there = ray.cluster_resources()
    gpus, cpus, wanted = there.get("GPU", 0), there.get("CPU", 0), config.workers * config.cpus_per_worker
    device = config.device if config.device != "auto" else ("cuda" if gpus >= config.workers else "cpu")
    if device == "cuda" and gpus < config.workers:
        raise UserError(
            f"{config.workers} workers need {config.workers} GPUs, Ray has {gpus:g}",
            hint="lower train.workers",
            kind="too-small",
        )
    if cpus < wanted:
        raise UserError(
            f"{config.workers} workers need {wanted} CPUs, Ray has {cpus:g}",
            hint="lower train.workers or train.cpus_per_worker",
            kind="too-small",
        )
    return device


def _fit(config: TrainConfig, folder: RunFolder, device: str, job: Job) -> None:
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from uniavgen.train.engine.failures import Restarts, failure_path, told

    failure_path(folder).unlink(missing_ok=True)
    # Ray Train knows this from its environment alone, and hands it to its controller
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(config.room_wait_s)
    restarts = config.max_restarts
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if device == "cuda" else "gloo", timeout_s=PATIENCE_S),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=device == "cuda",
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if device == "cuda" else {})},
        ),
        run_config=RunConfig(
            name=folder.stage,
            storage_path=str(folder.path / ".ray"),
            # by default Ray waits without end for room, and for nodes that are taken away
            failure_config=FailureConfig(
                max_failures=restarts, controller_failure_limit=restarts, max_preemption_failures=restarts
            ),
            callbacks=[Restarts(job.run_dir, job.stage, restarts)],
        ),
    )
    try:
        _beside(trainer.fit)
    except (TrainingFailedError, RayError) as error:
        raise told(folder, error, config) from error


@contextmanager
def _stop_asked(folder: RunFolder) -> Iterator[list[int]]:
    """While it lasts, a first SIGTERM or Ctrl-C asks the workers to save and leave; a second one ends it at once.

    Gives the list of signals that came. The request is a file in the run folder, which workers on any node see.
    """
    folder.stop_request.unlink(missing_ok=True)
    came: list[int] = []

    def ask(number: int, frame: object) -> None:
        came.append(number)
        if len(came) > 1:
            raise KeyboardInterrupt
        folder.stop_request.touch()
        folder.tell("stopping", "asked to stop: the workers save after this step (once more to end at once)")

    here = threading.current_thread() is threading.main_thread()
    before = (
        {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)} if here else {}
    )
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        folder.stop_request.unlink(missing_ok=True)


def _beside(work: Callable[[], object]) -> None:
    """Call `work` in a thread and wait for it: in the main thread Ray would answer Ctrl-C itself, by dropping the workers."""
    failed: list[BaseException] = []

    def call() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # signals are answered in between
    if failed:
        raise failed[0]


def _work(given: dict[str, Any]) -> None:
    """The body of a Ray Train worker: train, or leave word of why not and fail."""
    job: Job = given["job"]
    import_lean(job.device)
    import torch

    torch.set_num_threads(job.config.cpus_per_worker)
    folder = RunFolder(job.run_dir, job.stage)
    try:
        from uniavgen.train.trainer import train_stage

        train_stage(job)
    except Exception as error:
        from uniavgen.train.engine.failures import leave_word
        from uniavgen.train.planning import out_of_memory

        config = job.config
        told = out_of_memory(error, config, config.stage(job.stage), job.device)
        leave_word(folder, told or error)
        if told:
            raise told from error
        raise


def _result(folder: RunFolder, *, ran: bool, began: float) -> StageResult:
    content = folder.read()
    steps = folder.steps()
    return StageResult(
        stage=folder.stage,
        ran=ran,
        **content["outcome"],
        key_report=content.get("key_report", []),
        checkpoint=folder.checkpoint(steps[-1]) if steps else folder.checkpoints,
        weights=folder.weights,
        wall_seconds=time.monotonic() - began,
    )
