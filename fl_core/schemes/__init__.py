"""The schemes: how an update becomes channel symbols and a received sum becomes the mean update, and their table.

Knows encoders, mappings, estimators and the symbol-level channel; knows nothing of radios, data sets or who the clients
are. A new scheme is one class with the members of :class:`Scheme`, one line in :data:`SCHEMES`, and its name in
``options.SCHEME_NAMES``.
"""

from __future__ import annotations

from collections.abc import Callable

from fl_core.options import SchemeOptions
from fl_core.schemes.air_meta_pfl import AirMetaPfl
from fl_core.schemes.analog import Cotaf, Gbma, TruncatedInversion
from fl_core.schemes.antennas import BlindAntennas
from fl_core.schemes.base import Base, Csi, Plan, Scheme
from fl_core.schemes.compressed import ADsgd
from fl_core.schemes.digital import Digital
from fl_core.schemes.energy import FskMv, NcAirFl, Reed
from fl_core.schemes.ideal import FedAvg, Ideal, PerFedAvg
from fl_core.schemes.memory import AirFlMem
from fl_core.schemes.misaligned import Misaligned
from fl_core.schemes.signs import Obda
from fl_core.schemes.simulated import Exchange, exchange

__all__ = [
    "SCHEMES",
    "ADsgd",
    "AirFlMem",
    "AirMetaPfl",
    "Base",
    "BlindAntennas",
    "Cotaf",
    "Csi",
    "Digital",
    "Exchange",
    "FedAvg",
    "FskMv",
    "Gbma",
    "Ideal",
    "Misaligned",
    "NcAirFl",
    "Obda",
    "PerFedAvg",
    "Plan",
    "Reed",
    "Scheme",
    "SchemeOptions",
    "TruncatedInversion",
    "exchange",
    "make_scheme",
]

SCHEMES: dict[str, Callable[[SchemeOptions, int], Scheme]] = {
    "air-meta-pfl": AirMetaPfl.make,
    "ideal": Ideal.make,
    "fedavg": FedAvg.make,
    "per-fedavg": PerFedAvg.make,
    "gbma": Gbma.make,
    "truncated-inversion": TruncatedInversion.make,
    "airfl-mem": AirFlMem.make,
    "cotaf": Cotaf.make,
    "digital": Digital.make,
    "a-dsgd": ADsgd.make,
    "obda": Obda.make,
    "fsk-mv": FskMv.make,
    "ncairfl": NcAirFl.make,
    "reed": Reed.make,
    "misaligned": Misaligned.make,
    "blind-antennas": BlindAntennas.make,
}
"""Name -> function (options, dimension d) -> scheme."""


def make_scheme(options: SchemeOptions, dimension: int) -> Scheme:
    """Build the scheme that ``options.name`` names, for updates of ``dimension`` entries.

    Raises:
        ValueError: an unknown name, or options that do not fit the dimension.
    """
    if options.name not in SCHEMES:
        raise ValueError(f"scheme '{options.name}' is unknown; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[options.name](options, dimension)
