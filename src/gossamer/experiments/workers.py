"""Where the runs of a sweep happen: processes of this machine, or a Ray cluster. Each run is a process of its own, so
that its peak memory is its own, and so that one that is killed is a failed run while the others go on.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path

from gossamer.experiments.results import Row
from gossamer.experiments.sweep import Run

Task = Callable[[], Row]


def processes(runs: Sequence[Run], folder: Path, *, jobs: int = 1) -> Iterator[Row]:
    """Do the runs in at most `jobs` processes at once, which share the CPU's threads; yield their lines as they end.

    With one job each run shows its own progress and is measured right after its training. With more, times taken beside
    other runs would mean little: they are measured at the end, one by one, and a second line of the run holds them.
    """
    if jobs < 1:
        raise ValueError(f"{jobs} jobs can do nothing; give 1 or more")
    alone = jobs == 1
    yield from each(runs, folder, jobs, functools.partial(train_run, progress=alone, timed=alone))
    if not alone:
        yield from each(runs, folder, 1, measure_run)


def in_place(runs: Sequence[Run], folder: Path) -> Iterator[Row]:
    """Do the runs in this very process, one after the other: under torchrun, whose processes all take part in each."""
    for run in runs:
        yield guarded(run, functools.partial(train_run, run, folder, progress=True, timed=False))


def on_ray(runs: Sequence[Run], folder: Path, *, address: str, cpus: float = 1, gpus: float = 0) -> Iterator[Row]:
    """Do the runs on a Ray cluster ("local" starts one here), each with the CPUs and GPUs asked for; needs `ray`.

    The folder must be one that all machines see under the same name: runs are trained, and can be resumed, there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    ray.init(address=None if address == "local" else address, include_dashboard=False, log_to_driver=False)
    try:
        # Not retried by Ray: the sweep records the failure, and the next call of it tries again.
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=1)(_on_ray)
        names = {remote.remote(run, folder.resolve(), max(1, int(cpus))): run for run in runs}
        waiting = list(names)
        while waiting:
            (ready,), waiting = ray.wait(waiting, num_returns=1)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                yield failed(names[ready], f"Ray lost it: {error}")
    finally:
        ray.shutdown()


def _on_ray(run: Run, folder: Path, threads: int) -> Row:
    run = run if run.config.threads else run.with_threads(threads)
    return guarded(run, functools.partial(train_run, run, folder, progress=False))


def each(runs: Sequence[Run], folder: Path, jobs: int, task: Callable[[Run, Path], Row]) -> Iterator[Row]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    shared = [run if run.config.threads else run.with_threads(threads) for run in runs]
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_in_process, run, functools.partial(task, run, folder)) for run in shared]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def train_run(run: Run, folder: Path, *, progress: bool = True, timed: bool = True) -> Row:
    """Train one run in `folder/runs/NAME`, going on from its checkpoint if it has one; its result line."""
    import torch

    from gossamer.experiments.measure import peak_memory
    from gossamer.training.trainer import train

    place = folder / "runs" / run.name
    result = train(run.config, place, resume=True, progress=progress)
    row = run.row(
        status="done",
        accuracy=result.accuracy,
        params=result.params,
        madds=result.madds,
        bytes=(place / "model.safetensors").stat().st_size,
        peak_memory=peak_memory(torch.device(result.machine["device"])),
        train_seconds=result.train_seconds,
        history=result.history,
        skipped=len(result.skipped),
        machine=result.machine,
        version=result.version,
    )
    return {**row, **measure_run(run, folder)} if timed else row


def measure_run(run: Run, folder: Path) -> Row:
    """Times of a trained run's network, as a line that adds to its result line."""
    import torch

    from gossamer.experiments.measure import measure
    from gossamer.training.inference import load_trained

    if run.config.threads:
        torch.set_num_threads(run.config.threads)
    model, data = load_trained(folder / "runs" / run.name)
    return {"run": run.name, **measure(model, data.image_shape, batch=run.config.batch_size)}


def _in_process(run: Run, task: Task) -> Row:
    """The line of `task` done in a process of its own; that of a failed run when the process dies."""
    context = multiprocessing.get_context("forkserver")  # has torch imported already, and has never used its threads
    context.set_forkserver_preload(["gossamer.training.trainer", "gossamer.experiments.measure"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, run, task))
    process.start()
    sender.close()
    try:
        row: Row = receiver.recv()
    except EOFError:
        process.join()
        return failed(run, f"its process ended with exit code {process.exitcode} (killed, perhaps for want of memory)")
    process.join()
    return row


def _send(sender: Connection, run: Run, task: Task) -> None:
    try:
        sender.send(guarded(run, task))
    except KeyboardInterrupt:
        os._exit(130)


def guarded(run: Run, task: Task) -> Row:
    """The line of `task`, or that of a failed run when it raises: the other runs of the sweep go on whatever it was."""
    try:
        return task()
    except Exception as error:
        return failed(run, f"{type(error).__name__}: {error}", traceback.format_exc())


def failed(run: Run, error: str, trace: str = "") -> Row:
    return run.row(status="failed", error=error, traceback=trace)
