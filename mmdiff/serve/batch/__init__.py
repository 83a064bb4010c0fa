"""Offline jobs over files of requests."""
