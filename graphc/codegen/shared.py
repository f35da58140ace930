"""The form in which a kernel is compiled: what may differ between kernels of one code is an argument of it.

All products are a few kernels, and so are all updates of parameters. The kernel of step t of an unrolled
recurrence reads x[t]: it is compiled for x[0], and its buffer begins further on.
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from ..core.dims import Size, dim
from . import loopir as ir
from .builder import size_name


@dataclass(frozen=True, slots=True)
class CodeForm:
    """A kernel as it is compiled, the values of its size arguments, and where its buffers begin."""
    kernel: ir.Kernel
    sizes: tuple[str | int, ...]
    offsets: tuple[Size, ...]


def code_form(kernel: ir.Kernel) -> CodeForm:
    """The kernel without what a plan says: its extent and chunks, a product's sizes, where reading begins."""
    offsets = _offsets(kernel)
    body = _from_start(kernel.body, kernel.sizes, offsets)
    constants: dict[int, str] = {}
    if kernel.any_size:
        body = _without_constants(body, constants)
    used = {e.name for e in ir.walk_exprs(body) if isinstance(e, ir.Var)}
    names = tuple(n for n in kernel.sizes if n in used)
    buffers = tuple(replace(b, size=ir.const(1)) if b.size is not None else b for b in kernel.buffers)
    form = replace(kernel, buffers=buffers, sizes=(*names, *constants.values()),
                   extent=ir.const(1), grain=ir.const(1), body=body)
    return CodeForm(form, (*names, *constants), tuple(offsets.get(b.name, 0) for b in kernel.buffers))


def _without_constants(body: tuple[ir.Stmt, ...], constants: dict[int, str]) -> tuple[ir.Stmt, ...]:
    """Statements whose sizes are arguments."""
    def lift(e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Const) and e.dtype == "int64" and e.value > 1:
            return ir.Var(constants.setdefault(int(e.value), f"c{len(constants)}"))
        return e
    return ir.map_sizes(body, lift)


# ---------------------------------------------------------------- where reading begins

_READERS = (ir.Let, ir.Set, ir.Store, ir.For, ir.Lanes, ir.If)       # statements that `_from_start` rewrites


def _offsets(kernel: ir.Kernel) -> dict[str, Size]:
    """For each buffer that is only read, element by element: what all its indices have in common."""
    found: dict[str, list[Size]] = {b.name: [] for b in kernel.buffers if b.role == "in"}
    for s in ir.walk_stmts(kernel.body):
        operands = (s.a, s.b, s.c) if isinstance(s, (ir.Gemm, ir.Tile)) else (
            (s.a, s.c) if isinstance(s, ir.Transpose) else ())
        for o in operands:                              # these say where they begin themselves
            found.pop(o.buffer, None)
    positive = {*kernel.sizes, "chunk", "begin", "end"}
    for s in ir.walk_stmts(kernel.body):
        if (isinstance(s, ir.Let) and _never_negative(s.value, positive)) or isinstance(s, ir.Lanes) or (
                isinstance(s, ir.For) and _never_negative(s.start, positive)):
            positive.add(s.name if isinstance(s, ir.Let) else s.var)
        for e in (e for x in ir.stmt_exprs(s) for e in ir.subtree(x)):
            if isinstance(e, ir.Load) and e.buffer in found:
                rest, at = _parts(e.index, kernel.sizes)
                if isinstance(s, _READERS) and _never_negative(rest, positive):
                    found[e.buffer].append(at)
                else:
                    del found[e.buffer]
    common = {buffer: _common(starts) for buffer, starts in found.items()}
    return {buffer: start for buffer, start in common.items() if start is not None}


def _never_negative(e: ir.Expr, positive: set[str]) -> bool:
    match e:
        case ir.Const(value=value):
            return value >= 0
        case ir.Var(name=name):
            return name in positive
        case ir.Call(op="add" | "mul" | "minimum" | "floordiv" | "mod", args=args):
            return all(_never_negative(a, positive) for a in args)
        case ir.Call(op="maximum", args=args):
            return any(_never_negative(a, positive) for a in args)
    return False


def _common(starts: list[Size]) -> Size | None:
    """The least of sizes a known number apart, if it is none that might be negative."""
    apart = [start - starts[0] for start in starts]
    known = [n for n in apart if isinstance(n, int)]
    if not known or len(known) < len(apart):
        return None
    least = starts[0] + min(known)
    terms = ((None, least),) if isinstance(least, int) else least.terms
    return least if all(factor >= 0 for _, factor in terms) else None


def _parts(e: ir.Expr, sizes: tuple[str, ...]) -> tuple[ir.Expr, Size]:
    """An index as (what changes, what does not)."""
    zero = ir.const(0)
    match e:
        case ir.Const(value=value, dtype="int64"):
            return zero, int(value)
        case ir.Var(name=name) if name in sizes:
            return zero, dim(size_name(name))
        case ir.Call(op="add", args=(x, y), dtype="int64"):
            (rest_x, at_x), (rest_y, at_y) = _parts(x, sizes), _parts(y, sizes)
            return ir.iadd(rest_x, rest_y), at_x + at_y
        case ir.Call(op="mul", args=(x, y), dtype="int64"):
            (rest_x, at_x), (rest_y, at_y) = _parts(x, sizes), _parts(y, sizes)
            if rest_y == zero:
                return ir.imul(rest_x, y), at_x * at_y
            if rest_x == zero:
                return ir.imul(x, rest_y), at_x * at_y
    return e, 0


def _from_start(body: tuple[ir.Stmt, ...], sizes: tuple[str, ...],
                offsets: dict[str, Size]) -> tuple[ir.Stmt, ...]:
    """Statements that read buffers which begin at ``offsets``."""
    def moved(buffer: str, index: ir.Expr) -> ir.Expr | None:
        rest, at = _parts(index, sizes)
        left = at - offsets[buffer]
        return ir.iadd(rest, left) if isinstance(left, int) else None

    def load(e: ir.Expr) -> ir.Expr:
        if not isinstance(e, ir.Load) or e.buffer not in offsets:
            return e
        index = moved(e.buffer, e.index)
        assert index is not None
        return replace(e, index=index)

    def change(e: ir.Expr) -> ir.Expr:
        return ir.map_expr(e, load)

    def of(s: ir.Stmt) -> ir.Stmt:
        match s:
            case ir.Let() | ir.Set():
                return replace(s, value=change(s.value))
            case ir.Store():
                return replace(s, index=change(s.index), value=change(s.value))
            case ir.Prefetch() if s.buffer in offsets:
                return replace(s, index=moved(s.buffer, s.index) or s.index)
            case ir.For():
                return replace(s, start=change(s.start), stop=change(s.stop), body=inside(s.body))
            case ir.Lanes():
                return replace(s, count=change(s.count), body=inside(s.body))
            case ir.If():
                return replace(s, cond=change(s.cond), then=inside(s.then), orelse=inside(s.orelse))
        return s

    def inside(body: tuple[ir.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        return tuple(map(of, body))
    return inside(body) if offsets else body


__all__ = ["CodeForm", "code_form"]
