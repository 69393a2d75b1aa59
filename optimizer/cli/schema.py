"""`optimize schema`: the JSON Schema of the recipe, or of the report."""

from __future__ import annotations

import json

import click


@click.command("schema")
@click.option("--report", "of_report", is_flag=True, help="The schema of report.json instead.")
def command(of_report: bool) -> None:
    """Print the JSON Schema of the recipe: an editor completes and checks a recipe with it."""
    from optimizer.recipe.schema import recipe_schema
    from optimizer.results import Report

    schema = Report.model_json_schema() if of_report else recipe_schema()
    click.echo(json.dumps(schema, indent=2))
