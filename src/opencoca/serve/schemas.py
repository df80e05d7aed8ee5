"""What requests and answers look like. Numbers and lengths are bounded here; bytes and pixels are elsewhere."""

from __future__ import annotations

import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from opencoca.serve.settings import Limits

LIMITS = Limits()  # of lengths, which the schema states and no server changes
Short = Annotated[str, StringConstraints(max_length=300)]
Label = Annotated[str, StringConstraints(min_length=1, max_length=LIMITS.label_characters)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=LIMITS.text_characters)]
Image = Annotated[str, Field(description="a picture file as base64, or as a data: URL; never another URL")]
Images = Annotated[list[Image], Field(min_length=1, max_length=LIMITS.images)]


class Request(BaseModel):
    """Fields that nobody knows are refused, so that a misspelt option isn't passed over."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Generation(Request):
    """How captions are generated; what is left out is as the model says."""

    max_tokens: Annotated[int, Field(ge=1, le=256)] | None = None
    beams: Annotated[int, Field(ge=1, le=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_k: Annotated[int, Field(ge=0, le=100_000)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    length_penalty: Annotated[float, Field(ge=-10, le=10)] | None = None
    repetition_penalty: Annotated[float, Field(ge=0.1, le=10)] | None = None
    no_repeat_ngram: Annotated[int, Field(ge=0, le=32)] | None = None
    seed: Annotated[int, Field(ge=0, le=2**53)] | None = None

    def changes(self) -> dict[str, Any]:
        """Those that were given, as `Predictor.caption` takes them."""
        found = {name: getattr(self, name) for name in Generation.model_fields}
        return {name: value for name, value in found.items() if value is not None}


class CaptionRequest(Generation):
    """Captions of pictures. With `stream`, they come as server-sent events while they are being written."""

    images: Images
    prompt: Short = ""
    num_captions: Annotated[int, Field(ge=1, le=8)] = 1
    stream: bool = False


class AskRequest(Generation):
    """One question about each picture."""

    images: Images
    question: Annotated[str, StringConstraints(min_length=1, max_length=300)]


class ClassifyRequest(Request):
    """Labels for pictures. See `opencoca.infer.zeroshot.ZeroShotOptions`."""

    images: Images
    labels: Annotated[list[Label], Field(min_length=1, max_length=LIMITS.labels)]
    templates: Annotated[list[Label], Field(min_length=1, max_length=8)] = Field(default=["{}"])
    unknown: bool = False
    multi_label: bool = False


class EmbedRequest(Request):
    """Pictures, texts or both."""

    images: Annotated[list[Image], Field(max_length=LIMITS.images)] = Field(default=[])
    texts: Annotated[list[Text], Field(max_length=LIMITS.texts)] = Field(default=[])


class SearchRequest(Request):
    """A sentence (or arithmetic of sentences and found pictures: `"red car" + id:7 - night`), a picture, or both.

    With both, the picture is the query's first term: a picture and `- night`. `after` and `before` are days when a
    picture was taken, `folder` is below the indexed one; `blend` says how much captions count, from 0 to 1.
    """

    query: Short = ""
    image: Image | None = None
    top: Annotated[int, Field(ge=1, le=100)] = 24
    offset: Annotated[int, Field(ge=0, le=9_900)] = 0
    blend: Annotated[float, Field(ge=0, le=1)] = 0.0
    after: datetime.date | None = None
    before: datetime.date | None = None
    min_bytes: Annotated[int, Field(ge=0, le=2**53)] | None = None
    max_bytes: Annotated[int, Field(ge=0, le=2**53)] | None = None
    folder: Short = ""


class Item(Request):
    """A text or a picture of /v1/embeddings."""

    text: Text | None = None
    image: Image | None = None


class EmbeddingsRequest(BaseModel):
    """OpenAI's, with pictures: an item is a text, a data: URL of a picture, {"text": ...} or {"image": ...}."""

    model_config = ConfigDict(extra="ignore")  # as OpenAI's does with `user`

    input: str | Annotated[list[str | Item], Field(min_length=1, max_length=LIMITS.texts)]
    model: Short = ""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None


class Provenance(BaseModel):
    """Which program and model made an answer."""

    generator: str
    model: str
    fingerprint: str
    digital_source_type: str = "trainedAlgorithmicMedia"


class Said(BaseModel):
    """A caption: `log_prob` in nats, `match` its cosine similarity to the picture; `withheld` by the word list."""

    text: str
    log_prob: float
    match: float
    withheld: bool = False


class Captioned(BaseModel):
    caption: str
    captions: list[Said]


class CaptionResponse(BaseModel):
    results: list[Captioned]
    provenance: Provenance


class Answered(BaseModel):
    answer: str
    withheld: bool = False


class AskResponse(BaseModel):
    results: list[Answered]
    provenance: Provenance


class Probability(BaseModel):
    label: str
    probability: float


class Classified(BaseModel):
    labels: list[Probability]


class ClassifyResponse(BaseModel):
    """Of each picture its labels, the likeliest first."""

    results: list[Classified]
    provenance: Provenance


class EmbedResponse(BaseModel):
    """Unit-norm embeddings."""

    images: list[list[float]]
    texts: list[list[float]]
    dimensions: int
    provenance: Provenance


class Found(BaseModel):
    """A picture of the folder. `good` is False where it is no better than what unrelated words find."""

    id: int
    name: str
    score: float
    caption: str
    why: str
    good: bool


class SearchResponse(BaseModel):
    hits: list[Found]
    more: bool
    provenance: Provenance


class Embedding(BaseModel):
    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class Usage(BaseModel):
    prompt_tokens: int
    total_tokens: int


class EmbeddingsResponse(BaseModel):
    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: Usage


class About(BaseModel):
    """What the page shows: the model, whether it was trained on questions, how many pictures can be searched."""

    model: str
    generator: str
    fingerprint: str
    dimensions: int
    pictures: int | None
    answers: bool
    filtered: bool


class ErrorDetail(BaseModel):
    message: str
    type: str
    code: str
    request_id: str


class ErrorResponse(BaseModel):
    error: ErrorDetail
