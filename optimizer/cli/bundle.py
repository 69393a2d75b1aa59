"""`optimize bundle`: a folder to drop into deployment."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("bundle")
@click.argument("run")
@click.option("--variant", required=True, metavar="NAME", help="The variant to deploy, e.g. int8.")
@click.option("--target", metavar="NAME", help="Its runtime; default: the recommended one, else the only one.")
@click.option(
    "-o",
    "--out",
    "destination",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The folder to write; default: NAME-VARIANT-TARGET here.",
)
@click.option("--triton", is_flag=True, help="Add a model repository for NVIDIA Triton Inference Server: triton/.")
def command(run: str, variant: str, target: str | None, destination: Path | None, triton: bool) -> None:
    """Write a folder to drop into deployment.

    RUN is the folder that holds report.json, or a run's number.
    """
    from optimizer.paths import find_run

    folder = find_run(run)
    from optimizer.bundle.choose import choose_candidate  # what a bare install lacks is said second
    from optimizer.bundle.write import read_report, write_bundle

    report = read_report(folder)
    name = choose_candidate(report, variant, target)
    destination = destination or Path(f"{report.recipe.name}-{name.replace('@', '-')}")
    written = write_bundle(folder, name, destination, triton=triton)
    if triton:
        from optimizer.runtime.bundle import PREPROCESSING
        from optimizer.runtime.passport import read_passport

        click.echo(f"triton: {read_passport(written)['triton']['rehearsal']}", err=True)
        preprocessed = (written / PREPROCESSING).is_file()
        what = "preprocessing is the client's; see" if preprocessed else "what it does otherwise than this bundle:"
        click.echo(f"triton: {what} {written / 'triton' / 'README.md'}", err=True)
    click.echo(written)
