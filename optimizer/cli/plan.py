"""`optimize plan`: what a build would do, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from optimizer.cli.options import device_option, settings_option
from optimizer.recipe.wording import check_is_there

if TYPE_CHECKING:
    from optimizer.pipeline.plan import PlannedStep


@click.command("plan")
@click.argument("recipe", type=click.Path(path_type=Path))
@settings_option
@click.option("--only", multiple=True, metavar="VARIANT", help="Only this variant; may be repeated.")
@device_option
def command(recipe: Path, settings: dict[str, str], only: tuple[str, ...], device: str) -> None:
    """Show the stages of RECIPE in order, key, reuse or build, and why. Builds nothing."""
    check_is_there(recipe)
    from optimizer.paths import home
    from optimizer.pipeline.plan import plan
    from optimizer.recipe.loader import load_recipe
    from optimizer.recipe.steps import check_only
    from optimizer.store import Store

    loaded = load_recipe(recipe, settings)
    check_only(loaded, only)
    place = home()
    store = Store(place / "store", lambda text: click.echo(text, err=True))
    result = plan(loaded, store, place / "runs" / loaded.name, only=only, device=device)
    width = max(len(p.step.id) for p in result.steps)
    for planned in result.steps:
        key = (planned.key or "")[:8].ljust(8)
        why = f"made by {planned.shared}" if _what(planned) == "share" else planned.why
        click.echo(f"{planned.step.id:<{width}}  {_what(planned)}  {key}  {why}".rstrip())
    said = [_what(planned) for planned in result.steps]
    shared = f", {said.count('share')} to share" if "share" in said else ""
    click.echo(f"{len(said)} stages: {said.count('reuse')} to reuse, {said.count('build')} to build{shared}")


def _what(planned: PlannedStep) -> str:
    """Return what a build does for a step: reuse what is stored, share what another step makes first, or build."""
    return "reuse" if planned.reusable else "share" if planned.shared else "build"
