"""Prefix caching: encoded images and audio, and keys and values of prompts, which requests share,
by what they were made from.

Keys are hashes of contents (pixels or spectrograms, and token ids), so an image is known again
whatever its file is called. A block's key holds all blocks before it, as its keys and values do.
All keys begin with the version of the weights, and what other weights made is dropped. The cache
keeps within a number of bytes and drops what was not used for longest.

Shapes: N prompt positions.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from mmdiff.modeling.multimodal import Encoder
from mmdiff.modeling.weights_version import WeightsVersion

Key = bytes


class PrefixCache:
    """Tensors by key, the least recently used dropped first; one too large for it is not kept."""

    def __init__(self, max_bytes: int) -> None:
        self._kept: LRUCache[Key, Tensor] = LRUCache(
            max_bytes, getsizeof=lambda tensor: tensor.nbytes
        )
        self._weights, self._version = WeightsVersion(), 0
        self.hits = self.misses = 0

    def version(self, model: nn.Module) -> Key:
        """What the keys begin with of all that this model makes now; what it made with other
        weights is dropped."""
        if not self._kept.maxsize:
            return b""
        version = self._weights.of(model)
        if version != self._version:
            self._version = version
            self._kept.clear()
        return version.to_bytes(8, "little")

    def clear(self) -> None:
        """Drop everything."""
        self._kept.clear()
        self._weights.forget()

    def __reduce__(self) -> tuple[type[PrefixCache], tuple[int]]:
        """A copy in another process starts empty."""
        return PrefixCache, (int(self._kept.maxsize),)

    def get(self, key: Key) -> Tensor | None:
        found: Tensor | None = self._kept.get(key)
        self.hits += found is not None
        self.misses += found is None
        return found

    def put(self, key: Key, tensor: Tensor) -> None:
        """Keep a copy: a view would hold on to the whole tensor that it is part of."""
        if tensor.nbytes <= self._kept.maxsize:
            self._kept[key] = tensor.clone(memory_format=torch.contiguous_format)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    @property
    def num_bytes(self) -> int:
        return int(self._kept.currsize)

    def __len__(self) -> int:
        return len(self._kept)


def digest(*parts: bytes | Tensor) -> Key:
    """A hash of contents, numbers' types and shapes."""
    made = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            made.update(f"{part.dtype}{tuple(part.shape)}".encode())
            made.update(part.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        else:
            made.update(len(part).to_bytes(8, "little") + part)
    return made.digest()


class CachingEncoder:
    """An encoder that encodes only what the cache does not hold, and notes what went through it."""

    def __init__(self, encoder: Encoder, store: PrefixCache, version: Key) -> None:
        self.encoder, self.store, self.version = encoder, store, version
        # For each position of an image's or audio's embeddings, the key of what stands there.
        self.image_keys: list[Key] = []
        self.audio_keys: list[Key] = []

    def encode_images(
        self, pixel_values: Tensor, image_sizes: Tensor, image_grids: Tensor
    ) -> list[Tensor]:
        """As `MMDiffModel.encode_images`."""
        views = pixel_values.split((1 + image_grids.prod(dim=1)).tolist())
        inputs = zip(views, image_sizes, image_grids, strict=True)
        keys = [digest(self.version, b"picture", *each) for each in inputs]

        def encode(new: list[int]) -> list[Tensor]:
            chosen = torch.cat([views[number] for number in new])
            return self.encoder.encode_images(chosen, image_sizes[new], image_grids[new])

        return self._encode(keys, encode, self.image_keys)

    def encode_audio(self, input_features: Tensor, feature_lengths: Tensor) -> list[Tensor]:
        """As `MMDiffModel.encode_audio`."""
        inputs = zip(input_features, feature_lengths.tolist(), strict=True)
        keys = [digest(self.version, b"sound", mels[:, :length]) for mels, length in inputs]

        def encode(new: list[int]) -> list[Tensor]:
            return self.encoder.encode_audio(input_features[new], feature_lengths[new])

        return self._encode(keys, encode, self.audio_keys)

    def _encode(
        self, keys: list[Key], encode: Callable[[list[int]], list[Tensor]], noted: list[Key]
    ) -> list[Tensor]:
        known = {key: self.store.get(key) for key in dict.fromkeys(keys)}
        # The first of each, so that the same image twice is encoded once.
        new = [keys.index(key) for key, embeds in known.items() if embeds is None]
        for number, embeds in zip(new, encode(new) if new else [], strict=True):
            known[keys[number]] = embeds
            self.store.put(keys[number], embeds)
        made = []
        for key in keys:
            found = known[key]
            assert found is not None
            made.append(found)
            noted += [key] * len(found)
        return made


@dataclass(frozen=True)
class PrefixBlock:
    """Columns of a prompt, counted without padding, and the key of all up to its end."""

    first: int
    end: int
    key: Key


def prompt_blocks(
    ids_N: Tensor, segments_N: Tensor, media: Mapping[int | None, Iterator[Key]], version: Key
) -> list[PrefixBlock]:
    """The segments of a prompt.

    Args:
        media: for each placeholder's id, the keys of what stands at such positions, in reading
            order; those of this prompt are taken.
        version: of the weights, with which every key begins.
    """
    key, first, blocks = version, 0, list[PrefixBlock]()
    lengths = torch.unique_consecutive(segments_N, return_counts=True)[1]
    for part_N in ids_N.split(lengths.tolist()):
        inside = list[Key]()
        for token, keys in media.items():
            inside += itertools.islice(keys, int((part_N.numpy(force=True) == token).sum()))
        key = digest(key, part_N, *inside)
        blocks.append(PrefixBlock(first, first + len(part_N), key))
        first += len(part_N)
    return blocks
