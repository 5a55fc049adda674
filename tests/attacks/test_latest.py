"""Latest: against a randomized classifier the search that fared best counts, not the last one and not the luckiest."""

import torch

from calipers.attacks.apgd import APGD
from calipers.attacks.judge import Judge
from calipers.attacks.latest import Latest
from calipers.gradients.eot import EOT
from calipers.testing.obfuscated import dropped_features, smooth_images
from calipers.threat.threat_model import Norm, ThreatModel

X = torch.zeros((3, 2))
ROWS = torch.arange(3)


def test_the_point_is_the_last_one_and_the_value_a_running_mean() -> None:
    seen = Latest(X)
    seen.offer(ROWS, X + 1, torch.tensor([1.0, -1.0, torch.nan]))
    seen.offer(ROWS[:2], (X + 2)[:2], torch.tensor([-1.0, 2.0]))
    assert seen.point[:, 0].tolist() == [2, 2, 1]
    torch.testing.assert_close(seen.value, torch.tensor([0.4, -0.1, -torch.inf]))
    assert bool(seen.still(ROWS).all())


def test_one_lucky_draw_does_not_outweigh_a_search_that_fared_well() -> None:
    lucky, steady = Latest(X), Latest(X)
    for value in (-1.0, -1.0, -1.0, 1.5):
        lucky.offer(ROWS, X, torch.full((3,), value))
    for value in (-1.0, 0.5, 0.5, 0.5):
        steady.offer(ROWS, X, torch.full((3,), value))
    assert bool((steady.value > lucky.value).all())


def test_a_search_for_every_class_is_no_worse_than_that_for_the_likeliest() -> None:
    x, y = smooth_images(40, seed=1)
    target, threat = dropped_features().target, ThreatModel(Norm.LINF, 0.11)
    judge = Judge(rule="average")
    one = APGD(EOT(10), steps=10, loss="margin", targets=1)(target, x, y, threat, seed=0, judge=judge)
    all_ = APGD(EOT(10), steps=10, loss="margin", targets=2)(target, x, y, threat, seed=0, judge=judge)
    assert int(all_.success.sum()) >= int(one.success.sum()) - 2
