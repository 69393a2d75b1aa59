"""`optimize build`: from a recipe to a report."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from optimizer.cli.options import device_option, json_option, remeasure_option, settings_option
from optimizer.errors import UsageError
from optimizer.recipe.wording import check_is_there

if TYPE_CHECKING:
    from optimizer.pipeline.build import Built
    from optimizer.recipe.model import Recipe
    from optimizer.results import Report

GATE_NOT_MET, UNDECIDED = 6, 7


@click.command("build")
@click.argument("recipe", type=click.Path(path_type=Path))
@settings_option
@click.option(
    "--out", type=click.Path(path_type=Path), help="Folder of the run; default: the next under artifacts/runs."
)
@click.option("--only", multiple=True, metavar="VARIANT", help="Only this variant; may be repeated.")
@device_option
@remeasure_option
@click.option("--locked", is_flag=True, help="Fail if a stage's key differs from recipe.lock.json.")
@click.option("--trace", type=click.Path(path_type=Path), help="Write a Chrome trace of the build.")
@json_option
@click.pass_context
def command(ctx: click.Context, /, recipe: Path, settings: dict[str, str], **options: object) -> None:
    """Build RECIPE: plan, build or reuse, measure, compare, report. The last line is the path of report.html."""
    check_is_there(recipe)
    from optimizer.cli.progress import open_progress
    from optimizer.paths import begun, home, new_run
    from optimizer.pipeline.build import Options, build
    from optimizer.pipeline.run import open_out
    from optimizer.recipe.loader import load_recipe
    from optimizer.recipe.steps import check_only, derive
    from optimizer.report.write import build_trace, write_report
    from optimizer.store import Store

    only, out, trace = options["only"], options["out"], options["trace"]
    if isinstance(trace, Path):
        _check_writable(trace)
    assert isinstance(only, tuple)
    loaded = load_recipe(recipe, settings)
    check_only(loaded, only)
    progress = open_progress(step.id for step in derive(loaded, only).steps)
    place = home()
    store = Store(place / "store", progress.say)
    run = open_out(out) if isinstance(out, Path) else new_run(loaded.name)
    with contextlib.closing(progress), begun(run):
        built = build(
            loaded,
            store,
            run,
            Options(
                only=only,
                device=str(options["device"]),
                remeasure=bool(options["remeasure"]),
                locked=bool(options["locked"]),
                history=place / "runs" / loaded.name,
                command=reproduce("build", loaded, sys.argv[2:]),
            ),
            progress,
        )
        write_report(built.report, built.run)
    failed = any(c.status == "failed" for c in built.report.candidates)
    if not failed and not only and not options["locked"]:
        _write_lock(loaded, built.report)
    if isinstance(trace, Path):
        trace.write_text(build_trace(built.report))
    finish(ctx, built, as_json=bool(options["as_json"]))


def reproduce(command: str, recipe: Recipe, arguments: list[str]) -> str:
    """Return the command that makes this report again, with every setting that the environment filled in."""
    given = {argument.partition("=")[0] for argument in arguments}
    filled = [word for n, v in recipe.settings.items() if n not in given for word in ("--set", f"{n}={v}")]
    return shlex.join(["optimize", command, *arguments, *filled])


def _write_lock(recipe: Recipe, report: Report) -> None:
    from optimizer.pipeline.build import lock_file, write_lock

    try:
        write_lock(recipe, report)
    except OSError as error:
        click.echo(f"note: {lock_file(recipe)} was not written: {error.strerror}", err=True)


def _check_writable(file: Path) -> None:
    """Refuse a file that could not be written, before an hour of building and not after."""
    folder = file.absolute().parent
    if not folder.is_dir():
        raise UsageError("cannot be written: there is no such folder", where=f"--trace {file}")
    if file.is_dir() or not os.access(file if file.exists() else folder, os.W_OK):
        said = "it is a folder" if file.is_dir() else "no permission"
        raise UsageError(f"cannot be written: {said}", where=f"--trace {file}")


def finish(ctx: click.Context, built: Built, *, as_json: bool) -> None:
    """Print where the report lies, or the report itself, and exit as its verdict and the errors say."""
    from optimizer.cli.failures import told
    from optimizer.report.screen import render_screen

    if as_json:
        click.echo((built.run / "report.json").read_text(), nl=False)
    else:
        click.echo(render_screen(built.report))
        click.echo(built.run / "report.html")
    for text in told(built.errors, built.report):
        click.echo(f"error: {text}", err=True)
    if built.errors:
        ctx.exit(max(error.exit_code for error in built.errors))
    ctx.exit({"pass": 0, "fail": GATE_NOT_MET, "inconclusive": UNDECIDED}[built.report.verdict.status])
