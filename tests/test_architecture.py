"""The house rules that a machine can check: imports go downwards, heavy packages load where they are used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "optimizer"

# Top first. A module may import its own room and every room below it.
ROOMS = (
    ("cli", "__main__"),
    ("report",),
    ("bundle",),
    ("pipeline",),
    ("gate", "compare"),
    ("recipe",),
    ("stages",),
    ("verify", "judge"),
    ("measure",),
    ("calibration",),
    ("graph",),
    ("data",),
    ("metrics",),
    ("runners",),
    ("stage", "runner", "progress"),
    ("store", "index", "filelock", "disk", "paths"),
    ("checkpoint", "exported"),
    ("imports",),
    ("runtime",),
    ("environment", "isolated"),
    ("results",),
    ("types", "errors", "digest", "peak_memory", "__init__"),
)
LEVEL = {room: level for level, rooms in enumerate(ROOMS) for room in rooms}

HEAVY = {
    "torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "onnxslim", "tensorrt", "tensorrt_rtx", "openvino",
    "scipy", "sklearn", "matplotlib", "PIL", "psutil", "rich", "safetensors", "jinja2", "polygraphy", "pynvml",
}  # fmt: skip
# Rooms that are themselves only imported from inside a stage's run.
GRAPH_ROOMS = ("graph", "calibration")
GRAPH_PACKAGES = {"onnx", "onnx_ir"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, everywhere: bool) -> Iterator[tuple[int, str]]:
    """Yield (line, module) of the imports that run; those under TYPE_CHECKING do not."""

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[int, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                continue
            if isinstance(child, ast.Import) and (everywhere or not inside):
                for alias in child.names:
                    yield child.lineno, alias.name
            elif isinstance(child, ast.ImportFrom) and child.module and (everywhere or not inside):
                for alias in child.names:
                    yield child.lineno, f"{child.module}.{alias.name}"
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda))

    yield from walk(ast.parse(path.read_text()), False)


def target_room(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "optimizer":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in LEVEL else "__init__"


def test_every_module_has_a_room() -> None:
    assert {room(p) for p in modules()} - set(LEVEL) == set()


def test_imports_go_downwards() -> None:
    upward = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module}"
        for path in modules()
        for line, module in imports(path, everywhere=True)
        if (target := target_room(module)) and LEVEL[target] < LEVEL[room(path)]
    ]
    assert upward == []


@pytest.mark.parametrize("kind", ["stages", "runners"])
def test_no_stage_imports_a_stage_and_no_runner_a_runner(kind: str) -> None:
    names = {p.stem for p in (PACKAGE / kind).glob("*.py")} - {"__init__", "refusal", "module"}
    sideways = [
        f"{path.name}:{line} imports {module}"
        for path in (PACKAGE / kind).glob("*.py")
        if path.stem != "__init__"
        for line, module in imports(path, everywhere=True)
        if module.startswith(f"optimizer.{kind}.") and module.split(".")[2] in names
    ]
    assert sideways == []


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    found = [
        f"{path.relative_to(PACKAGE)}:{line} imports {module} at module level"
        for path in modules()
        for line, module in imports(path, everywhere=False)
        if (top := module.partition(".")[0]) in HEAVY and not (room(path) in GRAPH_ROOMS and top in GRAPH_PACKAGES)
    ]
    assert found == []


def test_the_runtime_knows_only_numpy_and_its_backend() -> None:
    allowed = {"numpy", "optimizer", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "PIL", "__future__"}
    found = [
        f"{path.name}:{line} imports {module}"
        for path in [*(PACKAGE / "runtime").glob("*.py"), PACKAGE / "types.py", PACKAGE / "errors.py"]
        for line, module in imports(path, everywhere=True)
        if (top := module.partition(".")[0]) not in allowed and top not in sys.stdlib_module_names
    ]
    assert found == []


def test_only_the_command_line_prints_and_exits() -> None:
    found = []
    for path in modules():
        if room(path) in ("cli", "__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if name in ("print", "exit", "sys.exit", "click.echo"):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno} calls {name}")
    assert found == []


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys, click.testing; from optimizer.cli.main import cli;"
        "assert click.testing.CliRunner().invoke(cli, ['--help']).exit_code == 0;"
        "print(*(m for m in ('numpy', 'pydantic', 'yaml', 'torch', 'onnx', 'rich') if m in sys.modules))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.split() == []


def test_the_command_table_says_what_the_commands_say() -> None:
    from optimizer.cli.main import COMMANDS, cli

    for name in COMMANDS:
        command = cli.get_command(None, name)  # type: ignore[arg-type]
        assert command is not None
        assert command.name == name
        assert command.help
