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
        told.advance("accuracy", done, 60)
    assert capsys.readouterr().err.splitlines() == [f"  accuracy: {n} of 60" for n in (19, 39, 59)]


def test_a_long_reason_is_cut() -> None:
    assert len(first_line("x" * 500)) == 160
    assert first_line("x" * 500).endswith("...")
    assert first_line("") == ""
