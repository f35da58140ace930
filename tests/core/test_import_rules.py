"""The architecture as a test: which room may import which, and what `import graphc` loads.

The sources are walked.
"""
from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import graphc

ROOT = Path(graphc.__file__).parent
ROOMS = {"core", "ops", "eager", "static", "codegen", "nn", "optim", "data", "models", "report",
         "cli", "cuda", "autograd", "__main__", "__init__"}

# What a room may import, itself apart. core <- ops <- eager | static; static <- codegen; all <- report, cli.
MAY_IMPORT: dict[str, set[str]] = {
    "core": set(),
    "ops": {"core"},
    "eager": {"core", "ops"},
    "autograd": {"core", "eager"},                           # its public face
    "cuda": set(),
    "static": {"core", "ops"},
    "codegen": {"core", "ops", "static"},
    "nn": {"core", "ops"},
    "optim": {"core", "ops"},
    "data": {"core", "ops"},
    "models": {"core", "ops", "nn", "data"},
}
ANYTHING = {"report", "cli", "__main__", "__init__"}     # __init__: the package's own, which names everything

# Third-party packages and where they may be imported; numpy is everyone's.
THIRD_PARTY: dict[str, set[str]] = {
    "numba": {"codegen"},
    "llvmlite": {"codegen"},
    "scipy_openblas32": {"codegen"},
    "networkx": {"static", "codegen", "report"},
    "matplotlib": {"report", "cli", "data"},
    "rich": {"report", "cli", "data"},
    "click": {"report", "cli", "__main__"},
}

# Imports inside functions that break a rule on purpose: (file, room or package) and why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("nn/module.py", "eager"):
        "Lua Torch's module.backward(x, g) is autograd.grad of the call it remembers",
    ("optim/optimizer.py", "static"):
        "minimize() and a graph's own state are assign and Variable; a port would do",
}


@dataclass(frozen=True)
class Import:
    file: str           # relative to graphc/
    line: int
    room: str           # where the import stands
    target: str         # the room of graphc, or the third-party package
    inside: bool        # of graphc
    lazy: bool          # in a function

    def __str__(self) -> str:
        where = " (in a function)" if self.lazy else ""
        return f"graphc/{self.file}:{self.line} imports {self.target}{where}"


def room_of(file: Path) -> str:
    parts = file.relative_to(ROOT).parts
    return parts[0] if len(parts) > 1 else file.stem


def targets(node: ast.Import | ast.ImportFrom, file: Path) -> Iterator[tuple[str, bool]]:
    """(room, True) or (package, False) for each thing the statement imports."""
    if isinstance(node, ast.Import):
        modules = [alias.name for alias in node.names]
    elif node.level == 0:
        modules = [f"{node.module}.{alias.name}" for alias in node.names]
    else:
        package = ("graphc", *file.relative_to(ROOT).parts[:-1])
        named = tuple(node.module.split(".")) if node.module else ()
        base = package[:len(package) - node.level + 1] + named
        modules = [".".join((*base, alias.name)) for alias in node.names]
    for module in modules:
        parts = module.split(".")
        if parts[0] != "graphc":
            yield parts[0], False
        elif len(parts) > 1 and parts[1] in ROOMS:
            yield parts[1], True
        else:
            yield "__init__", True                           # a public name of the package


def imports() -> Iterator[Import]:
    for file in sorted(ROOT.rglob("*.py")):
        tree = ast.parse(file.read_text(), str(file))
        lazy = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
                for n in ast.walk(f)}
        typing_only = {id(n) for i in ast.walk(tree)
                       if isinstance(i, ast.If) and "TYPE_CHECKING" in ast.unparse(i.test)
                       for n in ast.walk(i)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in typing_only:
                for target, inside in targets(node, file):
                    yield Import(str(file.relative_to(ROOT)), node.lineno, room_of(file), target, inside,
                                 id(node) in lazy)


ALL = list(imports())


def allowed(i: Import) -> bool:
    if (i.file, i.target) in EXCEPTIONS and i.lazy:
        return True
    if not i.inside:
        return i.target not in THIRD_PARTY or i.room in THIRD_PARTY[i.target]
    return i.room in ANYTHING or i.target == i.room or i.target in MAY_IMPORT[i.room]


def test_every_room_has_a_rule() -> None:
    rooms = {room_of(f) for f in ROOT.rglob("*.py")}
    assert rooms <= set(MAY_IMPORT) | ANYTHING, "say in MAY_IMPORT what the new room may import"


@pytest.mark.parametrize("room", sorted(MAY_IMPORT))
def test_rooms_import_only_what_lies_below(room: str) -> None:
    wrong = [str(i) for i in ALL if i.room == room and not allowed(i)]
    assert not wrong, "\n".join(["", *wrong])


def test_third_party_packages_stay_in_their_rooms() -> None:
    wrong = [str(i) for i in ALL if not i.inside and not allowed(i)]
    assert not wrong, "\n".join(["", *wrong])


def test_nothing_else_is_imported() -> None:
    known = {*THIRD_PARTY, "numpy", *sys.stdlib_module_names}
    wrong = [str(i) for i in ALL if not i.inside and i.target not in known]
    assert not wrong, "\n".join(["a package that pyproject.toml does not name?", *wrong])


def test_exceptions_are_still_needed() -> None:
    used = {(i.file, i.target) for i in ALL}
    assert set(EXCEPTIONS) <= used, f"remove {set(EXCEPTIONS) - used}"


def test_core_is_numpy_alone() -> None:
    assert {i.target for i in ALL if i.room == "core" and not i.inside} - sys.stdlib_module_names == {"numpy"}


@pytest.mark.parametrize("rule, broken", [
    ("core", "from ..ops import basic"), ("eager", "from ..static.graph import Graph"),
    ("static", "import numba"), ("static", "from .. import eager"),
    ("ops", "import graphc.eager.recorder"), ("nn", "from graphc.codegen import emit"),
    ("nn", "import graphc"), ("optim", "from .. import nn")])
def test_the_walker_sees_broken_rules(rule: str, broken: str) -> None:
    file = ROOT / rule / "made_up.py"
    node = ast.parse(broken).body[0]
    assert isinstance(node, ast.Import | ast.ImportFrom)
    found = [Import(f"{rule}/made_up.py", 1, rule, target, inside, False)
             for target, inside in targets(node, file)]
    assert found and not all(map(allowed, found))


def test_import_graphc_is_light_and_quick() -> None:
    # processor time, NumPy's own included: this machine may be busy
    script = ("import time; t = time.process_time(); import graphc, sys; t = time.process_time() - t\n"
              "print(round(t, 4), *sorted({m.split('.')[0] for m in sys.modules}))")
    runs = [subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True,
                           cwd=ROOT.parent).stdout.split()
            for _ in range(3)]
    loaded = set(runs[0][1:])
    assert not loaded & set(THIRD_PARTY), f"import graphc loads {sorted(loaded & set(THIRD_PARTY))}"
    assert min(float(run[0]) for run in runs) < 0.25
