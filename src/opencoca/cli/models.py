"""`coca models`: the models on this machine that are known by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from opencoca.cli.main import DONE, Flag
from opencoca.errors import OpenCoCaError

if TYPE_CHECKING:
    from opencoca.interop.pulled import Entry


@dataclass(frozen=True)
class Args:
    """The models on this machine that are known by name.

    list shows them with size, licence, digest and where they came from; pull fetches published ones from the hub, whose
    settings (HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN) hold; rm deletes pulled ones; verify checks every file against its
    digest; known lists published CoCa models. Pulled models are kept in $OPENCOCA_HOME, else in your cache folder.

    Examples:
      coca models list
      coca models pull laion/CoCa-ViT-B-32-laion2B-s13B-b90k
      coca caption cat.png --model CoCa-ViT-B-32-laion2B-s13B-b90k
      coca models rm CoCa-ViT-B-32-laion2B-s13B-b90k
    """

    action: Annotated[Literal["list", "pull", "rm", "verify", "known"], Positional, arg(help_behavior_hint="")]
    """What to do."""
    names: Annotated[tuple[str, ...], Positional, arg(metavar="[NAME...]", help_behavior_hint="")] = ()
    """The models to do it to: org/name, or org/name@revision to pull one that isn't the newest."""
    json: Flag = False
    """Print a JSON list."""


def run(args: Args) -> int:
    """Does it, and prints one line per model: the results first, all else to standard error."""
    needs_names = args.action in ("pull", "rm", "verify")
    if needs_names != bool(args.names):
        how = f"name a model, as in: coca models {args.action} org/name" if needs_names else "it takes no names"
        raise OpenCoCaError(f"coca models {args.action} can't do that; {how}")

    from opencoca.interop import pulled

    if args.action == "known":
        rows = [{"name": one.name, "parameters": one.parameters, "licence": one.licence} for one in pulled.KNOWN]
    elif args.action == "list":
        rows = [_row(entry) for entry in pulled.entries()]
    else:
        do = {"pull": pulled.pull, "rm": pulled.remove, "verify": pulled.verified}[args.action]
        rows = [_row(do(name)) | {"done": _DONE[args.action]} for name in args.names]
    _print(rows, args.json)
    return DONE


_DONE = {"pull": "pulled", "rm": "removed", "verify": "verified"}


def _row(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name,
        "bytes": entry.bytes,
        "licence": entry.origin.licence if entry.origin else None,
        "sha256": entry.sha256,
        "source": "shipped" if entry.shipped else entry.origin.source if entry.origin else None,
        "revision": entry.origin.revision if entry.origin else None,
        "folder": str(entry.folder),
        "problem": entry.problem,
    }


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    import sys

    from opencoca.cli.forms import json_text, shown

    if as_json:
        print("[" + ",".join(f"\n  {json_text(row)}" for row in rows) + ("\n]" if rows else "]"))
        return
    for row in rows:
        cells = [row.get("done"), row["name"], _size(row), row["licence"] or "licence unknown"]
        cells += [str(row.get("sha256") or "")[:12], row.get("source")]
        print("\t".join(shown(cell) for cell in cells if cell))
        if row.get("problem"):
            print(f"{row['name']} can't be used: {shown(row['problem'])}", file=sys.stderr)
    if not rows:
        print("no models yet; `coca models known` lists published ones", file=sys.stderr)


def _size(row: dict[str, Any]) -> str:
    return f"{row['parameters'] / 1e6:.0f}M parameters" if "parameters" in row else f"{row['bytes'] / 1e6:,.1f} MB"
