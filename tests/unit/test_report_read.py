"""report.json: what is written is read back, and what is no report is refused with what was found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from optimizer.errors import UsageError
from optimizer.report.read import read_report, to_json, write_json
from optimizer.results import Report

FIXTURES = Path(__file__).parent.parent / "fixtures" / "report"
SAMPLES = sorted(p.stem for p in FIXTURES.glob("*.json"))


@pytest.mark.parametrize("name", SAMPLES)
def test_what_is_written_is_read_back(name: str, tmp_path: Path) -> None:
    report = read_report(FIXTURES / f"{name}.json")
    write_json(report, tmp_path / "report.json")
    assert read_report(tmp_path) == report
    assert (tmp_path / "report.json").read_text(encoding="utf-8") == to_json(report)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_batches_keep_the_order_of_the_recipe(tmp_path: Path) -> None:
    report = read_report(FIXTURES / "demo.json")
    assert to_json(report).endswith("}\n")
    first = json.loads(to_json(report))["candidates"][0]
    assert list(first["latency_ms"]) == ["1", "16"]
    assert list(json.loads(to_json(report)))[:3] == ["schema_version", "recipe", "environment"]


def test_an_interrupted_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.json"
    target.write_text("old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_json(read_report(FIXTURES / "demo.json"), target)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{\n  nonsense", ":2:3: not JSON"),
        (b"\xff\xfe", "byte 0 is not UTF-8"),
        (b"[1, 2]", "not a report: a list where an object is expected"),
        (b'{"candidates": []}', "it has no 'schema_version' (found: candidates)"),
        (b'{"schema_version": 7}', "schema_version is 7, this version reads 1"),
        (b'{"schema_version": 1}', "recipe: field required"),
    ],
)
def test_what_is_no_report_is_refused_with_what_was_found(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        read_report(tmp_path)
    text = str(caught.value)
    assert said in text
    assert str(tmp_path / "report.json") in text
    assert "optimize build" in text
    assert caught.value.exit_code == 2
    assert len(text.splitlines()) <= 15


def test_a_missing_report_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no report here\n  Give a run's folder or number"):
        read_report(tmp_path / "nowhere")


def test_an_unknown_field_and_a_nan_are_refused(tmp_path: Path) -> None:
    document = json.loads((FIXTURES / "one_candidate.json").read_text())
    (tmp_path / "report.json").write_text(json.dumps({**document, "extra": 1}))
    with pytest.raises(UsageError, match="extra: extra inputs are not permitted"):
        read_report(tmp_path)
    document["candidates"][0]["latency_ms"]["1"]["p50"] = float("nan")
    with pytest.raises(ValidationError, match="finite"):
        Report.model_validate(document)
    (tmp_path / "report.json").write_text(json.dumps(document))
    with pytest.raises(UsageError, match="p50"):
        read_report(tmp_path)
