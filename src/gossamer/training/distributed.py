"""One process or several under torchrun: who takes which images, and what is summed over all of them.

Every process builds the same network from the same seed, and DistributedDataParallel copies process 0's weights and
patterns to the others when it wraps the model. Batch normalisation uses each process's own images; its running
statistics are process 0's.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gossamer.data.split import Share


@dataclass(frozen=True)
class Team:
    """The processes that train together (often one), and this one's place and device."""

    share: Share
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and the progress."""
        return self.share.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """A module that averages gradients over the processes. Wrap again after parameters changed their sizes."""
        if self.share.world == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices)

    def sum(self, *values: float) -> list[float]:
        """Each value added up over the processes."""
        if self.share.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def share_buffers(self, model: nn.Module) -> None:
        """Give every process the running statistics of process 0."""
        if self.share.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.share.world > 1:
            dist.barrier()

    @contextmanager
    def leader_first(self) -> Iterator[None]:
        """The leading process goes through the block before the others begin it."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()


def join(device: str = "auto") -> Team:
    """The team this process belongs to: torchrun's, or itself alone. `device` is "auto", "cpu" or "cuda".

    The processes meet once and stay together for all runs to come, until they end.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but PyTorch finds no GPU here; use cpu or auto")
    kind = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    if "RANK" not in os.environ and not dist.is_initialized():
        return Team(Share(), torch.device(kind))
    place = torch.device(kind, int(os.environ.get("LOCAL_RANK", 0))) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return Team(Share(dist.get_rank(), dist.get_world_size()), place)
