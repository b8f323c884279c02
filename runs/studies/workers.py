"""Worker processes from the outside: started when needed, watched, told to stop; on this machine or a Dask cluster."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runs.failure import UserError

Report = dict[str, Any]
_OFTEN = 0.2  # seconds between two looks at whether a run is still wanted
_PATIENCE = 60.0  # seconds that a run has to save itself


class WorkerProcess:
    """One worker process; a new one takes the place of one that died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def perform(self, job: Mapping[str, Any], wanted: Callable[[], bool]) -> Report:
        """Have a job done; when it is no longer `wanted`, the run saves itself and the report says `stopped`."""
        process = self._start()
        assert process.stdin is not None
        reports: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(process, reports), daemon=True).start()
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it died since the last job: as if during this one
        line = self._wait(process, reports, wanted)
        if line:
            report: Report = json.loads(line)
            return report
        code = process.wait()
        self._process = None
        if not wanted():
            return {"outcome": "stopped"}
        return {"outcome": "died", "error": f"its process {_end(code)}"}

    def _start(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "runs.studies.worker"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                # Ctrl-C at the terminal is for the parent, which tells its workers.
                start_new_session=True, env=_environment(),
            )  # fmt: skip
        return self._process

    def _wait(
        self, process: subprocess.Popen[str], reports: queue.SimpleQueue[str], wanted: Callable[[], bool]
    ) -> str | None:
        """The report, or None if the process ended without one."""
        while wanted():
            try:
                return reports.get(timeout=_OFTEN) or None
            except queue.Empty:
                continue
        process.send_signal(signal.SIGTERM)
        try:
            return reports.get(timeout=_PATIENCE) or None
        except queue.Empty:
            process.kill()
            return None

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()

    def close(self) -> None:
        """End the process; nothing is running in it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process = None


def _listen(process: subprocess.Popen[str], reports: queue.SimpleQueue[str]) -> None:
    """Put the next line that the process says into `reports`; an empty one if it ends."""
    assert process.stdout is not None
    reports.put(process.stdout.readline())


def _environment() -> dict[str, str]:
    """This process's own, with its packages where they are: the current directory may have others of these names."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _end(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"ended with code {code}"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    return f"was killed ({name}{', perhaps for want of memory' if name == 'SIGKILL' else ''})"


class LocalWorkers:
    """Worker processes on this machine, each with a thread that waits for it."""

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._own = threading.local()
        self._all: list[WorkerProcess] = []
        self._stopping = threading.Event()

    @property
    def executor(self) -> Executor:
        """Takes `task`s."""
        return self._threads

    def task(self, job: Mapping[str, Any]) -> Report:
        """Have a job done by the process that belongs to this thread."""
        if self._stopping.is_set():
            return {"outcome": "stopped"}
        if not hasattr(self._own, "worker"):
            self._own.worker = WorkerProcess()
            self._all.append(self._own.worker)
        worker: WorkerProcess = self._own.worker
        return worker.perform(job, lambda: not self._stopping.is_set())

    def is_begun(self, future: Future[Report]) -> bool:
        """Whether a process has taken up this job."""
        return future.running()

    def stop(self) -> None:
        """Have all runs saved and stopped."""
        self._stopping.set()

    def kill(self) -> None:
        """Stop all runs at once, without saving."""
        self._stopping.set()
        for worker in self._all:
            worker.kill()

    def close(self) -> None:
        """Wait for what runs, and end the processes."""
        self._threads.shutdown()
        for worker in self._all:
            worker.close()


def perform_on_cluster(job: Mapping[str, Any]) -> Report:
    """A job as a task of a Dask worker: done by a process of its own, stopped when nobody wants the task any more."""
    from distributed import get_worker

    dask_worker = get_worker()
    key = dask_worker.get_current_task()

    def wanted() -> bool:
        task = dask_worker.state.tasks.get(key)
        return task is not None and task.state == "executing"

    worker = WorkerProcess()
    try:
        return worker.perform(job, wanted)
    finally:
        worker.close()


class ClusterWorkers:
    """The workers of a Dask cluster; each does as many runs at a time as it has threads."""

    def __init__(self, address: str) -> None:
        try:
            from distributed import Client
        except ImportError as error:
            raise UserError(
                "`scheduler` needs the package distributed, which is not installed; `pip install distributed`, or "
                "leave --scheduler out"
            ) from error
        try:
            self._client = Client(address, timeout=10, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            raise UserError(
                f"no Dask scheduler answers at {address}: {error}; start one with `dask scheduler`"
            ) from error
        self.executor: Executor = self._client.get_executor(pure=False, retries=0)
        self.task = perform_on_cluster

    def is_begun(self, future: Future[Report]) -> bool:
        """Whether it may have been taken up: the cluster does not say."""
        return not future.done()

    def stop(self) -> None:
        """Nothing: cancelled tasks stop by themselves."""

    kill = stop

    def close(self) -> None:
        """Let go of the cluster, which goes on without us."""
        self._client.close()


@contextmanager
def workers(count: int, scheduler: str | None) -> Iterator[LocalWorkers | ClusterWorkers]:
    """Workers on this machine, or those of the cluster at `scheduler`."""
    made = LocalWorkers(count) if scheduler is None else ClusterWorkers(scheduler)
    try:
        yield made
    except Exception:
        made.stop()
        raise
    except BaseException:  # Ctrl-C for the second time
        made.kill()
        raise
    finally:
        made.close()
