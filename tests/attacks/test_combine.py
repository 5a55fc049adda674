"""Combinations: worst_of and minimize_eps pass the contract of any attack, and do what their names say."""

from calipers.attacks.apgd import APGD
from calipers.attacks.base import Attack
from calipers.attacks.combine import minimize_eps, worst_of
from calipers.attacks.fgsm import FGSM
from calipers.testing.attack_contract import AttackContract


class TestWorstOf(AttackContract):
    ratio = 1.01

    def make(self) -> Attack:
        return worst_of(FGSM(), APGD(steps=10))


class TestMinimizeEps(AttackContract):
    ratio = 1.05

    def make(self) -> Attack:
        return minimize_eps(FGSM(), tolerance=0.04)


class TestWorstOfTheNearest(AttackContract):
    ratio = 1.1

    def make(self) -> Attack:
        return worst_of(
            minimize_eps(FGSM(), tolerance=0.3), minimize_eps(FGSM(loss="margin"), tolerance=0.09)
        )
