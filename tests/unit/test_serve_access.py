"""Requests from the wrong place, without a token, for other files and hosts."""

from __future__ import annotations

import base64
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest
from tests.served import TOKEN, Client, serving

from opencoca.errors import ConfigError
from opencoca.serve.settings import Settings


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with serving() as started:
        yield started


# --- who asks, and from where ---------------------------------------------------------------------------------------


def test_the_token_is_asked_of_all_but_the_page() -> None:
    wrong = [
        None,
        "",
        TOKEN,
        f"Basic {TOKEN}",
        f"Bearer {TOKEN[:-1]}",
        f"Bearer {TOKEN}x",
        f"bearer  {TOKEN.upper()}",
        f"Bearer {TOKEN} {TOKEN}",
        "Bearer \xff",
    ]
    with serving(token=TOKEN, host="0.0.0.0", hosts=("pictures.example",)) as client:
        for method, path in [
            ("GET", "/about"),
            ("GET", "/metrics"),
            ("GET", "/v1/models"),
            ("GET", "/thumbnail/1"),
            ("POST", "/caption"),
            ("POST", "/classify"),
            ("POST", "/embed"),
            ("POST", "/ask"),
            ("POST", "/search"),
            ("POST", "/v1/embeddings"),
            ("GET", "/nowhere"),
            ("GET", "/static"),
            ("GET", "//livez"),
            ("DELETE", "/caption"),
        ]:
            for given in wrong:
                headers = {} if given is None else {"Authorization": given.encode("latin-1")}
                answer = client.ask(method, path, headers=headers)  # type: ignore[arg-type]
                assert (answer.status, answer.headers.get("www-authenticate")) == (401, "Bearer"), (path, given)
            assert client.ask(method, path, headers={"Authorization": f"Bearer {TOKEN}"}).status not in (401, 403)
        for path in ("/", "/docs", "/openapi.json", "/livez", "/readyz", "/policy", "/static/app.js"):
            assert client.ask("GET", path).status == 200, path
        for host, status in [
            ("127.0.0.1:80", 200),
            ("192.168.7.9:8000", 200),
            ("[fe80::1]:8000", 200),
            ("pictures.example", 200),
            ("evil.example", 421),
            ("127.0.0.1.evil.example", 421),
        ]:
            assert client.ask("GET", "/livez", headers={"Host": host}).status == status, host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.7.9", "example.org"])
def test_other_hosts_than_this_machine_need_a_token(host: str) -> None:
    with pytest.raises(ConfigError, match="token"):
        Settings(host=host)
    assert Settings(host=host, token=TOKEN).token == TOKEN
    assert TOKEN not in repr(Settings(host=host, token=TOKEN))
    with pytest.raises(ConfigError, match="at least 16"):
        Settings(host=host, token="short")
    assert all(Settings(host=own).loopback for own in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))


def test_other_pages_and_names_are_refused(client: Client) -> None:
    here = f"127.0.0.1:{client.port}"
    for headers, status in [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:1"}, 200),
        ({"Host": "[::1]:80"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "localhost.evil.example"}, 421),
        ({"Host": "192.168.7.9"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": f"http://{here}"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://{here}.evil.example"}, 403),
        ({"Origin": f"http://evil.example/{here}"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),  # a link that leads here
        ({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, 200),
    ]:
        answer = client.ask("GET", "/about", headers=headers)
        assert answer.status == status, headers
        assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    assert client.ask("OPTIONS", "/caption", headers=preflight).status == 403


# --- other hosts, other files -----------------------------------------------------------------------------------


def test_no_url_is_ever_fetched(client: Client) -> None:
    visits: list[int] = []
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as bait:
        bait.settimeout(0.1)
        ended = threading.Event()

        def count() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    bait.accept()[0].close()
                    visits.append(1)

        thread = threading.Thread(target=count)
        thread.start()
        at = f"127.0.0.1:{bait.getsockname()[1]}"
        urls = [f"http://{at}/a.png", f"HTTPS://{at}/", f"//{at}/", f"ftp://{at}/", "file:///etc/passwd", "/etc/passwd"]
        urls += [f"data:image/png,http://{at}/", f"data:image/svg+xml;base64,{base64.b64encode(svg(at)).decode()}"]
        for url in urls:
            for path, content in [
                ("/caption", {"images": [url]}),
                ("/search", {"image": url}),
                ("/v1/embeddings", {"input": [{"image": url}]}),
                ("/caption", {"images": [{"url": url}]}),
            ]:
                assert client.post(path, content).status in (404, 422), (url, path)
        ended.set()
        thread.join()
    assert not visits


def svg(at: str) -> bytes:
    return f'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://{at}/a.png"/></svg>'.encode()


def test_no_path_leads_out(client: Client) -> None:
    for path in (
        "/static/../policy.txt",
        "/static/..%2fpolicy.txt",
        "/static/%2e%2e/%2e%2e/errors.py",
        "/static/....//policy.txt",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/app.js%00.png",
        "/static/..\\policy.txt",
        "/thumbnail/..%2f..%2fetc%2fpasswd",
        "/thumbnail/../../etc/passwd",
        "/thumbnail/1e3",
        "/thumbnail/-1",
        "/thumbnail/99999999999999999999999",
        "/../../etc/passwd",
        "/static",
        "/static/",
        "/static/app.js/",
        "/livez/",
    ):
        answer = client.ask("GET", path)
        assert answer.status in (404, 422), path
        assert b"root:" not in answer.body and b"Use policy" not in answer.body
        assert answer.headers["content-type"] == "application/json"
