from __future__ import annotations

import sys
from pathlib import Path

import pytest

from optimizer.errors import StageError, UsageError
from optimizer.imports import closure, importable, load_function, user_code


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def test_closure_follows_local_modules_and_names_the_packages(tmp_path: Path) -> None:
    write(
        tmp_path,
        model="import torch\nimport os\nfrom layers.block import Block\nfrom shapes import side",
        layers__block="from . import norm\nimport numpy",
        layers__norm="",
        shapes="side = 3",
        unused="import pandas",
    )
    (tmp_path / "layers" / "__init__.py").write_text("import yaml")
    found = closure(tmp_path / "model.py")
    assert [str(f.relative_to(tmp_path)) for f in found.files] == [
        "layers/__init__.py",
        "layers/block.py",
        "layers/norm.py",
        "model.py",
        "shapes.py",
    ]
    assert found.packages == ("numpy", "torch", "yaml")


def test_closure_sees_imports_inside_functions(tmp_path: Path) -> None:
    write(tmp_path, data="def f():\n    import later\n    import sklearn.datasets", later="")
    found = closure(tmp_path / "data.py")
    assert {f.name for f in found.files} == {"data.py", "later.py"}
    assert found.packages == ("sklearn",)


def test_a_file_that_is_not_python_is_named_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, model="x = 1\ndef f(:")
    with pytest.raises(UsageError, match=r"model\.py:2: is not valid Python"):
        closure(tmp_path / "model.py")


def test_two_folders_may_have_modules_of_one_name(tmp_path: Path) -> None:
    for side in ("one", "two"):
        write(tmp_path / side, model="from layers import side\ndef f(): return side", layers=f"side = {side!r}")
    assert load_function(tmp_path / "one" / "model.py", "f")() == "one"
    assert load_function(tmp_path / "two" / "model.py", "f")() == "two"


def test_a_missing_function_and_a_failing_import_are_named(tmp_path: Path) -> None:
    write(tmp_path, model="", broken="import surely_not_installed")
    with pytest.raises(StageError, match="has no function 'build'"):
        load_function(tmp_path / "model.py", "build")
    with pytest.raises(StageError, match="surely_not_installed"):
        load_function(tmp_path / "broken.py", "f")


def test_modules_of_two_folders_keep_their_state_when_they_alternate(tmp_path: Path) -> None:
    for side in ("one", "two"):
        write(
            tmp_path / side,
            model="def f():\n    import counting\n    counting.calls.append(1)\n    return len(counting.calls)",
            counting="calls = []",
        )
    functions = {side: load_function(tmp_path / side / "model.py", "f") for side in ("one", "two")}
    for expected in (1, 2, 3):
        for side, function in functions.items():
            with importable(tmp_path / side):
                assert function() == expected


def test_a_file_named_like_python_s_own_module_is_refused(tmp_path: Path) -> None:
    write(tmp_path, random="def f(): ...")
    with pytest.raises(StageError, match=r"random\.py: has the name of a module of Python's own"):
        load_function(tmp_path / "random.py", "f")


@pytest.mark.parametrize("name", ["numpy", "pytest_timeout", "optimizer"])
def test_a_file_named_like_an_installed_package_leaves_the_package_in_place(tmp_path: Path, name: str) -> None:
    before = sys.modules.get(name)
    write(tmp_path, **{name: "def f(): return 'mine'"})
    assert load_function(tmp_path / f"{name}.py", "f")() == "mine"
    assert sys.modules.get(name) is before


def test_an_error_of_user_code_is_told_with_its_own_last_line(tmp_path: Path) -> None:
    write(
        tmp_path,
        model="import json\ndef f():\n    json.loads('{')\ndef g(): raise KeyboardInterrupt\ndef h(): raise KeyError",
    )
    for name, told in (
        ("f", r"here: JSONDecodeError: .* \(model\.py, line 3: json\.loads"),
        ("h", r"here: KeyError \(model"),
    ):
        with pytest.raises(StageError, match=told), user_code("here", tmp_path):
            load_function(tmp_path / "model.py", name)()
    with pytest.raises(KeyboardInterrupt), user_code("here", tmp_path):
        load_function(tmp_path / "model.py", "g")()
