"""Worker processes that import the engine once and run many cells, and the loop that feeds them.

Workers are spawned, never forked (an engine's threads do not survive a fork), each with its share of the cores, or with
fewer threads where OMP_NUM_THREADS says so.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from tutelage.errors import TutelageError
from tutelage.machine import cores

Event = tuple[str, int, Any]
Work = Callable[[Any, Callable[[dict[str, Any]], None]], dict[str, Any]]
"""What a worker does with a job: told how to tell of its steps, it returns the record."""
Begin = Callable[[Any, Path, int], Work]
"""What a worker does once: from the run, a folder and its number of threads to its work. A function of a module, for it is pickled."""


def engine(run: Any, folder: Path, threads: int) -> Work:
    """The work of `tutelage compare`: cells of language models."""
    import torch

    from tutelage.study.cell import Bench, run_cell

    torch.set_num_threads(threads)
    bench = Bench(run)
    return lambda job, tell: run_cell(bench, job, folder / job.file_name, tell)


class Schedule(Protocol):
    """Which cell next, and what became of it."""

    def next_job(self) -> Any:
        """A job that can start now; None while there is none."""

    def finished(self, job: Any, record: dict[str, Any]) -> None:
        """A cell is done; jobs that waited for it may start."""


def run_all(run: Any, schedule: Schedule, folder: Path, *, jobs: int, tell: Callable[[str, Any], None], begin: Begin = engine) -> None:
    """Run every job of the schedule; `tell(kind, payload)` hears "step" and "done". The first error stops everything and is raised."""
    with _workers(run, folder, jobs, begin) as (processes, inboxes, events):
        idle, running = list(range(jobs)), {}
        while True:
            while idle and (job := schedule.next_job()) is not None:
                worker = idle.pop()
                running[worker] = job
                inboxes[worker].put(job)
            if not running:
                return
            kind, worker, payload = _next_event(events, processes, running)
            if kind == "error":
                raise TutelageError(payload)
            if kind == "step":
                tell("step", (running[worker], payload))
                continue
            job = running.pop(worker)
            idle.append(worker)
            schedule.finished(job, payload)
            tell("done", (job, payload))


def _next_event(events: Any, processes: list[Any], running: dict[int, Any]) -> Event:
    while True:
        try:
            return events.get(timeout=5)
        except queue.Empty:
            names = ", ".join(job.name for worker, job in running.items() if not processes[worker].is_alive())
            if names:
                return (
                    "error", -1,
                    f"A worker process died without a word (killed, or out of memory) while running {names}. "
                    "Cells that finished are kept; run the same command again to go on, with fewer --jobs if memory is short.",
                )  # fmt: skip


@contextmanager
def _workers(run: Any, folder: Path, jobs: int, begin: Begin) -> Iterator[tuple[list[Any], list[Any], Any]]:
    context = multiprocessing.get_context("spawn")
    threads = max(1, cores() // jobs)
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        threads = min(threads, int(os.environ["OMP_NUM_THREADS"]))
    events = context.Queue()
    inboxes = [context.Queue() for _ in range(jobs)]
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM")}
    os.environ |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}  # read by children while they start
    processes = [
        context.Process(target=_work, args=(i, run, folder, threads, begin, inbox, events), daemon=True) for i, inbox in enumerate(inboxes)
    ]
    try:
        for process in processes:
            process.start()
        yield processes, inboxes, events
        for inbox in inboxes:
            inbox.put(None)
        for process in processes:
            process.join(timeout=10)
    finally:
        for process in processes:
            process.kill()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _work(worker: int, run: Any, folder: Path, threads: int, begin: Begin, inbox: Any, events: Any) -> None:
    """A worker's life: import once, then run cells until told to stop, or until the parent is gone."""
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        quiet()
        work = begin(run, folder, threads)
        while (job := inbox.get()) is not None:
            events.put(("done", worker, work(job, lambda info: events.put(("step", worker, info)))))
    except TutelageError as error:
        events.put(("error", worker, str(error)))
    except KeyboardInterrupt:
        pass
    except BaseException:
        events.put(("error", worker, f"A worker failed unexpectedly; this is a bug or a broken environment.\n{traceback.format_exc()}"))


def _leave_with_parent() -> None:
    """A killed parent cannot stop its workers, so they watch it: no orphan trains on."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def quiet() -> None:
    """Silence the engines' start-up notices; errors and our own words stay."""
    import logging
    import warnings

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # else every cell of a comparison would report itself
    warnings.filterwarnings("ignore")
    for name in ("transformers", "accelerate", "trl", "datasets", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
