"""How pooling runs where channels are last: vectors are channels, and all lanes have the same windows."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from .window import Pair

Index = Any                 # an index expression of the builder


def each_window(k: Any, x: Any, out: Any, kernel: Pair, stride: Pair, padding: Pair, work: int,
                window: Callable[[Any, Any], None]) -> None:
    """``window(place in out, element)`` for every window.

    ``element(i, j)`` is (an element of the window, whether it is one of x), the latter None for certainly.
    """
    n, oh, ow, c = out.shape
    h, w = x.shape[1:3]
    with k.parallel(k.index_mul(n, oh), work=k.estimate(ow, c, k.index(work))) as row:
        image, y = k.let(k.index_div(row, oh)), k.let(k.index_mod(row, oh))
        rows = [_tap(k, y, i, h, stride[0], padding[0]) for i in range(kernel[0])]
        lines = [k.let(k.index_mul(k.index_add(k.index_mul(image, h), a), w)) for a, _ in rows]
        with k.loop(k.index(0), ow) as z:
            columns = [_tap(k, z, j, w, stride[1], padding[1]) for j in range(kernel[1])]
            at = k.let(k.index_mul(k.index_add(k.index_mul(row, ow), z), c))
            places = [[k.let(k.index_mul(k.index_add(line, b), c)) for b, _ in columns] for line in lines]
            there = [[both(k, above, left) for _, left in columns] for _, above in rows]
            with k.lanes(c) as lane:
                window(k.index_add(at, lane),
                       lambda i, j: (x.at_flat(k.index_add(places[i][j], lane)), there[i][j]))


def _tap(k: Any, o: Index, tap: int, size: Index, stride: int, padding: int) -> tuple[Index, Any]:
    """(the position that a window's element has, moved inside; whether it is inside, None for certainly)"""
    at = k.let(k.index_sub(k.index_add(k.index_mul(o, stride), tap), padding))
    return k.clip(at, size, padding), k.inside((at, size, padding))


def both(k: Any, one: Any, other: Any) -> Any:
    """The conditions together; None is one that holds."""
    if one is None or other is None:
        return one if other is None else other
    return k.let(k.land(one, other))


def from_windows(k: Any, g: Any, dx: Any, kernel: Pair, stride: Pair, padding: Pair,
                 share: Callable[[Any, Any], Any]) -> None:
    """dx as sums over windows of g, of which one gives ``share(place in g, tap)`` to its element ``tap``.

    A stride of positions at a time: phases of it that are in windows alike are a loop.
    """
    n, h, w, c = dx.shape
    oh, ow = g.shape[1:3]
    high, wide = (k.index_div(k.index_add(size, s - 1), k.index(s)) for size, s in zip((h, w), stride))
    rows, columns = (_phases(*rest) for rest in zip(kernel, stride, padding))
    work = k.estimate(wide, c, 4 * kernel[0] * kernel[1])
    with k.parallel(k.index_mul(n, high), work=work) as item:
        image, u = k.let(k.index_div(item, high)), k.let(k.index_mod(item, high))
        lines = [(phases, _windows(k, u, high, oh, reach)) for phases, reach in rows]
        with k.loop(k.index(0), wide) as v:
            for phases, above in lines:
                with _positions(k, u, h, stride[0], phases) as (y, down):
                    for others, reach in columns:
                        left = _windows(k, v, wide, ow, reach)
                        with _positions(k, v, w, stride[1], others) as (x, right):
                            _sum(k, dx, _pixel(k, image, y, x, h, w, c), [
                                (_pixel(k, image, o, p, oh, ow, c),
                                 k.let(k.index_add(k.index_mul(k.index_add(down, i), kernel[1]),
                                                   k.index_add(right, j))), both(k, row, column))
                                for o, i, row in above for p, j, column in left], share)


def _phases(kernel: int, stride: int, padding: int) -> list[tuple[range, list[tuple[int, int]]]]:
    """(phases of the stride, (window, tap) of the first one's positions) of phases in the same windows.

    Windows are counted from the one that begins the stride.
    """
    found: list[tuple[range, list[tuple[int, int]]]] = []
    for phase in range(stride):
        shift, first = divmod(phase + padding, stride)
        reach = [(shift - back, first + back * stride) for back in range(-(-kernel // stride))
                 if first + back * stride < kernel]
        if found and [o for o, _ in found[-1][1]] == [o for o, _ in reach]:
            found[-1] = range(found[-1][0].start, phase + 1), found[-1][1]
        else:
            found.append((range(phase, phase + 1), reach))
    return found


@contextmanager
def _positions(k: Any, u: Index, size: Index, stride: int, phases: range) -> Iterator[tuple[Index, Index]]:
    """A loop over phases of the u-th stride that are inside: (position, how many phases before it)."""
    first, known = k.let(k.index_add(k.index_mul(u, stride), phases.start)), k.known(size)
    count = k.index(len(phases))
    if phases.stop > 1 and (known is None or known % stride):
        count = k.let(k.maximum(k.minimum(count, k.index_sub(size, first)), k.index(0)))
    with k.loop(k.index(0), count) as i:
        yield k.let(k.index_add(first, i)), i


def _windows(k: Any, u: Index, count: Index, size: Index,
             reach: list[tuple[int, int]]) -> list[tuple[Index, int, Any]]:
    """(window, moved inside; tap; whether it exists, None for certainly) of the u-th of ``count`` strides."""
    found = []
    for shift, tap in reach:
        o = k.let(k.index_add(u, shift))
        last, known = k.known(count), k.known(size)
        if shift >= 0 and last is not None and known is not None and last + shift <= known:
            found.append((o, tap, None))
            continue
        exists = k.let(k.land(k.ge(o, k.index(0)), k.lt(o, size)))
        o = k.let(k.maximum(k.minimum(o, k.index_sub(size, 1)), k.index(0)))
        found.append((o, tap, exists))
    return found


def _pixel(k: Any, image: Index, y: Index, x: Index, h: Index, w: Index, c: Index) -> Index:
    """Where a pixel's channels begin."""
    row = k.index_add(k.index_mul(image, h), y)
    return k.let(k.index_mul(k.index_add(k.index_mul(row, w), x), c))


def _sum(k: Any, dx: Any, at: Index, windows: list[tuple[Index, Index, Any]],
         share: Callable[[Any, Any], Any]) -> None:
    """What some windows give to a pixel."""
    zero = k.const(0, dx.dtype)
    with k.lanes(dx.shape[3]) as lane:
        total = zero
        for n, (place, tap, exists) in enumerate(windows):
            given = k.let(share(k.index_add(place, lane), tap))
            given = given if exists is None else k.let(k.select(exists, given, zero))
            total = given if n == 0 else k.let(k.add(total, given))
        dx.store_flat(k.index_add(at, lane), total)
