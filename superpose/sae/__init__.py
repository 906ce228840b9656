"""Sparse autoencoders: models, activations, objectives, scores with and without a known truth, files."""
