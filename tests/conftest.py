"""What all tests share: hypothesis without deadlines (the machines are slow and noisy), the same examples every time."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("gossamer", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("gossamer")
