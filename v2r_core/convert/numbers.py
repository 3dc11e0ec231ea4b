"""Numbers out of messages: what of a message becomes the entries of a feature, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Number
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.typesys.store import Typestore

from v2r_core.convert.parts import ConvertError

JOINT_STATE, TRAJECTORY = "sensor_msgs/msg/JointState", "trajectory_msgs/msg/JointTrajectory"


def has_header(types: Typestore, msgtype: str) -> bool:
    """Whether a message begins with a std_msgs/Header."""
    _, fields = types.fielddefs[msgtype]
    return bool(fields) and "std_msgs/msg/Header" in fields[0][1]


class NumberReader:
    """Takes the numbers of one stream out of its messages.

    * sensor_msgs/JointState: positions, or the array that the path names. The first message fixes which joints there
      are and their order; others are brought into that order.
    * trajectory_msgs/JointTrajectory: positions of the last point, in the order of the joints as above. The first
      point of a planned motion is often where the robot is already; the last one is where it is told to go.
    * std_msgs/...MultiArray: `data`.
    * Any other message, or what the path leads to: all its numbers, field by field, but the header.

    Attributes:
        names: of the entries, None where they are those of an array; known after the first message.
        length: number of entries; known after the first message.
    """

    def __init__(self, topic: str, msgtype: str, path: str = "") -> None:
        """Only names things.

        Args:
            topic: for messages.
            msgtype: of its messages.
            path: dotted names of fields; empty: see above.
        """
        self._topic, self._type, self._path = topic, msgtype, path
        self.names: tuple[str, ...] | None = None
        self.length = 0
        self._known = False

    def read(self, message: Any) -> NDArray[np.float32]:
        """Its numbers, float32 (N,).

        Raises:
            ConvertError: a joint is missing, the number of entries changes, or there is something else than numbers.
        """
        names, values = self._named(message)
        if not self._known:
            if not len(values):
                raise ConvertError(f"{self._topic}: {self._type} has no numbers in {self._path or 'it'}; leave it out")
            self.names, self.length, self._known = names, len(values), True
        if names is not None and names != self.names:
            values = self._in_order(names, values)
        if len(values) != self.length:
            raise ConvertError(
                f"{self._topic}: {len(values)} numbers in a message, {self.length} in the first one; convert parts of "
                "the recording by themselves"
            )
        return values.astype(np.float32)

    def _in_order(self, names: tuple[str, ...], values: NDArray[np.float64]) -> NDArray[np.float64]:
        assert self.names is not None
        places = {name: place for place, name in enumerate(names)}
        if missing := [name for name in self.names if name not in places]:
            raise ConvertError(
                f"{self._topic}: no joint {missing[0]!r} in a message, which has {', '.join(names) or 'none'}; the "
                f"first one has {', '.join(self.names)}. Record publishers of different joints on topics of their own"
            )
        return values[[places[name] for name in self.names]]

    def _named(self, message: Any) -> tuple[tuple[str, ...] | None, NDArray[np.float64]]:
        if self._type == JOINT_STATE and self._path in ("", "position", "velocity", "effort"):
            field = self._path or "position"
            return self._joints(message.name, getattr(message, field), field)
        if self._type == TRAJECTORY and not self._path:
            if not message.points:
                raise ConvertError(f"{self._topic}: a trajectory without points; leave such messages out of the bag")
            return self._joints(message.joint_names, message.points[-1].positions, "positions")
        if self._type.endswith("MultiArray") and not self._path:
            return None, np.asarray(message.data, np.float64).ravel()
        found = list(self._flat(self._follow(message), ""))
        values = np.array([value for _, value in found], np.float64)
        # An array by itself has no names for its entries.
        return (None if found and found[0][0].startswith("[") else tuple(name for name, _ in found)), values

    def _joints(
        self, names: list[str], values: NDArray[np.float64], field: str
    ) -> tuple[tuple[str, ...], NDArray[np.float64]]:
        if len(names) != len(values):
            raise ConvertError(
                f"{self._topic}: {len(names)} joints and {len(values)} numbers in {field!r} of a message; name a field "
                f"that is filled in, as in --feature NAME={self._topic}:velocity"
            )
        return tuple(names), np.asarray(values, np.float64)

    def _follow(self, message: Any) -> Any:
        for name in self._path.split(".") if self._path else ():
            if not hasattr(message, name):
                there = ", ".join(each for each in getattr(message, "__dataclass_fields__", {}) if each[0] != "_")
                raise ConvertError(
                    f"{self._topic}: {self._type} has no field {self._path!r}; instead of {name!r} there is "
                    f"{there or 'nothing'}"
                )
            message = getattr(message, name)
        return message

    def _flat(self, value: Any, name: str) -> Iterator[tuple[str, float]]:
        """All numbers below a value with their dotted names."""
        if isinstance(value, Number | np.bool_):
            yield name or "value", float(value)  # type: ignore[arg-type]
        elif isinstance(value, np.ndarray | list | tuple):
            for place, each in enumerate(value):
                yield from self._flat(each, f"{name}[{place}]")
        elif hasattr(value, "__dataclass_fields__"):
            for each in value.__dataclass_fields__:
                if each not in ("header", "__msgtype__") and each.upper() != each:
                    yield from self._flat(getattr(value, each), f"{name}.{each}" if name else each)
        else:
            raise ConvertError(
                f"{self._topic}: {name or self._path or self._type} is {type(value).__name__}, no number; name a "
                f"field of numbers, as in --feature NAME={self._topic}:field.path"
            )
