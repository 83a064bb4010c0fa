"""What an image may be, to the last pixel, and what audio of several channels becomes; test_parts
has the process around it."""

import numpy as np
import pytest
from PIL import Image

from mmdiff.serve.errors import ApiError
from mmdiff.serve.media.worker import decode_audio, decode_image
from mmdiff.serve.options import MediaLimits
from tests.helpers.media import audio_file, encoded


def png(width: int, height: int) -> bytes:
    return encoded(Image.new("RGB", (width, height)))


def webp(frames: int) -> bytes:
    made = [Image.new("RGB", (8, 8), (2 * shade, 0, 0)) for shade in range(frames)]
    return encoded(made[0], "WEBP", save_all=True, append_images=made[1:], lossless=True)


@pytest.mark.parametrize(
    "limits",
    [
        MediaLimits(aspect=4),
        MediaLimits(side=12),
        MediaLimits(pixels=36),
        MediaLimits(aspect=4, side=12, pixels=36),
    ],
)
def test_an_image_at_the_limit_is_seen(limits: MediaLimits) -> None:
    assert decode_image(png(12, 3), limits, "image 0").shape == (3, 12, 3)
    assert decode_image(png(3, 12), limits, "image 0").shape == (12, 3, 3)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (MediaLimits(aspect=4), "invalid_image"),
        (MediaLimits(side=12), "invalid_image"),
        (MediaLimits(pixels=36), "image_too_large"),
    ],
)
@pytest.mark.parametrize("size", [(13, 3), (3, 13)])
def test_an_image_beyond_a_limit_is_not(
    limits: MediaLimits, code: str, size: tuple[int, int]
) -> None:
    with pytest.raises(ApiError, match=f"{size[0]} x {size[1]}") as refused:
        decode_image(png(*size), limits, "image 0")
    assert refused.value.code == code


def test_by_default_a_side_may_be_200_times_the_other() -> None:
    assert decode_image(png(400, 2), MediaLimits(), "image 0").shape == (2, 400, 3)
    with pytest.raises(ApiError, match="200 times as long as the other"):
        decode_image(png(2, 401), MediaLimits(), "image 0")


def test_animations_may_have_so_many_frames() -> None:
    assert decode_image(webp(5), MediaLimits(frames=5), "image 0").shape == (8, 8, 3)
    with pytest.raises(ApiError, match="5 frames, more than the 4 allowed"):
        decode_image(webp(5), MediaLimits(frames=4), "image 0")


def wav(*channels: float) -> bytes:
    """A second of audio at 16 kHz, each channel of one value."""
    return audio_file(np.tile(np.array(channels), (16_000, 1)))


def test_channels_of_audio_are_mixed_or_kept_apart() -> None:
    mixed = decode_audio(wav(0.5, 0.25), MediaLimits(), "audio 0")
    apart = decode_audio(wav(0.5, 0.25), MediaLimits(), "audio 0", separate=True)
    assert mixed.shape == (16_000,) and np.allclose(mixed, 0.375, atol=1e-3)
    assert apart.shape == (2, 16_000) and np.allclose(apart, [[0.5], [0.25]], atol=1e-3)


def test_one_channel_cannot_be_separated() -> None:
    sentence = "audio 0 has one channel, and channels=separate takes audio of two or more"
    with pytest.raises(ApiError, match=sentence) as refused:
        decode_audio(wav(0.5), MediaLimits(), "audio 0", separate=True)
    assert (refused.value.status, refused.value.code) == (400, "invalid_audio")


def test_the_channels_together_may_take_so_many_bytes() -> None:
    limits = MediaLimits(decoded_bytes=2 * 4 * 16_000)
    assert decode_audio(wav(0.5, 0.25), limits, "audio 0", separate=True).shape == (2, 16_000)
    with pytest.raises(ApiError, match="more than the 0 MiB allowed") as refused:
        decode_audio(wav(0.5, 0.25, 0.1), limits, "audio 0", separate=True)
    assert refused.value.code == "audio_too_large"
