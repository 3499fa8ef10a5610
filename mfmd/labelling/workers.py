"""Many tasks at once: on processes of this machine, or on the workers of a Dask cluster."""

import concurrent.futures
import errno
import multiprocessing
import os
import signal
import threading
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from mfmd import Error
from mfmd.labelling.schema import LabelError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room for a file: of the machine's making, not of a structure's


def _guarded(function, arguments):
    """The result of a task, or its failure in words. LabelError where the disk is full, which ends the run."""
    try:
        return function(*arguments), None
    except Exception as error:  # whatever a quantum-chemistry code raises is that structure's failure, not the run's
        words = " ".join(str(error).split())
        if getattr(error, "errno", None) in FULL or any(os.strerror(code) in words for code in FULL):  # HDF5 has it in its words alone
            raise LabelError(f"a worker could not write its files ({words}); free some space and give the same command again") from None
        return None, words if isinstance(error, Error) and words else f"{type(error).__name__}{words and ': '}{words}"


def _ends_with_its_parent():
    """Of a worker, which would wait for tasks for ever where the process that started it is killed."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextmanager
def _one_thread():
    """What is started in here computes on one thread, and leaves Ctrl-C to the process that started it. The variables are read when a library is loaded, which may be before a worker's first own line:
    a process has to be born with them."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _see_that_workers_start(context):
    """LabelError where a process that has nothing to compute dies as well: no structure is to blame."""
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        try:
            pool.submit(os.getpid).result()
        except BrokenProcessPool:
            raise LabelError(
                "the processes that are to compute die as they start (their own words are above); each runs the lines of the script that started them: "
                'in a script, call this below `if __name__ == "__main__":`'
            ) from None


def in_parallel(tasks, workers):
    """Yield (key, result, error) of tasks (key, function, arguments) as they end; one whose process dies is an error of its own.

    A worker computes on one thread; a run has as many workers as it has cores. Where the caller stops in between, what is under way is given up.
    LabelError: see `_guarded` and `_see_that_workers_start`."""
    tasks, suspects, others = list(tasks), [], set(multiprocessing.active_children())
    for batch, size in ((tasks, workers), (suspects, 1)):
        while batch:
            context = multiprocessing.get_context("spawn")
            with concurrent.futures.ProcessPoolExecutor(size, mp_context=context, initializer=_ends_with_its_parent) as pool:
                waiting, queue = {}, list(batch)
                batch.clear()
                try:
                    while queue or waiting:
                        while queue and len(waiting) < size:
                            task = queue.pop(0)
                            with _one_thread():  # processes are started here
                                waiting[pool.submit(_guarded, *task[1:])] = task
                        done, _ = concurrent.futures.wait(waiting, return_when=concurrent.futures.FIRST_COMPLETED)
                        for future in done:
                            result, error = future.result()
                            yield waiting.pop(future)[0], result, error
                except (KeyboardInterrupt, GeneratorExit):
                    for process in set(multiprocessing.active_children()) - others:
                        process.terminate()
                    raise
                except BrokenProcessPool:  # which of the tasks under way it was shows when they run one at a time
                    _see_that_workers_start(context)
                    batch.extend(queue)
                    if batch is tasks:
                        suspects.extend(waiting.values())
                    else:
                        for key, *_ in waiting.values():
                            yield key, None, "the process that computed it died"


def on_cluster(tasks, scheduler):
    """As `in_parallel`, on the workers of a Dask scheduler (its address). What a lost worker had under way is computed by another."""
    from distributed import Client, as_completed
    from distributed.scheduler import KilledWorker

    with Client(scheduler) as client:
        futures = {client.submit(_guarded, *task, pure=False): key for key, *task in tasks}
        for future in as_completed(futures):
            key = futures.pop(future)
            try:
                found, error = future.result()
            except KilledWorker as lost:
                found, error = None, f"every worker that computed it died ({lost})"
            yield key, found, error
