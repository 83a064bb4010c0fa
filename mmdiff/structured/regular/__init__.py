"""Regular languages: expressions, derivatives, byte-level DFAs."""
