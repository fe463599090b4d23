"""Which input channels each output channel listens to: the value (`connectivity`), and how random ones are drawn.

A pattern is one file here (`balanced`, `uniform`) and one line of the table `PATTERNS`.
"""

from gossamer.connectivity.connectivity import PATTERNS, Connectivity, best_block, check_density

__all__ = ["PATTERNS", "Connectivity", "best_block", "check_density"]
