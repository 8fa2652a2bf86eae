"""Region profiles, read from versioned data files, and the set-up of a lab under one; knows no radio and no burst.

Everything is denied that a profile does not allow, and no profile allows everything. The numbers in the data files are
engineering defaults, not legal advice: whoever operates a transmitter answers for it.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from radio.errors import ConfigError

__all__ = ["FORMAT", "MIN_CONDUCTED_DB", "PROFILES", "REGIONS", "Band", "Region", "SafetyProfile", "read_region"]

FORMAT = 1  # of the data files
MIN_CONDUCTED_DB = 40.0  # between two radios: keeps +20 dBm from every receiver that is damaged at -15 dBm
SIMULATED_DB = 60.0  # what stands for the attenuation where there is no cable but a simulated air


class Band(BaseModel):
    """One allowed band, its cap on radiated power and its share of time."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low_hz: Annotated[float, Field(gt=0, description="Lower edge.")]
    high_hz: Annotated[float, Field(gt=0, description="Upper edge.")]
    eirp_dbm: float = Field(description="Largest radiated power (EIRP).")
    duty_cycle: Annotated[float, Field(gt=0, le=1, description="Largest share of time on air.")] = 1.0

    @model_validator(mode="after")
    def _order(self) -> Band:
        if self.low_hz >= self.high_hz:
            raise ValueError(f"low_hz {self.low_hz:g} must be below high_hz {self.high_hz:g}")
        return self

    def within(self, other: Band) -> bool:
        """Tell if this band allows nothing that ``other`` does not."""
        inside = other.low_hz <= self.low_hz and self.high_hz <= other.high_hz
        return inside and self.eirp_dbm <= other.eirp_dbm and self.duty_cycle <= other.duty_cycle


class Region(BaseModel):
    """The rules of one place: where, how strong and how long anybody may transmit there."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field(description="Name of the profile, for the audit.")
    version: int = Field(default=1, ge=1, description="Version of the profile; another one than is known is refused.")
    source: str = Field(default="", description="Where the numbers come from.")
    bands: tuple[Band, ...] = Field(default=(), description="Allowed bands; what is not listed is denied.")
    guard_hz: float = Field(default=0.0, ge=0, description="Distance to keep from the edges of a band.")
    outside_db: float = Field(
        default=-20.0,
        le=0,
        description="Largest power of a burst outside its declared bandwidth, in dB of the whole burst. -20 dB: the "
        "declared bandwidth holds 99 % of the power, which is what ITU Radio Regulation 1.153 calls occupied.",
    )
    max_burst_s: float = Field(default=1.0, gt=0, description="Longest burst.")
    duty_window_s: float = Field(default=3600.0, gt=0, description="Time over which the duty cycle is counted.")
    conducted: bool = Field(default=False, description="Radios are joined by cables through at least attenuation_db.")


class SafetyProfile(Region):
    """The rules of a region, the authority to differ from them, and the set-up that turns levels into radiated power.

    A profile under the name of a known region may be stricter than the region, never wider. Bands of one's own need
    ``licence``, which is written into every line of the audit.

    ``conducted`` declares that the radios are joined by cables through at least ``attenuation_db``; what then could
    leak out is taken as the power after that attenuation, and the duty cycle, a rule for antennas, is not applied.
    """

    licence: str = Field(
        default="",
        description="Call sign or authorisation that allows bands of your own; in every audit line.",
    )
    operator: str = Field(default="", description="Who answers for the transmitters; in every audit line.")
    attenuation_db: float | None = Field(
        default=None, ge=0, description="Least attenuation between two radios in conducted mode; 40 or more."
    )
    antenna_gain_dbi: float = Field(default=0.0, description="Gain of the antenna.")
    cable_loss_db: float = Field(default=0.0, ge=0, description="Loss between radio and antenna.")
    tx_full_scale_dbm: float | None = Field(
        default=None, description="Power of a full-scale tone at no attenuation; absent: what the driver declares."
    )

    @model_validator(mode="after")
    def _declared(self) -> SafetyProfile:
        if self.conducted and self.attenuation_db is not None and self.attenuation_db < MIN_CONDUCTED_DB:
            raise ValueError(
                f"conducted mode needs attenuation_db of at least {MIN_CONDUCTED_DB:g}, not {self.attenuation_db:g}: "
                "a receiver may be damaged"
            )
        region = REGIONS.get(self.name)
        if self.bands and not self.licence and region is None:
            raise ValueError(
                f"safety profile {self.name!r} has bands of its own; name in licence what allows them, or take one of "
                f"{', '.join(REGIONS)}"
            )
        if region is not None and not self.licence:
            self._no_wider(region)
        return self

    def _no_wider(self, region: Region) -> None:
        """Hold the profile to the region whose name it has."""
        if self.version != region.version:
            raise ValueError(
                f"safety profile {self.name!r} is version {region.version} in this release, not {self.version}; read "
                "what has changed, then write the version that you have read"
            )
        outside = (b for b in self.bands if not any(b.within(allowed) for allowed in region.bands))
        wider = [f"band {b.low_hz / 1e6:g}-{b.high_hz / 1e6:g} MHz at {b.eirp_dbm:g} dBm" for b in outside]
        limits = ("max_burst_s", "duty_window_s", "outside_db")
        wider += [f"{key} = {getattr(self, key):g}" for key in limits if getattr(self, key) > getattr(region, key)]
        wider += [f"guard_hz = {self.guard_hz:g}"] if self.guard_hz < region.guard_hz else []
        wider += ["conducted = false"] if region.conducted and not self.conducted else []
        if wider:
            raise ValueError(
                f"{', '.join(wider)} is wider than the safety profile {self.name!r}; stay inside it, or name in "
                "licence what allows more"
            )

    @property
    def digest(self) -> str:
        """Give a short hash of the whole profile, for logs and for a server to compare."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def band_of(self, centre_hz: float, bandwidth_hz: float) -> Band | None:
        """Find the allowed band that holds centre +/- half the occupied bandwidth +/- guard."""
        reach = 0.5 * bandwidth_hz + self.guard_hz
        for band in self.bands:
            if band.low_hz <= centre_hz - reach and centre_hz + reach <= band.high_hz:
                return band
        return None

    def radiated_dbm(self, full_scale_dbm: float, level_dbfs: float, tx_attenuation_db: float) -> float:
        """Model the radiated power (EIRP) of a burst.

        Args:
            full_scale_dbm: power of the radio's full-scale tone at no attenuation; ``tx_full_scale_dbm`` goes before.
            level_dbfs: rms of the burst against a full-scale tone.
            tx_attenuation_db: transmit attenuation of the radio.
        """
        full = full_scale_dbm if self.tx_full_scale_dbm is None else self.tx_full_scale_dbm
        power_dbm = full + level_dbfs - tx_attenuation_db - self.cable_loss_db + self.antenna_gain_dbi
        if self.conducted:
            power_dbm -= SIMULATED_DB if self.attenuation_db is None else self.attenuation_db
        return power_dbm


def read_region(path: Path) -> dict[str, Any]:
    """Read a profile file: the keys of a ``SafetyProfile``, which says if they fit.

    Raises:
        ConfigError: the file cannot be read, or is of another format.
    """
    try:
        return _parse(str(path), path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", "name a profile file in [safety] file") from error


def _parse(where: str, text: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where}: not valid TOML: {error}", "correct the line; text values need quotes") from error
    written = table.pop("format", None)
    if written != FORMAT:
        raise ConfigError(
            f"{where}: profile {table.get('name')!r} is of format {written}, this release reads {FORMAT}",
            f"write format = {FORMAT}, or install the release that the file was made for",
        )
    return table


def _regions() -> Iterator[Region]:
    for file in sorted((files("radio") / "regions").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".toml"):
            yield Region.model_validate(_parse(file.name, file.read_text(encoding="utf-8")))


REGIONS: dict[str, Region] = {region.name: region for region in _regions()}
PROFILES: dict[str, SafetyProfile] = {
    name: SafetyProfile.model_validate(region.model_dump()) for name, region in REGIONS.items()
}
