"""Weights w(t) of the score-matching bracket `1/2 w ||s_theta + eps/sigma||^2`, by their names on the command line."""

from torch import Tensor

from diffcli.diffusion.sde import SDE


def simple(sde: SDE, t: Tensor) -> Tensor:
    """`w = sigma^2`, that is `1/2 ||eps_theta - eps||^2`.  Ho et al. 2020, eq. 14, arXiv:2006.11239."""
    return sde.sigma(t) ** 2


def likelihood(sde: SDE, t: Tensor) -> Tensor:
    """`w = g^2`: the loss bounds the KL of the reverse-SDE model.  Song et al. 2021b, thm. 1, arXiv:2101.09258."""
    return sde.g2(t)


def uniform(sde: SDE, t: Tensor) -> Tensor:
    """`w = 1`: plain denoising score matching.  Vincent 2011."""
    return t.new_ones(t.shape)


WEIGHTS = {"simple": simple, "likelihood": likelihood, "uniform": uniform}
