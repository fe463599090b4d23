"""A whole network as one fused native program."""
