"""Folders of tiny published models as `mmdiff.load` takes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from mmdiff.pipeline import Pipeline, load


def as_published(source: Path, folder: Path, **changes: Any) -> Path:
    """A copy of a reference model with a tokenizer, whose words are its ids, and changes of its
    config.json: a small vocabulary names its special ids there."""
    folder.mkdir(parents=True, exist_ok=True)
    published = json.loads((source / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(published))
    shutil.copyfile(source / "model.safetensors", folder / "model.safetensors")
    words = {str(number): number for number in range(published["vocab_size"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="0"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def load_published(source: Path, folder: Path, **changes: Any) -> Pipeline:
    return load(as_published(source, folder, **changes), device="cpu")
