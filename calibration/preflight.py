"""Whether a radio may transmit as the experiment will ask it to: band, power, declared set-up; sends nothing."""

from __future__ import annotations

from calibration.options import CalibrationOptions
from calibration.result import Finding, Result, Value
from radio.base import Radio, RadioConfig
from radio.safety import SafetyProfile

#: Level of a burst against a full-scale tone.
BURST_DBFS = -9.0


def preflight(radio: Radio, config: RadioConfig, options: CalibrationOptions, seed: int, name: str) -> Result:
    """Hold the settings of a run against the safety profile, before anything is tuned."""
    safety: SafetyProfile | None = getattr(radio, "safety", None)
    if safety is None:
        finding = Finding("band", f"{name}: its radio stands behind no safety profile", "open it through radio.open")
        return Result("preflight", name, finding=finding)
    band = safety.band_of(config.tx_hz, config.bandwidth_hz)
    radiated_dbm = safety.radiated_dbm(radio.capabilities.tx_full_scale_dbm, BURST_DBFS, config.tx_attenuation_db)
    values: dict[str, Value] = {
        "profile": f"{safety.name} v{safety.version}",
        "conducted": safety.conducted,
        "centre_hz": config.tx_hz,
        "bandwidth_hz": config.bandwidth_hz,
        "radiated_dbm": radiated_dbm,
    }
    found = None
    if band is None:
        allowed = ", ".join(f"{b.low_hz / 1e6:g}-{b.high_hz / 1e6:g} MHz" for b in safety.bands) or "nothing"
        text = f"{name}: {config.tx_hz / 1e6:g} MHz is outside profile {safety.name}, which allows {allowed}"
        found = Finding("band", text, "use a waveform inside the band, or the profile of your licence")
    else:
        values |= {"band_low_hz": band.low_hz, "band_high_hz": band.high_hz, "limit_dbm": band.eirp_dbm}
        if radiated_dbm > band.eirp_dbm:
            text = f"{name}: a burst radiates {radiated_dbm:.1f} dBm, {safety.name} allows {band.eirp_dbm:g} dBm"
            found = Finding("power", text, f"raise tx_attenuation_db by {radiated_dbm - band.eirp_dbm:.1f} dB")
        elif safety.conducted and safety.attenuation_db is None and radio.witness is None:
            text = f"{name}: radios on cables, and no attenuation is declared"
            found = Finding("power", text, "write [safety] attenuation_db = the least attenuation between two radios")
    return Result("preflight", name, values, finding=found)
