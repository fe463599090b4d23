"""Run every fenced `python` and `console` block of the README, as a reader would, in an empty folder.

A line `$ command` of a console block is run in a shell; what follows it is its output and is not compared. Blocks behind
`<!-- not run: reason -->` are passed over.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_BLOCK = re.compile(r"(<!-- not run: [^>]+ -->\n)?```(python|console)\n(.*?)```", re.DOTALL)


def main() -> int:
    environment = {**os.environ, "PATH": f"{ROOT / '.venv' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    ran = 0
    with tempfile.TemporaryDirectory() as folder:
        for skipped, language, text in _BLOCK.findall((ROOT / "README.md").read_text()):
            if skipped:
                continue
            commands = (
                [["python", "-c", text]]
                if language == "python"
                else [["bash", "-c", line[2:]] for line in text.splitlines() if line.startswith("$ ")]
            )
            for command in commands:
                print(f"+ {command[-1].strip().splitlines()[0]}", flush=True)
                subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
                ran += 1
    print(f"{ran} blocks and commands of the README ran")
    return 0 if ran else 1


if __name__ == "__main__":
    sys.exit(main())
