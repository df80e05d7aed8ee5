"""A server that is told to end before its event loop has looked at its socket."""

import asyncio
import socket

import uvicorn

from opencoca.serve.run import Server


async def _app(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def test_who_waits_in_the_backlog_is_answered_before_the_socket_closes() -> None:
    async def ended_at_once(listening: socket.socket) -> None:
        server = Server(uvicorn.Config(_app, lifespan="off", log_level="error", backlog=16))
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup([listening])
        with socket.create_connection(listening.getsockname(), timeout=10) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            await server.shutdown([listening])
            assert client.recv(4096).startswith(b"HTTP/1.1 200")

    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        asyncio.run(ended_at_once(listening))
