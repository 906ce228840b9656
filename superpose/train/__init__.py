"""The one optimiser stack: it knows pytrees and objectives, and no model."""
