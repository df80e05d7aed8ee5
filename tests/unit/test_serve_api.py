"""What the server answers is what the Predictor says."""

from __future__ import annotations

import base64
import concurrent.futures
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests import served
from tests.served import JSON, Client, events, picture, serving

from opencoca.errors import DataError
from opencoca.infer.predictor import Predictor
from opencoca.search.filters import Filters
from opencoca.search.index import Index
from opencoca.serve.settings import Limits
from opencoca.serve.words import WITHHELD


class FakeIndex:
    """Thirty pictures whose names are attacks."""

    folder = Path("/secret/pictures")

    def __len__(self) -> int:
        return 30

    def embed_terms(self, terms, pictures=None) -> str:
        return " ".join(term.value for term in terms)

    def search(self, query, k: int, filters=None, blend: float = 0.0) -> list:
        name = "<img src=x onerror=alert(1)>.png"
        return [
            SimpleNamespace(
                id=i, path=self.folder / f"a{i}" / name, score=1 - i / 100, caption=str(query)[:20], why="w", good=True
            )
            for i in range(min(k, 30))
        ]

    def thumbnail(self, id: int, size_px: int) -> bytes:
        if id >= 30:
            raise DataError(f"{self.folder}/a{id} is unknown")
        return b"jpeg %d" % size_px


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return served.predictor()


@pytest.fixture(scope="module")
def client(predictor: Predictor) -> Iterator[Client]:
    with serving(predictor, FakeIndex()) as started:
        yield started


def test_a_caption_of_bytes_and_of_json_is_the_predictors(client: Client, predictor: Predictor) -> None:
    pictures = [picture(i) for i in range(3)]
    wanted = predictor.captions(pictures, num_captions=2, beams=2)
    found = client.post(
        "/caption",
        {"images": [base64.b64encode(one).decode() for one in pictures], "num_captions": 2, "beams": 2},
    ).json()
    assert [[c["text"] for c in one["captions"]] for one in found["results"]] == [[c.text for c in s] for s in wanted]
    for one, some in zip(found["results"], wanted, strict=True):
        assert one["caption"] == some[0].text
        np.testing.assert_allclose(one["captions"][0]["log_prob"], some[0].log_prob, atol=1e-4)
        np.testing.assert_allclose(one["captions"][0]["match"], some[0].match, atol=1e-5)
    raw = client.post("/caption?num_captions=2&beams=2", pictures[0]).json()
    assert raw["results"][0]["caption"] == wanted[0][0].text
    url = "data:image/png;base64," + base64.b64encode(pictures[0]).decode()
    assert client.post("/caption", {"images": [url], "beams": 2}).json()["results"][0]["caption"] == wanted[0][0].text


def test_sampling_depends_on_picture_and_seed_alone(client: Client, predictor: Predictor) -> None:
    options = {"temperature": 1.5, "seed": 7}
    wanted = predictor.caption([picture(4)], **options)[0]
    images = [base64.b64encode(picture(i)).decode() for i in (1, 4)]
    assert client.post("/caption", {"images": images, **options}).json()["results"][1]["caption"] == wanted


def test_answers_say_which_model_made_them(client: Client, predictor: Predictor) -> None:
    made = client.post("/caption", picture()).json()["provenance"]
    assert made["model"] == "tiny" and made["generator"].startswith("OpenCoCa")
    assert predictor.fingerprint().startswith(made["fingerprint"]) and len(made["fingerprint"]) == 16
    assert made["digital_source_type"] == "trainedAlgorithmicMedia"


def test_labels_stand_the_likeliest_first(client: Client, predictor: Predictor) -> None:
    labels = ["red circle", "blue bar", "a cat"]
    wanted = predictor.classify([picture()], labels, unknown=True)[0].tolist()
    found = client.post("/classify?labels=red circle,blue bar&labels=a cat&unknown=true".replace(" ", "%20"), picture())
    rows = found.json()["results"][0]["labels"]
    assert [row["probability"] for row in rows] == sorted((row["probability"] for row in rows), reverse=True)
    assert {row["label"] for row in rows} == {*labels, "unknown"}
    by_label = {row["label"]: row["probability"] for row in rows}
    np.testing.assert_allclose([by_label[label] for label in [*labels, "unknown"]], wanted, atol=1e-5)


def test_embeddings_of_both_kinds(client: Client, predictor: Predictor) -> None:
    texts = [f"text {i}" for i in range(40)]  # more than one job, and than one batch
    content = {"images": [base64.b64encode(picture()).decode()], "texts": texts}
    found = client.post("/embed", content).json()
    np.testing.assert_allclose(found["images"], predictor.embed_images([picture()]).numpy(), atol=1e-5)
    np.testing.assert_allclose(found["texts"], predictor.embed_texts(texts).numpy(), atol=1e-5)
    assert found["dimensions"] == predictor.model.config.embed_dim


def test_openai_clients_find_what_they_know(client: Client, predictor: Predictor) -> None:
    url = "data:image/png;base64," + base64.b64encode(picture()).decode()
    wanted = {"input": ["red", url, {"image": url}, {"text": "blue"}], "model": "any", "user": "somebody"}
    found = client.post("/v1/embeddings", wanted).json()
    assert found["object"] == "list" and [one["index"] for one in found["data"]] == [0, 1, 2, 3]
    image, text = predictor.embed_images([picture()])[0].numpy(), predictor.embed_texts(["red", "blue"]).numpy()
    for one, row in zip(found["data"], [text[0], image, image, text[1]], strict=True):
        np.testing.assert_allclose(one["embedding"], row, atol=1e-5)
    assert found["usage"]["prompt_tokens"] == sum(len(predictor.tokenizer.encode(word)) for word in ("red", "blue"))
    packed = client.post("/v1/embeddings", {"input": "red", "encoding_format": "base64"}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(np.frombuffer(base64.b64decode(packed), "<f4"), text[0], atol=1e-6)
    assert client.post("/v1/embeddings", {"input": "red", "dimensions": 3}).status == 422
    assert client.ask("GET", "/v1/models").json()["data"][0]["id"] == "tiny"


def test_a_question_is_answered_as_the_predictor_does(client: Client, predictor: Predictor) -> None:
    wanted = predictor.answer([picture()], "red?")
    assert client.post("/ask?question=red%3F", picture()).json()["results"][0]["answer"] == wanted[0]


def test_a_stream_ends_with_what_the_plain_answer_says(client: Client) -> None:
    plain = client.post("/caption?max_tokens=8", picture()).json()
    answer = client.post("/caption?max_tokens=8&stream=true", picture())
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.body)
    assert found[-1] == ("done", {"provenance": plain["provenance"]})
    assert found[-2] == ("caption", {"index": 0, **plain["results"][0]})
    partial = [data["text"] for kind, data in found if kind == "partial"]
    assert len(partial) >= 2 and len(partial[-1]) > len(partial[0])  # it grew while it was written


def test_one_picture_is_encoded_once_for_all_that_is_asked(predictor: Predictor, monkeypatch) -> None:
    seen: list[int] = []
    whole = predictor.encode_squares

    def counted(squares: np.ndarray):
        seen.append(len(squares))
        return whole(squares)

    monkeypatch.setattr(predictor, "encode_squares", counted)
    with serving(predictor) as client, concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = ["/caption", "/embed", "/classify?labels=a,b", "/ask?question=x", "/caption?beams=1", "/embed"]
        answers = list(pool.map(lambda path: client.post(path, picture(5)), asked))
    assert [answer.status for answer in answers] == [200] * 6
    assert sum(seen) == 1


def test_a_search_pages_and_names_no_folder(client: Client) -> None:
    first = client.post("/search", {"query": "a boat", "top": 20}).json()
    second = client.post("/search", {"query": "a boat", "top": 20, "offset": 20}).json()
    assert [hit["id"] for hit in first["hits"] + second["hits"]] == list(range(30))
    assert first["more"] and not second["more"]
    assert "/secret" not in json.dumps(first)
    assert first["hits"][0]["name"] == "a0/<img src=x onerror=alert(1)>.png"
    assert client.post("/search", picture()).json()["hits"][0]["caption"].startswith("[")  # it asked with an embedding
    assert client.post("/search", {}).status == 422
    assert client.ask("GET", "/thumbnail/3?size=99").body == b"jpeg 99"
    unknown = client.ask("GET", "/thumbnail/31")
    assert unknown.status == 404 and b"secret" not in unknown.body
    assert client.ask("GET", "/thumbnail/3?size=5000").status == 422


@pytest.fixture(scope="module")
def indexed(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Client, Index]]:
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    for i in range(12):
        (folder / ("sub" if i % 2 else "") / f"{i}.png").write_bytes(picture(i, (24 + i, 18)))
    index = Index.make(folder, predictor, "tiny", index=tmp_path_factory.mktemp("index") / "it", captions=True)
    with serving(predictor, index) as started:
        yield started, index


def test_a_real_index_answers_as_it_does_by_itself(indexed: tuple[Client, Index], predictor: Predictor) -> None:
    client, index = indexed

    def ids(answer) -> list[int]:
        assert answer.status == 200, answer.body
        return [hit["id"] for hit in answer.json()["hits"]]

    def own(query, k: int = 24, **more) -> list[int]:
        return [hit.id for hit in index.search(query, k, **more)]

    words, file = 'red + "a cat" - night', picture(3, (27, 18))
    found = client.post("/search", {"query": words, "top": 5, "blend": 0.5})
    assert ids(found) == own(words, 5, blend=0.5) and "similarity" in found.json()["hits"][0]["why"]
    assert [hit["good"] for hit in found.json()["hits"]] == [hit.good for hit in index.search(words, 5, blend=0.5)]
    assert ids(client.post("/search?folder=sub", file)) == own(
        predictor.embed_images([file])[0].numpy(), filters=Filters(folder="sub")
    )
    small = {"query": words, "max_bytes": 1400, "after": "2001-01-01", "before": "2999-12-31"}
    assert 0 < len(ids(client.post("/search", small))) < 12
    assert ids(client.post("/search", {"query": words, "before": "2001-01-01"})) == []
    for both in ("- red", "+ red", "red"):
        content = {"query": both, "image": base64.b64encode(file).decode()}
        sign = both if both[0] in "+-" else f"+ {both}"
        assert ids(client.post("/search", content)) == own(index.embed(f"a.png {sign}", pictures=lambda _: file))
    named = {"query": "red.png"}  # a name of a file is words here
    assert ids(client.post("/search", named)) == own("red.png")


def test_a_search_that_makes_no_sense_names_no_file(indexed: tuple[Client, Index]) -> None:
    client, index = indexed
    for content in (
        {"query": "- night"},
        {"query": "id:999"},
        {"query": "red - red"},
        {"query": "red", "folder": "../.."},
        {"query": "red", "folder": "/etc"},
        {"query": "red", "after": "2024-02-31"},
        {"query": "red", "after": "2024-02-02", "before": "2024-01-01"},
        {"query": "red", "min_bytes": 9, "max_bytes": 8},
        {"query": "red", "min_bytes": -1},
        {"query": "red", "blend": 1.5},
        {"query": " "},
    ):
        answer = client.post("/search", content)
        assert answer.status == 422, content
        assert str(index.folder).encode() not in answer.body


def test_captions_that_take_too_long_are_given_up(predictor: Predictor) -> None:
    with serving(predictor, limits=Limits(idle_s=1, answer_s=1e-6)) as client:
        answer = client.post("/caption?beams=4&max_tokens=30", picture())
        assert (answer.status, answer.json()["error"]["code"]) == (503, "too_long") and answer.headers["retry-after"]
        assert client.post("/caption", picture()).status == 200  # as the model itself says: however long it takes


def test_what_the_word_list_holds_is_withheld(predictor: Predictor, tmp_path: Path) -> None:
    said = predictor.caption([picture()])[0]
    (tmp_path / "words").write_text(f"# a list\n\n{said.upper()}\n", "utf-8")
    with serving(predictor, words=tmp_path / "words") as client:
        found = client.post("/caption", picture()).json()["results"][0]
        assert found["caption"] == WITHHELD and found["captions"][0]["withheld"]
        several = client.post("/caption?num_captions=3&beams=3", picture()).json()["results"][0]
        assert several["captions"][-1]["withheld"] == (several["captions"][-1]["text"] == WITHHELD)
        streamed = events(client.post("/caption?stream=true", picture()).body)
        assert [kind for kind, _ in streamed] == ["caption", "done"]
        assert said not in json.dumps(streamed)


def test_health_figures_policy_and_description(client: Client) -> None:
    assert client.ask("GET", "/livez").body == client.ask("GET", "/readyz").body == b"ok\n"
    client.post("/embed", picture())
    figures = client.ask("GET", "/metrics").body.decode()
    assert 'coca_requests_total{route="/embed",status="200"}' in figures and "coca_batch_jobs_bucket" in figures
    assert b"Use policy" in client.ask("GET", "/policy").body
    paths = client.ask("GET", "/openapi.json").json()["paths"]
    assert {"/caption", "/classify", "/embed", "/search", "/ask", "/v1/embeddings"} <= set(paths)
    about = client.ask("GET", "/about").json()
    assert (about["model"], about["pictures"], about["answers"]) == ("tiny", 30, False)


def test_the_page_comes_from_here_alone(client: Client) -> None:
    page = client.ask("GET", "/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for name in ("/", "/docs", "/static/app.js", "/static/style.css", "/static/cards.js", "/static/search.js"):
        answer = client.ask("GET", name)
        assert answer.status == 200 and b"http://" not in answer.body.replace(b"http://127.0.0.1", b"")
        assert b"https://" not in answer.body and b"innerHTML" not in answer.body
        assert client.ask("GET", name, headers={"If-None-Match": answer.headers["etag"]}).status == 304
    assert client.ask("GET", "/static/icon.svg").headers["content-type"] == "image/svg+xml; charset=utf-8"


def test_odd_fields_are_refused_with_their_names(client: Client) -> None:
    for path, content, said in [
        ("/caption", {"imagse": ["x"]}, "images"),
        ("/caption", {"images": []}, "images"),
        ("/caption", {"images": ["x"] * 17}, "images"),
        ("/caption", {"images": ["AAAA"], "beams": 1000}, "beams"),
        ("/caption", {"images": ["AAAA"], "prompt": "word " * 50}, "prompt"),
        ("/classify", {"images": ["AAAA"], "labels": ["a", "a"]}, "differ"),
        ("/embed", {}, "give images"),
        ("/ask", {"images": ["AAAA"], "question": ""}, "question"),
        ("/v1/embeddings", {"input": [{"text": "a", "image": "b"}]}, "input[0]"),
        ("/v1/embeddings", {"input": ""}, "input[0]"),
    ]:
        answer = client.post(path, content)
        assert (answer.status, said in answer.json()["error"]["message"]) == (422, True), (content, answer.body)
    assert client.ask("POST", "/caption", b"x", {"Content-Type": "text/plain"}).status == 415
    assert client.ask("POST", "/caption?beams=2", b"{}", JSON).status == 400
    assert client.post("/caption?nonsense=1", picture()).status == 422
