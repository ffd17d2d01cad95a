"""The deltas that Couchbase Lite was recorded to send, and ours beside them."""

from pathlib import Path

import orjson
import pytest

from trio_p2p.model.codec import body_from_json, body_to_json
from trio_p2p.model.delta import body_delta, patch_body
from trio_p2p.testing.transcripts import read_transcript

TRANSCRIPTS = Path(__file__).parents[1] / "vectors" / "transcripts"
# What the documents hold, told by the field that counts their edits: the letter of field f050.
LETTERS = {1: "B", 2: "C", 3: "D"}

each_kind = pytest.mark.parametrize("kind", ["vv", "revtree"])


def revisions(kind):
    """The recorded `rev` messages, in order."""
    return [
        said.message
        for script in read_transcript(TRANSCRIPTS / f"delta-{kind}.jsonl")
        for said in script
        if said.profile == "rev" and not said.is_reply
    ]


def bodies(kind):
    """The body of each recorded revision, by its ID; and the recorded deltas: base, ID, JSON."""
    held, deltas = {}, []
    for message in revisions(kind):
        name, base = message.properties["rev"], message.properties.get("deltaSrc")
        if base is None:
            held[name] = body_from_json(message.body)
        else:
            deltas.append((base, name, message.body))
            held[name] = patch_body(held[base], message.body)
    return held, deltas


@each_kind
def test_recorded_deltas_change_what_was_edited_and_nothing_else(kind):
    held, deltas = bodies(kind)
    assert len(deltas) == 2
    for base, name, _ in deltas:
        old, new = orjson.loads(body_to_json(held[base])), orjson.loads(body_to_json(held[name]))
        letter = LETTERS[new["counter"]]
        assert new == old | {"counter": old["counter"] + 1, "f050": letter * len(new["f050"])}
        assert new["f050"] != old["f050"]


@each_kind
def test_a_body_sent_in_full_follows_from_the_recorded_deltas(kind):
    """Before the third revision the document was edited once more and sent whole."""
    held, deltas = bodies(kind)
    edited = held[deltas[0][1]]
    whole = [
        orjson.loads(message.body)
        for message in revisions(kind)
        if "deltaSrc" not in message.properties
    ]
    assert len(whole) == 2
    patched = orjson.loads(body_to_json(edited))
    assert patched == whole[1] | {"counter": 1, "f050": patched["f050"]}


@each_kind
def test_our_deltas_are_the_recorded_ones(kind):
    held, deltas = bodies(kind)
    for base, name, recorded in deltas:
        assert orjson.loads(body_delta(held[base], held[name])) == orjson.loads(recorded)
