"""Constrained decoding: a JSON Schema or a pattern as a template of literals and slots, and the
tokens that each slot admits.

From the bottom: `language.py`, `regex.py`, `numbers.py`, `formats.py` and `byte_dfa.py` are
regular languages; `token_dfa.py` has tokens read them and `slots.py` decides tokens together;
`normalize.py` and `compile.py` make a tree (`structure.py`) of a JSON Schema, `template.py` a
canvas of the tree, `compiled.py` judges what comes out, `structure_search.py` decides structure and
`inputs.py` takes what callers give. Nothing here knows a model.
"""
