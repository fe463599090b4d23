"""Sweeps over width and density, what is measured in them, and what is drawn from them."""
