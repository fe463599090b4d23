"""The `gossamer` command: what all commands share (`entry`, `options`), and the commands by subject."""

from gossamer.cli.entry import main

__all__ = ["main"]
