"""The guard in front of every radio: what it lets pass, what it denies with which numbers, and what it writes down."""

import getpass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import radio
from radio.errors import ConfigError, RadioError, UnsafeTransmit
from radio.ether import Ether
from radio.presets import preset

CONFIG = radio.RadioConfig(1e6, 915e6, 915e6, 1e6, 70.0)
OPEN_AIR = radio.SafetyProfile(
    name="test", licence="a licence for tests", bands=(radio.Band(low_hz=902e6, high_hz=928e6, eirp_dbm=-1.25, duty_cycle=0.01),), guard_hz=100e3,
    antenna_gain_dbi=2.0, cable_loss_db=1.0, tx_full_scale_dbm=7.0, max_burst_s=0.5, duty_window_s=10.0,
)  # fmt: skip


def opened(safety: radio.SafetyProfile) -> tuple[radio.SafeRadio, list[radio.Emission], Ether]:
    ether = Ether(preset("ideal", snr_db=60.0), ["server", "n"])
    written: list[radio.Emission] = []
    guarded = radio.open("loopback:n", safety, ether=ether, audit=written.append)
    return guarded, written, ether


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


def test_nothing_is_allowed_by_a_profile_without_bands():
    guarded, _, _ = opened(radio.SafetyProfile(name="empty"))
    with pytest.raises(UnsafeTransmit, match="allows nothing"):
        guarded.configure(CONFIG)


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
