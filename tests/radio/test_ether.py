"""The air: levels, clocks, counters, faults; and that no window, order or restart changes a bit."""

import json
from itertools import pairwise

import numpy as np
import pytest

from radio.base import RadioConfig
from radio.errors import CalibrationError, ConfigError, RadioError, RadioNotFound, RadioRefused, TooLate
from radio.ether import Ether
from radio.loopback import LoopbackRadio
from radio.presets import EtherOptions, preset
from radio.timeline import code, measure_offset

CONFIG = RadioConfig(1e6, 915e6, 915e6, 1e6, 70.0)


def lab(options: EtherOptions, *names: str, config: RadioConfig = CONFIG) -> tuple[Ether, list[LoopbackRadio]]:
    """An air with a server and nodes, all configured alike."""
    ether = Ether(options, names)
    radios = [LoopbackRadio(name, ether) for name in names]
    for radio in radios:
        radio.configure(config)
    return ether, radios


def noise(count: int, rms: float, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed)
    wave = draw.standard_normal(count) + 1j * draw.standard_normal(count)
    return (rms / np.sqrt(2) * wave).astype(np.complex64)


def tone(count: int, hz: float, size: float = 0.3) -> np.ndarray:
    return (size * np.exp(2j * np.pi * hz / 1e6 * np.arange(count))).astype(np.complex64)


def power(samples: np.ndarray) -> float:
    return float(np.mean(np.abs(samples) ** 2))


def frequency(samples: np.ndarray) -> float:
    """Frequency of a strong tone by phase slope, Hz at 1 MS/s."""
    phase = np.unwrap(np.angle(samples.astype(np.complex128)))
    return float(np.polyfit(np.arange(phase.size), phase, 1)[0] / (2 * np.pi) * 1e6)


@pytest.mark.parametrize("snr_db", [0.0, 5.0, 10.0, 20.0])
def test_snr_means_what_it_says(snr_db):
    _, (server, node) = lab(preset("ideal", snr_db=snr_db), "server", "n")
    count = 200_000
    node.transmit(noise(count, 10 ** (-9 / 20)), 0)
    both = power(server.receive(count).samples)
    only = power(server.receive(count).samples)
    # the burst fills the whole band here: its density is 3/8 of one that fills 3/8
    found = 10 * np.log10((both - only) / only * 8 / 3)
    assert found == pytest.approx(snr_db, abs=0.25)
    np.testing.assert_allclose(10 * np.log10(only), -174 + 5 + 60 + 70, atol=0.05)


def test_witness_amplitude_is_what_a_tone_shows():
    for hz in (-300e3, 40e3, 300e3):
        ether, (server, node) = lab(preset("pluto-stock", seed=4, snr_db=45.0, paths_min=3), "server", "n",
                                    config=RadioConfig(1e6, 915e6, 915e6, 1e6, 30.0))  # fmt: skip
        start = node.transmit(tone(200_000, hz)).start
        heard = server.receive(5000, server.now() + 130_000).samples
        carrier = np.abs(np.mean(heard * np.exp(-2j * np.pi * frequency(heard) / 1e6 * np.arange(heard.size))))
        true = ether.amplitude("n", "server", start, np.array([hz]))[0]
        compression = (1 + (0.3**2 / 10 ** (7 / 10)) ** 2) ** -0.25
        assert carrier == pytest.approx(0.3 * true * compression, rel=0.02)


def test_one_clock_drives_carrier_and_samples():
    ppm = 8.0
    options = preset("ideal", snr_db=60.0, tier="U0", radios={"n": {"ppm": ppm}})
    _, (server, node) = lab(options, "server", "n")
    node.transmit(tone(60_000, 100e3))
    begin = server.now() + 1000
    heard = server.receive(50_000, begin).samples
    # carrier and tone are both fast by ppm, and nothing else happens
    assert frequency(heard) == pytest.approx(100e3 + ppm * 1e-6 * (915e6 + 100e3), abs=0.5)
    # a clock fast by ppm plays the burst in less time
    long = tone(500_000, 100e3)
    report = node.transmit(long)
    taken = server.receive(report.start + 520_000 - server.now()).samples
    size = np.abs(taken[-60_000:])
    loud = np.flatnonzero(size > 0.5 * np.median(size))[-1] + server.now() - 60_000
    assert loud == pytest.approx((report.start + 500_000) / (1 + ppm * 1e-6), abs=1)


def test_shared_reference_has_no_offset_and_free_running_has():
    for name, limit in (("pluto-shared-clock", 0.2), ("usrp-ref", 0.2)):
        _, (server, node) = lab(preset(name, snr_db=60.0, seed=2), "server", "n")
        node.transmit(tone(30_000, 100e3, 0.02), node.earliest())
        heard = server.receive(10_000, server.now() + 40_000 if name != "usrp-ref" else server.now() + 10_000)
        assert abs(frequency(heard.samples - heard.samples.mean()) - 100e3) < limit


def test_windows_and_order_do_not_change_a_bit():
    names = ("server", "a", "b")
    options = preset(
        "pluto-stock", seed=9, drop_probability=0.1, duplicate_probability=0.1, interferer_dbm=-100.0,
        doppler_max_hz=5.0,
    )  # fmt: skip

    def run(order: tuple[int, ...], cuts: list[int]) -> list[bytes]:
        _, radios = lab(options, *names)
        starts = [radio.now() + 60_000 for radio in radios]
        for i in order:
            radios[i].transmit(noise(9000, 0.2, i), starts[i])
        heard = [[] for _ in names]
        for low, high in pairwise(cuts):
            for i in order:
                heard[i].append(radios[i].receive(high - low, starts[i] + low).samples)
        return [np.concatenate(parts).tobytes() for parts in heard]

    whole = run((0, 1, 2), [-5000, 70_000])
    assert run((2, 0, 1), [-5000, -4999, -17, 0, 255, 256, 257, 4096, 16_384, 16_385, 33_333, 69_999, 70_000]) == whole
    assert run((1, 2, 0), [-5000, *range(0, 70_001, 10_000)]) == whole
    assert len(set(whole)) == 3


def test_lo_phase_is_new_after_a_retune_and_a_mute_and_only_then():
    def phase(server: LoopbackRadio, node: LoopbackRadio) -> complex:
        node.transmit(tone(6000, 100e3), max(node.earliest(), server.now()))
        heard = server.receive(2000, max(server.now(), node.earliest()) - 3000).samples
        index = np.arange(server.now() - 2000, server.now())
        value = np.mean(heard * np.exp(-2j * np.pi * 0.1 * (index % 10)))
        return complex(value / abs(value))

    _, (server, node) = lab(preset("ideal", snr_db=60.0, lo_start_phase=True), "server", "n")
    first = phase(server, node)
    start = node.earliest() % 10
    assert start == 0
    assert abs(phase(server, node) - first) < 0.02
    node.configure(CONFIG)  # unchanged settings are left alone
    assert abs(phase(server, node) - first) < 0.02
    node.mute()
    muted = phase(server, node)
    assert abs(muted - first) > 0.05
    node.configure(RadioConfig(1e6, 915.1e6, 915e6, 1e6, 70.0))
    node.configure(CONFIG)
    assert abs(phase(server, node) - muted) > 0.05


def test_turnaround_is_enforced_and_bursts_do_not_overlap():
    _, (_, node) = lab(preset("pluto-stock", seed=1), "server", "n")
    earliest = node.earliest()
    with pytest.raises(TooLate, match="7 samples too early") as caught:
        node.transmit(noise(100, 0.1), earliest - 7)
    assert caught.value.late_samples == 7
    node.transmit(noise(5000, 0.1), earliest)
    assert node.earliest() >= earliest + 5000
    node.receive(40_000)
    assert node.earliest() >= earliest + 40_000 - 4096


def test_a_p0_radio_hides_the_constant_and_the_leakage_shows_it():
    for seed in range(6):
        ether, (_, node) = lab(preset("pluto-stock", seed=seed), "server", "n")
        offset = measure_offset(node, seed)
        chips = 0.01 * code(seed + 100)
        at = node.now() + 70_000  # wanted RX index of the echo
        naive = node.transmit(chips.astype(np.complex64), at).start
        honest_at = naive + 100_000
        node.transmit(chips.astype(np.complex64), honest_at + offset)
        begin = at - 35_000
        heard = node.receive(150_000, begin).samples
        lags = np.abs(np.correlate(heard - heard.mean(), chips, "valid"))
        honest = lags[honest_at - begin]
        assert honest > 0.9 * lags.max()
        assert lags[at - begin] < 0.3 * honest, "one timeline was assumed, and it worked"
        public = {name for name in dir(node) if not name.startswith("_")}
        allowed = "name capabilities witness configure now newest temperature_c earliest transmit receive mute close"
        assert public == set(allowed.split())
        assert {name for name in dir(node.witness) if not name.startswith("_")} == {
            "deposit",
            "collect",
            "amplitude",
            "state",
        }
        assert set(node.witness.state()) == {"version", "options", "sealed"}
        truth = ether._stations["n"]
        assert offset == -truth.hidden - truth.faults.self_delay_samples


def test_offset_is_redrawn_by_a_restart_and_missing_echo_is_an_error():
    _, (_, node) = lab(preset("pluto-stock", seed=3), "server", "n")
    first = measure_offset(node, 1)
    assert measure_offset(node, 2) == first
    node.configure(RadioConfig(2e6, 915e6, 915e6, 1e6, 70.0))
    node.configure(CONFIG)
    assert measure_offset(node, 1) != first
    _, (_, deaf) = lab(preset("pluto-stock", seed=3, self_leak_db=float("-inf")), "server", "n")
    with pytest.raises(CalibrationError, match="no clear echo"):
        measure_offset(deaf, 1)
    _, (_, timed) = lab(preset("usrp-free", seed=3), "server", "n")
    before = timed.now()
    assert measure_offset(timed, 1) == 0 and timed.now() == before


def test_a_tier_that_is_only_claimed_changes_what_is_told_and_nothing_that_is_done():
    claims = {"n": {"declared_tier": "P2"}}
    ether, (_, node) = lab(preset("pluto-stock", seed=3, radios=claims), "server", "n")
    _, (_, honest) = lab(preset("pluto-stock", seed=3), "server", "n")
    assert (node.capabilities.tier, node.capabilities.one_timeline) == ("P2", True)
    assert (honest.capabilities.tier, honest.capabilities.one_timeline) == ("P0", False)
    starts = [each.transmit(noise(3000, 0.1)).start for each in (node, honest)]
    heard = [each.receive(90_000).samples.tobytes() for each in (node, honest)]
    assert starts[0] == starts[1] and heard[0] == heard[1]
    assert ether._stations["n"].hidden > 0


def test_a_late_burst_is_reported_and_not_heard_in_the_part_already_received():
    _, (server, node) = lab(preset("ideal", snr_db=60.0), "server", "n")
    server.receive(1500)
    report = node.transmit(noise(4000, 0.3), 500)
    assert [(event.kind, event.index, event.count) for event in report.events] == [("late", 500, 1000)]
    heard = server.receive(4000).samples
    assert power(heard[20:2980]) > 100 * power(heard[3020:])
    gone = node.transmit(noise(500, 0.3), 4600)
    assert gone.events[0].count == 500


def test_mute_ends_the_leak_and_drops_what_is_pending():
    quiet = {"lo_start_phase": True, "tx_leak_dbc": -40.0}
    _, (server, node) = lab(preset("ideal", snr_db=60.0, **quiet), "server", "n")
    floor = power(server.receive(5000).samples)
    node.transmit(noise(1000, 0.3), server.now())
    server.receive(1100)
    leak = power(server.receive(5000).samples)
    assert leak > 5 * floor, "the idle carrier of an un-muted transmitter is heard"
    node.transmit(noise(1000, 0.3), server.now() + 1000)
    node.mute()
    assert power(server.receive(5000).samples) < 1.2 * floor
    node.transmit(noise(1000, 0.3), server.now() + 100)
    server.receive(200)
    node.close()
    assert power(server.receive(5000).samples[50:]) < 1.2 * floor


def test_sticky_mute_needs_the_switch_that_the_driver_uses():
    ether, (server, node) = lab(preset("ideal", snr_db=60.0, quirk_sticky_mute=True), "server", "n")
    ether.transmit("n", noise(1000, 0.3), 0)
    assert power(server.receive(1000).samples) < 1e-3
    node.transmit(noise(1000, 0.3), 1000)
    assert power(server.receive(1000).samples) > 1e-3


def test_silent_slips_and_flagged_losses():
    count, block = 400_000, 4096
    ramp = tone(count, 1e6 / 1024)
    for tier, drop, twice in (("P0", 0.1, 0.0), ("P0", 0.0, 0.1), ("U0", 0.1, 0.0)):
        options = preset(
            "ideal", snr_db=60.0, tier=tier, block_samples=block,
            radios={"server": {"drop_probability": drop, "duplicate_probability": twice}},
        )  # fmt: skip
        ether, (server, node) = lab(options, "server", "n")
        node.transmit(ramp, 0)
        capture = server.receive(50 * block)
        moved = ether._stations["server"].rx_device(50 * block - 1) - (50 * block - 1)
        if tier == "U0":
            assert moved == 0 and capture.events and all(event.kind == "overflow" for event in capture.events)
            for event in capture.events:
                assert not capture.samples[event.index : event.index + event.count].any()
        else:
            assert capture.events == () and moved % block == 0 and np.sign(moved) == (1 if drop else -1)


def test_unplugged_is_an_error_then_absent_then_a_new_session():
    ether, (server, node) = lab(preset("pluto-stock", seed=2, radios={"n": {"unplug_at": 50_000}}), "server", "n")
    node.receive(10_000)
    with pytest.raises(RadioError, match="stopped answering at RX index 50000"):
        node.receive(60_000)
    with pytest.raises(RadioError, match="cable is out"):
        node.now()
    server.receive(200_000)
    again = LoopbackRadio("n", ether)
    again.configure(CONFIG)
    assert again.now() == 4 * 4096
    again.receive(60_000)


def test_stale_blocks_are_flushed_by_the_driver_only():
    ether = Ether(preset("pluto-stock", seed=2), ["server", "n"])
    ether.open("n")
    _, stale = ether.configure("n", CONFIG)
    assert stale == 4 * 4096 and ether.now("n") == 0
    old = ether.receive("n", stale)
    assert old.samples.size == stale
    assert ether.configure("n", CONFIG)[1] == 0


def test_automatic_gain_is_on_until_manual():
    ether = Ether(preset("pluto-stock", seed=2), ["server", "n"])
    ether.open("n")
    ether.configure("n", CONFIG, manual_gain=False)
    automatic = ether.receive("n", 4096, 20_000).samples
    ether.configure("n", CONFIG)
    manual = ether.receive("n", 4096, 40_000).samples
    assert power(automatic) == pytest.approx(0.25**2, rel=0.2)
    assert 10 * np.log10(power(manual)) == pytest.approx(-174 + 5 + 60 + 70, abs=1.0)


def test_clipping_is_counted_on_both_sides():
    _, (server, node) = lab(preset("pluto-stock", seed=2, snr_db=80.0), "server", "n")
    burst = noise(5000, 0.9)
    rails = int(np.count_nonzero((np.abs(burst.real) > 1) | (np.abs(burst.imag) > 1)))
    assert node.transmit(burst).clipped == rails > 0
    capture = server.receive(60_000, server.now() + 20_000)
    assert capture.clipped > 1000
    assert np.abs(capture.samples.real).max() <= 1.0


def test_gain_and_attenuation_steps_and_levels():
    _, (server, node) = lab(preset("pluto-stock", seed=2), "server", "n")
    taken = node.configure(RadioConfig(1e6, 915e6 + 1, 915e6, 1e6, 29.6, 10.1))
    assert (taken.rx_gain_db, taken.tx_attenuation_db) == (30.0, 10.0)
    assert taken.tx_hz % 2.4 == pytest.approx(0.0, abs=1e-3) or taken.tx_hz % 2.4 == pytest.approx(2.4, abs=1e-3)
    with pytest.raises(RadioRefused, match="rx_gain_db = 99"):
        server.configure(RadioConfig(1e6, 915e6, 915e6, 1e6, 99.0))


def test_interferer_is_on_for_its_share_of_time():
    options = preset("ideal", interferer_dbm=-80.0, interferer_duty=0.2)
    _, (server,) = lab(options, "server")
    heard = server.receive(1_000_000).samples.reshape(-1, 1000)
    level = np.mean(np.abs(heard) ** 2, axis=1)
    assert np.mean(level > 10 ** ((-80 + 70) / 10) / 2) == pytest.approx(0.2, abs=0.02)


def test_rates_that_differ_are_converted():
    options = preset("ideal", snr_db=60.0)
    ether = Ether(options, ["server", "n"])
    server, node = (LoopbackRadio(name, ether) for name in ether.names)
    server.configure(CONFIG)
    node.configure(RadioConfig(2e6, 915e6, 915e6, 1e6, 70.0))
    node.transmit((0.3 * np.exp(2j * np.pi * 0.05 * np.arange(40_000))).astype(np.complex64), 0)
    assert frequency(server.receive(10_000, 1000).samples) == pytest.approx(100e3, abs=1.0)


@pytest.mark.parametrize("name", ["ideal", "pluto-stock", "usrp-ref"])
def test_a_restarted_air_continues_bit_for_bit(name):
    options = preset(name, seed=6)

    def session(ether: Ether, radios: list[LoopbackRadio], seed: int) -> list[bytes]:
        server, node = radios
        begin = max(server.now(), node.now()) + 50_000
        node.transmit(noise(5000, 0.2, seed), max(begin, node.earliest()))
        return [radio.receive(60_000, begin).samples.tobytes() for radio in radios]

    ether, radios = lab(options, "server", "n")
    session(ether, radios, 1)
    kept = json.loads(json.dumps(ether.state()))
    wanted = session(ether, radios, 2)
    other = Ether(options, ["server", "n"])
    other.restore(kept)
    again = [LoopbackRadio(each, other) for each in other.names]
    for radio in again:
        radio.configure(CONFIG)
    assert session(other, again, 2) == wanted
    with pytest.raises(ConfigError, match="is not this one"):
        Ether(preset(name, seed=7), ["server", "n"]).restore(kept)


def test_witness_gives_sums_only():
    _, radios = lab(preset("ideal"), "server", "a", "b")
    witness = radios[0].witness
    witness.deposit("round-1", "a", {"x": np.array([1.0, 2.0])})
    witness.deposit("round-1", "b", {"x": np.array([10.0, 20.0])})
    with pytest.raises(RadioError, match="alone"):
        witness.collect("round-1", ("a",))
    with pytest.raises(RadioError, match="left nothing"):
        witness.collect("round-1", ("a", "c"))
    np.testing.assert_array_equal(witness.collect("round-1", ("a", "b"))["x"], [11.0, 22.0])
    with pytest.raises(RadioError, match="left nothing"):
        witness.collect("round-1", ("a", "b"))


def test_names_and_options_are_checked():
    with pytest.raises(ConfigError, match="twice"):
        Ether(preset("ideal"), ["a", "a"])
    with pytest.raises(ConfigError, match="overrides"):
        Ether(preset("ideal", radios={"c": {"ppm": 1.0}}), ["server"])
    with pytest.raises(RadioNotFound, match="server, n"):
        LoopbackRadio("m", Ether(preset("ideal"), ["server", "n"]))
    with pytest.raises(ValueError, match="ppm"):
        preset("ideal", radios={"a": {"ppm": 1e6}})
    with pytest.raises(ValueError, match="nonsense"):
        preset("ideal", nonsense=1)
    with pytest.raises(ValueError, match="preset"):
        preset("nonsense")
    assert preset("pluto-stock", adev=1e-9).of("x").adev == 1e-9
    shown = EtherOptions.model_validate(json.loads(preset("ideal").model_dump_json()))
    assert shown == preset("ideal")
