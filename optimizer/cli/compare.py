"""`optimize compare`: one report against another; for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from optimizer.results import Report

_EXITS = {"pass": 0, "fail": 6, "inconclusive": 7}
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("compare")
@click.argument("baseline")
@click.argument("candidate")
@click.option("--gate", "gate_file", type=_FILE, metavar="FILE", help="What stands under 'gate:' in a recipe decides.")
@click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML as well.")
@click.option("--markdown", type=_FILE, metavar="FILE", help="Write Markdown as well.")
@click.pass_context
def command(
    ctx: click.Context, baseline: str, candidate: str, gate_file: Path | None, junit: Path | None, markdown: Path | None
) -> None:
    """Judge the report CANDIDATE against the report BASELINE: a report.json, the folder that holds it, or a number.

    Without a gate only regressions are judged. Exit 0: none found; 6: a regression, or the gate is not met; 7: it
    cannot be decided.
    """
    places = _place(baseline), _place(candidate)
    from optimizer.cli import comparison as render  # what a bare install lacks is said second
    from optimizer.compare import compare
    from optimizer.recipe.loader import load_gate

    (before, before_folder), (after, after_folder) = map(_read, places)
    gate = load_gate(gate_file) if gate_file else None
    found = compare(before, after, gate, baseline_folder=before_folder, candidate_folder=after_folder)
    if junit:
        _write(junit, render.render_junit(found))
    if markdown:
        _write(markdown, render.render_markdown(found, gate is not None))
    click.echo(render.render_text(found, gate is not None), nl=False)
    ctx.exit(_EXITS[found.status])


def _place(given: str) -> Path:
    """Return the file of a report, or the folder that holds it."""
    from optimizer.errors import UsageError
    from optimizer.paths import find_run

    path = Path(given)
    if path.is_file():
        return path
    if (path / "passport.json").is_file():
        hint = "Give the run's folder that it was bundled from; it holds report.json."
        raise UsageError("is a bundle, which holds no samples to compare", where=given, hint=hint)
    return find_run(given)


def _read(place: Path) -> tuple[Report, Path]:
    from optimizer.report.read import read_report

    return read_report(place), place if place.is_dir() else place.parent


def _write(path: Path, text: str) -> None:
    from optimizer.errors import UsageError
    from optimizer.report.read import write_text

    try:
        write_text(path, text)
    except OSError as error:
        hint = "Give a file in a folder that exists and can be written."
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
