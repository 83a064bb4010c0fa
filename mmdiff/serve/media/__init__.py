"""Media of requests: parsed, fetched, and decoded in a sandbox."""
