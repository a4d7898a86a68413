"""SA-Solver: Adams' methods on the SDE."""

from diffcli.diffusion.numeric import require
from diffcli.diffusion.samplers.dpmpp_multistep_sde import Damped
from diffcli.diffusion.samplers.form import X0Form
from diffcli.diffusion.samplers.multistep import apply
from diffcli.diffusion.samplers.phi import lagrange_weights, nodes_in_step
from diffcli.diffusion.samplers.unipc import Corrected


class SASolver(Damped):
    """`x_s = (sigma_s/sigma_t) e^{-k h} x_t + alpha_s ∫ (1 + k) e^{-(1 + k)(lam_s - l)} q(l) dl + sigma_s sqrt(1 - e^{-2 k h}) z`,
    `k = eta^2`, q the Lagrange polynomial in lam through readings of x0: the last predictor_order of them to predict x_s, and
    once the model was read there, this one and the corrector_order - 1 before it, with the same z, to correct it.

    The corrected x_s is not read again; corrector_order = 0 leaves it out.  The paper's tau is eta, here constant; eta = 0 is an
    Adams predictor-corrector on the PF-ODE.  Its weak order is 2 where the corrector, without one the predictor, has two readings.
    Raises ValueError for a predictor_order outside 1 to 3, a corrector_order outside 0 to 4, or eta < 0.
    Xue et al. 2023, alg. 1 and sec. 5, arXiv:2309.05019.
    """

    def __init__(self, eta: float = 1.0, predictor_order: int = 3, corrector_order: int = 4):
        require(1 <= predictor_order <= 3, f"predictor_order must lie between 1 and 3, got {predictor_order}")
        require(0 <= corrector_order <= 4, f"corrector_order must lie between 0 and 4, got {corrector_order}")
        order = min(predictor_order + 1, corrector_order) if corrector_order else predictor_order
        super().__init__(eta, form=X0Form(), points=predictor_order, order=order)
        self.corrector_order = corrector_order
        self.memory = max(predictor_order, corrector_order - 1)

    def _integrate(self, nodes: list[float], a: float, b: float) -> list[float]:
        return lagrange_weights(nodes, self.form.moments(a, b, len(nodes)))

    def weights(self, i, points, lam):
        return self._integrate(nodes_in_step(i, points, lam), lam[i], lam[i + 1])

    def corrected(self, i: int, points: int, lam: list[float]) -> list[float]:
        """The weights of the reading at lam[i + 1] and of corrector_order - 1 before it, as far as there are so many."""
        before = min(points, self.corrector_order - 1)
        return self._integrate([1.0, *nodes_in_step(i, before, lam)], lam[i], lam[i + 1])

    def plan(self, sde, times):
        plan = super().plan(sde, times)
        steps = range(len(times) - 1) if self.corrector_order else []
        correctors = [self.row(plan, i, min(i + 1, self.memory), self.corrected) for i in steps]
        return Corrected(**vars(plan), correctors=correctors)

    def step(self, denoiser, xt, i, plan, history, noise):
        readings = [denoiser.reading(xt, plan.t[i], plan.p[i], plan.q[i]), *history]
        history.appendleft(readings[0])
        row = plan.corrected[i] if self.corrector_order else plan.rows[i]
        return apply(row, xt, readings, noise(i + 1) if self.eta else None)
