"""`optimize check DIR`: is the seal whole, will the bundle load here, do its golden outputs come out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from optimizer.errors import StageError


def check_bundle(folder: Path, echo: Callable[[str], None]) -> None:
    """Check a bundle, one line a question, through `echo`.

    Raises: UsageError where there is no bundle, StageError where it is damaged or its golden outputs do not come out,
    MissingToolError where this machine cannot load it.
    """
    from optimizer.runtime import load
    from optimizer.runtime.golden import failed
    from optimizer.runtime.passport import read_passport, verify_files

    passport = read_passport(folder)
    verify_files(folder, passport)
    size = sum(file["bytes"] for file in passport["files"].values())
    echo(f"bundle   {passport['name']} {passport['candidate']}")
    echo(f"seal     whole: {len(passport['files'])} files, {size:,} bytes")
    with load(folder, verify=False) as deployment:
        echo(f"loads    on {passport['runs_on']['device']} with {_versions(passport)}")
        differences = deployment.check_golden()
        for difference in differences:
            verdict = "comes out" if difference.within else "DIFFERS"
            echo(f"golden   '{difference.output}' {verdict}: {difference.samples} samples, {difference}")
    unlike = failed(differences)
    if unlike:
        raise StageError(
            "the golden outputs do not come out: " + "; ".join(unlike),
            where=str(folder),
            hint=f"this machine computes something else than {_versions(passport)} did: compare the versions",
        )


def _versions(passport: dict[str, Any]) -> str:
    runs_on = passport["runs_on"]
    packages = ", ".join(f"{name} {version}" for name, version in runs_on["packages"].items())
    return f"{runs_on['runtime']} (built with {packages})" if packages else str(runs_on["runtime"])
