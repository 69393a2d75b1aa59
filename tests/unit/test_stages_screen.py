"""`optimize stages`: columns that the longest name does not break."""

from __future__ import annotations

from click.testing import CliRunner

from optimizer.cli.stages import command
from optimizer.stages import STAGES, TARGETS, VARIANTS


def test_columns_begin_in_one_place_however_long_a_name_is() -> None:
    result = CliRunner().invoke(command, [], catch_exceptions=False)
    stages, variants, targets, _ = (part.splitlines() for part in result.output.split("\n\n"))
    firsts = [str(stage.__doc__).strip().splitlines()[0] for stage in STAGES]
    assert len({line.index(first) for line, first in zip(stages, firsts, strict=True)}) == 1
    for lines, names in ((variants[1:], VARIANTS), (targets[1:], TARGETS)):
        rest = [
            len(line) - len(line.removeprefix(f"  {name}").lstrip()) for line, name in zip(lines, names, strict=True)
        ]
        assert len(set(rest)) == 1
