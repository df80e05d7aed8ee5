"""Every error that OpenCoCa raises on purpose. Each message restates the values and says what to do."""

import errno
import re

FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}
FORBIDDEN = {errno.EACCES, errno.EPERM}


class OpenCoCaError(Exception):
    """Bad input that the user can repair; the command prints its message as one line and exits with 2."""


class ConfigError(OpenCoCaError):
    """A configuration whose fields contradict each other, or an unknown recipe."""


class DataError(OpenCoCaError):
    """A picture, caption, shard or manifest that can't be read or isn't what it says."""


class TooLargeError(DataError):
    """A picture with more pixels than may be read."""


class CheckpointError(OpenCoCaError):
    """A model folder with a missing, foreign or damaged file."""


class TrainingError(OpenCoCaError):
    """A run that can't go on: a non-finite loss, a run folder that another process writes to."""


class StoppedError(TrainingError):
    """A run that SIGTERM ended after its step, with a checkpoint; the command exits with 143."""


def unwritable(path: object, error: Exception, instead: str = "") -> str:
    """The message for a file or folder that can't be written: why, and the repair that fits the reason.

    instead: what the user can do rather than choose another folder.
    """
    reason = getattr(error, "strerror", None) or error
    number = getattr(error, "errno", None)
    if number is None and (told := re.search(r"os error (\d+)", str(error))):  # as libraries in Rust say it
        number = int(told[1])
    if number in FULL:
        repair = f"free some space or {instead or 'choose another folder'}"
    elif number == errno.EFBIG:  # a limit of the session, or of a file system such as FAT
        repair = f"raise the limit on the size of files (`ulimit -f`) or {instead or 'choose another disk'}"
    elif number in FORBIDDEN:
        repair = instead or "choose a folder that you may write to, or change its permissions"
    else:
        repair = instead or "choose another folder"
    return f"can't write {path} ({reason}); {repair}"
