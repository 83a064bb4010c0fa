"""The pipeline over HTTP: what OpenAI's and moondream's clients ask for, answered by an engine in a
process of its own.

The server's process parses, admits and streams, and never imports PyTorch; the engine computes; a
third process, with limits, opens pictures and sounds. Between them go JSON and raw bytes, never a
pickle.
"""
