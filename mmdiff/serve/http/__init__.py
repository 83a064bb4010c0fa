"""The HTTP server: routes, middleware, limits, responses."""
