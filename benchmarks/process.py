"""The other end of `benchmarks.worker`: starts an engine's process, asks it, and gives up on it."""
from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from types import TracebackType
from typing import Any

from .measure import child_environment, last_error

LIMIT = 300.0                       # seconds for one answer

#: What makes an engine keep all it compiles below one folder.
CACHES = {
    "GRAPHC_CACHE": "{}/graphc", "NUMBA_CACHE_DIR": "{}/numba", "XDG_CACHE_HOME": "{}/cache",
    "TORCHINDUCTOR_CACHE_DIR": "{}/torch", "TRITON_CACHE_DIR": "{}/triton",
    "JAX_COMPILATION_CACHE_DIR": "{}/jax", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1", "PYTENSOR_FLAGS": "base_compiledir={}/pytensor",
}
_STOP, _CONTINUE = getattr(signal, "SIGSTOP", 0), getattr(signal, "SIGCONT", 0)      # 0: where there is none
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS",
            "GRAPHC_NUM_THREADS")


class EngineFailed(Exception):
    """An engine could not do what it was asked; the message is one line."""


class EngineProcess:
    """An engine in a process of its own; closing it ends the process.

    Parameters
    ----------
    engine : str
    threads : int
    caches : str, optional
        The folder for all that it keeps; by default its own.
    """

    def __init__(self, engine: str, threads: int, caches: str | None = None) -> None:
        self.engine, self.seconds_to_start = engine, 0.0
        settings = {name: str(threads) for name in _THREADS} | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        if caches is not None:
            settings |= {name: value.format(caches) for name, value in CACHES.items()}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process lives)
        began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", engine, str(threads)], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=self._log, bufsize=0, env=child_environment(settings))
        self._buffer = b""
        try:
            self.seconds_to_start = self.ask("start")["at"] - began
        except EngineFailed:
            self.close()
            raise

    def ask(self, do: str, limit: float = LIMIT, **arguments: Any) -> dict[str, Any]:
        """The answer; EngineFailed where there is none.

        Between answers the process is stopped: threads that wait for work in a loop would hold a core of the
        engine whose turn it is.
        """
        assert self._process.stdin is not None
        self._process.send_signal(_CONTINUE)
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
        except OSError:
            raise self._died() from None
        answer: dict[str, Any] = json.loads(self._line(limit))
        self._process.send_signal(_STOP)
        if "error" in answer:
            raise EngineFailed(answer["error"])
        return answer

    def _line(self, limit: float) -> bytes:
        assert self._process.stdout is not None
        until = time.monotonic() + limit
        while b"\n" not in self._buffer:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                self._process.kill()
                raise EngineFailed(f"no answer within {limit:.0f} s")
            got = os.read(self._process.stdout.fileno(), 1 << 16)
            if not got:
                raise self._died()
            self._buffer += got
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _died(self) -> EngineFailed:
        code = self._process.wait()
        self._log.seek(0)
        log = self._log.read().decode(errors="replace")
        said = [line.strip() for line in log.splitlines() if line.strip()]
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        return EngineFailed(f"its process ended ({how})" + (f": {last_error(said)}" if said else ""))

    def check(self) -> dict[str, Any]:
        return self.ask("check")

    def drop(self) -> None:
        """Forget the workload; a process that cannot is ended."""
        try:
            self.ask("drop")
        except EngineFailed:
            self._process.kill()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """End the process: kindly, then not."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.send_signal(_CONTINUE)
        self._process.stdin.close()
        try:
            self._process.wait(2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()


class Processes:
    """A process per engine that several workloads share.

    One that died is started anew; an engine that could not start is not tried again.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self._by_engine: dict[str, EngineProcess] = {}
        self._without: dict[str, EngineFailed] = {}

    def of(self, engine: str) -> EngineProcess:
        found = self._by_engine.get(engine)
        if found is not None and found.alive:
            return found
        if found is not None:
            found.close()
        if engine in self._without:
            raise self._without[engine]
        try:
            self._by_engine[engine] = made = EngineProcess(engine, self.threads)
        except EngineFailed as error:
            self._without[engine] = error
            raise
        return made

    def close(self) -> None:
        for process in self._by_engine.values():
            process.close()
        self._by_engine.clear()
