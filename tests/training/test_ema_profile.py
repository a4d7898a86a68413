"""The profiles of the average of the weights."""

import math

import pytest

from diffcli.training.ema_profile import Constant, Power, gamma_of, profile_of


def profile_weights(profile, updates: int) -> list[float]:
    """What the average of n = 0 (the start), 1, …, updates holds of each."""
    held = [1.0]
    for n in range(1, updates + 1):
        d = profile(n)
        held = [d * w for w in held] + [1 - d]
    return held


def moments(held: list[float]) -> tuple[float, float]:
    """Mean and standard deviation of the place in the training, 0 to 1."""
    places = [n / (len(held) - 1) for n in range(len(held))]
    mean = sum(w * x for w, x in zip(held, places, strict=True))
    return mean, math.sqrt(sum(w * (x - mean) ** 2 for w, x in zip(held, places, strict=True)))


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2, 0.28])
def test_a_power_profile_keeps_its_width_whatever_the_length(width):
    """It is n^gamma: nothing is left of the start, and mean and width are those of the law on [0, 1]."""
    profile = Power(width)
    for updates in (300, 1200):
        held = profile_weights(profile, updates)
        mean, sd = moments(held)
        assert held[0] == 0 and math.isclose(sum(held), 1, rel_tol=1e-9)
        assert sd == pytest.approx(width, rel=0.02)
        assert mean == pytest.approx((profile.gamma + 1) / (profile.gamma + 2), rel=0.01)
        slope = math.log(held[updates] / held[updates // 2]) / math.log(updates / (updates // 2))
        assert slope == pytest.approx(profile.gamma, rel=0.03)


def test_gamma_of_the_widths_that_the_paper_names():
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005) and gamma_of(0.05) == pytest.approx(16.97, abs=0.005)


def test_a_constant_profile_is_exponential_after_its_rise():
    profile = Constant(0.9)
    assert [profile(n) for n in (1, 5)] == [2 / 11, 6 / 15] and profile(1000) == 0.9
    held = profile_weights(profile, 400)
    assert held[400] == pytest.approx(0.1) and held[390] == pytest.approx(0.1 * 0.9**10)


def test_profiles_by_name_and_what_they_refuse():
    assert profile_of("constant", 0.5, 0.1)(10**6) == 0.5
    assert profile_of("power", 0.5, 0.1)(10) == Power(0.1)(10)
    for make in (lambda: Constant(1.1), lambda: Constant(-0.1), lambda: Power(0.0), lambda: Power(0.3)):
        with pytest.raises(ValueError, match="must lie in"):
            make()
