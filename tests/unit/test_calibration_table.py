from __future__ import annotations

import json
from pathlib import Path

import pytest

from optimizer.calibration.table import CalibrationTable, TensorRange
from optimizer.errors import StageError


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    rows = {"b": TensorRange(-1.5, 2.25, -1.0, 2.0, 2.0, 640), "a": TensorRange(0.0, 0.5, 0.0, 0.5, 0.5, 64)}
    table = CalibrationTable("percentile", 99.9, 128, rows)
    table.write(tmp_path / "table.json")
    assert CalibrationTable.read(tmp_path / "table.json") == table


def test_tensors_are_sorted_one_a_line_with_the_shortest_float32(tmp_path: Path) -> None:
    tenth = 0.10000000149011612  # float32's 0.1 as a double
    row = TensorRange(0.0, tenth, 0.0, tenth, tenth, 1)
    CalibrationTable("minmax", None, 1, {"z": row, "a": row}).write(tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text()
    lines = [line for line in text.splitlines() if '"magnitude"' in line]
    assert [line.split('"')[1] for line in lines] == ["a", "z"]
    assert '"max": 0.1,' in lines[0]
    assert json.loads(text)["percentile"] is None


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 1}', '{"schema": 99}', "[1]"])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.json").write_text(text)
    with pytest.raises(StageError, match=r"t\.json: is (not a calibration table|schema 99)"):
        CalibrationTable.read(tmp_path / "t.json")
