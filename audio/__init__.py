"""Sound -> features. Nothing is built here yet."""

if __name__ != "mmdiff.audio":
    raise ImportError(f"import mmdiff.audio, not {__name__}: the rooms of mmdiff share one name")
