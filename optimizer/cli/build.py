"""`optimize build`: from a recipe to a report."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from optimizer.cli.options import device_option, json_option, remeasure_option, settings_option
from optimizer.errors import OptimizerError

if TYPE_CHECKING:
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
    from optimizer.cli.progress import open_progress
    from optimizer.paths import forget_empty, home, new_run
    from optimizer.pipeline.build import Options, build
    from optimizer.pipeline.run import open_out
    from optimizer.recipe.loader import load_recipe
    from optimizer.recipe.steps import check_only
    from optimizer.store import Store

    only, out = options["only"], options["out"]
    assert isinstance(only, tuple)
    loaded = load_recipe(recipe, settings)
    check_only(loaded, only)
    progress = open_progress()
    place = home()
    store = Store(place / "store", progress.say)
    run = open_out(out) if isinstance(out, Path) else new_run(loaded.name)
    command_line = shlex.join(["optimize", *sys.argv[1:]])
    try:
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
                command=command_line,
            ),
            progress,
        )
    finally:
        progress.close()
        forget_empty(run)
    if isinstance(trace := options["trace"], Path):
        from optimizer.report.trace import render_trace

        trace.write_text(render_trace(built.report))
    finish(ctx, built.report, built.run, built.errors, as_json=bool(options["as_json"]))


def finish(ctx: click.Context, report: Report, run: Path, errors: tuple[OptimizerError, ...], *, as_json: bool) -> None:
    """Print where the report lies, or the report itself, and exit as its verdict and the errors say."""
    from optimizer.report.summary import render_summary
    from optimizer.report.write import write_report

    write_report(report, run)
    if as_json:
        click.echo((run / "report.json").read_text(), nl=False)
    else:
        click.echo(render_summary(report))
        click.echo(run / "report.html")
    for error in errors:
        click.echo(f"error: {error.render()}", err=True)
    if errors:
        ctx.exit(max(error.exit_code for error in errors))
    ctx.exit({"pass": 0, "fail": GATE_NOT_MET, "inconclusive": UNDECIDED}[report.verdict.status])
