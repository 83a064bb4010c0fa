"""What the server's decoder reads beside the plain cases, without a server."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image, PngImagePlugin

from mmdiff.serve.batch.captions import _data_url, _skipped
from mmdiff.serve.errors import ApiError
from mmdiff.serve.media import worker
from mmdiff.serve.media.parse import _unpacked, unpacked_url
from mmdiff.serve.options import MediaLimits
from mmdiff.vision.image_io import open_image

LIMITS = MediaLimits()


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,aGVsbG8=",
        "DATA:IMAGE/PNG;BASE64,aGVsbG8=",
        "data:image/png;base64,aGVs\nbG8=\r\n",
        "data:image/png;base64,aGVsbG8",
        "data:image/png;charset=utf-8;base64,aGVsbG8%3D",
        " data:;base64, aGVsbG8=",
    ],
)
def test_spellings_of_data_urls(url: str) -> None:
    assert unpacked_url(url, "image_url", "image 0") == b"hello"
    assert _unpacked(url, "data", "audio 0") == b"hello"


@pytest.mark.parametrize("text", ["+/8=", "-_8=", "-_8", "+/\n8"])
def test_either_alphabet(text: str) -> None:
    assert _unpacked(text, "data", "audio 0") == b"\xfb\xff"


def test_a_png_with_much_text_is_an_image() -> None:
    info, held = PngImagePlugin.PngInfo(), io.BytesIO()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    Image.new("RGB", (4, 3), "red").save(held, "PNG", pnginfo=info)
    assert worker.decode_image(held.getvalue(), LIMITS, "image 0").shape == (3, 4, 3)


def flac(samples: Any, rate: int) -> bytes:
    held = io.BytesIO()
    soundfile.write(held, samples, rate, format="FLAC")
    return held.getvalue()


def test_the_limit_of_audio_is_its_time_whatever_its_rate() -> None:
    """Ten minutes of stereo at 48 kHz would be 220 MiB as floats, and of eight channels 880."""
    assert (
        len(
            worker.decode_audio(
                flac(np.zeros((48_000 * 599, 2), np.int16), 48_000), LIMITS, "audio 0"
            )
        )
        == 599 * 16_000
    )
    with pytest.raises(ApiError, match="lasts longer than the 600 seconds"):
        worker.decode_audio(flac(np.zeros(8_000 * 601, np.int16), 8_000), LIMITS, "audio 0")


def test_audio_of_another_scale_is_refused() -> None:
    held = io.BytesIO()
    soundfile.write(held, np.float32([0, 12_000]), 16_000, format="WAV", subtype="FLOAT")
    with pytest.raises(ApiError, match="finite samples from -1 to 1"):
        worker.decode_audio(held.getvalue(), LIMITS, "audio 0")


def test_folders_tell_what_they_leave_out() -> None:
    names = [
        "a.PNG",
        "b.tiff",
        "c.TIF",
        "d.jfif",
        "e.heic",
        "notes.txt",
        "more.TXT",
        "f.svg",
        "README",
    ]
    assert _skipped([Path(name) for name in names]) == (
        "4 files are left out, by the names not images: 2 .txt, 1 .svg, 1 no ending"
    )
    assert (
        _skipped([Path("a.svg"), Path("b.png")])
        == "1 file is left out, by the names not images: 1 .svg"
    )
    assert _skipped([Path("b.png")]) == ""


def test_folders_send_what_the_decoder_does_not_read_as_png(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    for name in ("a.tiff", "a.bmp", "a.PPM"):
        Image.fromarray(values).save(tmp_path / name)
        data = unpacked_url(_data_url(tmp_path / name), "image_url", "image 0")
        assert np.array_equal(
            worker.decode_image(data, LIMITS, "image 0"), np.asarray(open_image(tmp_path / name))
        )
