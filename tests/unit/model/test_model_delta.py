import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_p2p import limits
from trio_p2p.errors import DeltaError
from trio_p2p.model.codec import INTEGER_MAX, INTEGER_MIN, RESERVED_KEYS, decode_body, encode_body
from trio_p2p.model.delta import apply_delta, body_delta, make_delta, patch_body

LONG = "It is late. The wolf lies down beneath the oak, and hears the rain fall."

keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=3) | st.sampled_from(
    ["a", "b", "0", "1", "0-", "1-", "@type", "digest"]
)
scalars = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, 0.0, -0.0, 1.0, INTEGER_MIN, INTEGER_MAX, 2.0**63, 5e-324, 1e308])
    | st.integers(INTEGER_MIN, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
    | st.sampled_from([LONG, LONG + LONG[:30], LONG.replace("rain", "Schnee, süß"), "é" * 40])
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
objects = st.dictionaries(keys.filter(lambda key: key not in RESERVED_KEYS), values, max_size=5)


@st.composite
def edited_values(draw, old):
    """What some edits make of a value."""
    if draw(st.integers(0, 4)) == 0:
        return draw(values)
    if isinstance(old, dict):
        new = {
            key: draw(edited_values(value)) for key, value in old.items() if draw(st.integers(0, 4))
        }
        return new | draw(st.just({}) | st.dictionaries(keys, values, max_size=1))
    if isinstance(old, list):
        new = [draw(edited_values(item)) for item in old]
        at = draw(st.integers(0, len(new)))
        taken = draw(st.integers(0, 1))
        return new[:at] + draw(st.just([]) | st.lists(values, max_size=2)) + new[at + taken :]
    if isinstance(old, str):
        at = draw(st.integers(0, len(old)))
        return old[:at] + draw(st.sampled_from(["", "x", "é", "|=", "0-"])) + old[at:]
    return old


@st.composite
def edited_objects(draw):
    """Two bodies, the second of which often looks much like the first."""
    old = draw(objects)
    new = draw(edited_values(old) | st.just(old) | objects)
    new = new if isinstance(new, dict) else {"a": new}
    return old, {key: value for key, value in new.items() if key not in RESERVED_KEYS}


def shown(value):
    """A value as text that tells types and signs, and nothing of the order of keys."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{key!r}:{shown(value[key])}" for key in sorted(value)) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(shown, value)) + "]"
    return f"{type(value).__name__}({value!r})"


def copied(value):
    return orjson.loads(orjson.dumps(value))


# --- The format, read anew from its description --------------------------------------------------


class Unreadable(Exception):
    pass


GONE = object()


def naive_apply(old, change):
    """Apply a change as the format is described, with no regard to time or memory."""
    if isinstance(change, dict) and isinstance(old, dict):
        new = {key: value for key, value in old.items() if key not in change}
        for key in change:
            value = naive_apply(old.get(key, GONE), change[key])
            if value is not GONE:
                new[key] = value
        return new
    if isinstance(change, dict) and isinstance(old, list):
        new = []
        for index, item in enumerate([*old, GONE]):
            if f"{index}-" in change:
                return new + change[f"{index}-"]
            if item is not GONE:
                new.append(naive_apply(item, change[str(index)]) if str(index) in change else item)
        return new
    if isinstance(change, list):
        if change == [] or (len(change) == 3 and change[1:] == [0, 0]):
            return GONE
        if len(change) == 3 and change[1:] == [0, 2]:
            return naive_edit(old, change[0])
        if len(change) in (1, 2):
            return change[-1]
    if isinstance(change, (dict, list)):
        raise Unreadable(change)
    return change


def naive_edit(old, edits):
    source, script, result = old.encode(), edits.encode(), b""
    while script:
        digits = b""
        while script[:1].isdigit():
            digits, script = digits + script[:1], script[1:]
        count, kind, script = int(digits), script[:1], script[1:]
        if kind == b"=":
            result, source = result + source[:count], source[count:]
        elif kind == b"-":
            source = source[count:]
        elif kind == b"+":
            result, script = result + script[:count], script[count:]
            if script[:1] != b"|":
                raise Unreadable(script)
            script = script[1:]
        else:
            raise Unreadable(script)
    if source:
        raise Unreadable(source)
    return result.decode()


# --- Making ---------------------------------------------------------------------------------------


@pytest.mark.behaviour("D7")
@pytest.mark.parametrize(
    ("old", "new", "delta"),
    [
        # Scalars, null, and types that Python takes for equal.
        ({"a": 1}, {"a": 1}, {}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1}, {"a": 1.0}, {"a": 1.0}),
        ({"a": 1}, {"a": True}, {"a": True}),
        ({"a": False}, {"a": 0}, {"a": 0}),
        ({"a": 0.0}, {"a": -0.0}, {"a": -0.0}),
        ({"a": 1}, {"a": None}, {"a": None}),
        ({"a": "short"}, {"a": "shorter"}, {"a": "shorter"}),
        ({"a": INTEGER_MAX}, {"a": INTEGER_MAX - 1}, {"a": INTEGER_MAX - 1}),
        # Keys put in and taken out.
        ({}, {"a": 1}, {"a": 1}),
        ({}, {"a": [1]}, {"a": [[1]]}),
        ({}, {"a": {}}, {"a": [{}]}),
        ({"a": 1, "b": 2}, {"b": 2}, {"a": []}),
        ({"a": [1]}, {"a": {"0": 1}}, {"a": [{"0": 1}]}),
        ({"a": {"0": 1}}, {"a": [1]}, {"a": [[1]]}),
        # Nested.
        ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 3, "d": 2}}}, {"a": {"b": {"c": 3}}}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 2, "d": 3}}, {"a": [{"c": 2, "d": 3}]}),
        ({"a": {"b": 1, "c": LONG}}, {"a": {"c": LONG}}, {"a": {"b": []}}),
        # Arrays.
        ({"a": [1, 2, 3]}, {"a": [1, 2, 3, 4, 5]}, {"a": {"3-": [4, 5]}}),
        ({"a": [1, 2, 3]}, {"a": [1, 9, 3]}, {"a": {"1": 9}}),
        ({"a": [1, 2, 3]}, {"a": [1]}, {"a": {"1-": []}}),
        ({"a": [1, 2, 3]}, {"a": [2, 3]}, {"a": [[2, 3]]}),
        ({"a": []}, {"a": [1]}, {"a": [[1]]}),
        ({"a": [1]}, {"a": []}, {"a": [[]]}),
        ({"a": [[1, 2], 3]}, {"a": [[1, 4], 3]}, {"a": {"0": {"1": 4}}}),
        ({"a": [1, [2, 3]]}, {"a": [[2, 3], 1]}, {"a": [[[2, 3], 1]]}),
        # An item put in near the front: what follows is written anew, what stands before is not.
        (
            {"a": [LONG, *range(20)]},
            {"a": [LONG, 99, *range(20)]},
            {"a": {"1-": [99, *range(20)]}},
        ),
    ],
)
def test_a_delta_tells_what_changed(old, new, delta):
    made = make_delta(old, new)
    assert shown(made) == shown(delta)
    assert shown(apply_delta(old, made)) == shown(new)
    assert shown(naive_apply(old, made)) == shown(new)


@pytest.mark.behaviour("D7")
def test_a_long_text_is_edited():
    delta = make_delta({"a": LONG}, {"a": LONG.replace("oak", "old elm")})
    assert delta == {"a": ["44=2-6+ld elm|26=", 0, 2]}


@pytest.mark.parametrize(
    "new",
    [LONG[: limits.DELTA_TEXT_BYTES_MIN - 1], LONG.swapcase(), "\n" * 30 + LONG[:30].upper()],
    ids=["short", "nothing kept", "escaped"],
)
def test_a_text_is_replaced_where_that_takes_less_room(new):
    assert make_delta({"a": LONG}, {"a": new}) == {"a": new}


def test_sixty_bytes_of_few_letters_are_a_long_text():
    old = "é" * 30
    assert make_delta({"a": old}, {"a": old + "x"}) == {"a": ["60=1+x|", 0, 2]}


def test_a_blob_is_replaced_as_a_whole():
    """Who receives a delta may look for the digest, or for the type, in what came."""
    old = {"@type": "blob", "digest": "sha1-a", "length": 1, "content_type": "text/plain"}
    new = old | {"digest": "sha1-b"}
    assert make_delta({"a": {"b": old}}, {"a": {"b": new}}) == {"a": {"b": [new]}}
    assert make_delta({"a": [old, 1]}, {"a": [old, 2]}) == {"a": {"1": 2}}


@pytest.mark.behaviour("D7")
@given(edited_objects())
@example(({"a": [1, 1]}, {"a": [1, True]}))
def test_applying_a_delta_yields_the_other_body_to_the_last_type(bodies):
    old, new = bodies
    before = shown(old)
    delta = make_delta(old, new)
    assert shown(apply_delta(old, copied(delta))) == shown(new)
    assert shown(old) == before


@given(edited_objects())
def test_deltas_are_understood_by_who_only_read_the_format(bodies):
    old, new = bodies
    assert shown(naive_apply(old, copied(make_delta(old, new)))) == shown(new)


@given(edited_objects())
def test_the_delta_of_encoded_bodies_leads_from_one_to_the_other(bodies):
    old, new = map(encode_body, bodies)
    assert shown(decode_body(patch_body(old, body_delta(old, new)))) == shown(decode_body(new))


@pytest.mark.behaviour("D7")
@given(objects)
def test_no_change_is_an_empty_delta(body):
    shuffled = dict(reversed(body.items()))
    assert make_delta(body, shuffled) == {}
    assert body_delta(encode_body(body), encode_body(shuffled)) == b"{}"


@given(edited_objects())
def test_a_delta_is_never_much_longer_than_the_body(bodies):
    """But for the top level, where nothing but a delta is written."""
    old, new = ({"only": body} for body in bodies)
    wrapped = len('[""]') * (1 + sum(isinstance(value, (dict, list)) for value in walked(new)))
    assert len(orjson.dumps(make_delta(old, new))) <= len(orjson.dumps(new)) + wrapped


def walked(value):
    yield value
    for inner in (
        value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    ):
        yield from walked(inner)


def nested(depth, inner):
    """A body of objects in objects, so many of them."""
    for _ in range(depth):
        inner = {"a": inner}
    return inner


def test_the_deepest_bodies_have_deltas():
    old, new = nested(limits.BODY_DEPTH_MAX, 1), nested(limits.BODY_DEPTH_MAX, 2)
    assert patch_body(encode_body(old), body_delta(encode_body(old), encode_body(new)))


def test_measuring_what_is_nested_ends_before_it_takes_long(monkeypatch):
    """Each level weighs what it holds in full, so the effort must be bounded over all of them."""
    written = 0
    dumps = orjson.dumps

    def counting(value, *args):
        nonlocal written
        text = dumps(value, *args)
        written += len(text)
        return text

    leaf_old = {"x": 1, **{str(n): n for n in range(20_000)}}
    leaf_new = {**{str(n): n for n in range(20_000)}, "y": 1}
    old = new = None
    for _ in range(98):
        old, new = {"a": old or leaf_old, "gone": 1}, {"a": new or leaf_new}
    monkeypatch.setattr("trio_p2p.model.delta.orjson.dumps", counting)
    monkeypatch.setattr(limits, "DELTA_STEPS_MAX", 100_000)
    make_delta(old, new)
    assert written < 10 * 100_000 * 8


# --- Applying -------------------------------------------------------------------------------------


@pytest.mark.behaviour("D7")
@pytest.mark.parametrize(
    ("delta", "new"),
    [
        ({"a": [1, 5]}, {"a": 5, "b": [1, 2], "c": {"d": LONG}}),
        ({"a": [1, 0, 0]}, {"b": [1, 2], "c": {"d": LONG}}),
        ({"b": [[1, 2], [3]]}, {"a": 1, "b": [3], "c": {"d": LONG}}),
        ({"b": {"0": [1, 4]}}, {"a": 1, "b": [4, 2], "c": {"d": LONG}}),
        ({"b": {"2-": [3]}}, {"a": 1, "b": [1, 2, 3], "c": {"d": LONG}}),
        ({"b": {"1-": []}}, {"a": 1, "b": [1], "c": {"d": LONG}}),
        ({"b": {"0": 9, "1-": [8]}}, {"a": 1, "b": [9, 8], "c": {"d": LONG}}),
        ({"c": {"d": [LONG, "x"]}}, {"a": 1, "b": [1, 2], "c": {"d": "x"}}),
        ({"c": {}}, {"a": 1, "b": [1, 2], "c": {"d": LONG}}),
        ({"b": {}}, {"a": 1, "b": [1, 2], "c": {"d": LONG}}),
        ([{"z": 1}], {"z": 1}),
        ([{}, {"z": 1}], {"z": 1}),
    ],
)
def test_what_others_may_write_is_read(delta, new):
    base = {"a": 1, "b": [1, 2], "c": {"d": LONG}}
    assert shown(apply_delta(base, delta)) == shown(new)
    assert shown(naive_apply(base, delta)) == shown(new)


@pytest.mark.behaviour("D7")
@pytest.mark.parametrize(
    "delta",
    [
        # Not the delta of an object.
        None,
        1,
        "x",
        [],
        [1],
        [{}, 0, 0],
        ["72=", 0, 2],
        [[]],
        # Changes of what there is not, or of what holds nothing.
        {"z": []},
        {"z": [1, 0, 0]},
        {"z": [1, 2]},
        {"z": {}},
        {"z": {"y": 1}},
        {"a": {}},
        {"d": {"0": 1}},
        # Places in an array.
        {"b": {"2": 1}},
        {"b": {"-1": 1}},
        {"b": {"01": 1}},
        {"b": {"x": 1}},
        {"b": {"": 1}},
        {"b": {"1": []}},
        {"b": {"1": [2, 0, 0]}},
        {"b": {"3-": []}},
        {"b": {"1-": 1}},
        {"b": {"1-": {"0": 1}}},
        {"b": {"0-": [1], "1-": [2]}},
        {"b": {"1": 9, "1-": [8]}},
        {"b": {"1-": [8], "1": 9}},
        {"b": {"9999999999": 1}},
        # Edits and moves.
        {"a": ["1=", 0, 2]},
        {"d": ["71=", 0, 2]},
        {"d": ["", 0, 2]},
        {"d": [72, 0, 2]},
        {"d": ["72=", 1, 2]},
        {"b": ["", 1, 3]},
        {"a": [1, 2, 3]},
        {"a": [1, 2, 3, 4]},
        {1: 2},
        {"a": object()},
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(delta):
    with pytest.raises(DeltaError):
        apply_delta({"a": 1, "b": [1, 2], "d": LONG}, delta)


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        b"{",
        b"\xff",
        b'{"a":NaN}',
        b'{"a":"\\ud800"}',
        b'{"_id":1}',
        b'{"a":[{"@type":"blob","digest":"sha1-x"}]}',
        b'{"a":9223372036854775808}',
        b'{"a":1e999}',
        b'{"a":[' + b"[" * limits.BODY_DEPTH_MAX + b"]" * limits.BODY_DEPTH_MAX + b"]}",
        b"[" * 5_000 + b"]" * 5_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    ],
    ids=lambda delta: delta[:20],
)
def test_what_yields_no_body_is_refused(delta):
    with pytest.raises(DeltaError):
        patch_body(encode_body({"a": 1}), delta)


def test_attachments_of_the_older_kind_stay_as_they_are():
    held = {"a": 1, "_attachments": {"old": {"digest": "sha1-x"}}}
    base = encode_body(held, reserved=frozenset())
    assert decode_body(patch_body(base, b'{"a":2}')) == held | {"a": 2}
    for delta in (
        b'{"_attachments":[]}',
        b'{"_attachments":{"blob_/a":[{"stub":true}]}}',
        b'[{"a":1}]',
        b'[{"a":1,"_attachments":{}}]',
    ):
        with pytest.raises(DeltaError):
            patch_body(base, delta)


def test_a_delta_that_makes_a_body_too_large_is_refused(monkeypatch):
    base = encode_body({"a": "x" * 600})
    monkeypatch.setattr(limits, "BODY_BYTES_MAX", 1_000)
    assert patch_body(base, b'{"b":"%s"}' % (b"y" * 300))
    with pytest.raises(DeltaError):
        patch_body(base, b'{"b":"%s"}' % (b"y" * 500))
    with pytest.raises(DeltaError):
        patch_body(base, b'{"b":1%s}' % (b" " * 1_000))


def test_the_edits_of_all_texts_together_are_bounded(monkeypatch):
    base = {"a": "x" * 60, "b": "x" * 60}
    delta = {key: ["1=" * 60, 0, 2] for key in base}
    assert apply_delta(base, delta) == base
    monkeypatch.setattr(limits, "DELTA_EDITS_MAX", 119)
    with pytest.raises(DeltaError):
        apply_delta(base, delta)


changes = st.recursive(
    scalars
    | st.sampled_from([[], ["72=", 0, 2], ["1-71=", 0, 2], [1, 0, 0], [[1]], {"0-": []}])
    | st.tuples(st.text("0123456789=+-|é"), st.just(0), st.just(2)).map(list),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


@given(objects, changes | st.dictionaries(st.sampled_from("ab01"), changes))
def test_any_delta_is_applied_or_refused(body, delta):
    try:
        new = apply_delta(body, delta)
    except DeltaError:
        return
    assert len(orjson.dumps(new)) <= len(orjson.dumps(body)) + len(orjson.dumps(delta))
    assert shown(naive_apply(body, delta)) == shown(new)


@given(edited_objects(), st.data())
def test_a_damaged_delta_is_applied_or_refused(bodies, data):
    old, new = map(encode_body, bodies)
    delta = bytearray(body_delta(old, new))
    at = data.draw(st.integers(0, len(delta) - 1))
    delta[at] = data.draw(st.integers(0, 255))
    try:
        patched = patch_body(old, bytes(delta))
    except DeltaError:
        return
    assert encode_body(decode_body(patched)) == patched


@given(objects, st.binary())
def test_any_bytes_are_refused_or_make_a_body(body, delta):
    try:
        patched = patch_body(encode_body(body), delta)
    except DeltaError:
        return
    assert encode_body(decode_body(patched)) == patched


def test_a_delta_of_endless_values_is_refused_before_it_is_read() -> None:
    count = limits.BODY_VALUES_MAX + 1
    with pytest.raises(DeltaError, match="too many values"):
        patch_body(encode_body({}), b'{"a":[' + b",".join([b"[]"] * count) + b"]}")
