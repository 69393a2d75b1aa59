"""`optimize measure`: a run, measured on this machine."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import click

from optimizer.cli.options import device_option, json_option, remeasure_option, settings_option
from optimizer.errors import UsageError


@click.command("measure")
@click.argument("run", metavar="RUN")
@settings_option
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the new run; default: the next one.")
@device_option
@remeasure_option
@json_option
@click.pass_context
def command(ctx: click.Context, /, run: str, settings: dict[str, str], **options: object) -> None:
    """Measure the stored artifacts of RUN (a folder or a number) on this machine, without building anything."""
    from optimizer.paths import begun, find_run, home, new_run

    folder = find_run(run)
    from optimizer.cli.build import finish, reproduce  # what a bare install lacks is said second
    from optimizer.cli.progress import open_progress
    from optimizer.pipeline.build import Options
    from optimizer.pipeline.remeasure import open_run, remeasure
    from optimizer.pipeline.run import open_out
    from optimizer.report.read import read_report
    from optimizer.report.write import write_report
    from optimizer.store import Store

    carried = open_run(folder, read_report(folder), settings)
    progress = open_progress()
    store = Store(home() / "store", progress.say)
    out = options["out"]
    if isinstance(out, Path) and out.resolve() == folder.resolve():
        raise UsageError("is the run that is measured", where=f"--out {out}", hint="Name another folder.")
    new = open_out(out) if isinstance(out, Path) else new_run(carried.recipe.name)
    chosen = Options(
        device=str(options["device"]),
        remeasure=bool(options["remeasure"]),
        command=reproduce("measure", carried.recipe, sys.argv[2:]),
    )
    with contextlib.closing(progress), begun(new):
        built = remeasure(carried, store, new, chosen, progress)
        write_report(built.report, built.run)
    finish(ctx, built, as_json=bool(options["as_json"]))
