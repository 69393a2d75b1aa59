"""The command line; the only place that prints and exits."""

from __future__ import annotations

import gc
import os
import select
import signal
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from optimizer.cli.main import cli
from optimizer.errors import MissingToolError, OptimizerError

INTERRUPTED = 130
PIPE_CLOSED = 141  # as the shell reports a program that SIGPIPE ended
# What the extras `cpu` and `gpu` bring beyond a bare install.
BUILD_PACKAGES = ("pydantic", "yaml", "rich", "onnx", "onnxscript", "onnxslim", "safetensors", "PIL", "jinja2", "torch")


def main(arguments: list[str] | None = None, *, ends: bool = False) -> int:
    """Run the command line and return the exit code of CONTRACTS: errors become text on stderr, never a traceback.

    `ends`: the process ends with it, so that one interrupt is enough; a caller that goes on keeps its own handling.
    """
    import click

    try:
        code = cli.main(arguments, prog_name="optimize", standalone_mode=False)
    except OptimizerError as error:
        click.echo(f"error: {error.render()}", err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return 2
    except (KeyboardInterrupt, click.Abort):
        if ends:
            _ignore_interrupts()
        click.echo("interrupted; what was finished is stored, and the same command goes on from there", err=True)
        # Struck in code compiled from a string (a dataclass being made, say), an interrupt leaves a mark by which
        # `python -m` dies of SIGINT, whatever the exit code. Running such code to its end clears the mark.
        exec("")
        return INTERRUPTED
    except SystemExit as stop:
        return _pipe_error(stop)
    except OSError as error:
        return _place_error(error)
    except ModuleNotFoundError as error:
        return _bare_package(error)
    return code if isinstance(code, int) else 0


def _ignore_interrupts() -> None:
    """From here on the process ends by itself: a second Ctrl-C would only spoil its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _pipe_error(stop: SystemExit) -> int:
    """Return the exit code when whoever read the output went away: click, and rich, make a SystemExit of that."""
    gone = [stream for stream in (1, 2) if reader_is_gone(stream)]
    if not gone:
        raise stop
    _lead_to_nowhere(gone)
    return PIPE_CLOSED


def _lead_to_nowhere(streams: Iterable[int]) -> None:
    """What is still buffered is flushed when Python ends, and would be an error once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)


def reader_is_gone(stream: int) -> bool:
    """Tell whether nobody reads this stream any more, or rich, having noticed it, has led it to nowhere."""
    try:
        state = os.fstat(stream)
    except OSError:
        return True
    if stat.S_ISCHR(state.st_mode):
        return state.st_rdev == Path(os.devnull).stat().st_rdev
    if sys.platform == "win32":
        return stat.S_ISFIFO(state.st_mode)
    watched = select.poll()
    watched.register(stream, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in watched.poll(0))


def _place_error(error: OSError) -> int:
    """Say that the disk is full or OPTIMIZE_HOME cannot be written, wherever that was noticed; the rest is our bug."""
    import click

    from optimizer.disk import disk_error
    from optimizer.paths import home

    known = disk_error(error, home())
    if not isinstance(known, OptimizerError):
        raise error
    click.echo(f"error: {known.render()}", err=True)
    return known.exit_code


def _bare_package(error: ModuleNotFoundError) -> int:
    """Say what a bare install lacks for this command; any other module that is not found is our bug."""
    import click

    if error.name is None or error.name.partition(".")[0] not in BUILD_PACKAGES:
        raise error
    lacking = MissingToolError(
        f"this command needs {error.name}, which a bare install does not bring",
        hint="Install it again with its extra, from where you had it: pip install '.[cpu]'   (on a GPU host '.[gpu]')",
    )
    click.echo(f"error: {lacking.render()}", err=True)
    return lacking.exit_code


def entry() -> None:
    """The `optimize` script."""
    # CUDA numbers GPUs from the fastest on, NVML and nvidia-smi by their place on the bus. With this, `cuda:1` is the
    # GPU that a report names; it must stand before the driver is loaded, and children inherit it.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    try:
        code = main(ends=True)
    except KeyboardInterrupt:  # a second one, before `main` had done with the first
        _ignore_interrupts()
        exec("")  # as in `main`
        code = INTERRUPTED
    except BrokenPipeError:  # of an error's text: nobody reads stderr any more
        if not reader_is_gone(2):
            raise
        _lead_to_nowhere([1, 2])
        code = PIPE_CLOSED
    gc.freeze()  # taking torch's million objects apart at the end takes 1.3 s, for nothing
    sys.exit(code)
