"""From a run to a policy that a robot can load."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from v2r_core.deploy import graph
from v2r_core.deploy.bundle import load_bundle
from v2r_core.deploy.export_networks import OPSET, ExportError, checked_model
from v2r_core.deploy.policy import PolicyBundle, check_frames, write_policy
from v2r_core.rl.drqv2 import DrQv2Agent
from v2r_core.rl.drqv2_networks import PolicyNetwork
from v2r_core.rl.observation import Observer, make_observer
from v2r_core.rl.options import PIXELS, Checkpoint
from v2r_core.rl.runs import checkpoint_of, load_agent, recorded
from v2r_core.training.checkpoint import step_of
from v2r_core.training.log import read_metrics

_SEED = 0


def export_policy(
    run: str | Path,
    out: str | Path,
    *,
    rate: float | None = None,
    name: str | None = None,
    which: Checkpoint = "best",
) -> PolicyBundle:
    """Writes a checkpoint's actor, with the encoder that it sees through, and compares it with torch.

    Args:
        run: folder of a run of `v2r rl train`.
        out: folder of the policy; must hold none.
        rate: actions a second; None takes that of the training, in simulated time.
        name: identifier; by default the run's name.
        which: checkpoint.

    Raises:
        CheckpointError: not a run, or no checkpoint.
        BundleError: the folder holds a policy, or the graphs differ from torch.
        ExportError: the actor cannot be exported.
        ValueError: no rate, or one that is not above 0.
    """
    recipe, task, record = recorded(run)
    agent, seconds = load_agent(run, which)
    steps = step_of(checkpoint_of(run, which))
    rate = rate or 1 / seconds
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate is {rate}; the simulator does not say it: give the control rate in Hz")
    observer = make_observer(task.observation, recipe.size)
    frames = check_frames(_SEED, observer.preprocess.size, recipe.frame_stack)
    called = name or Path(run).expanduser().resolve().name
    training = {
        "task": task.env,
        "reward": f"{Path(task.reward).name}, {task.reward_mode}" if task.paid_by_bundle else task.reward,
        "recipe": f"DrQ-v2, {steps} environment steps, seed {record['options']['seed']}",
    }
    return write_policy(
        out,
        name=called,
        description=f"Acts in {task.env}, {agent.action_dim} numbers at {rate:.4g} Hz (DrQ-v2).",
        actor=_actor_graph(agent),
        action_dim=agent.action_dim,
        rate=rate,
        preprocess=observer.preprocess,
        frame_stack=recipe.frame_stack,
        encoder=None if task.observation == PIXELS else _encoder_graph(task.observation),
        expected=_answer(agent, observer, frames, recipe.frame_stack).tolist(),
        seed=_SEED,
        training=training,
        quality=_quality(run, steps),
    )


def actor_inputs(agent: DrQv2Agent) -> torch.Tensor:
    """Two observations as the actor takes them: uint8 (2, 3 K, S, S) or float32 (2, K * D)."""
    return torch.zeros(2, *agent.input_shape, dtype=torch.uint8 if agent.pixels else torch.float32)


def _actor_graph(agent: DrQv2Agent) -> bytes:
    network: PolicyNetwork = agent.policy_network()
    program = torch.onnx.export(
        network,
        (actor_inputs(agent),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["observation"],
        output_names=["action"],
        dynamic_shapes={"observation": {0: torch.export.Dim("batch")}},
        verbose=False,
    )
    content: bytes = graph.clean(checked_model(program, "actor")).SerializeToString(deterministic=True)
    return content


def _encoder_graph(observation: str) -> bytes:
    """The encoder of a bundle in one file, whatever files its weights lie in."""
    content: bytes = onnx.load(str(load_bundle(observation).graph("fp32"))).SerializeToString(deterministic=True)
    if len(content) > 2**31:
        raise ExportError(f"{observation}: its encoder has {len(content)} bytes, more than one ONNX file can hold")
    return content


def _answer(agent: DrQv2Agent, observer: Observer, frames: NDArray[np.uint8], stack: int) -> NDArray[np.float32]:
    """What torch says to the check frames, seen one by one after a reset."""
    rows = [observer(frame) for frame in frames][-stack:]
    return agent.act(np.stack(rows), 0, evaluate=True)


def _quality(run: str | Path, steps: int) -> dict[str, float]:
    """The newest evaluation in the run's log up to a checkpoint."""
    for line in reversed(read_metrics(run)):
        if line.get("eval/success") is not None and float(line["step"] or 0) <= steps:
            shown = {"success": "eval/success", "dense": "eval/dense", "steps_to_success": "eval/steps_to_success"}
            return {name: value for name, key in shown.items() if (value := line.get(key)) is not None}
    return {}
