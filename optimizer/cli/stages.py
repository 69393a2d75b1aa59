"""`optimize stages`: what exists."""

from __future__ import annotations

from collections.abc import Iterable

import click


@click.command("stages")
def command() -> None:
    """List the stages with their options, and the variants, targets and metrics a recipe can name."""
    from optimizer.metrics import METRICS
    from optimizer.stages import DIALECTS, STAGES, TARGETS, VARIANTS

    flows = [f"{', '.join(stage.consumes.values())} -> {stage.produces}" for stage in STAGES]
    firsts = [(stage.__doc__ or "").strip().splitlines()[0] for stage in STAGES]
    _show(zip([stage.name for stage in STAGES], flows, firsts, strict=True))
    click.echo("\nvariants")
    _show(((f"  {name}", _chain(stages)) for name, stages in VARIANTS.items()))
    click.echo("\ntargets")
    takes = {name: f"Q/DQ for {DIALECTS[name]}" if name in DIALECTS else _OF_MODULE for name in TARGETS}
    _show((f"  {name}", f"{_chain(stages)}; {takes[name]}") for name, stages in TARGETS.items())
    click.echo("\nmetrics")
    _show((f"  {metric.name}", f"{metric.better} is better") for metric in METRICS)


_OF_MODULE = "fp32 alone, from the PyTorch module"


def _show(rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows as columns, each as wide as its longest entry."""
    shown = list(rows)
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _chain(stages: tuple[type, ...]) -> str:
    names = [s.name for s in stages]  # type: ignore[attr-defined]
    return " -> ".join(names) or "no further stage"
