"""How long and how often calibration measures, and what it lets pass; knows no measurement."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=3600)]


class CalibrationOptions(BaseModel):
    """The table ``[calibration]`` of a lab file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    integrity_s: Seconds = Field(default=60.0, description="How long streams are watched for lost samples.")
    restarts: int = Field(default=20, ge=2, le=200, description="Restarts of a stream that show its TX-RX offset.")
    warm_up_s: Seconds = Field(default=600.0, description="How long the frequencies of all radios are watched.")
    oscillator_s: float = Field(
        default=8.0, ge=3, le=600, description="Beacons without a pause, in seconds: the stability of the crystals."
    )
    soundings: int = Field(default=16, ge=4, le=256, description="Soundings of every link.")
    timing_bursts: int = Field(default=50, ge=20, le=1000, description="Bursts that show how a node keeps its time.")
    phase_bursts: int = Field(default=12, ge=4, le=256, description="Bursts per horizon that show the phase error.")
    sums: int = Field(default=6, ge=2, le=256, description="Bursts with known values, for every number of nodes.")
