"""Links that were measured instead of drawn, lossy ones, and a connector that is loose."""

from itertools import pairwise

import numpy as np
import pytest

from radio.base import RadioConfig
from radio.errors import ConfigError
from radio.ether import Ether
from radio.links import Contact
from radio.loopback import LoopbackRadio
from radio.paced import paced_options
from radio.presets import EtherOptions, LinkFacts, preset

CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 30.0)


def lab(options: EtherOptions, *names: str) -> tuple[Ether, list[LoopbackRadio]]:
    ether = Ether(options, names)
    radios = [LoopbackRadio(name, ether) for name in names]
    for radio in radios:
        radio.configure(CONFIG)
    return ether, radios


def amplitude(options: EtherOptions, node: str, hz: float = 100e3, start: int = 0) -> float:
    ether, _ = lab(options, "server", "a", "b")
    return float(ether.amplitude(node, "server", start, np.array([hz]))[0])


def db(ratio: float) -> float:
    return float(20 * np.log10(ratio))


def test_loss_of_one_node_weakens_its_link_both_ways_and_no_other():
    plain, lossy = preset("pluto-stock", seed=2), preset("pluto-stock", seed=2, radios={"a": {"link_loss_db": 12.0}})
    assert db(amplitude(lossy, "a") / amplitude(plain, "a")) == pytest.approx(-12.0)
    assert amplitude(lossy, "b") == amplitude(plain, "b")
    back = [lab(options, "server", "a")[0].amplitude("server", "a", 0, np.zeros(1))[0] for options in (plain, lossy)]
    assert db(back[1] / back[0]) == pytest.approx(-12.0)


def test_measured_facts_replace_the_drawn_ones():
    plain = preset("ideal", seed=2, snr_db=20.0)
    assert db(amplitude(plain.model_copy(update={"links": {"a": LinkFacts(snr_db=26.0)}}), "a")) == pytest.approx(
        db(amplitude(plain, "a")) + 6.0
    )
    # at the antennas 0 dBm full scale against -30 dBm: a gain of -50 dB is -20 dB from full scale to full scale
    facts = {"a": {"gain_db": -50.0, "delay_s": 3e-6, "taps": [[0.0, 3.0, 0.0], [2e-6, 0.0, 4.0]]}}
    options = preset("pluto-stock", seed=2, links=facts)
    ether, (server, node, _) = lab(options, "server", "a", "b")
    link = ether._link("a", "server")
    assert link.delay_s == 3e-6
    np.testing.assert_allclose(link.paths(np.array([0.0, 1.0])), [[0.6, 0.8j], [0.6, 0.8j]])
    wanted = 0.1 * abs(0.6 + 0.8j * np.exp(-2j * np.pi * 100e3 * 2e-6))
    assert amplitude(options, "a") == pytest.approx(wanted)
    assert amplitude(options, "b") == amplitude(preset("pluto-stock", seed=2), "b")
    start = node.transmit((0.1 * np.exp(0.2j * np.pi * np.arange(150_000))).astype(np.complex64)).start
    heard = server.receive(4096, server.now() + start + 90_000).samples
    spectrum = np.abs(np.fft.fft(heard * np.hanning(4096))) / 2048
    assert spectrum[300:520].max() == pytest.approx(0.1 * wanted, rel=0.15)  # a tone between two bins
    assert EtherOptions.model_validate(options.model_dump()) == options
    assert paced_options(options, ["server", "a", "b"]).links == options.links


def test_the_scattered_share_of_measured_taps_fades_about_them():
    facts = {"a": LinkFacts(snr_db=20.0, taps=((0.0, 0.0, 1.0),), scattered=0.2, doppler_hz=5.0)}
    ether, _ = lab(preset("ideal", links=facts), "server", "a")
    path = ether._link("a", "server").paths(np.linspace(0.0, 100.0, 4000))[:, 0]
    assert np.mean(np.abs(path) ** 2) == pytest.approx(1.0, rel=0.1)
    assert np.mean(path).imag == pytest.approx(np.sqrt(0.8), rel=0.05)
    assert np.mean(np.abs(path - np.mean(path)) ** 2) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({"snr_db": 20.0, "gain_db": -50.0}, "same thing"),
        ({"taps": [[0.0, 0.0, 0.0]]}, "zero"),
        ({"taps": [[-1e-6, 1.0, 0.0]]}, "greater than or equal to 0"),
        ({"scattered": 0.1}, "give these as well"),
        ({"gain_db": 10.0}, "less than or equal to 0"),
        ({"phase": 1.0}, "phase"),
    ],
)
def test_facts_that_make_no_link_are_refused(facts, told):
    with pytest.raises(ValueError, match=told):
        preset("ideal", links={"a": facts})


def test_facts_of_the_server_or_a_stranger_are_refused():
    with pytest.raises(ValueError, match="no link to itself"):
        preset("ideal", links={"server": {"snr_db": 20.0}})
    with pytest.raises(ConfigError, match=r"ether.links has overrides for \['c'\]"):
        Ether(preset("ideal", links={"c": {"snr_db": 20.0}}), ["server", "a"])


def test_a_loose_connector_switches_at_random_and_alike_for_everybody():
    contact = Contact(20.0, 5.0, 1, "a")
    time_s = np.arange(0.0, 400.0, 1e-3)
    gain = contact.gain(time_s)
    assert set(np.unique(gain)) == {0.1, 1.0}
    assert np.mean(gain < 1.0) == pytest.approx(0.5, abs=0.05)
    changes = np.count_nonzero(np.diff(gain)) / 400.0
    assert changes == pytest.approx(2.5, rel=0.15)  # half of the draws give the state that holds already
    cut = np.concatenate([Contact(20.0, 5.0, 1, "a").gain(part) for part in np.array_split(time_s, 7)[::-1]][::-1])
    np.testing.assert_array_equal(cut, gain)
    assert not np.array_equal(Contact(20.0, 5.0, 1, "b").gain(time_s), gain)
    assert not Contact(0.0, 5.0, 1, "a").loose


def test_a_loose_connector_takes_what_passes_it_and_leaves_the_own_leakage():
    loose = {"a": {"contact_loss_db": 20.0, "contact_hz": 4.0}}
    options = preset("pluto-stock", seed=7, snr_db=60.0, radios=loose, tx_latency_max_s=0.0, adev=0.0)
    whole = preset("pluto-stock", seed=7, snr_db=60.0, tx_latency_max_s=0.0, adev=0.0)
    tone = (0.3 * np.exp(0.2j * np.pi * np.arange(2_000_000))).astype(np.complex64)

    def heard(given: EtherOptions, cuts: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        ether, (server, node) = lab(given, "server", "a")
        begin = node.transmit(tone).start + 100_000
        starts = [server.now() + begin, node.now() + begin]
        parts = [
            np.concatenate([each.receive(b - a, start + a).samples for a, b in pairwise(cuts)])
            for each, start in zip((server, node), starts, strict=True)
        ]
        at = begin + np.arange(0, 1_500_000, 10_000)
        return parts[0], parts[1], np.array([ether.amplitude("a", "server", int(n), np.array([1e5]))[0] for n in at])

    once, own, true = heard(options, [0, 1_600_000])
    again, _, _ = heard(options, [0, 17, 4096, 250_000, 777_777, 1_600_000])
    np.testing.assert_array_equal(once, again)
    sound, own_sound, true_sound = heard(whole, [0, 1_600_000])
    lost = np.isclose(db_of(true / true_sound), -20.0)
    assert np.all(lost | np.isclose(db_of(true / true_sound), 0.0, atol=1e-9)) and 0.1 < lost.mean() < 0.9
    level = np.abs(once).reshape(-1, 10_000).mean(axis=1) / np.abs(sound).reshape(-1, 10_000).mean(axis=1)
    assert np.mean((level < 0.5) == (level < 0.9)) > 0.9 and 0.1 < np.mean(level < 0.5) < 0.9
    np.testing.assert_array_equal(own, own_sound)


def db_of(ratio: np.ndarray) -> np.ndarray:
    return 20 * np.log10(ratio)
