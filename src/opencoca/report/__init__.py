"""The report of a run: one HTML file with its charts and pictures inside, which works offline, printed and on a phone.

Standard library only. Fill a `ReportData` and call `write`; `render` gives the page as text. For a picture of it (the
README's), photograph the top of the page with any browser:

    chromium --headless --hide-scrollbars --screenshot=report.png --window-size=1200,900 file:///.../report.html
"""

from pathlib import Path

from opencoca.errors import OpenCoCaError, unwritable
from opencoca.files import write_atomically
from opencoca.report.data import (
    Chart,
    Confusion,
    Curve,
    Example,
    Figure,
    Link,
    ReportData,
    Results,
    Retrieved,
)
from opencoca.report.page import render

__all__ = [
    "Chart",
    "Confusion",
    "Curve",
    "Example",
    "Figure",
    "Link",
    "ReportData",
    "Results",
    "Retrieved",
    "render",
    "write",
]


def write(path: str | Path, data: ReportData) -> Path:
    """Writes the report whole or not at all, makes its folder if need be, and returns its path.

    Raises: OpenCoCaError if the file can't be written; what was there before is then untouched.
    """
    path = Path(path)
    try:
        write_atomically(path, render(data))
    except OSError as error:
        raise OpenCoCaError(unwritable(path, error)) from error
    return path
