"""The errors that this project raises, as one tree; knows nothing of processes or screens.

Every error says what happened with numbers, where, and one thing to do. ``slug`` names its page under ``docs/errors``;
``exit_code`` is what the command line returns. The tree lives here because every room may import ``radio`` except
``fl_core``, which raises ``ValueError`` for a caller's mistake.
"""

from __future__ import annotations


class TestbedError(Exception):
    """Base of every error a user may see.

    Args:
        message: what happened, with numbers, and where.
        remedy: the one thing to do.
    """

    __test__ = False  # keeps pytest from collecting the name
    slug = "testbed"
    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} -> {self.remedy}" if self.remedy else self.message


class ConfigError(TestbedError):
    """A configuration file, key or value is wrong."""

    slug = "config"
    exit_code = 2


class RadioError(TestbedError):
    """A radio could not do what was asked."""

    slug = "radio"
    exit_code = 3


class RadioNotFound(RadioError):
    """No radio answers at this URI; the message lists what was found."""

    slug = "radio-not-found"


class RadioRefused(RadioError):
    """The radio refused a setting: the message names wanted, limit and device."""

    slug = "radio-refused"


class SamplesLost(RadioError):
    """Samples are missing from a stream: how many, and at which index."""

    slug = "samples-lost"


class TooLate(RadioError):
    """A transmission was ordered for an instant that can no longer be met."""

    slug = "too-late"

    def __init__(self, message: str, remedy: str = "", late_samples: int = 0) -> None:
        super().__init__(message, remedy)
        self.late_samples = late_samples


class UnsafeTransmit(RadioError):
    """A transmission would break the safety profile. Never retried, always logged."""

    slug = "unsafe-transmit"
    exit_code = 5


class CalibrationError(TestbedError):
    """A measurement of a radio or a link failed or is no longer valid."""

    slug = "calibration"
    exit_code = 4


class Failed(CalibrationError):
    """A measured value is beyond its limit: the message names both, the remedy the step to run again."""

    slug = "calibration-failed"


class Stale(CalibrationError):
    """A record is older than it holds: the message names age and limit, the remedy the step to run again."""

    slug = "calibration-stale"


class Foreign(CalibrationError):
    """A record was taken with another radio or other settings: the message names the field and both values."""

    slug = "calibration-foreign"


class Damaged(CalibrationError):
    """A record is not as it was written, or of another version of its format: the message names the file."""

    slug = "calibration-damaged"


class LinkError(TestbedError):
    """Two processes, or two radios, cannot talk."""

    slug = "link"
    exit_code = 6


class NodeLost(LinkError):
    """A node stopped answering."""

    slug = "node-lost"


class ProtocolMismatch(LinkError):
    """A message of another protocol version arrived: the message carries both numbers."""

    slug = "protocol-mismatch"


class NotTrusted(LinkError):
    """A peer has no key that this side knows."""

    slug = "not-trusted"


class RunError(TestbedError):
    """A run folder, checkpoint or disk is unusable."""

    slug = "run"
    exit_code = 7
