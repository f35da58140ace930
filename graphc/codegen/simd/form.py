"""A tile as emitted source names it: what is known of its axes, and its body in NumPy.

A tile of the loop IR prints as a call of a constant that stands above the function::

    tile_0 = tile("f4", width=32, accumulate=False, lane=(32, 0, 1, 1), rows=((8, 1, 0, 64),),
                  loops=((64, 1156, 576, 0), (3, 34, 192, 0)), taps=((3, 1, 64, 0),))

    def conv2d(p0, p1, p2, chunk, begin, end):
        ...
            tile_0(s0, at, p1, 0, p2, to)

An axis is (extent, stride in A, in B, in C); what is known only at run time is None there, and follows the
places in the call, in the order of the axes.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..loopir import Axis, Const, Expr, Tile

Array = npt.NDArray[Any]
Known = int | None
AxisForm = tuple[Known, Known, Known, Known]


@dataclass(frozen=True)
class TileForm:
    """What a `Tile` is but for its places; called, it computes the tile on flat NumPy arrays."""
    code: str
    width: int
    accumulate: bool
    lane: AxisForm
    rows: tuple[AxisForm, ...] = ()
    columns: tuple[AxisForm, ...] = ()
    loops: tuple[AxisForm, ...] = ()
    taps: tuple[AxisForm, ...] = ()

    def fill(self, given: Iterator[Any]) -> tuple[list[tuple[Any, ...]], ...]:
        """(rows, columns, taps, loops, [lane]), the unknown taken from ``given``."""
        return tuple([tuple(next(given) if n is None else n for n in axis) for axis in group]
                     for group in (self.rows, self.columns, self.taps, self.loops, (self.lane,)))

    def __call__(self, a: Array, a_at: int, b: Array, b_at: int, c: Array, c_at: int, *given: int) -> None:
        rows, columns, taps, loops, lane = self.fill(iter(given))
        if any(axis[0] <= 0 for axis in (*rows, *columns, *lane)):
            return
        out = _view(c, c_at, [*rows, *columns, *lane], 3)
        if any(axis[0] <= 0 for axis in loops):
            product = np.zeros(out.shape, out.dtype)
        else:
            left = _view(a, a_at, [*lane, *rows, *taps, *loops], 1)
            right = _view(b, b_at, [*lane, *taps, *loops, *columns], 2)
            depth = math.prod(axis[0] for axis in (*taps, *loops))
            product = left.reshape(len(left), -1, depth) @ right.reshape(len(left), depth, -1)
            product = np.moveaxis(product, 0, -1).reshape(out.shape)
        out[...] = out + product if self.accumulate else product

    def __str__(self) -> str:
        groups = {"rows": self.rows, "columns": self.columns, "loops": self.loops, "taps": self.taps}
        axes = ", ".join(["", *(f"{name}={value}" for name, value in groups.items() if value)])
        flags = f"width={self.width}, accumulate={self.accumulate}, lane={self.lane}"
        return f'tile("{self.code}", {flags}{axes})'


def _view(flat: Array, at: int, axes: list[tuple[Any, ...]], operand: int) -> Array:
    shape = [int(axis[0]) for axis in axes]
    strides = [int(axis[operand]) * flat.itemsize for axis in axes]
    return np.lib.stride_tricks.as_strided(flat[at:], shape, strides)


def form_of(tile: Tile, code: str) -> tuple[TileForm, list[Expr]]:
    """The form of a tile, and the expressions that its call is given after the places."""
    given: list[Expr] = []

    def known(e: Expr) -> Known:
        if isinstance(e, Const):
            return int(e.value)
        given.append(e)
        return None

    def axis(x: Axis) -> AxisForm:
        return known(x.extent), known(x.a), known(x.b), known(x.c)

    def axes(group: tuple[Axis, ...]) -> tuple[AxisForm, ...]:
        return tuple(axis(x) for x in group)
    rows, columns, taps, loops = axes(tile.rows), axes(tile.columns), axes(tile.taps), axes(tile.loops)
    form = TileForm(code, tile.width, tile.accumulate, axis(tile.lane), rows, columns, loops, taps)
    return form, given
