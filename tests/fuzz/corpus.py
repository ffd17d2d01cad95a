"""The kept corpus: inputs that lead into every corner, one file each, by target.

`python tests/fuzz/corpus.py` makes the seeds anew from recorded conversations and from what our own
code writes; whatever else fuzzing found stays.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from uuid import UUID

import targets
from cryptography.hazmat.primitives.serialization import Encoding

from trio_p2p.blip import Message
from trio_p2p.blip import message as messages
from trio_p2p.ids import SourceID
from trio_p2p.model import codec
from trio_p2p.model.delta import body_delta
from trio_p2p.model.document import Revision
from trio_p2p.model.version import TreeRevisionID, Version, VersionVector
from trio_p2p.security.auth import BasicAuthenticator
from trio_p2p.security.identity import TLSIdentity
from trio_p2p.store import records
from trio_p2p.testing.transcripts import read_transcript

DIRECTORY = Path(__file__).with_name("corpus")
TRANSCRIPTS = Path(__file__).parents[1] / "vectors" / "transcripts"
# Enough of them for every kind of message; the rest says the same again.
CONVERSATIONS = (
    "push5-vv",
    "pull-update-delete-vv",
    "conflict-vv",
    "delta-vv",
    "push-blob-vv",
    "collections-vv",
    "auth-ok",
    "push-update-delete-revtree",
    "v32-to-v32-default",
)
SEED_BYTES_MAX = 4 * 1024


def kept(target: str) -> list[bytes]:
    """The inputs that are kept for a target."""
    return [path.read_bytes() for path in sorted((DIRECTORY / target).glob("*"))]


def keep(target: str, data: bytes) -> None:
    """Keep an input, under a name that its content gives it."""
    directory = DIRECTORY / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def conversation_frames(name: str) -> dict[str, list[bytes]]:
    """The BLIP frames of each direction of a recorded conversation."""
    frames: dict[str, list[bytes]] = {"c2s": [], "s2c": []}
    for line in (TRANSCRIPTS / f"{name}.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "ws" and entry["opcode"] == 2:
            frames[entry["dir"]].append(bytes.fromhex(entry["hex"]))
    return frames


def _seeds() -> dict[str, list[bytes]]:
    seeds: dict[str, list[bytes]] = {name: [b""] for name in targets.TARGETS}
    for name in CONVERSATIONS:
        for frames in conversation_frames(name).values():
            seeds["frame"] += frames[:3]
            seeds["connection"].append(targets.joined(frames))
            seeds["intact"].append(targets.joined([frame[:-4] for frame in frames]))
        for script in read_transcript(TRANSCRIPTS / f"{name}.jsonl"):
            for said in script:
                data = messages.encode_data(said.message)
                seeds["message"].append(data)
                if said.is_reply:
                    seeds["reply"].append(said.message.body)
                else:
                    seeds["request"].append(data)
                    seeds["known_request"].append(_known(said.profile, said.message))
                    seeds["json_body"].append(said.message.body)
    sources = [SourceID(bytes([n]) * 16) for n in (1, 2, 3)]
    one, two, three = (Version(0x176CEE53C5680000 + n, s) for n, s in enumerate(sources))
    vectors = [
        VersionVector(one),
        VersionVector(one, previous=(two, three)),
        VersionVector(three, (one, two)),
        VersionVector(three, (two,), (one,)),
    ]
    trees = (TreeRevisionID(3, b"\xab" * 20), TreeRevisionID(2, b"\xcd" * 16))
    for vector in vectors:
        seeds["version"] += [str(vector).encode(), vector.to_bytes()]
        current, _, past = str(vector).partition(" ")
        seeds["revision"].append(f"{current.rstrip(',;')}\n{past}, {trees[0]}, {trees[1]}".encode())
        for deleted in (False, True):
            made = Revision(vector, targets.BASE, deleted, trees)
            seeds["record"].append(records.pack_revision(made, 7, b"key"))
            seeds["record"].append(records.pack_change(made, b"doc", b"key"))
    seeds["version"] += [str(tree).encode() for tree in trees]
    seeds["record"].append(
        records.pack_collection(records.CollectionState("shop.notes", 7, 5), b"key")
    )
    body = codec.decode_body(targets.BASE)
    for change in ({"n": 2}, {"list": [1, [3]]}, {"text": "hello " * 19 + "you"}, {"new": {}}):
        changed = codec.encode_body({**body, **change})
        seeds["delta"].append(body_delta(targets.BASE, changed))
        seeds["cbor_body"].append(changed)
    seeds["endpoint"] += [b"wss://host:4984/db", b"ws://[::1]/db/", b"wss://h/m%C3%BCsli"]
    seeds["credentials"].append(BasicAuthenticator("ann", "grün").header()[1].encode())
    leaf = TLSIdentity.create("till", attributes={"dNSName": "*.example"}).certificates[0]
    seeds["certificate"] += [leaf.public_bytes(Encoding.PEM), leaf.public_bytes(Encoding.DER)]
    seeds["request"].append(messages.encode_data(Message({"Profile": "nothing"})))
    assert UUID(int=0)
    return seeds


def _known(profile: str, said: Message) -> bytes:
    """A request as `targets.known_request` takes it."""
    number = [name.decode() for name in targets._PROFILES].index(profile)
    block = "\0".join(f"{k}\0{v}" for k, v in said.properties.items() if k != "Profile")
    return bytes((number,)) + block.encode() + b"\0\0" + said.body


if __name__ == "__main__":
    for name, seeds in _seeds().items():
        for seed in seeds:
            if len(seed) <= SEED_BYTES_MAX:
                keep(name, seed)
