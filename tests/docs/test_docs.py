"""Everything the documents say in code is run.

Their Python blocks, their links, and the doctests of the package. A ``python`` block of a document runs after
the ones above it, in one namespace and one process per document, in an empty folder. A ``text`` block right
below it is what it prints (``...`` stands for anything). A block under ``<!-- no-run -->`` is skipped. Graphs
that name no target are interpreted, so that only what shows kernels compiles.
"""
from __future__ import annotations

import contextlib
import doctest
import importlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
MODULES = sorted(p.relative_to(ROOT) for p in ROOT.glob("graphc/**/*.py")
                 if ">>> " in p.read_text(encoding="utf-8"))
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
SKIP = "<!-- no-run -->"


@dataclass(frozen=True, slots=True)
class Block:
    """A Python block: where its code begins, and what it prints (None: not said)."""
    line: int
    code: str
    prints: str | None = None


# ---------------------------------------------------------------- reading documents

def fences(text: str) -> Iterator[tuple[str, int, str, str]]:
    """Each fenced block: (language, first line of code, code, what stands between it and the one before)."""
    between, at = "", 0
    for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        between, at = text[at:m.start()], m.end()
        yield m[1], text.count("\n", 0, m.start()) + 2, m[2], between.strip()


def blocks(text: str) -> list[Block]:
    """The Python blocks that run."""
    found: list[Block] = []
    after_python = False
    for language, line, code, between in fences(text):
        if language == "text" and after_python and not between:
            found[-1] = Block(found[-1].line, found[-1].code, code)
        after_python = language == "python" and not between.endswith(SKIP)
        if after_python:
            found.append(Block(line, code))
    return found


def run_document(path: Path) -> None:
    """Run a document's blocks; an error or another output stops it, naming the document's line."""
    import graphc
    graphc.config.target = "interpret"
    checker = doctest.OutputChecker()
    namespace: dict[str, object] = {"__name__": "__main__"}
    for block in blocks(path.read_text(encoding="utf-8")):
        code = compile("\n" * (block.line - 1) + block.code, str(path), "exec")
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, namespace)
        if block.prints is not None and not checker.check_output(block.prints, out.getvalue(), FLAGS):
            raise SystemExit(f"{path}:{block.line}: the document says\n{block.prints}"
                             f"but the block prints\n{out.getvalue()}")


# ---------------------------------------------------------------- tests

def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def run_apart(path: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a document in a process of its own: documents register ops, set options and start threads."""
    search = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run([sys.executable, __file__, str(path)], cwd=folder,
                          env={**os.environ, "PYTHONPATH": search},
                          capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize("path", [p for p in DOCUMENTS if blocks(p.read_text(encoding="utf-8"))], ids=name_of)
def test_blocks_run(path: Path, tmp_path: Path) -> None:
    done = run_apart(path, tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_links_resolve(path: Path) -> None:
    missing = []
    for target in links(path.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        to = path.parent / file if file else path
        there = to.exists()
        if there and anchor and to.suffix == ".md":
            there = anchor in anchors(to.read_text(encoding="utf-8"))
        if not there:
            missing.append(target)
    assert not missing


def links(text: str) -> list[str]:
    """The targets of links and pictures, without those on the web."""
    prose = re.sub(r"^```.*?^```$|`[^`\n]*`", "", text, flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [t for t in targets if "://" not in t and not t.startswith("mailto:")]


def anchors(text: str) -> set[str]:
    """What headings can be linked as."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ +(.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_doctests(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import graphc
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(graphc.config, "target", "interpret")
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    result = doctest.testmod(module, extraglobs={"gc": graphc}, optionflags=FLAGS)
    assert result.failed == 0


def test_architecture_tells_what_each_file_is_for() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+\.py)`", text))
    rooms = ("core", "ops", "eager", "static", "codegen")
    there = {f.name for room in rooms for f in ROOT.glob(f"graphc/{room}/**/*.py")}
    assert not there - named - {"__init__.py"}


def test_guide_tells_every_setting() -> None:
    from graphc.core.config import VARIABLES
    text = (ROOT / "docs/guide.md").read_text(encoding="utf-8")
    assert not [name for name in VARIABLES if f"`{name}`" not in text]


# ---------------------------------------------------------------- the reader itself

DOCUMENT = f"""
# A Title, with `code`
[good](a.md#part) ![picture](b.png) [web](https://example.org) `[not](a-link)`

```python
print(1)
```

```text
1
```

{SKIP}
```python
raise
```

```bash
exit 1
```
"""


def test_blocks_are_found_with_what_they_print() -> None:
    assert blocks(DOCUMENT) == [Block(6, "print(1)\n", "1\n")]


def test_links_and_anchors_are_found() -> None:
    assert links(DOCUMENT) == ["a.md#part", "b.png"]
    assert anchors(DOCUMENT) == {"a-title-with-code"}


@pytest.mark.parametrize(("text", "says"), [
    ("```python\nx = 1\n```\n\n```python\n\nx / 0\n```\n", "line 7"),
    ("```python\nprint(2)\n```\n\n```text\n1\n```\n", "but the block prints\n2"),
])
def test_a_wrong_block_fails_with_its_line(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.md"
    path.write_text(text)
    done = run_apart(path, tmp_path)
    assert done.returncode == 1
    assert says in done.stderr


if __name__ == "__main__":
    run_document(Path(sys.argv[1]))
