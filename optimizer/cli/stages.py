"""`optimize stages`: what exists."""

from __future__ import annotations

import click


@click.command("stages")
def command() -> None:
    """List the stages with their options, and the variants, targets and metrics a recipe can name."""
    from optimizer.metrics import METRICS
    from optimizer.stages import DIALECTS, STAGES, TARGETS, VARIANTS

    for stage in STAGES:
        flow = f"{', '.join(stage.consumes.values())} -> {stage.produces}"
        first = (stage.__doc__ or "").strip().splitlines()[0]
        click.echo(f"{stage.name:<10} {flow:<32} {first}")
    click.echo("\nvariants")
    for name, stages in VARIANTS.items():
        click.echo(f"  {name:<14} {_chain(stages)}")
    click.echo("\ntargets")
    for name, stages in TARGETS.items():
        takes = f"Q/DQ for {DIALECTS[name]}" if name in DIALECTS else "fp32 alone, from the PyTorch module"
        click.echo(f"  {name:<20} {_chain(stages)}; {takes}")
    click.echo("\nmetrics")
    for metric in METRICS:
        click.echo(f"  {metric.name:<20} {metric.better} is better")


def _chain(stages: tuple[type, ...]) -> str:
    names = [s.name for s in stages]  # type: ignore[attr-defined]
    return " -> ".join(names) or "no further stage"
