"""What a parameter is: how it is declared, when it may change, and how the README shows a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

When = Literal["configure", "always", "start"]


@dataclass(frozen=True)
class Spec:
    """One parameter.

    Attributes:
        name: as in `ros2 param`.
        default: value when nobody sets it; its type is the parameter's type.
        description: one line, with the unit.
        when: `configure` can be set until the node is configured, `always` at any time, `start` only at start.
        low: smallest value of a number.
        high: largest value of a number.
        choices: the allowed strings.
    """

    name: str
    default: bool | int | float | str | tuple[str, ...] | tuple[float, ...]
    description: str
    when: When = "configure"
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    @property
    def limits(self) -> str:
        """The range in words, for the README."""
        if self.choices:
            return ", ".join(f"`{choice}`" if choice else "(empty)" for choice in self.choices)
        if self.low is not None and self.high is not None:
            return f"{self.low:.10g} to {self.high:.10g}"
        return ""

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows; ranges are enforced by rclpy itself."""
        result = ParameterDescriptor(description=self.description, read_only=self.when == "start")
        if self.choices:
            result.additional_constraints = "one of: " + ", ".join(repr(choice) for choice in self.choices)
        if self.low is not None and self.high is not None:
            if isinstance(self.default, float):
                result.floating_point_range = [
                    FloatingPointRange(from_value=float(self.low), to_value=float(self.high))
                ]
            else:
                result.integer_range = [IntegerRange(from_value=int(self.low), to_value=int(self.high), step=1)]
        return result

    def problem(self, value: Any) -> str:
        """Why a value is refused; empty if it is not. Ranges are rclpy's business."""
        if self.choices and value not in self.choices:
            return f"{self.name} is {value!r}; it must be one of {list(self.choices)}"
        return ""


def declare(node: Node, table: Sequence[Spec]) -> None:
    """Declares all parameters of a table and refuses values outside it from then on.

    Raises:
        rclpy.exceptions.InvalidParameterValueException: a value given at start is out of range.
        ValueError: a value given at start is not among the choices.
    """
    for spec in table:
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        value = node.declare_parameter(spec.name, default, spec.descriptor()).value
        if problem := spec.problem(value):
            raise ValueError(problem)


def check_change(table: Sequence[Spec], parameters: Sequence[Parameter], *, configured: bool) -> SetParametersResult:
    """Judges a change of parameters for `Node.add_on_set_parameters_callback`."""
    specs = {spec.name: spec for spec in table}
    for parameter in parameters:
        spec = specs.get(parameter.name)
        if spec is None:
            continue
        if configured and spec.when == "configure":
            reason = f"{spec.name} is read when the node is configured; clean it up first"
            return SetParametersResult(successful=False, reason=reason)
        if problem := spec.problem(parameter.value):
            return SetParametersResult(successful=False, reason=problem)
    return SetParametersResult(successful=True)


def markdown(table: Sequence[Spec]) -> str:
    """The table as the README shows it."""
    rows = ["| parameter | default | range | can be set | meaning |", "|---|---|---|---|---|"]
    words = {"start": "at start", "configure": "until configured", "always": "at any time"}
    for spec in table:
        default = list(spec.default) if isinstance(spec.default, tuple) else spec.default
        shown = f"`{str(default).lower() if isinstance(default, bool) else default}`" if default != "" else "(empty)"
        rows.append(f"| `{spec.name}` | {shown} | {spec.limits} | {words[spec.when]} | {spec.description} |")
    return "\n".join(rows)
