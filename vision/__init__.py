"""Images -> features: open, cut into views, encode, connect."""

if __name__ != "mmdiff.vision":
    raise ImportError(
        f"import mmdiff.vision, not {__name__}: the packages of mmdiff share one name"
    )
