"""Answers that can be parsed: schemas as trees of literals and slots, and what may stand in the
slots.

From the bottom: `language.py`, `regex.py`, `numbers.py`, `formats.py` and `byte_dfa.py` are
regular languages; `token_dfa.py` has tokens read them and `slots.py` decides tokens together;
`normalize.py` and `compile.py` make a `structure.py` of a JSON Schema, `template.py` a canvas of the tree,
`scaffold.py` judges what comes out, `structure_search.py` decides structure and `inputs.py` takes what people
give. Nothing here knows a model.
"""
