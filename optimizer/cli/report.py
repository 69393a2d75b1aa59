"""`optimize report`: a stored run, rendered again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from optimizer.results import Report


@click.command("report")
@click.argument("run")
@click.option(
    "--format",
    "form",
    type=click.Choice(("html", "md", "json", "junit")),
    default="html",
    show_default=True,
    help="html: one self-contained file; junit: XML for CI.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write here instead of to stdout.",
)
def command(run: str, form: str, output: Path | None) -> None:
    """Render the report of RUN again: the folder that holds report.json, or a run's number."""
    from optimizer.errors import UsageError
    from optimizer.paths import find_run

    given = Path(run)
    place = given if given.is_file() else find_run(run)
    from optimizer.disk import write_text
    from optimizer.report.read import read_report  # what a bare install lacks is said second

    text = _render(form, place if place.is_dir() else place.parent)(read_report(place))
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        write_text(output, text)
    except OSError as error:
        hint = "Give a file in a folder that exists and can be written."
        raise UsageError(f"cannot be written: {error.strerror}", where=str(output), hint=hint) from error
    click.echo(str(output))


def _render(form: str, run: Path) -> Callable[[Report], str]:
    """Return what renders a report; for people with the traces that lie in the run's folder."""
    if form == "junit":
        from optimizer.report.junit import render_junit

        return render_junit
    if form == "json":
        from optimizer.report.read import to_json

        return to_json
    from optimizer.report.html import render_html
    from optimizer.report.markdown import render_markdown
    from optimizer.report.trace import traces_of

    render = render_html if form == "html" else render_markdown
    return lambda report: render(report, traces_of(run))
