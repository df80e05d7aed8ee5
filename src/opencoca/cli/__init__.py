"""The `coca` command: one thin file per subcommand, dispatched by `main`."""

import os

if os.environ.get(
    "NO_COLOR"
):  # tyro, which prints help and usage errors, reads a switch of its own when it is imported
    os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
