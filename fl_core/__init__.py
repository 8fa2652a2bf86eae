"""Vectors: data, models, meta-gradients, and the maps between updates and channel symbols; no sockets, no clocks.

Public names are loaded when they are first asked for: torch takes seconds, and whoever only reads the options of an
experiment (the command line, the launcher, the simulated air) does without it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl_core.data import (
        Batch,
        ClientData,
        Dataset,
        Task,
        evaluation_tasks,
        full_tasks,
        load,
        moved,
        new_clients,
        sample_task,
        sample_tasks,
        split_clients,
        stack,
    )
    from fl_core.decode import ESTIMATORS, nmse_db, recoverable
    from fl_core.encode import SPARSIFIERS, compress, energy, power_scale, rand_k, top_k
    from fl_core.estimate import estimate_constants
    from fl_core.mac import (
        Channel,
        draw_gains,
        fading_mac,
        ideal_mac,
        inversion_power,
        mean_gain,
        participation,
    )
    from fl_core.maml import (
        Evaluation,
        evaluate,
        fine_tune,
        gradient_norm_squared,
        local_update,
        local_updates,
        loss,
        meta_gradient,
        rates,
    )
    from fl_core.mappings import MAPPINGS, Mapping, View, make_mapping
    from fl_core.models import Model, build
    from fl_core.oamp import Recovery
    from fl_core.options import DataOptions, LearnOptions, ModelOptions, SchemeOptions
    from fl_core.rounds import (
        RoundRecord,
        Simulation,
        State,
        Trial,
        choose_clients,
        client_tasks,
        client_update,
        client_updates,
        initial_parameters,
        outer_step,
        simulate,
        simulate_trials,
    )
    from fl_core.schemes import SCHEMES, AirMetaPfl, Csi, Ideal, Plan, Scheme, make_scheme
    from fl_core.seeds import derive, generator, numpy_generator
    from fl_core.theory import (
        Constants,
        Convergence,
        System,
        aggregate_snr_db,
        channel_error,
        convergence_bound,
        generalisation_bound,
        memory_bound,
        truncation_threshold,
    )

__all__ = [
    "ESTIMATORS",
    "MAPPINGS",
    "SCHEMES",
    "SPARSIFIERS",
    "AirMetaPfl",
    "Batch",
    "Channel",
    "ClientData",
    "Constants",
    "Convergence",
    "Csi",
    "DataOptions",
    "Dataset",
    "Evaluation",
    "Ideal",
    "LearnOptions",
    "Mapping",
    "Model",
    "ModelOptions",
    "Plan",
    "Recovery",
    "RoundRecord",
    "Scheme",
    "SchemeOptions",
    "Simulation",
    "State",
    "System",
    "Task",
    "Trial",
    "View",
    "aggregate_snr_db",
    "build",
    "channel_error",
    "choose_clients",
    "client_tasks",
    "client_update",
    "client_updates",
    "compress",
    "convergence_bound",
    "derive",
    "draw_gains",
    "energy",
    "estimate_constants",
    "evaluate",
    "evaluation_tasks",
    "fading_mac",
    "fine_tune",
    "full_tasks",
    "generalisation_bound",
    "generator",
    "gradient_norm_squared",
    "ideal_mac",
    "initial_parameters",
    "inversion_power",
    "load",
    "local_update",
    "local_updates",
    "loss",
    "make_mapping",
    "make_scheme",
    "mean_gain",
    "memory_bound",
    "meta_gradient",
    "moved",
    "new_clients",
    "nmse_db",
    "numpy_generator",
    "outer_step",
    "participation",
    "power_scale",
    "rand_k",
    "rates",
    "recoverable",
    "sample_task",
    "sample_tasks",
    "simulate",
    "simulate_trials",
    "split_clients",
    "stack",
    "top_k",
    "truncation_threshold",
]

_HOMES: dict[str, tuple[str, ...]] = {
    "data": (
        "Batch",
        "ClientData",
        "Dataset",
        "Task",
        "evaluation_tasks",
        "full_tasks",
        "load",
        "moved",
        "new_clients",
        "sample_task",
        "sample_tasks",
        "split_clients",
        "stack",
    ),
    "decode": ("ESTIMATORS", "nmse_db", "recoverable"),
    "encode": ("SPARSIFIERS", "compress", "energy", "power_scale", "rand_k", "top_k"),
    "estimate": ("estimate_constants",),
    "mac": ("Channel", "draw_gains", "fading_mac", "ideal_mac", "inversion_power", "mean_gain", "participation"),
    "maml": (
        "Evaluation",
        "evaluate",
        "fine_tune",
        "gradient_norm_squared",
        "local_update",
        "local_updates",
        "loss",
        "meta_gradient",
        "rates",
    ),
    "mappings": ("MAPPINGS", "Mapping", "View", "make_mapping"),
    "models": ("Model", "build"),
    "oamp": ("Recovery",),
    "options": ("DataOptions", "LearnOptions", "ModelOptions", "SchemeOptions"),
    "rounds": (
        "RoundRecord",
        "Simulation",
        "State",
        "Trial",
        "choose_clients",
        "client_tasks",
        "client_update",
        "client_updates",
        "initial_parameters",
        "outer_step",
        "simulate",
        "simulate_trials",
    ),
    "schemes": ("SCHEMES", "AirMetaPfl", "Csi", "Ideal", "Plan", "Scheme", "make_scheme"),
    "seeds": ("derive", "generator", "numpy_generator"),
    "theory": (
        "Constants",
        "Convergence",
        "System",
        "aggregate_snr_db",
        "channel_error",
        "convergence_bound",
        "generalisation_bound",
        "memory_bound",
        "truncation_threshold",
    ),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
