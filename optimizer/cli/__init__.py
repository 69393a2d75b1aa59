"""The command line; the only place that prints and exits."""

from __future__ import annotations

import gc
import os
import sys

from optimizer.cli.main import cli
from optimizer.errors import MissingToolError, OptimizerError

INTERRUPTED = 130
# What the extras `cpu` and `gpu` bring beyond a bare install.
BUILD_PACKAGES = ("pydantic", "yaml", "rich", "onnx", "onnxscript", "onnxslim", "safetensors", "PIL", "jinja2", "torch")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code of CONTRACTS: errors become text on stderr, never a traceback."""
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
        click.echo("interrupted; what was finished is stored, and the same command goes on from there", err=True)
        # Struck in code compiled from a string (a dataclass being made, say), an interrupt leaves a mark by which
        # `python -m` dies of SIGINT, whatever the exit code. Running such code to its end clears the mark.
        exec("")
        return INTERRUPTED
    except OSError as error:
        return _place_error(error)
    except ModuleNotFoundError as error:
        return _bare_package(error)
    return code if isinstance(code, int) else 0


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
    code = main()
    gc.freeze()  # taking torch's million objects apart at the end takes 1.3 s, for nothing
    sys.exit(code)
