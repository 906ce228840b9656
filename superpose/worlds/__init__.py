"""Worlds: the data distributions a toy model is trained on, how they are sampled and how expectations are taken."""
