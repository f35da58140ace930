"""DOT of eager tapes, graphs and programs.

Names are quoted so that `dot` accepts whatever a user calls things.
"""
from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.node import Node, TapeNode, Value
from ..core.tensor import Tensor
from .graph import Graph
from .printer import format_attr, short_origin
from .program import Program

_STYLE = (
    '  node [shape=box, style="rounded,filled", fillcolor=white, fontname="Helvetica", fontsize=10];\n'
    '  edge [fontname="Helvetica", fontsize=8, color="#555555"];')
_COLOURS = {"placeholder": "#cfe8ff", "read": "#ffe6b3", "constant": "#eeeeee",
            "assign": "#ffd0c2", "group": "#ffd0c2"}
_HIDDEN = ("aval", "state", "shape", "dtype")                # attributes that the label says otherwise


def quote(text: str) -> str:
    """A DOT string literal."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", ""), ("\0", "")):
        text = text.replace(plain, escaped)
    return f'"{text}"'


def _label(node: Node) -> str:
    attrs = ", ".join(f"{k}={format_attr(v)}" for k, v in node.attrs.items() if k not in _HIDDEN)
    call = node.op.name + (f" {attrs[:60]}" if attrs else "")
    types = "; ".join(map(str, node.avals)) + (f" in {node.layout}" if node.layout else "")
    lines = [node.name or node.op.name, call, types, short_origin(node)]
    return "\n".join(line for line in lines if line)


def nodes_to_dot(nodes: Iterable[Node], title: str, clusters: Mapping[int, str] | None = None,
                 heat: Mapping[str, float] | None = None) -> str:
    """A digraph of nodes; ``clusters`` (id of node -> name) draws boxes around groups.

    ``heat`` (name of a cluster -> 0 to 1) colours them from white to red.
    """
    nodes = list(nodes)
    ids = {id(n): f"n{i}" for i, n in enumerate(nodes)}
    lines = [f"digraph {quote(title)} {{", "  rankdir=TB; newrank=true;", _STYLE]
    boxes: dict[str, list[str]] = {}
    for node in nodes:
        colour = _COLOURS.get(node.op.name, "white")
        text = (f"{ids[id(node)]} [label={quote(_label(node))}, fillcolor={quote(colour)}, "
                f"tooltip={quote(', '.join(node.origins))}];")
        boxes.setdefault((clusters or {}).get(id(node), ""), []).append(text)
    for k, (name, members) in enumerate(boxes.items()):
        if name:
            style = 'color="#4477aa"; fontname="Helvetica"; fontsize=10;'
            if heat and name in heat:
                style += f' style=filled; fillcolor="0.0 {min(1.0, heat[name]):.3f} 1.0";'         # HSV
            lines += [f"  subgraph cluster_{k} {{", f"    label={quote(name)}; {style}",
                      *(f"    {m}" for m in members), "  }"]
        else:
            lines += [f"  {m}" for m in members]
    for node in nodes:
        for v in node.inputs:
            if id(v.node) in ids:
                shape = quote(str(list(v.aval.shape)))
                lines.append(f"  {ids[id(v.node)]} -> {ids[id(node)]} [label={shape}];")
        lines += [f"  {ids[id(a)]} -> {ids[id(node)]} [style=dashed];" for a in node.after if id(a) in ids]
    return "\n".join([*lines, "}\n"])


def graph_to_dot(graph: Graph, title: str = "graph") -> str:
    """The whole recorded graph."""
    return nodes_to_dot(graph.nodes, title)


def program_to_dot(program: Program, title: str = "program") -> str:
    """A program, as it stands between two passes."""
    return nodes_to_dot(program.nodes(), title)


def tape_to_dot(root: Tensor, title: str = "tape") -> str:
    """The eager tape behind a tensor: calls, leaves, and how gradients will flow."""
    ids: dict[int, str] = {}
    lines = [f"digraph {quote(title)} {{", "  rankdir=BT;", _STYLE]

    def leaf(t: Tensor) -> str:
        if id(t) not in ids:
            ids[id(t)] = f"n{len(ids)}"
            label = quote(f"{t.name or 'leaf'}\n{t.aval}")
            lines.append(f'  {ids[id(t)]} [label={label}, fillcolor="#ffe6b3"];')
        return ids[id(t)]

    def split(edge: Any) -> Any:
        return edge.node if type(edge) is Value else edge

    stack = [split(root._node)] if root._node is not None else []
    if not stack:
        leaf(root)
    seen: set[int] = set()
    edges: list[str] = []
    while stack:
        node: TapeNode = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        ids.setdefault(id(node), f"n{len(ids)}")
        attrs = ", ".join(f"{k}={format_attr(v)}" for k, v in node.attrs.items() if not k.startswith("_"))
        label = "\n".join(t for t in (node.op.name, attrs, node.where or "") if t)
        lines.append(f"  {ids[id(node)]} [label={quote(label)}];")
        for k, edge in enumerate(node.edges):
            child = split(edge)
            if child is None:
                continue
            if isinstance(child, Tensor):
                name = leaf(child)
            else:
                name = ids.setdefault(id(child), f"n{len(ids)}")
                stack.append(child)
            edges.append(f"  {ids[id(node)]} -> {name} [label={quote(str(list(node.shapes[k])))}];")
    return "\n".join([*lines, *edges, "}\n"])


def render_svg(dot: str) -> str | None:
    """The picture as SVG when Graphviz is installed, else None."""
    program = shutil.which("dot")
    if program is None:
        return None
    done = subprocess.run([program, "-Tsvg"], input=dot.encode(), capture_output=True, timeout=60,
                          check=False)
    return done.stdout.decode() if done.returncode == 0 else None
