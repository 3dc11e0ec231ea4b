import copy

import pytest
import torch

from v2r_core.nn.lars import LARS


def run(dialect, rates, adapt=True):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator).requires_grad_()
    optimizer = LARS([{"params": [weight], "adapt": adapt}], lr=0.0, weight_decay=0.1, dialect=dialect)
    for rate in rates:
        optimizer.param_groups[0]["lr"] = rate
        weight.grad = torch.randn(4, 3, generator=generator)
        optimizer.step()
    return weight.detach()


def test_dialects_differ_only_under_a_schedule():
    torch.testing.assert_close(run("official", [0.1] * 4), run("simclr", [0.1] * 4))
    assert not torch.allclose(run("official", [0.4, 0.3, 0.1]), run("simclr", [0.4, 0.3, 0.1]), rtol=1e-4)


def test_unadapted_group_is_plain_momentum_with_its_weight_decay():
    plain = run("simclr", [0.1] * 3, adapt=False)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 3, generator=generator).requires_grad_()
    reference = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        weight.grad = torch.randn(4, 3, generator=generator)
        reference.step()
    torch.testing.assert_close(plain, weight.detach())


def test_gradients_are_left_alone_and_missing_ones_skipped():
    weight, idle = torch.ones(2, 2, requires_grad=True), torch.ones(2, 2, requires_grad=True)
    weight.grad = torch.full((2, 2), 0.5)
    LARS([weight, idle], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(weight.grad, torch.full((2, 2), 0.5))
    assert torch.equal(idle.detach(), torch.ones(2, 2))


def test_state_goes_on_after_loading():
    def fresh():
        weight = torch.ones(3, 2, requires_grad=True)
        return weight, LARS([weight], lr=0.1)

    first, optimizer = fresh()
    first.grad = torch.ones(3, 2)
    optimizer.step()
    second, other = fresh()
    second.data.copy_(first.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weight, stepper in ((first, optimizer), (second, other)):
        weight.grad = torch.full((3, 2), 2.0)
        stepper.step()
    assert torch.equal(first, second)


def test_closure_gives_the_loss():
    weight = torch.ones(2, 2, requires_grad=True)
    optimizer = LARS([weight], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizer.step(closure) == 4.0


def test_refuses_what_makes_no_sense():
    weight = torch.ones(2, 2, requires_grad=True)
    with pytest.raises(ValueError, match="lr is -1"):
        LARS([weight], lr=-1)
    with pytest.raises(ValueError, match="nesterov"):
        LARS([weight], lr=1, nesterov=True)
