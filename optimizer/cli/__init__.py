"""The command line; the only place that prints and exits."""

from __future__ import annotations

import sys

from optimizer.cli.main import cli
from optimizer.errors import OptimizerError

INTERRUPTED = 130


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
        click.echo("interrupted; what was finished is stored and will be reused", err=True)
        return INTERRUPTED
    except OSError as error:
        return _full_disk(error)
    return code if isinstance(code, int) else 0


def _full_disk(error: OSError) -> int:
    """Say that the disk is full, wherever that was noticed; any other OSError is our bug."""
    import click

    from optimizer.paths import home
    from optimizer.store import disk_error

    known = disk_error(error, home())
    if not isinstance(known, OptimizerError):
        raise error
    click.echo(f"error: {known.render()}", err=True)
    return known.exit_code


def entry() -> None:
    """The `optimize` script."""
    sys.exit(main())
