"""The engine process: continuous batching of denoising steps, and its client."""
