"""Everything that the server's own description allows, and much that it doesn't, gets an answer that it describes."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.served import Client, picture, serving

pytest.importorskip("schemathesis", reason="schemathesis is not installed (the extra dev has it)")

from schemathesis import GenerationMode, openapi
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
PATHS = ("/caption", "/ask", "/classify", "/embed", "/search", "/thumbnail/{id}", "/v1/embeddings")
OTHERS = ("/livez", "/readyz", "/metrics", "/about", "/v1/models", "/policy")
FUZZ = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving() as started:
        yield started


@pytest.fixture(scope="module")
def schema(client: Client):
    return openapi.from_dict(client.ask("GET", "/openapi.json").json())


@pytest.mark.parametrize("path", [*PATHS, *OTHERS])
def test_every_answer_is_one_that_is_described(client: Client, schema, path: str) -> None:
    modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if path in PATHS else [GenerationMode.POSITIVE]
    for method in schema[path]:
        for mode in modes:  # what the description allows, and what it doesn't; without fields there is no such thing

            @FUZZ
            @given(case=schema[path][method].as_strategy(generation_mode=mode))
            def ask(case) -> None:
                case.call_and_validate(base_url=f"http://127.0.0.1:{client.port}", checks=CHECKS)

            ask()


OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "max_tokens": st.integers(1, 256).map(lambda count: count if count > 200 else count % 8 + 1),
        "beams": st.integers(1, 16),
        "temperature": st.floats(0, 10),
        "top_k": st.integers(0, 1000),
        "top_p": st.floats(0.001, 1),
        "length_penalty": st.floats(-10, 10),
        "repetition_penalty": st.floats(0.1, 10),
        "no_repeat_ngram": st.integers(0, 32),
        "seed": st.integers(0, 2**53),
        "num_captions": st.integers(1, 8),
        "prompt": st.text(max_size=20),
        "stream": st.booleans(),
    },
)


@settings(max_examples=15, deadline=None)
@given(options=OPTIONS)
def test_no_options_of_a_caption_break_it(client: Client, options: dict) -> None:
    answer = client.post("/caption", {"images": [base64.b64encode(picture()).decode()], **options})
    assert answer.status in (200, 422), answer.body
    assert b"event: error" not in answer.body and b"NaN" not in answer.body


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=8),
    templates=st.lists(st.text(max_size=10).map(lambda text: text + "{}"), min_size=1, max_size=3),
    unknown=st.booleans(),
    multi_label=st.booleans(),
)
def test_no_labels_break_a_classification(client: Client, labels, templates, unknown, multi_label) -> None:
    content = {"images": [base64.b64encode(picture()).decode()], "labels": labels, "templates": templates}
    answer = client.post("/classify", {**content, "unknown": unknown, "multi_label": multi_label})
    assert answer.status in (200, 422), answer.body
    if answer.status == 200:
        rows = answer.json()["results"][0]["labels"]
        assert all(0 <= row["probability"] <= 1 for row in rows) and len(rows) == len(labels) + unknown


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace")))
def test_no_bytes_break_it(client: Client, body: bytes) -> None:
    for kind in ("application/json", "image/png"):
        answer = client.ask("POST", "/caption", body, {"Content-Type": kind})
        assert answer.status == 422, answer.body
