"""dump(): the files, their names, and DOT that `dot` accepts whatever a user calls things."""
from __future__ import annotations

import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest

import graphc as gc
from graphc import nn, optim
from graphc.core.errors import ArgumentError
from graphc.report import dump
from graphc.report.dump import _file_names, _source
from graphc.static.dot import graph_to_dot, nodes_to_dot, tape_to_dot

needs_dot = pytest.mark.skipif(shutil.which("dot") is None, reason="Graphviz's dot is not installed")
NAMES = ['a "quoted" name', "back\\slash\\", "line\nbreak\r", "<b>html</b> & entities;", "{record|shape}",
         "ünïcödé 数 🙂", "digraph", "node -> edge", "\\N \\G \\l", "semi;colon // comment /* x */ # y",
         "nul\0l", " ", "a" * 3000, "port:n:w"]


def draw(text):
    return subprocess.run(["dot", "-Tsvg", "-o", os.devnull], input=text.encode(), capture_output=True,
                          timeout=60, check=False)


def make(seed):
    model = nn.Linear(3, 1)
    optimizer = optim.SGD(model.parameters(), 0.05)

    def step(x):
        optimizer.zero_grad()
        loss = (model(x) ** 2).sum()
        loss.backward()
        optimizer.step()
        return loss
    return step, [gc.ones(4, 3)], [model, optimizer]


@needs_dot
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_dot_accepts_any_name(name):
    with gc.Graph() as graph, gc.name_scope(name):
        x = gc.placeholder("float32", (None, 2), name=name)
        y = gc.exp(x)
    w = gc.ones(2, requires_grad=True)
    w.name = name
    for text in (graph_to_dot(graph, name), tape_to_dot((w * 2).sum(), name),
                 nodes_to_dot(graph.nodes, name, {id(y._node.node): name})):
        done = draw(text)
        assert done.returncode == 0, done.stderr.decode()


def test_files_are_listed_and_written_whole(tmp_path):
    found = dump(make, tmp_path, target="interpret")
    on_disk = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert {f.path for f in found.files} == on_disk
    assert found.remarks == ("target interpret interprets node by node: there are no groups and no kernels",)
    text = str(found)
    assert "tape.dot" in text and "graph/00_recorded.dot .txt" in text
    assert (tmp_path / "graph" / "00_recorded.txt").read_text().count("= matmul(") == 2


def test_a_second_dump_replaces_the_first(tmp_path):
    first = dump(make, tmp_path, target="interpret")
    second = dump(make, tmp_path, target="interpret")
    assert [f.path for f in first.files] == [f.path for f in second.files]


def test_a_loss_without_history_is_remarked(tmp_path):
    def detached(seed):
        step, batches, state = make(seed)
        return lambda x: step(x).detach(), batches, state
    found = dump(detached, tmp_path, target="interpret")
    assert "tape.dot: not written" in found.remarks[0]


@pytest.mark.parametrize(("more", "words"), [({"format": "png"}, "format"), ({"target": "gpu"}, "target")])
def test_bad_arguments_are_named(tmp_path, more, words):
    with pytest.raises(ArgumentError, match=words):
        dump(make, tmp_path, **more)


def test_svg_without_graphviz_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ArgumentError, match="install Graphviz"):
        dump(make, tmp_path, format="svg")


def test_kernel_files_have_names_that_file_systems_take():
    names = list(_file_names(["add", "Add", "../../etc/passwd", "a/b:c*?", "", "数", "x" * 300, "x" * 300]))
    assert len({n.lower() for n in names}) == len(names)
    for name in names:
        assert name and len(name) < 100 and name.isascii() and "/" not in name and not name.startswith(".")


def test_kernel_sources_say_what_they_compute():
    with gc.Graph() as graph:
        gc.exp(gc.placeholder("float32", (3,), name="evil\nimport os"))
    kernel = SimpleNamespace(name="exp_0", source="def exp_0():\n    pass\n", nodes=tuple(graph.nodes))
    text = _source([kernel, kernel])
    compile(text, "k", "exec")
    assert text.startswith("# exp_0\n") and "= exp " in text and "test_report_dump.py:" in text
    assert "\nimport os" not in text
