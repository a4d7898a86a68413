"""Adams-Bashforth methods: a polynomial through the last readings, integrated over the step."""

import math
from typing import Literal

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.form import EpsForm, LamForm, VForm, X0Form
from diffcli.diffusion.samplers.multistep import Multistep
from diffcli.diffusion.samplers.phi import lagrange_weights, nodes_in_step


def form_of(variable: str, sigma_data: float = 1.0) -> LamForm:
    """The form of a prediction.  Raises ValueError for another name."""
    forms = {"eps": EpsForm, "x0": X0Form, "v": lambda: VForm(sigma_data)}
    require(variable in forms, f"variable must be one of {', '.join(forms)}, got {variable}")
    return forms[variable]()


class Deis(Multistep):
    """Exponential Adams-Bashforth: the polynomial in lam through the last `order` readings, integrated in closed form.

    `x_s = (scale_s/scale_t) x_t + scale_s ∫ q(l) (drho/dl) dl`, q of eps, x0 or v (of data of standard deviation sigma_data).
    Raises ValueError for an order outside 1 to 4, or another variable.
    Zhang & Chen 2023, sec. 3.3, arXiv:2204.13902; Hochbruck & Ostermann 2010, sec. 5.1.
    """

    def __init__(
        self,
        order: int = 3,
        variable: Literal["eps", "x0", "v"] = "eps",
        sigma_data: float = 1.0,
        starter: Literal["ramp", "rk"] = "ramp",
        final: int | None = None,
    ):
        require(1 <= order <= 4, f"order must lie between 1 and 4, got {order}")
        super().__init__(form_of(variable, sigma_data), order, order, starter, final)

    def weights(self, i, points, lam):
        return lagrange_weights(nodes_in_step(i, points, lam), self.form.moments(lam[i], lam[i + 1], points))


class LMS(Multistep):
    """Adams-Bashforth in sigma/alpha: the polynomial in it through the last `order` readings of eps.

    Raises ValueError for an order outside 1 to 4.  Karras et al. 2022, sec. 3; Hairer, Norsett & Wanner 1993, sec. III.5.
    """

    def __init__(self, order: int = 4, starter: Literal["ramp", "rk"] = "ramp", final: int | None = None):
        require(1 <= order <= 4, f"order must lie between 1 and 4, got {order}")
        super().__init__(EpsForm(), order, order, starter, final)

    def weights(self, i, points, lam):
        rho = [math.exp(-l) for l in lam[max(0, i - points + 1) : i + 2]]  # noqa: E741 - the notation of the papers
        h = rho[-1] - rho[-2]
        nodes = [(r - rho[-2]) / h for r in rho[-2::-1]]
        return lagrange_weights(nodes, [h / (m + 1) for m in range(points)])
