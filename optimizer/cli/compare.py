"""`optimize compare`: one report or bundle against another; for CI."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, Unpack

import click

if TYPE_CHECKING:
    from optimizer.compare.result import Comparison
    from optimizer.recipe.model import Gate
    from optimizer.results import Report


class _Options(TypedDict):
    gate_file: Path | None
    junit: Path | None
    markdown: Path | None
    threads: int | None
    seconds: float | None


_EXITS = {"pass": 0, "fail": 6, "inconclusive": 7}
_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("compare")
@click.argument("baseline")
@click.argument("candidate")
@click.option("--gate", "gate_file", type=_FILE, metavar="FILE", help="What stands under 'gate:' in a recipe decides.")
@click.option("--junit", type=_FILE, metavar="FILE", help="Write JUnit XML as well.")
@click.option("--markdown", type=_FILE, metavar="FILE", help="Write Markdown as well.")
@click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Of two bundles: CPU threads of each; default: as built."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="S",
    help="Of two bundles: time each at each batch; default: 1.",
)
@click.pass_context
def command(ctx: click.Context, /, baseline: str, candidate: str, **options: Unpack[_Options]) -> None:
    """Judge CANDIDATE against BASELINE: two reports (a report.json, the folder that holds it, or a run's number), or
    two bundles, which are checked and measured here, in turns.

    Without a gate only regressions are judged. Exit 0: none found; 6: a regression, or the gate is not met; 7: it
    cannot be decided.
    """
    bundles = _bundles(baseline, candidate)
    if bundles is None:
        _refuse_terms(options)
        places = _place(baseline), _place(candidate)
    from optimizer.cli import comparison as render  # what a bare install lacks is said second

    gate = _gate(options["gate_file"])
    found = _compare_bundles(bundles, gate, options) if bundles else _compare_reports(places, gate)
    if options["junit"]:
        _write(options["junit"], render.render_junit(found))
    if options["markdown"]:
        _write(options["markdown"], render.render_markdown(found, gate is not None))
    click.echo(render.render_text(found, gate is not None), nl=False)
    ctx.exit(_EXITS[found.status])


def _bundles(*given: str) -> tuple[Path, Path] | None:
    """Return the folders where both are bundles, None where neither is. Raises: UsageError where one of two is."""
    from optimizer.errors import UsageError

    paths = [Path(text) for text in given]
    folders = [path.parent if path.name == "passport.json" and path.is_file() else path for path in paths]
    are = [(folder / "passport.json").is_file() and not (folder / "report.json").is_file() for folder in folders]
    if not any(are):
        return None
    if not all(are):
        one, other = given if are[0] else given[::-1]
        raise UsageError(
            f"is a bundle, and '{other}' is none: a bundle is compared with a bundle, a report with a report",
            where=one,
            hint="Give two bundles, or the folders of the two runs, which hold report.json.",
        )
    return folders[0], folders[1]


def _refuse_terms(options: _Options) -> None:
    from optimizer.errors import UsageError

    for name, value in (("--threads", options["threads"]), ("--seconds", options["seconds"])):
        if value is not None:
            hint = "Leave it out: the latencies of a report were measured when it was built."
            raise UsageError("is for two bundles, which are measured again", where=name, hint=hint)


def _place(given: str) -> Path:
    """Return the file of a report, or the folder that holds it."""
    from optimizer.paths import find_run

    path = Path(given)
    return path if path.is_file() else find_run(given)


def _gate(file: Path | None) -> Gate | None:
    if file is None:
        return None
    from optimizer.recipe.loader import load_gate

    return load_gate(file)


def _compare_reports(places: tuple[Path, Path], gate: Gate | None) -> Comparison:
    from optimizer.compare.reports import compare

    (before, before_folder), (after, after_folder) = map(_read, places)
    return compare(before, after, gate, baseline_folder=before_folder, candidate_folder=after_folder)


def _compare_bundles(folders: tuple[Path, Path], gate: Gate | None, options: _Options) -> Comparison:
    from optimizer.cli.progress import PlainProgress  # no bars: a target host may have no rich
    from optimizer.compare.bundles import compare_bundles
    from optimizer.compare.interleaved import SECONDS, Terms

    progress = PlainProgress()
    terms = Terms(options["threads"] or 0, options["seconds"] or SECONDS, progress.advance)
    return compare_bundles(*folders, gate, terms)


def _read(place: Path) -> tuple[Report, Path]:
    from optimizer.report.read import read_report

    return read_report(place), place if place.is_dir() else place.parent


def _write(path: Path, text: str) -> None:
    from optimizer.disk import write_text
    from optimizer.errors import UsageError

    try:
        write_text(path, text)
    except OSError as error:
        hint = "Give a file in a folder that exists and can be written."
        raise UsageError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
