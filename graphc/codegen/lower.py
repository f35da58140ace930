"""Lowering: a fused group becomes one kernel (an op with loops of its own: one per parallel region).

What writes them: `writer.py` maps, `rows.py` folds along rows and all around them, `folds.py` other folds,
and `OpKernels` what ops write themselves.
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from ..core.errors import GraphcError
from ..core.node import Value
from ..core.op import Loops
from ..static.printer import short_origin
from . import loopir as ir
from .builder import Access, Block, Builder, Stored, unsupported
from .cluster import loops_of, matrix_of, matrix_space
from .folds import FoldWriter
from .fuse import Fusion, Group, Window, parts_of, storage_of
from .loopir import Expr, Kernel, Var
from .rows import RowWriter
from .space import Space
from .writer import Binding, InPlaceConflict, Lowered, MapWriter, Temporary, Writer, dtype_of

WORTH_KEEPING = 0.02        # part of an op's time that is worth the memory of a value kept from run to run
PRODUCTS = 8.0              # multiplications and additions of a product in the time of a unit of a map's work


def lower_group(group: Group, fusion: Fusion, in_place: dict[Value, Value] | None = None) -> list[Lowered]:
    """The kernels of a group; none for values joined where all of them are written in their places.

    ``in_place`` maps a stored value to the argument whose buffer it takes over; `InPlaceConflict` is raised
    when the group reads that argument anywhere but at the element being written.
    """
    stored = fusion.stored
    try:
        if group.kind == "joined":
            return _lower_joined(group, fusion)
        if group.kind == "loops":
            return _lower_loops(group, fusion, in_place or {})
        if group.kind == "rows":
            return RowWriter(group, stored).lower()
        if group.kind == "fold":
            return [FoldWriter(group, stored, in_place or {}).lower()]
        return [MapWriter(group, stored, in_place or {}).lower()]
    except GraphcError:
        raise
    except Exception as error:
        raise unsupported(f"cannot lower {group!r}: {type(error).__name__}: {error}",
                          [o for n in group.nodes for o in n.origins]) from error


# ---------------------------------------------------------------- ops with loops of their own

@dataclass(eq=False)
class OpKernels(Builder):
    """What `Loops` ops write with.

    Parallel regions (a kernel each), scratch, temporaries, and all of `Builder`. An op with several ways to
    run may name the one it takes, ``variant``, for those who look at its kernels.
    """
    group: Group
    in_memory: Set[int]
    lasting: Set[int] = frozenset()             # nodes that are the same at each run
    variant: str = ""
    lowered: list[Lowered] = field(default_factory=list)
    epilogue: Epilogue | None = None
    any_size: bool = False                      # of all kernels: see `Kernel`

    def __post_init__(self) -> None:
        Builder.__init__(self)
        self._bindings: list[Binding] = []
        self._scratch: list[tuple[str, str, Expr]] = []
        self._read_only: set[str] = set()

    def let(self, e: Expr) -> Expr:
        """As in `Builder`, but what these loops write is read anew: a store may lie in between."""
        if isinstance(e, (ir.Const, Var)) or all(
                x.buffer in self._read_only for x in ir.subtree(e) if isinstance(x, ir.Load)):
            return super().let(e)
        name = self.fresh("v")
        self.emit(ir.Let(name, e))
        return Var(name, e.dtype)

    def bind(self, value: Value | Window | Temporary, role: str, shape: Sequence[Any], dtype: str) -> Stored:
        home: Binding = value
        if isinstance(value, Value) and role == "in":
            whole, at = storage_of(value, self.in_memory)
            home = whole if at == 0 else Window(whole, at, value.aval.size)
        if role == "in" and home in self._bindings:
            return Stored(self, f"p{self._bindings.index(home)}", [self.size(s) for s in shape], dtype)
        self._bindings.append(home)
        name = f"p{len(self._bindings) - 1}"
        if role == "in":
            self._read_only.add(name)
        return Stored(self, name, [self.size(s) for s in shape], dtype)

    def bind_in_place(self, value: Value) -> Stored:
        """The buffer of an input that these loops write too."""
        out = self.bind(value, "in", value.aval.shape, value.aval.dtype.name)
        self._read_only.discard(out.buffer)
        return out

    def lasts(self, x: Stored) -> bool:
        """Whether an input is the same at each run: what these loops make of it alone is kept."""
        home = self._bindings[int(x.buffer[1:])]
        value = home.value if isinstance(home, Window) else home
        return isinstance(value, Value) and id(value.node) in self.lasting

    def following(self) -> float:
        """What is made of an element of a result, in multiplications and additions of a product."""
        return 0.0 if self.epilogue is None else PRODUCTS * self.epilogue.work_of_element()

    def in_scratch(self, out: Stored) -> bool:
        """Whether blocks of a result are written to scratch memory."""
        return self.epilogue is not None and self.epilogue.home(out) is None

    def nowhere(self, shape: Sequence[Any], dtype: str) -> Stored:
        """A result without a buffer, whose blocks are written elsewhere."""
        return Stored(self, "", [self.size(s) for s in shape], dtype)

    @contextmanager
    def written(self, out: Stored, rows: tuple[Expr, Expr], columns: tuple[Expr, Expr],
                most: tuple[int | Expr, int | Expr]) -> Iterator[Block]:
        """The place for a block of an op's result; when it is written, what is made of it is computed too.

        Parameters
        ----------
        out
            The result, seen as a matrix: `Loops.blocks` trailing axes are the columns, all others the rows.
        rows, columns
            Where the block begins, and its extent.
        most
            At least the extents of all blocks.
        """
        width = self.size(matrix_of(loops_of(self.group))[1])
        at = self.let(ir.iadd(ir.imul(rows[0], width), columns[0]))
        home = out if self.epilogue is None else self.epilogue.home(out)
        if home is None:
            home, width = self.scratch(out.dtype, self.product(most)), self.product(most[1:])
            at = home.base
        block = home.block(at, width)
        yield block
        if self.epilogue is not None:
            self.epilogue.write(block, rows, columns)

    def temporary(self, dtype: str, size: Expr, saves: float = 1.0) -> Stored:
        """A buffer for results that one parallel region hands to the next.

        Of what lasts, it is kept from run to run if that ``saves`` enough: a part of the op's time.
        """
        t = Temporary(f"t{len(self._bindings)}", dtype, size, saves >= WORTH_KEEPING)
        self._bindings.append(t)
        return Stored(self, f"p{len(self._bindings) - 1}", [size], dtype)

    def scratch(self, dtype: str, size: Expr) -> Stored:
        """Working memory of one chunk; contents are undefined at first."""
        name = f"s{len(self._scratch)}"
        self._scratch.append((name, dtype, size))
        return Stored(self, name, [size], dtype, base=self.let(ir.imul(Var("chunk"), size)))

    def slice0(self, scratch: Stored) -> Expr:
        """Where this chunk's slice of a scratch buffer begins, for `block`."""
        return scratch.base

    def _region(self, body: list[ir.Stmt], extent: Expr, grain: Expr) -> None:
        read, used = ir.operands(tuple(body))
        used |= {s.buffer for s in ir.walk_stmts(tuple(body)) if isinstance(s, ir.Store)}
        read |= {e.buffer for e in ir.walk_exprs(tuple(body)) if isinstance(e, ir.Load)}
        made = self.group.nodes[-1] if self.group.kind == "joined" else loops_of(self.group)

        def role(buffer: str) -> ir.Role:
            if buffer not in used:
                return "in"
            return "inout" if buffer in read else "out"
        keep = [k for k in range(len(self._bindings)) if f"p{k}" in used | read]
        buffers = [ir.Buffer(f"p{k}", dtype_of(self._bindings[k]), role(f"p{k}")) for k in keep]
        buffers += [ir.Buffer(n, d, "scratch", size) for n, d, size in self._scratch]
        notes = [ir.Note(f"{n.name} = {n.op.name}   {short_origin(n)}")
                 for n in self.group.nodes if n is made or n.op.name != "constant"]
        ops = dict.fromkeys(n.op.name for n in self.group.nodes if n.inputs)
        stem = "_".join(ops)[:48] + (f"_{self.variant}" if self.variant else "")
        name = f"{stem}_{len(self.lowered) + 1}" if self.lowered else stem
        kernel = Kernel(name, tuple(buffers), tuple(self.sizes), extent, grain, (*notes, *body),
                        self.any_size)
        bindings = (*(self._bindings[k] for k in keep), *(None for _ in self._scratch))
        self.lowered.append(Lowered(ir.verify(kernel), bindings, tuple(self.group.nodes)))
        self._scratch = []

    @contextmanager
    def parallel(self, extent: Expr, work: float, partials: int | None = None) -> Iterator[Expr]:
        """A region over ``0..extent``.

        ``work`` operations per index; at most ``partials`` chunks when given.
        """
        with self.block() as body:
            with self.loop(Var("begin"), Var("end")) as i:
                yield i
        grain = self.grain(work)
        if partials is not None:
            grain = self.maximum(grain, ir.idiv(ir.iadd(extent, partials - 1), partials))
        self._region(body, extent, grain)

    @contextmanager
    def parallel_blocks(self, extent: Expr, block: int) -> Iterator[tuple[Expr, Expr]]:
        """A region given as (start, count) of each chunk of ``block``: for block-wise products."""
        with self.block() as body:
            yield Var("begin"), ir.isub(Var("end"), Var("begin"))
        self._region(body, extent, self.index(block))

    @contextmanager
    def parallel_chunks(self, extent: Expr, grain: Expr) -> Iterator[tuple[Expr, Expr, Expr]]:
        """A region with its grain given: (chunk, begin, end)."""
        with self.block() as body:
            yield Var("chunk"), Var("begin"), Var("end")
        self._region(body, extent, self.maximum(grain, self.index(1)))

    @contextmanager
    def serial(self) -> Iterator[None]:
        """A region of one chunk."""
        with self.block() as body:
            yield
        self._region(body, self.index(1), self.index(1))


class Epilogue(Writer):
    """What is made of an op's result, element by element, each time that a block of it is written.

    The op's node is the ``source`` of the group's other nodes, which read it at their own place only.
    """

    def __init__(self, k: OpKernels, group: Group, stored: Set[int], in_place: dict[Value, Value]) -> None:
        super().__init__(group, stored, in_place)
        self.b = self.k = k
        self.source = Value(loops_of(group), 0)
        self.inside.discard(id(self.source.node))
        self.results = [v for v in group.roots if v != self.source]
        space = matrix_space(self.source.node)
        assert space is not None
        self.space: Space = space
        self.matrix = matrix_of(self.source.node)
        self.element: Expr | None = None            # of the source, where results are being computed
        self.buffers.update({(id(v.node), v.index): k.bind_in_place(v) for v in in_place.values()})
        for v in self.results:
            if v not in in_place:
                self.buffers[id(v.node), v.index] = k.bind(v, "out", v.aval.shape, v.aval.dtype.name)

    def home(self, out: Stored) -> Stored | None:
        """A buffer that has room for the source: its own, or that of a result; None where there is none."""
        if self.source in self.group.roots:
            return out
        return next((self.output(v) for v in self.results
                     if v not in self.in_place and v.aval.dtype == self.source.aval.dtype), None)

    def write(self, block: Block, rows: tuple[Expr, Expr], columns: tuple[Expr, Expr]) -> None:
        """The results for a block of the source."""
        b = self.b
        with b.loop(b.index(0), rows[1]) as r, b.loop(b.index(0), columns[1]) as c:
            at = [b.let(ir.iadd(first, i)) for (first, _), i in ((rows, r), (columns, c))]
            flat = b.flatten(at, self.matrix)
            near = flat if block.buffer[0] == "p" else ir.iadd(block.offset, ir.iadd(ir.imul(r, block.ld), c))
            self.element = b.let(ir.Load(block.buffer, near, block.dtype))
            within = [i for i, n in zip(at, self.matrix) if n != 1]
            results = [self.compute(v, self.space.index(b, within, v.aval.shape)) for v in self.results]
            for v, e in zip(self.results, results):
                self.output(v).store_flat(flat, e)

    def stored(self, value: Value, role: str) -> Any:
        home, at = storage_of(value, self.in_memory) if role == "in" else (value, 0)
        shape, dtype = value.aval.shape, value.aval.dtype.name
        if home == self.source:
            assert self.element is not None
            return _OneElement(self.b, [self.b.size(s) for s in shape], dtype, self.element)
        found = self.buffers.get((id(home.node), home.index))
        return self.k.bind(value, "in", shape, dtype) if found is None else replace(
            found, shape=[self.b.size(s) for s in shape], base=self.b.size(at))

    def output(self, value: Value) -> Stored:
        home = self.in_place.get(value, value)
        return self.buffers[id(home.node), home.index]

    def check(self, lowered: Sequence[Lowered]) -> None:
        """InPlaceConflict where an argument is read elsewhere than where it is written."""
        for value, source in self.in_place.items():
            name = self.buffers[id(source.node), source.index].buffer
            for low in lowered:
                body = low.kernel.body
                loads = {e.index for e in ir.walk_exprs(body) if isinstance(e, ir.Load) and e.buffer == name}
                stores = {s.index for s in ir.walk_stmts(body)
                          if isinstance(s, ir.Store) and s.buffer == name}
                parts = any(isinstance(b, Window) and b.value == source for b in low.bindings)
                if parts or not loads <= stores or name in set[str]().union(*ir.operands(body)):
                    raise InPlaceConflict(f"{value!r} reads {source!r} elsewhere than where it writes")


@dataclass(eq=False)
class _OneElement(Access):
    """The element of a value that is at hand: whoever reads it reads it at its own place."""
    b: Builder
    shape: list[Expr]
    dtype: str
    element: Expr

    def at(self, index: Sequence[Expr]) -> Expr:
        return self.element

    def at_flat(self, flat: Expr) -> Expr:
        return self.element


def _lower_loops(group: Group, fusion: Fusion, in_place: dict[Value, Value]) -> list[Lowered]:
    node, stored = loops_of(group), fusion.stored
    lower = node.op.lower
    assert isinstance(lower, Loops)
    k = OpKernels(group, stored, fusion.lasting if not group.early else frozenset())
    inputs = [k.bind(v, "in", v.aval.shape, v.aval.dtype.name) for v in node.inputs]
    if node is not group.nodes[-1]:
        k.epilogue = Epilogue(k, group, stored, in_place)
    values = [Value(node, i) for i in range(len(node.avals))]
    outputs = [k.bind(v, "out", v.aval.shape, v.aval.dtype.name) if v in group.roots
               else k.nowhere(v.aval.shape, v.aval.dtype.name) for v in values]
    lower.build(k, inputs, outputs, **node.attrs)
    if k.epilogue is not None:
        k.epilogue.check(k.lowered)
    return k.lowered


def _lower_joined(group: Group, fusion: Fusion) -> list[Lowered]:
    """Copies of the parts that are not written where they belong."""
    node = group.nodes[-1]
    k = OpKernels(group, fusion.stored)
    for v, window in zip(node.inputs, parts_of(node)):
        home, _ = storage_of(v, fusion.stored)
        if fusion.parts.get(home) != window:
            source = k.bind(v, "in", v.aval.shape, v.aval.dtype.name)
            target = k.bind(window, "out", v.aval.shape, v.aval.dtype.name)
            with k.parallel(k.size(v.aval.size), work=1.0) as i:
                target.store_flat(i, source.at_flat(i))
    return k.lowered


__all__ = ["InPlaceConflict", "Lowered", "Temporary", "Window", "lower_group"]
