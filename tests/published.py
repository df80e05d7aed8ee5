"""Small models in OpenCLIP's layout, and a hub on loopback that serves them as the real one does."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from safetensors.torch import save as as_safetensors

from opencoca.config import Config
from opencoca.data.clip_tokenizer import ClipTokenizer
from opencoca.interop.open_clip import to_open_clip
from opencoca.model.coca import CoCa
from opencoca.model.init import build
from opencoca.recipes import open_clip as recipes

FIXTURE = Path(__file__).parent / "parity" / "data"
WEIGHTS, DESCRIPTION = "open_clip_model.safetensors", "open_clip_config.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def tokenizer() -> ClipTokenizer:
    """CLIP's kind of tokenizer with two words of its own."""
    return ClipTokenizer.from_merges(["r e", "re d</w>", "d o", "do t</w>"])


def config(vocab_size: int | None = None) -> Config:
    """A CoCa of OpenCLIP's layout that is as small as may be."""
    model = recipes.layout(
        image_size_px=16,
        patch_size_px=8,
        vision_width=16,
        vision_depth=1,
        vision_heads=2,
        text_width=16,
        text_depth=1,
        multimodal_depth=1,
        text_heads=2,
        num_queries=3,
        pooler_heads=2,
        vocab_size=vocab_size or tokenizer().vocab_size,
        context_length=10,
    )
    return recipes.settings("open_clip_model", model)


def model(seed: int = 0, vocab_size: int | None = None) -> CoCa:
    return build(config(vocab_size).model, seed).eval()


def files(seed: int = 0) -> dict[str, bytes]:
    """What the hub holds of such a model."""
    model_cfg, state = to_open_clip(model(seed))
    return {
        DESCRIPTION: json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {}}).encode(),
        WEIGHTS: as_safetensors({name: tensor.contiguous() for name, tensor in state.items()}),
        "tokenizer.json": tokenizer().to_json().encode(),
        "README.md": b"---\nlicense: mit\n---\n",
        "training_log.txt": b"nobody needs this",
    }


def write(folder: Path, seed: int = 0, without: str = "") -> Path:
    """A folder as one downloads it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files(seed).items():
        if name != without:
            (folder / name).write_bytes(content)
    return folder


def fixture() -> dict[str, bytes]:
    """The parity fixture's weights, which another program wrote, as the hub would hold them."""
    description = {"model_cfg": json.loads((FIXTURE / "open_clip_tiny.config.json").read_text())}
    weights = (FIXTURE / "open_clip_tiny.weights.safetensors").read_bytes()
    return {DESCRIPTION: json.dumps(description).encode(), WEIGHTS: weights}


@dataclass
class Hub:
    """A hub's state: models by "org/name", and what it does to those who ask. `log` holds method, path and range."""

    models: dict[str, Mapping[str, bytes]]
    licence: dict[str, str] = field(default_factory=lambda: {"license": "mit"})
    gated: bool = False
    down: bool = False
    break_after: int | None = None  # the next weights file ends after so many bytes
    damage: bool = False
    log: list[tuple[str, str, str]] = field(default_factory=list)
    endpoint: str = ""

    def fetched(self) -> list[str]:
        """The files whose content was asked for."""
        return [path.rpartition("/")[2] for method, path, _ in self.log if method == "GET" and "/resolve/" in path]


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Runs the hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.log.append((self.command, path, self.headers.get("Range", "")))
            if hub.down:
                self.send(503, {})
                return
            words = path.strip("/").split("/")
            repo = "/".join(words[2:4] if words[0] == "api" else words[:2])
            revision = words[5] if words[0] == "api" and len(words) > 5 else words[3] if words[0] != "api" else "main"
            if repo not in hub.models:
                self.send(404, {"X-Error-Code": "RepoNotFound"})
            elif revision not in ("main", "v1", COMMIT):
                self.send(404, {"X-Error-Code": "RevisionNotFound"})
            elif words[0] == "api":
                self.describe(repo)
            elif hub.gated:
                self.send(403, {"X-Error-Code": "GatedRepo"})
            elif words[4] not in hub.models[repo]:
                self.send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            else:
                self.file(words[4], hub.models[repo][words[4]])

        def describe(self, repo: str) -> None:
            siblings = []
            for name, content in hub.models[repo].items():
                entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": sha1(content)}
                if name.startswith("open_clip_") and not name.endswith(".json"):
                    entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
                siblings.append(entry)
            about = {"id": repo, "modelId": repo, "sha": COMMIT, "siblings": siblings, "cardData": hub.licence}
            about |= {"private": False, "downloads": 0, "likes": 0, "tags": []}
            self.send(200, {"Content-Type": "application/json"}, json.dumps(about).encode())

        def file(self, name: str, content: bytes) -> None:
            lfs = name.startswith("open_clip_") and not name.endswith(".json")
            tag = sha256(content) if lfs else sha1(content)
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{tag}"', "Accept-Ranges": "bytes"}
            status, first = 200, 0
            if hub.damage and lfs:
                content = content[:-1] + bytes([content[-1] ^ 1])
            if found := self.headers.get("Range"):
                first = int(found.removeprefix("bytes=").partition("-")[0])
                status, headers["Content-Range"] = 206, f"bytes {first}-{len(content) - 1}/{len(content)}"
            self.send(status, headers, content[first:], breaks=lfs)

        def send(self, status: int, headers: dict[str, str], body: bytes = b"", breaks: bool = False) -> None:
            self.send_response(status)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            if breaks and hub.break_after is not None:
                body, hub.break_after = body[: hub.break_after], None
                self.close_connection = True
            self.wfile.write(body)

    return Handler


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha1(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
