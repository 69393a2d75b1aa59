"""How the command line ends when it is interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer import cli


def test_an_interrupt_in_compiled_text_still_exits_130(tmp_path: Path) -> None:
    """As when Ctrl-C strikes while an import makes a dataclass; only `python -m` tells the difference."""
    (tmp_path / "struck.py").write_text(
        "import sys; from optimizer import cli\n"
        "cli.cli.main = lambda *_, **__: exec('raise KeyboardInterrupt')\n"
        "sys.exit(cli.main(['cache']))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "struck"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("interrupted;")


def run_python(code: str, folder: Path, shell: str = '"$@"') -> subprocess.CompletedProcess[str]:
    """Run a script that calls `optimizer.cli`, as a child of a shell line."""
    (folder / "struck.py").write_text(code)
    command = ["bash", "-c", f"set -o pipefail; {shell}", "bash", sys.executable, "-m", "struck"]
    path = os.pathsep.join([str(folder), str(Path(__file__).parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


STRUCK = """
import os, signal, sys
from optimizer import cli

def strike(*arguments, **options):
    os.kill(os.getpid(), signal.SIGINT)

def twice(*arguments, **options):
    try:
        strike()
    finally:
        {cleanup}

def echo(text, err=False):  # the second one strikes while the first is being told
    print(text, file=sys.stderr)
    {told}

import click
click.echo = echo
cli.cli.main = twice
sys.argv = ["optimize", "cache"]
{ending}
cli.entry()
"""


@pytest.mark.parametrize(
    "place",
    [
        {"cleanup": "strike()"},
        {"told": "strike()"},
        {"told": "exec('strike()')"},
        {"ending": "import atexit; atexit.register(strike)"},
    ],
    ids=["while cleaning up", "while it is told", "in compiled text", "while Python ends"],
)
def test_a_second_interrupt_exits_130_as_well(place: dict[str, str], tmp_path: Path) -> None:
    parts = {"cleanup": "pass", "told": "pass", "ending": "pass", **place}
    done = run_python(STRUCK.format(**parts), tmp_path)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("interrupted;")
    assert "Traceback" not in done.stderr


def test_an_interrupt_outside_of_what_main_catches_exits_130(tmp_path: Path) -> None:
    code = "from optimizer import cli\ndef main(**options): raise KeyboardInterrupt\ncli.main = main\ncli.entry()\n"
    done = run_python(code, tmp_path)
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


CALL = "import sys; from optimizer import cli\nsys.argv = ['optimize', *{words}]\ncli.entry()\n"


@pytest.mark.parametrize("words", [["stages"], ["--help"], ["schema"]])
def test_a_reader_that_went_away_ends_it_quietly_with_141(words: list[str], tmp_path: Path) -> None:
    """As the shell reports any program in front of `head`; 1 would be our bug."""
    done = run_python(CALL.format(words=words), tmp_path, '"$@" | true')
    assert (done.returncode, done.stderr) == (141, "")


def test_an_error_that_nobody_reads_ends_quietly_too(tmp_path: Path) -> None:
    done = run_python(CALL.format(words=["run", "nowhere", "--input", "no.npz"]), tmp_path, '"$@" 2>&1 >&- | true')
    assert (done.returncode, done.stderr) == (141, "")


def test_what_a_reader_takes_whole_ends_with_0(tmp_path: Path) -> None:
    done = run_python(CALL.format(words=["stages"]), tmp_path, '"$@" | cat')
    assert done.returncode == 0
    assert "export" in done.stdout


def test_an_exit_of_code_that_is_no_closed_pipe_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(*arguments: object, **options: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr(cli.cli, "main", leave)
    monkeypatch.setattr(cli, "reader_is_gone", lambda stream: False)
    with pytest.raises(SystemExit):
        cli.main(["stages"])


def test_a_program_that_calls_main_keeps_its_own_interrupts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def struck(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.cli, "main", struck)
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["cache"]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.startswith("interrupted;")
