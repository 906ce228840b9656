"""Where language models and SAEs meet: activations harvested, kept, read back; what an SAE costs the model."""
