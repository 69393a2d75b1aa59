"""A `.pt2` loads, and runs nothing of its own while it does."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from optimizer.errors import StageError
from optimizer.exported import load_exported
from optimizer.types import TensorSpec

pytestmark = pytest.mark.filterwarnings("ignore")
SPECS = (TensorSpec("x", "float32", ("batch", 3)),)
Member = Callable[[bytes], bytes]


class Marked(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.constant = torch.ones(3)
        self.weight = torch.nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight + self.constant


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "c.pt2"
    batch = torch.export.Dim("batch", max=64)
    torch.export.save(torch.export.export(Marked(), (torch.ones(2, 3),), dynamic_shapes=({0: batch},)), path)
    return path


def changed(good: Path, folder: Path, changes: dict[str, Member]) -> Path:
    """Copy the archive with some members changed; a name that it lacks is added."""
    path = folder / "c.pt2"
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as copy:
        root = source.namelist()[0].partition("/")[0]
        left = dict(changes)
        for name in source.namelist():
            change = left.pop(name.removeprefix(f"{root}/"), None)
            copy.writestr(name, change(source.read(name)) if change else source.read(name))
        for name, change in left.items():
            copy.writestr(f"{root}/{name}", change(b""))
    return path


@pytest.fixture
def ran(tmp_path: Path) -> Iterator[Path]:
    """What every bad program below would leave behind."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


class Opens:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def edited(change: Callable[[dict[str, Any]], None]) -> Member:
    def apply(text: bytes) -> bytes:
        document = json.loads(text)
        change(document)
        return json.dumps(document).encode()

    return apply


def saved(value: Any) -> Member:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return lambda _: buffer.getvalue()


def test_a_good_program_loads(good: Path) -> None:
    module = load_exported(good, SPECS, trust=False)
    assert module(torch.ones(5, 3)).tolist() == [[2.0] * 3] * 5


def test_sizes_guards_keywords_and_text_arguments_are_no_code(tmp_path: Path) -> None:
    class Rich(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 3, stride=2)

        def forward(self, x: torch.Tensor, *, gain: torch.Tensor) -> dict[str, Any]:
            y = torch.nn.functional.pad(self.conv(x), (1, 1, 1, 1), mode="reflect").flatten(2)
            return {"y": torch.einsum("bij,bkj->bik", y, y), "more": (gain * 2, [gain])}

    batch, auto = torch.export.Dim("batch", max=64), torch.export.Dim.AUTO
    program = torch.export.export(
        Rich().eval(),
        (torch.ones(2, 3, 32, 32),),
        kwargs={"gain": torch.ones(2, 1)},
        dynamic_shapes={"x": {0: batch, 2: auto, 3: auto}, "gain": {0: batch}},
    )
    torch.export.save(program, tmp_path / "c.pt2")
    image = TensorSpec("x", "float32", ("batch", 3, "height", "width"))
    module = load_exported(tmp_path / "c.pt2", (image, TensorSpec("gain", "float32", ("batch", 1))), trust=False)
    assert module(torch.ones(3, 3, 40, 24), gain=torch.ones(3, 1))["y"].shape == (3, 4, 4)


def test_pickles_among_its_tensors_are_refused_by_name(good: Path, tmp_path: Path, ran: Path) -> None:
    evil = saved((Opens(ran),))
    path = changed(good, tmp_path, {"data/sample_inputs/model.pt": evil})
    with pytest.raises(StageError, match=r"(?s)wants to run '\w+\.open' while it loads.*trust: true"):
        load_exported(path, SPECS, trust=False)

    def use_pickle(document: dict[str, Any]) -> None:
        document["config"]["weight"]["use_pickle"] = True

    pickled = {"data/weights/weight_0": evil, "data/weights/model_weights_config.json": edited(use_pickle)}
    with pytest.raises(StageError, match=r"wants to run '\w+\.open'"):
        load_exported(changed(good, tmp_path, pickled), SPECS, trust=False)


@pytest.mark.parametrize("kind", ["opaque_obj_0", "custom_obj_0"])
def test_pickled_objects_are_refused(good: Path, tmp_path: Path, ran: Path, kind: str) -> None:
    def point(document: dict[str, Any]) -> None:
        document["config"]["constant"]["path_name"] = kind

    changes: dict[str, Member] = {
        "data/constants/model_constants_config.json": edited(point),
        f"data/constants/{kind}": lambda _: pickle.dumps(Opens(ran)),
    }
    with pytest.raises(StageError, match=f"holds a pickled object \\({kind}\\); refused"):
        load_exported(changed(good, tmp_path, changes), SPECS, trust=False)


def test_compiled_code_is_refused(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, {"data/aotinductor/model/code.so": lambda _: b"ELF"})
    with pytest.raises(StageError, match=r"holds compiled code \(data/aotinductor/model/code\.so\)"):
        load_exported(path, SPECS, trust=False)


def test_the_format_of_old_torch_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "c.pt2", "w") as archive:
        archive.writestr("version", "8.8")
    with pytest.raises(StageError, match=r"has the format of torch 2\.7 or older"):
        load_exported(tmp_path / "c.pt2", SPECS, trust=False)


@pytest.mark.parametrize(
    "code",
    [
        "open({path!r}, 'w') == 0",
        "Max('open(chr(97))', 1)",
        "[open({path!r}, 'w') for _ in 'a']",
        "(lambda: open({path!r}, 'w'))()",
        "L['x'].__class__.mro()",
        "f'{{open}}'",
        "1 #\nopen",
    ],
)
@pytest.mark.parametrize("place", ["guards_code", "expr_str"])
def test_code_among_its_texts_is_refused(good: Path, tmp_path: Path, ran: Path, place: str, code: str) -> None:
    """Torch evaluates guards and sizes as Python: without the check, the first of these runs."""

    def put(value: Any) -> None:
        if isinstance(value, dict):
            if place in value:
                text = code.format(path=str(ran))
                value[place] = [text] if place == "guards_code" else text
            value = list(value.values())
        if isinstance(value, list):
            for item in value:
                put(item)

    with pytest.raises(StageError, match=r"models/model\.json: has text that would run as code.*refused"):
        load_exported(changed(good, tmp_path, {"models/model.json": edited(put)}), SPECS, trust=False)


def test_trust_lets_it_run_code(good: Path, tmp_path: Path) -> None:
    path = changed(good, tmp_path, {"data/sample_inputs/model.pt": saved(((Opens(tmp_path / "ran"),), {}))})
    with pytest.raises(StageError, match="wants to run"):
        load_exported(path, SPECS, trust=False)
    assert not (tmp_path / "ran").exists()
    load_exported(path, SPECS, trust=True)
    assert (tmp_path / "ran").exists()


def test_what_torch_finds_wrong_with_a_program_is_told(good: Path, tmp_path: Path) -> None:
    def drop(document: dict[str, Any]) -> None:
        del document["graph_module"]

    for change in (edited(drop), lambda _: b"{"):
        path = changed(good, tmp_path, {"models/model.json": change})
        with pytest.raises(StageError, match=r"c\.pt2: cannot be read as an exported program"):
            load_exported(path, SPECS, trust=False)
