"""The same bytes played to uvicorn and to a cluster get the same bytes back, but for the date."""

import asyncio
import contextlib
import re
import sys
from collections.abc import AsyncIterator

import pytest

from tests.cluster.raw import CLOSE, Raw, frame, handshake
from tests.support import ROOT
from wscluster.testing import Cluster

APP = "tests.cluster.asgi_apps:app"


def request(line: str, *headers: str, body: bytes = b"", close: bool = True) -> bytes:
    lines = [line, "Host: example.com", *headers, *(["Connection: close"] if close else [])]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


GET = "GET /what?a=1&b=%20 HTTP/1.1"
CHUNKED = b"4;name=value\r\nWiki\r\n5\r\npedia\r\n0\r\nTrailer: x\r\n\r\n"

REQUESTS: dict[str, bytes | tuple[bytes, bytes]] = {
    "get": request(GET, "X-Name: value", "x-name: other"),
    "head": request(GET.replace("GET", "HEAD")),
    "head of a stream": request("HEAD /stream HTTP/1.1"),
    "stream": request("GET /stream HTTP/1.1"),
    "stream to http 1.0": request("GET /stream HTTP/1.0"),
    "http 1.0": request("GET /what HTTP/1.0"),
    "http 1.0 kept alive": request("GET /what HTTP/1.0", "Connection: keep-alive", close=False),
    "post": request("POST /body HTTP/1.1", "Content-Length: 5", body=b"hello"),
    "chunked": request("POST /body HTTP/1.1", "Transfer-Encoding: chunked", body=CHUNKED),
    "bad chunk": request("POST /body HTTP/1.1", "Transfer-Encoding: chunked", body=b"zz\r\nhello\r\n"),
    "both lengths": request("POST /body HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked", body=CHUNKED),
    "two lengths": request("POST /body HTTP/1.1", "Content-Length: 5", "Content-Length: 6", body=b"hello!"),
    "expect": request("POST /body HTTP/1.1", "Expect: 100-continue", "Content-Length: 5", body=b"hello"),
    "expect, not read": request("POST /what HTTP/1.1", "Expect: 100-continue", "Content-Length: 5", body=b"hello"),
    "unread body, pipelined": request("POST /what HTTP/1.1", "Content-Length: 5", body=b"hello", close=False)
    + request(GET),
    "pipelined": request("GET /slow?0.05 HTTP/1.1", close=False)
    + request("POST /body HTTP/1.1", "Content-Length: 5", body=b"hello", close=False)
    + request("HEAD /what HTTP/1.1", close=False)
    + request("GET /stream HTTP/1.1"),
    "kept alive": request(GET, close=False),
    "percent": request("GET /%7Euser/%E2%82%AC%2F?q=%2F HTTP/1.1"),
    "absolute": request("GET http://other.example/what?x HTTP/1.1"),
    "asterisk": request("OPTIONS * HTTP/1.1"),
    "connect": request("CONNECT example.com:443 HTTP/1.1"),
    "no host": b"GET /what HTTP/1.1\r\nConnection: close\r\n\r\n",
    "latin-1": request(GET, "X-Name: \xe9\xff"),
    "long header": request(GET, "X-Name: " + "x" * 100_000),
    "folded": request(GET, "X-Name: a\r\n b"),
    "bad line": b"GET\r\n\r\n",
    "bad method": request("G\x00T / HTTP/1.1"),
    "bad header": request(GET, "a b: c"),
    "control character": request(GET, "X-Name: a\x00b"),
    "tls hello": b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03",
    "http 2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "204": request("GET /status?204 HTTP/1.1"),
    "304": request("GET /status?304 HTTP/1.1"),
    "404": request("GET /status?404 HTTP/1.1"),
    "app raises": request("GET /fail HTTP/1.1"),
    "app raises late": request("GET /fail-late HTTP/1.1"),
    "app says nothing": request("GET /nothing HTTP/1.1"),
    "unknown upgrade": request(GET, "Connection: Upgrade", "Upgrade: h2c", close=False),
    "websocket": (handshake("/echo"), frame("hello") + frame("again")),
    "websocket closed": (handshake("/echo"), frame("hello") + CLOSE),
    "websocket in haste": (handshake("/echo") + frame("hello"), CLOSE),
    "websocket with deflate": (
        handshake("/echo", "Sec-WebSocket-Extensions: permessage-deflate"),
        frame("hello " * 20) + CLOSE,
    ),
    "websocket told": handshake("/told?x=%20", "Sec-WebSocket-Protocol: chat, superchat"),
    "websocket refused": handshake("/refuse"),
    "websocket denied": handshake("/deny"),
    "websocket of another version": handshake("/echo", version="8"),
    "websocket without a mask": (handshake("/echo"), b"\x81\x05hello"),
    "websocket with bad text": (handshake("/echo"), b"\x81\x82\x00\x00\x00\x00\xff\xff"),
    "websocket without a key": request(
        "GET /echo HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", close=False
    ),
}


@contextlib.asynccontextmanager
async def uvicorn() -> AsyncIterator[int]:
    """uvicorn with the app; yields its port."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "uvicorn", APP, "--port", "0", "--http", "httptools", "--timeout-keep-alive", "1",
        cwd=ROOT, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(30):
            while not (found := re.search(rb"http://127\.0\.0\.1:(\d+)", await process.stderr.readline())):
                pass
        reading = asyncio.create_task(process.stderr.read())
        yield int(found[1])
    finally:
        process.terminate()
        await process.wait()
        await reading


async def play(port: int, data: bytes | tuple[bytes, bytes]) -> bytes:
    """Return all that comes, without dates; and whether the connection stays open, where nothing came for 3 seconds.

    The second part of ``data`` is sent when the head of an answer was there.
    """
    first, then = data if isinstance(data, tuple) else (data, b"")
    raw = await Raw.connect(port, data=first)
    told = (await raw.head()).encode("latin-1") if then else b""
    raw.writer.write(then)
    try:
        while chunk := await asyncio.wait_for(raw.reader.read(65536), 3):
            told += chunk
    except TimeoutError:
        told += b"(stays open)"
    except ConnectionError:
        told += b"(reset)"
    await raw.close()
    return re.sub(rb"(?i)date: [^\r]*", b"date: then", told)


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[bytes, bytes]]:
    """For each request the whole answer of uvicorn and of the cluster."""

    async def main() -> dict[str, tuple[bytes, bytes]]:
        async with uvicorn() as port, Cluster(APP, workers=1, timeout_keep_alive=1) as cluster:
            theirs, ours = [
                await asyncio.gather(*(play(port, data) for data in REQUESTS.values())) for port in (port, cluster.port)
            ]
        return dict(zip(REQUESTS, zip(theirs, ours, strict=True), strict=True))

    return asyncio.run(main())


@pytest.mark.parametrize("name", REQUESTS)
def test_the_answer_is_that_of_uvicorn(name: str, answers: dict[str, tuple[bytes, bytes]]) -> None:
    theirs, ours = answers[name]
    assert ours == theirs


def test_the_answers_say_something(answers: dict[str, tuple[bytes, bytes]]) -> None:
    """The comparison is of use only where uvicorn answered what is meant."""
    texts = {name: ours.decode("latin-1") for name, (_, ours) in answers.items()}
    assert texts["expect"].startswith("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert not texts["expect, not read"].startswith("HTTP/1.1 100")
    assert texts["pipelined"].count("HTTP/1.1 200 OK") == 4
    assert "http.request 9 " in texts["chunked"]
    assert texts["websocket"].startswith("HTTP/1.1 101 ")
    assert "hello" in texts["websocket"]
    assert "418" in texts["websocket denied"].partition("\r\n")[0]
    assert texts["websocket denied"].endswith("no entry")
    assert texts["websocket refused"].startswith("HTTP/1.1 403 ")
    assert texts["app raises"].startswith("HTTP/1.1 500 ")
    assert texts["bad header"].startswith("HTTP/1.1 400 ")
