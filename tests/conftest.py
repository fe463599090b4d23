"""What all tests share: hypothesis without deadlines (machines are slow and noisy), the same examples and seeds each time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

settings.register_profile("gossamer", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("gossamer")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
