"""What stands where: which room may import which, no circles, and files and functions that read in one sitting.

Every import counts, also one within a function or for type hints only: who reads a file has to follow those as well.
"""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "local_lipschitz"
BASE = {"errors", "inputs", "numerics", "precision", "printing"}  # below everything
MAY_IMPORT = {  # besides the base; what is not here is the package's face or the base itself
    "norms": set(),
    "layers": {"norms"},
    "reading": {"layers"},
    "attacks": set(),
    "lower_bounds": {"reading", "layers"},
    "product": {"reading", "layers", "norms"},
    "joint_operator": {"product", "layers", "norms"},
    "joint": {"joint_operator", "product", "reading", "layers", "norms"},
    "margin": {"joint", "joint_operator", "product", "reading", "layers", "norms"},
    "bracket": set(),
    "radius": {"bracket", "margin", "joint", "product", "reading", "layers"},
    "verify": {"margin", "joint", "product", "reading", "layers", "attacks"},
}
OUTSIDE = {"networks", "other_methods", "script_tools", "my_config", "benchmarks", "tests"}
NETWORK_ACCESS = {"urllib", "http", "socket", "requests", "torch.hub"}
PUBLIC = {  # their signatures are fixed: every option is a keyword of its own
    "global_bound", "local_bound", "joint_bound", "margin_bound", "certified_radius", "verify",
}  # fmt: skip
FOLDERS = (PACKAGE, "networks", "other_methods", "script_tools", "benchmarks", "examples", "tests")
SOURCES = [*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


MODULES = {module_of(path): path for path in SOURCES if "tests" not in path.relative_to(ROOT).parts}


def imports(module: str) -> set[str]:
    """What a file imports: project files by their dotted names, everything else as it is written."""
    found = set()
    inside = module.split(".") if MODULES[module].name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree(MODULES[module])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) - node.level + 1] if node.level else []
            whence = ".".join([*above, *([node.module] if node.module else [])])
            submodules = {f"{whence}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= submodules or {whence}
    return found


def room(module: str) -> str:
    """The folder or file of the package's first floor that a module belongs to."""
    return module.split(".")[1] if module.count(".") else "the face"


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Some circle of a graph, [] where there is none."""
    open_, closed = [], set()

    def visit(node: str) -> list[str]:
        if node in open_:
            return [*open_[open_.index(node) :], node]
        if node in closed:
            return []
        open_.append(node)
        found = next((way for below in sorted(graph.get(node, ())) if (way := visit(below))), [])
        open_.pop()
        closed.add(node)
        return found

    return next((way for node in sorted(graph) if (way := visit(node))), [])


def rooms() -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for module in (m for m in MODULES if m.startswith(f"{PACKAGE}.")):
        below = {room(name) for name in imports(module) if name.startswith(f"{PACKAGE}.")}
        graph.setdefault(room(module), set()).update(below - {room(module)})
    return graph


def test_the_test_sees_what_it_should():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert circle({"a": {"b", "c"}, "b": {"c"}}) == []
    assert f"{PACKAGE}.reading.read" in imports(f"{PACKAGE}.product.bound")
    assert f"{PACKAGE}.reading.affine_functions" in imports(f"{PACKAGE}.reading.function_table")
    assert "reading" in rooms()["product"]


def test_no_circle_of_files():
    assert circle({module: imports(module) & MODULES.keys() for module in MODULES}) == []


def test_imports_run_down():
    against = {
        f"{upper} imports {lower}"
        for upper, below in rooms().items()
        for lower in below - BASE - MAY_IMPORT.get(upper, set())
    }
    assert against == set()
    assert circle(rooms()) == []


def test_at_most_eight_floors():
    graph = rooms()

    def floors(name: str) -> int:
        return 1 + max((floors(below) for below in graph.get(name, ())), default=0)

    assert max(map(floors, graph)) <= 8


def test_the_package_knows_no_script_and_no_network():
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for module in (m for m in MODULES if m.split(".")[0] == PACKAGE):
        for name in imports(module):
            assert name.split(".")[0] not in OUTSIDE | scripts, f"{module} imports {name}"
            assert not any(name == net or name.startswith(f"{net}.") for net in NETWORK_ACCESS), f"{module}: {name}"


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "other_methods").glob("*.md")]


def test_the_readme_is_short():
    assert (ROOT / "README.md").stat().st_size <= 9000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_reads_in_one_sitting(path):
    of_torch = path.parent.name == "reading" and path.stem.endswith("_functions")  # the signatures of what they read
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 300
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        arguments = [a.arg for a in [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]]
        count = len([name for name in arguments if name not in ("self", "cls")])
        assert length <= 60, f"{node.name} has {length} lines"
        assert count <= 7 or node.name in PUBLIC or of_torch, f"{node.name} has {count} arguments"
