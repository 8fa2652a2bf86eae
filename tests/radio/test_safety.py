"""The guard in front of every radio: what it lets pass, what it denies with which numbers, and what it writes down."""

import getpass
import json
import time
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import radio
from radio.beacon import beacon
from radio.errors import ConfigError, RadioError, UnsafeTransmit
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.ofdm import PROFILES as WAVEFORMS
from radio.ofdm import Profile, assemble, canary, clip, drive_for_backoff, pilot, synthesise
from radio.presets import preset
from radio.region import REGIONS, read_region
from radio.safety import _as_sent, outside_db
from radio.timeline import code

CONFIG = radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 70.0)
OPEN_AIR = radio.SafetyProfile(
    name="test", licence="a licence for tests",
    bands=(radio.Band(low_hz=902e6, high_hz=928e6, eirp_dbm=-1.25, duty_cycle=0.01),), guard_hz=100e3,
    antenna_gain_dbi=2.0, cable_loss_db=1.0, tx_full_scale_dbm=7.0, max_burst_s=0.5, duty_window_s=10.0,
)  # fmt: skip


def opened(safety: radio.SafetyProfile) -> tuple[radio.SafeRadio, list[radio.Emission], Ether]:
    ether = Ether(preset("ideal", snr_db=60.0), ["server", "n"])
    written: list[radio.Emission] = []
    guarded = radio.open("loopback:n", safety, ether=ether, audit=written.append)
    return guarded, written, ether


def listen(ether: Ether) -> np.ndarray:
    with radio.open("loopback:server", radio.PROFILES["conducted"], ether=ether) as ear:
        ear.configure(CONFIG)
        return ear.receive(50_000).samples


def burst(count: int, rms: float) -> np.ndarray:
    return np.full(count, rms, np.complex64)


@given(centre=st.floats(800e6, 1000e6), width=st.floats(1e3, 20e6))
def test_band_rule_is_centre_half_width_and_guard(centre, width):
    allowed = centre - width / 2 - 100e3 >= 902e6 and centre + width / 2 + 100e3 <= 928e6
    assert (OPEN_AIR.band_of(centre, width) is not None) == allowed


def test_a_tune_outside_is_denied_and_changes_nothing():
    guarded, _, ether = opened(OPEN_AIR)
    with pytest.raises(UnsafeTransmit, match=r"2450 MHz \+/- 0.5 MHz .* allows 902-928 MHz"):
        guarded.configure(radio.RadioConfig(1e6, 2450e6, 2450e6, 1e6, 70.0))
    assert ether._stations["n"].config is None
    guarded.configure(CONFIG)
    with pytest.raises(UnsafeTransmit):
        guarded.configure(radio.RadioConfig(1e6, 927.45e6, 915e6, 1e6, 70.0))
    assert ether._stations["n"].config.tx_hz == 915e6


@pytest.mark.parametrize(
    ("safety", "tune", "level", "words"),
    [
        (
            OPEN_AIR,
            {"tx_hz": 927.5e6},
            0.1,
            r"927\.5 MHz \+/- 0\.5 MHz and a guard of 0\.1 MHz is outside profile test",
        ),
        (OPEN_AIR, {"tx_hz": 868.3e6}, 0.1, r"allows 902-928 MHz"),
        (OPEN_AIR, {}, 0.9, r"7\.1 dBm radiated is above the -1\.25 dBm of test .* tx_attenuation_db by 8\.3 dB"),
        (radio.SafetyProfile(name="empty"), {}, 0.1, "allows nothing"),
    ],
)
def test_what_is_refused_is_refused_with_numbers_and_logged_and_never_reaches_the_air(safety, tune, level, words):
    guarded, written, ether = opened(safety)
    with pytest.raises(UnsafeTransmit, match=words) as caught:
        guarded.configure(replace(CONFIG, **tune))
        guarded.transmit(burst(1000, level))
    assert caught.value.exit_code == 5
    assert [(line.verdict, line.reason) for line in written] == [("denied", caught.value.message)]
    assert written[0].centre_hz == tune.get("tx_hz", 915e6) and written[0].digest == safety.digest
    station = ether._stations["n"]
    assert not station.bursts and not station.tones and station.muted
    heard, silent = (listen(air) for air in (ether, Ether(preset("ideal", snr_db=60.0), ["server", "n"])))
    assert np.array_equal(heard, silent)


def test_power_is_level_attenuation_antenna_and_cable():
    guarded, written, ether = opened(OPEN_AIR)
    with pytest.raises(UnsafeTransmit, match="not configured"):
        guarded.transmit(burst(100, 0.01))
    guarded.configure(CONFIG)
    limit = 10 ** ((-1.25 - 7.0 - 2.0 + 1.0) / 20)
    guarded.transmit(burst(1000, limit * 0.999))
    assert written[-1].verdict == "sent" and written[-1].radiated_dbm == pytest.approx(-1.26, abs=0.01)
    with pytest.raises(UnsafeTransmit, match=r"-1\.2 dBm radiated is above the -1\.25 dBm .* raise tx_attenuation_db"):
        guarded.transmit(burst(1000, limit * 1.005))
    assert written[-1].verdict == "denied" and "radiated" in written[-1].reason
    assert len(ether._stations["n"].bursts) == 1
    padded = np.concatenate([burst(10, 0.9), np.zeros(990, np.complex64)])
    with pytest.raises(UnsafeTransmit):
        guarded.transmit(padded)  # silence around a strong burst does not make it weak
    with pytest.raises(UnsafeTransmit):
        guarded.transmit(np.array([0.1, np.nan], np.complex64))
    guarded.configure(radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 70.0, 20.0))
    guarded.transmit(burst(1000, 0.9))


def test_length_and_duty_cycle():
    guarded, written, _ = opened(OPEN_AIR)
    guarded.configure(CONFIG)
    with pytest.raises(UnsafeTransmit, match=r"0\.600 s is longer than the 0\.5 s"):
        guarded.transmit(burst(600_000, 0.01))
    guarded.transmit(burst(60_000, 0.01), 0)
    with pytest.raises(UnsafeTransmit, match=r"0\.12 s on air within 10 s is above the duty cycle of 1 %"):
        guarded.transmit(burst(60_000, 0.01), 100_000)
    guarded.transmit(burst(60_000, 0.01), 10_100_000)  # the first one has left the window
    assert [line.verdict for line in written] == ["denied", "sent", "denied", "sent"]


def test_a_long_run_does_not_fill_the_memory():
    free = OPEN_AIR.model_copy(update={"bands": (radio.Band(low_hz=902e6, high_hz=928e6, eirp_dbm=30.0),)})
    for safety, most in ((radio.PROFILES["conducted"], 0), (free, 12)):  # one burst a second, ten seconds of window
        guarded, written, _ = opened(safety)
        guarded.configure(CONFIG)
        for second in range(40):
            guarded.transmit(burst(100, 0.01), second * 1_000_000)
        assert len(written) == 40 and len(guarded._on_air) <= most


def test_conducted_mode_needs_its_attenuation_declared():
    with pytest.raises(ValueError, match="at least 40"):
        radio.SafetyProfile(name="cable", conducted=True, attenuation_db=30.0)
    guarded, written, _ = opened(radio.PROFILES["conducted"])
    guarded.configure(CONFIG)
    guarded.transmit(burst(500_000, 0.9))
    assert written[0].conducted and written[0].radiated_dbm == pytest.approx(7.0 - 60.0 - 0.92, abs=0.01)


def test_a_cable_of_unknown_attenuation_is_refused_where_a_receiver_can_be_damaged():
    ether = Ether(preset("ideal"), ["server", "n"])
    device = LoopbackRadio("n", ether)
    device.witness = None  # as hardware
    written: list[radio.Emission] = []
    cable = radio.PROFILES["conducted"]
    with pytest.raises(UnsafeTransmit, match="no attenuation is declared; 40 dB between any two radios is the least"):
        radio.SafeRadio(device, cable, written.append).configure(CONFIG)
    assert ether._stations["n"].config is None and [line.verdict for line in written] == ["denied"]
    declared = radio.SafeRadio(device, cable.model_copy(update={"attenuation_db": 50.0}), written.append)
    declared.configure(CONFIG)
    declared.transmit(burst(1000, 0.9))
    assert written[-1].radiated_dbm == pytest.approx(7.0 - 50.0 - 0.92, abs=0.01)


def test_the_driver_declares_its_power_and_the_lab_may_know_better():
    ether = Ether(preset("ideal"), ["server", "n"])
    device = LoopbackRadio("n", ether)
    for stated, full in ((None, 20.0), (3.0, 3.0)):
        written: list[radio.Emission] = []
        safety = radio.PROFILES["conducted"].model_copy(update={"tx_full_scale_dbm": stated})
        told = radio.SafeRadio(device, safety, written.append)
        told.configure(replace(CONFIG, tx_attenuation_db=10.0))
        device.capabilities = replace(device.capabilities, tx_full_scale_dbm=20.0)
        told.transmit(burst(1000, 1.0))
        assert written[0].radiated_dbm == pytest.approx(full - 10.0 - 60.0, abs=0.01)


def test_a_region_may_be_narrowed_and_never_widened_without_a_licence():
    region = radio.PROFILES["us-15.249"].model_dump()
    band = {"low_hz": 910e6, "high_hz": 920e6, "eirp_dbm": -5.0, "duty_cycle": 0.1}
    narrow = radio.SafetyProfile(**{**region, "bands": (band,), "guard_hz": 200e3, "max_burst_s": 0.1})
    assert narrow.band_of(915e6, 1e6) is not None and narrow.band_of(905e6, 1e6) is None
    wider = [
        ({"bands": ({**band, "eirp_dbm": 0.0},)}, "band 910-920 MHz at 0 dBm"),
        ({"bands": ({**band, "low_hz": 900e6},)}, "band 900-920 MHz at -5 dBm"),
        ({"guard_hz": 0.0}, "guard_hz = 0"),
        ({"max_burst_s": 10.0}, "max_burst_s = 10"),
        ({"duty_window_s": 7200.0}, "duty_window_s = 7200"),
        ({"outside_db": -10.0}, "outside_db = -10"),
    ]
    for change, words in wider:
        with pytest.raises(ValueError, match=f"{words} is wider than the safety profile 'us-15.249'"):
            radio.SafetyProfile(**{**region, **change})
        assert radio.SafetyProfile(**{**region, **change, "licence": "AB1CDE"}).licence == "AB1CDE"
    with pytest.raises(ValueError, match="conducted = false is wider"):
        radio.SafetyProfile(**{**radio.PROFILES["conducted"].model_dump(), "conducted": False})
    with pytest.raises(ValueError, match=r"'us-15\.249' is version 1 in this release, not 2"):
        radio.SafetyProfile(**{**region, "version": 2})
    with pytest.raises(ValueError, match="has bands of its own; name in licence what allows them"):
        radio.SafetyProfile(name="mine", bands=(radio.Band(**band),))


def test_every_region_is_bounded_and_names_its_source():
    assert set(REGIONS) == {"conducted", "eu-srd", "us-15.249"}
    for region in REGIONS.values():
        assert region.source and region.bands and region.max_burst_s <= 1.0
        assert all(band.eirp_dbm < 20.0 and band.high_hz < 1.05 * band.low_hz for band in region.bands)
    # 50 mV/m at 3 m: EIRP = E^2 d^2 / 30 watts
    assert REGIONS["us-15.249"].bands[0].eirp_dbm == pytest.approx(10 * np.log10(1e3 * (0.05 * 3) ** 2 / 30), abs=0.01)
    # e.r.p. refers to a half-wave dipole, 2.15 dBi
    powers = [10 * np.log10(milliwatts) + 2.15 for milliwatts in (10, 25)]
    assert [band.eirp_dbm for band in REGIONS["eu-srd"].bands] == pytest.approx(powers, abs=0.05)


def test_a_profile_file_of_another_format_is_refused(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('format = 2\nname = "mine"\n')
    with pytest.raises(ConfigError, match=r"mine\.toml: profile 'mine' is of format 2, this release reads 1"):
        read_region(path)
    path.write_text("format = 1\nname = [")
    with pytest.raises(ConfigError, match="not valid TOML"):
        read_region(path)


def waves(profile: Profile) -> dict[str, np.ndarray]:
    """Every burst that the radios of a cell really send."""
    draw = np.random.default_rng(3)
    data = draw.standard_normal((sum(profile.data_symbols), len(profile.bins))).astype(np.complex64)
    grid = assemble(data, pilot(profile, 1, 4), canary(profile, 5, 1, "R"))
    times = np.arange(profile.burst_samples, dtype=np.float64)
    sent, _ = clip(synthesise(grid * np.float32(drive_for_backoff(profile)), profile, times))
    return {"burst": sent, "beacon": beacon(profile, 7), "offset code": np.float32(0.1) * code(1)}


@pytest.mark.parametrize("name", ["pluto-915", "usrp-ref"])
def test_real_bursts_hold_the_bandwidth_they_have_and_spoiled_ones_do_not(name):
    profile = WAVEFORMS[name]
    rate = profile.rate_hz
    real = waves(profile)

    def verdict(samples, bandwidth_hz, rate_hz=rate):
        guarded, _, ether = opened(radio.PROFILES["conducted"])
        guarded.configure(radio.RadioConfig(rate_hz, 915e6, 915e6, bandwidth_hz, 70.0))
        try:
            guarded.transmit(samples)
        except UnsafeTransmit as refusal:
            assert not ether._stations["n"].bursts
            return refusal.message
        return "sent"

    for samples in real.values():
        assert verdict(samples, profile.bandwidth_hz) == "sent"
    for kind in ("burst", "beacon"):  # both leave a fifth of the band empty
        assert verdict(real[kind], 0.82 * rate) == "sent"
    crushed = np.sign(real["burst"].real) + 1j * np.sign(real["burst"].imag)
    noise = np.random.default_rng(1).normal(0, 0.1, (10_000, 2)).astype(np.float32).view(np.complex64)[:, 0]
    for spoiled, low, high in (
        (0.5 * crushed.astype(np.complex64), -17.0, -11.0),
        (50 * real["burst"], -17.0, -11.0),  # the converter crushes it
        (noise, -7.6, -7.3),  # white: 18 % of its power
        (real["offset code"], -7.6, -6.8),  # white, too: it needs the whole band
    ):
        said = verdict(spoiled, 0.82 * rate)
        assert "lies outside the declared bandwidth" in said and low <= float(said.split()[1]) <= high, said
    said = verdict(real["burst"], profile.bandwidth_hz, 2 * rate)  # samples made for half the rate
    assert "lies outside the declared bandwidth" in said


@given(count=st.integers(64, 4000), place=st.floats(-0.5, 0.5), share=st.floats(0.1, 0.9))
def test_the_power_outside_agrees_with_a_plain_sum_over_a_fourier_transform(count, place, share):
    tone = np.exp(2j * np.pi * place * np.arange(count)).astype(np.complex64)
    # the plain model: the energy of the discrete-time Fourier transform, on a grid that no transform length shares
    grid = np.linspace(-0.5, 0.5, 20_011, endpoint=False)
    with np.errstate(all="ignore"):
        turn = np.pi * (grid - place)
        power = np.where(np.sin(turn) == 0, count**2, (np.sin(count * turn) / np.sin(turn)) ** 2)
    expected = 10 * np.log10(power[np.abs(grid) > share / 2].sum() / power.sum())
    assume(min(abs(abs(place) - share / 2), abs(1 - abs(place) - share / 2)) > 3 / count)
    assert outside_db(tone, share) == pytest.approx(expected, abs=1.5)


def test_a_burst_is_checked_in_a_millisecond():
    guarded, _, _ = opened(radio.PROFILES["conducted"])
    guarded.configure(replace(CONFIG, bandwidth_hz=0.9e6))
    samples = waves(WAVEFORMS["pluto-915"])["burst"]
    spent = []
    for _ in range(50):
        begin = time.perf_counter()
        guarded._check(_as_sent(samples), None, guarded._radiated_dbm(_as_sent(samples)))
        spent.append(time.perf_counter() - begin)
    assert min(spent) < 1e-3


def test_a_burst_that_fails_in_the_device_is_written_down():
    guarded, written, ether = opened(radio.PROFILES["conducted"])
    guarded.configure(CONFIG)
    ether._stations["n"].gone = True
    with pytest.raises(RadioError, match="stopped answering"):
        guarded.transmit(burst(100, 0.1), 10_000)
    assert [(line.verdict, line.start, line.reason[:9]) for line in written] == [("failed", 10_000, "radio n s")]


def test_licence_and_operator_are_in_every_line():
    own = OPEN_AIR.model_copy(update={"licence": "experimental 0001-EX", "operator": "A. Person"})
    guarded, written, _ = opened(own)
    guarded.configure(CONFIG)
    guarded.transmit(burst(1000, 0.01))
    with pytest.raises(UnsafeTransmit):
        guarded.transmit(burst(1000, 1.0))
    with pytest.raises(UnsafeTransmit):
        guarded.configure(replace(CONFIG, tx_hz=868e6))
    assert {(line.licence, line.operator) for line in written} == {("experimental 0001-EX", "A. Person")}
    assert [line.verdict for line in written] == ["sent", "denied", "denied"]
    assert all(json.loads(json.dumps(asdict(line), allow_nan=False)) for line in written)


def test_audit_line_says_what_when_where():
    guarded, written, _ = opened(radio.PROFILES["conducted"])
    guarded.configure(CONFIG)
    report = guarded.transmit(burst(2000, 0.1))
    line = written[0]
    assert (line.radio, line.serial, line.start, line.count) == ("n", "loopback-n", report.start, 2000)
    assert (line.duration_s, line.centre_hz, line.bandwidth_hz) == (2e-3, 915e6, 1e6)
    assert (line.licence, line.operator) == ("", getpass.getuser())
    assert line.profile == "conducted v1" and line.digest == radio.PROFILES["conducted"].digest
    assert line.time.endswith("+00:00")
    assert radio.PROFILES["conducted"].digest != OPEN_AIR.digest


def test_close_mutes_even_when_the_body_fails():
    guarded, _, ether = opened(radio.PROFILES["conducted"])
    with pytest.raises(ZeroDivisionError), guarded:
        guarded.configure(CONFIG)
        guarded.transmit(burst(2000, 0.1))
        assert not ether._stations["n"].muted
        raise ZeroDivisionError
    assert ether._stations["n"].muted and not ether._stations["n"].bursts
    guarded.close()
    with pytest.raises(UnsafeTransmit, match="closed"):
        guarded.transmit(burst(10, 0.1))
    with pytest.raises(RadioError):
        guarded.now()


def test_open_refuses_what_it_does_not_know():
    with pytest.raises(ConfigError, match="no known scheme; known are"):
        radio.open("nonsense:1", OPEN_AIR)
    with pytest.raises(ConfigError, match="no air was given"):
        radio.open("loopback:n", OPEN_AIR)
    with pytest.raises(ConfigError, match="is not loopback:tcp"):
        radio.open("loopback:tcp://127.0.0.1/n", OPEN_AIR)
    assert all(isinstance(found, radio.Discovered) for found in radio.discover())
