"""Constrained decoding: token-level DFAs, slots, templates, and the search for a structure.

The grammar is that of a JSON Schema or a template, as literals and regular languages.
"""
