"""How the command line ends when it is interrupted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_an_interrupt_in_compiled_text_still_exits_130(tmp_path: Path) -> None:
    """As when Ctrl-C strikes while an import makes a dataclass; only `python -m` tells the difference."""
    (tmp_path / "struck.py").write_text(
        "import sys; from optimizer import cli\n"
        "cli.cli.main = lambda *_, **__: exec('raise KeyboardInterrupt')\n"
        "sys.exit(cli.main(['cache']))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    command = [sys.executable, "-m", "struck"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr.startswith("interrupted;")
