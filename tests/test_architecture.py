"""The house: imports run one way, no circle of rooms, no long file or body. See docs/architecture.md."""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import lru_cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("tccd", "probes", "eval")
LONGEST_FILE, LONGEST_BODY = 400, 60

#: Room -> rooms that it may import from, beside what stands in no folder: the arrows of docs/architecture.md.
ARROWS = {
    "tccd.engine": set(),
    "tccd.data": set(),
    "tccd.centroids": {"tccd.data"},
    "tccd.decoding": {"tccd.engine", "tccd.centroids", "tccd.data"},
    "tccd.routing": {"tccd.engine", "tccd.centroids", "tccd.data"},
    "tccd.cli": {"tccd.decoding", "tccd.routing", "tccd.centroids", "tccd.data"},
    "tccd.verify": {"tccd.cli", "tccd.decoding", "tccd.centroids", "tccd.data"},
}


@lru_cache
def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = file
    return found


@lru_cache
def imports() -> dict[str, set[str]]:
    """Module -> modules of ours that it imports, wherever in it the import stands."""
    arrows: dict[str, set[str]] = defaultdict(set)
    for name, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                wanted = [f"{node.module}.{a.name}" for a in node.names]
                wanted = [w if w in modules() else node.module for w in wanted]
            else:
                continue
            arrows[name] |= {w for w in wanted if w.split(".")[0] in PACKAGES and w != name}
    return arrows


def room(module: str) -> str:
    """The folder that a module stands in; itself where that is the package's own."""
    parts = module.split(".")
    if parts[0] == "eval":
        return "eval"
    folder = (ROOT / Path(*parts[:2])).is_dir()
    return ".".join(parts[:2]) if len(parts) > 1 else f"{parts[0]}.__init__" if not folder else parts[0]


def rooms() -> dict[str, set[str]]:
    found: dict[str, set[str]] = defaultdict(set)
    for name, wanted in imports().items():
        found[room(name)] |= {room(w) for w in wanted} - {room(name)}
    return found


def test_the_library_knows_no_probe_and_no_benchmark():
    for name, wanted in imports().items():
        packages = {w.split(".")[0] for w in wanted}
        if name.startswith("tccd.") and name != "tccd.__main__":
            assert packages <= {"tccd"}, (name, wanted)
        if name.startswith("probes"):
            assert packages <= {"tccd", "probes"}, (name, wanted)


@pytest.mark.parametrize("name", ARROWS)
def test_rooms_import_along_the_arrows(name):
    inside = {w for w in rooms()[name] if w.startswith("tccd.") and (ROOT / Path(*w.split("."))).is_dir()}
    assert inside <= ARROWS[name]


def test_every_room_of_the_library_has_its_arrows():
    folders = {f"tccd.{p.name}" for p in (ROOT / "tccd").iterdir() if (p / "__init__.py").exists()}
    assert folders == set(ARROWS)


def test_no_circle_of_rooms():
    graph = {name: wanted for name, wanted in rooms().items() if name != "tccd.__main__"}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"a circle of rooms: {' -> '.join(error.args[1])}")


def test_probes_take_the_engine_by_its_public_names():
    for name, wanted in imports().items():
        if name.startswith("probes"):
            assert not [w for w in wanted if w.startswith("tccd.engine.")], name


def test_no_room_takes_another_ones_privates():
    for name, file in modules().items():
        tree = ast.parse(file.read_text())
        foreign = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and room(node.module or "") != room(name):
                private = [a.name for a in node.names if a.name.startswith("_") and a.name != "__version__"]
                assert not private, (name, private)
                if (node.module or "").split(".")[0] in PACKAGES:
                    foreign |= {a.asname or a.name for a in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in foreign:
                assert not node.attr.startswith("_") or node.attr.startswith("__"), (name, ast.unparse(node))


def test_no_file_is_long():
    files = [*modules().values(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    long = {str(f.relative_to(ROOT)): n for f in files if (n := len(f.read_text().splitlines())) > LONGEST_FILE}
    assert not long


def test_no_body_is_long():
    long = {}
    for file in [*modules().values(), *(ROOT / "tests").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
                if lines > LONGEST_BODY:
                    long[f"{file.relative_to(ROOT)}:{node.name}"] = lines
    assert not long
