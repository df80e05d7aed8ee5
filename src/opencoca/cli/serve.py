"""`coca serve`: a model behind HTTP, with a page in the browser."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from opencoca.cli.main import ModelName
from opencoca.errors import ConfigError, OpenCoCaError

Name = Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Folder = Annotated[Path | None, arg(metavar="DIR", help_behavior_hint="")]
TOKEN = "COCA_TOKEN"


@dataclass(frozen=True)
class Bounds:
    """What a request may cost. Who asks for more is told so (413, 422), and when to come again (503)."""

    max_body_mb: float = 20
    """Megabytes of a request's body."""
    max_pixels_m: float = 40
    """Megapixels of a picture."""
    max_queue: int = 256
    """Pictures that may wait; 16 texts count as one."""
    queue_timeout: float = 10
    """Seconds that a picture may wait."""
    answer_timeout: float = 30
    """Seconds that captions may be in the making, where a request sets their options."""
    read_timeout: float = 30
    """Seconds that a body may take to come; headers get a third of it."""
    max_connections: int = 1000
    """Connections at once; beyond it, the slowest make room."""
    drain_timeout: int = 30
    """Seconds after Ctrl-C or SIGTERM for what is under way."""


@dataclass(frozen=True)
class Args:
    """Serve a model over HTTP, with a page in the browser.

    Prints the address. There is a page for people at /, and for programs /caption, /classify, /embed, /search, /ask and
    OpenAI's /v1/embeddings, described at /docs. Only this machine reaches it unless you give another --host, which
    needs a token. Requests that come together go through the model together.

    Examples:
      coca serve
      coca serve --index holiday/
      coca serve --model runs/mine --port 9000 --workers 2
      coca serve --host 0.0.0.0 --token-file token.txt --allow-host pictures.example
      curl --data-binary @cat.png -H "Content-Type: image/png" http://127.0.0.1:8000/caption
    """

    model: ModelName = None
    """A run or model folder, hf:org/name, a weights file, or the name of a pulled model."""
    index: Folder = None
    """A folder of pictures that `coca index` has read, to be searched."""
    host: str = "127.0.0.1"
    """The address to listen at; any but this machine's own needs a token."""
    port: int = 8000
    """The port to listen at; 0 takes a free one."""
    token_file: File = None
    """A file with the token that requests must carry; the variable COCA_TOKEN does the same."""
    allow_host: Annotated[tuple[str, ...], arg(metavar="NAME...", help_behavior_hint="")] = ()
    """Names that the server goes by, beside localhost and its address."""
    workers: int = 1
    """Processes; they share the model's weights."""
    word_list: File = None
    """A file of words, one a line: captions and answers that hold one are withheld."""
    policy: File = None
    """A text that /policy shows instead of ours."""
    limits: Annotated[Bounds, OmitArgPrefixes] = field(default_factory=Bounds)


def run(args: Args) -> int:
    """Serves until a signal ends it."""
    token = _token(args.token_file)
    try:
        from opencoca.serve.run import serve
        from opencoca.serve.settings import Limits, Settings
    except ModuleNotFoundError as error:
        if error.name and error.name.partition(".")[0] == "opencoca":
            raise
        raise OpenCoCaError(f"{error.name} is missing; pip install 'opencoca[serve]'") from error
    bounds = args.limits
    for name in ("max_body_mb", "max_pixels_m"):
        if not getattr(bounds, name) > 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(bounds, name)} must be above 0")
    limits = Limits(
        body_bytes=int(bounds.max_body_mb * 1e6),
        held_bytes=int(max(256e6, 4e6 * bounds.max_body_mb)),
        pixels=int(bounds.max_pixels_m * 1e6),
        queue=bounds.max_queue,
        queue_s=bounds.queue_timeout,
        answer_s=bounds.answer_timeout,
        body_s=bounds.read_timeout,
        header_s=bounds.read_timeout / 3,
        connections=bounds.max_connections,
        drain_s=bounds.drain_timeout,
    )
    serve(
        Settings(
            model=args.model,
            index=args.index,
            host=args.host,
            port=args.port,
            token=token,
            hosts=args.allow_host,
            workers=args.workers,
            words=args.word_list,
            policy=args.policy,
            limits=limits,
        )
    )
    return 0


def _token(file: Path | None) -> str | None:
    """The token, without space around it. Raises: ConfigError for a file that can't be read."""
    if file is None:
        return os.environ.pop(TOKEN, "").strip() or None  # child processes don't need it
    try:
        return file.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no token file that can be read ({error})") from error
