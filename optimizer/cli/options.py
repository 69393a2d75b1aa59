"""Options that several commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _parse_settings(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    settings: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name.isidentifier():
            raise click.BadParameter(f"'{value}' is not NAME=VALUE", ctx, param)
        settings[name] = text
    return settings


def _parse_device(ctx: click.Context, param: click.Parameter, value: str) -> str:
    if not re.fullmatch(r"cpu|cuda:\d+", value):
        raise click.BadParameter(f"'{value}' is not a device (allowed: cpu, cuda:0, cuda:1, ...)", ctx, param)
    return value


def settings_option(function: F) -> F:
    """`--set NAME=VALUE`, as often as wanted."""
    option = click.option(
        "--set",
        "settings",
        multiple=True,
        metavar="NAME=VALUE",
        callback=_parse_settings,
        help="Fill ${NAME} in the recipe; the environment variable OPTIMIZE_NAME does the same.",
    )
    return option(function)


def device_option(function: F) -> F:
    """`--device cpu|cuda:N`."""
    option = click.option(
        "--device",
        default="cpu",
        show_default=True,
        metavar="cpu|cuda:N",
        callback=_parse_device,
        help="Where the baseline and every candidate execute.",
    )
    return option(function)


def remeasure_option(function: F) -> F:
    """`--remeasure`."""
    return click.option("--remeasure", is_flag=True, help="Measure again, even if nothing changed.")(function)


def json_option(function: F) -> F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON on stdout and nothing else.")(function)
