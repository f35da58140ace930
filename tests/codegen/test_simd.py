"""Register tiles, vector loops and transposes against their NumPy bodies, and what is built of them."""
from __future__ import annotations

import ctypes
import itertools
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from llvmlite import ir as ll
from on_threads import on_threads
from op_samples import channels_last

import graphc as gc
from benchmarks.forms import Forms
from graphc.codegen import compile as compiling
from graphc.codegen import native, python_target
from graphc.codegen.emit import kernel_key
from graphc.codegen.loopir import (
    Axis,
    Buffer,
    Kernel,
    Lanes,
    Let,
    Load,
    Operand,
    Place,
    Store,
    Tile,
    Transpose,
    Var,
    call,
    const,
    iadd,
    imul,
    print_kernel,
    verify,
)
from graphc.codegen.simd import build, lanes, machine, products, tiling
from graphc.codegen.simd.form import TileForm
from graphc.core import record
from graphc.core.config import config
from graphc.core.errors import InternalError
from graphc.ops.conv import conv2d_dw_op, conv2d_dx_op, conv2d_op
from graphc.ops.linalg import matmul_op
from graphc.ops.pool import avg_pool2d_op, avg_unpool2d_op, max_pool2d_op, max_unpool2d_op, pick_window_op

TOLERANCE = {"float32": 2e-5, "float64": 1e-13}
ONE = const(1)
_names = itertools.count()


# ---------------------------------------------------------------- tiles

def _native(form: TileForm, cpu: machine.Machine) -> Any:
    """The tile for some machine's registers, as this one runs it."""
    module = ll.Module("tile")
    module.triple = native.triple()
    given = sum(n is None for axes in (form.rows, form.columns, form.taps, form.loops, (form.lane,))
                for axis in axes for n in axis)
    function = build.tile_function(module, form, cpu, given)
    function.linkage, function.name = "", f"tile_test_{next(_names)}"
    code = native.emit_object(native.optimise(str(module), unroll=False))
    types = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * given
    return ctypes.CFUNCTYPE(None, *types)(native.load_object(code, function.name))


FORMS: dict[str, dict[str, Any]] = {
    "rows": {"width": 32, "lane": (32, 0, 1, 1), "rows": ((5, 7, 0, 32),), "loops": ((6, 1, 32, 0),)},
    "ragged": {"width": 32, "lane": (19, 0, 1, 1), "rows": ((3, 9, 0, 19),), "loops": ((9, 1, 19, 0),)},
    "given": {"width": 32, "lane": (None, 0, 1, 1), "rows": ((3, None, 0, 40),),
              "loops": ((None, 1, 40, 0),)},
    "taps": {"width": 16, "lane": (16, 0, 1, 1), "rows": ((2, 9, 0, 64), (4, 1, 0, 16)),
             "loops": ((3, 18, 80, 0),), "taps": ((5, 1, 16, 0),)},
    "columns": {"width": 16, "lane": (13, 0, 1, 1), "rows": ((2, 6, 0, 70),), "columns": ((4, 0, 15, 13),),
                "loops": ((2, 3, 200, 0),), "taps": ((3, 1, 15, 0),)},
    "across": {"width": 32, "lane": (32, 0, 1, 20), "rows": ((2, 8, 0, 10), (10, 1, 0, 1)),
               "loops": ((7, 3, 32, 0),)},
    "across, ragged": {"width": 16, "lane": (11, 0, 1, 7), "rows": ((7, 2, 0, 1),),
                       "loops": ((4, 3, 11, 0),)},
    "across, apart": {"width": 16, "lane": (16, 0, 1, 50), "rows": ((3, 2, 0, 4), (2, 1, 0, 1)),
                      "loops": ((4, 3, 16, 0),)},
    "pixels": {"width": 16, "lane": (14, 1, 1, 1), "rows": ((3, 20, 0, 60),), "columns": ((4, 0, 20, 15),),
               "loops": ((5, 60, 90, 0),)},
    "empty": {"width": 16, "lane": (16, 0, 1, 1), "rows": ((2, 1, 0, 16),), "loops": ((None, 1, 16, 0),)},
}


@pytest.mark.parametrize("cpu", [machine.AVX512, machine.AVX2, machine.SSE], ids=["avx512", "avx2", "sse"])
@pytest.mark.parametrize("code", ["f4", "f8"])
@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_tile_is_its_numpy_body(name: str, accumulate: bool, code: str, cpu: machine.Machine) -> None:
    if cpu.width > machine.host().width:
        pytest.skip("this CPU has no such registers")
    form = TileForm(code, accumulate=accumulate, **FORMS[name])  # type: ignore[arg-type]
    given = {"given": [11, 8, 21], "empty": [0]}.get(name, [])  # stride of rows, extent of the loop, lanes
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(2000).astype(code) for _ in range(3))
    found, expected = c.copy(), c.copy()
    form(a, 5, b, 3, expected, 7, *given)
    pointers = [x.ctypes.data + at * x.itemsize for x, at in ((a, 5), (b, 3), (found, 7))]
    _native(form, cpu)(*pointers, *given)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[np.dtype(code).name] * 10)


def test_tiles_are_verified() -> None:
    buffers = (Buffer("a", "float32", "in"), Buffer("b", "float32", "in"), Buffer("c", "float32", "out"))
    axis = Axis(const(4), const(1), const(0), const(16))
    lane = Axis(const(16), const(0), ONE, ONE)
    a, b, c = (Place(name, const(0)) for name in "abc")
    tile = Tile(a, b, c, (axis,), (), (), (), lane, 16, False, "float32")
    kernel = Kernel("k", buffers, (), ONE, ONE, (tile,))
    assert "c[0] = a[0] * b[0]" in print_kernel(verify(kernel))
    for bad in (Axis(Var("n"), const(1), const(0), ONE), Axis(const(4), const(1), const(1), ONE)):
        wrong = Kernel("k", buffers, ("n",), ONE, ONE, (replace(tile, rows=(bad,)),))
        with pytest.raises(InternalError, match="bad tile"):
            verify(wrong)


@pytest.mark.parametrize("cpu", [machine.AVX512, machine.AVX2, machine.NEON, machine.SSE])
@pytest.mark.parametrize("rows,columns,lane",
                         [(64, 32, 32), (6, 28, 28), (1, 7, 5), (67, 1, 67), (16, 10, 100)])
def test_a_cut_fits_the_registers(cpu: machine.Machine, rows: int, columns: int, lane: int) -> None:
    def axis(extent: int, *strides: int) -> Axis:
        return Axis(const(extent), *map(const, strides))
    what = tiling.Contraction(
        (axis(rows, 9, 0, 1000),), (axis(columns, 0, 40, 40),), axis(lane, 0, 1, 1),
        (axis(64, 600, 1600, 0), axis(3, 3, 40, 0), axis(3, 1, 1, 0)), "float32")
    cut = what.cut(cpu)
    vectors = cut.width // cpu.lanes("float32")
    assert cut.rows[0] * cut.columns[0] * vectors + cut.columns[0] * vectors + 2 <= cpu.registers
    assert 1 <= cut.rows[0] <= rows and 1 <= cut.columns[0] <= columns


# ---------------------------------------------------------------- vector loops and transposes

def _run(kernel: Kernel, buffers: list[Any]) -> None:
    address = compiling.compile_kernels([kernel])[0].address
    slots = np.array([x.ctypes.data for x in buffers], np.int64)
    table = np.array([slots.ctypes.data + 8 * i for i in range(len(buffers))], np.int64)
    types = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 3]
    ctypes.CFUNCTYPE(None, *types)(address)(table.ctypes.data, 0, 0, 0, 1)


def _lanes_kernel(count: int, dtype: str, stride: int, stores: int) -> Kernel:
    """y[z*stores + j] = max(x[5 + z*stride + j] * 3, x[z]) or 1 where that is 2"""
    z = Var("z")
    body: list[Any] = []
    for j in range(stores):
        x = Load("x", iadd(iadd(Var("at"), imul(z, stride)), j), dtype)
        y = call("maximum", call("mul", x, const(3, dtype)), Load("x", z, dtype))
        body.append(Let(f"v{j}", y))
        v = Var(f"v{j}", dtype)
        kept = call("select", call("eq", v, const(2, dtype)), const(1, dtype), v)
        body.append(Store("y", iadd(imul(z, stores), j), kept))
    buffers = (Buffer("x", dtype, "in"), Buffer("y", dtype, "out"))
    return Kernel("lanes", buffers, (), ONE, ONE, (Let("at", iadd(Var("begin"), 5)), Lanes("z", const(count),
                                                                                            tuple(body))))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int16", "int64", "uint8"])
@pytest.mark.parametrize("count", [1, 5, 14, 16, 37])
@pytest.mark.parametrize("stride,stores", [(1, 1), (2, 1), (3, 2), (4, 3), (1, 2)])
def test_a_vector_loop_is_the_loop(stride: int, stores: int, count: int, dtype: str) -> None:
    kernel = verify(_lanes_kernel(count, dtype, stride, stores))
    statement = kernel.body[1]
    assert isinstance(statement, Lanes) and lanes.form_of(statement) is not None
    x = np.random.default_rng(0).integers(-2, 9, 220).astype(dtype)
    expected, found = np.full(150, 7, dtype), np.full(150, 7, dtype)
    python_target.load(kernel)([x, expected], [], 0, 0, 1)
    _run(kernel, [x, found])
    np.testing.assert_array_equal(found, expected)


def test_constants_anywhere_in_an_index() -> None:
    """Places that differ by a constant are one store, wherever the constant stands."""
    z, at = Var("z"), Var("at")
    stores = tuple(Store("y", iadd(at, iadd(iadd(imul(z, 2), Var("begin")), j)), const(j, "float32"))
                   for j in range(2))
    kernel = verify(Kernel("lanes", (Buffer("y", "float32", "out"),), (), ONE, ONE,
                           (Let("at", iadd(Var("begin"), 3)), Lanes("z", const(20), stores))))
    statement = kernel.body[1]
    assert isinstance(statement, Lanes) and lanes.form_of(statement) is not None
    expected, found = np.full(50, 7, "f4"), np.full(50, 7, "f4")
    python_target.load(kernel)([expected], [], 0, 0, 1)
    _run(kernel, [found])
    np.testing.assert_array_equal(found, expected)
    assert found[3:43].tolist() == [0, 1] * 20 and set(found[43:]) == {7}


def test_what_has_no_vector_form_stays_a_loop() -> None:
    z = Var("z")
    gather = Load("x", Load("i", z, "int64"), "float32")
    kernel = verify(Kernel("gather", (Buffer("x", "float32", "in"), Buffer("i", "int64", "in"),
                                      Buffer("y", "float32", "out")), (), ONE, ONE,
                           (Lanes("z", const(6), (Store("y", z, gather),)),)))
    x, i, y = np.arange(9, dtype="f4"), np.array([3, 1, 8, 0, 0, 5]), np.zeros(6, "f4")
    _run(kernel, [x, i, y])
    np.testing.assert_array_equal(y, x[i])
    assert "lanes_" not in python_target.load(kernel).source


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("rows,columns", [(1, 1), (5, 40), (16, 16), (33, 7), (17, 31)])
def test_transpose(rows: int, columns: int, dtype: str) -> None:
    a, c = (Operand(name, const(2), const(ld)) for name, ld in (("a", columns + 3), ("c", rows + 1)))
    kernel = verify(Kernel("transpose", (Buffer("a", dtype, "in"), Buffer("c", dtype, "out")), (), ONE, ONE,
                           (Transpose(const(rows), const(columns), a, c, dtype),)))
    x = np.random.default_rng(0).random(2 + rows * (columns + 3)).astype(dtype)
    found, expected = np.zeros(2 + columns * (rows + 1), dtype), np.zeros(2 + columns * (rows + 1), dtype)
    python_target.load(kernel)([x, expected], [], 0, 0, 1)
    _run(kernel, [x, found])
    np.testing.assert_array_equal(found, expected)
    assert kernel_key(kernel) != kernel_key(Kernel("t", kernel.buffers, (), ONE, ONE, ()))


# ---------------------------------------------------------------- products

@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ta,tb", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("m,n,k", [(1, 64, 64), (2, 64, 3), (7, 130, 64), (13, 64, 600), (40, 60, 1),
                                   (65, 200, 33), (520, 530, 70)])
def test_products_of_any_shape(m: int, n: int, k: int, ta: bool, tb: bool, dtype: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((k, m) if ta else (m, k)).astype(dtype)
    y = rng.standard_normal((n, k) if tb else (k, n)).astype(dtype)
    exact = matmul_op.run(x.astype(np.float64), y.astype(np.float64), ta=ta, tb=tb)
    for target in ("python", "cpu"):
        found, = _evaluate(matmul_op, [x, y], {"ta": ta, "tb": tb}, target)
        np.testing.assert_allclose(found, exact, rtol=0, atol=TOLERANCE[dtype] * np.abs(exact).max())


def _product(code: str, cpu: machine.Machine) -> Any:
    """The product of matrices of any size for some machine's registers, as this one runs it."""
    module, number = ll.Module("product"), next(_names)
    module.triple = native.triple()
    transpose = build.transpose_function(module, f"transpose_test_{number}", code, cpu)
    function = products.product_function(module, f"product_test_{number}", code, cpu, transpose)
    object_code = native.emit_object(native.optimise(str(module), unroll=False))
    size, pointer = ctypes.c_int64, ctypes.c_void_p
    types = [size, size, size, pointer, size, size, pointer, size, size, pointer, size, size]
    return ctypes.CFUNCTYPE(None, *types)(native.load_object(object_code, function.name))


# rows and columns fewer than a vector, than a tile's, than what is turned; sums of no whole vector, and long
PRODUCTS = [*itertools.product((2, 5, 13), (2, 9, 40), (1, 3, 70)), (6, 300, 50), (17, 270, 40), (3, 5, 600),
            (50, 70, 400), (2, 30, 1100), (12, 1030, 6), (40, 1030, 33), (60, 7, 90), (1040, 3, 9)]


@pytest.mark.parametrize("cpu", [machine.AVX512, machine.AVX2, machine.SSE], ids=["avx512", "avx2", "sse"])
@pytest.mark.parametrize("code", ["f4", "f8"])
def test_every_way_to_multiply(code: str, cpu: machine.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """All transposes, strides beyond the rows, added or not, whatever C holds, and nothing beyond it."""
    if cpu.width > machine.host().width:
        pytest.skip("this CPU has no such registers")
    monkeypatch.setattr(products, "FAR", 1 << 14)            # so that matrices of some KiB come "from memory"
    multiply, rng = _product(code, cpu), np.random.default_rng(0)
    for (m, n, k), ta, tb, add in itertools.product(PRODUCTS, (False, True), (False, True), (False, True)):
        x, y = (rng.standard_normal((rows, columns + 3)).astype(code)
                for rows, columns in (((k, m) if ta else (m, k)), ((n, k) if tb else (k, n))))
        a, b = x[:, :-3], y[:, :-3]
        product = (a.T if ta else a) @ (b.T if tb else b)
        c = rng.standard_normal((m + 1, n + 5)).astype(code)
        expected = c.copy()
        expected[:m, :n] = product + (c[:m, :n] if add else 0)
        if not add:
            c[:m, :n] = np.nan
        operands = [part for array, turned in ((x, ta), (y, tb), (c, add))
                    for part in (array.ctypes.data, array.shape[1], int(turned))]
        multiply(m, n, k, *operands)
        np.testing.assert_allclose(c, expected, rtol=0, atol=20 * TOLERANCE[np.dtype(code).name] * np.sqrt(k),
                                   err_msg=f"{m} x {k} x {n}, {ta=} {tb=} {add=}")


# ---------------------------------------------------------------- convolution and pooling

def _convolution(seed: int) -> tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]:
    """(attributes, shape of the input, shape of the weight)"""
    rng = np.random.default_rng(seed)

    def pair(low: int, high: int) -> tuple[int, int]:
        return int(rng.integers(low, high)), int(rng.integers(low, high))
    groups = int(rng.choice([1, 1, 1, 2, 3]))
    depthwise = rng.random() < 0.15
    c, o = (groups * int(rng.choice([1, 2, 3, 5, 8, 16, 17, 33, 70])) for _ in range(2))
    if depthwise:
        groups, o = c, c * int(rng.integers(1, 3))
    kernel, stride, dilation = pair(1, 5), pair(1, 4), pair(1, 3)
    if rng.random() < 0.5:
        stride = (1, 1)
    if rng.random() < 0.6:
        dilation = (1, 1)
    padding = tuple(int(rng.integers(0, k + 1)) for k in kernel)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for k, d, p in zip(kernel, dilation, padding)]
    size = [n + int(rng.integers(0, 20)) for n in least]
    attributes = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return attributes, (int(rng.integers(1, 12)), c, *size), (o, c // groups, *kernel)


def _conv_case(op: Any, seed: int, dtype: str) -> tuple[list[Any], dict[str, Any]]:
    attributes, x_shape, w_shape = _convolution(seed)
    rng = np.random.default_rng(seed)
    x, w = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(w_shape).astype(dtype)
    g = rng.standard_normal(conv2d_op.run(x, w, **attributes).shape).astype(dtype)
    if op is conv2d_op:
        return [x, w], attributes
    if op is conv2d_dx_op:
        return [g, w], {**attributes, "size": x_shape[2:]}
    return [x, g], {**attributes, "kernel": w_shape[2:]}


each_layout = pytest.mark.parametrize("layout", ["NCHW", "NHWC"])


def _laid_out(op: Any, arrays: list[Any], attributes: dict[str, Any], layout: str) -> Any:
    """A call of NCHW as one of that layout: (arrays, attributes, what makes NCHW of its results)"""
    attributes = {**attributes, "layout": layout}
    if layout == "NCHW":
        return arrays, attributes, lambda y, i=0: y
    return (list(channels_last(tuple(arrays), op.images.inputs)), attributes,
            lambda y, i=0: y.transpose(0, 3, 1, 2) if i in op.images.outputs else y)


def _evaluate(op: Any, arrays: list[Any], attributes: dict[str, Any], target: str,
              named: bool = False) -> Any:
    shapes = [("n", *x.shape[1:]) if named and i in (op.batched or ()) else x.shape
              for i, x in enumerate(arrays)]
    with gc.Graph() as graph:
        nodes = [gc.placeholder(x.dtype.name, shape, name=f"x{i}")
                 for i, (x, shape) in enumerate(zip(arrays, shapes))]
        out = record.apply(op, *nodes, **attributes)
        outs = list(out) if isinstance(out, tuple) else [out]
    return gc.Session(graph, target).run(outs, dict(zip(nodes, arrays)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("op", [conv2d_op, conv2d_dx_op, conv2d_dw_op], ids=lambda op: str(op.name))
@each_layout
def test_convolutions_of_any_shape(layout: str, op: Any, seed: int, dtype: str) -> None:
    arrays, attributes = _conv_case(op, seed, dtype)
    exact = op.run(*(x.astype(np.float64) for x in arrays), **attributes)
    scale = max(1.0, float(np.abs(exact).max(initial=0)))
    arrays, attributes, planes = _laid_out(op, arrays, attributes, layout)
    for target, named in (("interpret", False), ("python", False), ("cpu", False), ("cpu", True)):
        found = planes(*_evaluate(op, arrays, attributes, target, named))
        assert found.shape == exact.shape and found.dtype == dtype
        np.testing.assert_allclose(found, exact, rtol=0, atol=TOLERANCE[dtype] * scale)


@pytest.mark.parametrize("seed", range(20, 26))
@pytest.mark.parametrize("op", [conv2d_op, conv2d_dx_op, conv2d_dw_op], ids=lambda op: str(op.name))
def test_convolutions_in_any_form(op: Any, seed: int) -> None:
    """Also those that the model does not choose."""
    arrays, attributes = _conv_case(op, seed, "float32")
    exact = op.run(*(x.astype(np.float64) for x in arrays), **attributes)
    forms, shapes = Forms(op), [x.shape for x in arrays]
    forms.compile(shapes, attributes)
    assert len(forms.costs) > 1 and all(cost >= 0 for cost in forms.costs.values())
    for form in forms.costs:
        for target in ("python", "cpu"):
            found = forms.compile(shapes, attributes, form, target)(arrays)
            np.testing.assert_allclose(found, exact, rtol=0, atol=TOLERANCE["float32"] * np.abs(exact).max())


@pytest.mark.parametrize("shape, kernel, stride, padding, dilation", [
    ((4, 6, 14, 14), (5, 5), (1, 1), (0, 0), (1, 1)), ((3, 4, 11, 9), (3, 4), (2, 3), (1, 2), (1, 1)),
    ((2, 5, 12, 17), (3, 3), (1, 1), (2, 5), (3, 2)), ((2, 4, 7, 40), (2, 3), (3, 2), (0, 1), (2, 3)),
    ((5, 6, 1, 50), (1, 7), (1, 4), (0, 0), (1, 1)), ((2, 6, 6, 5), (2, 2), (4, 5), (1, 0), (1, 1))])
@pytest.mark.parametrize("groups", [1, 2])
def test_input_gradients_by_columns(shape: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int],
                                    padding: tuple[int, int], dilation: tuple[int, int], groups: int) -> None:
    """Taps outside, rows that no tap reaches, rows that end within a stride; the batch by name, too."""
    shape = (shape[0], shape[1] * groups, *shape[2:])
    attributes: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation,
                                  "groups": groups}
    rng = np.random.default_rng(1)
    w = rng.standard_normal((8 * groups, shape[1] // groups, *kernel)).astype("f4")
    g = rng.standard_normal(conv2d_op.run(np.zeros(shape, "f4"), w, **attributes).shape).astype("f4")
    attributes["size"] = shape[2:]
    exact = conv2d_dx_op.run(g.astype("f8"), w.astype("f8"), **attributes)
    forms = Forms(conv2d_dx_op)
    for first, target in ((g.shape[0], "python"), (g.shape[0], "cpu"), ("n", "cpu")):
        run = forms.compile([(first, *g.shape[1:]), w.shape], attributes, "columns", target)
        found = on_threads(partial(run, [g, w]))
        np.testing.assert_allclose(found[0], exact, rtol=0, atol=1e-6 * np.abs(exact).max())
        for other in found[1:]:
            np.testing.assert_array_equal(other, found[0])


def test_what_follows_an_input_gradient_by_columns() -> None:
    """It joins the kernel, channel block by channel block."""
    rng = np.random.default_rng(1)
    shapes = (3, 16, 10, 10), (16, 12, 5, 5), (3, 12, 14, 14)
    arrays = [rng.standard_normal(shape).astype("f4") for shape in shapes]
    attributes = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "size": (14, 14)}
    with gc.Graph() as graph:
        g, w, y = (gc.placeholder("float32", shape) for shape in shapes)
        plain = record.apply(conv2d_dx_op, g, w, **attributes)
        masked = gc.where(y > 0, plain, 0.5 * plain) + y
    for fetched, results in (([masked], 1), ([masked, plain], 2)):
        found = {}
        for target in ("interpret", "python", "cpu"):
            found[target] = gc.Session(graph, target).run(fetched, dict(zip((g, w, y), arrays)))
            assert len(found[target]) == results
        kernels = gc.Session(graph, "cpu").prepare([x._node for x in fetched]).runnable.kernels
        assert [k.name for k in kernels if "columns" in k.name] == [k.name for k in kernels]
        for target in ("python", "cpu"):
            for a, b in zip(found[target], found["interpret"]):
                np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


@pytest.mark.parametrize("stride, dilation, kernel", [
    ((2, 2), (1, 1), 3), ((1, 3), (2, 2), 3), ((2, 2), (2, 2), 2), ((3, 2), (1, 3), 4), ((2, 5), (1, 1), 3)])
@pytest.mark.parametrize("op", [conv2d_op, conv2d_dx_op, conv2d_dw_op], ids=lambda op: str(op.name))
@each_layout
def test_strides_of_single_channels(layout: str, op: Any, stride: tuple[int, int], dilation: tuple[int, int],
                                    kernel: int) -> None:
    """Vectors are pixels, a stride's columns side by side, or groups; rows end within a stride."""
    rng = np.random.default_rng(1)
    attributes: dict[str, Any] = {"stride": stride, "padding": (1, 2), "dilation": dilation, "groups": 5}
    x = rng.standard_normal((3, 5, 18, 45)).astype("f4")
    w = rng.standard_normal((5, 1, kernel, kernel)).astype("f4")
    g = rng.standard_normal(conv2d_op.run(x, w, **attributes).shape).astype("f4")
    arrays, more = {"conv2d": ([x, w], {}), "conv2d_dx": ([g, w], {"size": (18, 45)}),
                    "conv2d_dw": ([x, g], {"kernel": (kernel, kernel)})}[op.name]
    exact = op.run(*(a.astype(np.float64) for a in arrays), **attributes, **more)
    arrays, attributes, planes = _laid_out(op, arrays, attributes | more, layout)
    for target in ("python", "cpu"):
        found = planes(*_evaluate(op, arrays, attributes, target))
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("shape, stride, padding", [
    ((3, 4, 1, 7), (2, 2), (2, 2)), ((2, 4, 7, 2), (1, 3), (0, 1)), ((2, 4, 1, 1), (4, 3), (1, 1)),
    ((0, 16, 8, 8), (1, 1), (1, 1))], ids=["low", "narrow", "pixel", "no-images"])
@pytest.mark.parametrize("op", [conv2d_op, conv2d_dx_op, conv2d_dw_op], ids=lambda op: str(op.name))
@each_layout
def test_images_smaller_than_a_stride_and_none(layout: str, op: Any, shape: tuple[int, ...],
                                               stride: tuple[int, int], padding: tuple[int, int]) -> None:
    """Some phases of the stride have no positions."""
    rng = np.random.default_rng(1)
    attributes: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": (1, 1), "groups": 1}
    x, w = (rng.standard_normal(s).astype("f4") for s in (shape, (16, shape[1], 3, 3)))
    g = rng.standard_normal(conv2d_op.run(x, w, **attributes).shape).astype("f4")
    arrays, more = {"conv2d": ([x, w], {}), "conv2d_dx": ([g, w], {"size": shape[2:]}),
                    "conv2d_dw": ([x, g], {"kernel": (3, 3)})}[op.name]
    exact = op.run(*(a.astype(np.float64) for a in arrays), **attributes, **more)
    arrays, attributes, planes = _laid_out(op, arrays, attributes | more, layout)
    for target in ("python", "cpu"):
        found = planes(*_evaluate(op, arrays, attributes, target))
        assert found.shape == exact.shape
        np.testing.assert_allclose(found, exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("op", [conv2d_op, conv2d_dx_op, conv2d_dw_op], ids=lambda op: str(op.name))
@each_layout
def test_convolutions_are_the_same_on_any_number_of_threads(layout: str, op: Any) -> None:
    attributes = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    rng = np.random.default_rng(0)
    x, g = (rng.standard_normal((5, 20, 24, 24)).astype("f4") for _ in range(2))
    w = rng.standard_normal((20, 20, 3, 3)).astype("f4")
    arrays, more = {"conv2d": ([x, w], {}), "conv2d_dx": ([g, w], {"size": (24, 24)}),
                    "conv2d_dw": ([x, g], {"kernel": (3, 3)})}[op.name]
    arrays, attributes, _ = _laid_out(op, arrays, attributes | more, layout)
    results = on_threads(lambda: _evaluate(op, arrays, attributes, "cpu")[0])
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


WINOGRAD = [pytest.param(op, *shape, id=f"{op.name}-{shape[0]}")
            for op in (conv2d_op, conv2d_dx_op, conv2d_dw_op)
            for shape in (((9, 16, 8, 32), 32, (1, 1), 1), ((8, 64, 6, 28), 64, (0, 1), 2),
                          ((8, 32, 15, 27), 16, (1, 1), 1), ((8, 64, 36, 12), 64, (1, 2), 1))]


def _kernels(op: Any, arrays: list[Any], attributes: dict[str, Any]) -> list[str]:
    with gc.Graph() as graph:
        nodes = [gc.placeholder(x.dtype.name, x.shape) for x in arrays]
        out = record.apply(op, *nodes, **attributes)
    return [k.name for k in gc.Session(graph, "cpu").prepare([out._node]).runnable.kernels]


@pytest.mark.parametrize("op, shape, made, padding, groups", WINOGRAD)
@each_layout
def test_winograd_is_as_exact_as_the_plain_sum(
        layout: str, op: Any, shape: tuple[int, ...], made: int, padding: tuple[int, int], groups: int,
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "layout", layout)
    rng = np.random.default_rng(1)
    attributes: dict[str, Any] = {"stride": (1, 1), "padding": padding, "dilation": (1, 1), "groups": groups}
    x = rng.standard_normal(shape).astype("f4")
    w = rng.standard_normal((made, shape[1] // groups, 3, 3)).astype("f4")
    g = rng.standard_normal(conv2d_op.run(x, w, **attributes).shape).astype("f4")
    arrays, more = {"conv2d": ([x, w], {}), "conv2d_dx": ([g, w], {"size": shape[2:]}),
                    "conv2d_dw": ([x, g], {"kernel": (3, 3)})}[op.name]
    attributes |= more
    exact = op.run(*(a.astype(np.float64) for a in arrays), **attributes)
    plain = op.run(*arrays, **attributes)
    arrays, attributes, planes = _laid_out(op, arrays, attributes, layout)
    even = op is not conv2d_dw_op or layout == "NHWC" or all(n % 2 == 0 for n in g.shape[2:])
    assert any("winograd" in name for name in _kernels(op, arrays, attributes)) == even

    def error(found: Any) -> float:
        return float(np.sqrt(np.mean((found - exact) ** 2)))
    found = planes(*_evaluate(op, arrays, attributes, "cpu", named=True))
    assert found.shape == exact.shape
    assert error(found) <= 2 * error(plain)
    assert np.abs(found - exact).max() <= 2e-6 * np.abs(exact).max()


@each_layout
def test_winograd_is_not_for_few_channels_strides_or_one_small_image(layout: str) -> None:
    rng = np.random.default_rng(1)
    plain: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    for shape, made, change in (((8, 3, 32, 32), 16, {}), ((8, 32, 32, 32), 32, {"stride": (2, 2)}),
                                ((8, 32, 32, 32), 32, {"dilation": (2, 2), "padding": (2, 2)}),
                                ((1, 64, 7, 7), 64, {})):
        arrays = [rng.standard_normal(s).astype("f4") for s in (shape, (made, shape[1], 3, 3))]
        arrays, attributes, _ = _laid_out(conv2d_op, arrays, plain | change, layout)
        assert not any("winograd" in name for name in _kernels(conv2d_op, arrays, attributes))


@pytest.mark.parametrize("op", [conv2d_op, conv2d_dx_op, conv2d_dw_op], ids=lambda op: str(op.name))
@each_layout
def test_winograd_on_the_python_target(layout: str, op: Any) -> None:
    rng = np.random.default_rng(1)
    attributes: dict[str, Any] = {"stride": (1, 1), "padding": (1, 1), "dilation": (1, 1), "groups": 1}
    x, w = rng.standard_normal((8, 16, 2, 30)).astype("f4"), rng.standard_normal((16, 16, 3, 3)).astype("f4")
    arrays, more = {"conv2d": ([x, w], {}), "conv2d_dx": ([x, w], {"size": (2, 30)}),
                    "conv2d_dw": ([x, x], {"kernel": (3, 3)})}[op.name]
    exact = op.run(*(a.astype(np.float64) for a in arrays), **attributes, **more)
    arrays, attributes, planes = _laid_out(op, arrays, attributes | more, layout)
    assert any("winograd" in name for name in _kernels(op, arrays, attributes))
    found = planes(*_evaluate(op, arrays, attributes, "python"))
    np.testing.assert_allclose(found, exact, rtol=0, atol=2e-6 * np.abs(exact).max())


@pytest.mark.parametrize("seed", range(12))
@each_layout
def test_pooling_of_any_shape(layout: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    kernel, stride = (tuple(int(n) for n in rng.integers(1, 5, 2)) for _ in range(2))
    stride = kernel if rng.random() < 0.5 else stride
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in kernel)
    size = tuple(int(k + n) for k, n in zip(kernel, rng.integers(0, 40, 2)))
    attributes = {"kernel": kernel, "stride": stride, "padding": padding}
    x = rng.integers(-9, 9, (int(rng.integers(1, 4)), 3, *size)).astype(rng.choice(["float32", "float64"]))
    best, where = max_pool2d_op.run(x, **attributes)
    g = rng.integers(-9, 9, best.shape).astype(x.dtype)
    cases: list[tuple[Any, list[Any], dict[str, Any]]] = [
        (max_pool2d_op, [x], {}), (avg_pool2d_op, [x], {}),
        (max_unpool2d_op, [g, where], {"size": size}), (avg_unpool2d_op, [g], {"size": size}),
        (pick_window_op, [x, where], {})]
    for op, arrays, more in cases:
        expected = op.run(*arrays, **attributes, **more)
        expected = expected if isinstance(expected, tuple) else (expected,)
        given, all_attributes, planes = _laid_out(op, arrays, attributes | more, layout)
        for target, named in (("python", False), ("cpu", False), ("cpu", True)):
            found = _evaluate(op, given, all_attributes, target, named)
            for i, (y, z) in enumerate(zip(found, expected)):
                np.testing.assert_allclose(planes(y, i), z, rtol=1e-6)


@each_layout
def test_nan_wins_a_window(layout: str) -> None:
    x = np.arange(2 * 28, dtype="f4").reshape(1, 1, 2, 28)
    x[0, 0, 1, 4] = np.nan
    attributes = {"kernel": (2, 2), "stride": (2, 2), "padding": (0, 0)}
    expected = max_pool2d_op.run(x, **attributes)
    arrays, attributes, planes = _laid_out(max_pool2d_op, [x], attributes, layout)
    for i, (found, wanted) in enumerate(zip(_evaluate(max_pool2d_op, arrays, attributes, "cpu"), expected)):
        np.testing.assert_array_equal(planes(found, i), wanted)
