"""What a user can cause, as `ValueError`s that the command line prints as one sentence (exit code 2)."""


class MMDiffError(ValueError):
    """Bad input: the message names the offending value and says what to do."""


class CheckpointError(MMDiffError):
    """A checkpoint is damaged, incomplete or of another architecture."""
