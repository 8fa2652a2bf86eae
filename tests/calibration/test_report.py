"""The report as a file: one valid page that holds all it needs and all that was measured, and nothing else."""

import base64
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from calibration.cells import Column, number
from calibration.report import SECTIONS, write_report
from calibration.result import Estimate, Finding, Result
from radio.errors import RadioError, RunError

VOID = {"meta", "link", "img", "br"}
PLOTS = 20  # of a whole calibration, without the waterfall


class Page(HTMLParser):
    """A page as its tags, with a check that they close in order and that no id comes twice."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} comes twice"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def drawings(page: Page) -> list[bytes]:
    heads = [str(image["src"]).split(",", 1) for image in page.all("img")]
    assert {head for head, _ in heads} == {"data:image/svg+xml;base64"}
    return [base64.b64decode(body) for _, body in heads]


def test_the_page_is_whole_and_needs_nothing_else(whole_report: Path) -> None:
    text = whole_report.read_text(encoding="utf-8")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>\n")
    assert whole_report.stat().st_size < 5e6
    assert page.all("script") == []
    addresses = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert {str(value).split(":")[0] for value in addresses if not str(value).startswith("#")} == {"data"}
    assert "url(" not in text and "@import" not in text
    names = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(names) == len(set(names))
    targets = {str(value)[1:] for value in addresses if str(value).startswith("#")}
    assert targets == set(SECTIONS) <= set(names)
    assert sorted(path.name for path in whole_report.parent.iterdir()) == ["captures", "report.html"]


def test_every_figure_is_drawn_numbered_and_told_in_words(whole_report: Path) -> None:
    page = Page(whole_report.read_text(encoding="utf-8"))
    found = drawings(page)
    assert len(found) == PLOTS + 1
    for drawing in found:
        assert ElementTree.fromstring(drawing).tag.endswith("svg")
        assert b"http://" not in re.sub(
            rb'(xmlns[:\w]*|xlink:href|about|rdf:\w+)="[^"]*"|<!DOCTYPE[^>]*>', b"", drawing
        )
    assert all(len(str(image["alt"])) > 20 for image in page.all("img"))
    captions = re.findall(r"<figcaption><b>Figure (\d+)\.</b> (.*?)</figcaption>", whole_report.read_text(), re.DOTALL)
    assert [int(count) for count, _ in captions] == list(range(1, PLOTS + 2))
    assert all(re.search(r"\d|none", caption) for _, caption in captions)


def test_the_same_results_give_the_same_page(tmp_path: Path, calibrated: Callable[..., list[Result]]) -> None:
    results = [r for r in calibrated(2) if r.step in ("balance", "integrity")]
    first, second = (write_report(tmp_path / name, "bench", results, {}, {}).read_bytes() for name in ("a", "b"))
    assert first == second


def test_the_verdict_names_thing_node_numbers_and_remedy(whole_report: Path) -> None:
    text = Page(whole_report.read_text(encoding="utf-8")).text
    first = text[: text.index("Which radios are these")]
    for word in (
        "Failed : 1 thing to put right before this lab can be used.",
        "server: interferer a carrier 31.2 dB over the noise stands at +120.0 kHz, inside the band (step Noise",
        "To do: switch its source off, or choose another carrier",
        "8 of 8 nodes without a finding",
        "\u221228.9 dB predicted NMSE of the sum",
        "\u221228.4 dB measured NMSE of the sum",
        "35 symbols, 10.1 ms largest useful burst",
        "R, non-coherent good",
        "the phase error holds 21.4 ms after the last beacon",
        "testbed 0.1.0",
    ):
        assert word in first, word
    assert "Not run" not in first


def test_what_was_not_measured_is_said_and_not_drawn(tmp_path: Path, calibrated: Callable[..., list[Result]]) -> None:
    bare = [Result(r.step, r.radio, {"tier": "P0"} if r.step == "inventory" else {}) for r in calibrated(2)]
    some = [r for r in bare if r.step in ("inventory", "sounding", "sum")]
    page = Page(write_report(tmp_path / "report.html", "bench", some, {}, {}).read_text(encoding="utf-8"))
    assert page.all("img") == []
    assert page.text.count("This step was not run.") == len(SECTIONS) - 3
    assert "Passed : nothing wrong in the steps that were run. Not run: Preflight," in page.text
    assert "predicted NMSE" not in page.text


def test_without_any_result_the_page_says_so(tmp_path: Path) -> None:
    page = Page(write_report(tmp_path / "report.html", "bench", [], {}, {}).read_text(encoding="utf-8"))
    assert "No node was measured." in page.text
    assert page.text.count("not run") == 3 * len(SECTIONS)  # links, headings, sections


@pytest.mark.parametrize("nodes", [1, 5, 16])
def test_labs_of_any_size_are_drawn(tmp_path: Path, calibrated: Callable[..., list[Result]], nodes: int) -> None:
    results = [r for r in calibrated(nodes) if r.step in ("timing", "balance")]
    page = Page(write_report(tmp_path / "report.html", "bench", results, {}, {}).read_text(encoding="utf-8"))
    assert len(drawings(page)) == 2


def test_names_and_texts_are_written_as_text(tmp_path: Path) -> None:
    evil = '<img src=x onerror="alert(1)">&'
    results = [
        Result("balance", evil, {"level_db": Estimate(0.1, 0.0, 0.2), evil: evil}, {}, Finding(evil, evil, evil))
    ]
    path = write_report(tmp_path / "report.html", evil, results, {"nodes": {evil: {"modes": [evil]}}}, {evil: evil})
    page = Page(path.read_text(encoding="utf-8"))
    assert [image for image in page.all("img") if "onerror" in image] == []
    assert page.text.count(evil) >= 9


def test_curves_that_hold_nothing_or_not_a_number_spoil_no_report(tmp_path: Path) -> None:
    nan, empty = np.full(5, math.nan), np.zeros(0)
    results = [
        Result("noise", "a", {"noise_dbfs": math.nan}, {"psd_hz": empty, "psd_dbfs": empty}),
        Result("lock", "a", {"snr_db": math.nan}, {"lock_slot": np.arange(5), "lock_snr_db": nan}),
        Result("sounding", "a", {"gain_db": Estimate(math.nan, math.nan, math.nan, "db")}),
        Result("sum", "server", {"nmse_db": math.nan}, {"sum_nodes": np.arange(1, 6), "sum_nmse_db": nan}),
    ]
    page = Page(write_report(tmp_path / "report.html", "bench", results, {}, {}).read_text(encoding="utf-8"))
    assert len(drawings(page)) == 2


def test_a_report_takes_the_place_of_the_older_only_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    with pytest.raises(RadioError, match="no such recording"):
        write_report(path, "bench", [], {}, {}, tmp_path / "absent.sigmf-meta")
    assert path.read_text() == "old"
    write_report(path, "bench", [], {}, {})
    assert path.read_text().startswith("<!DOCTYPE html>")
    with pytest.raises(RunError, match="cannot write"):
        write_report(tmp_path / "absent" / "report.html", "bench", [], {}, {})


def test_numbers_are_written_with_as_many_digits_as_their_interval_gives() -> None:
    def cell(name: str, value: Estimate | float | bool | str) -> str:
        column = Column.of(name, [value])
        return f"{column.label}: {' '.join(column.pair(value)).strip()}"

    minus = "\u2212"
    assert cell("snr_db", Estimate.normal(-20.12345, 0.1, "db")) == f"SNR (dB): {minus}20.12 ± 0.20"
    assert cell("rms_delay_s", 6.25e-8) == "rms delay spread (ns): 62.5"
    assert cell("coherence_hz", 2.1e6) == "coherence bandwidth (MHz): 2.1"
    assert cell("cfo_rms_hz", 0.83) == "frequency, rms (Hz): 0.83"
    assert cell("adev", Estimate(3.1e-10, 2.6e-10, 3.9e-10)) == "ADEV at 0.1 s, pair: 3.10·10⁻¹⁰ (2.60 … 3.90)·10⁻¹⁰"
    assert cell("sigma_rad", Estimate(0.041, 0.035, 0.05, "rad")) == "phase error (rad): 0.0410 (0.0350 … 0.0500)"
    assert cell("drift_ppb_per_s", Estimate.normal(1.0, 0.5)) == "drift (ppb/s): 1.00 ± 0.98"
    assert cell("constant", True) == "constant: yes"
    assert cell("new_thing_rad", 0.25) == "new thing (rad): 0.25"
    assert cell("level_db", Estimate(0.0, 0.0, 0.0, "db")) == "level (dB): 0"
    assert [number(v) for v in (14648, -8.5, 0.000123, 1e9, math.nan)] == [
        "14\u202f648",
        f"{minus}8.5",
        "0.000123",
        "1\u202f000\u202f000\u202f000",
        "\u2013",
    ]
