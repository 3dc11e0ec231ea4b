"""DrQ-v2's update as one writes it down from the paper: the yardstick of benchmarks/drqv2.py.

Bilinear shifts of float images, an encoder pass for each batch in torch's default memory format, gradients of all that
a loss depends on, an Adam of torch's default kind for each part, and the target critic tensor by tensor.
"""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from v2r_core.rl.drqv2 import (
    Draws,
    DrQv2Agent,
    actor_loss,
    critic_loss,
    td_target,
)
from v2r_core.rl.drqv2_recipe import schedule
from v2r_core.rl.replay import Batch
from v2r_core.rl.truncated_normal import normal_entropy, normal_log_prob, truncated_normal


def bilinear_shift(images: Tensor, shifts: Tensor, pad: int) -> Tensor:
    """Shifts (N, 2) of float images (N, C, S, S) by sampling a grid, as the paper's appendix has it."""
    count, _, side, _ = images.shape
    padded = functional.pad(images, (pad,) * 4, "replicate")
    width = side + 2 * pad
    line = torch.linspace(-1 + 1 / width, 1 - 1 / width, width, device=images.device)[:side]
    base = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1).expand(count, -1, -1, -1)
    grid = base + shifts.to(images.device)[:, None, None].float() * 2 / width
    return functional.grid_sample(padded, grid, padding_mode="zeros", align_corners=False)


class PlainUpdate:
    """Starts from the weights of an agent, and updates a copy of them.

    Args:
        agent: it is not changed.
    """

    def __init__(self, agent: DrQv2Agent) -> None:
        self.agent = agent
        self.recipe = agent.recipe
        self.networks = copy.deepcopy(agent.networks)
        for module in self.networks.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        rate = self.recipe.lr
        parts = [part for part in (self.networks.critic, self.networks.encoder) if list(part.parameters())]
        self.critic_optimizers = [torch.optim.Adam(part.parameters(), lr=rate) for part in parts]
        self.actor_optimizer = torch.optim.Adam(self.networks.actor.parameters(), lr=rate)

    def update(self, batch: Batch, step: int, draws: Draws) -> dict[str, float]:
        """One update; the same numbers as `DrQv2Agent.update`."""
        nets, clip, std = self.networks, self.recipe.noise_clip, schedule(self.recipe.noise, step)
        device = self.agent.device
        reward, discount = (torch.from_numpy(values)[:, None].to(device) for values in (batch.reward, batch.discount))
        draws = replace(draws, noise=draws.noise.to(device), next_noise=draws.next_noise.to(device))
        features = nets.encoder(self._augment(batch.observation, draws.shift))
        with torch.no_grad():
            following = nets.encoder(self._augment(batch.next_observation, draws.next_shift))
            next_action = truncated_normal(nets.actor(following), std, draws.next_noise, clip)
            target = td_target(reward, discount, *nets.critic_target(following, next_action))
        q1, q2 = nets.critic(features, torch.from_numpy(batch.action).to(device))
        fit = critic_loss(q1, q2, target)
        for optimizer in self.critic_optimizers:
            optimizer.zero_grad(set_to_none=True)
        fit.backward()
        for optimizer in self.critic_optimizers:
            optimizer.step()

        features = features.detach()
        mean = nets.actor(features)
        action = truncated_normal(mean, std, draws.noise, clip)
        gain = actor_loss(*nets.critic(features, action))
        self.actor_optimizer.zero_grad(set_to_none=True)
        gain.backward()
        self.actor_optimizer.step()

        rate = self.recipe.target_rate
        for source, slow in zip(nets.critic.parameters(), nets.critic_target.parameters(), strict=True):
            slow.data.copy_(rate * source.data + (1 - rate) * slow.data)
        return {
            "batch_reward": reward.mean().item(),
            "critic_target_q": target.mean().item(),
            "critic_q1": q1.mean().item(),
            "critic_q2": q2.mean().item(),
            "critic_loss": fit.item(),
            "actor_loss": gain.item(),
            "actor_logprob": normal_log_prob(action, mean, std).sum(-1).mean().item(),
            "actor_ent": self.agent.action_dim * float(normal_entropy(std)),
        }

    def _augment(self, observation: NDArray[np.generic], shifts: Tensor | None) -> Tensor:
        whole = torch.from_numpy(observation).reshape(len(observation), *self.agent.input_shape)
        joined = whole.to(self.agent.device).float()
        return joined if shifts is None else bilinear_shift(joined, shifts, self.recipe.shift)
