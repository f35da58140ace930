"""Every setting and every environment variable, in one table."""
from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

LAYOUTS = ("auto", "NCHW", "NHWC")


def positive(text: str) -> int:
    """A positive integer."""
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


def whole(text: str) -> int:
    """An integer of at least 0."""
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def layout(text: str) -> str:
    """auto, NCHW or NHWC."""
    if text not in LAYOUTS:
        raise ValueError(text)
    return text


#: environment variable -> (setting, how it is read, what it does)
VARIABLES: dict[str, tuple[str, Any, str]] = {
    "GRAPHC_TARGET": (
        "target", str, "default target of a Session or function: cpu, python or interpret"),
    "GRAPHC_NUM_THREADS": (
        "num_threads", positive, "threads that kernels may use; default: the CPUs of this process"),
    "GRAPHC_DUMP": (
        "dump", str, "a directory: every program writes its graph, its passes and its kernels there"),
    "GRAPHC_CACHE": (
        "cache", str, "the folder of compiled kernels, or off; default: graphc in the user's cache folder"),
    "GRAPHC_CHECK": (
        "check", int, "1: verify programs between passes; 2: also interpret them and compare the numbers"),
    "GRAPHC_LAYOUT": (
        "layout", layout, "how images lie inside programs: NCHW, NHWC (channels last), or auto, what costs "
                          "less; default: auto"),
    "GRAPHC_KEEP_MEMORY": (
        "keep_memory", whole, "MiB of freed memory that the process keeps for its next arrays; default: 512; "
                              "0: malloc is left as it is"),
}


_READS = {str: "text", int: "an integer", positive: "a positive integer", whole: "an integer of at least 0",
          layout: "auto, NCHW or NHWC"}


def available_cpus() -> int:
    """The CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass
class Config:
    """The settings in force; assign to change them."""
    target: str = "cpu"
    num_threads: int = field(default_factory=available_cpus)
    dump: str = ""
    cache: str = ""
    cache_bytes: int = 256 << 20
    check: int = 0
    layout: str = "auto"
    keep_memory: int = 512

    def load(self, environment: Any = os.environ) -> Config:
        """Take what the environment sets; a value that cannot be read is an error that names the variable."""
        for variable, (setting, read, _) in VARIABLES.items():
            text = environment.get(variable)
            if text:
                try:
                    setattr(self, setting, read(text))
                except ValueError:
                    from .errors import ArgumentError
                    raise ArgumentError(f"{variable}={text!r}: expected {_READS[read]}") from None
        return self


config = Config().load()
