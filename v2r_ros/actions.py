"""From the numbers of a policy to the message that an actuator takes, within limits, and back to what was in force."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
from builtin_interfaces.msg import Duration, Time
from geometry_msgs.msg import TwistStamped
from numpy.typing import NDArray
from std_msgs.msg import Float64MultiArray, MultiArrayDimension

WhenUnsafe = Literal["zero", "hold"]
AXES = tuple(f"{part}.{axis}" for part in ("linear", "angular") for axis in "xyz")


class ActionMap:
    """command = clip(scale * action + offset, low, high), number by number.

    Attributes:
        dim: A, numbers in an action and in a command.
    """

    def __init__(
        self,
        dim: int,
        scale: Sequence[float] = (1.0,),
        offset: Sequence[float] = (0.0,),
        low: Sequence[float] = (-1.0,),
        high: Sequence[float] = (1.0,),
    ) -> None:
        """Each of the lists holds one number for all, or `dim` of them.

        Raises:
            ValueError: another length, a scale of 0, something not finite, or low above high.
        """
        self.dim = dim
        self._scale, self._offset = _spread("action_scale", scale, dim), _spread("action_offset", offset, dim)
        self._low, self._high = _spread("action_low", low, dim), _spread("action_high", high, dim)
        if (self._scale == 0).any():
            raise ValueError(f"action_scale is {list(scale)}; a number that is multiplied by 0 commands nothing")
        if (self._low > self._high).any():
            raise ValueError(f"action_low {list(low)} lies above action_high {list(high)}")

    def command(self, action: NDArray[np.float32]) -> NDArray[np.float64]:
        """What is published for an action, (A,) in [-1, 1]; float64 (A,).

        Raises:
            ValueError: another shape, or not finite.
        """
        if action.shape != (self.dim,) or not np.isfinite(action).all():
            raise ValueError(f"action {action.tolist()} is not {self.dim} finite numbers")
        return np.clip(self._scale * action + self._offset, self._low, self._high)

    def check_zero(self) -> None:
        """Refuses limits that leave out 0, which stops the robot where when_unsafe is zero.

        Raises:
            ValueError: 0 lies below action_low or above action_high for some number.
        """
        for number, (low, high) in enumerate(zip(self._low, self._high, strict=True)):
            if not low <= 0 <= high:
                raise ValueError(
                    f"when_unsafe is zero, but number {number} of a command has to lie in {low:g} to {high:g} "
                    "(action_low, action_high), where 0 is not; let them include it, or set when_unsafe to hold where "
                    "the numbers are positions"
                )

    def action(self, command: NDArray[np.float64]) -> NDArray[np.float32]:
        """The action in [-1, 1] that a command stands for: what is recorded as done, float32 (A,)."""
        return np.clip((command - self._offset) / self._scale, -1, 1).astype(np.float32)


class ActionMessages:
    """Makes messages of one type out of commands.

    Attributes:
        kind: the message class.
    """

    def __init__(
        self,
        action_type: str,
        dim: int,
        *,
        twist_axes: Sequence[str] = (),
        joint_names: Sequence[str] = (),
        joint_command: str = "positions",
        frame_id: str = "",
        period: float = 0.1,
    ) -> None:
        """Checks that the parameters fit the policy.

        Args:
            action_type: `float64_multi_array`, `twist_stamped` or `joint_trajectory`.
            dim: numbers in a command.
            twist_axes: axis of each number, e.g. linear.x.
            joint_names: joint of each number.
            joint_command: `positions` or `velocities`.
            frame_id: of a twist.
            period: seconds until a joint has to be where it is told to be.

        Raises:
            ValueError: a list has another length than the command, a name is unknown, empty or there twice, or the
                message package is not installed.
        """
        self._dim, self._frame_id, self._period = dim, frame_id, period
        self._axes, self._joints, self._field = list(twist_axes), list(joint_names), joint_command
        self.kind: type
        self._make: Callable[[list[float], Time], Any]
        if action_type == "float64_multi_array":
            self.kind, self._make = Float64MultiArray, self._array
        elif action_type == "twist_stamped":
            _check_names("twist_axes", self._axes, dim, AXES)
            self.kind, self._make = TwistStamped, self._twist
        else:
            _check_names("joint_names", self._joints, dim)
            self._trajectories = _trajectory_messages()
            self.kind, self._make = self._trajectories.JointTrajectory, self._trajectory

    def __call__(self, command: NDArray[np.float64], stamp: Time) -> Any:
        """The message of a command, (A,); `stamp` is the moment of publication, for headers that want it."""
        return self._make(command.tolist(), stamp)

    def _array(self, numbers: list[float], stamp: Time) -> Float64MultiArray:
        message = Float64MultiArray(data=numbers)
        message.layout.dim = [MultiArrayDimension(label="action", size=self._dim, stride=self._dim)]
        return message

    def _twist(self, numbers: list[float], stamp: Time) -> TwistStamped:
        message = TwistStamped()
        message.header.stamp, message.header.frame_id = stamp, self._frame_id
        for axis, number in zip(self._axes, numbers, strict=True):
            part, _, name = axis.partition(".")
            setattr(getattr(message.twist, part), name, number)
        return message

    def _trajectory(self, numbers: list[float], stamp: Time) -> Any:
        # The header's stamp stays 0, which means at once: a point that a late message puts in the past is dropped.
        point = self._trajectories.JointTrajectoryPoint(**{self._field: numbers})
        seconds = int(self._period)
        point.time_from_start = Duration(sec=seconds, nanosec=int((self._period - seconds) * 1e9))
        return self._trajectories.JointTrajectory(joint_names=self._joints, points=[point])


def check_when_unsafe(when_unsafe: str, action_type: str, joint_command: str) -> None:
    """Refuses a way to stop that does not stop.

    Raises:
        ValueError: velocities that are held go on moving, and zero is a position like any other.
    """
    positions = action_type == "joint_trajectory" and joint_command == "positions"
    if when_unsafe == "zero" and positions:
        raise ValueError("when_unsafe is zero, but joint positions of 0 are a motion; set it to hold")
    if when_unsafe == "hold" and action_type != "float64_multi_array" and not positions:
        raise ValueError(f"when_unsafe is hold, but a velocity that is held goes on ({action_type}); set it to zero")


def _spread(name: str, numbers: Sequence[float], dim: int) -> NDArray[np.float64]:
    values = np.asarray(numbers, np.float64)
    if len(values) not in (1, dim):
        raise ValueError(f"{name} has {len(values)} numbers, the policy has {dim}; give one for all, or {dim}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} is {list(numbers)}; finite numbers expected")
    return np.broadcast_to(values, (dim,)).copy()


def _check_names(parameter: str, names: Sequence[str], dim: int, allowed: Sequence[str] = ()) -> None:
    if len(names) != dim or "" in names or len(set(names)) < len(names):
        raise ValueError(f"{parameter} is {list(names)}; the policy's {dim} numbers need a name of its own each")
    if unknown := [name for name in names if allowed and name not in allowed]:
        raise ValueError(f"{parameter} has {unknown}; use names out of {list(allowed)}")


def _trajectory_messages() -> Any:
    try:
        import trajectory_msgs.msg  # noqa: PLC0415 (of all the messages here the only one that few need)
    except ImportError as error:
        raise ValueError("joint_trajectory needs trajectory_msgs; install ros-jazzy-trajectory-msgs") from error
    return trajectory_msgs.msg
