"""From a request's body to its fields: JSON, or one picture's bytes with the other fields in the query."""

from __future__ import annotations

import base64
import binascii
import types
import typing
from collections.abc import Callable
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from opencoca.serve.engine import PictureError
from opencoca.serve.errors import in_words
from opencoca.serve.gate import RefusedError, invalid

RAW = "raw"  # what stands among `images` for the picture that is the body
PICTURE_TYPES = ("application/octet-stream", "application/x-www-form-urlencoded")  # the latter is what curl says
Fields = TypeVar("Fields", bound=BaseModel)
Pictures = list[Callable[[], bytes]]


async def read(request: Request, kind: type[Fields]) -> tuple[Fields, Pictures]:
    """The fields, and the pictures among them as functions that decode their base64.

    Raises: RefusedError, where they are not what they should be.
    """
    body = b"".join([part async for part in request.stream()])
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if media_type == "application/json":
            if request.url.query:
                raise RefusedError(400, "bad_request", "with a JSON body, all fields are in it and none in the query")
            fields = kind.model_validate_json(body)
            images = getattr(fields, "images", None) or [image for image in [getattr(fields, "image", None)] if image]
            return fields, [decoder(image, f"images[{i}]") for i, image in enumerate(images)]
        if media_type.startswith("image/") or media_type in PICTURE_TYPES:
            if not {"images", "image"} & set(kind.model_fields):
                raise RefusedError(415, "unsupported_media_type", "give Content-Type: application/json")
            return kind.model_validate(_from_query(request, kind)), [lambda: body]
    except ValidationError as error:
        raise invalid(in_words(error.errors(include_url=False, include_context=False, include_input=False))) from None
    raise RefusedError(
        415, "unsupported_media_type", "give Content-Type: application/json, or image/... with a picture as the body"
    )


def decoder(image: str, name: str) -> Callable[[], bytes]:
    """A function that gives the bytes of base64 or of a data: URL, or raises PictureError. Other URLs are none."""

    def decode() -> bytes:
        data = image
        if data[:5].lower() == "data:":
            head, _, data = data.partition(",")
            if not head.lower().endswith(";base64"):
                raise PictureError(f"{name} is a data: URL without base64; give data:image/png;base64,...")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError):
            raise PictureError(f"{name} is no base64; give a picture's bytes so, or as a data: URL") from None

    return decode


def _from_query(request: Request, kind: type[BaseModel]) -> dict[str, Any]:
    """The fields in the query; lists are repeated, or separated by commas."""
    fields: dict[str, Any] = {"images": [RAW]} if "images" in kind.model_fields else {"image": RAW}
    for name in request.query_params:
        values = request.query_params.getlist(name)
        annotation = kind.model_fields[name].annotation if name in kind.model_fields else str
        if name in ("images", "image"):
            raise invalid("the body is the picture, and there may be no other")
        if _is_list(annotation):
            fields[name] = [part.strip() for value in values for part in value.split(",") if part.strip()]
        elif len(values) > 1:
            raise invalid("an option stands in the query more than once")
        else:
            fields[name] = values[0]
    return fields


def _is_list(annotation: Any) -> bool:
    parts = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return any(typing.get_origin(part) is list for part in parts)
