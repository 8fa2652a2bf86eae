"""Knows every setting of the learning side, its bounds and its meaning; knows nothing of files, rounds or radios."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

#: Names of the table ``fl_core.schemes.SCHEMES``, for those who check an option without loading torch.
SCHEME_NAMES = (
    "air-meta-pfl",
    "ideal",
    "fedavg",
    "per-fedavg",
    "gbma",
    "truncated-inversion",
    "airfl-mem",
    "cotaf",
    "digital",
    "a-dsgd",
    "obda",
    "fsk-mv",
    "ncairfl",
    "reed",
    "misaligned",
    "blind-antennas",
)

Width = Annotated[int, Field(ge=1, le=65_536)]


class Options(BaseModel):
    """Base of all option groups: frozen, unknown keys refused, no infinities."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True)


class DataOptions(Options):
    """What the clients learn from, and how few-shot tasks are drawn from it."""

    name: Literal["digits", "glyphs", "omniglot", "folders"] = Field(
        default="digits",
        description="Data set. digits: scikit-learn's 8x8 handwriting. glyphs: 28x28 characters rendered from the "
        "fonts that matplotlib ships. omniglot: 28x28, from `folder`. folders: CIFAR-FS, mini-ImageNet or any other "
        "images, one folder per class in `folder`.",
    )
    folder: Path | None = Field(
        default=None,
        description="Where the data lie. omniglot: a folder with images_background and images_evaluation, or with "
        "images_background.zip and images_evaluation.zip. folders: the classes, and their split if there is one.",
    )
    image_size: int = Field(
        default=32, ge=4, le=512, description="folders: side of the square that images are scaled to, in pixels."
    )
    colour: bool = Field(default=True, description="folders: three channels; off, grey.")
    rotations: bool = Field(
        default=True,
        description="Each class turned by 90, 180 and 270 degrees is a class of its own (digits: 40 classes; "
        "omniglot). Glyphs are never turned.",
    )
    ways: int = Field(default=5, ge=2, le=1000, description="Classes of one task (N of N-way).")
    shots: int = Field(default=5, ge=1, le=1000, description="Support examples per class (K of K-shot).")
    queries: int = Field(default=15, ge=1, le=1000, description="Query examples per class, disjoint from the support.")
    hessian_shots: int = Field(
        default=5,
        ge=1,
        le=1000,
        description="Examples per class of the Hessian batch B'', drawn independently of support and query.",
    )
    clients: int = Field(default=8, ge=1, le=10_000, description="Training clients n.")
    classes_per_client: int = Field(
        default=10,
        ge=2,
        le=10_000,
        description="Classes one client holds (m_c): the heterogeneity knob, fewer is more heterogeneous.",
    )
    examples: Literal["split", "shared"] = Field(
        default="split",
        description="When several training clients hold a class: split its examples between them, or share them.",
    )
    examples_per_class: int = Field(
        default=25,
        ge=2,
        le=10_000,
        description="Examples per class: rendered (glyphs), or the first so many of each (folders); others use all.",
    )
    new_fraction: float = Field(
        default=0.3,
        gt=0,
        lt=1,
        description="Fraction of the classes (digits, alphabets, folders) kept for new clients, unless the data set "
        "tells: images_evaluation of omniglot, the test split of folders.",
    )
    new_clients: int = Field(default=8, ge=1, le=10_000, description="Clients never seen in training.")
    new_tasks: int = Field(
        default=100, ge=1, le=100_000, description="Fixed evaluation tasks, shared out evenly over the new clients."
    )

    @model_validator(mode="after")
    def _ways_fit(self) -> DataOptions:
        if self.ways > self.classes_per_client:
            raise ValueError(
                f"ways={self.ways} exceeds classes_per_client={self.classes_per_client}; "
                f"a task needs {self.ways} classes of one client: raise classes_per_client or lower ways"
            )
        return self


class ModelOptions(Options):
    """The network that every client fine-tunes."""

    name: Literal["mlp", "cnn"] = Field(
        default="mlp",
        description="mlp: fully connected. cnn: four blocks of 3x3 convolution, batch norm, activation, stride 2.",
    )
    hidden: tuple[Width, ...] = Field(default=(64,), description="Widths of the mlp's hidden layers, input side first.")
    filters: int = Field(default=64, ge=1, le=4096, description="Filters per convolution of the cnn.")
    activation: Literal["relu", "tanh"] | None = Field(
        default=None,
        description="Non-linearity. Unset: tanh for mlp (smooth, as the convergence theory assumes, and ten points "
        "better on digits), relu for cnn.",
    )


class LearnOptions(Options):
    """How a client computes its update."""

    gradient: Literal["exact", "hessian-free", "first-order"] = Field(
        default="exact",
        description="Meta-gradient: exact Hessian-vector product, central difference of gradients, or no second order.",
    )
    alpha: float = Field(
        default=2.0, ge=0, le=100, description="Inner (fine-tuning) rate; 0 turns meta-learning into plain averaging."
    )
    eta: float = Field(default=0.1, gt=0, le=100, description="Outer (meta) rate of a local step.")
    local_steps: int = Field(default=5, ge=1, le=10_000, description="Local steps Q per round.")
    schedule: Literal["constant", "adaptive"] = Field(
        default="constant",
        description="constant, or adaptive: eta0/sqrt(1+t/t0) and alpha0/(1+t/t0)^(1/4) in round t.",
    )
    t0: float = Field(default=100.0, gt=0, description="Time constant of the adaptive schedule, in rounds.")


class SchemeOptions(Options):
    """How updates become channel symbols and back."""

    name: str = Field(default="air-meta-pfl", min_length=1, description="Scheme, one of the names in SCHEMES.")
    keep: float = Field(default=0.04, gt=0, le=1, description="Fraction of the entries kept by the sparsifier (k/d).")
    sparsifier: Literal["top-k", "rand-k"] = Field(
        default="top-k", description="Keep the largest magnitudes, or a random index set (without d/k rescaling)."
    )
    memory: bool = Field(default=True, description="Feed what the sparsifier dropped back into the next update.")
    memory_term: Literal["long", "short"] = Field(
        default="long",
        description="airfl-mem: long keeps all that fading ever cut off until it is sent; short keeps only what it cut "
        "off the last update.",
    )
    mapping: Literal["pair", "rdft", "dft-all", "pair-dft"] = Field(
        default="rdft",
        description="Real vector to complex symbols. pair: two entries per symbol, no compression. rdft: random rows "
        "of one half of the DFT. dft-all: random rows of the whole DFT. pair-dft: pairs, then a partial complex DFT.",
    )
    measure: float = Field(
        default=0.4,
        gt=0,
        le=1,
        description="Complex channel uses per parameter (M/d) of the compressing mappings; rdft needs less than 0.5, "
        "pair-dft at most 0.5, pair ignores it.",
    )
    estimator: Literal["linear", "iht", "oamp"] = Field(
        default="oamp",
        description="Estimator of the sum: back-projection, iterative hard thresholding, or orthogonal AMP with a "
        "prior learned by EM.",
    )
    iterations: int = Field(default=30, ge=1, le=10_000, description="Most iterations of iht and oamp.")
    precoder: Literal["phase", "inversion", "none"] | None = Field(
        default=None, description="What a node undoes of its channel before sending; unset: the scheme's own choice."
    )
    power: Literal["round", "average", "shared"] = Field(
        default="round",
        description="Power limit. round: no client exceeds it in any round. average: under inversion only over the "
        "fading, as published for truncated inversion. shared: the clients of a round spend exactly their number times "
        "the limit together, so that schemes compare at equal energy. A node keeps to round.",
    )
    threshold: float = Field(
        default=0.1,
        ge=0,
        le=10,
        description="truncated-inversion, airfl-mem, cotaf, obda, a-dsgd: a client is silent where |h|^2 lies below "
        "this; its mean is 1. A node is silent on single bins of its link.",
    )
    inversion: Literal["truncated", "mse"] = Field(
        default="truncated",
        description="truncated-inversion: silence below `threshold`, or the power control of least mean squared error: "
        "weak clients at full power, the others aligned. mse is simulation only.",
    )
    update_norm: float | None = Field(
        default=None,
        gt=0,
        description="cotaf: root-mean-square norm of an update divided by its outer rate eta, largest over clients, "
        "agreed before training. Unset: the largest norm of each round, at the price of one number per client.",
    )
    bits: int = Field(default=8, ge=2, le=24, description="digital: bits of a sent entry, its sign included.")
    step: float = Field(
        default=0.02,
        gt=0,
        le=100,
        description="obda, fsk-mv: how far a majority of signs moves a parameter, in units of learn.eta.",
    )
    silence: float = Field(
        default=0.0,
        ge=0,
        le=100,
        description="fsk-mv: a client does not vote on entries below this multiple of its root mean square.",
    )
    antennas: int = Field(default=32, ge=1, le=4096, description="blind-antennas: receive antennas of the server.")
    receiver: Literal["aligned-sample", "ml", "lmmse"] = Field(
        default="lmmse", description="misaligned: estimator of the sum of symbols that do not arrive together."
    )
    timing: float = Field(
        default=0.3, ge=0, lt=1, description="misaligned: arrivals are uniform in 0 to this, in symbol durations."
    )
    phase_rad: float = Field(
        default=0.5, ge=0, le=3.15, description="misaligned: residual phases are uniform in +/- this; the server knows."
    )
    fading: Literal["rayleigh", "unit", "none"] = Field(
        default="rayleigh",
        description="Simulated channel. rayleigh: one complex coefficient per client and round, unit mean power. unit: "
        "the same random phases with |h| forced to the Rayleigh mean. none: h = 1.",
    )
    coherence: int | None = Field(
        default=None,
        ge=1,
        description="Simulated channel: neighbouring symbols that share a coefficient; unset: all of a round.",
    )
    snr_db: float = Field(
        default=20.0,
        ge=-60,
        le=200,
        description="Simulated channel only: P E|h|^2 / sigma^2 of one client per complex use, in dB.",
    )
