"""Convolution and pooling in two dimensions, with their adjoints as ops of their own.

Convolution is bilinear, so its two gradients are ops whose gradients are again these three. Lowering: each
image's windows are gathered into a matrix of columns in scratch memory and multiplied by BLAS, images in
parallel.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from ..core import record
from ..core.aval import Aval
from ..core.dims import Shape, Size, format_shape, same_size
from ..core.errors import ArgumentError, DTypeError, ShapeError
from ..core.op import Loops, Op
from ..core.tensor import Tensor, as_tensor
from .basic import together

Array = np.ndarray[Any, Any]
Pair = tuple[int, int]
PARTIALS = 8              # partial sums of a weight gradient: fixed, so results do not depend on threads


def pair(name: str, value: int | tuple[int, int], least: int = 1) -> Pair:
    """``value`` for height and width."""
    out = (value, value) if isinstance(value, int) else tuple(value)
    if len(out) != 2 or any(not isinstance(v, int) or v < least for v in out):
        raise record.located(ArgumentError(
            f"{name}: expected an int or a pair of ints of at least {least}, not {value!r}"))
    return out[0], out[1]


def _out_size(n: Size, kernel: int, stride: int, padding: int, dilation: int) -> Size:
    return (n + (2 * padding - dilation * (kernel - 1) - 1)) // stride + 1


def _windows(x: Array, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair, fill: float = 0) -> Array:
    """A view (n, c, oh, ow, kh, kw) of all windows."""
    if padding != (0, 0):
        (p, q) = padding
        x = np.pad(x, ((0, 0), (0, 0), (p, p), (q, q)), constant_values=fill)
    spans = tuple(d * (k - 1) + 1 for k, d in zip(kernel, dilation))
    view = sliding_window_view(x, spans, (2, 3))
    return view[:, :, ::stride[0], ::stride[1], ::dilation[0], ::dilation[1]]


def _add_windows(windows: Array, shape: tuple[int, ...], stride: Pair, padding: Pair,
                 dilation: Pair) -> Array:
    """The adjoint of `_windows`: each window element added back where it came from."""
    n, c, oh, ow, kh, kw = windows.shape
    (p, q), (h, w) = padding, shape[2:]
    out = np.zeros((n, c, h + 2 * p, w + 2 * q), windows.dtype)
    for i in range(kh):
        for j in range(kw):
            y, x = i * dilation[0], j * dilation[1]
            rows = slice(y, y + stride[0] * (oh - 1) + 1, stride[0])
            columns = slice(x, x + stride[1] * (ow - 1) + 1, stride[1])
            out[:, :, rows, columns] += windows[..., i, j]
    return out[:, :, p:p + h, q:q + w]


# ---------------------------------------------------------------- convolution

def _conv_check(name: str, x: Aval, w: Aval, groups: int) -> None:
    if x.ndim != 4 or w.ndim != 4:
        raise ShapeError(f"{name}: input {format_shape(x.shape)} and weight {format_shape(w.shape)}; "
                         "expected (n, c, h, w) and (out, c/groups, kh, kw)")
    if x.dtype.kind != "f" or x.dtype != w.dtype:
        raise DTypeError(f"{name}: input {x.dtype.name} and weight {w.dtype.name}; "
                         "both must be float32 or float64")
    if w.shape[0] % groups:
        raise ShapeError(f"{name}: {w.shape[0]} output channels do not divide into {groups} groups")


def _conv_infer(x: Aval, w: Aval, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Aval:
    _conv_check("conv2d", x, w, groups)
    if same_size(x.shape[1], w.shape[1] * groups) is None:
        raise ShapeError(f"conv2d: input {format_shape(x.shape)} has {x.shape[1]} channels, weight "
                         f"{format_shape(w.shape)} with {groups} group(s) wants {w.shape[1] * groups}")
    out = tuple(_out_size(x.shape[2 + i], w.shape[2 + i],  # type: ignore[arg-type]
                          stride[i], padding[i], dilation[i]) for i in (0, 1))
    if any(isinstance(s, int) and s <= 0 for s in out):
        raise ShapeError(f"conv2d: a kernel of {format_shape(w.shape[2:])} does not fit into "
                         f"{format_shape(x.shape[2:])} with padding {padding}")
    return Aval((x.shape[0], w.shape[0], *out), x.dtype)


def _columns(x: Array, kernel: Pair, groups: int, stride: Pair, padding: Pair, dilation: Pair) -> Array:
    """(n, groups, c/groups * kh * kw, oh * ow)"""
    win = _windows(x, kernel, stride, padding, dilation)
    n, c, oh, ow, kh, kw = win.shape
    return win.transpose(0, 1, 4, 5, 2, 3).reshape(n, groups, c // groups * kh * kw, oh * ow)


def _conv_run(x: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int) -> Array:
    o, _, kh, kw = w.shape
    if x.shape[1] != w.shape[1] * groups:
        raise ValueError("channels")
    oh, ow = (_out_size(x.shape[2 + i], w.shape[2 + i], stride[i], padding[i], dilation[i]) for i in (0, 1))
    cols = _columns(x, (kh, kw), groups, stride, padding, dilation)
    return np.matmul(w.reshape(groups, o // groups, -1), cols).reshape(x.shape[0], o, oh, ow)


def _conv_dx_run(g: Array, w: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int,
                 size: Pair) -> Array:
    n, o, oh, ow = g.shape
    _, cg, kh, kw = w.shape
    gg = g.reshape(n, groups, o // groups, oh * ow)
    cols = np.matmul(w.reshape(groups, o // groups, -1).swapaxes(1, 2), gg)
    win = cols.reshape(n, groups * cg, kh, kw, oh, ow).transpose(0, 1, 4, 5, 2, 3)
    return np.ascontiguousarray(_add_windows(win, (n, groups * cg, *size), stride, padding, dilation))


def _conv_dw_run(x: Array, g: Array, stride: Pair, padding: Pair, dilation: Pair, groups: int,
                 kernel: Pair) -> Array:
    n, o, oh, ow = g.shape
    cols = _columns(x, kernel, groups, stride, padding, dilation)[..., :oh * ow]
    gg = g.reshape(n, groups, o // groups, oh * ow)
    return np.matmul(gg, cols.swapaxes(2, 3)).sum(0).reshape(o, x.shape[1] // groups, *kernel)


@dataclass(slots=True)
class _Planes:
    """Some channels of one image while a kernel works on them.

    Element (c, y, x) is at ``base + (c*h + y)*w + x``.
    """
    access: Any
    base: Any
    h: Any
    w: Any

    def at(self, k: Any, c: Any, y: Any, x: Any) -> Any:
        row = k.index_add(k.index_mul(c, self.h), y)
        return k.index_add(k.index_add(self.base, k.index_mul(row, self.w)), x)


def _fill(k: Any, buffer: Any, base: Any, count: Any, value: Any) -> None:
    with k.loop(k.index(0), count) as z:
        buffer.store_flat(k.index_add(base, z), value)


def _planes(k: Any, x: Any, image: Any, c0: int) -> _Planes:
    """Channels from ``c0`` of image ``image`` where they lie."""
    _, total, h, w = x.shape
    first = k.index_add(k.index_mul(image, total), c0)
    return _Planes(x, k.let(k.index_mul(first, k.index_mul(h, w))), h, w)


def _frame(k: Any, x: Any, channels: int, padding: Pair) -> _Planes | None:
    """Scratch for ``channels`` planes with their padding around them; None without padding."""
    if padding == (0, 0):
        return None
    h, w = k.index_add(x.shape[2], 2 * padding[0]), k.index_add(x.shape[3], 2 * padding[1])
    return _Planes(k.scratch(x.dtype, k.index_mul(k.index(channels), k.index_mul(h, w))), k.index(0), h, w)


def _into_frame(k: Any, source: _Planes, frame: _Planes | None, channels: int, padding: Pair) -> _Planes:
    """The planes with zeros around them (themselves without padding)."""
    if frame is None:
        return source
    size = k.index_mul(k.index(channels), k.index_mul(frame.h, frame.w))
    _fill(k, frame.access, k.index(0), size, k.const(0, source.access.dtype))
    with k.loop(k.index(0), k.index(channels)) as c, k.loop(k.index(0), source.h) as y:
        here = k.let(source.at(k, c, y, k.index(0)))
        there = k.let(frame.at(k, c, k.index_add(y, padding[0]), k.index(padding[1])))
        with k.loop(k.index(0), source.w) as z:
            frame.access.store_flat(k.index_add(there, z), source.access.at_flat(k.index_add(here, z)))
    return frame


def _each_tap(k: Any, planes: _Planes, channels: int, kernel: Pair, grid: Any, stride: Pair,
              dilation: Pair, move: Any) -> None:
    """``move(position in the columns, position in the planes)`` for every element of every window."""
    (kh, kw), (oh, ow) = kernel, grid
    with (k.loop(k.index(0), k.index(channels)) as c,
          k.loop(k.index(0), k.index(kh)) as i,
          k.loop(k.index(0), k.index(kw)) as j):
        tap = k.index_add(k.index_mul(k.index_add(k.index_mul(c, kh), i), kw), j)
        column = k.let(k.index_mul(tap, k.index_mul(oh, ow)))
        with k.loop(k.index(0), oh) as y:
            row = k.let(k.index_add(column, k.index_mul(y, ow)))
            source = k.index_add(k.index_mul(y, stride[0]), k.index_mul(i, dilation[0]))
            start = k.let(planes.at(k, c, source, k.index_mul(j, dilation[1])))
            with k.loop(k.index(0), ow) as z:
                move(k.index_add(row, z), k.index_add(start, k.index_mul(z, stride[1])))


def _gather_columns(k: Any, planes: _Planes, cols: Any, channels: int, kernel: Pair, grid: Any,
                    stride: Pair, dilation: Pair) -> None:
    """cols[c*kh*kw + i*kw + j, y*ow + x] = planes[c, y*s + i*d, x*s + j*d]."""
    _each_tap(k, planes, channels, kernel, grid, stride, dilation,
              lambda column, plane: cols.store_flat(column, planes.access.at_flat(plane)))


def _scatter_columns(k: Any, cols: Any, planes: _Planes, channels: int, kernel: Pair, grid: Any,
                     stride: Pair, dilation: Pair) -> None:
    """The adjoint: columns added into the planes, taps in order."""
    size = k.index_mul(k.index(channels), k.index_mul(planes.h, planes.w))
    _fill(k, planes.access, planes.base, size, k.const(0, cols.dtype))
    _each_tap(k, planes, channels, kernel, grid, stride, dilation,
              lambda column, plane: planes.access.store_flat(
                  plane, k.add(planes.access.at_flat(plane), cols.at_flat(column))))


def _conv_loops(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair,
                groups: int) -> None:
    (x, w), (y,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in w.shape)
    n, _, oh, ow = y.shape
    depth, pixels, og = cg * kh * kw, k.index_mul(oh, ow), o // groups
    plain = (kh, kw) == (1, 1) and stride == (1, 1) and padding == (0, 0)
    with k.parallel(n, work=k.estimate(pixels, k.index(2 * o * depth)), partials=2 * PARTIALS) as image:
        cols = x if plain else k.scratch(x.dtype, k.index_mul(depth, pixels))
        frame = _frame(k, x, cg, padding)
        for g in range(groups):
            if not plain:
                planes = _into_frame(k, _planes(k, x, image, g * cg), frame, cg, padding)
                _gather_columns(k, planes, cols, cg, (kh, kw), (oh, ow), stride, dilation)
            if plain:
                source = k.index_mul(k.index_add(k.index_mul(image, groups), g), k.index_mul(cg, pixels))
            else:
                source = k.slice0(cols)
            k.gemm(k.index(og), pixels, k.index(depth),
                   w.block(k.index(g * og * depth), k.index(depth)),
                   cols.block(source, pixels),
                   y.block(k.index_mul(k.index_add(k.index_mul(image, o), g * og), pixels), pixels))


def _conv_dx_loops(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair,
                   groups: int, size: Pair) -> None:
    (g, w), (dx,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in w.shape)
    n, _, oh, ow = g.shape
    depth, pixels, og = cg * kh * kw, k.index_mul(oh, ow), o // groups
    with k.parallel(n, work=k.estimate(pixels, k.index(2 * o * depth)), partials=2 * PARTIALS) as image:
        cols = k.scratch(g.dtype, k.index_mul(depth, pixels))
        frame = _frame(k, dx, cg, padding)
        for i in range(groups):
            k.gemm(k.index(depth), pixels, k.index(og),
                   w.block(k.index(i * og * depth), k.index(depth), True),
                   g.block(k.index_mul(k.index_add(k.index_mul(image, o), i * og), pixels), pixels),
                   cols.block(k.slice0(cols), pixels))
            result = _planes(k, dx, image, i * cg)
            _scatter_columns(k, cols, frame or result, cg, (kh, kw), (oh, ow), stride, dilation)
            if frame is not None:
                _out_of_frame(k, frame, result, cg, padding)


def _out_of_frame(k: Any, frame: _Planes, result: _Planes, channels: int, padding: Pair) -> None:
    """The planes without what is around them."""
    with k.loop(k.index(0), k.index(channels)) as c, k.loop(k.index(0), result.h) as y:
        here = k.let(frame.at(k, c, k.index_add(y, padding[0]), k.index(padding[1])))
        there = k.let(result.at(k, c, y, k.index(0)))
        with k.loop(k.index(0), result.w) as z:
            result.access.store_flat(k.index_add(there, z), frame.access.at_flat(k.index_add(here, z)))


def _conv_dw_loops(k: Any, inputs: Any, outputs: Any, stride: Pair, padding: Pair, dilation: Pair,
                   groups: int, kernel: Pair) -> None:
    (x, g), (dw,) = inputs, outputs
    o, cg, kh, kw = (k.known(s) for s in dw.shape)
    n, _, oh, ow = g.shape
    depth, pixels, og = cg * kh * kw, k.index_mul(oh, ow), o // groups
    total = o * depth
    partial = k.temporary(x.dtype, k.index(PARTIALS * total))
    grain = k.index_div(k.index_add(n, PARTIALS - 1), PARTIALS)
    with k.parallel_chunks(n, grain) as (chunk, begin, end):
        cols = k.scratch(x.dtype, k.index_mul(depth, pixels))
        frame = _frame(k, x, cg, padding)
        first = k.let(k.index_mul(chunk, total))
        _fill(k, partial, first, k.index(total), k.const(0, x.dtype))
        with k.loop(begin, end) as image:
            for i in range(groups):
                planes = _into_frame(k, _planes(k, x, image, i * cg), frame, cg, padding)
                _gather_columns(k, planes, cols, cg, kernel, (oh, ow), stride, dilation)
                k.gemm(k.index(og), k.index(depth), pixels,
                       g.block(k.index_mul(k.index_add(k.index_mul(image, o), i * og), pixels), pixels),
                       cols.block(k.slice0(cols), pixels, True),
                       partial.block(k.index_add(first, i * og * depth), k.index(depth)), accumulate=True)
    chunks = k.index_div(k.index_add(n, k.index_sub(grain, 1)), k.maximum(grain, k.index(1)))
    with k.parallel(k.index(total), work=float(PARTIALS)) as j:
        acc = k.variable(k.const(0, x.dtype))
        with k.loop(k.index(0), chunks) as c:
            acc.set(k.add(acc.get(), partial.at_flat(k.index_add(k.index_mul(c, total), j))))
        dw.store_flat(j, acc.get())


def _attrs(c: Any) -> dict[str, Any]:
    return {key: c.attrs[key] for key in ("stride", "padding", "dilation", "groups")}


conv2d_op: Op = Op(
    "conv2d",
    infer=_conv_infer,
    run=_conv_run,
    vjp=(lambda g, c: record.apply(conv2d_dx_op, g, c.y, **_attrs(c), size=c.shapes[0][2:]),
         lambda g, c: record.apply(conv2d_dw_op, c.x, g, **_attrs(c), kernel=c.shapes[1][2:])),
    saves=(("y",), ("x",)),
    lower=Loops(_conv_loops),
    kinds="f",
    cost=100.0,
    compiled=256,
    batched=(0,),
)

conv2d_dx_op: Op = Op(
    "conv2d_dx",                         # the gradient with respect to the input
    infer=lambda g, w, stride, padding, dilation, groups, size:
        Aval((g.shape[0], w.shape[1] * groups, *size), g.dtype),
    run=_conv_dx_run,
    vjp=(lambda g, c: record.apply(conv2d_op, g, c.y, **_attrs(c)),
         lambda g, c: record.apply(conv2d_dw_op, g, c.x, **_attrs(c), kernel=c.shapes[1][2:])),
    saves=(("y",), ("x",)),
    lower=Loops(_conv_dx_loops),
    kinds="f",
    cost=100.0,
    compiled=256,
    batched=(0,),
)

conv2d_dw_op: Op = Op(
    "conv2d_dw",                         # the gradient with respect to the weight
    infer=lambda x, g, stride, padding, dilation, groups, kernel:
        Aval((g.shape[1], x.shape[1] // groups, *kernel), x.dtype),
    run=_conv_dw_run,
    vjp=(lambda g, c: record.apply(conv2d_dx_op, c.y, g, **_attrs(c), size=c.shapes[0][2:]),
         lambda g, c: record.apply(conv2d_op, c.x, g, **_attrs(c))),
    saves=(("y",), ("x",)),
    lower=Loops(_conv_dw_loops),
    kinds="f",
    cost=100.0,
    compiled=256,
    batched=(0, 1),
)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int | Pair = 1,
           padding: int | Pair = 0, dilation: int | Pair = 1, groups: int = 1) -> Tensor:
    """Cross-correlation of (n, c, h, w) with weight (out, c/groups, kh, kw).

    Returns
    -------
    Tensor
        (n, out, oh, ow) with ``oh = (h + 2*padding - dilation*(kh - 1) - 1) // stride + 1``.

    Raises
    ------
    ShapeError
        If channels do not match or the kernel does not fit.
    """
    x, weight = together("conv2d", x, weight)
    out = record.apply(conv2d_op, x, weight,
                       stride=pair("stride", stride), padding=pair("padding", padding, 0),
                       dilation=pair("dilation", dilation), groups=groups)
    return out if bias is None else out + bias.reshape((1, -1, 1, 1))


# ---------------------------------------------------------------- pooling

def _pool_infer(name: str, x: Aval, kernel: Pair, stride: Pair, padding: Pair) -> Shape:
    if x.dtype.kind == "b":
        raise DTypeError(f"{name}: takes numbers, not bool")
    if x.ndim != 4:
        raise ShapeError(f"{name}: input {format_shape(x.shape)}; expected (n, c, h, w)")
    if any(2 * p > k for p, k in zip(padding, kernel)):
        raise ShapeError(f"{name}: padding {padding} is more than half of the kernel {kernel}")
    out = tuple(_out_size(x.shape[2 + i], kernel[i], stride[i], padding[i], 1) for i in (0, 1))
    if any(isinstance(s, int) and s <= 0 for s in out):
        raise ShapeError(f"{name}: a window of {kernel} does not fit into {format_shape(x.shape[2:])}")
    return (*x.shape[:2], *out)


def _max_pool_infer(x: Aval, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Aval, Aval]:
    shape = _pool_infer("max_pool2d", x, kernel, stride, padding)
    return Aval(shape, x.dtype), Aval(shape, np.dtype(np.int32))


def _window(c: Any) -> dict[str, Any]:
    return {key: c.attrs[key] for key in ("kernel", "stride", "padding")}


def _max_pool_run(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> tuple[Array, Array]:
    _pool_infer("max_pool2d", Aval(x.shape, x.dtype), kernel, stride, padding)
    low = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    win = _windows(x, kernel, stride, padding, (1, 1), low)
    best, where = win[..., 0, 0].copy(), np.zeros(win.shape[:4], np.int32)
    for k in range(1, kernel[0] * kernel[1]):
        candidate = win[..., k // kernel[1], k % kernel[1]]
        wins = candidate > best
        if x.dtype.kind == "f":
            wins |= np.isnan(candidate) & ~np.isnan(best)
        np.copyto(best, candidate, where=wins)
        where[wins] = k
    return best, where


def _flat(k: Any, plane: Any, y: Any, x: Any, h: Any, w: Any) -> Any:
    """Where element (plane, y, x) is: ``(plane*h + y)*w + x``."""
    return k.index_add(k.index_mul(k.index_add(k.index_mul(plane, h), y), w), x)


def _position(k: Any, o: Any, tap: Any, stride: int, padding: int) -> Any:
    return k.index_sub(k.index_add(k.index_mul(o, stride), tap), padding)


def _max_pool_loops(k: Any, inputs: Any, outputs: Any, kernel: Pair, stride: Pair, padding: Pair) -> None:
    (x,), (best, where) = inputs, outputs
    n, c, oh, ow = best.shape
    h, w = x.shape[2:]
    low = k.lowest(x.dtype)
    work = k.estimate(ow, k.index(4 * kernel[0] * kernel[1]))
    with k.parallel(k.index_mul(k.index_mul(n, c), oh), work=work) as row:
        plane, y = k.let(k.index_div(row, oh)), k.let(k.index_mod(row, oh))
        with k.loop(k.index(0), ow) as z:
            value, tap = low, k.const(0, "int32")
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    a = _position(k, y, k.index(i), stride[0], padding[0])
                    b = _position(k, z, k.index(j), stride[1], padding[1])
                    inside = k.inside((a, h, padding[0]), (b, w, padding[1]))
                    a, b = k.clip(a, h, padding[0]), k.clip(b, w, padding[1])
                    v = k.let(x.at_flat(_flat(k, plane, a, b, h, w)))
                    if inside is not None:
                        v = k.let(k.select(inside, v, low))
                    wins = k.gt(v, value)
                    if x.dtype[0] == "f":                    # larger, or the first NaN
                        wins = k.land(k.lnot(k.le(v, value)), k.eq(value, value))
                    first = i == j == 0
                    tap = tap if first else k.let(k.select(wins, k.const(i * kernel[1] + j, "int32"), tap))
                    value = v if first else k.let(k.select(wins, v, value))
            at = k.let(k.index_add(k.index_mul(row, ow), z))
            best.store_flat(at, value)
            where.store_flat(at, tap)


max_pool2d_op: Op = Op(
    "max_pool2d",                        # the largest of each window, and which element of the window it was
    infer=_max_pool_infer,
    run=_max_pool_run,
    vjp=(lambda g, c: record.apply(max_unpool2d_op, g[0], c.outputs[1], **_window(c),
                                   size=c.shapes[0][2:]),),
    saves=("out",),
    lower=Loops(_max_pool_loops),
    outputs=2,
    kinds="iuf",
    cost=8.0,
    compiled=256,
    batched=(0,),
)


def _unpool_run(g: Array, where: Array, kernel: Pair, stride: Pair, padding: Pair, size: Pair) -> Array:
    n, c, oh, ow = g.shape
    win = np.zeros((n, c, oh, ow, kernel[0] * kernel[1]), g.dtype)
    np.put_along_axis(win, where[..., None].astype(np.int64), g[..., None], -1)
    win = win.reshape(n, c, oh, ow, *kernel)
    return np.ascontiguousarray(_add_windows(win, (n, c, *size), stride, padding, (1, 1)))


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


def _unpool_loops(k: Any, inputs: Any, outputs: Any, kernel: Pair, stride: Pair, padding: Pair,
                  size: Pair) -> None:
    """Each input element adds up the gradients of the windows it won."""
    (g, where), (dx,) = inputs, outputs
    n, c, h, w = dx.shape
    oh, ow = g.shape[2:]
    with k.parallel(k.index_mul(k.index_mul(n, c), h), work=k.estimate(w, k.index(6))) as row:
        plane, y = k.let(k.index_div(row, h)), k.let(k.index_mod(row, h))
        rows = _covering(k, y, oh, kernel[0], stride[0], padding[0])
        with k.loop(k.index(0), w) as z:
            total = k.const(0, g.dtype)
            for o, i, exists in rows:
                for p, j, there in _covering(k, z, ow, kernel[1], stride[1], padding[1]):
                    at = k.let(_flat(k, plane, o, p, oh, ow))
                    tap = k.cast(k.index_add(k.index_mul(i, kernel[1]), j), "int32")
                    won = k.land(k.land(exists, there), k.eq(where.at_flat(at), tap))
                    part = k.select(won, g.at_flat(at), k.const(0, g.dtype))
                    total = part if len(rows) == 1 and kernel[1] <= stride[1] else k.let(k.add(total, part))
            dx.store_flat(k.index_add(k.index_mul(row, w), z), total)


def _pick_window_run(x: Array, where: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    win = _windows(x, kernel, stride, padding, (1, 1))
    flat = win.reshape(*win.shape[:4], kernel[0] * kernel[1])
    return np.take_along_axis(flat, where[..., None].astype(np.int64), -1)[..., 0]


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


max_unpool2d_op: Op = Op(
    "max_unpool2d",                      # the adjoint of max_pool2d: gradients to the winners
    infer=lambda g, where, kernel, stride, padding, size: Aval((*g.shape[:2], *size), g.dtype),
    run=_unpool_run,
    vjp=(lambda g, c: record.apply(pick_window_op, g, c.y, **_window(c)), None),
    saves=("y",),
    lower=Loops(_unpool_loops),
    cost=8.0,
    compiled=256,
    batched=(0, 1),
)

pick_window_op: Op = Op(
    "pick_window",                       # of each window the element that won before
    infer=lambda x, where, kernel, stride, padding: Aval(where.shape, x.dtype),
    run=_pick_window_run,
    vjp=(lambda g, c: record.apply(max_unpool2d_op, g, c.y, **_window(c), size=c.shapes[0][2:]), None),
    saves=("y",),
    lower=Loops(_pick_window_loops),
    cost=8.0,
)


def _avg_pool_run(x: Array, kernel: Pair, stride: Pair, padding: Pair) -> Array:
    _pool_infer("avg_pool2d", Aval(x.shape, x.dtype), kernel, stride, padding)
    total = _windows(x, kernel, stride, padding, (1, 1)).sum((4, 5))
    return (total / x.dtype.type(kernel[0] * kernel[1])).astype(x.dtype)


def _avg_pool_loops(k: Any, inputs: Any, outputs: Any, kernel: Pair, stride: Pair, padding: Pair) -> None:
    (x,), (out,) = inputs, outputs
    n, c, oh, ow = out.shape
    h, w = x.shape[2:]
    area = k.const(float(kernel[0] * kernel[1]), x.dtype)
    work = k.estimate(ow, k.index(2 * kernel[0] * kernel[1]))
    with k.parallel(k.index_mul(k.index_mul(n, c), oh), work=work) as row:
        plane, y = k.let(k.index_div(row, oh)), k.let(k.index_mod(row, oh))
        with k.loop(k.index(0), ow) as z:
            total = None
            for i in range(kernel[0]):
                for j in range(kernel[1]):
                    a = _position(k, y, k.index(i), stride[0], padding[0])
                    b = _position(k, z, k.index(j), stride[1], padding[1])
                    inside = k.inside((a, h, padding[0]), (b, w, padding[1]))
                    a, b = k.clip(a, h, padding[0]), k.clip(b, w, padding[1])
                    v = x.at_flat(_flat(k, plane, a, b, h, w))
                    v = v if inside is None else k.select(inside, v, k.const(0, x.dtype))
                    total = v if total is None else k.add(total, v)
            out.store_flat(k.index_add(k.index_mul(row, ow), z), k.div(total, area))


def _avg_unpool_run(g: Array, kernel: Pair, stride: Pair, padding: Pair, size: Pair) -> Array:
    share = g / g.dtype.type(kernel[0] * kernel[1])
    win = np.broadcast_to(share[..., None, None], (*g.shape, *kernel))
    return np.ascontiguousarray(_add_windows(win, (*g.shape[:2], *size), stride, padding, (1, 1)))


def _avg_unpool_loops(k: Any, inputs: Any, outputs: Any, kernel: Pair, stride: Pair, padding: Pair,
                      size: Pair) -> None:
    (g,), (dx,) = inputs, outputs
    n, c, h, w = dx.shape
    oh, ow = g.shape[2:]
    area = k.const(float(kernel[0] * kernel[1]), g.dtype)
    with k.parallel(k.index_mul(k.index_mul(n, c), h), work=k.estimate(w, k.index(6))) as row:
        plane, y = k.let(k.index_div(row, h)), k.let(k.index_mod(row, h))
        rows = _covering(k, y, oh, kernel[0], stride[0], padding[0])
        with k.loop(k.index(0), w) as z:
            total = k.const(0, g.dtype)
            for o, _, exists in rows:
                for p, _, there in _covering(k, z, ow, kernel[1], stride[1], padding[1]):
                    at = _flat(k, plane, o, p, oh, ow)
                    part = k.select(k.land(exists, there), k.div(g.at_flat(at), area), k.const(0, g.dtype))
                    total = k.let(k.add(total, part))
            dx.store_flat(k.index_add(k.index_mul(row, w), z), total)


def _float_pool(name: str, x: Aval, kernel: Pair, stride: Pair, padding: Pair) -> Aval:
    if x.dtype.kind != "f":
        raise DTypeError(f"{name}: takes floats, not {x.dtype.name}")
    return Aval(_pool_infer(name, x, kernel, stride, padding), x.dtype)


avg_pool2d_op: Op = Op(
    "avg_pool2d",                        # the mean of each window, padding counted in
    infer=lambda x, kernel, stride, padding: _float_pool("avg_pool2d", x, kernel, stride, padding),
    run=_avg_pool_run,
    vjp=(lambda g, c: record.apply(avg_unpool2d_op, g, **_window(c), size=c.shapes[0][2:]),),
    lower=Loops(_avg_pool_loops),
    kinds="f",
    cost=8.0,
    compiled=256,
    batched=(0,),
)

avg_unpool2d_op: Op = Op(
    "avg_unpool2d",                      # the adjoint of avg_pool2d
    infer=lambda g, kernel, stride, padding, size: Aval((*g.shape[:2], *size), g.dtype),
    run=_avg_unpool_run,
    vjp=(lambda g, c: record.apply(avg_pool2d_op, g, **_window(c)),),
    lower=Loops(_avg_unpool_loops),
    cost=8.0,
    compiled=256,
    batched=(0,),
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
