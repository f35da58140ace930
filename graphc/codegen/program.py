"""Compiled programs: groups lowered and compiled, and a table that one native call walks.

A `CompiledProgram` is made once per Program and target. For each assignment of its named sizes it keeps a
`Plan` (offsets in one arena, extents, chunks); a run takes an `Instance` of it (an arena and a table of its
own), so runs may overlap. A new size makes a new plan and compiles nothing.
"""
from __future__ import annotations

import hashlib
import math
import threading
import time
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ..core.config import config
from ..core.dims import evaluate_shape
from ..core.errors import InternalError
from ..core.files import write_atomically
from ..core.node import Node, Value
from ..static.program import Program, toposort
from . import loopir as ir
from . import python_target, vmath
from .builder import size_variable
from .fuse import Fusion, Group, fuse, is_argument, is_buffer_constant, storage_of
from .lower import InPlaceConflict, Lowered, Temporary, lower_group

Array = np.ndarray[Any, Any]
ALIGN = 64
MAX_PLANS = 64              # sets of sizes whose memory plans are kept; of more, the first made goes


@dataclass(frozen=True, slots=True)
class KernelInfo:
    """A kernel as people look at it."""
    name: str
    source: str
    compile_seconds: float
    nodes: tuple[Node, ...]
    kernel: ir.Kernel


@dataclass(frozen=True, slots=True)
class Step:
    """One kernel call: its slots and sizes by position."""
    kernel: ir.Kernel
    slots: tuple[int, ...]
    sizes: tuple[str | int, ...]     # named sizes, and constants that were made arguments
    entry: Any                       # native address, or a Python entry


@dataclass(frozen=True, slots=True)
class Slot:
    """A buffer of the program: where its memory comes from."""
    kind: str                        # "argument", "constant", "output", "target", "arena"
    index: int                       # position among arguments, constants, outputs or targets
    shape: tuple[Any, ...] | None    # of a value
    size: ir.Expr | None             # elements of a temporary; of one chunk's scratch
    dtype: np.dtype[Any]
    scratch_of: int = -1             # the step whose chunks divide it


def evaluate_expr(e: ir.Expr, env: Mapping[str, int]) -> int:
    """An index expression over sizes, as a number."""
    if isinstance(e, ir.Const):
        return int(e.value)
    if isinstance(e, ir.Var):
        return env[e.name]
    if isinstance(e, ir.Call):
        a, b = (evaluate_expr(x, env) for x in e.args)
        return {"add": a + b, "sub": a - b, "mul": a * b,
                "floordiv": a // b if b else 0, "mod": a % b if b else 0,
                "minimum": min(a, b), "maximum": max(a, b)}[e.op]
    raise InternalError(f"not a size: {e!r}")


def code_form(kernel: ir.Kernel) -> tuple[ir.Kernel, tuple[str | int, ...]]:
    """The kernel as it is compiled, and the values of its size arguments.

    Its extent and chunks are the plan's business, and a product's sizes become arguments: so all updates of
    parameters, and all products, are one kernel each.
    """
    constants: dict[int, str] = {}

    def lift(e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Const) and e.dtype == "int64" and e.value > 1:
            return ir.Var(constants.setdefault(int(e.value), f"c{len(constants)}"))
        return e

    body = kernel.body
    plain = [s for s in ir.walk_stmts(body) if not isinstance(s, ir.Note)]
    if plain and all(isinstance(s, ir.Gemm) for s in plain):
        def operand(o: ir.Operand) -> ir.Operand:
            return replace(o, offset=ir.map_expr(o.offset, lift), ld=ir.map_expr(o.ld, lift))
        body = tuple(s if not isinstance(s, ir.Gemm) else replace(
            s, m=ir.map_expr(s.m, lift), n=ir.map_expr(s.n, lift), k=ir.map_expr(s.k, lift),
            a=operand(s.a), b=operand(s.b), c=operand(s.c)) for s in body)
    used = {e.name for e in ir.walk_exprs(body) if isinstance(e, ir.Var)}
    names = tuple(n for n in kernel.sizes if n in used)
    buffers = tuple(replace(b, size=ir.const(1)) if b.size is not None else b for b in kernel.buffers)
    form = replace(kernel, buffers=buffers, sizes=(*names, *constants.values()),
                   extent=ir.const(1), grain=ir.const(1), body=body)
    return form, (*names, *constants)


class CompiledProgram:
    """A Program as kernels.

    Attributes
    ----------
    fusion : Fusion
    kernels : list of KernelInfo
    compile_seconds : float
        Lowering and compilation together.
    """

    def __init__(self, program: Program, target: str) -> None:
        start = time.perf_counter()
        self.program, self.target = program, target
        self.fusion: Fusion = fuse(program)
        self.slots: list[Slot] = []
        self.constants: list[Array] = []
        self._slot_of: dict[Any, int] = {}
        self.direct: dict[int, int] = {}        # output slot roles are fixed first: updates written in place
        groups, self.n_check_groups = self._checks_first()
        self.groups: list[tuple[Node, ...]] = [tuple(g.nodes) for g in groups]
        lowered = self._lower(groups)
        self._bind_results()
        self.steps: list[Step] = []
        self._make_steps(lowered)
        self.n_check_steps = sum(len(k) for k in lowered[:self.n_check_groups])
        self.size_names = tuple(program.sizes())
        self._plans: dict[tuple[int, ...], Plan] = {}
        self._lock = threading.Lock()
        self.compile_seconds = time.perf_counter() - start
        if config.dump:
            for k in self.kernels:
                code = hashlib.sha256(k.source.encode()).hexdigest()[:8]    # several kernels may share a name
                write_atomically(f"{config.dump}/kernels/{k.name}_{code}.py", k.source)

    @property
    def arena_bytes(self) -> int:
        """The largest arena of the plans made so far."""
        return max((p.arena_bytes for p in self._plans.values()), default=0)

    # ------------------------------------------------------------ building

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
                    reads[id(storage_of(v, self.fusion.stored).node)] = i
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
            if old is not None and groups[home].kind == "map" and reads.get(id(old.node), -1) == home:
                in_place.setdefault(home, {})[u.value] = old
            elif old is not None and reads.get(id(old.node), -1) == home:
                del self.direct[k]
        out = []
        for i, g in enumerate(groups):
            try:
                out.append(lower_group(g, self.fusion.stored, in_place.get(i)))
            except InPlaceConflict:
                updates = self.program.updates
                for k in [k for k, home in self.direct.items()
                          if home == i and updates[k].value in in_place[i]]:
                    del self.direct[k]
                out.append(lower_group(g, self.fusion.stored))
        return out

    def _slot(self, key: Any, make: Callable[[], Slot]) -> int:
        if key not in self._slot_of:
            self._slot_of[key] = len(self.slots)
            self.slots.append(make())
        return self._slot_of[key]

    def _bind_results(self) -> None:
        """Arguments, outputs and updates get their slots before anything else."""
        program = self.program
        for i, n in enumerate(program.arguments):
            self._slot((id(n), 0), partial(Slot, "argument", i, n.avals[0].shape, None, n.avals[0].dtype))
        for k in self.direct:
            v = program.updates[k].value
            self._slot((id(v.node), v.index), partial(Slot, "target", k, v.aval.shape, None, v.aval.dtype))
        self.copied_outputs: list[tuple[int, Value]] = []          # outputs that another slot already holds
        for i, v in enumerate(program.outputs):
            key = (id(v.node), v.index)
            if key in self._slot_of or is_argument(v.node) or is_buffer_constant(v.node):
                self.copied_outputs.append((i, v))
            else:
                self._slot(key, partial(Slot, "output", i, v.aval.shape, None, v.aval.dtype))

    def _value_slot(self, v: Value) -> int:
        def make() -> Slot:
            if is_buffer_constant(v.node):
                self.constants.append(np.ascontiguousarray(v.node.attrs["value"]))
                return Slot("constant", len(self.constants) - 1, v.aval.shape, None, v.aval.dtype)
            return Slot("arena", -1, v.aval.shape, None, v.aval.dtype)
        return self._slot((id(v.node), v.index), make)

    def _make_steps(self, lowered: list[list[Lowered]]) -> None:
        kernels = [low.kernel for group in lowered for low in group]
        forms = [code_form(vmath.expand(k)) for k in kernels]
        entries, sources, seconds = self._compile([form for form, _ in forms])
        self.kernels: list[KernelInfo] = []
        at = 0
        for g, group in enumerate(lowered):
            for low in group:
                slots = []
                for b, binding in zip(low.kernel.buffers, low.bindings):
                    dtype = np.dtype(b.dtype)
                    if isinstance(binding, Value):
                        slots.append(self._value_slot(binding))
                    elif isinstance(binding, Temporary):
                        make = partial(Slot, "arena", -1, None, binding.size, dtype)
                        slots.append(self._slot(("temporary", g, binding.name), make))
                    else:
                        make = partial(Slot, "arena", -1, None, b.size, dtype, at)
                        slots.append(self._slot(("scratch", at, b.name), make))
                self.steps.append(Step(low.kernel, tuple(slots), forms[at][1], entries[at]))
                kernel = low.kernel
                self.kernels.append(KernelInfo(kernel.name, sources[at], seconds[at], low.nodes, kernel))
                at += 1

    def _compile(self, kernels: list[ir.Kernel]) -> tuple[list[Any], list[str], list[float]]:
        if self.target == "python":
            loaded = [python_target.load(k) for k in kernels]
            return list(loaded), [e.source for e in loaded], [0.0] * len(kernels)
        from .compile import compile_kernels
        compiled = compile_kernels(kernels)
        return ([k.address for k in compiled], [k.source for k in compiled],
                [k.compile_seconds for k in compiled])

    # ------------------------------------------------------------ running

    def plan(self, env: Mapping[str, int]) -> Plan:
        """The memory plan for these sizes."""
        key = tuple(env[n] for n in self.size_names)
        found = self._plans.get(key)
        if found is None:
            with self._lock:
                found = self._plans.get(key)
                if found is None:
                    found = Plan(self, dict(zip(self.size_names, key)))
                    self._plans[key] = found
                    if len(self._plans) > MAX_PLANS:                 # each holds an arena
                        del self._plans[next(iter(self._plans))]
        return found

    def run(self, arguments: Sequence[Array], targets: Sequence[Array],
            env: Mapping[str, int]) -> tuple[list[Array], int | None]:
        """Run once; see `graphc.static.interpret.Interpreted.run`."""
        plan = self.plan(env)
        instance = plan.acquire()
        try:
            return instance.run(arguments, targets)
        finally:
            plan.release(instance)


class Plan:
    """Offsets, extents and chunks for one assignment of the named sizes."""

    def __init__(self, program: CompiledProgram, env: dict[str, int]) -> None:
        self.program, self.env = program, {size_variable(name): n for name, n in env.items()}
        self.shapes = [None if s.shape is None else evaluate_shape(s.shape, env) for s in program.slots]
        self.extents = [max(0, evaluate_expr(s.kernel.extent, self.env)) for s in program.steps]
        self.grains = [max(1, evaluate_expr(s.kernel.grain, self.env)) for s in program.steps]
        self.counts = [self._count(i) for i in range(len(program.slots))]
        self.offsets, self.arena_bytes, self.live_bytes = self._place()
        self._idle: list[Instance] = []

    def _count(self, i: int) -> int:
        slot, shape = self.program.slots[i], self.shapes[i]
        if shape is not None:
            return math.prod(shape)
        assert slot.size is not None
        at = slot.scratch_of
        chunks = 1 if at < 0 else -(-self.extents[at] // self.grains[at])
        return max(0, evaluate_expr(slot.size, self.env)) * max(1, chunks)

    def _place(self) -> tuple[dict[int, int], int, int]:
        """Arena offsets by liveness: each slot from the first step that uses it to the last; first fit."""
        program = self.program
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for t, step in enumerate(program.steps):
            for s in step.slots:
                if program.slots[s].kind == "arena":
                    first.setdefault(s, t)
                    last[s] = t
        kept = {program._slot_of.get((id(v.node), v.index)) for v in program.program.roots}
        for s in set(last).intersection(kept):
            last[s] = len(program.steps)
        starts: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for s, t in first.items():
            starts.setdefault(t, []).append(s)
            ends.setdefault(last[s], []).append(s)
        offsets: dict[int, int] = {}
        free: list[tuple[int, int]] = []                       # (offset, bytes), sorted
        top = live = peak = 0
        for t in range(len(program.steps)):
            for s in sorted(starts.get(t, ()), key=lambda s: -self._bytes(s)):
                need = self._bytes(s)
                live += need
                for k, (at, room) in enumerate(free):
                    if room >= need:
                        offsets[s] = at
                        free[k:k + 1] = [(at + need, room - need)] if room > need else []
                        break
                else:
                    if free and free[-1][0] + free[-1][1] == top:           # grow the last hole
                        at, _ = free.pop()
                        offsets[s], top = at, at + need
                    else:
                        offsets[s], top = top, top + need
            peak = max(peak, live)
            for s in ends.get(t, ()):
                live -= self._bytes(s)
                _give_back(free, offsets[s], self._bytes(s))
        return offsets, top, peak

    def room(self, slot: int) -> int:
        """Elements that may be read.

        An empty value has one along each empty axis, where clamped indices point.
        """
        shape = self.shapes[slot]
        return max(1, self.counts[slot]) if shape is None else math.prod(max(1, n) for n in shape)

    def _bytes(self, slot: int) -> int:
        return -(-self.room(slot) * self.program.slots[slot].dtype.itemsize // ALIGN) * ALIGN

    def acquire(self) -> Instance:
        try:
            return self._idle.pop()
        except IndexError:
            return Instance(self)

    def release(self, instance: Instance) -> None:
        self._idle.append(instance)


def _give_back(free: list[tuple[int, int]], offset: int, size: int) -> None:
    """Return a range to the free list, merging neighbours."""
    insort(free, (offset, size))
    k = free.index((offset, size))
    if k + 1 < len(free) and free[k][0] + free[k][1] == free[k + 1][0]:
        free[k:k + 2] = [(free[k][0], free[k][1] + free[k + 1][1])]
    if k and free[k - 1][0] + free[k - 1][1] == free[k][0]:
        free[k - 1:k + 1] = [(free[k - 1][0], free[k - 1][1] + free[k][1])]


def _address(array: Array) -> int:
    return array.__array_interface__["data"][0]


class Instance:
    """What one run at a time uses: an arena, a slot table, and the table of steps."""

    def __init__(self, plan: Plan) -> None:
        program = plan.program
        self.plan, self.compiled = plan, program
        self.arena = np.empty(plan.arena_bytes + ALIGN, np.uint8)
        base = -_address(self.arena) % ALIGN
        self.views: dict[int, Array] = {}
        self._keep_empty: dict[int, Array] = {}
        self.slots = np.zeros(len(program.slots), np.int64)
        for s, offset in plan.offsets.items():
            dtype = program.slots[s].dtype
            view = self.arena[base + offset:base + offset + plan.room(s) * dtype.itemsize].view(dtype)
            self.views[s] = view
            self.slots[s] = _address(self.arena) + base + offset
        for s, slot in enumerate(program.slots):
            if slot.kind == "constant":
                self.views[s] = program.constants[slot.index].reshape(-1)
                self.slots[s] = _address(program.constants[slot.index])
        self.argument_slots = [s for s, slot in enumerate(program.slots) if slot.kind == "argument"]
        self.output_slots = [(s, slot.index) for s, slot in enumerate(program.slots) if slot.kind == "output"]
        self.target_slots = [(s, slot.index) for s, slot in enumerate(program.slots) if slot.kind == "target"]
        self.last: list[Any] = [None] * (len(program.program.arguments) + len(program.program.updates))
        direct = set(program.direct)
        self.copied_updates = [(k, u.value) for k, u in enumerate(program.program.updates) if k not in direct]
        slot_of = program._slot_of
        self.checks = [slot_of.get((id(c.value.node), c.value.index), c.value)
                       for c in program.program.checks]
        if program.target == "python":
            self._start = self._call_python
        else:
            self._build_table()
            self._start = self._call_native

    def _build_table(self) -> None:
        from .executor import bind_program
        program, plan = self.compiled, self.plan
        n = len(program.steps)
        slot_base, item = _address(self.slots), 8
        self._keep: list[Array] = []
        table = np.zeros((max(n, 1), 6), np.int64)
        for t, step in enumerate(program.steps):
            bufs = np.array([slot_base + item * s for s in step.slots] or [0], np.int64)
            sizes = np.array([n if isinstance(n, int) else plan.env[n] for n in step.sizes] or [0], np.int64)
            self._keep += [bufs, sizes]
            extent, grain = plan.extents[t], plan.grains[t]
            chunks = -(-extent // grain)
            table[t] = (step.entry, _address(bufs), _address(sizes), extent, grain, chunks > 1)
        self.table = table
        k = program.n_check_steps
        self._early = bind_program(table[:k], k) if k else None
        self._late = bind_program(table[k:], n - k) if n > k else None

    def _call_native(self, early: bool) -> None:
        call = self._early if early else self._late
        if call is not None:
            call(config.num_threads)

    def _call_python(self, early: bool) -> None:
        program, plan = self.compiled, self.plan
        k = program.n_check_steps
        for t in range(0, k) if early else range(k, len(program.steps)):
            step = program.steps[t]
            buffers = [self.views[s] for s in step.slots]
            sizes = [n if isinstance(n, int) else plan.env[n] for n in step.sizes]
            extent, grain = plan.extents[t], plan.grains[t]
            for chunk in range(-(-extent // grain)):
                step.entry(buffers, sizes, chunk, chunk * grain, min((chunk + 1) * grain, extent))

    def _set(self, slot: int, array: Array) -> None:
        if not array.size:
            array = np.zeros(self.plan.room(slot), array.dtype)     # what clamped indices read instead
            self._keep_empty[slot] = array
        self.slots[slot] = _address(array)
        if self.compiled.target == "python":
            self.views[slot] = array.reshape(-1)

    def _value(self, v: Value, arguments: Sequence[Array], outputs: Sequence[Array],
               targets: Sequence[Array]) -> Array:
        """The array that holds a root of the program after (or, for arguments, before) the run."""
        program = self.compiled
        node = v.node
        if is_buffer_constant(node):
            return node.attrs["value"]
        s = program._slot_of[(id(node), v.index)]
        slot = program.slots[s]
        if slot.kind == "argument":
            return arguments[slot.index]
        if slot.kind == "output":
            return outputs[slot.index]
        if slot.kind == "target":
            return targets[slot.index]
        return self.views[s][:self.plan.counts[s]].reshape(self.plan.shapes[s])

    def run(self, arguments: Sequence[Array], targets: Sequence[Array]) -> tuple[list[Array], int | None]:
        program, plan, last = self.compiled, self.plan, self.last
        n = len(arguments)
        for s in self.argument_slots:
            i = program.slots[s].index
            if arguments[i] is not last[i]:
                last[i] = arguments[i]
                self._set(s, arguments[i])
        for s, k in self.target_slots:
            if targets[k] is not last[n + k]:
                last[n + k] = targets[k]
                self._set(s, targets[k])
        if self.checks:
            self._start(True)
            for i, c in enumerate(self.checks):
                value = self._value(c, arguments, (), targets) if isinstance(c, Value) else self.views[c]
                if not bool(value.reshape(-1)[0]):
                    return [], i
        outputs: list[Array] = [None] * len(program.program.outputs)  # type: ignore[list-item]
        before = {}
        for i, v in program.copied_outputs:
            if is_argument(v.node):
                outputs[i] = arguments[program.slots[program._slot_of[(id(v.node), 0)]].index].copy()
        for k, v in self.copied_updates:
            if is_argument(v.node):
                before[k] = self._value(v, arguments, outputs, targets).copy()
        for s, i in self.output_slots:
            outputs[i] = np.empty(plan.shapes[s] or (), program.slots[s].dtype)
            self._set(s, outputs[i])
        self._start(False)
        for i, v in program.copied_outputs:
            if outputs[i] is None:
                outputs[i] = np.array(self._value(v, arguments, outputs, targets))
        for k, v in self.copied_updates:
            np.copyto(targets[k], before[k] if k in before else self._value(v, arguments, outputs, targets))
        return outputs, None


__all__ = ["CompiledProgram", "KernelInfo", "Plan"]
