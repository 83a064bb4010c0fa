"""A bounded cache that threads share: the least recently used entry is dropped first."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from typing import Generic, TypeVar

from cachetools import LRUCache

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruCache(Generic[K, V]):
    """Values by their keys, at most `most` of them."""

    def __init__(self, most: int) -> None:
        self._values: LRUCache[K, V] = LRUCache(most)
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """What was put there, if it was not forgotten."""
        with self._lock:
            return self._values.get(key)

    def put(self, key: K, value: V) -> V:
        """Remember the value, and give it back; the first one stays, where two threads made the
        same."""
        with self._lock:
            return self._values.setdefault(key, value)
