"""Audio -> features: decoding, spectrograms, Whisper's encoder, connectors, segments."""

if __name__ != "mmdiff.audio":
    raise ImportError(f"import mmdiff.audio, not {__name__}: the packages of mmdiff share one name")
