"""Start a training stage through Ray Train, and report its result.

Ray is the one that runs already, the cluster that RAY_ADDRESS names, or a new one on this machine. On several
nodes, shards and run folder must be on shared storage.
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
from uniavgen.train.checkpoint.run_lock import only_driver, only_trainer
from uniavgen.train.config import StageConfig, TrainConfig
from uniavgen.train.engine.deepspeed_compat import import_lean
from uniavgen.train.starting_weights import require_starting_weights

if TYPE_CHECKING:
    from uniavgen.train.trainer import Job, MetricsFactory

COLLECTIVE_TIMEOUT_S = 7200
"""Seconds that ranks wait for one another in a collective call. Rank 0 alone converts a checkpoint or writes
the weights of billions of parameters, perhaps to slow storage. Ray itself notices a worker that is lost."""


@dataclass(frozen=True)
class StageResult:
    """A finished stage.

    `ran` is False if it had been finished before; the numbers are those of `diagnostics.metrics.Outcome`.
    """

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
    """Train a stage, or resume it from its last checkpoint, or do nothing if it is done.

    `on_metrics_factory()` runs on rank 0 and gives the function that receives (steps done, metrics). Raises
    UserError for a stage without its predecessor, a configuration that changed since the stage began (unless
    `accept_changes`), a run folder that another process trains in, too few CPUs or GPUs, and failing workers;
    Stopped if SIGTERM, Ctrl-C or a file `<stage>/stop` asked for it, after the workers saved.
    """
    with only_driver(run_dir):
        return _run_stage(config, stage, shards_dir, run_dir, on_metrics_factory, accept_changes)


def _run_stage(
    config: TrainConfig,
    stage: str,
    shards_dir: str | Path,
    run_dir: str | Path,
    on_metrics_factory: MetricsFactory | None,
    accept_changes: bool,
) -> StageResult:
    """`run_stage` in a run folder that no other process writes."""
    from uniavgen.train.checkpoint.changes import as_begun

    began = time.monotonic()
    folder = RunFolder(run_dir, stage)
    config, kept = as_begun(folder, config, stage, accept=accept_changes)
    if kept and not folder.done:
        text = f"stage {stage} goes on as it began, without {', '.join(kept)}, which are newer"
        folder.log_event("kept", f"{text}; --accept-changes takes what can act", fields=kept)
    if check_stage(config, stage, shards_dir, run_dir, accept_changes=accept_changes):
        return _result(folder, ran=False, began=began)
    if folder.done:
        text = f"stage {stage} is done and is trained further, to step {config.stage(stage).steps}"
        folder.log_event("extended", text)
    folder.write(config=config.model_dump(mode="json"), kept=kept, done=False)
    with ray_running():
        device = _choose_device(config)
        job = _make_job(config, stage, shards_dir, run_dir, device, on_metrics_factory, accept_changes)
        with _stop_on_signal(folder) as signals:
            _fit(config, folder, device, job)
    if not folder.done:
        raise Stopped(
            f"stopped after step {folder.steps()[-1]} of stage {stage}, which is saved",
            where=folder.path,
            hint="run the same command again to resume",
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
    """Whether all of these stages are done.

    Raises as `check_stage` does, before the first of them trains for days.
    """
    done = [
        check_stage(
            config, stage, shards_dir, run_dir, accept_changes=accept_changes, earlier=stages[:number]
        )
        for number, stage in enumerate(stages)
    ]
    return all(done)


def check_stage(
    config: TrainConfig,
    stage: str,
    shards_dir: str | Path,
    run_dir: str | Path,
    *,
    accept_changes: bool = False,
    earlier: Sequence[str] = (),
) -> bool:
    """Whether a stage is done. Nothing is trained; an index of audio shards may be written.

    The `earlier` stages will be trained before it. Raises UserError if it cannot be trained: its predecessor
    is not done, its settings changed since it began (unless `accept_changes`) or cannot change, its batch
    does not split, there are no shards, or fewer samples than a batch are as long as the window.

    A finished stage is not done any more if it gets more steps and `accept_changes`: it is extended.
    """
    from uniavgen.train.checkpoint.changes import as_begun

    folder = RunFolder(run_dir, stage)
    config, _ = as_begun(folder, config, stage, accept=accept_changes)
    stage_config = config.stage(stage)
    if folder.done and not _is_extended(folder, config, stage, accept=accept_changes):
        return True
    _check_checkpoint(folder, config, stage_config, accept=accept_changes)
    source = stage_config.takes_from
    if source and source not in earlier and not RunFolder(run_dir, source).done:
        raise UserError(
            f"stage {stage} starts from stage {source}, which is not done",
            where=Path(run_dir).absolute() / source,
            hint=f"run first: uniavgen train {source}",
            kind="missing-stage",
        )
    if not folder.steps():
        require_starting_weights(config, stage_config)
    config.micro_batch(stage_config, config.workers)
    _check_data(config, stage_config, shards_dir, run_dir)
    return False


def _check_checkpoint(folder: RunFolder, config: TrainConfig, stage: StageConfig, *, accept: bool) -> None:
    """Raise UserError if the stage cannot resume from its newest readable checkpoint with this configuration.

    The digests are checked by the training workers.
    """
    from uniavgen.train.checkpoint.changes import check_changes

    for step in reversed(folder.steps()):
        try:
            folder.state(step)
        except (OSError, ValueError):
            continue
        check_changes(folder, step, config, stage, accept=accept)
        return


def _is_extended(folder: RunFolder, config: TrainConfig, stage: str, *, accept: bool) -> bool:
    """Whether a finished stage is to be trained for more steps than it was.

    Raises UserError if its settings changed and not `accept`, or if it has no checkpoint to continue from.
    """
    from uniavgen.train.checkpoint.changes import NO_MATTER, settings_that_matter

    try:
        before = TrainConfig.model_validate(folder.read()["config"])
    except (KeyError, ValidationError) as error:
        raise UserError(
            "stage.json holds no readable configuration", where=folder.path, hint="use another --run folder"
        ) from error
    then, now = (
        settings_that_matter(before, before.stage(stage)),
        settings_that_matter(config, config.stage(stage)),
    )
    changed = changed_fields(then, now, ignore=NO_MATTER)
    longer = config.stage(stage).steps > before.stage(stage).steps
    if changed and not accept:
        further = f"train {stage} further with --accept-changes, or " if longer else ""
        raise UserError(
            f"stage {stage} already finished with different settings: {', '.join(changed[:4])}",
            where=folder.path,
            hint=f"{further}use another --run folder for the new settings",
            kind="changed-configuration",
        )
    if longer and not folder.steps():
        raise UserError(
            f"stage {stage} has no checkpoint from which it could be trained further",
            where=folder.checkpoints,
            hint="restore its last checkpoint, or train it from its start in another --run folder",
            kind="missing-checkpoint",
        )
    return longer


def _check_data(config: TrainConfig, stage: StageConfig, shards_dir: str | Path, run_dir: str | Path) -> None:
    from uniavgen.shards.read.stream import SampleStream
    from uniavgen.train.data.stage_stream import open_stream

    stream = open_stream(config, stage, str(shards_dir), str(run_dir))
    begun = bool(RunFolder(run_dir, stage.name).steps())
    if isinstance(stream, SampleStream) and stream.shorter and len(stream) < stage.batch and not begun:
        raise UserError(
            f"{stream.line}: fewer than the {stage.batch} of one batch of stage {stage.name}",
            where=str(shards_dir),
            hint=f"lower train.data.frames from {config.data.frames}, or add shorter windows as "
            "train.data.buckets",
            kind="too-short",
        )
    # audio shards have no val split: validation uses the corpus's clips
    if config.validation.every or (config.validation.films and stage.has_video):
        SampleStream(str(shards_dir), "val")


def _make_job(
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


def _choose_device(config: TrainConfig) -> str:
    """The device that the workers use. Raises UserError if the cluster is too small for them."""
    import ray

    resources = ray.cluster_resources()
    gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 0)
    needed_cpus = config.workers * config.cpus_per_worker
    device = config.device if config.device != "auto" else ("cuda" if gpus >= config.workers else "cpu")
    if device == "cuda" and gpus < config.workers:
        raise UserError(
            f"{config.workers} workers need {config.workers} GPUs, Ray has {gpus:g}",
            hint="lower train.workers",
            kind="too-small",
        )
    if cpus < needed_cpus:
        raise UserError(
            f"{config.workers} workers need {needed_cpus} CPUs, Ray has {cpus:g}",
            hint="lower train.workers or train.cpus_per_worker",
            kind="too-small",
        )
    return device


def _fit(config: TrainConfig, folder: RunFolder, device: str, job: Job) -> None:
    from ray.exceptions import RayError
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    from uniavgen.train.worker_failures import RestartPolicy, explain_failure, failure_path

    failure_path(folder).unlink(missing_ok=True)
    # Ray Train reads this from its environment only, and hands it to its controller
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = str(config.room_wait_s)
    restarts = config.max_restarts
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(
            backend="nccl" if device == "cuda" else "gloo", timeout_s=COLLECTIVE_TIMEOUT_S
        ),
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=device == "cuda",
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": 1} if device == "cuda" else {})},
        ),
        run_config=RunConfig(
            name=folder.stage,
            storage_path=str(folder.path / ".ray"),
            # by default Ray waits for ever for resources, and for nodes that are taken away
            failure_config=FailureConfig(
                max_failures=restarts, controller_failure_limit=restarts, max_preemption_failures=restarts
            ),
            callbacks=[RestartPolicy(job.run_dir, job.stage, restarts)],
        ),
    )
    try:
        _call_in_thread(trainer.fit)
    except (TrainingFailedError, RayError) as error:
        raise explain_failure(folder, error, config) from error


@contextmanager
def _stop_on_signal(folder: RunFolder) -> Iterator[list[int]]:
    """Within the block, a first SIGTERM or Ctrl-C asks the workers to save and stop; a second one raises.

    Yields the list of received signals. The request is a file in the run folder, which workers on any node
    see.
    """
    folder.stop_request.unlink(missing_ok=True)
    received: list[int] = []

    def request_stop(number: int, frame: object) -> None:
        received.append(number)
        if len(received) > 1:
            raise KeyboardInterrupt
        folder.stop_request.touch()
        folder.log_event(
            "stopping", "stop requested: the workers save after this step (once more to end at once)"
        )

    in_main_thread = threading.current_thread() is threading.main_thread()
    signals = (signal.SIGTERM, signal.SIGINT) if in_main_thread else ()
    before = {number: signal.signal(number, request_stop) for number in signals}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        folder.stop_request.unlink(missing_ok=True)


def _call_in_thread(work: Callable[[], object]) -> None:
    """Call `work` in a thread and wait: in the main thread, Ray would handle Ctrl-C and kill the workers."""
    errors: list[BaseException] = []

    def call() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)  # signals are handled in between
    if errors:
        raise errors[0]


def _work(loop_config: dict[str, Any]) -> None:
    """The body of a Ray Train worker: train, or record the failure and raise it."""
    job: Job = loop_config["job"]
    import_lean(job.device)
    import torch

    torch.set_num_threads(job.config.cpus_per_worker)
    folder = RunFolder(job.run_dir, job.stage)
    try:
        from uniavgen.train.trainer import train_stage

        with only_trainer(folder, torch.distributed.get_rank()):
            train_stage(job)
    except Exception as error:
        from uniavgen.train.planning import explain_out_of_memory
        from uniavgen.train.worker_failures import record_failure

        config = job.config
        explained = explain_out_of_memory(error, config, config.stage(job.stage), job.device)
        record_failure(folder, explained or error)
        if explained:
            raise explained from error
        raise


def _result(folder: RunFolder, *, ran: bool, began: float) -> StageResult:
    record = folder.read()
    steps = folder.steps()
    return StageResult(
        stage=folder.stage,
        ran=ran,
        **record["outcome"],
        key_report=record.get("key_report", []),
        checkpoint=folder.checkpoint(steps[-1]) if steps else folder.checkpoints,
        weights=folder.weights,
        wall_seconds=time.monotonic() - began,
    )
