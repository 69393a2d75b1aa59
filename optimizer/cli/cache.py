"""`optimize cache`: the artifact store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from optimizer.errors import StageError

if TYPE_CHECKING:
    from optimizer.store import Store


def _store() -> Store:
    from optimizer.paths import home
    from optimizer.store import Store

    return Store(home() / "store", lambda text: click.echo(text, err=True))


@click.group("cache")
def command() -> None:
    """List, prune or verify the artifact store."""


@command.command("ls")
def ls() -> None:
    """List what is stored: key, stage, size, last use."""
    from optimizer.disk import folder_size
    from optimizer.store import RECORD, read_record

    store = _store()
    total = count = damaged = 0
    for folder in store.entries():
        try:
            stage, used = read_record(folder)[0].stage, (folder / RECORD).stat().st_mtime
        except (FileNotFoundError, ValueError):
            if not folder.is_dir():  # another process removed it just now
                continue
            stage, used, damaged = "(damaged)", folder.stat().st_mtime, damaged + 1
        size = folder_size(folder)
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(used))
        click.echo(f"{folder.name[:8]}  {stage:<10} {size / 1e6:10.2f} MB  used {when}")
        total, count = total + size, count + 1
    click.echo(f"{count} entries, {total / 1e6:.2f} MB in {store.root}")
    if damaged:
        click.echo(f"{damaged} damaged: optimize cache verify drops them", err=True)


@command.command("prune")
@click.option("--unused-days", default=30.0, show_default=True, help="Drop what was not used for so many days.")
def prune(unused_days: float) -> None:
    """Drop entries not used for a while, and what interrupted builds left."""
    count, size = _store().prune(unused_days)
    click.echo(f"dropped {count} entries, {size / 1e6:.2f} MB")


@command.command("verify")
def verify() -> None:
    """Read every entry and every remembered data file again; drop what is damaged."""
    store = _store()
    count = sum(1 for _ in store.entries())
    problems = store.verify()
    for problem in problems:
        click.echo(problem)
    if problems:
        raise StageError(f"{len(problems)} of {count} entries or files were damaged and dropped", where=str(store.root))
    click.echo(f"{count} entries intact")
