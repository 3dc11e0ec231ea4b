"""What keeps DINO from collapsing: the toy of five variants, told apart by two entropies of the teacher.

Ten Gaussian clusters in 32 dimensions; a view is a point with noise. An MLP is the backbone; loss and head are the
real ones, with 256 prototypes, and 500 steps are trained. Entropies are in units of log K: `conditional` 1 means that
the teacher says the same about all prototypes, `marginal` 0 that it says the same about all samples.
"""

import copy
import math

import pytest
import torch
from torch import nn

from v2r_core.nn.dino_head import DinoHead
from v2r_core.nn.dino_losses import centred_probabilities, dino_loss
from v2r_core.nn.ema import copy_for_ema, ema_update
from v2r_core.training.collapse import entropy_share

PROTOTYPES = 256
STEPS = 500
LOG_K = math.log(PROTOTYPES)


def train_toy(center_momentum=0.9, teacher_temperature=0.04, momentum=0.99, seed=0):
    """Trains, and returns the teacher's entropies and the mean loss of the last steps.

    Args:
        center_momentum: 1 keeps the center at 0: no centring.
        teacher_temperature: 0.4 does not sharpen.
        momentum: 0 copies the student, 1 freezes the teacher.
        seed: of data and weights.
    """
    torch.manual_seed(seed)
    clusters = torch.randn(10, 32)
    backbone = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))
    student = nn.Sequential(backbone, DinoHead(64, PROTOTYPES, hidden=64, bottleneck=32, frozen_length=True))
    teacher = copy_for_ema(copy.deepcopy(student))
    center = torch.zeros(1, PROTOTYPES)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []

    def views(count):
        points = clusters[torch.randint(10, (64,))] + 0.5 * torch.randn(64, 32)
        return torch.cat([points + 0.5 * torch.randn_like(points) for _ in range(count)])

    for _ in range(STEPS):
        crops = views(4)
        with torch.no_grad():
            told = teacher(crops[:128])
        loss, center = dino_loss(student(crops), told, center, 0.1, teacher_temperature, center_momentum)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update(teacher, student, momentum)
        losses.append(float(loss.detach()))
    with torch.no_grad():
        told = teacher(torch.cat([views(1) for _ in range(16)]))
    rows = centred_probabilities(told, center, teacher_temperature)
    conditional, marginal = entropy_share(rows).mean(), entropy_share(rows.mean(dim=0, keepdim=True))
    return float(conditional), float(marginal), sum(losses[-20:]) / 20


VARIANTS = {
    "full": {},
    "no centring": {"center_momentum": 1.0},
    "no sharpening": {"teacher_temperature": 0.4},
    "copy": {"momentum": 0.0},
    "frozen": {"momentum": 1.0},
}


@pytest.fixture(scope="module")
def full():
    return train_toy()


def test_full_recipe_sorts_the_clusters(full):
    conditional, marginal, loss = full
    assert conditional < 0.05
    # Ten clusters, one prototype each, would be log 10 / log 256 = 0.415.
    assert 0.35 < marginal < 0.6
    assert loss < 0.1 * LOG_K


def test_without_centring_few_prototypes_win(full):
    conditional, marginal, _ = train_toy(**VARIANTS["no centring"])
    assert conditional < 0.05
    assert marginal < 0.5 * full[1]


def test_without_sharpening_the_teacher_says_nothing():
    conditional, marginal, loss = train_toy(**VARIANTS["no sharpening"])
    assert conditional > 0.99 and marginal > 0.99
    assert loss == pytest.approx(LOG_K, rel=0.01)


def test_a_copy_of_the_student_teaches_less(full):
    conditional, marginal, _ = train_toy(**VARIANTS["copy"])
    assert conditional < 0.1
    assert marginal < 0.5 * full[1]


def test_a_frozen_teacher_stays_vague(full):
    conditional, marginal, loss = train_toy(**VARIANTS["frozen"])
    assert conditional > 0.2 and marginal > 0.75
    assert loss > 5 * full[2]
