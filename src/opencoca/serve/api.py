"""The endpoints that ask the model."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import numpy as np
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from opencoca.infer.captioning import Caption
from opencoca.infer.zeroshot import checked_labels, checked_templates
from opencoca.serve import schemas
from opencoca.serve.bodies import decoder, read
from opencoca.serve.engine import Labels
from opencoca.serve.gate import RefusedError, invalid
from opencoca.serve.service import Service
from opencoca.serve.stream import Stream

T = TypeVar("T")
MAX_SENTENCES = 1024  # labels times templates
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": schemas.ErrorResponse, "description": what}
    for status, what in {
        400: "no request that can be understood",
        401: "no token, or another one",
        403: "from another site's page",
        404: "there is no such thing",
        408: "the body came too slowly",
        413: "too large",
        415: "another kind of body",
        421: "addressed by another name",
        431: "headers that are too large",
        422: "fields or pictures that can't be used",
        503: "busy: come back after Retry-After seconds",
    }.items()
}
STREAM = "text/event-stream"
UNBUFFERED = {"X-Accel-Buffering": "no"}  # else nginx shows a stream when it is at its end
DEFINITIONS: dict[str, Any] = {}  # of what bodies consist of; the application puts them where the schemas look


def takes(kind: type[schemas.BaseModel], picture: bool = True) -> dict[str, Any]:
    """The description of a body that `bodies.read` reads."""
    schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
    DEFINITIONS.update(schema.pop("$defs", {}))
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if picture:
        content["image/*"] = {"schema": {"type": "string", "format": "binary"}}
    return {"requestBody": {"required": True, "content": content}}


def answer(content: schemas.BaseModel) -> Response:
    """An answer as JSON."""
    return Response(content.model_dump_json(), media_type="application/json")


async def while_there(request: Request, work: Awaitable[T]) -> T:
    """What the work gives, which ends where the client goes away."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise RefusedError(499, "gone", "the client went away")
        return task.result()
    finally:
        task.cancel()
        gone.cancel()


def make_router(service: Service) -> APIRouter:
    """The routes, for one service."""
    router, engine = APIRouter(responses=ERRORS), service.engine

    @router.post(
        "/caption",
        response_model=schemas.CaptionResponse,
        openapi_extra=takes(schemas.CaptionRequest),
        responses={200: {"content": {STREAM: {"schema": {"type": "string"}}}}},
    )
    async def caption(request: Request) -> Response:
        """Captions of pictures, the best first; with `stream`, as server-sent events while they are written."""
        wanted, pictures = await read(request, schemas.CaptionRequest)
        service.check_room(len(pictures))
        wording = engine.wording(wanted.prompt, wanted.num_captions, wanted.changes())
        if wanted.stream:
            written = Stream(service, pictures, wording, captioned)
            first = await while_there(request, written.next())  # an error that comes first is the answer itself
            return StreamingResponse(written.events(first), media_type=STREAM, headers=UNBUFFERED)
        found = await while_there(request, engine.ask(pictures, wording))
        results = [captioned(captions) for captions in found]
        return answer(schemas.CaptionResponse(results=results, provenance=service.provenance))

    def captioned(captions: list[Caption]) -> schemas.Captioned:
        said = [
            schemas.Said(text=text, log_prob=one.log_prob, match=one.match, withheld=withheld)
            for one in captions
            for text, withheld in [service.said(one.text)]
        ]
        said.sort(key=lambda one: one.withheld)  # one that may be said is better than one that may not
        return schemas.Captioned(caption=said[0].text, captions=said)

    @router.post("/ask", response_model=schemas.AskResponse, openapi_extra=takes(schemas.AskRequest))
    async def ask(request: Request) -> Response:
        """The model's answer to a question about each picture."""
        wanted, pictures = await read(request, schemas.AskRequest)
        service.check_room(len(pictures))
        wording = engine.question(wanted.question, wanted.changes())

        found = await while_there(request, engine.ask(pictures, wording))
        said = [service.said(one if isinstance(one, str) else one[0].text) for one in found]
        results = [schemas.Answered(answer=text, withheld=withheld) for text, withheld in said]
        return answer(schemas.AskResponse(results=results, provenance=service.provenance))

    @router.post("/classify", response_model=schemas.ClassifyResponse, openapi_extra=takes(schemas.ClassifyRequest))
    async def classify(request: Request) -> Response:
        """The probabilities of labels that you name, the likeliest first."""
        wanted, pictures = await read(request, schemas.ClassifyRequest)
        service.check_room(len(pictures))
        if len(wanted.labels) * len(wanted.templates) > MAX_SENTENCES:
            raise invalid(f"labels times templates may be at most {MAX_SENTENCES}")
        labels, templates = checked_labels(wanted.labels), checked_templates(wanted.templates)
        if wanted.unknown and "unknown" in labels:
            raise invalid("a label is named 'unknown', as the extra one; rename it")
        if len(labels) == 1 and not (wanted.unknown or wanted.multi_label):
            raise invalid(f"{labels[0]!r} is the only label, so there is nothing to choose; give two, as in cat,dog")
        want = Labels(labels, templates, wanted.unknown, wanted.multi_label)

        rows = await while_there(request, engine.ask(pictures, want))
        columns = [*labels, "unknown"] if wanted.unknown else labels
        results = [
            schemas.Classified(
                labels=[
                    schemas.Probability(label=columns[i], probability=float(row[i]))
                    for i in np.argsort(-row, kind="stable")
                ]
            )
            for row in rows
        ]
        return answer(schemas.ClassifyResponse(results=results, provenance=service.provenance))

    @router.post("/embed", response_model=schemas.EmbedResponse, openapi_extra=takes(schemas.EmbedRequest))
    async def embed(request: Request) -> Response:
        """Unit-norm embeddings of pictures and texts, in one space."""
        wanted, pictures = await read(request, schemas.EmbedRequest)
        if not pictures and not wanted.texts:
            raise invalid("give images, texts or both")
        images, texts = await while_there(request, embedded(pictures, wanted.texts))
        return answer(
            schemas.EmbedResponse(
                images=[row.tolist() for row in images],
                texts=[row.tolist() for row in texts],
                dimensions=service.dimensions,
                provenance=service.provenance,
            )
        )

    async def embedded(pictures: Sequence[Any], texts: Sequence[str]) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Both, together where both are wanted."""
        service.check_room(len(pictures) + 1)

        async def of_pictures() -> list[np.ndarray]:
            return await engine.ask(pictures) if pictures else []

        async def of_texts() -> list[np.ndarray]:
            return list(await engine.embed_texts(texts)) if texts else []

        both = await asyncio.gather(of_pictures(), of_texts())
        return both[0], both[1]

    @router.post(
        "/v1/embeddings",
        response_model=schemas.EmbeddingsResponse,
        openapi_extra=takes(schemas.EmbeddingsRequest, picture=False),
    )
    async def embeddings(request: Request) -> Response:
        """What OpenAI's clients ask for, with pictures as data: URLs or {"image": ...} among the texts."""
        wanted, _ = await read(request, schemas.EmbeddingsRequest)
        items = [wanted.input] if isinstance(wanted.input, str) else wanted.input
        if wanted.dimensions not in (None, service.dimensions):
            raise invalid(f"dimensions is {wanted.dimensions}; this model has {service.dimensions}")
        pictures, texts, places = [], [], []
        for i, item in enumerate(items):
            text, image = (item, None) if isinstance(item, str) else (item.text, item.image)
            if isinstance(item, str) and item.startswith("data:image/"):
                text, image = None, item
            if (text is None) == (image is None):
                raise invalid(f"input[{i}] must have a text or an image, and not both")
            if image is not None:
                places.append((0, len(pictures)))
                pictures.append(decoder(image, f"input[{i}]"))
                continue
            if not text or len(text) > service.limits.text_characters:
                raise invalid(f"input[{i}] must have 1 to {service.limits.text_characters} characters")
            places.append((1, len(texts)))
            texts.append(text)
        if len(pictures) > service.limits.images:
            raise invalid(f"there are {len(pictures)} pictures; give at most {service.limits.images}")
        rows = await while_there(request, embedded(pictures, texts))
        context = engine.predictor.model.config.text.context_length
        used = sum(min(context, len(engine.predictor.tokenizer.encode(text))) for text in texts)
        data = [
            schemas.Embedding(index=i, embedding=_as(wanted.encoding_format, rows[kind][row]))
            for i, (kind, row) in enumerate(places)
        ]
        usage = schemas.Usage(prompt_tokens=used, total_tokens=used)
        return answer(schemas.EmbeddingsResponse(data=data, model=service.provenance.model, usage=usage))

    return router


def _as(form: str, row: np.ndarray) -> list[float] | str:
    """Numbers, or the base64 of little-endian float32, as OpenAI's clients ask for by default."""
    return row.tolist() if form == "float" else base64.b64encode(row.astype("<f4").tobytes()).decode()
