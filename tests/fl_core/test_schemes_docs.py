"""The pages of the schemes against the code, and the scheme of the how-to, run as it is printed."""

import re
from pathlib import Path

import pytest
import torch

from fl_core.options import SchemeOptions
from fl_core.schemes import SCHEMES, Csi, Plan, make_scheme

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_scheme_has_a_page_and_a_line_and_no_page_is_left_over():
    pages = {page.stem for page in (DOCS / "schemes").glob("*.md")} - {"index"}
    assert pages == set(SCHEMES)
    index = (DOCS / "schemes" / "index.md").read_text(encoding="utf-8")
    for name in SCHEMES:
        page = (DOCS / "schemes" / f"{name}.md").read_text(encoding="utf-8")
        assert f'`scheme.name = "{name}"`' in page and "**When to use.**" in page
        scheme = make_scheme(SchemeOptions(name=name), 100)
        assert f"| [{name}]({name}.md) | `{scheme.carrier}` |" in index


@pytest.mark.parametrize("name", SCHEMES)
def test_the_settings_of_a_page_exist(name):
    page = (DOCS / "schemes" / f"{name}.md").read_text(encoding="utf-8")
    line = re.search(r"\*\*Settings\.\*\*(.*?)\n\n", page, re.DOTALL)
    listed = re.findall(r"`([a-z_]+)`", line.group(1)) if line else []
    assert [setting for setting in listed if setting not in SchemeOptions.model_fields] == []


def test_the_how_to_is_thirty_lines_that_work():
    text = (DOCS / "howto" / "add-a-scheme.md").read_text(encoding="utf-8")
    definition, trial = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len([line for line in definition.splitlines() if line.strip()]) <= 30
    space: dict = {"__name__": "howto"}
    before = dict(SCHEMES)
    try:
        exec(compile(definition, "add-a-scheme.md", "exec"), space)
        exec(compile(trial, "add-a-scheme.md", "exec"), space)
        scheme = SCHEMES["clipped"](SchemeOptions(name="clipped"), 50)
    finally:
        SCHEMES.clear()
        SCHEMES.update(before)
    assert 0.0 <= space["accuracy"] <= 1.0 and len(space["result"].records) == 3
    update = torch.zeros(50)
    update[3] = 10.0
    sent, rest = scheme.sparsify(update, torch.zeros(50), Plan(0, 1, 1))
    assert float(sent[3]) == pytest.approx(2 * 10 / 50**0.5) and torch.equal(sent + rest, update)
    symbols, _ = scheme.encode(update, torch.zeros(50), Csi(), Plan(0, 1, 1))
    assert float(scheme.decode(symbols, Csi(), Plan(0, 1, 1))[3]) == pytest.approx(float(sent[3]))
