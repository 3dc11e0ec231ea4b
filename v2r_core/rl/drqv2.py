"""DrQ-v2 (Yarats et al., ICLR 2022): a deterministic actor and twin critics, learned from shifted pixels.

    y = r_t + ... + gamma^(n-1) r_(t+n-1) + gamma^n min(Q1', Q2')(h_(t+n), pi(h_(t+n)) + clip(noise))
    critic: (Q1 - y)^2 + (Q2 - y)^2, encoder included    actor: -min(Q1, Q2)(h, pi(h) + clip(noise)), encoder not

DDPG with n-step returns, twin critics, random shifts and a falling exploration noise (section 3). On frozen embeddings
in place of pixels the same agent has neither encoder nor shifts: that is TD3 with DrQ-v2's noise.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from v2r_core.rl.drqv2_networks import Networks, PolicyNetwork, encode
from v2r_core.rl.drqv2_recipe import DrQv2Recipe, schedule
from v2r_core.rl.random_shift import draw_shifts, random_shift
from v2r_core.rl.replay import Batch
from v2r_core.rl.truncated_normal import normal_entropy, normal_log_prob, truncated_normal


def td_target(reward: Tensor, discount: Tensor, q1: Tensor, q2: Tensor) -> Tensor:
    """What the critics are to say (equation 2): n-step reward plus the discounted smaller value; (B, 1)."""
    return reward + discount * torch.minimum(q1, q2)


def critic_loss(q1: Tensor, q2: Tensor, target: Tensor) -> Tensor:
    """Sum of the mean squared errors of both critics, (B, 1) each; scalar."""
    return functional.mse_loss(q1, target) + functional.mse_loss(q2, target)


def actor_loss(q1: Tensor, q2: Tensor) -> Tensor:
    """Minus the mean of the smaller value (equation 3); scalar."""
    return -torch.minimum(q1, q2).mean()


@dataclass(frozen=True)
class Draws:
    """All that chance decides in an update of B transitions; see `DrQv2Agent.draw`.

    Attributes:
        shift: of the observations, int64 (B, 2), x and y; None for embeddings.
        next_shift: of the observations that follow.
        next_noise: of the actions that follow, standard normal (B, A).
        noise: of the actor's actions.
    """

    shift: Tensor | None
    next_shift: Tensor | None
    next_noise: Tensor
    noise: Tensor


class DrQv2Agent:
    """Acts, and learns from batches of the replay.

    Everything random comes from `generator`: equal seeds, batches and calls give equal numbers, and so does an agent
    that was restored by `load_state_dict`.

    Args:
        recipe: the settings.
        observation: shape of one frame of the replay: (3, S, S) for pixels, (D,) for embeddings.
        action_dim: A.
        seed: of weights, exploration, shifts and noise.
        device: where the networks live; draws are made on the CPU, and so equal on every device.

    Raises:
        ValueError: frames of another shape, or too small.
    """

    def __init__(
        self,
        recipe: DrQv2Recipe,
        observation: tuple[int, ...],
        action_dim: int,
        *,
        seed: int = 0,
        device: str | torch.device = "cpu",
    ) -> None:
        self.recipe = recipe
        self.action_dim = action_dim
        self.device = torch.device(device)
        self.generator = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):  # layers draw their first weights from the global generator
            torch.manual_seed(seed)
            self.networks = Networks(recipe, observation, action_dim).to(self.device)
        self.pixels = len(observation) > 1
        self.input_shape = (recipe.frame_stack * observation[0], *observation[1:])
        nets = self.networks
        # One Adam for critic and encoder is the authors' two: it treats every tensor for itself.
        self.critic_optimizer = torch.optim.Adam(
            [*nets.encoder.parameters(), *nets.critic.parameters()], lr=recipe.lr, fused=True
        )
        self.actor_optimizer = torch.optim.Adam(nets.actor.parameters(), lr=recipe.lr, fused=True)

    @torch.no_grad()
    def act(self, observation: NDArray[Any], step: int, *, evaluate: bool = False) -> NDArray[np.float32]:
        """The action for one observation.

        Args:
            observation: uint8 (K, 3, S, S) or (3 K, S, S), or float (K, D) or (K * D,), oldest frame first.
            step: of the agent, from 0; decides the noise.
            evaluate: the mean, without noise; draws nothing.

        Returns:
            float32 (A,) in [-1, 1].

        Raises:
            ValueError: another shape or dtype.
        """
        mean = self.networks.actor(self.networks.encoder(self._observation(observation, 1)))
        if evaluate:
            return mean[0].cpu().numpy()
        noise = torch.randn(mean.shape, generator=self.generator).to(self.device)
        action = truncated_normal(mean, schedule(self.recipe.noise, step), noise).cpu()
        if step < self.recipe.exploration_steps:  # after the noise, as in the release: the same stream of numbers
            action.uniform_(-1.0, 1.0, generator=self.generator)
        return action[0].numpy()

    def draw(self, batch: int) -> Draws:
        """Draws for an update, in the order of the released code."""
        shifts = [draw_shifts(batch, self.recipe.shift, self.generator) if self.pixels else None for _ in range(2)]
        noises = [torch.randn(batch, self.action_dim, generator=self.generator) for _ in range(2)]
        return Draws(shifts[0], shifts[1], noises[0], noises[1])

    def update(self, batch: Batch, step: int, draws: Draws | None = None) -> dict[str, float]:
        """One step of critic and encoder, then of the actor, then of the target critic (algorithm 1).

        Args:
            batch: B transitions; observations (B, K, *frame) or with frames and channels joined.
            step: of the agent; decides the noise. The caller keeps to `update_every` and `seed_frames`.
            draws: in place of the agent's own.

        Returns:
            What the released code logs: `batch_reward`, `critic_target_q`, `critic_q1`, `critic_q2`, `critic_loss`,
            `actor_loss`, `actor_logprob` and `actor_ent` (summed over dimensions).

        Raises:
            ValueError: observations of another shape or dtype.
            FloatingPointError: the critic's loss is not finite; nothing was changed.
        """
        nets, count = self.networks, len(batch.action)
        draws = draws or self.draw(count)
        std = schedule(self.recipe.noise, step)
        images = self._augment(self._observation(batch.observation, count), draws.shift)
        following = self._augment(self._observation(batch.next_observation, count), draws.next_shift)
        features = encode(nets.encoder, images)
        target = self._target(batch, following, draws.next_noise, std)
        q1, q2 = nets.critic(features, self._column(batch.action, count))
        fit = critic_loss(q1, q2, target)
        if not math.isfinite(fit.item()):
            raise FloatingPointError(f"loss of the critic is {fit.item()} at step {step}; take a smaller lr or rewards")
        self.critic_optimizer.zero_grad(set_to_none=True)
        fit.backward()
        self.critic_optimizer.step()
        gain, log_prob = self._update_actor(features.detach(), draws.noise, std)
        with torch.no_grad():
            torch._foreach_lerp_(
                list(nets.critic_target.parameters()), list(nets.critic.parameters()), self.recipe.target_rate
            )
        means = torch.stack([target.mean(), q1.mean(), q2.mean(), fit, gain, log_prob]).detach().tolist()
        names = ("critic_target_q", "critic_q1", "critic_q2", "critic_loss", "actor_loss", "actor_logprob")
        entropy = self.action_dim * float(normal_entropy(std))
        return {
            "batch_reward": float(batch.reward.mean()),
            **dict(zip(names, means, strict=True)),
            "actor_ent": entropy,
        }

    def policy_network(self) -> PolicyNetwork:
        """A copy of encoder and actor on the CPU, to be exported or to act elsewhere."""
        return copy.deepcopy(PolicyNetwork(self.networks.encoder, self.networks.actor)).cpu().eval()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training goes on from: networks, optimizers and the generator's state."""
        return {
            "networks": self.networks.state_dict(),
            "critic_optimizer": self.critic_optimizer.state_dict(),
            "actor_optimizer": self.actor_optimizer.state_dict(),
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` gave, for an agent of the same recipe and shapes.

        Raises:
            RuntimeError: tensors are missing, unknown or of another shape; torch names them.
        """
        self.networks.load_state_dict(state["networks"])
        self.critic_optimizer.load_state_dict(state["critic_optimizer"])
        self.actor_optimizer.load_state_dict(state["actor_optimizer"])
        self.generator.set_state(state["generator"].cpu())

    @torch.no_grad()
    def _target(self, batch: Batch, following: Tensor, noise: Tensor, std: float) -> Tensor:
        count = len(batch.action)
        features = encode(self.networks.encoder, following)
        action = truncated_normal(self.networks.actor(features), std, noise.to(self.device), self.recipe.noise_clip)
        values = self.networks.critic_target(features, action)
        return td_target(self._column(batch.reward, count), self._column(batch.discount, count), *values)

    def _update_actor(self, features: Tensor, noise: Tensor, std: float) -> tuple[Tensor, Tensor]:
        nets = self.networks
        with torch.no_grad():
            trunk = nets.critic.trunk(features)
        mean = nets.actor(features)
        action = truncated_normal(mean, std, noise.to(self.device), self.recipe.noise_clip)
        loss = actor_loss(*nets.critic.values(trunk, action))
        self.actor_optimizer.zero_grad(set_to_none=True)
        # The critic's weights get no gradient from here, and none is computed.
        loss.backward(inputs=list(nets.actor.parameters()))
        self.actor_optimizer.step()
        return loss, normal_log_prob(action.detach(), mean.detach(), std).sum(-1).mean()

    def _augment(self, observation: Tensor, shifts: Tensor | None) -> Tensor:
        return observation if shifts is None else random_shift(observation, shifts, self.recipe.shift)

    def _observation(self, observation: NDArray[Any], count: int) -> Tensor:
        kind, shape = "uint8" if self.pixels else "float", (count, *self.input_shape)
        if observation.size != math.prod(shape) or kind not in str(observation.dtype):
            raise ValueError(f"observations are {observation.dtype} {observation.shape}, {kind} {shape} expected")
        return torch.from_numpy(np.require(observation, requirements=["C", "W"])).reshape(shape).to(self.device)

    def _column(self, values: NDArray[Any], count: int) -> Tensor:
        return torch.from_numpy(values).reshape(count, -1).to(self.device)
