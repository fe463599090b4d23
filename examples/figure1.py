"""Figure 1 of the paper, redrawn: five input channels, ten output channels, the depth multiplier beside sparse connections,
and beside those, sparse connections whose inputs are shared by blocks of two outputs.

python examples/figure1.py docs/figures/connections.svg
"""

from __future__ import annotations

import sys

import matplotlib.pyplot as plt
import numpy as np

import gossamer as gs

plt.rcParams["svg.hashsalt"] = "gossamer"

thin = np.zeros((10, 5), dtype=bool)
thin[:6, :3] = True  # the depth multiplier: every living channel listens to every living channel
sparse = gs.Connectivity.random(5, 10, thin.mean(), seed=4).mask()  # as many connections, no dead channel
shared = gs.Connectivity.random(5, 10, thin.mean(), seed=4, block=2).mask()  # the same, in blocks of two outputs

titles = ("depth multiplier", "sparse connections", "shared by blocks of 2")
figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.6), constrained_layout=True)
for axis, mask, title in zip(axes, (thin, sparse, shared), titles, strict=True):
    axis.pcolormesh(mask.T, cmap="cividis", edgecolors="white", linewidth=1.5, vmin=-0.2, vmax=1.1)
    axis.set(title=f"{title}: {mask.sum()} kernels", xlabel="output channel", ylabel="input channel", aspect="equal")
    axis.set_xticks(np.arange(10) + 0.5, range(10))
    axis.set_yticks(np.arange(5) + 0.5, range(5))
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
figure.savefig(sys.argv[1], metadata={"Date": None})
