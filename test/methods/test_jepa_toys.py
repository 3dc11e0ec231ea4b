"""What keeps a joint-embedding architecture from collapsing: the stopped gradient does; the average is not needed.

Two halves of a sample share nothing but one of four classes, under noise. Features of one half are predicted from the
other's, with the parts that I-JEPA is made of.
"""

import pytest
import torch
from torch import nn

from v2r_core.methods.ijepa import ijepa_loss
from v2r_core.methods.jepa import normalise
from v2r_core.nn.ema import copy_for_ema, ema_update

CLASSES, INPUTS, HIDDEN, WIDTH = 4, 32, 64, 16
BATCH, STEPS, LR = 128, 1000, 2e-3
TESTED, NEIGHBOURS = 400, 20


class Data:
    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.centres = 1.6 * torch.randn(2, CLASSES, INPUTS, generator=self.generator)

    def draw(self, count):
        """Both halves, (count, INPUTS) each, and the class."""
        kind = torch.randint(CLASSES, (count,), generator=self.generator)
        noise = torch.randn(2, count, INPUTS, generator=self.generator)
        return 3 * (self.centres[:, kind] + noise), kind


def mlp(inputs):
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))


def train(momentum, stop_gradient=True):
    """Last loss; standard deviation of normalised features over samples; accuracy of a vote of nearest neighbours."""
    torch.manual_seed(0)
    data, encoder, predictor = Data(seed=0), mlp(INPUTS), mlp(WIDTH)
    target = copy_for_ema(encoder)
    optimizer = torch.optim.AdamW([*encoder.parameters(), *predictor.parameters()], lr=LR, weight_decay=0.1)
    for _ in range(STEPS):
        (context, hidden), _ = data.draw(BATCH)
        wanted = normalise((target if stop_gradient else encoder)(hidden))
        loss = ijepa_loss(predictor(encoder(context)), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema_update(target, encoder, momentum)
    (_, halves), kind = data.draw(TESTED)
    with torch.no_grad():
        features = normalise(encoder(halves))
    known, asked = features.chunk(2)
    known_kind, asked_kind = kind.chunk(2)
    nearest = known_kind[torch.cdist(asked, known).topk(NEIGHBOURS, largest=False).indices]
    accuracy = (nearest.mode(dim=1).values == asked_kind).float().mean()
    result = float(loss.detach()), float(features.std(dim=0).mean()), float(accuracy)
    print("loss {:.2g}, standard deviation {:.2g}, nearest neighbours {:.2f}".format(*result))
    return result


@pytest.mark.parametrize("momentum", [0.99, 0.0])
def test_features_stay_apart_with_and_without_the_average(momentum):
    loss, deviation, accuracy = train(momentum)
    assert loss > 0.01
    assert deviation > 0.2
    assert accuracy > 0.85


def test_features_collapse_where_the_gradient_reaches_the_targets():
    """The layer norm of the targets does not help."""
    loss, deviation, accuracy = train(0.0, stop_gradient=False)
    assert loss < 2e-3
    assert deviation < 0.05
    assert accuracy < 0.75
