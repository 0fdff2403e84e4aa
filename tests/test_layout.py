"""The repository's own rules: imports point one way, dependencies say why they are there, files name no machine."""

import ast
import re
import statistics
import subprocess
import sys
import tomllib
from collections import Counter
from functools import cache
from graphlib import TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = (
    "protocol",
    "schemas",
    "steps",
    "connectors",
    "flows",
    "appview",
    "serve",
    "control",
    "local",
    "ops",
    "tools",
    "cli",
)
"""In the order of imports: each may import from those before it."""
PACKAGES = (*ROOMS, "simulator")
MAY_IMPORT = {room: set(ROOMS[: at + 1]) for at, room in enumerate(ROOMS)} | {"simulator": {"simulator", "schemas"}}
MAY_IMPORT["cli"] |= {"simulator"}
MAX_LINES, MEDIAN_LINES, MAX_FILES = 350, 150, 15
MAX_FUNCTION_LINES, MEAN_FUNCTION_LINES = 60, 9.5
IMPURE = {
    "asyncio", "aiohttp", "bytewax", "confluent_kafka", "logging", "os", "prometheus_client", "psycopg", "socket",
    "subprocess", "threading", "time", "urllib3", "uvloop",
}  # fmt: skip
PULLED = {
    "typing-extensions",
    "pydantic-core",
    "starlette",
    "markupsafe",
    "multidict",
}  # parts of the interfaces of pydantic, FastAPI, jinja2, aiohttp
SPOOLED = {
    "car.py": {"os"},  # it reads CARs that were spooled to disk at their offsets; the file is its caller's
    "__init__.py": {"os"},  # it finds the compiled modules when `protocol` is imported
}
BUILD_STEP = "compile_protocol.py"  # alone imports what the group `build` installs
# what is downloaded from where is uv.lock's and the mirrors' business; machine paths mean nothing elsewhere
FOREIGN = re.compile(
    rb"pypi\.org|pythonhosted|registry\.npmjs|repo1?\.maven|proxy\.golang|/work/|/root/|/home/[a-z]|/tmp/"
)
BINARY = (".png", ".jar", ".gz", ".car")


@cache
def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file, parsed once for all tests."""
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def imported(path: Path) -> frozenset[str]:
    """Top-level names that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(parsed(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module.partition(".")[0])
    return frozenset(found)


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    return [path for name in listed.decode().split("\0") if name and (path := ROOT / name).is_file()]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = {
        str(path.relative_to(ROOT)): sorted(other)
        for path in (ROOT / package).rglob("*.py")
        if (other := (imported(path) & set(PACKAGES)) - MAY_IMPORT[package])
    }
    assert wrong == {}


def test_the_page_for_newcomers_has_every_folder_in_the_order_of_imports() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    assert tuple(re.findall(r"^\| `(\w+)/` \|", text, re.MULTILINE)) == ROOMS


def test_steps_and_protocol_do_no_io_and_read_no_clock() -> None:
    wrong = {
        path.name: sorted(bad)
        for package in ("protocol", "steps")
        for path in (ROOT / package).rglob("*.py")
        if (bad := (imported(path) & IMPURE) - SPOOLED.get(path.name, set()))
    }
    assert wrong == {}


def modules() -> dict[str, ast.Module]:
    """Path → syntax tree of every module of the product and the simulator."""
    paths = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {str(path.relative_to(ROOT)): parsed(path) for path in paths}


def test_modules_and_folders_are_small() -> None:
    """A module is read in one sitting, a folder in one listing."""
    lines = {name: len((ROOT / name).read_text("utf-8").splitlines()) for name in modules()}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}
    assert statistics.median(count for name, count in lines.items() if not name.endswith("__init__.py")) <= MEDIAN_LINES
    files = Counter(str(Path(name).parent) for name in lines)
    assert {folder: count for folder, count in files.items() if count > MAX_FILES} == {}


def test_functions_are_small() -> None:
    functions = [
        (name, node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for name, tree in modules().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert [one for one in functions if one[2] > MAX_FUNCTION_LINES] == []
    assert statistics.mean(lines for _, _, lines in functions) < MEAN_FUNCTION_LINES


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for name, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(name)
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_no_module_imports_itself_by_others() -> None:
    """Imports at the top of modules have no cycle."""
    trees = {name.removesuffix(".py").replace("/", "."): tree for name, tree in modules().items()}
    imports = {name: _imported_modules(tree, set(trees)) for name, tree in trees.items()}
    TopologicalSorter(imports).prepare()  # raises CycleError with the cycle


def _imported_modules(tree: ast.Module, known: set[str]) -> set[str]:
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & known


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    groups = project["dependency-groups"]
    wanted = [*project["project"]["dependencies"], *groups["build"], *groups["docs"], *groups["dev"]]
    names = {_distribution(requirement) for requirement in wanted if isinstance(requirement, str)}
    told = dict(re.findall(r"^- `([a-z0-9-]+)`: (.+)$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.MULTILINE))
    assert names - set(told) == set(), "dependencies without a line in CONTRIBUTING.md"
    assert set(told) - names == set(), "lines in CONTRIBUTING.md for what is no dependency"


def test_a_process_is_installed_with_what_it_imports_and_with_nothing_else() -> None:
    """What only tests and benchmarks import is a development dependency: every image would carry it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = [one for extra in project["optional-dependencies"].values() for one in extra]
    needed = {_distribution(one) for one in project["dependencies"]}
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.name != BUILD_STEP]
    modules = {one for path in files for one in imported(path)} - set(PACKAGES) - sys.stdlib_module_names
    providers = packages_distributions()
    loaded = {name: {one.lower().replace("_", "-") for one in providers.get(name, ())} for name in modules}
    known = needed | {_distribution(one) for one in extras} | PULLED
    assert {name for name, by in loaded.items() if not by & known} == set(), "imported, and no dependency"
    assert needed - set().union(*loaded.values()) == set(), "a dependency that no package imports"


def _distribution(requirement: str) -> str:
    return re.split(r"[\[<>=!~ ]", requirement)[0]


def test_no_file_names_a_registry_or_a_path_of_some_machine() -> None:
    wrong = []
    for path in tracked():
        if path.name == "uv.lock" or path.suffix in BINARY or path == Path(__file__):
            continue
        wrong += [f"{path.relative_to(ROOT)}: {found.decode()}" for found in FOREIGN.findall(path.read_bytes())]
    assert wrong == []


def test_the_repository_has_no_symbolic_links() -> None:
    """One led into a folder of some machine, and took the place of everybody's build folder."""
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split("\t")[1] for line in listed.splitlines() if line.startswith("120000")] == []
