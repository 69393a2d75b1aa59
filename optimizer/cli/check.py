"""`optimize check`: a recipe or a bundle."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import settings_option
from optimizer.errors import MissingToolError
from optimizer.recipe.wording import check_is_there


@click.command("check")
@click.argument("path", metavar="RECIPE|BUNDLE", type=click.Path(path_type=Path))
@settings_option
def command(path: Path, settings: dict[str, str]) -> None:
    """Report every error of a RECIPE at once; or tell whether a BUNDLE is whole, loads and computes right."""
    check_is_there(path)
    if path.is_dir():
        from optimizer.cli.check_bundle import check_bundle

        check_bundle(path, click.echo)
        return
    from optimizer.environment import check_threads
    from optimizer.graph.builder_options import without_gpu
    from optimizer.recipe.loader import load_recipe
    from optimizer.recipe.steps import derive
    from optimizer.runtime import cuda

    recipe = load_recipe(path, settings, to_measure=False)
    try:
        derivation, notes = derive(recipe), []
    except MissingToolError as error:
        derivation, notes = derive(recipe, here=False), [f"{error.where}: {error.what}: plan and build refuse it here"]
    candidates = ", ".join(c.name for c in derivation.candidates)
    click.echo(f"{path}: sound. {len(derivation.steps)} stages, {len(derivation.candidates)} candidates: {candidates}")
    for note in notes:
        click.echo(f"note: {note}")
    absent = cuda.missing() if "tensorrt" in recipe.targets else None
    if absent:
        first, *rest = without_gpu(absent).splitlines()
        click.echo("\n  ".join([f"note: targets.tensorrt: {first}", *rest]))
    try:
        check_threads(recipe.measure.threads)
    except MissingToolError as error:
        click.echo(f"note: {error.where}: {error.what}: plan, build and measure refuse it here")
