"""Any sound in, 16 kHz mono out; whatever cannot be used is refused in one sentence, within little
memory."""

from __future__ import annotations

import contextlib
import io
import itertools
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from mmdiff.audio import audio_io
from mmdiff.audio.audio_io import AudioError, Limits, load_audio, resample
from mmdiff.errors import MMDiffError
from tests.helpers.media import audio_file


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate)).astype(
        np.float32
    )


def close_to_tone(samples: np.ndarray, tolerance: float) -> None:
    wanted = tone(16_000, len(samples) / 16_000)
    middle = slice(800, min(len(samples), 8000) - 800)  # away from the edges, where filters settle
    assert samples.dtype == np.float32 and samples.ndim == 1 and abs(len(samples) - 8000) <= 1300
    best = min(
        np.abs(samples[middle] - np.roll(wanted, shift)[middle]).max() for shift in range(37)
    )
    assert best < tolerance


@pytest.mark.parametrize(
    ("format_name", "subtype", "tolerance"),
    [
        ("WAV", "PCM_U8", 0.02),
        ("WAV", "PCM_16", 1e-3),
        ("WAV", "PCM_24", 1e-4),
        ("WAV", "PCM_32", 1e-4),
        ("WAV", "FLOAT", 1e-4),
        ("WAV", "DOUBLE", 1e-4),
        ("WAV", "ULAW", 0.03),
        ("FLAC", "PCM_16", 1e-3),
        ("OGG", "VORBIS", 0.1),
        ("OGG", "OPUS", 0.15),
        ("MP3", "MPEG_LAYER_III", 0.1),
        ("AIFF", "PCM_16", 1e-3),
    ],
)
def test_every_format(format_name: str, subtype: str, tolerance: float) -> None:
    close_to_tone(
        load_audio(audio_file(tone(16_000), 16_000, format=format_name, subtype=subtype)), tolerance
    )


@pytest.mark.parametrize(
    "rate", [4_000, 8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000]
)
def test_every_rate(rate: int) -> None:
    close_to_tone(load_audio(audio_file(tone(rate), rate, format="WAV")), 0.01)
    close_to_tone(load_audio(tone(rate), rate), 0.01)


@pytest.mark.parametrize(
    ("container", "codec", "rate"), [("mp4", "aac", 44_100), ("webm", "libopus", 48_000)]
)
def test_containers_through_pyav(container: str, codec: str, rate: int, tmp_path: Path) -> None:
    path = tmp_path / f"tone.{container}"
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(
            np.stack([tone(rate)] * 2), format="fltp", layout="stereo"
        )
        frame.rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    close_to_tone(load_audio(path), 0.1)
    close_to_tone(load_audio(path.read_bytes()), 0.1)


STREAMED = {
    "flac in ogg": ("ogg", "flac"),
    "adts": ("adts", "aac"),
    "mpeg-ts": ("mpegts", "aac"),
    "mpeg-ts with mp2": ("mpegts", "mp2"),
    "avi": ("avi", "pcm_s16le"),
}


@pytest.mark.parametrize("name", STREAMED)
def test_more_that_pyav_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by its content; without PyAV the sentence names what to install."""
    container, codec = STREAMED[name]
    path = tmp_path / "tone"
    # FFmpeg's muxer complains behind the last page of an OGG with FLAC in it, which is whole.
    with contextlib.suppress(av.FFmpegError), av.open(str(path), "w", format=container) as file:
        stream = file.add_stream(codec, rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (tone(16_000)[None] * 32767).astype(np.int16), format="s16", layout="mono"
        )
        frame.rate = 16_000
        for part in [*av.AudioResampler(format=stream.codec_context.format).resample(frame), None]:
            file.mux(stream.encode(part))
    samples = load_audio(path.read_bytes())
    spectrum = np.abs(np.fft.rfft(samples[2000:6000]))
    assert (
        spectrum.argmax() == 110 and abs(len(samples) - 8000) < 2500
    )  # 440 Hz; codecs put silence before it
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MMDiffError, match=r"pip install 'mmdiff\[av\]'"):
        load_audio(path)


@pytest.mark.parametrize("size", [0, 0xFFFF_FFFF, 0x7FFF_FFFF, 0xFFFF_FFF0])
def test_a_wav_from_a_pipe_does_not_tell_its_length(size: int, tmp_path: Path) -> None:
    content = bytearray(audio_file(tone(16_000), 16_000, format="WAV"))
    place = content.index(b"data") + 4
    content[place : place + 4] = content[4:8] = size.to_bytes(4, "little")
    (tmp_path / "piped.wav").write_bytes(content)
    close_to_tone(load_audio(bytes(content)), 1e-3)
    close_to_tone(load_audio(tmp_path / "piped.wav"), 1e-3)


def test_a_wav_without_samples_but_with_tags_is_empty() -> None:
    tags = b"LIST" + (4).to_bytes(4, "little") + b"INFO"
    with pytest.raises(AudioError, match="has no samples"):
        load_audio(wav_header(16_000, 1, 0) + tags)


def test_g722_is_told_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "tone.g722"
    with av.open(str(path), "w", format="g722") as file:
        stream = file.add_stream("g722", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(
            (tone(16_000)[None] * 32767).astype(np.int16), format="s16", layout="mono"
        )
        frame.rate = 16_000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            file.mux(packet)
    close_to_tone(load_audio(path), 0.05)


def test_sources_agree(tmp_path: Path) -> None:
    samples = tone(16_000)
    path = tmp_path / "tone.wav"
    path.write_bytes(audio_file(samples, 16_000, format="WAV", subtype="FLOAT"))
    stream = io.BytesIO(path.read_bytes())
    stream.seek(0, io.SEEK_END)
    for source in (path, str(path), path.read_bytes(), stream):
        np.testing.assert_array_equal(load_audio(source), samples)
    np.testing.assert_array_equal(load_audio(samples, 16_000), samples)


def test_integers_are_scaled_and_channels_averaged() -> None:
    assert load_audio(np.array([-32768, 0, 16384], np.int16), 16_000).tolist() == [-1, 0, 0.5]
    assert load_audio(np.array([0, 128, 192], np.uint8), 16_000).tolist() == [-1, 0, 0.5]
    assert load_audio(np.array([-(2**31), 2**30], np.int32), 16_000).tolist() == [-1, 0.5]
    assert load_audio(np.array([[1.0, 0.0], [0.5, 0.5]]), 16_000).tolist() == [0.5, 0.5]


def test_channels_may_come_first() -> None:
    by_sample = np.stack([tone(16_000), 0 * tone(16_000)], axis=1)
    np.testing.assert_array_equal(load_audio(by_sample.T, 16_000), load_audio(by_sample, 16_000))


@pytest.mark.parametrize("gain", [-1.0, -0.9, -1.1])
def test_channels_that_cancel_give_the_louder_one(gain: float) -> None:
    pair = np.stack(
        [tone(16_000, 20), np.float32(gain) * tone(16_000, 20)], axis=1
    )  # longer than one block
    np.testing.assert_array_equal(load_audio(pair, 16_000), pair[:, 0])
    quiet_first = np.stack([0.5 * pair[:, 0], pair[:, 1]], axis=1)
    np.testing.assert_array_equal(load_audio(quiet_first, 16_000), pair[:, 1])


def test_unrelated_channels_are_averaged() -> None:
    pair = np.random.default_rng(0).normal(size=(16_000, 2)).astype(np.float32) / 8
    np.testing.assert_allclose(load_audio(pair, 16_000), pair.mean(1), atol=1e-6)
    one_ear = pair * [1, 0]
    np.testing.assert_allclose(load_audio(one_ear, 16_000), one_ear.mean(1), atol=1e-6)


WRONG_SCALES = {
    "16 bits as floats": (
        32_000 * tone(16_000),
        "floats go from -1 to 1: divide them by their full scale",
    ),
    "8 bits as floats": (
        100 * tone(16_000).astype(np.float64),
        "values up to 50, but floats go from -1 to 1",
    ),
    "16 bits as int32": (
        (32_000 * tone(16_000)).astype(np.int32),
        "give 16-bit values as numpy.int16",
    ),
    "16 bits as a list": ((32_000 * tone(16_000)).astype(int).tolist(), "integers of 64 bits"),
    "a file of floats": (
        audio_file(np.float32([0.0, 12_345.0, 1.0]), 16_000, format="WAV", subtype="FLOAT"),
        "12,345",
    ),
}


@pytest.mark.parametrize("name", WRONG_SCALES)
def test_samples_of_another_scale_are_refused(name: str) -> None:
    source, reason = WRONG_SCALES[name]
    with pytest.raises(AudioError, match=reason):
        load_audio(source, None if isinstance(source, bytes) else 16_000)  # type: ignore[arg-type]


def test_lists_and_tensors_are_arrays_too() -> None:
    import torch

    for source in (tone(16_000).tolist(), torch.from_numpy(tone(16_000)).requires_grad_()):
        np.testing.assert_array_equal(load_audio(source, 16_000), tone(16_000))  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="a Tensor cannot be made an array"):
        load_audio(torch.zeros(8, dtype=torch.bfloat16), 16_000)  # type: ignore[arg-type]


def test_blocks_join_without_a_seam() -> None:
    """Longer than one block, so the resampler goes on where it stopped."""
    rate, seconds = 44_100, 10
    blocked = load_audio(tone(rate, seconds), rate)
    np.testing.assert_allclose(blocked, resample(tone(rate, seconds), rate), atol=1e-4)
    assert len(blocked) == 160_000


def wav_header(rate: int, channels: int, frames: int = 4) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(b"\0" * frames * channels * 2)
    return buffer.getvalue()


def flac_of_rate(rate: int) -> bytes:
    content = bytearray(audio_file(np.zeros(16_000, np.float32), 16_000, format="FLAC"))
    content[18:21] = ((rate << 4) | (content[20] & 15)).to_bytes(
        3, "big"
    )  # STREAMINFO: 20 bits of rate
    return bytes(content)


BAD = {
    "empty": (b"", "is empty"),
    "text": (b"this is a diary, not a sound at all", "is not audio that can be read"),
    "picture": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "is not audio that can be read"),
    "truncated header": (wav_header(16_000, 1)[:20], "is not audio that can be read"),
    "no samples": (wav_header(16_000, 1, 0), "has no samples"),
    "1 Hz": (wav_header(1, 1), "a rate of 1 Hz"),
    "1024 channels": (wav_header(16_000, 1024), "1,024 channels"),
    "flac of 655,350 Hz": (flac_of_rate(655_350), "a rate of 655,350 Hz"),
    "not a number": (
        audio_file(np.array([0, np.nan]), 16_000, format="WAV", subtype="FLOAT"),
        "not finite",
    ),
    "infinite": (
        audio_file(np.array([0, np.inf]), 16_000, format="WAV", subtype="FLOAT"),
        "not finite",
    ),
    "empty mp4": (b"\0\0\0\x18ftypM4A \0\0\0\0" + b"\0" * 32, "mp4"),
    "empty webm": (b"\x1a\x45\xdf\xa3" + b"\0" * 32, "matroska"),
}


@pytest.mark.parametrize(("content", "reason"), BAD.values(), ids=BAD.keys())
def test_bad_files_are_refused(content: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=reason) as caught:
        load_audio(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_flac_from_a_pipe_does_not_tell_its_length() -> None:
    content = bytearray(audio_file(tone(16_000), 16_000, format="FLAC"))
    content[21:26] = bytes([content[21] & 0xF0, 0, 0, 0, 0])  # STREAMINFO: 36 bits of samples
    close_to_tone(load_audio(bytes(content)), 1e-3)


def test_one_sample_is_a_sound() -> None:
    assert len(load_audio(wav_header(16_000, 1, 1))) == 1


@pytest.mark.parametrize(
    ("source", "rate", "reason"),
    [
        ("", None, "is empty"),
        ("missing.wav", None, "does not exist"),
        ("/", None, "is a directory"),
        ("https://example.org/a.wav", None, "is an address"),
        ("a\0b", None, "cannot be read"),
        (io.StringIO("a"), None, "opened as text"),
        (b"RIFF", 16_000, "arrays only"),
        (np.zeros(4), None, "give sample_rate"),
        (np.zeros(0), 16_000, "no samples"),
        (np.zeros((2, 2, 2)), 16_000, "is not audio"),
        (np.zeros((40, 16_000)), 16_000, "16,000 channels"),
        (np.array(["a"]), 16_000, "is not audio"),
        (np.array([np.nan]), 16_000, "not finite"),
        (None, 16_000, "is not audio"),
        (np.zeros(4), "16000", "sample_rate='16000' is not a number"),
        (np.zeros(4), True, "sample_rate=True is not a number"),
        ("data:audio/wav,abc", None, "is not a data URL"),
        ("data:;base64,UklGRg=!", None, "is not base64"),
    ],
)
def test_bad_sources_are_refused(source: object, rate: int | None, reason: str) -> None:
    with pytest.raises(AudioError, match=reason):
        load_audio(source, rate)  # type: ignore[arg-type]


def test_limits_hold_before_decoding() -> None:
    with pytest.raises(AudioError, match="lasts 2 seconds or more, longer than the 1 allowed"):
        load_audio(audio_file(tone(16_000, 2), 16_000, format="WAV"), limits=Limits(seconds=1))
    with pytest.raises(AudioError, match="takes 4 MiB or more when decoded, above the 1 allowed"):
        load_audio(np.zeros((1 << 20, 2), np.int8), 16_000, Limits(decoded_bytes=1 << 20))


def test_the_limit_counts_what_is_held() -> None:
    """Half an hour of stereo at 48 kHz is 660 MiB on its way and 110 MiB when it is 16 kHz mono."""
    half_hour = np.broadcast_to(np.zeros((1, 2), np.float32), (1800 * 48_000, 2))
    with pytest.raises(AudioError, match="takes 109 MiB"):
        load_audio(half_hour, 48_000, Limits(decoded_bytes=100 << 20))
    for rate in (8_000, 48_000, 192_000):
        audio_io._check_length(1800 * rate, rate, "it", Limits())


def test_limits_hold_while_decoding() -> None:
    """A header may say nothing or too little."""
    endless = itertools.repeat(np.zeros((16_000, 1), np.float32))
    with pytest.raises(AudioError, match="lasts 31 seconds or more"):
        audio_io._mono_16_khz(endless, 16_000, 1, "it", Limits(seconds=30))


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"
)
def test_minutes_of_stereo_pass_through_little_memory(tmp_path: Path) -> None:
    """Ten minutes of stereo at 48 kHz, 220 MiB as floats, need little more than the 37 MiB that
    come out."""
    path = tmp_path / "minutes.flac"
    with soundfile.SoundFile(path, "w", 48_000, 2, format="FLAC") as file:
        for _ in range(10):
            file.write(np.zeros((60 * 48_000, 2), np.int16))
    code = (
        "import re, sys\n"
        "from mmdiff.audio.audio_io import load_audio\n"
        "memory = lambda: int(re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
        "load_audio(b'RIFF$\\0\\0\\0WAVEfmt \\x10\\0\\0\\0\\1\\0\\1\\0@\\x1f\\0\\0\\x80>\\0\\0\\2\\0\\x10\\0'\n"
        "           b'data\\2\\0\\0\\0\\0\\0')\n"
        "before = memory()\n"
        "print(len(load_audio(sys.argv[1])), memory() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    samples, grown = map(int, done.stdout.split())
    assert samples == 600 * 16_000 and grown < 110_000  # KiB: the samples, their parts, and blocks


@pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="memory is read from Linux's /proc"
)
def test_an_hour_of_silence_in_a_small_file_costs_little(tmp_path: Path) -> None:
    path = tmp_path / "hour.flac"
    with soundfile.SoundFile(path, "w", 16_000, 1, format="FLAC") as file:
        for _ in range(60):
            file.write(np.zeros(960_000, np.int16))
    assert path.stat().st_size < 400_000
    code = (
        "import re, sys, time\n"
        "from mmdiff.audio.audio_io import load_audio\n"
        "start = time.perf_counter()\n"
        "try: load_audio(sys.argv[1])\n"
        "except ValueError as error: print(error)\n"
        "print(time.perf_counter() - start, re.search(r'VmHWM:\\s*(\\d+)', open('/proc/self/status').read())[1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    sentence, figures = done.stdout.splitlines()
    assert "lasts 3,600 seconds" in sentence and int(figures.split()[1]) < 300_000  # KiB


STARTS = (
    b"",
    b"RIFF\x24\0\0\0WAVEfmt ",
    b"fLaC",
    b"OggS",
    b"ID3\x03",
    b"\xff\xfb",
    b"\0\0\0\x18ftypM4A ",
    b"\x1a\x45\xdf\xa3",
)


@given(st.binary(max_size=200), st.sampled_from(STARTS))
@settings(max_examples=300, deadline=None)
def test_garbage_is_a_sound_or_an_error_of_ours(content: bytes, start: bytes) -> None:
    try:
        samples = load_audio(start + content)
    except AudioError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(samples).all() and len(samples)


@given(
    st.integers(0, 3000),
    st.integers(0, 255),
    st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_damage_is_survived(position: int, value: int, kind: str, cut: bool) -> None:
    content = bytearray(audio_file(tone(16_000, 0.1), 16_000, format=kind))
    position %= len(content)
    content = (
        content[:position] if cut else content[:position] + bytes([value]) + content[position + 1 :]
    )
    try:
        samples = load_audio(bytes(content))
    except AudioError as error:
        assert "\n" not in str(error)
    else:
        assert np.isfinite(samples).all() and len(samples)
