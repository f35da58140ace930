"""Pooling in two dimensions, with its adjoints as ops of their own."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..core import record
from ..core.aval import Aval
from ..core.dims import Shape, format_shape
from ..core.errors import DTypeError, ShapeError
from ..core.op import Images, Loops, Op
from ..core.tensor import Tensor, as_tensor
from . import pool_last
from .layout import by_layout, image, image_shape, image_size, laid_out, planes
from .window import Array, Pair, add_windows, out_size, pair, windows

STEP = 4.0                  # vector operations on an element of a window


def _pool_infer(name: str, x: Aval, kernel: Pair, stride: Pair, padding: Pair, layout: str) -> Shape:
    if x.dtype.kind == "b":
        raise DTypeError(f"{name}: takes numbers, not bool")
    n, c, size = image(name, x, layout)
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise ShapeError(f"{name}: padding {padding} is more than half of the kernel {kernel}")
    oh, ow = (out_size(size[i], kernel[i], stride[i], padding[i], 1) for i in (0, 1))
    if any(isinstance(s, int) and s <= 0 for s in (oh, ow)):
        raise ShapeError(f"{name}: a window of {kernel} does not fit into {format_shape(size)}")
    return image_shape(layout, n, c, (oh, ow))


def _max_pool_infer(x: Aval, kernel: Pair, stride: Pair, padding: Pair,
                    layout: str = "NCHW") -> tuple[Aval, Aval]:
    shape = _pool_infer("max_pool2d", x, kernel, stride, padding, layout)
    return Aval(shape, x.dtype), Aval(shape, np.dtype(np.int32))


def _unpool_infer(name: str, g: Aval, size: Pair, layout: str) -> Aval:
    n, c, _ = image(name, g, layout)
    return Aval(image_shape(layout, n, c, size), g.dtype)


def _window(c: Any) -> dict[str, Any]:
    return {key: c.attrs[key] for key in ("kernel", "stride", "padding", "layout") if key in c.attrs}


def _size(c: Any) -> tuple[Any, Any]:
    """Rows and columns of the first input."""
    return image_size(c.shapes[0], c.attrs.get("layout", "NCHW"))


def _max_pool_run(x: Array, kernel: Pair, stride: Pair, padding: Pair,
                  layout: str = "NCHW") -> tuple[Array, Array]:
    _pool_infer("max_pool2d", Aval(x.shape, x.dtype), kernel, stride, padding, layout)
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    win = windows(planes("max_pool2d", x, layout), kernel, stride, padding, (1, 1), low)
    best, where = win[..., 0, 0].copy(), np.zeros(win.shape[:4], np.int32)
    for k in range(1, kernel[0] * kernel[1]):
        candidate = win[..., k // kernel[1], k % kernel[1]]
        wins = candidate > best
        if x.dtype.kind == "f":
            wins |= np.isnan(candidate) & ~np.isnan(best)
        np.copyto(best, candidate, where=wins)
        where[wins] = k
    return laid_out(best, layout), laid_out(where, layout)


def _pool_cost(k: Any, avals: Sequence[Aval], attrs: dict[str, Any]) -> float:
    """`Images.cost` of poolings and their adjoints: by elements of windows."""
    layout, kernel = attrs.get("layout", "NCHW"), attrs["kernel"]
    n, c, size = image("pooling", avals[-1], layout)
    if len(avals) == 1 and "size" not in attrs:                 # the operand is what windows are of
        steps, padding = attrs["stride"], attrs["padding"]
        oh, ow = (out_size(size[i], kernel[i], steps[i], padding[i], 1) for i in (0, 1))
        size = oh, ow
    lanes = k.vector_lanes(avals[0].dtype.name)
    windows, along = (k.estimate(*map(k.size, sizes)) for sizes in ((n, c, *size), (image_shape(
        layout, n, c, size)[-1],)))
    return float(windows * STEP * kernel[0] * kernel[1] * -(-along // lanes) / max(along, 1))


def _flat(k: Any, plane: Any, y: Any, x: Any, h: Any, w: Any) -> Any:
    """Where element (plane, y, x) is: ``(plane*h + y)*w + x``."""
    return k.index_add(k.index_mul(k.index_add(k.index_mul(plane, h), y), w), x)


def _position(k: Any, o: Any, tap: Any, stride: int, padding: int) -> Any:
    return k.index_sub(k.index_add(k.index_mul(o, stride), tap), padding)


def _each_window(k: Any, x: Any, out: Any, kernel: Pair, stride: Pair, padding: Pair, work: int,
                 window: Callable[[Any, Any], None]) -> None:
    """``window(place in out, element)`` for every window.

    ``element(i, j)`` is (an element of the window, whether it is one of x), the latter None for certainly.
    """
    n, c, oh, ow = out.shape
    h, w = x.shape[2:]
    with k.parallel(k.index_mul(k.index_mul(n, c), oh), work=k.estimate(ow, k.index(work))) as row:
        plane, y = k.let(k.index_div(row, oh)), k.let(k.index_mod(row, oh))

        def at(z: Any, padding: Pair) -> None:
            def element(i: int, j: int) -> Any:
                a = _position(k, y, k.index(i), stride[0], padding[0])
                b = _position(k, z, k.index(j), stride[1], padding[1])
                inside = k.inside((a, h, padding[0]), (b, w, tested))
                a, b = k.clip(a, h, padding[0]), k.clip(b, w, tested)
                return x.at_flat(_flat(k, plane, a, b, h, w)), inside
            window(k.let(k.index_add(k.index_mul(row, ow), z)), element)

        # windows that reach over an end of the row, and those between, which need not be asked
        first = k.let(k.minimum(ow, k.index(-(-padding[1] // stride[1]))))
        room = k.maximum(k.index_add(w, padding[1] - kernel[1] + stride[1]), k.index(0))
        last = k.let(k.maximum(k.minimum(ow, k.index_div(room, k.index(stride[1]))), first))
        tested = padding[1]
        for start, stop in ((k.index(0), first), (last, ow)) if padding[1] else ():
            with k.loop(start, stop) as z:
                at(z, padding)
        tested = 0
        if not padding[1]:
            first, last = k.index(0), ow
        with k.lanes(k.index_sub(last, first)) as z:
            at(k.index_add(first, z), padding)


def _max_pool_loops(each_window: Callable[..., None], k: Any, inputs: Any, outputs: Any, kernel: Pair,
                    stride: Pair, padding: Pair) -> None:
    (x,), (best, where) = inputs, outputs
    low = k.lowest(x.dtype)

    def window(at: Any, element: Any) -> None:
        value, tap = low, k.const(0, "int32")
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                v, inside = element(i, j)
                v = k.let(v if inside is None else k.select(inside, v, low))
                wins = k.gt(v, value)
                if x.dtype[0] == "f":                            # larger, or the first NaN
                    wins = k.land(k.lnot(k.le(v, value)), k.eq(value, value))
                first = i == j == 0
                tap = tap if first else k.let(k.select(wins, k.const(i * kernel[1] + j, "int32"), tap))
                value = v if first else k.let(k.select(wins, v, value))
        best.store_flat(at, value)
        where.store_flat(at, tap)
    each_window(k, x, best, kernel, stride, padding, 4 * kernel[0] * kernel[1], window)


max_pool2d_op: Op = Op(
    "max_pool2d",                        # the largest of each window, and which element of the window it was
    infer=_max_pool_infer,
    run=_max_pool_run,
    vjp=(lambda g, c: record.apply(max_unpool2d_op, g[0], c.outputs[1], **_window(c),
                                   size=_size(c)),),
    saves=("out",),
    lower=Loops(by_layout(partial(_max_pool_loops, _each_window),
                          partial(_max_pool_loops, pool_last.each_window))),
    outputs=2,
    kinds="iuf",
    cost=8.0,
    compiled=2048,
    batched=(0,),
    images=Images((0,), (0, 1), _pool_cost),
)


def _unpool_run(g: Array, where: Array, kernel: Pair, stride: Pair, padding: Pair, size: Pair,
                layout: str = "NCHW") -> Array:
    g, where = (planes("max_unpool2d", v, layout) for v in (g, where))
    n, c, oh, ow = g.shape
    win = np.zeros((n, c, oh, ow, kernel[0] * kernel[1]), g.dtype)
    np.put_along_axis(win, where[..., None].astype(np.int64), g[..., None], -1)
    win = win.reshape(n, c, oh, ow, *kernel)
    return np.ascontiguousarray(laid_out(add_windows(win, (n, c, *size), stride, padding, (1, 1)), layout))


def _covering(k: Any, position: Any, size: Any, kernel: int, stride: int,
              padding: int) -> list[tuple[Any, Any, Any]]:
    """The windows that hold an input position: (window, tap, whether it exists).

    There are ceil(kernel/stride) of them.
    """
    q = k.let(k.index_add(position, padding))
    last = k.let(k.index_div(q, stride))
    out = []
    for back in range(-(-kernel // stride)):
        o = k.index_sub(last, back)
        tap = k.let(k.index_sub(q, k.index_mul(o, stride)))
        exists = k.land(k.land(k.ge(o, k.index(0)), k.lt(o, size)), k.lt(tap, k.index(kernel)))
        out.append((k.let(k.minimum(k.maximum(o, k.index(0)), k.index_sub(size, 1))), tap, k.let(exists)))
    return out


def _into_windows(k: Any, g: Any, dx: Any, kernel: Pair, stride: Pair,
                  part: Callable[[Any, int], Any]) -> None:
    """dx where no two windows share an element: ``part(place in g, tap)``, and zero between the windows."""
    n, c, oh, ow = g.shape
    h, w = dx.shape[2:]
    zero = k.const(0, dx.dtype)
    with k.parallel(k.index_mul(n, c), work=k.estimate(h, w, 3)) as plane:
        with k.loop(k.index(0), oh) as y:
            from_row = k.let(k.index_mul(k.index_add(k.index_mul(plane, oh), y), ow))
            for i in range(stride[0]):
                row = k.let(_flat(k, plane, k.index_add(k.index_mul(y, stride[0]), i), k.index(0), h, w))
                with k.lanes(ow) as z:
                    at = k.index_add(from_row, z)
                    for j in range(stride[1]):
                        inside = i < kernel[0] and j < kernel[1]
                        value = part(at, i * kernel[1] + j) if inside else zero
                        dx.store_flat(k.index_add(row, k.index_add(k.index_mul(z, stride[1]), j)), value)
                done = k.index_mul(ow, stride[1])
                _zeros(k, dx, k.index_add(row, done), k.index_sub(w, done))
        done = k.index_mul(oh, stride[0])
        _zeros(k, dx, k.let(_flat(k, plane, done, k.index(0), h, w)),
               k.let(k.index_mul(k.maximum(k.index_sub(h, done), k.index(0)), w)))


def _zeros(k: Any, buffer: Any, start: Any, count: Any) -> None:
    with k.loop(k.index(0), count) as z:
        buffer.store_flat(k.index_add(start, z), k.const(0, buffer.dtype))


def _apart(k: Any, g: Any, dx: Any, kernel: Pair, stride: Pair, padding: Pair) -> bool:
    """Whether windows are side by side: no element is in two, and none of their blocks is cut off."""
    known = [(k.known(n), k.known(o)) for n, o in zip(dx.shape[2:], g.shape[2:])]
    return padding == (0, 0) and all(t <= s and n is not None and o is not None and o * s <= n
                                     for t, s, (n, o) in zip(kernel, stride, known))


def _from_windows(k: Any, g: Any, dx: Any, kernel: Pair, stride: Pair, padding: Pair,
                  share: Callable[[Any, Any], Any]) -> None:
    """dx as sums over windows of g, of which one gives ``share(place in g, tap)`` to its element ``tap``."""
    if _apart(k, g, dx, kernel, stride, padding):
        _into_windows(k, g, dx, kernel, stride, lambda at, tap: share(at, k.index(tap)))
        return
    n, c, h, w = dx.shape
    oh, ow = g.shape[2:]
    zero, (_, step), (_, before) = k.const(0, dx.dtype), stride, padding
    # the windows of column u*step + b: (u + shift, tap), from the last on
    reach = [[((b + before) // step - back, (b + before) % step + back * step)
              for back in range(-(-kernel[1] // step)) if (b + before) % step + back * step < kernel[1]]
             for b in range(step)]
    shifts = [0, *(shift for hits in reach for shift, _ in hits)]
    with k.parallel(k.index_mul(k.index_mul(n, c), h), work=k.estimate(w, k.index(6))) as row:
        plane, y = k.let(k.index_div(row, h)), k.let(k.index_mod(row, h))
        rows = _covering(k, y, oh, kernel[0], stride[0], padding[0])
        line = k.let(k.index_mul(row, w))

        def total(columns: Callable[[], list[tuple[Any, Any, Any]]]) -> Any:
            found = zero
            for o, i, exists in rows:
                for p, j, there in columns():
                    tap = k.index_add(k.index_mul(i, kernel[1]), j)
                    given = share(k.let(_flat(k, plane, o, p, oh, ow)), tap)
                    found = k.let(k.add(found, k.select(k.land(exists, there), given, zero)))
            return found

        def one_by_one(start: Any, stop: Any) -> None:
            with k.loop(start, stop) as z:
                value = total(lambda: _covering(k, z, ow, kernel[1], stride[1], padding[1]))
                dx.store_flat(k.index_add(line, z), value)

        # columns near the ends ask whether a window exists; between them all do
        first = k.index(-min(shifts))
        last = k.minimum(k.index_sub(ow, max(shifts)), k.index_div(w, k.index(step)))
        last = k.let(k.maximum(last, first))
        first, last = (k.let(k.minimum(u, k.index_div(w, k.index(step)))) for u in (first, last))
        one_by_one(k.index(0), k.index_mul(first, step))
        with k.lanes(k.index_sub(last, first)) as lane:
            u, always = k.index_add(first, lane), k.const(True, "bool")
            for b, hits in enumerate(reach):
                there = [(k.index_add(u, shift), k.index(j), always) for shift, j in hits]
                value = total(there.copy)
                dx.store_flat(k.index_add(line, k.index_add(k.index_mul(u, step), b)), value)
        one_by_one(k.index_mul(last, step), w)


def _unpool_loops(from_windows: Callable[..., None], k: Any, inputs: Any, outputs: Any, kernel: Pair,
                  stride: Pair, padding: Pair, size: Pair) -> None:
    """Each input element adds up the gradients of the windows it won."""
    (g, where), (dx,) = inputs, outputs

    def share(at: Any, tap: Any) -> Any:
        won = k.eq(k.let(where.at_flat(at)), k.cast(tap, "int32"))
        return k.select(won, k.let(g.at_flat(at)), k.const(0, g.dtype))
    from_windows(k, g, dx, kernel, stride, padding, share)


def _pick_window_run(x: Array, where: Array, kernel: Pair, stride: Pair, padding: Pair,
                     layout: str = "NCHW") -> Array:
    x, where = (planes("pick_window", v, layout) for v in (x, where))
    win = windows(x, kernel, stride, padding, (1, 1))
    flat = win.reshape(*win.shape[:4], kernel[0] * kernel[1])
    return laid_out(np.take_along_axis(flat, where[..., None].astype(np.int64), -1)[..., 0], layout)


def _pick_window_loops(k: Any, inputs: Any, outputs: Any, kernel: Pair, stride: Pair, padding: Pair) -> None:
    (x, where), (out,) = inputs, outputs
    n, c, oh, ow = out.shape
    h, w = x.shape[2:]
    with k.parallel(k.index_mul(k.index_mul(n, c), oh), work=k.estimate(ow, k.index(6))) as row:
        plane, y = k.let(k.index_div(row, oh)), k.let(k.index_mod(row, oh))
        with k.loop(k.index(0), ow) as z:
            at = k.let(k.index_add(k.index_mul(row, ow), z))
            tap = k.let(k.cast(where.at_flat(at), "int64"))
            a = _position(k, y, k.index_div(tap, kernel[1]), stride[0], padding[0])
            b = _position(k, z, k.index_mod(tap, kernel[1]), stride[1], padding[1])
            a, b = k.clip(a, h, 1), k.clip(b, w, 1)
            out.store_flat(at, x.at_flat(_flat(k, plane, a, b, h, w)))


def _pick_window_last(k: Any, inputs: Any, outputs: Any, kernel: Pair, stride: Pair, padding: Pair) -> None:
    (x, where), (out,) = inputs, outputs

    def window(at: Any, element: Any) -> None:
        tap, value = k.let(where.at_flat(at)), k.const(0, x.dtype)
        for n, (i, j) in enumerate(np.ndindex(*kernel)):
            value = k.let(k.select(k.eq(tap, k.const(n, "int32")), k.let(element(i, j)[0]), value))
        out.store_flat(at, value)
    pool_last.each_window(k, x, out, kernel, stride, padding, 3 * kernel[0] * kernel[1], window)


max_unpool2d_op: Op = Op(
    "max_unpool2d",                      # the adjoint of max_pool2d: gradients to the winners
    infer=lambda g, where, kernel, stride, padding, size, layout="NCHW":
        _unpool_infer("max_unpool2d", g, size, layout),
    run=_unpool_run,
    vjp=(lambda g, c: record.apply(pick_window_op, g, c.y, **_window(c)), None),
    saves=("y",),
    lower=Loops(by_layout(partial(_unpool_loops, _from_windows),
                          partial(_unpool_loops, pool_last.from_windows))),
    cost=8.0,
    compiled=2048,
    batched=(0, 1),
    images=Images((0, 1), (0,), _pool_cost),
)

pick_window_op: Op = Op(
    "pick_window",                       # of each window the element that won before
    infer=lambda x, where, kernel, stride, padding, layout="NCHW": Aval(where.shape, x.dtype),
    run=_pick_window_run,
    vjp=(lambda g, c: record.apply(max_unpool2d_op, g, c.y, **_window(c), size=_size(c)), None),
    saves=("y",),
    lower=Loops(by_layout(_pick_window_loops, _pick_window_last)),
    cost=8.0,
    images=Images((0, 1), (0,), _pool_cost),
)


def _avg_pool_run(x: Array, kernel: Pair, stride: Pair, padding: Pair, layout: str = "NCHW") -> Array:
    _pool_infer("avg_pool2d", Aval(x.shape, x.dtype), kernel, stride, padding, layout)
    total = windows(planes("avg_pool2d", x, layout), kernel, stride, padding, (1, 1)).sum((4, 5))
    return laid_out((total / x.dtype.type(kernel[0] * kernel[1])).astype(x.dtype), layout)


def _avg_pool_loops(each_window: Callable[..., None], k: Any, inputs: Any, outputs: Any, kernel: Pair,
                    stride: Pair, padding: Pair) -> None:
    (x,), (out,) = inputs, outputs
    area = k.const(float(kernel[0] * kernel[1]), x.dtype)

    def window(at: Any, element: Any) -> None:
        total = None
        for i in range(kernel[0]):
            for j in range(kernel[1]):
                v, inside = element(i, j)
                v = v if inside is None else k.select(inside, v, k.const(0, x.dtype))
                total = v if total is None else k.add(total, v)
        out.store_flat(at, k.div(total, area))
    each_window(k, x, out, kernel, stride, padding, 2 * kernel[0] * kernel[1], window)


def _avg_unpool_run(g: Array, kernel: Pair, stride: Pair, padding: Pair, size: Pair,
                    layout: str = "NCHW") -> Array:
    g = planes("avg_unpool2d", g, layout)
    share = g / g.dtype.type(kernel[0] * kernel[1])
    win = np.broadcast_to(share[..., None, None], (*g.shape, *kernel))
    dx = add_windows(win, (*g.shape[:2], *size), stride, padding, (1, 1))
    return np.ascontiguousarray(laid_out(dx, layout))


def _avg_unpool_loops(from_windows: Callable[..., None], k: Any, inputs: Any, outputs: Any, kernel: Pair,
                      stride: Pair, padding: Pair, size: Pair) -> None:
    (g,), (dx,) = inputs, outputs
    area = k.const(float(kernel[0] * kernel[1]), g.dtype)
    from_windows(k, g, dx, kernel, stride, padding, lambda at, tap: k.let(k.div(g.at_flat(at), area)))


def _avg_pool_infer(x: Aval, kernel: Pair, stride: Pair, padding: Pair, layout: str = "NCHW") -> Aval:
    if x.dtype.kind != "f":
        raise DTypeError(f"avg_pool2d: takes floats, not {x.dtype.name}")
    return Aval(_pool_infer("avg_pool2d", x, kernel, stride, padding, layout), x.dtype)


avg_pool2d_op: Op = Op(
    "avg_pool2d",                        # the mean of each window, padding counted in
    infer=_avg_pool_infer,
    run=_avg_pool_run,
    vjp=(lambda g, c: record.apply(avg_unpool2d_op, g, **_window(c), size=_size(c)),),
    lower=Loops(by_layout(partial(_avg_pool_loops, _each_window),
                          partial(_avg_pool_loops, pool_last.each_window))),
    kinds="f",
    cost=8.0,
    compiled=2048,
    batched=(0,),
    images=Images((0,), (0,), _pool_cost),
)

avg_unpool2d_op: Op = Op(
    "avg_unpool2d",                      # the adjoint of avg_pool2d
    infer=lambda g, kernel, stride, padding, size, layout="NCHW":
        _unpool_infer("avg_unpool2d", g, size, layout),
    run=_avg_unpool_run,
    vjp=(lambda g, c: record.apply(avg_pool2d_op, g, **_window(c)),),
    lower=Loops(by_layout(partial(_avg_unpool_loops, _from_windows),
                          partial(_avg_unpool_loops, pool_last.from_windows))),
    cost=8.0,
    compiled=2048,
    batched=(0,),
    images=Images((0,), (0,), _pool_cost),
)


def _pool_attrs(kernel_size: int | Pair, stride: int | Pair | None, padding: int | Pair) -> dict[str, Pair]:
    kernel = pair("kernel_size", kernel_size)
    return {"kernel": kernel, "stride": kernel if stride is None else pair("stride", stride),
            "padding": pair("padding", padding, 0)}


def max_pool2d(x: Any, kernel_size: int | Pair, stride: int | Pair | None = None,
               padding: int | Pair = 0) -> Tensor:
    """The largest element of each window of (n, c, h, w).

    NaN wins; the gradient goes to the first largest.
    """
    return record.apply(max_pool2d_op, as_tensor(x), **_pool_attrs(kernel_size, stride, padding))[0]


def avg_pool2d(x: Any, kernel_size: int | Pair, stride: int | Pair | None = None,
               padding: int | Pair = 0) -> Tensor:
    """The mean of each window of (n, c, h, w); padding counts as zeros, as in PyTorch."""
    return record.apply(avg_pool2d_op, as_tensor(x), **_pool_attrs(kernel_size, stride, padding))
