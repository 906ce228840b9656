"""Toy models of superposition: geometry of the learned directions and closed-form theory."""
