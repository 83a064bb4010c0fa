"""The pipeline over HTTP: an API server in front of an engine process.

The server process parses, limits and streams, and never imports PyTorch; the engine process
computes; sandboxed workers decode images and audio. Between them go JSON and raw bytes, never a
pickle.
"""
