"""The `gossamer` command.

Exit codes: 0 done; 1 a run failed; 2 the request was wrong (one sentence on stderr); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

try:
    import tyro
except ModuleNotFoundError:
    sys.exit("gossamer: the command line needs more packages: pip install 'gossamer[train,report]'")

from gossamer.cli.experiments import Demo, Grow, Paper, Report, Sweep
from gossamer.cli.networks import Bench, Count, Info, Symmetry
from gossamer.cli.programs import Compile
from gossamer.cli.training import Evaluate, Predict, Train

Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Evaluate, tyro.conf.subcommand("evaluate")]
    | Annotated[Predict, tyro.conf.subcommand("predict")]
    | Annotated[Sweep, tyro.conf.subcommand("sweep")]
    | Annotated[Grow, tyro.conf.subcommand("grow")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Paper, tyro.conf.subcommand("paper")]
    | Annotated[Count, tyro.conf.subcommand("count")]
    | Annotated[Symmetry, tyro.conf.subcommand("symmetry")]
    | Annotated[Bench, tyro.conf.subcommand("bench")]
    | Annotated[Compile, tyro.conf.subcommand("compile")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)
DESCRIPTION = "Convolutional networks with sparse connections between channels: train, compare, count, measure."
MARKERS = (tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName)


def parse(arguments: Sequence[str] | None = None) -> Command:
    """The command that the arguments ask for. A wrong one ends the program with one sentence and exit code 2."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            command: Command = tyro.cli(
                Command, prog="gossamer", description=DESCRIPTION, args=arguments, config=MARKERS
            )
    except SystemExit as end:
        if end.code == 2:
            print(f"gossamer: {_sentence(complaint.getvalue())}", file=sys.stderr)
        raise
    except ValueError as error:  # from a check of the options' own dataclass
        print(f"gossamer: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    return command


def _sentence(box: str) -> str:
    """One line for tyro's boxed message: what is wrong, the nearest option if it knows one, and where help is."""
    text = [re.sub(r"^[│╭╰ ]+|[│╮╯ ]+$", "", line) for line in box.splitlines()[1:-1]]
    wrong, *more = re.split(r"\n─+\n", "\n".join(text))
    near = next((re.search(r"--\S+", part) for part in more if part.startswith("Perhaps")), None)
    meant = f"; perhaps {near[0]} was meant" if near else ""
    help_is = more[-1].split(maxsplit=4)[-1] if more else "gossamer --help"
    return f"{' '.join(wrong.split()).rstrip('.')}{meant}; see {help_is}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code. With GOSSAMER_TRACEBACK set, errors show where they come from."""
    command: Command | None = None
    try:
        command = parse(arguments)
        return command.run()
    except KeyboardInterrupt as stop:
        resume = str(stop) or getattr(command, "on_interrupt", lambda: "")()
        print(f"\ngossamer: stopped{'; ' + resume if resume else ''}", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, as in `gossamer paper | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("GOSSAMER_TRACEBACK"):
            raise
        print(f"gossamer: {_told(error)}", file=sys.stderr)
        return 2 if isinstance(error, _WRONG) else 1


_WRONG = (ValueError, OSError, ImportError)
"""What a wrong request raises, in one sentence; a run that diverged (FloatingPointError) says as much."""


def _told(error: Exception) -> str:
    """An error in one line. One that nobody foresaw says what it is, and how to see where it comes from."""
    text = " ".join(str(error).split())
    if isinstance(error, (*_WRONG, FloatingPointError)) and text:
        return text
    if isinstance(error, MemoryError):
        return f"there is not enough memory for this{': ' + text if text else ''}"
    name = type(error).__name__
    return f"this should not have happened: {name}{': ' + text if text else ''} (GOSSAMER_TRACEBACK=1 shows where)"
