"""The direction of imports: each module asks only for what is on its own floor or below, and no two for each other."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "fastopt"
FLOORS = [
    ["_version", "errors", "checks", "settings", "palette", "ondemand"],
    ["rules", "arrays"],
    ["jobs"],
    ["backends"],
    ["files", "binding"],
    ["schedules", "documentation", "foreign", "statedict", "saving", "grouping", "evaluation", "inputs"],
    ["drop_in"],
    ["optimizers", "functional", "torch", "numba"],
    ["training", "hogwild", "trajectories", "distributed"],
    ["info"],
    [""],  # the package itself
    ["bench"],
    ["cli", "generate", "__main__"],
]
#: The only modules below the faces, and the room behind torch's, that know these libraries.
LIBRARIES = {"torch": ["arrays/libraries/torch"], "cupy": ["arrays/libraries/cuda", "arrays/libraries/driver"]}


def name_of(file):
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}


def floor_of(name):
    """The floor of a module by the room that it is in."""
    return next((i for i, rooms in enumerate(FLOORS) if name.partition(".")[0] in rooms), -1)


def imports_of(name):
    """The modules of the package that a module asks for, inside functions too."""
    file = MODULES[name]
    package = [*name.split("."), ""] if file.name == "__init__.py" and name else name.split(".")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").partition(".")[0] == "fastopt"):
            base = package[: len(package) - node.level] if node.level else []
            inner = (node.module or "") if node.level else (node.module or "").partition(".")[2]
            found = ".".join([*base, *filter(None, [inner])])
            for alias in node.names:
                member = ".".join(filter(None, [found, alias.name]))
                yield member if member in MODULES else found
        elif isinstance(node, ast.Import):
            yield from (a.name.partition(".")[2] for a in node.names if a.name.partition(".")[0] == "fastopt")


def test_every_module_has_a_floor():
    assert [name for name in MODULES if floor_of(name) < 0] == []


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name):
    others = set(imports_of(name))
    assert [other for other in others if floor_of(other) > floor_of(name)] == []


def test_no_two_modules_ask_for_each_other():
    asks = {name: set(imports_of(name)) - {name} for name in MODULES}
    while free := [name for name, others in asks.items() if not others & asks.keys()]:
        for name in free:
            del asks[name]
    assert sorted(asks) == []


@pytest.mark.parametrize("name", ["optimizers", "functional", "torch", "numba"])
def test_what_users_call_is_short(name):
    assert len(MODULES[name].read_text().splitlines()) <= 300  # what it adapts is in the rooms below


@pytest.mark.parametrize(("library", "files"), LIBRARIES.items(), ids=LIBRARIES)
def test_one_room_knows_a_library(library, files):
    below = [file for name, file in MODULES.items() if floor_of(name) < floor_of("drop_in")]
    knowing = []
    for file in below:
        for node in ast.walk(ast.parse(file.read_text())):
            named = isinstance(node, ast.Constant) and node.value == library
            asked = isinstance(node, ast.Import) and any(a.name.partition(".")[0] == library for a in node.names)
            if named or asked or (isinstance(node, ast.ImportFrom) and not node.level and node.module == library):
                knowing.append(file.relative_to(PACKAGE).with_suffix("").as_posix())
    assert sorted(set(knowing)) == files
