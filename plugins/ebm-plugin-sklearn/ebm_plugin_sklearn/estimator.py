"""The estimator."""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, DensityMixin, TransformerMixin
from sklearn.utils import check_consistent_length, check_random_state, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor

import ebmcore
from ebmcore import host
from ebmcore.conditions import condition
from ebmcore.distributions import Normal
from ebmcore.energies import (
    SupportsBlockGibbs,
    SupportsEnumeration,
    SupportsHiddenUnits,
    SupportsInitialDistribution,
    frozen,
    supports,
)
from ebmcore.errors import EbmcoreError, UsageError
from ebmcore.training import check_compatible, check_values, copy_energy, fit, stream_generator, stream_seed

_ROWS = 4096  # evaluated at once
_STARTS = 1024  # rows from which chains can start
_COMPONENTS = ("energy", "loss", "sampler")
_LANGEVIN = {"name": "langevin", "step_size": 0.01}


@dataclass
class Table:
    """Training examples as a data set of ebmcore."""

    train: Tensor
    test: Tensor
    shape: tuple[int, ...]
    state_space: str
    train_weights: Tensor | None
    train_labels: Tensor | Mapping[str, Tensor] | None
    n_classes: int | None


def _has_hidden_units(estimator: EnergyBasedModel) -> bool:
    given = getattr(estimator.loss, "energy", None) if estimator.energy is None else estimator.energy
    try:
        kind = host.load("energy", _named(given)["name"]) if isinstance(given, str | Mapping) else given
    except EbmcoreError:  # which `fit` raises
        return False
    return supports(kind, SupportsHiddenUnits)


class EnergyBasedModel(ClassNamePrefixFeaturesOutMixin, TransformerMixin, DensityMixin, BaseEstimator):
    r"""An energy-based model :math:`p(x) = e^{-E(x)} / Z` of the rows of a table, as a scikit-learn density estimator.

    Energy, loss and sampler are components of installed plugins or objects of your own. Each is a name, ``"mlp"``; a mapping with
    the name and its options, ``{"name": "mlp", "hidden": (64, 64)}``; or an instance, of which a copy is used. `set_params` and
    parameter grids reach the options of the first two: ``loss__k_steps``, ``sampler__step_size``. Training is
    `ebmcore.training.fit`.

    An energy that needs labels beside the examples, :math:`E(x \mid y)`, gets ``y``: class numbers in the order of `classes_`, or
    real values as they are. Any other energy ignores ``y``.

    ``Z`` is known for few energies. Where it is not, scores are those of :math:`e^{-E(x)}`: they rank examples under one model,
    but the scores of two models cannot be compared, neither by hand nor by ``GridSearchCV``, which then needs another
    ``scoring``: `score` warns. `log_partition_` shows whether it is known.

    Examples are checked in each call: those of a binary energy must lie in [0, 1], and values of a categorical one must sum to 1.
    ``MinMaxScaler(clip=True)`` keeps new examples in the range of those it was fitted on.

    With energies that have binary hidden units (`ebmcore.energies.SupportsHiddenUnits`), such as ``rbm``, the estimator is a
    transformer too.

    Args:
        energy: The energy; `None` is that of ``loss``, if that is an instance.
        loss: The loss. An instance brings its own energy and sampler: set both to `None`.
        sampler: The sampler. `None` is, for a loss that needs one, ``{"name": "langevin", "step_size": 0.01}``, which suits
            standardised features, or ``"gibbs"`` for binary and categorical energies that offer both conditionals
            (`ebmcore.energies.SupportsBlockGibbs`), such as ``rbm``.
        shape: Shape of one example, for energies of images or one-hot categories: a row is reshaped to it. `None` is one axis.
        state_space: ``"continuous"``, ``"binary"`` or ``"categorical"``; `None` is that of the energy or the sampler, otherwise
            continuous.
        epochs: Passes through the data.
        batch_size: Examples in a batch.
        optimizer: As in `ebmcore.training.fit`.
        lr: Learning rate.
        fit_options: Further options of `ebmcore.training.fit`, such as ``{"ema_decay": 0.999, "accelerator": "gpu"}``.
        random_state: Seed or generator, of the initial parameters and of training.

    Attributes:
        energy_: The trained energy, on the CPU in float64 and in evaluation mode.
        loss_: The loss.
        sampler_: The sampler, or `None`.
        classes_: The classes of ``y``, in their order, where the energy needs labels and they are no real values.
        log_partition_: :math:`\log Z` in nats where the energy can compute it, otherwise `None`.
        n_features_in_: Number of features.

    Source: Y. LeCun, S. Chopra, R. Hadsell, M. Ranzato and F. J. Huang (2006), "A tutorial on energy-based learning".

    Example:
        >>> X = np.random.default_rng(0).normal(size=(200, 2))
        >>> model = EnergyBasedModel({"name": "mlp", "hidden": (16,)}, epochs=20, lr=0.01, random_state=0).fit(X)
        >>> inside, outside = model.score_samples([[0.0, 0.0], [6.0, 6.0]])
        >>> bool(inside > outside)
        True
        >>> model.sample(5, n_steps=10, random_state=0).shape
        (5, 2)
    """

    energy_: torch.nn.Module
    classes_: NDArray[Any] | None
    log_partition_: float | None

    def __init__(
        self,
        energy: Any = "mlp",
        loss: Any = "pcd",
        sampler: Any = None,
        *,
        shape: Sequence[int] | None = None,
        state_space: str | None = None,
        epochs: int | None = 10,
        batch_size: int = 64,
        optimizer: Any = "adam",
        lr: float = 1e-3,
        fit_options: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.energy = energy
        self.loss = loss
        self.sampler = sampler
        self.shape = shape
        self.state_space = state_space
        self.epochs = epochs
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.lr = lr
        self.fit_options = fit_options
        self.random_state = random_state

    def fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> EnergyBasedModel:
        """Trains a new model.

        Args:
            X: Examples ``(n_samples, n_features)``.
            y: Labels ``(n_samples,)`` where the energy needs them, otherwise ignored.
            sample_weight: Weights of the examples ``(n_samples,)``, at least 0; `None` weighs all alike.
        """
        x = self._examples(X, reset=True)
        self._make(tuple(x.shape[1:]))
        return self._train(x, self._conditions(y, x, reset=True), sample_weight, self.epochs)

    def partial_fit(self, X: ArrayLike, y: Any = None, sample_weight: ArrayLike | None = None) -> EnergyBasedModel:
        """Trains on with one pass through ``X``; the optimizer starts afresh each time. Arguments are those of `fit`."""
        first = not hasattr(self, "loss_")
        x = self._examples(X, reset=first)
        if first:
            self._make(tuple(x.shape[1:]))
        return self._train(x, self._conditions(y, x, reset=first), sample_weight, 1)

    def score_samples(self, X: ArrayLike, y: Any = None) -> NDArray[np.float64]:
        """Returns the log-density ``-E(x) - log Z`` ``(n_samples,)`` in nats, or ``-E(x)`` where `log_partition_` is `None`.

        Args:
            X: Examples ``(n_samples, n_features)``.
            y: Their labels where the energy needs them, otherwise ignored.
        """
        return -self._of_rows(self._fitted().energy_, X, y) - (self.log_partition_ or 0.0)

    def score(self, X: ArrayLike, y: Any = None) -> float:
        """Returns the mean of `score_samples`; warns where `log_partition_` is `None`, as it then compares no models."""
        mean = float(self.score_samples(X, y).mean())
        if self.log_partition_ is None:
            warnings.warn(
                "log Z of this energy is not known, so score() is the mean of -E(x) and compares examples under one model, never "
                "models: give GridSearchCV a scoring of your own",
                UserWarning,
                stacklevel=2,
            )
        return mean

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Returns the probabilities of the hidden units ``(n_samples, n_hidden)`` given the examples."""
        energy: Any = self._fitted().energy_
        return self._of_rows(lambda x: energy.hidden_logits(x).sigmoid(), X)

    def sample(
        self,
        n_samples: int = 1,
        *,
        y: Any = None,
        n_steps: int = 1000,
        random_state: int | np.random.RandomState | None = None,
    ) -> NDArray[np.float64]:
        """Draws samples ``(n_samples, n_features)``: each is the end of a chain of its own.

        Args:
            n_samples: Number of samples.
            y: Label of each sample ``(n_samples,)`` where the energy needs them, otherwise ignored.
            n_steps: Transitions of each chain, which starts where the loss starts its chains.
            random_state: Seed or generator.

        Raises:
            UsageError: If there is no sampler, or a chain is NaN or infinite.
        """
        sampler = self._fitted().sampler_
        if sampler is None:
            raise UsageError(f"the loss {self.loss!r} needs no sampler, and none was given: EnergyBasedModel(sampler=...)")
        for name, value in {"n_samples": n_samples, "n_steps": n_steps}.items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1, got {value!r}")
        generator = stream_generator(_seed(random_state), "sample")
        start = self._initial.sample(n_samples, generator=generator).double()
        conditions = self._conditions(y, start)
        x = ebmcore.sample(sampler, self.energy_, start, n_steps, conditions=conditions, generator=generator)
        if not x.isfinite().all():
            raise UsageError("some chains are NaN or infinite: lower the sampler's step size, or take fewer n_steps")
        return x.flatten(1).numpy()

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Returns the parameters by name; with ``deep`` also the options of components, such as ``loss__k_steps``."""
        params: dict[str, Any] = super().get_params(deep)
        if deep:
            mappings = {part: params[part] for part in _COMPONENTS if isinstance(params[part], Mapping)}
            params |= {f"{part}__{name}": v for part, options in mappings.items() for name, v in options.items()}
        return params

    def set_params(self, **params: Any) -> EnergyBasedModel:
        """Sets parameters by name, and options of components by ``COMPONENT__OPTION``; returns the estimator."""
        options = {name: value for name, value in params.items() if name.partition("__")[0] in _COMPONENTS and "__" in name}
        super().set_params(**{name: value for name, value in params.items() if name not in options})
        for name, value in options.items():
            part, _, option = name.partition("__")
            given = getattr(self, part)
            given = _LANGEVIN if given is None and part == "sampler" else given
            if not isinstance(given, str | Mapping):
                raise UsageError(
                    f"{name} is an option of a component by name, but {part} is {given!r}: name it, {part}='...'"
                )
            setattr(self, part, {**_named(given), option: value})
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        if not _has_hidden_units(self):
            tags.transformer_tags = None
        return tags

    def _fitted(self) -> EnergyBasedModel:
        check_is_fitted(self)
        return self

    def _examples(self, X: ArrayLike, *, reset: bool) -> Tensor:
        rows = torch.tensor(validate_data(self, X, reset=reset, dtype=np.float64))
        shape = tuple(rows.shape[1:] if self.shape is None else self.shape)
        if math.prod(shape) != rows.shape[1]:
            raise UsageError(f"shape {shape} has {math.prod(shape)} values, but X has {rows.shape[1]} features")
        return rows.view(-1, *shape)

    def _space(self) -> str:
        """The state space of the examples."""
        declared = (
            getattr(part, "state_space", None) for part in (getattr(self.loss_, "energy", self.loss_), self.sampler_)
        )
        return next((space for space in (self.state_space, *declared) if space is not None), "continuous")

    def _make(self, shape: tuple[int, ...]) -> None:
        """Makes energy, sampler and loss, untrained."""
        self._training_seed = _seed(self.random_state)
        with torch.random.fork_rng():
            torch.manual_seed(stream_seed(self._training_seed, "init"))
            if isinstance(self.loss, str | Mapping):
                self._make_by_name(shape)
            elif self.energy is None and self.sampler is None:
                self.loss_ = _copied(self.loss)
                self.sampler_ = getattr(self.loss_, "sampler", None)
            else:
                raise UsageError(
                    "loss is an instance, which has its own energy and sampler: pass energy=None and sampler=None"
                )

    def _make_by_name(self, shape: tuple[int, ...]) -> None:
        if self.energy is None:
            raise UsageError("energy is None, and no instance of a loss brings one: name an energy, such as 'mlp'")
        needs_sampler = host.load("loss", _named(self.loss)["name"]).needs_sampler
        energy = _created("energy", self.energy, shape=shape)
        self.sampler_ = None
        if needs_sampler or self.sampler is not None:
            self.sampler_ = _created("sampler", self._default_sampler(energy) if self.sampler is None else self.sampler)
        self.loss_ = _created("loss", self.loss, energy=energy, **({"sampler": self.sampler_} if needs_sampler else {}))

    def _default_sampler(self, energy: Any) -> Any:
        space = self.state_space or getattr(energy, "state_space", None) or "continuous"
        if space == "continuous":
            return _LANGEVIN
        if supports(energy, SupportsBlockGibbs):
            return "gibbs"
        raise UsageError(f"the default sampler, langevin, is for continuous data: name one for {space} data, sampler='...'")

    def _conditions(self, y: Any, x: Tensor, *, reset: bool = False) -> dict[str, Tensor]:
        """The labels as conditions of the energy; none where it needs none."""
        energy = getattr(self.loss_, "energy", self.loss_)
        _, *others = inspect.signature(energy.forward).parameters.values()
        needed = [p for p in others if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        if not needed:
            return {}
        if y is None:
            raise UsageError(f"the energy {type(energy).__name__} needs labels beside the examples: pass them as y")
        labels = column_or_1d(y)
        check_consistent_length(x, labels)
        if reset:
            self.classes_ = None if labels.dtype.kind == "f" else np.unique(labels)
        name = needed[0].name if needed[0].kind is needed[0].KEYWORD_ONLY else "0"
        if self.classes_ is None:
            return {name: torch.tensor(labels.astype(np.float64))}
        unknown = sorted(set(labels.tolist()) - set(self.classes_.tolist()))
        if unknown:
            raise UsageError(f"y holds {unknown[0]!r}, but the classes of the model are {self.classes_.tolist()}")
        return {name: torch.tensor(np.searchsorted(self.classes_, labels))}

    def _train(
        self, x: Tensor, conditions: Mapping[str, Tensor], sample_weight: ArrayLike | None, epochs: int | None
    ) -> EnergyBasedModel:
        loss, options = self.loss_, {"progress": False, **(self.fit_options or {})}
        own = {"epochs", "batch_size", "optimizer", "lr", "seed"} & options.keys()
        if own:
            raise UsageError(
                f"fit_options must not hold {', '.join(sorted(own))}: set the estimator's own (random_state for seed)"
            )
        x, weights = x.float(), None if sample_weight is None else _weights(sample_weight, x)
        energy, space = getattr(loss, "energy", loss), self._space()
        labels = conditions.get("0", conditions) if conditions else None
        n_classes = len(self.classes_) if conditions and self.classes_ is not None else None
        table = Table(x, x[:0], tuple(x.shape[1:]), space, weights, labels, n_classes)
        check_compatible(energy, self.sampler_, table, loss)
        result = fit(
            loss,
            table,
            epochs=epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            lr=self.lr,
            seed=self._training_seed,
            **options,
        )
        loss.to("cpu")
        self.energy_ = copy_energy(result.energy).cpu().double().eval()
        self._initial = _initial_distribution(loss, self.energy_, x[:_STARTS])
        self.log_partition_ = None if conditions else _log_partition(self.energy_)
        if supports(self.energy_, SupportsHiddenUnits):
            self._n_features_out = self.energy_.hidden_logits(x[:1].double()).shape[1]  # type: ignore[operator]
        return self

    def _of_rows(self, function: Any, X: ArrayLike, y: Any = None) -> NDArray[np.float64]:
        x = self._examples(X, reset=False)
        check_values(x.float(), self._space(), "the examples")  # in float32, as in training: a scaler may give 1 + 2e-16
        conditions = self._conditions(y, x) if function is self.energy_ else {}
        with frozen(self.energy_), torch.enable_grad():  # for an energy that takes a gradient of its own
            found = [
                condition(function, {name: t[rows] for name, t in conditions.items()})(x[rows]).detach()
                for rows in torch.arange(len(x)).split(_ROWS)
            ]
        return torch.cat(found).numpy()


# What scikit-learn's base classes make of a transformer is there only with hidden units.
for _name in ("transform", "fit_transform", "get_feature_names_out", "set_output"):
    setattr(EnergyBasedModel, _name, available_if(_has_hidden_units)(getattr(EnergyBasedModel, _name)))


def _named(given: str | Mapping[str, Any]) -> dict[str, Any]:
    """The name and the options of a component."""
    chosen = {"name": given} if isinstance(given, str) else dict(given)
    if "name" not in chosen:
        raise UsageError(
            f"a mapping of options must hold the name of the component, such as {{'name': 'mlp'}}, got {chosen!r}"
        )
    return chosen


def _created(kind: str, given: Any, **more: Any) -> Any:
    """The component that a parameter stands for: made by its name, or a copy of an instance."""
    if not isinstance(given, str | Mapping):
        return _copied(given)
    options = _named(given)
    name = options.pop("name")
    missing = _required(host.load(kind, name)) - options.keys() - more.keys()
    if missing:
        wanted = "".join(f", {option!r}: ..." for option in sorted(missing))
        raise UsageError(f"the {kind} {name!r} needs {', '.join(sorted(missing))}: {kind}={{'name': {name!r}{wanted}}}")
    return host.create(kind, name, **more, **options)


def _required(cls: type) -> set[str]:
    """Options of a constructor that have no default."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _copied(given: Any) -> Any:
    return copy_energy(given) if isinstance(given, torch.nn.Module) else copy.deepcopy(given)


def _weights(sample_weight: ArrayLike, x: Tensor) -> Tensor:
    weights = column_or_1d(sample_weight, dtype=np.float64)
    check_consistent_length(x, weights)
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise UsageError(
            "sample_weight must be finite, at least 0 and not all zero: leave it out to weigh all examples alike"
        )
    return torch.tensor(weights).float()


def _seed(random_state: Any) -> int:
    return int(check_random_state(random_state).randint(2**31 - 1))


def _initial_distribution(loss: Any, energy: Any, x: Tensor) -> Any:
    if hasattr(loss, "initial_distribution"):
        return loss.initial_distribution(x.shape[1:], x)
    if supports(energy, SupportsInitialDistribution):
        return energy.initial_distribution(x.shape[1:])
    return Normal(torch.zeros(x.shape[1:]))


def _log_partition(energy: Any) -> float | None:
    if not supports(energy, SupportsEnumeration):
        return None
    try:
        return float(energy.log_partition())
    except UsageError:  # too many states
        return None
