"""Sampling of masked diffusion: sequences, commit rules, KV caches, the model runner.

What others call a logits processor is a function in sampler.py (banned ids, top-k) or a constraint
of `mmdiff.structured`.
"""
