"""Compiled programs: from a Program to an Image, and the runs of it.

A `CompiledProgram` is made once per Program and target. Where the disk cache has the image of an equal
program and the code of its kernels, neither passes nor fusion nor lowering run: they do when somebody looks
(`program`, `fusion`, `groups`, `kernels`).
"""
from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..core import events
from ..core.config import config
from ..core.dims import Size, size_of
from ..core.errors import InternalError
from ..core.files import write_atomically
from ..core.node import Node, Value
from ..core.storage import apart, standard
from ..core.threads import fork_safe_lock
from ..static.program import FAILED, Program, toposort
from . import cache, compile, python_target, vmath
from . import loopir as ir
from .executor import copy_entry
from .fuse import Fusion, Group, fuse, is_argument, is_buffer_constant, is_pointwise, storage_of
from .image import COPY_BYTES, Array, Image, Slot, Step, n_bytes
from .lasting import KeptValue, cut, kept_values
from .lower import InPlaceConflict, Lowered, Temporary, Window, lower_group
from .plan import Plan
from .shared import code_form

MAX_PLANS = 64              # sets of sizes whose plans are kept; of more, the first made goes
MAX_IDLE_BYTES = 1 << 28    # and as long as the arenas of all plans are larger than this

Optimize = Callable[[Program], Program]


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A kernel as people look at it.

    ``origin`` says where its code came from: "compiled", "memory" or "disk"; "python" for that target. Runs
    leave those out that are ``lasting`` as long as what these computed holds.
    """
    name: str
    source: str
    compile_seconds: float
    nodes: tuple[Node, ...]
    kernel: ir.Kernel
    origin: str
    lasting: bool = False


class CompiledProgram:
    """A Program as kernels.

    Parameters
    ----------
    program
        As recorded.
    optimize
        The passes, if any are to be run on it.
    stored_as : str
        The name of its image in the disk cache; "" when it is not to be kept there.

    Attributes
    ----------
    image : Image
    origin : {"compiled", "disk"}
        Whether passes, fusion and lowering were run for it.
    compile_seconds : float
        All of the above, and the compilation of kernels.
    """

    def __init__(self, program: Program, target: str, optimize: Optimize | None = None,
                 stored_as: str = "") -> None:
        start = time.perf_counter()
        self.recorded, self.target, self._optimize = program, target, optimize
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._lock = fork_safe_lock()
        found = _from_disk(stored_as) if stored_as else None
        self.origin = "disk" if found else "compiled"
        self.image, self.entries, keeping = found if found is not None else self._assembled()
        if stored_as and found is None:
            cache.store_image(stored_as, self.image)
        self.keeping: Plan | None = None
        if self.image.keeping is not None:
            self.keeping = Plan(self.image.keeping, keeping, {}, target == "python")
        self.compile_seconds = time.perf_counter() - start
        if config.dump:
            for k in self.kernels:
                code = hashlib.sha256(k.source.encode()).hexdigest()[:8]    # several kernels may share a name
                write_atomically(f"{config.dump}/kernels/{k.name}_{code}.py", k.source)

    # ------------------------------------------------------------ looking inside

    @cached_property
    def _assembly(self) -> Assembly:
        program = self._optimize(self.recorded) if self._optimize is not None else self.recorded
        return Assembly(program, self.target)

    def _assembled(self) -> tuple[Image, list[Any], list[Any]]:
        made = self._assembly
        entries, keeping = ([e if e is not None else self._copy_entry() for e in some]
                            for some in (made.entries, made.keeping_entries))
        return made.image, entries, keeping

    @property
    def program(self) -> Program:
        """The program after the passes."""
        return self._assembly.program

    @property
    def fusion(self) -> Fusion:
        return self._assembly.fusion

    @property
    def groups(self) -> list[tuple[Node, ...]]:
        """The nodes of each kernel, in the order they run."""
        return [tuple(g.nodes) for g in self._assembly.groups]

    @property
    def kernels(self) -> list[KernelInfo]:
        return self._assembly.kernels

    @property
    def steps(self) -> tuple[Step, ...]:
        return self.image.steps

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans made so far, one per set of sizes."""
        return tuple(self._plans.values())

    @property
    def arena_bytes(self) -> int:
        """The largest arena of the plans made so far."""
        return max((p.arena_bytes for p in self._plans.values()), default=0)

    # ------------------------------------------------------------ what lasts

    @property
    def kept_of(self) -> tuple[int, ...] | None:
        """The positions of the arguments that something is kept of, from run to run; None if nothing is."""
        keeping = self.image.keeping
        return None if keeping is None else tuple(
            keeping.slots[k].index for k in keeping.operands() if keeping.slots[k].kind == "argument")

    @property
    def kept(self) -> list[KeptValue]:
        """The values that are kept from run to run."""
        return kept_values(self.image)

    def keep(self, arrays: Sequence[Array]) -> Array:
        """What these arrays are made to once, for all runs with them: the argument after all others."""
        assert self.keeping is not None
        outputs, code = self.keeping.run(arrays)
        if code >= 0:
            outputs, code = self.keeping.run([standard(a) for a in arrays])
            if code >= 0:
                raise InternalError(f"state {code} of a program does not fit what is kept of it")
        return outputs[0]

    # ------------------------------------------------------------ running

    def _copy_entry(self) -> Any:
        if self.target == "python":
            return _copy_in_python
        return copy_entry()

    def plan(self, env: Mapping[str, int]) -> Plan:
        """The plan for these sizes."""
        key = tuple(env[n] for n in self.image.size_names)
        found = self._plans.get(key)
        if found is None:
            with self._lock:
                found = self._plans.get(key)
                if found is None:
                    start, sizes = time.perf_counter(), dict(zip(self.image.size_names, key))
                    found = Plan(self.image, self.entries, sizes, self.target == "python")
                    self._plans[key] = found
                    self._drop_plans()
                    events.note("plan", found.sizes_text,
                                f"new sizes: {found.arena_bytes:,} bytes for intermediate values",
                                time.perf_counter() - start)
        return found

    def _drop_plans(self) -> None:
        idle = sum(p.arena_bytes for p in self._plans.values())
        while len(self._plans) > MAX_PLANS or (idle > MAX_IDLE_BYTES and len(self._plans) > 1):
            idle -= self._plans.pop(next(iter(self._plans))).arena_bytes

    def run(self, arrays: Sequence[Array], sizes: tuple[int, ...] = (),
            written: int = 0) -> tuple[list[Array], int | None]:
        """Run once.

        Parameters
        ----------
        arrays
            Arguments; after them, targets.
        sizes
            The values of `Image.size_names`.
        written : int
            How many of the arrays are targets.

        Returns
        -------
        outputs, failed
            Arrays of the caller's own, and the position of the check that does not hold.
        """
        plan = self._plans.get(sizes)
        if plan is None:
            plan = self.plan(dict(zip(self.image.size_names, sizes)))
        n = len(arrays) - written
        kept_of = self.kept_of
        if kept_of is not None:
            kept = self.keep([arrays[k] for k in kept_of])
            arrays, n = [*arrays[:n], kept, *arrays[n:]], n + 1
        outputs, code = plan.run(arrays)
        if 0 <= code < FAILED:
            outputs, code = plan.run([*apart(arrays[:n], arrays[n:], self.image.aliases), *arrays[n:]])
            if 0 <= code < FAILED:
                raise InternalError(f"argument {code} of a program does not fit its plan")
        return outputs, None if code < 0 else code - FAILED


def _copy_in_python(buffers: Sequence[Array], _: Sequence[int], chunk: int, begin: int, end: int) -> None:
    source, target = (b.reshape(-1).view(np.uint8) for b in buffers)
    target[begin:end] = source[begin:end]


def _from_disk(name: str) -> tuple[Image, list[Any], list[Any]] | None:
    """An image and the machine code of its steps, and of those that it keeps the results of.

    If the disk cache has all of it.
    """
    image = cache.load_image(name)
    if image is None:
        return None
    parts = image.steps, image.keeping.steps if image.keeping is not None else ()
    addresses = compile.load_kernels({s.key for steps in parts for s in steps if s.key}, image.callees)
    if addresses is None:
        return None
    entries, keeping = ([addresses[s.key] if s.key else copy_entry() for s in steps] for steps in parts)
    return image, entries, keeping


# ---------------------------------------------------------------- from nodes to an image

class Assembly:
    """The way from an optimised Program to an Image, kept for those who look."""

    def __init__(self, program: Program, target: str) -> None:
        self.program, self.target = program, target
        self.fusion: Fusion = fuse(program)
        self.slots: list[Slot] = []
        self.constants: list[Array] = []
        self.steps: list[Step] = []
        self.entries: list[Any] = []               # native addresses or Python functions; None: a copy
        self.kernels: list[KernelInfo] = []
        self._slot_of: dict[Any, int] = {}
        self._passing: set[int] = set()            # slots that are not worth keeping from run to run
        self.direct: dict[int, int] = {}           # update -> the group that writes it in place
        self.groups, self.n_check_groups = self._checks_first()
        lowered = self._lower(self.groups)
        self._bind_results()
        made = self._steps_of(lowered)
        n_early = sum(len(group) for group in lowered[:self.n_check_groups])
        before, after = self._copies()
        self.steps = [*made[:n_early], *before, *made[n_early:], *after]
        self.entries[n_early:n_early] = [None] * len(before)
        self.entries += [None] * len(after)
        self.slots = [replace(s, scratch_of=s.scratch_of + len(before)) if s.scratch_of >= n_early else s
                      for s in self.slots]
        checks = tuple(self._value_slot(c.value) for c in program.checks)
        called = frozenset[str]().union(*(compile.callees(k.kernel) for k in self.kernels))
        whole = Image(
            tuple(self.slots), tuple(self.constants), tuple(self.steps), n_early, checks, self._aliases(),
            tuple(program.sizes()), tuple(sorted(called)))
        self.image, kept = cut(whole, program.lasting, self._passing)
        numbers = [t for t, step in enumerate(whole.steps) if step.key]
        self.kernels = [replace(k, lasting=t in kept) for t, k in zip(numbers, self.kernels, strict=True)]
        self.keeping_entries = [self.entries[t] for t in kept]
        self.entries = [e for t, e in enumerate(self.entries) if t not in kept]

    def _checks_first(self) -> tuple[list[Group], int]:
        """Groups that checks need come first, so that nothing is written before they hold."""
        wanted = {id(n) for n in toposort(c.value.node for c in self.program.checks)}
        made = {id(v.node): g for g in self.fusion.groups for v in g.roots}
        first: set[int] = set()
        stack = [made[k] for k in wanted if k in made]
        while stack:
            g = stack.pop()
            if id(g) not in first:
                first.add(id(g))
                stack.extend(made[k] for k in g.needs if k in made)
        early = [g for g in self.fusion.groups if id(g) in first]
        return early + [g for g in self.fusion.groups if id(g) not in first], len(early)

    def _lower(self, groups: list[Group]) -> list[list[Lowered]]:
        reads: dict[int, int] = {}                         # argument node -> last group that reads it
        for i, g in enumerate(groups):
            for n in g.nodes:
                for v in n.inputs:
                    reads[id(storage_of(v, self.fusion.stored)[0].node)] = i
        argument_of = {id(n.attrs["state"]): Value(n, 0) for n in self.program.arguments
                       if "state" in n.attrs}
        outputs = {(id(v.node), v.index) for v in self.program.outputs}
        made = {(id(v.node), v.index): i for i, g in enumerate(groups) for v in g.roots}
        in_place: dict[int, dict[Value, Value]] = {}
        taken: set[Any] = set()
        for k, u in enumerate(self.program.updates):
            key = (id(u.value.node), u.value.index)
            home, old = made.get(key), argument_of.get(id(u.state))
            if home is None or key in outputs or key in taken or home < self.n_check_groups:
                continue
            if old is not None and reads.get(id(old.node), -1) > home:
                continue
            taken.add(key)
            self.direct[k] = home
            if old is None or reads.get(id(old.node), -1) != home:
                continue
            if groups[home].kind in ("map", "loops") and is_pointwise(u.value.node):
                in_place.setdefault(home, {})[u.value] = old
            else:
                del self.direct[k]
        out = []
        for i, g in enumerate(groups):
            try:
                out.append(lower_group(g, self.fusion, in_place.get(i)))
            except InPlaceConflict:
                updates = self.program.updates
                for k in [k for k, home in self.direct.items()
                          if home == i and updates[k].value in in_place[i]]:
                    del self.direct[k]
                out.append(lower_group(g, self.fusion))
        return out

    # ------------------------------------------------------------ slots

    def _slot(self, key: Any, make: Callable[[], Slot]) -> int:
        if key not in self._slot_of:
            self._slot_of[key] = len(self.slots)
            self.slots.append(make())
        return self._slot_of[key]

    def _bind_results(self) -> None:
        """Arguments, targets and outputs get their slots before anything else.

        A value has one home; where it is wanted elsewhere too, it is copied.
        """
        program = self.program
        self.homeless: list[tuple[Value, int]] = []                # (value, the slot to copy it to)
        for i, n in enumerate(program.arguments):
            self._slot((id(n), 0), partial(Slot, "argument", i, n.avals[0].dtype.name, n.avals[0].shape))
        for k, u in enumerate(program.updates):
            self._home(u.value, "target", k, free=k in self.direct)
        for i, v in enumerate(program.outputs):
            key = (id(v.node), v.index)
            self._home(v, "output", i, free=not (
                key in self._slot_of or is_argument(v.node) or is_buffer_constant(v.node)))

    def _home(self, v: Value, kind: Any, index: int, free: bool) -> None:
        key = (id(v.node), v.index) if free else (kind, index)
        slot = self._slot(key, partial(Slot, kind, index, v.aval.dtype.name, v.aval.shape))
        if not free:
            self.homeless.append((v, slot))

    def _value_slot(self, v: Value) -> int:
        def make() -> Slot:
            if is_buffer_constant(v.node):
                self.constants.append(np.ascontiguousarray(v.node.attrs["value"]))
                return Slot("constant", len(self.constants) - 1, v.aval.dtype.name, v.aval.shape)
            return Slot("arena", -1, v.aval.dtype.name, v.aval.shape)
        part = self.fusion.parts.get(v)
        if part is not None:
            return self._window_slot(self._value_slot(part.value), part.offset, part.size)
        return self._slot((id(v.node), v.index), make)

    def _window_slot(self, slot: int, offset: Size, size: Size | None = None) -> int:
        """A part of the memory of a slot, from an element on; without a size, what follows."""
        whole = self.slots[slot]
        home, at = (whole.index, whole.offset + offset) if whole.kind == "window" else (slot, offset)
        rest = size if size is not None else whole.size if whole.shape is None else size_of(whole.shape)
        make = partial(Slot, "window", home, whole.dtype, None, rest, -1, at)
        return self._slot(("window", home, at, rest), make)

    def _aliases(self) -> tuple[int, ...]:
        position = {id(n.attrs["state"]): i for i, n in enumerate(self.program.arguments)
                    if "state" in n.attrs}
        return tuple(position.get(id(u.state), -1) for u in self.program.updates)

    # ------------------------------------------------------------ steps

    def _steps_of(self, lowered: list[list[Lowered]]) -> list[Step]:
        kernels = [low.kernel for group in lowered for low in group]
        forms = [code_form(vmath.expand(k)) for k in kernels]
        compiled = self._compile([form.kernel for form in forms])
        steps: list[Step] = []
        for g, group in enumerate(lowered):
            for low in group:
                at, kernel = len(steps), low.kernel
                slots = []
                for b, binding in zip(kernel.buffers, low.bindings):
                    if isinstance(binding, Value):
                        slots.append(self._value_slot(binding))
                    elif isinstance(binding, Window):
                        slots.append(self._window_slot(
                            self._value_slot(binding.value), binding.offset, binding.size))
                    elif isinstance(binding, Temporary):
                        make = partial(Slot, "arena", -1, binding.dtype, None, binding.size)
                        slots.append(self._slot(("temporary", g, binding.name), make))
                        if not binding.keeps:
                            self._passing.add(slots[-1])
                    else:
                        make = partial(Slot, "arena", -1, b.dtype, None, b.size, at)
                        slots.append(self._slot(("scratch", at, b.name), make))
                slots = [self._window_slot(s, offset) if offset != 0 else s
                         for s, offset in zip(slots, forms[at].offsets)]
                writes = tuple(b.role != "in" for b in kernel.buffers)
                key, source, seconds, origin, entry = compiled[at]
                steps.append(Step(kernel.name, key, tuple(slots), writes, forms[at].sizes, kernel.extent,
                                  kernel.grain))
                self.entries.append(entry)
                self.kernels.append(KernelInfo(kernel.name, source, seconds, low.nodes, kernel, origin))
        return steps

    def _compile(self, kernels: list[ir.Kernel]) -> list[tuple[str, str, float, str, Any]]:
        """(key, source, seconds, origin, entry) of each."""
        if self.target == "python":
            return [(e.key, e.source, 0.0, "python", e) for e in map(python_target.load, kernels)]
        compiled = compile.compile_kernels(kernels)
        sources = {key: k.source for key, k in {k.key: k for k in compiled}.items()}
        return [(k.key, sources[k.key], k.compile_seconds, k.origin, k.address) for k in compiled]

    def _copies(self) -> tuple[list[Step], list[Step]]:
        """Copies before anything is written, of what was; and after all else, of what came out."""
        before, after = [], []
        for v, slot in self.homeless:
            source = self._value_slot(v)
            if not is_argument(v.node):
                after.append(self._copy(v, source, slot))
            elif self.slots[slot].kind == "output":
                before.append(self._copy(v, source, slot))
            elif self._aliases()[self.slots[slot].index] != self.slots[source].index:
                spare = self._slot(("spare", slot),
                                   partial(Slot, "arena", -1, v.aval.dtype.name, v.aval.shape))
                before.append(self._copy(v, source, spare))
                after.append(self._copy(v, spare, slot))
        return before, after

    def _copy(self, v: Value, source: int, target: int) -> Step:
        return Step("copy", "", (source, target), (False, True), (),
                    n_bytes(v.aval.shape, v.aval.dtype), COPY_BYTES)


__all__ = ["Assembly", "CompiledProgram", "KernelInfo"]
