"""Two peers in one program: a shop that listens, and a till that syncs with it."""

import tempfile
from pathlib import Path

import trio

import trio_p2p

PASSWORD = "s3cret"


async def listening_peer(
    path: Path, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED
) -> None:
    async with trio_p2p.open_database(path) as db:
        await db.default_collection.put("apple", {"name": "Apple", "price": 120})
        config = trio_p2p.URLEndpointListenerConfiguration(
            collections=[db.default_collection],
            network_interface="127.0.0.1",  # leave it out to serve other machines too
            authenticator=trio_p2p.ListenerPasswordAuthenticator(
                lambda user, password: user == "ann" and trio_p2p.same_secret(password, PASSWORD)
            ),
        )
        async with trio_p2p.open_listener(config) as listener:  # TLS, identity made and kept
            print(*listener.urls)
            task_status.started(listener.urls[0])
            await trio.sleep_forever()


async def active_peer(path: Path, url: str) -> None:
    async with trio_p2p.open_database(path) as db:
        await db.default_collection.put("pear", {"name": "Pear", "price": 95})
        config = trio_p2p.ReplicatorConfiguration(
            target=url,
            collections=[db.default_collection],
            authenticator=trio_p2p.BasicAuthenticator("ann", PASSWORD),
            accept_only_self_signed_server_certificate=True,
        )
        result = await trio_p2p.replicate(config)  # one shot, both ways; raises if it could not
        print(result.documents_pushed, "pushed,", result.documents_pulled, "pulled")
        async for document in db.default_collection.documents():
            print(document.id, document.body)


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with trio.open_nursery() as nursery:
            url = await nursery.start(listening_peer, Path(directory, "shop.p2p"))
            await active_peer(Path(directory, "till.p2p"), url)
            nursery.cancel_scope.cancel()


trio.run(main)
