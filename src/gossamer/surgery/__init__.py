"""From one network to another: sparser, thinner, denser, or with its connections elsewhere."""

from gossamer.surgery.gradients import DenseGradients
from gossamer.surgery.grow import densify, rewire
from gossamer.surgery.repair import repair
from gossamer.surgery.schedule import Doubling, Growth, Ramp
from gossamer.surgery.sparsify import sparsify
from gossamer.surgery.thin import thin

__all__ = ["DenseGradients", "Doubling", "Growth", "Ramp", "densify", "repair", "rewire", "sparsify", "thin"]
