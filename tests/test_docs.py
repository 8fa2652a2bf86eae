"""The documentation against the code: every error, setting, command, message and event is explained, links hold."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(page for page in [ROOT / "README.md", *DOCS.rglob("*.md")] if "_build" not in page.parts)

sys.path.insert(0, str(DOCS))
import tables  # noqa: E402

from fl_core.schemes import SCHEMES  # noqa: E402
from radio.errors import TestbedError  # noqa: E402
from radio.presets import PRESETS, EtherOptions  # noqa: E402
from radio.safety import PROFILES  # noqa: E402
from testbed.config import Experiment, Lab  # noqa: E402
from testbed.round import FACTS  # noqa: E402
from testbed.run import EVENT_KINDS  # noqa: E402
from testbed.server import HISTORY  # noqa: E402


def built(page: str) -> str:
    return tables.fill((DOCS / page).read_text(encoding="utf-8"))


def every_class(kind: type[TestbedError] = TestbedError) -> list[type[TestbedError]]:
    return [kind, *(below for child in kind.__subclasses__() for below in every_class(child))]


def leaves(table: object, prefix: str = "") -> list[str]:
    """Dotted keys of a resolved file, rows of lists as N, without the free-form overrides of single radios."""
    if isinstance(table, dict):
        return [key for name, value in table.items() for key in leaves(value, f"{prefix}.{name}" if prefix else name)]
    if isinstance(table, list) and table and isinstance(table[0], dict):
        return leaves(table[0], f"{prefix}.N")
    return [prefix]


@pytest.mark.parametrize("kind", every_class(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_page_with_its_exit_code(kind):
    text = (DOCS / "errors" / f"{kind.slug}.md").read_text(encoding="utf-8")
    assert text.startswith(f"# {kind.slug}\n")
    assert f"Exit code: {kind.exit_code}." in text


def test_no_page_explains_an_error_that_does_not_exist():
    pages = {page.stem for page in (DOCS / "errors").glob("*.md")} - {"index"}
    assert pages == {kind.slug for kind in every_class()}


def test_every_setting_of_the_two_files_is_in_the_reference():
    text = built("reference/configuration.md")
    lab = Lab.model_validate(
        {"safety": "us-15.249", "ether": {}, "nodes": [{"name": "a", "radio": "loopback:a"}]}
    ).model_dump(mode="json")
    del lab["ether"]["radios"]
    keys = leaves(lab) + leaves(Experiment().model_dump(mode="json"))
    assert len(keys) > 120  # the files as a whole, not a corner of them
    assert [key for key in keys if f"| `{key}` |" not in text] == []
    assert "| `ether.radios` |" in text


def test_every_setting_of_the_reference_says_what_it_means():
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", built("reference/configuration.md"), re.MULTILINE)
    assert len(rows) > 120
    assert [key for key, rest in rows if not rest.split("|")[-1].strip()] == []


def test_every_effect_of_the_air_has_a_value_in_every_preset_and_a_meaning():
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", tables.presets(), re.MULTILINE)
    untold = {"preset", "seed", "server", "radios", "links", "serial"}
    assert {key for key, _ in rows} == set(EtherOptions.model_fields) - untold
    for key, rest in rows:
        meaning, _, *values = [cell.strip() for cell in rest.split("|")]
        assert meaning and len(values) == len(PRESETS) and all(values), key


def test_the_table_of_presets_shows_what_a_preset_gives():
    row = next(line for line in tables.presets().splitlines() if line.startswith("| `adev` |"))
    values = [cell.strip() for cell in row.strip("|").split("|")][3:]
    assert [float(value) for value in values] == [EtherOptions(preset=name).adev for name in PRESETS]


def test_every_command_has_a_section_and_a_line_in_the_readme():
    page, readme = built("reference/commands.md"), (ROOT / "README.md").read_text(encoding="utf-8")
    names = [command.name or command.callback.__name__ for command in tables.app.registered_commands]
    assert len(names) >= 6
    for name in names:
        assert f"\n## testbed {name}\n" in page
        assert f"`testbed {name}" in readme


def test_every_event_kind_and_every_fact_of_a_round_is_explained():
    text = (DOCS / "reference" / "events.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## ([a-z-]+)$", text, re.MULTILINE)) == set(EVENT_KINDS)
    assert [key for key in (*FACTS, *HISTORY) if f"`{key}`" not in text] == []
    assert [key for key in HISTORY[2:] if f"`median_{key}`" not in text] == []


def test_every_message_kind_has_a_section():
    text = built("reference/messages.md")
    kinds = [kind.model_fields["kind"].default for kind in tables.every_message()]
    assert len(kinds) == len(set(kinds)) >= 14
    assert [kind for kind in kinds if f"\n### `{kind}`\n" not in text] == []


def test_schemes_safety_profiles_and_presets_are_named():
    method, air = (DOCS / "explanation/method.md").read_text(), (DOCS / "howto/change-the-air.md").read_text()
    assert [name for name in SCHEMES if f"| `{name}` |" not in method] == []
    assert [name for name in PRESETS if f"| `{name}` |" not in air] == []
    assert [name for name in PROFILES if f"`{name}`" not in tables.safety()] == []


def test_every_mark_names_a_table():
    marks = {mark for page in PAGES for mark in re.findall(r"<!-- table: ([a-z-]*)", page.read_text(encoding="utf-8"))}
    assert marks == set(tables.TABLES)


def test_an_unknown_table_is_an_error():
    with pytest.raises(KeyError):
        tables.fill("<!-- table: nothing -->")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"```.*?```", "", tables.fill(page.read_text(encoding="utf-8")), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if "://" not in target:
            assert (page.parent / target).exists(), target
