"""The WebSocket handshake of a listener, as raw clients see it."""

import pytest
import trio
from loopback import open_pair
from trio.testing import memory_stream_pair

from trio_p2p import BasicAuthenticator, ListenerPasswordAuthenticator

KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def upgrade(pair, *, path=None, protocol="BLIP_3+CBMobile_4", **headers):
    """The request of a client."""
    told = {
        "Host": "shop.example",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        **({"Sec-WebSocket-Protocol": protocol} if protocol else {}),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"GET {path or f'/{pair.there.name}/_blipsync'} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in told.items()]
    return "\r\n".join([*lines, "", ""]).encode()


async def answer_to(pair, request):
    """What the listener answers: the status, and all that follows until it hangs up or opens."""
    ours, theirs = memory_stream_pair()
    await ours.send_all(request)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pair.listener().handle, theirs)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += await ours.receive_some()
        nursery.cancel_scope.cancel()
    return int(answer.split()[1]), answer


@pytest.mark.behaviour("W1")
async def test_a_get_that_asks_for_no_upgrade_is_answered_426(pair):
    request = f"GET /{pair.there.name}/_blipsync HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    status, _ = await answer_to(pair, request)
    assert status == 426


@pytest.mark.behaviour("W2a")
async def test_wrong_credentials_are_answered_401_before_the_upgrade(tmp_path):
    right = ListenerPasswordAuthenticator(lambda *shown: shown == ("ann", "s3cret"))
    async with open_pair(tmp_path, authenticator=right) as pair:
        for shown, expected in ((None, 401), ("guess", 401), ("s3cret", 101)):
            credentials = dict([BasicAuthenticator("ann", shown).header()] if shown else [])
            status, answer = await answer_to(pair, upgrade(pair, **credentials))
            assert status == expected
            assert (b"WWW-Authenticate: Basic" in answer) == (expected == 401)


@pytest.mark.behaviour("W3a")
async def test_extra_headers_reach_the_peer(pair, nursery):
    request = b""
    ours, theirs = memory_stream_pair()

    async def connect():
        await trio.lowlevel.checkpoint()
        return ours

    configuration = {"target": connect, "headers": {"X-Till": "3", "Cookie": "a=b"}}
    nursery.start_soon(lambda: pair.replicate(**configuration))
    while b"\r\n\r\n" not in request:
        request += await theirs.receive_some()
    lines = request.decode().split("\r\n")
    assert "X-Till: 3" in lines
    assert "Cookie: a=b" in lines
    nursery.cancel_scope.cancel()


@pytest.mark.behaviour("B10a", "B10b")
@pytest.mark.parametrize(
    ("protocol", "status"),
    [
        ("BLIP_3+CBMobile_4", 101),
        ("BLIP_3+CBMobile_4,BLIP_3+CBMobile_3", 101),
        ("BLIP_3+Other_1, BLIP_3+CBMobile_4", 101),
        ("BLIP_3+CBMobile_3,BLIP_3+CBMobile_2", 400),
        ("BLIP_3+CBMobile_40", 400),
        ("BLIP_3", 400),
        (None, 400),
    ],
)
async def test_a_subprotocol_is_found_by_its_exact_name_or_the_handshake_refused(
    pair, protocol, status
):
    found, answer = await answer_to(pair, upgrade(pair, protocol=protocol))
    assert found == status
    assert (b"Sec-WebSocket-Protocol: BLIP_3+CBMobile_4\r\n" in answer) == (status == 101)


@pytest.mark.behaviour("B11a")
async def test_another_database_than_the_one_served_is_refused(pair):
    status, _ = await answer_to(pair, upgrade(pair, path="/other/_blipsync"))
    assert status == 404
