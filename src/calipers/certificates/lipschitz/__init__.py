"""Lipschitz constants: upper bounds on how far a network can move its answer, and radii from them."""
