"""Settings: bounds, unknown keys, defaults."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel, ValidationError

from fl_core.options import DataOptions, LearnOptions, ModelOptions, SchemeOptions

GROUPS = [DataOptions, ModelOptions, LearnOptions, SchemeOptions]


@pytest.mark.parametrize("group", GROUPS)
def test_unknown_keys_are_refused_and_values_frozen(group: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        group(flavour="red")
    with pytest.raises(ValidationError, match="frozen"):
        group().name = "other"  # type: ignore[attr-defined]


@pytest.mark.parametrize("group", GROUPS)
def test_every_field_is_described_and_survives_json(group: type[BaseModel]) -> None:
    assert all(len(field.description or "") > 15 for field in group.model_fields.values())
    assert group.model_validate(json.loads(group().model_dump_json())) == group()


@pytest.mark.parametrize(
    ("group", "field", "value"),
    [
        (SchemeOptions, "keep", 1.01),
        (SchemeOptions, "keep", 0.0),
        (SchemeOptions, "measure", 1.5),
        (SchemeOptions, "snr_db", float("nan")),
        (SchemeOptions, "estimator", "amp"),
        (LearnOptions, "local_steps", 0),
        (LearnOptions, "alpha", -0.1),
        (LearnOptions, "eta", 0.0),
        (LearnOptions, "eta", float("inf")),
        (LearnOptions, "gradient", "second-order"),
        (ModelOptions, "hidden", (0,)),
        (ModelOptions, "name", "transformer"),
        (DataOptions, "shots", 0),
        (DataOptions, "new_fraction", 1.0),
        (DataOptions, "ways", "five"),
    ],
)
def test_values_out_of_bounds_name_the_field(group: type[BaseModel], field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        group.model_validate({field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_more_ways_than_classes_says_both_numbers_and_what_to_do() -> None:
    with pytest.raises(ValidationError, match=r"ways=6 exceeds classes_per_client=5.*raise classes_per_client"):
        DataOptions(ways=6, classes_per_client=5)
