"""Sampling of masked diffusion: sequences, commit rules, KV caches, the model runner."""
