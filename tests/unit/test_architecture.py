"""The shape of the package: who imports whom, and what is declared. Reads the source alone."""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src/folovllm"

FLOORS = (
    # What a request is, and helpers and facts without an opinion about inference. These rooms
    # know each other.
    {"errors", "sampling_params", "request", "outputs", "utils", "machine"},
    {"config"},
    {"core", "loading", "text"},
    {"model_loader"},  # the M0 contract's name for a part of loading
    {"kernels"},
    {"attention", "linear", "sampling"},
    {"models"},
    {"worker"},
    {"executor"},
    {"engine"},
    {"llm"},
    {"server"},
    {"diagnostics"},
    {"bench"},
    {"cli"},
    {"__main__"},
)
"""The rooms from the bottom up: each imports rooms of lower floors only."""

HEIGHT = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}

TYPES_FROM_ABOVE = {
    # A kernel's plain-Python entry takes the arguments of `AttentionBackend.attend` as they
    # come, and names their types. Nothing of that is there when it runs.
    ("kernels", "attention"),
}
"""Rooms that may import from a higher one while types are checked."""

DISTRIBUTIONS: dict[str, str] = {}
"""Packages whose distribution has another name."""

OPTIONAL = {
    "flash_attn": "`nox -s setup -- --with flash-attn` installs it, where there is a GPU for it",
    "triton": "CUDA builds of torch bring it, and no other build can use it",
}
"""Packages that are used where they are found, and the reason why they are no dependency."""


@dataclass(frozen=True)
class Import:
    """An import statement.

    Attributes:
        file: where it stands, below the package.
        line: its line.
        module: what is imported.
        only_types: whether it is executed by type checkers alone.
        function: the functions and classes around it, joined by dots.
    """

    file: Path
    line: int
    module: str
    only_types: bool
    function: str

    @property
    def room(self) -> str:
        """Whose import it is."""
        return self.file.parts[0].removesuffix(".py")

    @property
    def target(self) -> str:
        """The room, or the package of somebody else, that is imported."""
        parts = self.module.split(".")
        return parts[1] if parts[0] == "folovllm" and len(parts) > 1 else parts[0]

    @property
    def is_ours(self) -> bool:
        """Whether it imports the package itself."""
        return self.module.split(".")[0] == "folovllm"

    def __str__(self) -> str:
        """As an editor finds it."""
        return f"{self.file}:{self.line} imports {self.module}"


def imports_of(
    file: Path, node: ast.AST, function: str = "", only_types: bool = False
) -> Iterator[Import]:
    """Every import statement of a file, of functions too."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            for module in modules_of(child):
                yield Import(file, child.lineno, module, only_types, function)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from imports_of(file, ast.Module(child.body, []), function, True)
            yield from imports_of(file, ast.Module(child.orelse, []), function, only_types)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from imports_of(file, child, f"{function}.{child.name}".lstrip("."), only_types)
        else:
            yield from imports_of(file, child, function, only_types)


def modules_of(statement: ast.Import | ast.ImportFrom) -> list[str]:
    """What a statement imports; of `from folovllm import cli`, `folovllm.cli`."""
    names = [alias.name for alias in statement.names]
    if isinstance(statement, ast.Import):
        return names
    if statement.module == "folovllm":
        return [f"folovllm.{name}" for name in names if name != "__version__"]
    return [statement.module or ""]


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    """Every file of the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {file.relative_to(PACKAGE): ast.parse(file.read_text("utf-8")) for file in files}


@pytest.fixture(scope="module")
def imports(trees: dict[Path, ast.Module]) -> list[Import]:
    """Every import; `folovllm/__init__.py` names what the package offers, and is no room."""
    files = (file for file in trees if file != Path("__init__.py"))
    return [each for file in files for each in imports_of(file, trees[file])]


def test_every_room_has_a_floor(trees: dict[Path, ast.Module]) -> None:
    rooms = {file.parts[0].removesuffix(".py") for file in trees} - {"__init__"}
    assert rooms <= set(HEIGHT), f"say on which floor {rooms - set(HEIGHT)} are"


def test_a_floor_imports_floors_below_it(imports: list[Import]) -> None:
    def is_allowed(each: Import) -> bool:
        here, there = HEIGHT[each.room], HEIGHT.get(each.target, len(FLOORS))
        if there < here or each.room == each.target or here == there == 0:
            return True
        return each.only_types and (each.room, each.target) in TYPES_FROM_ABOVE

    ours = [each for each in imports if each.is_ours]
    wrong = [str(each) for each in ours if not is_allowed(each)]
    assert not wrong, "\n".join(wrong)
    assert len(ours) > 300


def test_no_two_classes_share_a_name(trees: dict[Path, ast.Module]) -> None:
    found = defaultdict(list)
    for file, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(f"{file}:{node.lineno}")
    shared = {name: places for name, places in found.items() if len(places) > 1}
    assert not shared


def test_what_is_imported_is_declared(imports: list[Import]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    requirements = [*project["dependencies"], *(each for extra in extras for each in extra)]
    declared = {re.split(r"[^\w.-]", each)[0].lower() for each in requirements}

    def distribution(package: str) -> str:
        return DISTRIBUTIONS.get(package, package).replace("_", "-").lower()

    others = [each for each in imports if not each.is_ours]
    others = [each for each in others if each.target not in sys.stdlib_module_names]
    missing = [
        str(each)
        for each in others
        if each.target not in OPTIONAL and distribution(each.target) not in declared
    ]
    assert not missing, "\n".join(missing)
    assert set(OPTIONAL) <= {each.target for each in others}, "what nobody imports is no option"


def test_planning_and_configuration_do_without_torch(imports: list[Import]) -> None:
    # M0's contract has the torch.dtype of a configuration, which only torch can make.
    contract = (Path("config/fields.py"), "ModelConfig.torch_dtype")
    found = [
        str(each)
        for each in imports
        if each.room in {"core", "config"} and each.target == "torch" and not each.only_types
        if (each.file, each.function) != contract
    ]
    assert not found, "\n".join(found)


def test_it_notices() -> None:
    source = """
import torch
from folovllm import cli, __version__
if TYPE_CHECKING:
    from folovllm.engine import llm_engine
else:
    import numpy
class A:
    def f(self):
        from folovllm.config.fields import x
"""
    found = list(imports_of(Path("core/x.py"), ast.parse(source)))
    assert [(i.module, i.target, i.only_types, i.function) for i in found] == [
        ("torch", "torch", False, ""),
        ("folovllm.cli", "cli", False, ""),
        ("folovllm.engine", "engine", True, ""),
        ("numpy", "numpy", False, ""),
        ("folovllm.config.fields", "config", False, "A.f"),
    ]
    assert {each.room for each in found} == {"core"}
