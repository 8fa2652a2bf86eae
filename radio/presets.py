"""Options of the simulated air and the named presets; knows every effect by name and default, and none of its physics.

A level of ``-inf`` dB switches that leak, image or offset off, ``inf`` dBm switches compression off. Defaults follow
the AD936x data sheet, the UHD manual for the B2xx family and engineering judgement; a measured radio overrides them
under ``radios``.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, model_validator

from radio.base import Tier

OFF = float("-inf")
Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]


class RadioEffects(BaseModel):
    """What is wrong with one radio. The bare defaults describe a radio with nothing wrong but thermal noise."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    tier: Tier = Tier.U1
    declared_tier: Tier | None = Field(None, description="fault: what the driver claims, while tier is what it does")
    serial: str = Field("", description="hardware serial; empty: made from the radio's name")
    max_rate_hz: Positive = 20e6
    block_samples: int = Field(256, ge=4, le=1 << 20)
    kernel_buffers: int = Field(0, ge=0, le=64, description="blocks at the head of a stream that hold old samples")
    turnaround_s: NotNegative = 0.0
    tx_latency_max_s: NotNegative = Field(0.0, description="hidden TX start latency of a P0 radio, uniform from 0")
    start_spread_s: NotNegative = Field(0.0, description="free-running radios start at a uniform instant in this span")

    ppm: float | None = Field(None, ge=-100, le=100, description="clock error; absent: drawn from +/- ppm_max")
    ppm_max: float = Field(0.0, ge=0, le=100)
    warm_up_ppm: float = 0.0
    warm_up_s: Positive = 150.0
    drift_ppb_per_s: float = 0.0
    adev: NotNegative = Field(0.0, description="Allan deviation of the flicker floor")
    phase_noise_deg: NotNegative = Field(0.0, le=5.0, description="integrated PLL phase noise of each LO, rms")
    lo_start_phase: bool = Field(False, description="a new LO phase at every tune and power-up")
    lo_step_hz: NotNegative = 0.0
    tune_min_hz: Positive = 1e6
    tune_max_hz: Positive = 12e9

    dac_bits: int = Field(0, ge=0, le=16, description="0: float converter")
    adc_bits: int = Field(0, ge=0, le=16, description="0: float converter")
    dac_wraps: bool = Field(False, description="fault: values past full scale wrap instead of saturating")
    tx_fs_dbm: float = Field(0.0, description="power of a full-scale tone at no attenuation")
    tx_attenuation_max_db: NotNegative = 89.75
    tx_attenuation_step_db: Positive = 0.25
    tx_step_phase_deg: NotNegative = Field(0.0, description="phase jump per attenuator step, uniform +/-")
    tx_saturation_dbm: float = Field(float("inf"), description="Rapp model, smoothness 2")
    tx_image_dbc: float = OFF
    tx_leak_dbc: float = Field(OFF, description="LO leak against full scale; stays on until muted")
    rx_fs_offset_dbm: float = Field(0.0, description="full scale at the antenna is this minus rx_gain_db")
    rx_gain_min_db: float = -10.0
    rx_gain_max_db: float = 120.0
    rx_gain_step_db: Positive = 1.0
    rx_step_phase_deg: NotNegative = Field(0.0, description="phase jump per gain step, uniform +/-")
    rx_image_dbc: float = OFF
    rx_dc_dbfs: float = OFF
    noise_figure_db: NotNegative = 5.0
    self_leak_db: float = Field(OFF, description="own TX into own RX")
    self_leak_delay_max_samples: int = Field(0, ge=0, le=16)

    link_loss_db: NotNegative = Field(0.0, description="more loss between this node and the server than snr_db says")
    contact_loss_db: NotNegative = Field(0.0, description="fault: loss of a loose connector while it has no contact")
    contact_hz: float = Field(2.0, gt=0, le=100, description="how often a loose connector may change its state")
    drop_probability: Probability = Field(0.0, description="per block received")
    duplicate_probability: Probability = Field(0.0, description="per block received")
    overflows_per_min: NotNegative = 0.0
    underflows_per_min: NotNegative = 0.0
    unplug_at: int | None = Field(None, ge=0, description="RX index of the first session at which the cable is pulled")
    quirk_sticky_mute: bool = Field(False, description="a muted LO stays off until it is switched on explicitly")
    quirk_underflow_bit: bool = Field(False, description="every transmission reports an underflow")
    quirk_transient_samples: int = Field(0, ge=0, description="decaying DC at the head of a stream")

    @property
    def shared_reference(self) -> bool:
        """Tell if the radio runs on the common reference."""
        return self.tier in (Tier.P3, Tier.U1)

    @property
    def one_timeline(self) -> bool:
        """Tell if TX indices count on the RX timeline."""
        return self.tier is not Tier.P0

    @property
    def reports_losses(self) -> bool:
        """Tell if the driver flags lost samples and keeps its index through them."""
        return self.tier in (Tier.U0, Tier.U1)

    def as_declared(self) -> RadioEffects:
        """Give the effects of a radio that is what its driver claims."""
        return self.model_copy(update={"tier": self.declared_tier or self.tier})


class LinkFacts(BaseModel):
    """What was measured of the link between one node and the server; it replaces what would be drawn."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    snr_db: float | None = Field(default=None, ge=-100, le=150, description="as the snr_db of the air, for this node")
    gain_db: float | None = Field(default=None, ge=-300, le=0, description="from antenna to antenna, instead of snr_db")
    delay_s: float | None = Field(default=None, ge=0, le=1e-3, description="of the first path")
    taps: tuple[tuple[Annotated[float, Field(ge=0, le=1e-5)], float, float], ...] = Field(
        default=(),
        max_length=16,
        description="paths (delay behind the first in s, real part, imaginary part), in proportion",
    )
    scattered: float = Field(
        default=0.0, ge=0, lt=1, description="share of the power that fades; spread over taps as they are"
    )
    doppler_hz: float = Field(default=0.0, ge=0, le=100, description="largest Doppler shift of what fades")

    @model_validator(mode="after")
    def _check(self) -> LinkFacts:
        if self.snr_db is not None and self.gain_db is not None:
            raise ValueError(f"snr_db {self.snr_db} and gain_db {self.gain_db} say the same thing: give one of them")
        if self.taps and not any(re or im for _, re, im in self.taps):
            raise ValueError("every one of taps is zero: leave taps out, or raise the loss")
        if (self.scattered or self.doppler_hz) and not self.taps:
            raise ValueError("scattered and doppler_hz speak of taps: give these as well")
        return self


_PLUTO: dict[str, Any] = {
    "tier": "P0", "max_rate_hz": 2e6, "block_samples": 4096, "kernel_buffers": 4, "turnaround_s": 0.03,
    "tx_latency_max_s": 0.03, "start_spread_s": 0.05, "ppm_max": 10.0, "drift_ppb_per_s": 2.0, "adev": 3e-10,
    "phase_noise_deg": 0.3, "lo_start_phase": True, "lo_step_hz": 2.4, "tune_min_hz": 325e6, "tune_max_hz": 3.8e9,
    "dac_bits": 12, "adc_bits": 12, "tx_step_phase_deg": 10.0, "rx_step_phase_deg": 10.0, "tx_saturation_dbm": 7.0,
    "tx_image_dbc": -50.0, "tx_leak_dbc": -50.0, "rx_image_dbc": -50.0, "rx_dc_dbfs": -45.0, "rx_gain_min_db": -1.0,
    "rx_gain_max_db": 73.0, "self_leak_db": -55.0, "self_leak_delay_max_samples": 3, "noise_figure_db": 5.0,
}  # fmt: skip
_USRP: dict[str, Any] = {
    "tier": "U0", "max_rate_hz": 10e6, "block_samples": 2040, "turnaround_s": 0.005, "start_spread_s": 0.05,
    "ppm_max": 2.0, "drift_ppb_per_s": 0.2, "adev": 1e-10, "phase_noise_deg": 0.3, "lo_start_phase": True,
    "tune_min_hz": 70e6, "tune_max_hz": 6e9, "dac_bits": 12, "adc_bits": 12, "tx_step_phase_deg": 10.0,
    "rx_step_phase_deg": 10.0, "tx_saturation_dbm": 15.0, "tx_image_dbc": -50.0, "tx_leak_dbc": -50.0,
    "rx_image_dbc": -50.0, "rx_dc_dbfs": -40.0, "rx_gain_min_db": 0.0, "rx_gain_max_db": 76.0, "self_leak_db": -60.0,
    "self_leak_delay_max_samples": 3, "noise_figure_db": 6.0,
}  # fmt: skip
_ROOM: dict[str, Any] = {
    "link_phase": True, "paths_min": 1, "paths_max": 4, "delay_spread_min_s": 20e-9, "delay_spread_max_s": 100e-9,
    "rician_k_min_db": 3.0, "rician_k_max_db": 10.0, "doppler_max_hz": 0.1, "distance_max_m": 10.0,
}  # fmt: skip

PRESETS: dict[str, dict[str, Any]] = {
    "ideal": {},
    "pluto-stock": {**_PLUTO, **_ROOM},
    "pluto-shared-clock": {**_PLUTO, **_ROOM, "tier": "P3"},
    "usrp-free": {**_USRP, **_ROOM},
    "usrp-ref": {**_USRP, **_ROOM, "tier": "U1"},
}
PresetName = Literal["ideal", "pluto-stock", "pluto-shared-clock", "usrp-free", "usrp-ref"]


class EtherOptions(RadioEffects):
    """The whole simulated air: effects common to all radios, links between them, overrides by radio name.

    ``preset`` fills every field that is not given. ``snr_db`` is the SNR per resource element at the server of a burst
    that leaves a node at 9 dB back-off without attenuation and fills 3/8 of the band; the same path loss serves the
    downlink.
    """

    preset: PresetName = "ideal"
    seed: int = Field(0, ge=0)
    server: str = "server"
    snr_db: float = Field(20.0, ge=-100, le=150)
    spread_db: float = Field(0.0, ge=0, le=60, description="each node's SNR is lower by a uniform draw up to this")
    reference_rate_hz: float | None = Field(
        None, gt=0, description="rate that snr_db refers to; absent: the server's first"
    )
    link_phase: bool = Field(False, description="a random constant phase per link")
    node_links_db: float = Field(OFF, description="gain between any two nodes; -inf: they do not hear each other")

    paths_min: int = Field(1, ge=1, le=8)
    paths_max: int = Field(1, ge=1, le=8)
    delay_spread_min_s: NotNegative = 0.0
    delay_spread_max_s: NotNegative = Field(0.0, le=2e-6)
    rician_k_min_db: float = Field(float("inf"), description="inf: no scattered part at all")
    rician_k_max_db: float = float("inf")
    doppler_max_hz: float = Field(0.0, ge=0, le=100)
    distance_max_m: float = Field(0.0, ge=0, le=10_000)

    interferer_dbm: float = Field(OFF, description="power of a chirped ISM burst at every antenna")
    interferer_hz: Positive = 915.2e6
    interferer_duty: Probability = 0.1
    interferer_burst_s: Positive = 0.02
    interferer_bandwidth_hz: NotNegative = 125e3

    links: dict[str, LinkFacts] = Field(default_factory=dict, description="measured links to the server, by node")
    history_s: float = Field(30.0, gt=0, description="how far a radio may lag behind before its samples are lost")
    radios: dict[str, dict[str, Any]] = Field(default_factory=dict, description="overrides of radio effects by name")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {**PRESETS.get(str(given.get("preset", "ideal")), {}), **given}

    @model_validator(mode="after")
    def _check(self) -> EtherOptions:
        if self.paths_min > self.paths_max or self.delay_spread_min_s > self.delay_spread_max_s:
            raise ValueError("paths_min and delay_spread_min_s must not exceed their maxima")
        if self.rician_k_min_db > self.rician_k_max_db:
            raise ValueError(f"rician_k_min_db {self.rician_k_min_db} exceeds rician_k_max_db {self.rician_k_max_db}")
        if self.server in self.links:
            raise ValueError(f"links.{self.server}: the server has no link to itself; name a node")
        for name in self.radios:
            self.of(name)
        return self

    def of(self, name: str) -> RadioEffects:
        """Give the effects of one radio: the common ones with its overrides, validated alike."""
        common = {key: getattr(self, key) for key in RadioEffects.model_fields}
        return RadioEffects.model_validate({**common, **self.radios.get(name, {})})


def preset(name: str, **changes: Any) -> EtherOptions:
    """Give a named preset with changes, for example ``preset("pluto-stock", snr_db=10.0)``.

    Raises:
        ValueError: the name or a change is not known (pydantic's ``ValidationError``).
    """
    return EtherOptions(preset=cast("PresetName", name), **changes)
