"""Plans: memory, chunks and waves of a program for one assignment of its named sizes, and their runs.

A plan is made from an `Image` before anything runs, compiles nothing, and knows the memory that runs take. A
run takes an `Instance` of it (an arena and a table of its own), so runs may overlap.
"""
from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..core.config import config
from ..core.dims import evaluate_shape
from ..core.memory import aligned, allocator
from ..static.program import FAILED
from .builder import size_variable
from .executor import BUSY, COLUMNS, OK, Call, Operand, run_alone
from .image import ALIGN, Array, Image, evaluate_expr

Piece = tuple[int, int]         # of memory: the slot that has it, and the element at which the piece begins
WORTH_A_THREAD = 0.25           # of a chunk's work: less is not run side by side with other steps


class Plan:
    """Offsets, extents, chunks and waves.

    Attributes
    ----------
    arena_bytes, live_bytes : int
        The memory of all intermediate values, and the most that are alive at once: what no plan that keeps
        the order of steps can go below.
    waves : list of range
        Steps that run side by side.
    """

    def __init__(self, image: Image, entries: Sequence[Any], env: Mapping[str, int], python: bool) -> None:
        self.image, self.entries, self.python = image, entries, python
        self.sizes_text = ", ".join(f"{name} = {n}" for name, n in env.items()) or "no named sizes"
        self.env = {**env, **{size_variable(name): n for name, n in env.items()}}
        self.dtypes = [np.dtype(s.dtype) for s in image.slots]
        self.shapes = [None if s.shape is None else evaluate_shape(s.shape, env) for s in image.slots]
        self.extents = [max(0, evaluate_expr(s.extent, self.env)) for s in image.steps]
        self.grains = [max(1, evaluate_expr(s.grain, self.env)) for s in image.steps]
        self.windows = {k: evaluate_expr(s.offset, env)
                        for k, s in enumerate(image.slots) if s.kind == "window"}
        self.counts = [self._count(k) for k in range(len(image.slots))]
        self.waves = self._waves()
        self.offsets, self.arena_bytes, self.live_bytes = self._place()
        self.operands = image.operands()
        # arguments that are no state which is updated: they must not lie where one is written
        self.apart = {k for k, s in enumerate(image.slots) if image.aliases and s.kind == "argument"
                      and s.index not in image.aliases}
        keep = {s.index for s in image.slots if s.kind == "kept"}       # the operand that has what is kept
        self._outputs = [(aligned if k in keep else allocator(shape, self.dtypes[k]), shape, self.dtypes[k])
                         for k in self.operands if image.slots[k].kind == "output"
                         for shape in [self.shapes[k] or ()]]
        self.instances: list[Instance] = []
        self.calls: list[Any] = []                      # theirs, to be tried in turn

    def _count(self, slot: int) -> int:
        shape, size = self.shapes[slot], self.image.slots[slot].size
        if shape is not None:
            return math.prod(shape)
        assert size is not None
        step = self.image.slots[slot].scratch_of
        return max(0, evaluate_expr(size, self.env)) * (1 if step < 0 else max(1, self.chunks(step)))

    def chunks(self, step: int) -> int:
        return -(-self.extents[step] // self.grains[step])

    def home(self, slot: int) -> int:
        """The slot whose memory it is."""
        return self.image.slots[slot].index if slot in self.windows else slot

    # ------------------------------------------------------------ order

    def _waves(self) -> list[range]:
        """Neighbours in the order of steps that need nothing of each other and are worth a thread each."""
        image, memory = self.image, self._pieces()
        waves: list[range] = []
        read, written, work = set[Piece](), set[Piece](), 0.0
        for t, step in enumerate(image.steps):
            own = self.extents[t] / self.grains[t]
            writes = {p for s, w in zip(step.slots, step.writes) if w for p in memory[s]}
            reads = {p for s, w in zip(step.slots, step.writes) if not w for p in memory[s]}
            apart = writes.isdisjoint(read | written) and reads.isdisjoint(written)
            worth = min(own, work) >= WORTH_A_THREAD
            if waves and apart and worth and t != image.n_early:
                waves[-1] = range(waves[-1].start, t + 1)
                read, written, work = read | reads, written | writes, work + own
            else:
                waves.append(range(t, t + 1))
                read, written, work = reads, writes, own
        return waves

    def _pieces(self) -> list[list[Piece]]:
        """The memory that each slot is: a home, in pieces wherever a window into it begins or ends."""
        image = self.image
        argument = {s.index: k for k, s in enumerate(image.slots) if s.kind == "argument"}
        same = {k: argument[image.aliases[s.index]] for k, s in enumerate(image.slots)
                if s.kind == "target" and image.aliases[s.index] >= 0}      # one buffer under two slots
        home = [same.get(h, h) for h in map(self.home, range(len(image.slots)))]
        cuts: dict[int, list[int]] = {k: [0] for k in home}
        for k, at in self.windows.items():
            cuts[home[k]] += [at, at + self.counts[k]]
        starts = {k: sorted(set(c)) for k, c in cuts.items()}
        out = []
        for k, h in enumerate(home):
            at = self.windows.get(k, 0)
            first, last = bisect_left(starts[h], at), bisect_left(starts[h], at + max(1, self.counts[k]))
            out.append([(h, c) for c in starts[h][first:last]])
        return out

    # ------------------------------------------------------------ memory

    def _place(self) -> tuple[dict[int, int], int, int]:
        """Arena offsets by liveness: each slot from the first wave that uses it to the last; first fit."""
        image = self.image
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        for w, wave in enumerate(self.waves):
            for t in wave:
                for s in map(self.home, image.steps[t].slots):
                    if image.slots[s].kind == "arena":
                        first.setdefault(s, w)
                        last[s] = w
        early = sum(wave.start < image.n_early for wave in self.waves)
        for s in set(last).intersection(map(self.home, image.checks)):  # read when the early steps are done
            last[s] = max(last[s], early)
        starts: dict[int, list[int]] = {}
        ends: dict[int, list[int]] = {}
        for s, w in first.items():
            starts.setdefault(w, []).append(s)
            ends.setdefault(last[s], []).append(s)
        offsets: dict[int, int] = {}
        free: list[tuple[int, int]] = []                       # (offset, bytes), sorted
        top = live = peak = 0
        for w in range(len(self.waves)):
            for s in sorted(starts.get(w, ()), key=lambda s: -self._bytes(s)):
                need = self._bytes(s)
                live += need
                fits = [(room, at) for at, room in free if room >= need]
                if fits:                                                        # the tightest hole
                    room, at = min(fits)
                    offsets[s] = at
                    k = free.index((at, room))
                    free[k:k + 1] = [(at + need, room - need)] if room > need else []
                elif free and free[-1][0] + free[-1][1] == top:                 # grow the last hole
                    at, _ = free.pop()
                    offsets[s], top = at, at + need
                else:
                    offsets[s], top = top, top + need
            peak = max(peak, live)
            for s in ends.get(w, ()):
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
        return -(-self.room(slot) * self.dtypes[slot].itemsize // ALIGN) * ALIGN

    # ------------------------------------------------------------ runs

    def results(self) -> list[Array]:
        """New arrays for the outputs of a run."""
        return [empty(shape, dtype) for empty, shape, dtype in self._outputs]

    def run(self, arrays: Sequence[Array]) -> tuple[list[Array], int]:
        """Run on arguments and targets.

        Returns
        -------
        outputs, code
            Arrays of the caller's own, and what `executor.Call` returns.
        """
        outputs = self.results()
        for call in self.calls:
            code: int = call(config.num_threads, *arrays, *outputs)
            if code != BUSY:
                return outputs, code
        instance = Instance(self)
        code = instance.call(config.num_threads, *arrays, *outputs)
        self.instances.append(instance)
        self.calls.append(instance.call)
        return outputs, code


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
    """What one run at a time uses: an arena, a table of slots, and ``call(num_threads, *arrays)``.

    ``step(num_threads, k)`` runs one step by itself, on the arrays of the last call; one past the last, none.
    """
    call: Callable[..., int]
    step: Callable[[int, int], None]

    def __init__(self, plan: Plan) -> None:
        image = plan.image
        self.arena = np.empty(plan.arena_bytes + ALIGN, np.uint8)
        base = -_address(self.arena) % ALIGN
        self.views: dict[int, Array] = {}               # of slots whose memory stays
        for s, offset in plan.offsets.items():
            raw = self.arena[base + offset:base + offset + plan.room(s) * plan.dtypes[s].itemsize]
            self.views[s] = raw.view(plan.dtypes[s])
        for s, slot in enumerate(image.slots):
            if slot.kind == "constant":
                self.views[s] = image.constants[slot.index].reshape(-1)
        # an array without elements is not read, but clamped indices must point somewhere
        self.instead = {s: np.zeros(plan.room(s), plan.dtypes[s])
                        for s in plan.operands if not plan.counts[s]}
        # (a window that begins at the end has nothing in it, and shows all instead: clamped indices again)
        self.windows = [(s, plan.home(s), at if at < plan.counts[plan.home(s)] else 0)
                        for s, at in plan.windows.items()]
        self.kept = [(s, evaluate_expr(slot.offset, {})) for s, slot in enumerate(image.slots)
                     if slot.kind == "kept"]                    # (slot, where it is in bytes of its home)
        self.call, self.step = self._python(plan) if plan.python else self._native(plan)

    def _native(self, plan: Plan) -> tuple[Callable[..., int], Callable[[int, int], None]]:
        image = plan.image
        slots = np.zeros(max(1, len(image.slots)), np.int64)
        for s, view in self.views.items():
            slots[s] = _address(view)
        # windows of what each run brings
        moving = [(s, image.slots[s].index, at) for s, at in self.kept]
        for s, home, at in self.windows:
            offset = at * plan.dtypes[s].itemsize
            if home in self.views:
                slots[s] = slots[home] + offset
            else:
                moving.append((s, home, offset))
        lists: list[Array] = []                                             # kept alive with the call

        def address(numbers: Sequence[int]) -> int:
            lists.append(np.array(numbers or [0], np.int64))
            return _address(lists[-1])

        table = np.zeros((len(image.steps), COLUMNS), np.int64)
        at, width = _address(slots), {wave.start: len(wave) for wave in plan.waves}
        for t, step in enumerate(image.steps):
            table[t] = (plan.entries[t], address([at + 8 * s for s in step.slots]),
                        address([n if isinstance(n, int) else plan.env[n] for n in step.sizes]),
                        plan.extents[t], plan.grains[t], width.get(t, 1))
        operands = [
            Operand(s, plan.dtypes[s], plan.shapes[s] or (),
                    written=image.slots[s].kind != "argument",
                    instead=_address(self.instead[s]) if s in self.instead else 0,
                    apart=s in plan.apart) for s in plan.operands]
        call = Call(table, image.n_early, slots, operands, image.checks, moving)
        self._keep = (call, lists)
        return call.run, run_alone(table)

    def _python(self, plan: Plan) -> tuple[Callable[..., int], Callable[[int, int], None]]:
        """The same in Python, for entries that are Python functions. `executor` says what it returns."""
        image, views = plan.image, dict(self.views)

        def run(steps: range) -> None:
            for t in steps:
                step, extent, grain = image.steps[t], plan.extents[t], plan.grains[t]
                sizes = [n if isinstance(n, int) else plan.env[n] for n in step.sizes]
                for chunk in range(plan.chunks(t)):
                    plan.entries[t]([views[s] for s in step.slots], sizes, chunk, chunk * grain,
                                    min((chunk + 1) * grain, extent))

        first_target = sum(image.slots[s].kind == "argument" for s in plan.operands)

        def call(_: int, *arrays: Array) -> int:
            for k, (s, a) in enumerate(zip(plan.operands, arrays, strict=True)):
                if type(a) is not np.ndarray or a.dtype != plan.dtypes[s] or a.shape != plan.shapes[s]:
                    return k
                if s in plan.apart and any(np.may_share_memory(a, t) for t in arrays[first_target:]):
                    return k
                views[s] = self.instead[s] if s in self.instead else a.reshape(-1)
            for s, at in self.kept:
                n_bytes = plan.room(s) * plan.dtypes[s].itemsize
                views[s] = views[image.slots[s].index][at:at + n_bytes].view(plan.dtypes[s])
            for s, home, at in self.windows:
                views[s] = views[home][at:]
            run(range(image.n_early))
            for k, s in enumerate(image.checks):
                if not views[s][0]:
                    return FAILED + k
            run(range(image.n_early, len(image.steps)))
            return OK
        return call, lambda _, k: run(range(len(image.steps))[k:k + 1])


__all__ = ["Plan"]
