"""Constrained decoding: token-level DFAs, slots, templates, and the search for a structure."""
