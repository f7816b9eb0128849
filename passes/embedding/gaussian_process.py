"""An exact Gaussian process from embeddings to scores, on GPyTorch.

The kernel is `k(x, x') = exp(-|e(x) - e(x')|^2 / (2 l^2))`. By default its length scale, its noise
and its constant mean are learned on standardised targets, under weak log-normal priors; in the
paper (Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression",
ICLR 2019, section 3.1) they are fixed, and the mean is 0 (`FixedKernel`). What is maximised is the
leave-one-out log predictive density of Rasmussen, Williams, "Gaussian Processes for Machine
Learning", 2006, section 5.4.2.

Targets that were measured after less training are told apart by their rung: an input of its own
with a kernel of its own, and a mean of its own for every rung.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import gpytorch  # type: ignore[import-untyped]
import torch
from gpytorch.constraints import GreaterThan  # type: ignore[import-untyped]
from gpytorch.kernels import RBFKernel  # type: ignore[import-untyped]
from gpytorch.priors import LogNormalPrior  # type: ignore[import-untyped]
from torch import Tensor, nn

from energy_model.errors import ArgumentError

NOISE_FLOOR = 1e-4
_FIRST_NOISE = 0.05
# The widths of the priors, in natural logarithms: a factor of e, and of e^1.5.
_SCALE_SPREAD, _NOISE_SPREAD = 1.0, 1.5
_FIRST_RUNG_SCALE = 3.0
_LEAST_DISTANCE = 1e-6
# Predictions need the covariance of the points that are predicted together: small blocks are fast.
_BLOCK = 256


@dataclass(frozen=True, slots=True)
class FixedKernel:
    """The paper's process: nothing of it is learned, the mean is 0, targets are not standardised.

    Attributes:
        alpha: Square of the length scale.
        beta: Variance of the noise, which predictions contain.
    """

    alpha: float = 0.01
    beta: float = 0.05

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0 < value < math.inf:
                raise ArgumentError(f"{value!r} is no finite number above 0", where=name)


class _RungMean(gpytorch.means.Mean):  # type: ignore[misc]
    """One constant for each rung, by the last column of the inputs."""

    def __init__(self, rungs: int) -> None:
        super().__init__()
        self.constants = nn.Parameter(torch.zeros(rungs, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        # The column counts rungs downwards from the last one.
        return self.constants[-1 - inputs[..., -1].round().long()]


class _Model(gpytorch.models.ExactGP):  # type: ignore[misc]
    def __init__(
        self, dimensions: int, rungs: int, likelihood: gpytorch.likelihoods.GaussianLikelihood
    ) -> None:
        super().__init__(None, None, likelihood)
        self.base = RBFKernel(active_dims=tuple(range(dimensions)))
        self.rung = RBFKernel(active_dims=(dimensions,)) if rungs > 1 else None
        self.covariance = self.base if self.rung is None else self.base * self.rung
        self.mean: gpytorch.means.Mean = _RungMean(rungs)

    def forward(self, inputs: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean(inputs), self.covariance(inputs))


class GaussianProcess:
    """A Gaussian process in float64 whose inputs are embeddings.

    Args:
        dimensions: Numbers in an embedding.
        rungs: Amounts of training that targets may have been measured after, at least 1.
        fixed: The paper's process instead of a learned one; of one rung.

    Raises:
        ArgumentError: A number is below 1, or a fixed process is to have several rungs.
    """

    def __init__(
        self, dimensions: int, *, rungs: int = 1, fixed: FixedKernel | None = None
    ) -> None:
        if dimensions < 1 or rungs < 1:
            raise ArgumentError(
                "is not at least 1", where="dimensions" if dimensions < 1 else "rungs"
            )
        if fixed is not None and rungs > 1:
            raise ArgumentError("a fixed kernel knows one rung only", where="rungs")
        self.dimensions, self.rungs, self.fixed = dimensions, rungs, fixed
        self.shift, self.scale = 0.0, 1.0
        constraint = GreaterThan(NOISE_FLOOR if fixed is None else fixed.beta / 2)
        likelihood = gpytorch.likelihoods.GaussianLikelihood(noise_constraint=constraint)
        self._model = _Model(dimensions, rungs, likelihood).double()
        if fixed is not None:
            self._model.mean = gpytorch.means.ZeroMean()
        likelihood.noise = _FIRST_NOISE if fixed is None else fixed.beta
        self._model.base.lengthscale = 1.0 if fixed is None else math.sqrt(fixed.alpha)
        if fixed is None:
            noise = LogNormalPrior(math.log(_FIRST_NOISE), _NOISE_SPREAD)
            likelihood.noise_covar.register_prior("noise_prior", noise, "noise")
        if self._model.rung is not None:
            self._model.rung.lengthscale = _FIRST_RUNG_SCALE
            self._prior(self._model.rung, _FIRST_RUNG_SCALE)
        self._objective = gpytorch.mlls.LeaveOneOutPseudoLikelihood(likelihood, self._model)

    @staticmethod
    def _prior(kernel: RBFKernel, centre: float) -> None:
        prior = LogNormalPrior(math.log(centre), _SCALE_SPREAD).double()
        kernel.register_prior("lengthscale_prior", prior, "lengthscale")

    @property
    def length_scale(self) -> float:
        """Of the kernel, in the unit of the embeddings."""
        return float(self._model.base.lengthscale.detach())

    @property
    def noise(self) -> float:
        """Variance of the noise, in squared units of the targets."""
        return float(self._model.likelihood.noise.detach()) * self.scale**2

    def parameters(self) -> list[nn.Parameter]:
        """What is learned of the process itself; none of a fixed one."""
        return [] if self.fixed is not None else list(self._model.parameters())

    def start(self, embeddings: Tensor) -> None:
        """Set the length scale to the median distance of the embeddings.

        Args:
            embeddings: Float `(points, dimensions)`. Does nothing to a fixed process.
        """
        if self.fixed is None:
            self._model.base.lengthscale = median_distance(embeddings)

    def condition(self, embeddings: Tensor, targets: Tensor, rungs: Tensor | None = None) -> None:
        """Take over what was observed; nothing is learned by it.

        Args:
            embeddings: Float `(points, dimensions)`.
            targets: Float64 `(points,)`, in any unit.
            rungs: Int64 `(points,)`, the last rung is `rungs - 1`; all of the last for `None`.

        Raises:
            ArgumentError: There is no point, shapes do not fit, or a number is not finite.
        """
        if targets.ndim != 1 or embeddings.shape != (len(targets), self.dimensions):
            raise ArgumentError(
                f"embeddings of shape {tuple(embeddings.shape)} do not fit {len(targets)} targets "
                f"and {self.dimensions} dimensions",
                where="embeddings",
            )
        if len(targets) == 0 or not (targets.isfinite().all() and embeddings.isfinite().all()):
            raise ArgumentError(
                "there is no point, or a number that is not finite", where="targets"
            )
        if self.fixed is None:
            self.shift = float(targets.mean())
            spread = float(targets.std(correction=0))
            # Equal targets have no scale of their own; a tiny one is the rounding of their mean.
            self.scale = spread if spread > 1e-12 * max(1.0, abs(self.shift)) else 1.0
            self._prior(self._model.base, median_distance(embeddings))
        standard = (targets.double() - self.shift) / self.scale
        self._model.set_train_data(self._inputs(embeddings, rungs).detach(), standard, strict=False)

    def _inputs(self, embeddings: Tensor, rungs: Tensor | None) -> Tensor:
        below = torch.zeros(len(embeddings), 1, dtype=torch.float64)
        if rungs is not None:
            if len(rungs) and not 0 <= int(rungs.min()) <= int(rungs.max()) < self.rungs:
                raise ArgumentError(f"a rung is not one of {self.rungs}", where="rungs")
            below = (self.rungs - 1 - rungs).double()[:, None]
        return torch.cat([embeddings.double(), below], dim=1)

    def loss(self, embeddings: Tensor, rungs: Tensor | None = None) -> Tensor:
        """Minus the mean leave-one-out log predictive density, and minus the priors.

        Args:
            embeddings: Of the observed points, `(points, dimensions)`, with a gradient if there is
                something below to be learned.
            rungs: Those that the process was conditioned on.

        Returns:
            One number, in nats of the standardised targets.
        """
        model, targets = self._model, self._model.train_targets
        model.train()
        with _exact():
            model.set_train_data(self._inputs(embeddings, rungs), targets, strict=False)
            found: Tensor = -self._objective(model(*model.train_inputs), targets)
        return found

    def leave_one_out(self) -> tuple[Tensor, Tensor]:
        """What is predicted for every observed point from all others.

        With `B` the inverse of the covariance with noise: mean `y - (B (y - m)) / B_ii`, variance
        `1 / B_ii`, which contains the noise.

        Returns:
            Mean and standard deviation, float64 `(points,)`, in the unit of the targets.
        """
        model = self._model
        model.train()
        with torch.no_grad(), _exact():
            prior = model.likelihood(model(*model.train_inputs))
            factor = prior.lazy_covariance_matrix.cholesky().to_dense()
            inverse = torch.cholesky_inverse(factor)
            targets = model.train_targets
            variance = 1 / inverse.diagonal()
            mean = targets - (inverse @ (targets - prior.mean)) * variance
        return mean * self.scale + self.shift, variance.sqrt() * self.scale

    def posterior(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Predict scores at the last rung.

        Args:
            embeddings: Float `(points, dimensions)`.

        Returns:
            Mean and standard deviation, float64 `(points,)`, in the unit of the targets. The
            deviation is that of the score itself; of a fixed process it contains the noise.
        """
        model = self._model
        model.eval()
        means, variances = [], []
        with torch.no_grad(), _exact():
            for block in torch.split(self._inputs(embeddings, None), _BLOCK):
                found = model(block)
                means.append(found.mean)
                variances.append(found.variance)
        mean = torch.cat(means) if means else torch.empty(0, dtype=torch.float64)
        variance = torch.cat(variances) if variances else mean.clone()
        if self.fixed is not None:
            variance = variance + self.fixed.beta
        return mean * self.scale + self.shift, variance.clamp_min(0).sqrt() * self.scale

    def state_dict(self) -> dict[str, Tensor]:
        """What was learned; not the observations."""
        return {name: value.detach().clone() for name, value in self._model.named_parameters()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over what was learned.

        Raises:
            ArgumentError: It is the state of another process.
        """
        own = dict(self._model.named_parameters())
        if {name: value.shape for name, value in state.items()} != {
            name: value.shape for name, value in own.items()
        }:
            raise ArgumentError("the state is that of another process", where="state")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)
        self._model.train()  # forgets what was computed with the old ones


def median_distance(embeddings: Tensor) -> float:
    """The median distance of two points, at least a millionth; 1 where there are no two.

    Args:
        embeddings: Float `(points, dimensions)`.
    """
    if len(embeddings) < 2:
        return 1.0
    distances = torch.pdist(embeddings.detach().double())
    return max(float(distances.median()), _LEAST_DISTANCE)


@contextlib.contextmanager
def _exact() -> Iterator[None]:
    """Cholesky at any size, with jitter from 1e-8 to 1e-4 only where it fails without."""
    settings = gpytorch.settings
    with (
        settings.max_cholesky_size(2**31),
        settings.cholesky_jitter(double_value=1e-8),
        settings.cholesky_max_tries(5),
        settings.fast_pred_var(False),
        settings.debug(False),
    ):
        yield
