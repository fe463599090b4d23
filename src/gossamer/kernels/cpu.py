"""The CPU's backend for users: which path its sparse convolutions take, and what the native library is."""

from gossamer.kernels.native.library import info
from gossamer.kernels.policy import choose_path, use_path

__all__ = ["choose_path", "info", "use_path"]
