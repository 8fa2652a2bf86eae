"""Truth about radios and links: what was measured, when, and what follows from it; knows no learning and no process."""

from calibration.predict import COHERENT_LIMIT_RAD, NodeBudget, predict_nmse_db, refuse_coherent, signal_power
from calibration.record import CalibrationFolder, RadioKey, Record

__all__ = [
    "COHERENT_LIMIT_RAD",
    "CalibrationFolder",
    "NodeBudget",
    "RadioKey",
    "Record",
    "predict_nmse_db",
    "refuse_coherent",
    "signal_power",
]
