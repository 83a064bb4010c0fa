"""Training: generated and installed data, losses, named recipes and one loop."""

if __name__ != "mmdiff.training":
    raise ImportError(
        f"import mmdiff.training, not {__name__}: the packages of mmdiff share one name"
    )
