"""The symbol-level channel against its statistics, and the error of the decoded mean against its closed form."""

import math

import numpy as np
import pytest
import torch

from fl_core.encode import energy, power_scale
from fl_core.mac import (
    RAYLEIGH_MEAN,
    RAYLEIGH_SPREAD,
    Channel,
    after_precoding,
    draw_gains,
    fading_mac,
    ideal_mac,
    mean_gain,
    transmit_energy,
)
from fl_core.options import SchemeOptions
from fl_core.schemes import Csi, Plan, make_scheme
from fl_core.seeds import generator


def source(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_rayleigh_gains_have_unit_power_and_the_stated_mean_and_spread():
    gains = draw_gains("rayleigh", 200_000, source()).numpy().astype(complex)
    size = np.abs(gains)
    # Standard errors at 200,000 draws are below 0.0025; 5 of them are 0.0125.
    assert np.mean(size**2) == pytest.approx(1.0, abs=0.0125)
    assert np.mean(size) == pytest.approx(RAYLEIGH_MEAN, abs=0.0125)
    assert np.var(size) / RAYLEIGH_MEAN**2 == pytest.approx(RAYLEIGH_SPREAD, abs=0.0125)
    assert abs(np.mean(gains)) < 0.0125


def test_unit_gains_share_the_phases_and_have_no_spread():
    free, forced = draw_gains("rayleigh", 50, source(3)), draw_gains("unit", 50, source(3))
    torch.testing.assert_close(forced.abs(), torch.full((50,), RAYLEIGH_MEAN))
    torch.testing.assert_close(free.angle(), forced.angle())


def test_each_precoder_leaves_what_it_says():
    gains = draw_gains("rayleigh", 20, source())
    torch.testing.assert_close(after_precoding(gains, "phase").real, gains.abs())
    assert float(after_precoding(gains, "phase").imag.abs().max()) == 0.0
    assert torch.equal(after_precoding(gains, "inversion"), torch.ones_like(gains))
    assert torch.equal(after_precoding(gains, "none"), gains)
    assert mean_gain("rayleigh", "phase") == mean_gain("unit", "phase") == RAYLEIGH_MEAN
    assert mean_gain("none", "phase") == mean_gain("rayleigh", "inversion") == 1.0


def test_inversion_pays_for_its_fades():
    gains = torch.tensor([0.5 + 0j, 2j])
    symbols = torch.tensor([[1 + 1j, 1j], [2.0, 0j]])
    assert transmit_energy(symbols, gains, "inversion").tolist() == pytest.approx([12.0, 1.0])
    assert transmit_energy(symbols, gains, "inversion", threshold=0.3).tolist() == pytest.approx([0.0, 1.0])
    assert torch.equal(transmit_energy(symbols, gains, "phase"), energy(symbols))
    per_symbol = torch.tensor([[0.5 + 0j, 2.0], [0.1, 1.0]])
    assert transmit_energy(symbols, per_symbol, "inversion", 0.2).tolist() == pytest.approx([8.25, 0.0])


def test_noise_is_circular_with_the_variance_of_the_snr():
    channel = Channel("none", 7.0)
    assert channel.noise == pytest.approx(10**-0.7)
    silence = torch.zeros((2, 100_000), dtype=torch.complex64)
    noise = fading_mac(silence, draw_gains("none", 2, source()), channel.noise, source(5)).numpy().astype(complex)
    share = 5 / math.sqrt(100_000)  # 5 standard errors
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(channel.noise, rel=share)
    assert abs(np.mean(noise**2)) < share * channel.noise
    assert np.mean(noise.real**2) == pytest.approx(channel.noise / 2, rel=share * math.sqrt(2))


def test_the_sum_is_the_sum():
    symbols = torch.view_as_complex(torch.randn((3, 10, 2), generator=source()))
    gains = torch.tensor([1 + 1j, 0.5 + 0j, -2j])
    expected = gains[0] * symbols[0] + gains[1] * symbols[1] + gains[2] * symbols[2]
    torch.testing.assert_close(fading_mac(symbols, gains, 0.0, source()), expected)
    torch.testing.assert_close(ideal_mac(symbols), symbols[0] + symbols[1] + symbols[2])


def test_infinite_snr_is_no_noise():
    assert Channel("none", math.inf).noise == 0.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: draw_gains("rician", 2, source()),
        lambda: after_precoding(torch.ones(2, dtype=torch.complex64), "amplitude"),
        lambda: fading_mac(
            torch.zeros((2, 3), dtype=torch.complex64), torch.ones(3, dtype=torch.complex64), 0.0, source()
        ),
        lambda: fading_mac(
            torch.zeros((2, 3), dtype=torch.complex64), torch.ones(2, dtype=torch.complex64), -1.0, source()
        ),
    ],
)
def test_mistakes_are_refused(call):
    with pytest.raises(ValueError, match=r"choose one of|need as many"):
        call()


@pytest.mark.parametrize("snr_db", [math.inf, 20.0, 0.0])
@pytest.mark.parametrize("fading", ["rayleigh", "unit"])
def test_error_of_the_decoded_sum_is_its_closed_form(fading, snr_db):
    """With `pair` and V_E = 0: E|error|^2 = v_h/mu_h^2 sum|g_i|^2 + max|g_i|^2 sigma^2/(mu_h^2 P)."""
    clients, d, trials = 4, 24, 3000
    scheme = make_scheme(SchemeOptions(mapping="pair", keep=1.0, estimator="linear"), d)
    vectors = torch.randn((clients, d), generator=source(2)) * torch.tensor([0.3, 1.0, 1.7, 0.6])[:, None]
    noise = Channel(fading, snr_db).noise
    symbols, _ = scheme.encode(vectors, torch.zeros_like(vectors), Csi(), Plan(0, 1, clients))
    scale = scheme.scale(energy(symbols).tolist(), Plan(0, 1, clients))
    plan = Plan(0, 1, clients, 1.0, scale)
    errors = np.empty(trials)
    for trial in range(trials):
        gains = after_precoding(draw_gains(fading, clients, generator(4, "gains", trial)), "phase")
        received = fading_mac(scale * symbols, gains, noise, generator(4, "noise", trial))
        estimate = clients * scheme.decode(received, Csi(RAYLEIGH_MEAN, noise), plan)
        errors[trial] = float((estimate - vectors.sum(0)).square().sum())
    powers = vectors.square().sum(1)
    spread = RAYLEIGH_SPREAD if fading == "rayleigh" else 0.0
    expected = spread * float(powers.sum()) + float(powers.max()) * noise / RAYLEIGH_MEAN**2
    # Within 4 standard errors of the Monte Carlo mean; 1e-9 for the exact case of no spread and no noise.
    assert abs(errors.mean() - expected) <= 4 * errors.std() / math.sqrt(trials) + 1e-9


def test_worst_client_alone_reaches_the_power_limit():
    symbols = torch.view_as_complex(torch.randn((5, 400, 2), generator=source(8))) * torch.arange(1, 6)[:, None]
    sent = power_scale(energy(symbols).tolist(), 400) * symbols
    powers = (energy(sent) / 400).tolist()
    assert powers[4] == pytest.approx(1.0, rel=1e-6)
    assert max(powers[:4]) < 0.8 and max(powers) <= 1 + 1e-6
