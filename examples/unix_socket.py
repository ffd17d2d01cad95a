"""Two peers that talk over a Unix socket: any stream will do, not only the network."""

import tempfile
from pathlib import Path

import trio

import trio_p2p


async def listening_peer(
    directory: Path, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async with trio_p2p.open_database(directory / "shop.p2p") as db:
        await db.default_collection.put("apple", {"name": "Apple", "price": 120})
        config = trio_p2p.URLEndpointListenerConfiguration(collections=[db.default_collection])
        listener = trio_p2p.URLEndpointListener(config)  # it listens nowhere by itself
        with trio.socket.socket(trio.socket.AF_UNIX) as socket:
            await socket.bind(str(directory / "shop.socket"))
            socket.listen()
            task_status.started()
            await trio.serve_listeners(listener.handle, [trio.SocketListener(socket)])


async def active_peer(directory: Path) -> None:
    async def connect() -> trio.abc.Stream:  # called for each attempt to connect
        return await trio.open_unix_socket(directory / "shop.socket")

    async with trio_p2p.open_database(directory / "till.p2p") as db:
        await db.default_collection.put("pear", {"name": "Pear", "price": 95})
        config = trio_p2p.ReplicatorConfiguration(
            target=connect, collections=[db.default_collection]
        )
        result = await trio_p2p.replicate(config)
        print(result.documents_pushed, "pushed,", result.documents_pulled, "pulled")
        async for document in db.default_collection.documents():
            print(document.id, document.body)


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        async with trio.open_nursery() as nursery:
            await nursery.start(listening_peer, Path(directory))
            await active_peer(Path(directory))
            nursery.cancel_scope.cancel()


trio.run(main)
