"""A whole network as one fused native program: captured, simplified, laid out in memory, written down."""

from gossamer.engine.program import Program, compile

__all__ = ["Program", "compile"]
