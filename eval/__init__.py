"""Measuring: tasks, scores and one report. Test seeds and test splits are never trained on."""

if __name__ != "mmdiff.eval":
    raise ImportError(f"import mmdiff.eval, not {__name__}: the packages of mmdiff share one name")
