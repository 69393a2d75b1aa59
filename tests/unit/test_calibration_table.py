from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.calibration.table import CalibrationTable, MethodRange, TensorRange
from optimizer.errors import StageError


def tensor(scale: float = 1.0, method: str = "percentile") -> TensorRange:
    methods = {
        "minmax": MethodRange(-1.5 * scale, 2.25 * scale, 2.25 * scale, 0.0, 38.25, ()),
        "percentile": MethodRange(-1.0 * scale, 2.0 * scale, 2.0 * scale, 0.001, None, (1.5 * scale,)),
    }
    return TensorRange(-1.5 * scale, 2.25 * scale, 640, method, methods)


def table() -> CalibrationTable:
    return CalibrationTable("percentile", 99.9, 128, {"b": tensor(), "a": tensor(0.5)}, (64,))


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    table().write(tmp_path / "table.json")
    assert CalibrationTable.read(tmp_path / "table.json") == table()


def test_tensors_are_sorted_one_method_a_line_with_the_shortest_float32(tmp_path: Path) -> None:
    tenth = 0.10000000149011612  # float32's 0.1 as a double
    row = TensorRange(0.0, tenth, 1, "minmax", {"minmax": MethodRange(0.0, tenth, tenth)})
    CalibrationTable("minmax", 99.999, 1, {"z": row, "a": row}).write(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text()
    lines = [line for line in text.splitlines() if '"values"' in line]
    assert [line.split('"')[1] for line in lines] == ["a", "z"]
    assert '"max": 0.1,' in lines[0]
    assert '   "minmax": {"low": 0.0, "high": 0.1, "magnitude": 0.1, ' in text
    assert json.loads(text)["schema"] == 2


def test_the_range_is_the_chosen_methods() -> None:
    assert (tensor().low, tensor().high, tensor().magnitude) == (-1.0, 2.0, 2.0)
    assert tensor(method="minmax").magnitude == 2.25


def test_a_choice_changes_the_tensors_it_names_and_no_other() -> None:
    mixed = table().with_choice({"b": "minmax"}, "auto")
    assert mixed.method == "auto"
    assert (mixed.tensors["b"].magnitude, mixed.tensors["a"].magnitude) == (2.25, 1.0)
    assert table().with_choice({}) == table()


@pytest.mark.parametrize(
    ("choice", "text"),
    [
        ({"b": "mse"}, "calibration table: holds no range of 'b' by mse\n  It holds: minmax, percentile."),
        ({"c": "minmax"}, "calibration table: holds no range of 'c' by minmax\n  It holds: 2 tensors, not this one."),
    ],
)
def test_a_choice_that_the_table_does_not_hold_is_refused(choice: dict[str, str], text: str) -> None:
    with pytest.raises(StageError) as caught:
        table().with_choice(choice)
    assert str(caught.value) == text


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 2}', '{"schema": 99}', "[1]", '{"schema": 1, "tensors": {}}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(StageError, match=r"t\.json: is (not a calibration table|schema 99|schema 1; this version)"):
        CalibrationTable.read(tmp_path / "t.json")


def test_a_tensor_whose_method_has_no_range_is_refused(tmp_path: Path) -> None:
    table().write(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text().replace('"method": "percentile", "methods"', '"method": "mse", "methods"')
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(StageError, match="KeyError: 'mse'"):
        CalibrationTable.read(tmp_path / "t.json")
