"""Work on the tensors of a checkpoint, one after the other or side by side in processes.

Threads would not do: the calculations are many short ones of numpy, between which the interpreter's lock changes hands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from tutelage.edits._safetensors import TensorInfo
from tutelage.errors import TutelageError
from tutelage.machine import keep_memory

BATCH = 64 << 20  # bytes of tensors that a process is given at a time

Work = Callable[[TensorInfo], Any]
Tell = Callable[[int], None]

_work: Work


def spread(work: Work, infos: Iterable[TensorInfo], *, workers: int = 1, tell: Tell | None = None) -> dict[str, Any]:
    """{name: work(info)} for every tensor, in the order given.

    Args:
        work: what is done with a tensor; with several workers it is pickled, and sets nothing that the caller sees.
        workers: processes; few bytes are worked on in this one anyway, for others take time to start. They import the main module of a
            program anew, which must guard what it runs by `if __name__ == "__main__"`.
        tell: called with the bytes of tensors done.
    """
    infos = list(infos)
    batches = list(_batches(infos))
    results: dict[str, Any] = {}
    if workers < 2 or len(batches) < 2 * workers:
        for info in infos:
            results[info.name] = work(info)
            if tell:
                tell(info.nbytes)
        return results
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_begin, initargs=(work,)) as pool:
        futures = [pool.submit(_run, batch) for batch in batches]
        try:
            for future in as_completed(futures):
                results |= future.result()
                if tell:
                    tell(sum(info.nbytes for info in infos if info.name in future.result()))
        except BrokenProcessPool:
            raise TutelageError("A worker process died, most likely for want of memory. Try again with --jobs 1.") from None
        finally:
            pool.shutdown(cancel_futures=True)
    return {info.name: results[info.name] for info in infos}


def _batches(infos: list[TensorInfo]) -> Iterator[list[TensorInfo]]:
    batch: list[TensorInfo] = []
    for info in infos:
        if batch and sum(i.nbytes for i in batch) + info.nbytes > BATCH:
            yield batch
            batch = []
        batch.append(info)
    if batch:
        yield batch


def _begin(work: Work) -> None:
    global _work
    _work = work
    keep_memory()


def _run(batch: list[TensorInfo]) -> dict[str, Any]:
    return {info.name: _work(info) for info in batch}
