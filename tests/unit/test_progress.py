"""A log hears of every step, why one failed, and of what takes long."""

from __future__ import annotations

import pytest

from optimizer.cli.progress import PlainProgress, first_line


def test_a_failed_step_says_the_first_line_of_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    PlainProgress().step("int8@cpu/quantize", "failed", None, None, "keep: no module 'bn1'\n  write bn2")
    assert capsys.readouterr().err == f"{'int8@cpu/quantize':<28} failed              keep: no module 'bn1'\n"


def test_a_step_without_a_reason_shows_its_key(capsys: pytest.CaptureFixture[str]) -> None:
    PlainProgress().step("export", "built", 10.4, "4cb256e4" + "0" * 56)
    assert capsys.readouterr().err == f"{'export':<28} built      10.4 s   4cb256e4\n"


def test_a_log_hears_of_what_takes_long_and_not_of_every_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("optimizer.cli.progress.time.monotonic", lambda: now[0])
    told = PlainProgress()
    for done in range(60):
        now[0] += 1.0
        told.advance("int8/calibrate: calibration samples", done, 60)
    said = [f"  int8/calibrate: calibration samples: {n} of 60" for n in (19, 39, 59)]
    assert capsys.readouterr().err.splitlines() == said


def test_parts_without_a_name_are_told_as_a_share(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of latency's 240 of 600 nobody knows what is counted."""
    now = [100.0]
    monkeypatch.setattr("optimizer.cli.progress.time.monotonic", lambda: now[0])
    told = PlainProgress()
    now[0] += 20.0
    told.advance("latency", 240, 600)
    assert capsys.readouterr().err == "  latency: 40%\n"


def test_the_longest_name_to_come_sets_the_columns(capsys: pytest.CaptureFixture[str]) -> None:
    long = "int8_head_in_float@openvino/quantize"
    told = PlainProgress(["export", long])
    for name in ("export", long):
        told.step(name, "built", 1.0, "4cb256e4")
    first, second = capsys.readouterr().err.splitlines()
    assert first.index("built") == second.index("built") == len(long) + 1


def test_a_longer_name_than_was_told_moves_the_columns_once(capsys: pytest.CaptureFixture[str]) -> None:
    told = PlainProgress()
    for name in ("x" * 40, "export"):
        told.step(name, "built", 1.0, "4cb256e4")
    first, second = capsys.readouterr().err.splitlines()
    assert first.index("built") == second.index("built")


def test_a_long_reason_is_cut() -> None:
    assert len(first_line("x" * 500)) == 160
    assert first_line("x" * 500).endswith("...")
    assert first_line("") == ""
