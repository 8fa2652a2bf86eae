"""Vectors: data, models, meta-gradients, and the maps between updates and channel symbols; no sockets, no clocks."""

from __future__ import annotations

from fl_core.options import DataOptions, LearnOptions, ModelOptions, SchemeOptions
from fl_core.seeds import derive, generator, numpy_generator

__all__ = [
    "DataOptions",
    "LearnOptions",
    "ModelOptions",
    "SchemeOptions",
    "derive",
    "generator",
    "numpy_generator",
]
