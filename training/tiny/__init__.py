"""Data and tokenizer of the model `tiny`: scenes, questions, sentences, voices."""
