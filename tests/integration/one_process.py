"""Several commands in one process and one Ray, which saves their starts."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

# Each command prints its result as a line of JSON. The first that fails ends the process with its exit code.
_SCRIPT = """
import json, sys
from medfocus.cluster.connect import connected
from medfocus.pipeline.cli import main
with connected(None, None):
    for arguments in json.loads(sys.argv[1]):
        if code := main([*arguments, "--json"]):
            sys.exit(code)
"""


def run_commands(commands: Sequence[Sequence[str]], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run commands one after the other, each as the console script does.

    Args:
        commands: name and arguments of each command, without ``--json``.
        folder: working folder; it is not on the path of Python.
    """
    call = [sys.executable, "-P", "-c", _SCRIPT, json.dumps(commands)]
    return subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
