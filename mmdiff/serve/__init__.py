"""The pipeline for programs: over HTTP, and over files of requests."""
