"""The command group. Commands are loaded when they are called, so that `--help` stays quick."""

from __future__ import annotations

import importlib

import click

from optimizer import __version__

# command -> (module below optimizer.cli, the line that --help shows); a test holds it against the commands themselves
COMMANDS: dict[str, tuple[str, str]] = {
    "build": ("build", "Plan, build or reuse, measure, compare and report."),
    "plan": ("plan", "Show the stages, what would be reused, what rebuilt, and why."),
    "measure": ("measure", "Measure a run's stored artifacts on this machine."),
    "check": ("check", "Check a recipe or a bundle."),
    "compare": ("compare", "Judge one report or bundle against another; for CI."),
    "report": ("report", "Render a stored run again."),
    "inspect": ("inspect", "Show what is in an ONNX file, an engine, a calibration table or its diagnosis."),
    "bundle": ("bundle", "Write a folder to drop into deployment."),
    "run": ("run", "Infer once with a bundle, without torch."),
    "doctor": ("doctor", "Say what this machine can build and run."),
    "init": ("init", "Write a commented starter recipe."),
    "stages": ("stages", "List the stages, variants, targets and metrics."),
    "schema": ("schema", "Print the JSON Schema of the recipe or the report."),
    "cache": ("cache", "List, prune or verify the artifact store."),
}


class Commands(click.Group):
    """A group whose commands are imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the command that was called."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(f"optimizer.cli.{COMMANDS[name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Refuse an unknown command with the nearest ones."""
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise click.UsageError(f"No such command '{args[0]}'.{hint} Known: {', '.join(COMMANDS)}.", ctx)
        return super().resolve_command(ctx, args)


@click.group("optimize", cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="optimize")
def cli() -> None:
    """Take a trained PyTorch checkpoint to a measured, proven TensorRT or ONNX deployment."""
