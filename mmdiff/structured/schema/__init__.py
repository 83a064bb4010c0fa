"""JSON Schema as a tree of literals, slots and structural decisions."""
