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
from fl_core.schemes.base import Base, Csi, Plan, Scheme
from fl_core.schemes.digital import Digital
from fl_core.schemes.simulated import Exchange, exchange
from fl_core.schemes.ideal import FedAvg, Ideal, PerFedAvg

__all__ = [
    "SCHEMES",
    "AirMetaPfl",
    "Base",
    "Cotaf",
    "Csi",
    "Digital",
    "Exchange",
    "FedAvg",
    "Gbma",
    "Ideal",
    "PerFedAvg",
    "Plan",
    "Scheme",
    "SchemeOptions",
    "TruncatedInversion",
    "exchange",
    "make_scheme",
]

_CLASSES: tuple[type[Base], ...] = (
    AirMetaPfl,
    Ideal,
    FedAvg,
    PerFedAvg,
    Gbma,
    TruncatedInversion,
    Cotaf,
    Digital,
)

SCHEMES: dict[str, Callable[[SchemeOptions, int], Scheme]] = {each.name: each.make for each in _CLASSES}
"""Name -> function (options, dimension d) -> scheme."""


def make_scheme(options: SchemeOptions, dimension: int) -> Scheme:
    """Build the scheme that ``options.name`` names, for updates of ``dimension`` entries.

    Raises:
        ValueError: an unknown name, or options that do not fit the dimension.
    """
    if options.name not in SCHEMES:
        raise ValueError(f"scheme '{options.name}' is unknown; choose one of {', '.join(SCHEMES)}")
    return SCHEMES[options.name](options, dimension)
