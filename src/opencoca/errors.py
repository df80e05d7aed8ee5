"""Every error that OpenCoCa raises on purpose. Each message restates the values and says what to do."""


class OpenCoCaError(Exception):
    """Bad input that the user can repair; the command prints its message as one line and exits with 2."""


class ConfigError(OpenCoCaError):
    """A configuration whose fields contradict each other, or an unknown recipe."""


class DataError(OpenCoCaError):
    """A picture, caption, shard or manifest that can't be read or isn't what it says."""


class CheckpointError(OpenCoCaError):
    """A model folder with a missing, foreign or damaged file."""


class TrainingError(OpenCoCaError):
    """A run that can't go on: a non-finite loss, a run folder that another process writes to."""


class StoppedError(TrainingError):
    """A run that SIGTERM ended after its step, with a checkpoint; the command exits with 143."""
