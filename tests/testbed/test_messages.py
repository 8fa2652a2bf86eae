"""Messages: every kind survives the wire bit for bit; anything else is refused with one clear error."""

import json
import types
import typing
from typing import Annotated, Any, Literal, Union

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import BaseModel
from safetensors.numpy import save

from radio.errors import LinkError, ProtocolMismatch
from testbed import messages
from testbed.messages import PROTOCOL, Hello, Report, Scale, Stop, Train, decode, encode

KINDS: tuple[type[BaseModel], ...] = typing.get_args(messages.Message)


def values(annotation: Any) -> st.SearchStrategy:
    """Draw values of an annotation, so that a new kind or field is tested the day it is declared."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return values(arguments[0])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([values(part) for part in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(values(arguments[0]), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*[values(part) for part in arguments])
    if origin is dict:
        return st.dictionaries(values(arguments[0]), values(arguments[1]), max_size=3)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return st.builds(annotation, **{k: values(f.annotation) for k, f in annotation.model_fields.items()})
    plain = {
        str: st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        bool: st.booleans(),
        int: st.integers(1, 2**62),  # 1 and up satisfies every bound that a message sets
        float: st.floats(1e-300, 1e300),
        type(None): st.none(),
        Any: st.one_of(st.integers(), st.text(st.characters(exclude_categories=["Cs"])), st.lists(st.booleans())),
    }
    return plain[annotation]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_every_kind_survives_the_wire(kind: type[BaseModel], data: st.DataObject) -> None:
    message = data.draw(values(kind))
    assert decode(encode(message)) == (message, {})


def test_every_kind_has_a_word_of_its_own() -> None:
    words = [kind.model_fields["kind"].default for kind in KINDS]
    assert len(set(words)) == len(words) == 16


@given(
    array=hnp.arrays(
        dtype=st.sampled_from([np.float32, np.float64, np.complex64, np.int64, np.int8, np.bool_]),
        shape=hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5),
    )
)
@settings(max_examples=60, deadline=None)
def test_arrays_survive_bit_for_bit(array: np.ndarray) -> None:
    _, back = decode(encode(Train(clients=()), {"theta": array}))
    assert back["theta"].dtype == array.dtype and back["theta"].shape == array.shape
    assert back["theta"].tobytes() == array.tobytes()


def test_a_strided_array_arrives_in_its_own_order() -> None:
    array = np.arange(6, dtype=np.complex64).reshape(2, 3).T
    _, back = decode(encode(Train(clients=()), {"gain": array}))
    np.testing.assert_array_equal(back["gain"], array)


def test_infinities_and_not_a_number_survive() -> None:
    for value in (float("inf"), float("-inf"), float("nan")):
        back, _ = decode(encode(Report(verdict="void", nmse_canary_db=value)))
        assert isinstance(back, Report) and back.nmse_canary_db is not None
        assert np.array_equal(back.nmse_canary_db, value, equal_nan=True)


def test_another_protocol_version_is_refused_with_both_numbers() -> None:
    head, blob = encode(Stop(reason="x"))
    old = json.dumps({**json.loads(head), "protocol": PROTOCOL + 6}).encode()
    with pytest.raises(ProtocolMismatch) as caught:
        decode([old, blob])
    assert str(PROTOCOL) in caught.value.message and str(PROTOCOL + 6) in caught.value.message
    assert caught.value.exit_code == 6 and caught.value.remedy


def test_the_version_is_read_before_anything_else() -> None:
    with pytest.raises(ProtocolMismatch):
        decode([json.dumps({"protocol": 999, "kind": "from the future", "x": 1}).encode(), b""])


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b"{}"],
        [b"{}", b"", b""],
        [b"\xff\xfe", b""],
        [b"[1]", b""],
        [b"[" * 100_000, b""],
        [json.dumps({"protocol": PROTOCOL}).encode(), b""],
        [json.dumps({"protocol": PROTOCOL, "kind": "hack"}).encode(), b""],
        [json.dumps({"protocol": PROTOCOL, "kind": "stop", "reason": "x", "extra": 1}).encode(), b""],
        [json.dumps({"protocol": PROTOCOL, "kind": "stop", "reason": 3}).encode(), b""],
        [json.dumps({"protocol": PROTOCOL, "kind": "heartbeat", "round": -1}).encode(), b""],
        [json.dumps({"protocol": PROTOCOL, "kind": "heartbeat"}).encode(), b"not safetensors"],
        [json.dumps({"protocol": PROTOCOL, "kind": "heartbeat"}).encode(), save({"a": np.zeros(9)})[:-1]],
    ],
)
def test_malformed_messages_are_link_errors(frames: list[bytes]) -> None:
    with pytest.raises(LinkError) as caught:
        decode(frames)
    assert caught.value.remedy


@given(st.lists(st.binary(max_size=80), max_size=4))
@settings(max_examples=150, deadline=None)
def test_no_bytes_raise_anything_else(frames: list[bytes]) -> None:
    with pytest.raises(LinkError):
        decode(frames)


def test_an_array_type_that_cannot_travel_is_named() -> None:
    with pytest.raises(LinkError, match="complex128"):
        encode(Train(clients=()), {"gain": np.zeros(3, np.complex128)})


def test_messages_are_frozen_and_bounded() -> None:
    stop = Stop(reason="finished")
    with pytest.raises(ValueError, match="frozen"):
        stop.reason = "other"  # type: ignore[misc]
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Scale(norm_squared=-1.0)
    with pytest.raises(ValueError, match="greater than 0"):
        Hello(name="n", serial="", tier="P0", rate_hz=0, turnaround_samples=0, one_timeline=True)
