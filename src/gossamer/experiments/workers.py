"""Where the runs of a sweep happen: processes of this machine, or a Ray cluster. Each run is a process of its own, so
that its peak memory is its own, and so that one that is killed is a failed run while the others go on.
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from multiprocessing.connection import Connection
from pathlib import Path

from gossamer.experiments.results import Row
from gossamer.experiments.runs import failed, guarded, measure_run, train_run
from gossamer.experiments.sweep import Run

PRELOAD = ["gossamer.training.trainer", "gossamer.experiments.measure", "torch._dynamo", "torch.utils.tensorboard"]
"""What the server imports that runs are forked from: seconds saved for each. It never uses torch's threads."""

Task = Callable[[Run, Path], Row]


def processes(runs: Sequence[Run], folder: Path, *, jobs: int = 1) -> Iterator[Row]:
    """Do the runs in at most `jobs` processes at once, which share the CPU's threads; yield their lines as they end.

    With one job each run shows its own progress and is timed right after its training. With more it is not, since times
    taken beside other runs would mean little: `measured` does that afterwards.
    """
    if jobs < 1:
        raise ValueError(f"{jobs} jobs can do nothing; give 1 or more")
    alone = jobs == 1
    yield from each(runs, folder, jobs, functools.partial(train_run, progress=alone, timed=alone))


def measured(runs: Sequence[Run], folder: Path) -> Iterator[Row]:
    """Time the networks of trained runs one after the other, each in a process of its own."""
    yield from each(runs, folder, 1, measure_run)


def in_place(runs: Sequence[Run], folder: Path) -> Iterator[Row]:
    """Do the runs in this very process, one after the other: under torchrun, whose processes all take part in each.

    The first process alone yields the lines.
    """
    for run in runs:
        row = guarded(run, functools.partial(train_run, run, folder, progress=True, timed=False))
        if os.environ["RANK"] == "0":
            yield row


def on_ray(runs: Sequence[Run], folder: Path, *, address: str, cpus: float = 1, gpus: float = 0) -> Iterator[Row]:
    """Do the runs on a Ray cluster ("local" starts one here), each with the CPUs and GPUs asked for; needs `ray`.

    The folder must be one that all machines see under the same name: runs are trained, and can be resumed, there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ModuleNotFoundError:
        raise ValueError("--ray needs a package that is not here: pip install 'gossamer[cluster]'") from None

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


def each(runs: Sequence[Run], folder: Path, jobs: int, task: Task) -> Iterator[Row]:
    """`task(run, folder)` for each run, in at most `jobs` processes at once; yields what they return, as they end.

    When the consumer stops early, by Ctrl-C or an error, the processes write their checkpoints and end.
    """
    threads = max(1, (os.cpu_count() or 1) // jobs)
    shared = [run if run.config.threads else run.with_threads(threads) for run in runs]
    live: list[Connection] = []
    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(_in_process, run, functools.partial(task, run, folder), live) for run in shared]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            for connection in live:
                with contextlib.suppress(OSError):  # that one has ended
                    connection.send("stop")
            pool.shutdown(cancel_futures=True)
            raise


def _in_process(run: Run, task: Callable[[], Row], live: list[Connection]) -> Row:
    """The line of `task` done in a process of its own; that of a failed run when the process dies."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, run, task))
    process.start()
    theirs.close()
    live.append(ours)
    try:
        row: Row = ours.recv()
    except EOFError:
        process.join()
        row = failed(run, f"its process ended with exit code {process.exitcode} (killed, perhaps for want of memory)")
    process.join()
    live.remove(ours)
    ours.close()
    return row


def _work(parent: Connection, run: Run, task: Callable[[], Row]) -> None:
    """The life of a run's process. Ctrl-C reaches the parent alone, which tells its children to stop."""
    os.setpgrp()
    multiprocessing.set_start_method(None, force=True)  # data loaders start theirs as in any other program
    try:
        threading.Thread(target=_stop_with, args=(parent,), daemon=True).start()
        parent.send(guarded(run, task))
    except KeyboardInterrupt:
        os._exit(130)


def _stop_with(parent: Connection) -> None:
    """Interrupt this process when its parent says so, or is gone."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv()
    os.kill(os.getpid(), signal.SIGINT)
