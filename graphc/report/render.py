"""How reports are shown: numbers with their units, tables, plain text.

And a Comparison: for a terminal, for a file, for Jupyter. All three show the same rows.
"""
from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import RenderableType

    from .compare import Comparison
    from .measure import Measured


class Row(NamedTuple):
    """One line of the table: what, eager, static, and what to make of it."""
    what: str
    eager: str
    static: str
    note: str = ""


def seconds_text(seconds: float) -> str:
    """A time in the unit that suits it, to three digits."""
    if seconds == 0:
        return "none"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * 0.9995:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds / 1e-6)} us"


def bytes_text(count: int | None) -> str:
    """A number of bytes in kB, MB or GB, to three digits; "?" when unknown."""
    if count is None:
        return "?"
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size * 0.9995:
            return f"{_three(count / size)} {unit}"
    return f"{_three(count / 1e3)} kB"


def _three(x: float) -> str:
    return f"{x:.2f}" if x < 9.995 else f"{x:.1f}" if x < 99.95 else f"{x:,.0f}"


def rate_text(count: float, seconds: float) -> str:
    """Billions per second, to three digits; "" for none."""
    return _three(count / seconds / 1e9) if count and seconds else ""


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    """A table for rich; columns whose names end in " >" are numbers."""
    from rich import box
    from rich.table import Table
    from rich.text import Text
    found = Table(title=title or None, title_justify="left", title_style="bold cyan", box=box.SIMPLE_HEAD,
                  pad_edge=False)
    for k, name in enumerate(columns):
        right = name.endswith(" >")
        found.add_column(name.removesuffix(" >"), justify="right" if right else "left", overflow="fold",
                         style="cyan" if k == 0 else "", no_wrap=right)
    for row in rows:
        found.add_row(*(Text(cell) for cell in row))
    return found


def to_text(renderable: RenderableType, width: int) -> str:
    """Plain text of so many columns."""
    from rich.console import Console
    console = Console(file=io.StringIO(), width=width, color_system=None, legacy_windows=False)
    console.print(renderable)
    file = console.file
    assert isinstance(file, io.StringIO)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()).strip()


def rows(c: Comparison) -> list[Row]:
    """The table's lines."""
    e, s = c.eager, c.static
    ratio = c.speedup
    after = c.pays_off_after
    note = f"{ratio:.2f}x faster" if ratio >= 1 else f"{1 / ratio:.2f}x slower"
    pays = "never paid for" if after is None else f"paid for after {after:,} step{'s' * (after > 1)}"
    arena = f"arena {bytes_text(s.arena_bytes)}" if s.arena_bytes is not None else ""
    return [
        Row("median step", seconds_text(e.median), seconds_text(s.median), note),
        Row("  half of them in", _spread(e), _spread(s)),
        Row("first step", seconds_text(e.first), seconds_text(s.first), _traces(s)),
        Row("compile, warm-up", seconds_text(e.start_up), seconds_text(s.start_up), pays),
        Row("peak memory rise", bytes_text(e.peak_bytes), bytes_text(s.peak_bytes), arena),
        Row("work per step", f"{e.n_ops} ops", _work(s), _from(s)),
        Row("first loss", f"{e.losses[0]:.6g}", f"{s.losses[0]:.6g}"),
        Row("last loss", f"{e.losses[-1]:.6g}", f"{s.losses[-1]:.6g}"),
    ]


def _spread(m: Measured) -> str:
    low, _, high = m.quartiles
    a, b = seconds_text(low), seconds_text(high)
    return f"{a.split()[0]} - {b}" if a.split()[1] == b.split()[1] else f"{a} - {b}"


def _traces(s: Measured) -> str:
    again = [str(k + 1) for k in s.traced if k]
    return f"traced again in step {', '.join(again[:3])}{' ...' * (len(again) > 3)}" if again else ""


def _work(s: Measured) -> str:
    if s.kernels is None:
        return f"{s.n_ops} nodes"
    count = s.kernels if s.launches is None else s.launches
    return f"{count} kernel{'s' * (count != 1)}"


def _from(s: Measured) -> str:
    if s.kernels is None:
        return "interpreted: no kernels"
    distinct = f", {s.kernels} distinct" if s.launches not in (None, s.kernels) else ""
    return f"{s.n_ops} nodes{distinct}"


def differences(c: Comparison) -> list[tuple[str, str]]:
    """The lines under the table: what, how much and where."""
    d = c.difference
    limit = f"{d.tolerance:.0e}"
    first = d.first_beyond
    beyond = f"never above {limit}" if first is None else f"first above {limit} at step {first}"
    loss = "none" if d.loss == 0 else f"{d.loss:.1e} relative, at step {d.loss_step}; {beyond}"
    parameters = "none" if not d.parameter else f"{d.parameters:.1e} relative, in {d.parameter}"
    return [("largest difference of loss", loss), ("of parameters after all steps", parameters)]


def title(c: Comparison) -> str:
    batch = f" of {c.batch_size}" if c.batch_size else ""
    return f"{c.subject}: {c.steps} steps{batch}, {c.dtype}, seed {c.seed}"


def as_table(c: Comparison) -> RenderableType:
    """For rich: a table, the differences and the verdict."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title(c), style="bold"), title_justify="left", box=box.SIMPLE_HEAD,
                  pad_edge=False)
    table.add_column("")
    table.add_column("eager", justify="right", style="yellow")
    table.add_column(f"static ({c.target})", justify="right", style="cyan")
    table.add_column("", style="dim")
    for row in rows(c):
        table.add_row(*map(Text, row))
    below = Table.grid(padding=(0, 2))
    for what, text in differences(c):
        below.add_row(Text(what), Text(text))
    return Group(table, below, Text(), Text(c.verdict, style="bold green" if c.speedup > 1 else "bold"))


def as_text(c: Comparison) -> str:
    """Plain text, 100 columns wide."""
    return to_text(as_table(c), 100)


def as_html(c: Comparison) -> str:
    """A table for Jupyter."""
    def cells(tag: str, row: tuple[str, ...]) -> str:
        sides = ("left", "right", "right", "left")
        inner = (f'<{tag} style="text-align: {side}">{html.escape(text)}</{tag}>'
                 for side, text in zip(sides, row, strict=True))
        return f"<tr>{''.join(inner)}</tr>"
    head = cells("th", ("", "eager", f"static ({c.target})", ""))
    body = "".join(cells("td", tuple(row)) for row in rows(c))
    below = "".join(f"<li>{html.escape(what)}: {html.escape(text)}</li>" for what, text in differences(c))
    return (f"<div><b>{html.escape(title(c))}</b><table><thead>{head}</thead><tbody>{body}</tbody></table>"
            f"<ul>{below}</ul><p><b>{html.escape(c.verdict)}</b></p></div>")
