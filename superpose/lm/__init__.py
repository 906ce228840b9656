"""Language models: one decoder for every family, their files, their texts, and named places inside them."""
