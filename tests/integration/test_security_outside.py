"""A listener as openssl and curl see it: programs that know nothing of ours."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import trio_p2p
from trio_p2p import limits
from trio_p2p.testing.certificates import Authority

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Protocol": "BLIP_3+CBMobile_4",
}
PATIENCE_S = 60
NOW = datetime.now(UTC)
AUTHORITY = Authority(NOW)
# Old versions are offered only if told twice: as such, and at the level of security they have.
OLD = ["-cipher", "DEFAULT:@SECLEVEL=0"]


def test_the_programs_are_there() -> None:
    for program in ("openssl", "curl"):
        assert shutil.which(program), f"{program} is needed: apt-get install {program}"


@asynccontextmanager
async def open_listener(path: Path, **settings: Any) -> AsyncIterator[Any]:
    async with trio_p2p.open_database(path / "shop.p2p") as shop:
        defaults = {
            "collections": [shop.default_collection],
            "network_interface": "127.0.0.1",
            "key_store": trio_p2p.MemoryKeyStore(),
        }
        config = trio_p2p.URLEndpointListenerConfiguration(**(defaults | settings))
        async with trio_p2p.open_listener(config) as listener:
            yield listener


async def run(*command: str, stdin: bytes = b"") -> tuple[int, str]:
    """Run a program; its exit status, and all that it printed."""
    with trio.fail_after(PATIENCE_S):
        done = await trio.run_process(
            command, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
        )
    return done.returncode, (done.stdout + done.stderr).decode(errors="replace")


async def s_client(listener: Any, *options: str, stdin: bytes = b"") -> str:
    """What `openssl s_client` tells of a listener."""
    address = f"127.0.0.1:{listener.port}"
    _, told = await run("openssl", "s_client", "-connect", address, *options, stdin=stdin)
    return told


async def curl(url: str, *options: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """What curl tells of a URL: exit status and the answer with its headers."""
    lines = [part for name, value in (headers or {}).items() for part in ("-H", f"{name}: {value}")]
    return await run("curl", "--silent", "--show-error", "--include", *options, *lines, url)


def http(listener: Any, path: str = "/shop/_blipsync") -> str:
    scheme = "http" if listener.tls_identity is None else "https"
    return f"{scheme}://127.0.0.1:{listener.port}{path}"


def write_pem(path: Path, identity: trio_p2p.TLSIdentity) -> str:
    """A file with an identity's key and certificates."""
    key = identity.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    chain = b"".join(each.public_bytes(Encoding.PEM) for each in identity.certificates)
    path.write_bytes(key + chain)
    return str(path)


# --- TLS -----------------------------------------------------------------------------------------


async def test_versions_before_1_2_are_refused(tmp_path: Path) -> None:
    async with open_listener(tmp_path) as listener:
        for version in ("-tls1", "-tls1_1"):
            told = await s_client(listener, version, *OLD)
            assert "alert protocol version" in told, told
        for version, name in (("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")):
            told = await s_client(listener, version)
            assert f"New, {name}, Cipher is" in told, told
            assert "Compression: NONE" in told
        # Newest first, and nothing that keeps no secrets later.
        assert "New, TLSv1.3" in await s_client(listener)
        for cipher in ("AES128-SHA", "AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-SHA"):
            told = await s_client(listener, "-tls1_2", "-cipher", f"{cipher}:@SECLEVEL=0")
            assert "alert handshake failure" in told, told


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
async def test_a_certificate_is_requested_when_it_should_be(tmp_path: Path, version: str) -> None:
    by_password = trio_p2p.ListenerPasswordAuthenticator(lambda *_: False)
    by_callback = trio_p2p.ListenerCertificateAuthenticator(callback=lambda chain: True)
    by_roots = trio_p2p.ListenerCertificateAuthenticator(AUTHORITY.certificate)
    requested = "Requested Signature Algorithms"
    for authenticator in (None, by_password):
        async with open_listener(tmp_path, authenticator=authenticator) as listener:
            assert requested not in await s_client(listener, version)
    async with open_listener(tmp_path, authenticator=by_callback) as listener:
        told = await s_client(listener, version)
        assert requested in told
        assert "No client certificate CA names sent" in told
    async with open_listener(tmp_path, authenticator=by_roots) as listener:
        told = await s_client(listener, version)
        assert requested in told
        assert "Acceptable client certificate CA names\nCN = root" in told


async def test_the_certificate_presented_is_the_identity_with_its_chain(tmp_path: Path) -> None:
    identity = AUTHORITY.issue("shop", addresses=["127.0.0.1"])
    root = tmp_path / "root.pem"
    root.write_bytes(AUTHORITY.certificate.public_bytes(Encoding.PEM))
    async with open_listener(tmp_path, tls_identity=identity) as listener:
        told = await s_client(
            listener, "-CAfile", str(root), "-verify_ip", "127.0.0.1", "-showcerts"
        )
        assert "Verify return code: 0 (ok)" in told
        assert told.count("-----BEGIN CERTIFICATE-----") >= 2
        told = await s_client(listener, "-CAfile", str(root), "-verify_ip", "192.0.2.7")
        assert "IP address mismatch" in told


async def test_sessions_are_not_resumed(tmp_path: Path) -> None:
    async with open_listener(tmp_path) as listener:
        told = await s_client(listener, "-tls1_2", "-reconnect")
        assert told.count("\nNew, TLSv1.2") == 6
        assert "Reused" not in told


async def test_renegotiation_is_not_answered_and_harms_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "HANDSHAKE_TIMEOUT_S", 2.0)
    async with open_listener(tmp_path) as listener:
        told = await s_client(listener, "-tls1_2", stdin=b"R\n")
        assert "RENEGOTIATING" in told
        assert "unexpected eof" in told
        assert "New, TLSv1.3" in await s_client(listener)


async def test_endless_requests_for_new_keys_end_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "TLS_ANSWER_BYTES_MAX", 100)
    async with open_listener(tmp_path) as listener:
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{listener.port}", "-tls1_3"]
        updates = 0
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
                start = partial(trio.run_process, **pipes, stderr=subprocess.STDOUT, check=False)
                process = await nursery.start(start, command)
                await process.stdin.send_all(b"K\n")
                async for printed in process.stdout:
                    if b"KEYUPDATE" in printed:
                        updates += 1
                        try:
                            await process.stdin.send_all(b"K\n")
                        except trio.BrokenResourceError:
                            break
                await process.wait()
        assert 1 <= updates < 20
        assert "New, TLSv1.3" in await s_client(listener)


# --- HTTP ----------------------------------------------------------------------------------------


@pytest.mark.behaviour("W1")
@pytest.mark.parametrize("disable_tls", [False, True])
async def test_what_is_no_upgrade_is_told_what_is_missing(
    tmp_path: Path, disable_tls: bool
) -> None:
    async with open_listener(tmp_path, disable_tls=disable_tls) as listener:
        for path in ("/shop/_blipsync", "/", "/../../etc/passwd"):
            status, answer = await curl(http(listener, path), "--insecure", "--path-as-is")
            assert status == 0
            assert answer.startswith("HTTP/1.1 426 ")
            assert "Upgrade: websocket" in answer
        _, answer = await curl(http(listener), "--insecure", "--data", "x=y")
        assert answer.startswith("HTTP/1.1 426 ")


@pytest.mark.behaviour("L10", "W2a")
@pytest.mark.parametrize("disable_tls", [False, True])
async def test_passwords_are_asked_for_as_http_has_it(tmp_path: Path, disable_tls: bool) -> None:
    authenticator = trio_p2p.ListenerPasswordAuthenticator(
        lambda user, password: (user, password) == ("ann", "grün")
    )
    settings = {"authenticator": authenticator, "disable_tls": disable_tls}
    async with open_listener(tmp_path, **settings) as listener:
        for user in ([], ["--user", "ann:guess"]):
            _, answer = await curl(http(listener), "--insecure", *user, headers=UPGRADE)
            assert answer.startswith("HTTP/1.1 401 ")
            assert 'WWW-Authenticate: Basic realm="trio_p2p", charset="UTF-8"' in answer
        # An open WebSocket says nothing until it is asked: curl gives up on it, which is status 28.
        right = ["--user", "ann:grün", "--max-time", "2"]
        status, answer = await curl(http(listener), "--insecure", *right, headers=UPGRADE)
        assert answer.startswith("HTTP/1.1 101 ")
        assert status == 28
        _, answer = await curl(
            http(listener, "/other/_blipsync"), "--insecure", *right, headers=UPGRADE
        )
        assert answer.startswith("HTTP/1.1 404 ")


async def test_an_unknown_database_is_not_found_however_it_is_written(tmp_path: Path) -> None:
    async with open_listener(tmp_path, disable_tls=True) as listener:
        for path in (
            "/other/_blipsync",
            "/shop",
            "/shop/../shop/_blipsync",
            "/shop%2F..%2Fshop/_blipsync",
            "/%2e%2e/shop/_blipsync",
            "/shop/_blipsync/..",
            "//shop/_blipsync",
        ):
            _, answer = await curl(http(listener, path), "--path-as-is", headers=UPGRADE)
            assert answer.startswith("HTTP/1.1 404 "), path


async def test_other_requests_are_refused_each_with_its_status(tmp_path: Path) -> None:
    async with open_listener(tmp_path, disable_tls=True) as listener:
        for headers, status in (
            (UPGRADE | {"Origin": "https://evil.example"}, 403),
            (UPGRADE | {"Sec-WebSocket-Protocol": "chat"}, 400),
            (UPGRADE | {"Sec-WebSocket-Version": "8"}, 426),
            (UPGRADE | {"X-Filler": "x" * limits.REQUEST_HEAD_BYTES_MAX}, 431),
        ):
            _, answer = await curl(http(listener), headers=headers)
            assert answer.startswith(f"HTTP/1.1 {status} ")


async def test_http_spoken_to_a_port_with_tls_is_told_so(tmp_path: Path) -> None:
    async with open_listener(tmp_path) as listener:
        _, answer = await curl(http(listener).replace("https:", "http:"), headers=UPGRADE)
        assert answer.startswith("HTTP/1.1 400 ")
        assert "use wss://" in answer


# --- Both ----------------------------------------------------------------------------------------


async def test_curl_trusts_the_listener_when_it_knows_its_certificate(tmp_path: Path) -> None:
    attributes = {"iPAddress": "127.0.0.1"}
    identity = trio_p2p.TLSIdentity.create("shop", attributes=attributes)
    pem = tmp_path / "shop.pem"
    pem.write_bytes(identity.certificates[0].public_bytes(Encoding.PEM))
    async with open_listener(tmp_path, tls_identity=identity) as listener:
        status, answer = await curl(http(listener), "--cacert", str(pem))
        assert status == 0
        assert answer.startswith("HTTP/1.1 426 ")
        status, _ = await curl(http(listener))
        assert status == 60  # It knows no issuer.


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_client_certificates_are_taken_and_refused(tmp_path: Path, version: str) -> None:
    authenticator = trio_p2p.ListenerCertificateAuthenticator(AUTHORITY.certificate)
    good = write_pem(tmp_path / "good.pem", AUTHORITY.issue("till"))
    bad = write_pem(tmp_path / "bad.pem", trio_p2p.TLSIdentity.create("till"))
    tls = ["--insecure", f"--tlsv{version}", "--tls-max", version]
    async with open_listener(tmp_path, authenticator=authenticator) as listener:
        _, answer = await curl(http(listener), *tls, "--cert", good)
        assert answer.startswith("HTTP/1.1 426 ")
        for shown in ([], ["--cert", bad]):
            status, answer = await curl(http(listener), *tls, *shown)
            assert status in (35, 56)  # In the handshake, or right behind it.
            assert "alert" in answer
