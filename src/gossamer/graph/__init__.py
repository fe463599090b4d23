"""What a model computes (`tracing`), which channel feeds which (`channels`), what is dead (`paths`), what it costs
(`accounting`).
"""

from gossamer.graph.accounting import Cost, count
from gossamer.graph.channels import ChannelGraph
from gossamer.graph.paths import dead_channels

__all__ = ["ChannelGraph", "Cost", "count", "dead_channels"]
