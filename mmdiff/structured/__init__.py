"""Answers that can be parsed: schemas as trees of literals and slots, and what may stand in the
slots.

From the bottom: `language.py`, `pattern.py`, `numbers.py`, `formats.py` and `automaton.py` are
regular languages; `vocabulary.py` has tokens read them and `slots.py` decides tokens together;
`schema.py` and `lower.py` make a `tree.py` of a JSON Schema, `layout.py` a canvas of the tree,
`scaffold.py` judges what comes out, `plan.py` decides structure and `source.py` takes what people
give. Nothing here knows a model.
"""
