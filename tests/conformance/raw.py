"""Peers of raw messages, for what no peer of ours would do."""

import inspect
import json
from contextlib import suppress

import trio

from trio_p2p.blip import Message
from trio_p2p.errors import ConnectionLostError, PeerError, ReplicationError
from trio_p2p.peer import Peer
from trio_p2p.replication.journal import Journal
from trio_p2p.replication.passive import PassiveSession
from trio_p2p.transport.memory import memory_transport_pair


class Refusal:
    """An error in place of a reply."""

    def __init__(self, code: int, text: str = "", domain: str = "HTTP") -> None:
        self.code, self.text, self.domain = code, text, domain


class RawClient:
    """An active peer of raw messages, of a passive session that serves these collections."""

    def __init__(self, nursery: trio.Nursery, database, names=("_default",), **settings) -> None:
        near, far = memory_transport_pair()
        self.peer = Peer(near)
        self.hang_up = near.cut
        self.heard: list[Message] = []
        self.answers = True
        self._names = names
        collections = [database.collection(name) for name in names]
        nursery.start_soon(self._serve, PassiveSession(far, collections, Journal(), **settings))
        nursery.start_soon(self._run)

    async def open(self) -> None:
        """Name the collections, as the first message does."""
        body = {"collections": self._names, "checkpoint_ids": [f"cp-{n}" for n in self._names]}
        await self.ask("getCollections", body, collection=None)

    async def ask(self, profile, body=None, *, collection=0, **properties):
        """Ask: the JSON of the reply, or the code of the refusal."""
        head = {"Profile": profile}
        if collection is not None:
            head["collection"] = str(collection)
        data = b"" if body is None else json.dumps(body).encode()
        try:
            reply = await self.peer.request(Message({**head, **properties}, data))
        except PeerError as exc:
            return exc.code
        return json.loads(reply.body or b"null")

    async def propose(self, *rows):
        """Propose: the answers."""
        return await self.ask("proposeChanges", rows, conflictIncludesRev="true")

    async def send_revision(self, document_id, rev, body=None, **properties):
        """Send a revision: None if it was taken, else the code of the refusal."""
        properties |= {"id": document_id, "rev": rev, "sequence": "1"}
        return await self.ask("rev", {} if body is None else body, **properties)

    async def _serve(self, session) -> None:
        with suppress(ReplicationError):
            await session.run()

    async def _run(self) -> None:
        with suppress(ConnectionLostError):
            await self.peer.run(self._on_request)

    def _on_request(self, number, message) -> None:
        self.heard.append(message)
        if self.answers and not message.no_reply:
            wants_all = [[]] * len(json.loads(message.body or b"[]"))
            is_offer = message.properties["Profile"] == "changes"
            self.peer.reply(number, Message({}, json.dumps(wants_all if is_offer else []).encode()))


class RawServer:
    """Takes everything and offers `rows`, unless told otherwise; `heard` is what it was told.

    `answers` has functions by profile, sync or async: each gets the message and returns the reply,
    a Refusal, or None for what would be answered without it.
    """

    def __init__(self, nursery: trio.Nursery, *, rows=(), **answers) -> None:
        self.rows = list(rows)
        self.answers = answers
        self.heard: list[Message] = []
        self.replies: list[object] = []
        self.peer: Peer | None = None
        self.connections = 0
        self._nursery = nursery
        self._checkpoints: dict[str, tuple[int, bytes]] = {}

    async def connect(self):
        """A transport to this peer."""
        near, far = memory_transport_pair()
        self.peer = Peer(far)
        self.connections += 1
        self._nursery.start_soon(self._run, self.peer)
        await trio.lowlevel.checkpoint()
        return near

    def told(self, profile: str) -> list[Message]:
        """The messages of one profile that it was told."""
        return [message for message in self.heard if message.properties["Profile"] == profile]

    def proposed(self) -> list[list[object]]:
        """The rows of all proposals."""
        return [row for message in self.told("proposeChanges") for row in json.loads(message.body)]

    def offer(self, rows) -> None:
        """Offer changes, and send `bodies` of those that are wanted."""
        message = Message(
            {"Profile": "changes", "collection": "0"}, json.dumps(rows).encode(), urgent=True
        )
        self._ask(message, lambda reply: self.on_wanted(rows, json.loads(reply.body)))

    def on_wanted(self, rows, answers) -> None:
        """Send every wanted revision with an empty body."""
        for row, answer in zip(rows, answers, strict=False):
            if answer != 0:
                self.send_revision(row[1], row[2], row[0])

    def send_revision(self, document_id, rev, sequence, body=b"{}", **properties) -> None:
        """Send a revision."""
        head = {"Profile": "rev", "collection": "0", "id": document_id, "rev": rev}
        properties = {**head, "sequence": json.dumps(sequence), **properties}
        self._ask(Message(properties, body), self.replies.append)

    def send_no_revision(self, document_id, rev, sequence, error) -> None:
        """Say that a revision will not come."""
        head = {"Profile": "norev", "collection": "0", "id": document_id, "rev": rev}
        properties = {**head, "sequence": json.dumps(sequence), "error": str(error)}
        self.peer.send(Message(properties, no_reply=True))

    def checkpoint(self) -> dict[str, object] | None:
        """The one that was saved last, without its time."""
        saved = self.told("setCheckpoint")
        if not saved:
            return None
        return {k: v for k, v in json.loads(saved[-1].body).items() if k != "time"}

    def _ask(self, message, on_reply) -> None:
        def settle(reply):
            if not isinstance(reply, ConnectionLostError):
                on_reply(reply)

        self.peer.send(message, settle)

    async def _run(self, peer) -> None:
        with suppress(ConnectionLostError):
            await peer.run(self._on_request)

    def _on_request(self, number, message) -> None:
        self.heard.append(message)
        answer = self.answers.get(message.properties["Profile"], lambda message: None)(message)
        if inspect.isawaitable(answer):
            self._nursery.start_soon(self._reply_late, number, message, answer)
        else:
            self._reply(number, message, answer)

    async def _reply_late(self, number, message, answer) -> None:
        self._reply(number, message, await answer)

    def _reply(self, number, message, answer) -> None:
        profile = message.properties["Profile"]
        if answer is None:
            answer = getattr(self, f"_answer_{profile}", lambda message: Message({}))(message)
        if message.no_reply:
            return
        if isinstance(answer, Refusal):
            self.peer.refuse(number, answer.domain, answer.code, answer.text)
            return
        self.peer.reply(number, answer)
        if profile == "subChanges":
            if self.rows:
                self.offer(self.rows)
            head = {"Profile": "changes", "collection": "0"}
            self.peer.send(Message(head, b"[]", urgent=True, no_reply=True))

    def _answer_getCollections(self, message):
        held = [self._held(client) for client in json.loads(message.body)["checkpoint_ids"]]
        return Message({}, json.dumps(held).encode())

    def _held(self, client):
        if client not in self._checkpoints:
            return {}
        generation, body = self._checkpoints[client]
        return json.loads(body) | {"rev": f"{generation}-cc"}

    def _answer_setCheckpoint(self, message):
        generation = self._checkpoints.get(message.properties["client"], (0, b""))[0] + 1
        self._checkpoints[message.properties["client"]] = generation, message.body
        return Message({"rev": f"{generation}-cc"})

    def _answer_getCheckpoint(self, message):
        client = message.properties["client"]
        if client not in self._checkpoints:
            return Refusal(404)
        generation, body = self._checkpoints[client]
        return Message({"rev": f"{generation}-cc"}, body)

    def _answer_proposeChanges(self, message):
        return Message({"sendReplacementRevs": "1"}, b"[]")
