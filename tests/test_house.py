"""The rules of the house: imports go one way, every config key is read, the tools have nothing to complain about."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
import types
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from mwuf_dist import config
from mwuf_dist.cli import explain, options, serving, synthesize, vectors
from mwuf_dist.config import registry

OPTIONS = (sys.modules["mwuf_dist.cli.main"], explain, options, serving, synthesize, vectors)
ROOT = Path(__file__).resolve().parent.parent
# A longer file is asked whether it holds two things. What is one thing stands here, with the reason.
ASK_FROM_LINES = 400
ONE_THING: dict[str, str] = {}

# A room is a module or folder of mwuf_dist, or one of the top-level folders. Each may import itself and these:
GROUND = {"config", "escape", "files", "locks", "runtime"}
BELOW_TRAINING = {"methods", "backbones", "embeddings", "data"} | GROUND
BELOW_STUDIES = {"training", "evaluation", "mwuf_kernels"} | BELOW_TRAINING
EVERYTHING = {"cli", "launch", "planning", "studies", "serving", "doctor"} | BELOW_STUDIES
MAY_IMPORT = {
    "config": set(),
    "escape": set(),
    "files": {"config"},
    "locks": {"config", "files"},
    "runtime": {"config", "escape", "mwuf_kernels"},
    "evaluation": {"config", "escape", "files"},  # knows arrays, not models
    "data": GROUND,
    "embeddings": {"data", "mwuf_kernels"} | GROUND,  # U(v) sums are a segment mean
    "backbones": {"data", "mwuf_kernels"} | GROUND,
    "methods": {"backbones", "embeddings", "data", "mwuf_kernels"} | GROUND,
    "training": {"evaluation", "mwuf_kernels"} | BELOW_TRAINING,
    "studies": BELOW_STUDIES,
    "serving": BELOW_STUDIES,
    "planning": {"mwuf_kernels"} | BELOW_STUDIES,
    "doctor": {"data"} | GROUND,
    "launch": EVERYTHING - {"cli", "launch", "planning"},
    "cli": EVERYTHING,
    "__main__": EVERYTHING,
    "mwuf_kernels": set(),
    "benchmarks": EVERYTHING | {"__main__", "tools"},  # lines of code are counted in one place
    "examples": {"methods", "backbones", "serving", "MetaWarmUp"} | GROUND,
    "tools": EVERYTHING,
}

# Heavy libraries, and the only places (files, or folders with a / at the end) that may import them.
TORCHREC_PLACES = ("mwuf_dist/embeddings/", "benchmarks/", "examples/")
ONLY_IN = {
    "ray": (
        "mwuf_dist/launch/",
        "mwuf_dist/studies/",
        "mwuf_dist/data/batches/lanes.py",
        "mwuf_dist/data/watched_tasks.py",
        "mwuf_dist/data/prepare/workers.py",
        "benchmarks/",
    ),
    "torchrec": TORCHREC_PLACES,
    "fbgemm_gpu": TORCHREC_PLACES,
    "triton": ("kernels/", "benchmarks/"),
}
NEVER_IN = {
    "mwuf_dist/evaluation/": {"torch"},
}


def sources(*folders: str) -> list[Path]:
    """Python files below the folders, relative to the project's."""
    return sorted(path.relative_to(ROOT) for folder in folders for path in (ROOT / folder).rglob("*.py"))


def room_of(module: str) -> str | None:
    """The room of a dotted module name; None for what does not belong to the project."""
    first, *rest = module.split(".")
    if first == "mwuf_dist":
        return rest[0] if rest else None
    return first if first in MAY_IMPORT else None


def module_name(path: Path) -> str:
    parts = path.with_suffix("").parts
    parts = parts[1:] if parts[0] == "kernels" else parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute module) of each import of a file, those within functions too."""
    package = module_name(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from mwuf_dist import data` imports a room too, which only the name tells.
            yield from (
                (node.lineno, f"{module}.{alias.name}" if module == "mwuf_dist" else module) for alias in node.names
            )


CODE = sources("mwuf_dist", "kernels", "benchmarks", "examples", "tools")


def test_there_is_code_to_look_at():
    assert Path("mwuf_dist/config/schema.py") in CODE


def test_every_room_has_its_place_in_the_rules():
    rooms = {room for path in CODE if (room := room_of(module_name(path))) is not None}
    assert rooms <= set(MAY_IMPORT), f"say in MAY_IMPORT what {sorted(rooms - set(MAY_IMPORT))} may import"


def test_the_rules_have_no_cycle():
    left = {room: allowed - {room} for room, allowed in MAY_IMPORT.items()}
    while left:
        free = {room for room, allowed in left.items() if not allowed & set(left)}
        assert free, f"rooms that need each other: {sorted(left)}"
        left = {room: allowed for room, allowed in left.items() if room not in free}


@pytest.mark.parametrize("path", CODE, ids=str)
def test_imports_go_one_way(path: Path):
    room = room_of(module_name(path))
    wrong = [
        f"{path}:{line}: {room} imports {module}"
        for line, module in imports(path)
        if (target := room_of(module)) is not None and room is not None and target not in MAY_IMPORT[room] | {room}
    ]
    assert not wrong, "\n".join(wrong)


def _imported_at_once(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run when the module does: not those of functions or for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        is_for_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not is_for_types and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _imported_at_once(child)


def test_no_two_files_import_each_other():
    names = {module_name(path): path for path in sources("mwuf_dist", "kernels")}
    left: dict[str, set[str]] = {}
    for name, path in names.items():
        asked = set()
        for node in _imported_at_once(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            base = node.module if isinstance(node, ast.ImportFrom) else None
            asked |= {
                f"{base}.{alias.name}" if f"{base}.{alias.name}" in names else base or alias.name
                for alias in node.names
            }
        left[name] = asked & set(names) - {name}
    while left:
        free = {name for name, asked in left.items() if not asked & set(left)}
        assert free, f"files that import each other, or such: {sorted(left)}"
        left = {name: asked for name, asked in left.items() if name not in free}


@pytest.mark.parametrize("path", CODE, ids=str)
def test_heavy_libraries_stay_in_their_places(path: Path):
    wrong = []
    for line, module in imports(path):
        library = module.split(".")[0]
        if library in ONLY_IN and not str(path).startswith(ONLY_IN[library]):
            wrong.append(f"{path}:{line}: {library} only in {', '.join(ONLY_IN[library])}")
        wrong += [
            f"{path}:{line}: never {library} in {place}"
            for place, libraries in NEVER_IN.items()
            if str(path).startswith(place) and library in libraries
        ]
    assert not wrong, "\n".join(wrong)


def test_the_command_line_answers_without_waiting_for_torch():
    code = "import sys, mwuf_dist.cli; print(*{'torch', 'torchrec', 'ray', 'matplotlib'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stdout.strip(), f"import late in the functions of cli.py, not at its top: {done.stdout}"


def test_kernels_need_torch_and_triton_only():
    allowed = {"torch", "triton", "mwuf_kernels"} | set(sys.stdlib_module_names)
    wrong = [f"{path}:{line}: {module}" for path in sources("kernels") for line, module in imports(path)]
    wrong = [found for found in wrong if found.split(": ")[1].split(".")[0] not in allowed]
    assert not wrong, "\n".join(wrong)


def test_a_long_file_holds_one_thing_or_is_divided():
    long = {str(path) for path in CODE if len((ROOT / path).read_text(encoding="utf-8").splitlines()) > ASK_FROM_LINES}
    asked = long - set(ONE_THING)
    assert not asked, f"does each of {sorted(asked)} hold two things? Divide it, or say in ONE_THING why it is one"
    assert set(ONE_THING) <= long, f"not long any more: {sorted(set(ONE_THING) - long)}"


# A class and a property are named by what they are; a function says what it does.
NO_VERB = ("The ", "A ", "An ", "Whether ", "What ", "How ", "Which ", "Where ", "When ", "Who ", "Why ", "One ")
NO_VERB += ("All ", "Every ", "Each ", "Some ", "Those ", "This ", "Of ", "For ", "As ", "Within ", "Around ", "(", "[")


def test_the_first_line_of_a_docstring_needs_no_neighbour():
    wrong = []
    for path in sources("mwuf_dist", "kernels"):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                text = ast.get_docstring(node) or ""
                is_function = not isinstance(node, ast.ClassDef) and not any(
                    "property" in ast.unparse(one) for one in node.decorator_list
                )
                if text.startswith(NO_VERB if is_function else ("What ", "The same")):
                    wrong.append(f"{path}:{node.lineno}: {node.name}: begin with a verb: {text.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


# Who may ask whether the compiled loops are there, and who chooses by the answer.
ASKS = {"has_library": {"runtime/loops.py"}, "is_compiled": {"embeddings/tables.py", "training/implementations.py"}}


@pytest.mark.parametrize("name", ASKS)
def test_compiled_or_not_is_chosen_in_one_place(name: str):
    asking = set()
    for path in sources("mwuf_dist"):
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == name:
                asking.add(str(path.relative_to("mwuf_dist")))
    assert asking == ASKS[name]


def config_keys(section: type = config.Config, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], type]]:
    """((section, ..., key), class of its section) of each key that holds a value."""
    for field in dataclasses.fields(section):
        if "base" in field.metadata:
            kind: registry.Kind = "backbone" if field.name == "backbone" else "method"
            for cls in {registry.config_class(kind, name): None for name in registry.names(kind)}:
                yield from config_keys(cls, (*prefix, field.name))
        elif isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
            yield from config_keys(field.default_factory, (*prefix, field.name))
        else:
            yield (*prefix, field.name), section


def words_of_the_readers() -> list[tuple[set[str], set[str]]]:
    """Per file outside config.py: the attributes it reads, and every name and string it mentions."""
    found = []
    for path in sources("mwuf_dist"):
        if path == Path("mwuf_dist/config/schema.py"):
            continue
        nodes = list(ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))))
        read = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
        named = {node.id for node in nodes if isinstance(node, ast.Name)}
        named |= {node.name for node in nodes if isinstance(node, ast.alias)}
        named |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        found.append((read, read | named))
    return found


READERS = words_of_the_readers()


@pytest.mark.parametrize(
    ("key", "section"), list(config_keys()), ids=lambda value: ".".join(value) if isinstance(value, tuple) else ""
)
def test_every_config_key_is_read(key: tuple[str, ...], section: type):
    # A key such as `name` stands in several sections, so its reader must speak of the section too.
    near = {*(cls.__name__ for cls in section.__mro__ if cls is not object), *key[-2:-1]}
    assert any(key[-1] in read and near & mentioned for read, mentioned in READERS), (
        f"nothing outside config.py reads {'.'.join(key)}: remove the key, or read it"
    )


def _is_number(hint: object) -> bool:
    if typing.get_origin(hint) in (typing.Annotated, tuple, typing.Union, types.UnionType):
        return any(map(_is_number, typing.get_args(hint)))
    return hint in (int, float)


def _hints(section: type) -> dict[str, object]:
    return {name: hint for name, hint in typing.get_type_hints(section, include_extras=True).items() if name[0] != "_"}


def test_every_number_of_the_config_and_of_the_commands_has_a_least_and_a_largest_value():
    classes = [getattr(module, name) for module in OPTIONS for name in dir(module) if name.endswith("Options")]
    found = {(section, name) for section in classes for name in _hints(section)}
    found |= {(section, key[-1]) for key, section in config_keys()}
    numbers = {(section.__name__, name): _hints(section)[name] for section, name in found}
    numbers = {name: hint for name, hint in numbers.items() if _is_number(hint)}
    assert len(numbers) > 100
    assert not [name for name, hint in numbers.items() if " to " not in config.range_of(hint)]


def texts() -> Iterator[tuple[str, str]]:
    """(path, text) of each text file that git has or would take."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the project is not known")
    for name in filter(None, listed.stdout.split("\0")):
        try:
            yield name, (ROOT / name).read_text(encoding="utf-8")
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue  # an image, or a file removed but not yet from the index


MACHINE = re.compile(
    r"(?<![\w.])/(?:work|root|workspace|opt/(?:wheels|pypi))[/]"  # paths of one machine
    r"|/(?:home|Users)[/](?!you|user)\w"
    r"|\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs|anaconda\.(?:org|com))"  # registries
)


def test_no_path_of_one_machine_and_no_registry_is_written_down():
    wrong = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), 1)
        if MACHINE.search(line)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "ruff", "check"],
        ["-m", "ruff", "format", "--check"],
        ["-m", "pyright", "--pythonpath", sys.executable],
    ],
    ids=["ruff-check", "ruff-format", "pyright"],
)
def test_the_tools_have_nothing_to_complain_about(command: list[str]):
    environment = os.environ | {"PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"run `make lint` and `make format`:\n{done.stdout}{done.stderr}"


def test_debian_packages_that_tests_ask_for_are_those_that_make_installs():
    lines = (ROOT / "tools" / "debian-packages.txt").read_text().splitlines()
    listed = {name for line in lines if (name := line.partition("#")[0].strip())}
    asked = {"g++-aarch64-linux-gnu", "qemu-user-static", "g++"}  # of tools/play_processors.py, and of the loops
    for path in sources("tests"):
        asked |= set(re.findall(r"install the Debian package ([a-z0-9+.-]+)", (ROOT / path).read_text()))
    assert listed == asked
