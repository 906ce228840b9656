"""superpose: toy models of superposition, and the sparse autoencoders that take the features out again."""
