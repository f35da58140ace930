"""How pooling runs where channels are last: vectors are channels, and all lanes have the same windows."""
from __future__ import annotations

from collections.abc import Callable
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


def from_windows(covering: Callable[..., Any], k: Any, g: Any, dx: Any, kernel: Pair, stride: Pair,
                 padding: Pair, share: Callable[[Any, Any], Any]) -> None:
    """dx as sums over windows of g, of which one gives ``share(place in g, tap)`` to its element ``tap``.

    ``covering`` are the windows that hold a position.
    """
    n, h, w, c = dx.shape
    oh, ow = g.shape[1:3]
    zero, known = k.const(0, dx.dtype), [(k.known(a), k.known(b)) for a, b in ((h, oh), (w, ow))]
    tiled = kernel == stride and padding == (0, 0) and all(      # every position is in one window
        a is not None and b is not None and a == b * s for (a, b), s in zip(known, stride))
    work = k.estimate(w, c, 4 * -(-kernel[0] // stride[0]) * -(-kernel[1] // stride[1]))
    with k.parallel(k.index_mul(n, h), work=work) as row:
        image, y = k.let(k.index_div(row, h)), k.let(k.index_mod(row, h))
        rows = covering(k, y, oh, kernel[0], stride[0], padding[0])
        with k.loop(k.index(0), w) as z:
            windows = []
            for o, i, above in rows:
                for p, j, left in covering(k, z, ow, kernel[1], stride[1], padding[1]):
                    pixel = k.index_add(k.index_mul(k.index_add(k.index_mul(image, oh), o), ow), p)
                    windows.append((k.let(k.index_mul(pixel, c)),
                                    k.let(k.index_add(k.index_mul(i, kernel[1]), j)),
                                    k.const(True, "bool") if tiled else k.let(k.land(above, left))))
            at = k.let(k.index_mul(k.index_add(k.index_mul(row, w), z), c))
            with k.lanes(c) as lane:
                total = zero
                for place, tap, exists in windows:
                    given = k.select(exists, share(k.index_add(place, lane), tap), zero)
                    total = given if len(windows) == 1 else k.let(k.add(total, given))
                dx.store_flat(k.index_add(at, lane), total)
