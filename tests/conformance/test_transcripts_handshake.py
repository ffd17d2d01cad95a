"""The recorded HTTP handshakes, each side of them against ours."""

import base64
import hashlib
import json
from pathlib import Path

import pytest
import trio
from trio.testing import memory_stream_pair

from trio_p2p import (
    AuthError,
    HandshakeError,
    ListenerPasswordAuthenticator,
    URLEndpointListener,
    URLEndpointListenerConfiguration,
)
from trio_p2p.transport.websocket import open_client_websocket

TRANSCRIPTS = sorted((Path(__file__).parents[1] / "vectors" / "transcripts").glob("*.jsonl"))
# The key of RFC 6455's example, and the answer to it.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def handshakes(path):
    """The request and the answer of each connection."""
    told = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "http":
            told.setdefault(entry["conn"], {})[entry["dir"]] = entry["text"]
    return [(told[conn]["c2s"], told[conn]["s2c"]) for conn in sorted(told)]


HANDSHAKES = [
    pytest.param(request, answer, id=f"{path.stem}-{number}")
    for path in TRANSCRIPTS
    for number, (request, answer) in enumerate(handshakes(path), 1)
]


def headers(text):
    """The first line, and the headers by name in lower case."""
    first, *lines = text.split("\r\n\r\n")[0].split("\r\n")
    return first, {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


async def answer_to(listener, request):
    """What the listener answers to a raw client."""
    ours, theirs = memory_stream_pair()
    await ours.send_all(request.encode())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(listener.handle, theirs)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await ours.receive_some()
        nursery.cancel_scope.cancel()
    return answer.decode()


def test_the_handshakes_are_there():
    assert len(HANDSHAKES) == 59


@pytest.mark.behaviour("B10a", "B10b")
@pytest.mark.parametrize(("request_text", "_recorded"), HANDSHAKES)
async def test_a_recorded_client_finds_in_our_answer_what_it_looks_for(
    pair, request_text, _recorded
):
    """Couchbase Lite compares them exactly, and takes a header without a value for damage."""
    configuration = URLEndpointListenerConfiguration(
        collections=pair.there.collections(), disable_tls=True
    )
    listener = URLEndpointListener(configuration)
    _, asked = headers(request_text)
    answer = await answer_to(
        listener,
        request_text.replace("/db/", f"/{pair.there.name}/").replace(
            asked["sec-websocket-key"], KEY
        ),
    )
    status, told = headers(answer)
    if "BLIP_3+CBMobile_4" not in asked["sec-websocket-protocol"].split(","):
        assert status.startswith("HTTP/1.1 400 ")
        return
    assert status.startswith("HTTP/1.1 101 ")
    assert told["upgrade"] == "websocket"
    assert told["connection"].lower() == "upgrade"
    assert told["sec-websocket-accept"] == ACCEPT
    assert told["sec-websocket-protocol"] == "BLIP_3+CBMobile_4"
    assert all(value.strip() for value in told.values())


@pytest.mark.parametrize(("_request", "answer"), HANDSHAKES)
async def test_the_answer_of_a_recorded_server_opens_or_refuses_our_client(_request, answer):
    ours, theirs = memory_stream_pair()
    status, told = headers(answer)
    offered = told.get("sec-websocket-protocol", "BLIP_3+CBMobile_4")

    async def serve():
        request = b""
        while b"\r\n\r\n" not in request:
            request += await theirs.receive_some()
        _, asked = headers(request.decode())
        accept = accept_for(asked["sec-websocket-key"])
        recorded = told.get("sec-websocket-accept", "")
        await theirs.send_all((answer.replace(recorded, accept) if recorded else answer).encode())
        if " 101 " not in status:
            await theirs.send_eof()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        opening = open_client_websocket(
            ours, host="localhost", resource="/db/_blipsync", subprotocols=[offered]
        )
        if " 101 " in status:
            async with opening as transport:
                assert transport.subprotocol == offered
                transport.abort()
            return
        with pytest.raises(HandshakeError) as refused:
            async with opening:
                pass
        assert refused.value.status == int(status.split()[1])
        assert isinstance(refused.value, AuthError) == (refused.value.status == 401)


def accept_for(key):
    """RFC 6455, section 4.2.2."""
    digest = hashlib.sha1((key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()
    return base64.b64encode(digest).decode()


@pytest.mark.behaviour("W2a")
async def test_the_recorded_credentials_are_understood(pair):
    """`auth-ok` shows a name and password, `auth-fail` none."""
    asked = []

    def check(user, password):
        asked.append((user, password))
        return True

    configuration = URLEndpointListenerConfiguration(
        collections=pair.there.collections(),
        disable_tls=True,
        authenticator=ListenerPasswordAuthenticator(check),
    )
    listener = URLEndpointListener(configuration)
    for name, expected in (("auth-fail", "401"), ("auth-ok", "101")):
        ((request, _),) = handshakes(TRANSCRIPTS[0].with_name(f"{name}.jsonl"))
        request = request.replace("/db/", f"/{pair.there.name}/").replace(
            "BLIP_3+CBMobile_3", "BLIP_3+CBMobile_4"
        )
        status, _ = headers(await answer_to(listener, request))
        assert status.split()[1] == expected
    assert asked == [("user", "secret")]
