"""What a run may change when it goes on: learning rates, their warm-up and the precision, where its loss was lost.

Rates are set before every step from the recipe and the number of the step alone, and the precision is one of the
passes, not of the weights. So from the step on with which it goes on, a run is one with the new values; what is before
stays. Everything else in a recipe has left traces in weights, queues or the order of the examples.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from v2r_core.methods.method import Recipe
from v2r_core.methods.runs import RUN, read_run
from v2r_core.training.checkpoint import write_json

ADJUSTABLE = ("lr", "base_lr", "start_lr", "min_lr", "final_lr", "warmup_epochs", "warmup_steps", "precision")
"""Fields of recipes that a run which goes on may have other values of, when it is told to (`RunOptions.adjust`)."""


@dataclass(frozen=True)
class Change:
    """A field of a recipe that has another value from now on."""

    field: str
    before: Any
    now: Any


def changes_of(run: Path, record: dict[str, Any]) -> list[Change]:
    """What `record` changes of the run that is in a folder; none where there is no run.

    Args:
        run: its folder.
        record: what is to go on, see `training.record.new_record`.
    """
    if not (run / RUN).is_file():
        return []
    before, now = read_run(run).get("recipe", {}), record["recipe"]
    both = [field for field in ADJUSTABLE if field in before and field in now]
    return [Change(field, before[field], now[field]) for field in both if before[field] != now[field]]


def without(changes: list[Change], record: dict[str, Any]) -> dict[str, Any]:
    """The record as it would be without the changes: what is compared with the run that is there."""
    return {**record, "recipe": record["recipe"] | {change.field: change.before for change in changes}}


def write_changes(run: Path, changes: list[Change], step: int) -> list[str]:
    """Puts the new values into a run's record, and under `changes` what they were and from which step on they count.

    Returns:
        A line for the log for each.
    """
    if not changes:
        return []
    record = read_run(run)
    record["recipe"] |= {change.field: change.now for change in changes}
    record["changes"] = [*record.get("changes", []), *({"step": step, **vars(change)} for change in changes)]
    write_json(run / RUN, record)
    return [f"from step {step} on {change.field} is {change.now}, it was {change.before}" for change in changes]


def advice(recipe_type: type[Recipe]) -> str:
    """What to do about a loss or weights that are not finite, with the options of a method."""
    known = {field.name for field in dataclasses.fields(recipe_type)}
    options = ", ".join("--" + name.replace("_", "-") for name in ADJUSTABLE if name in known)
    return (
        "Lower the learning rate, warm up longer or use precision 'no' or 'bf16', and go on with --resume --adjust; "
        f"what may change then is {options}. Where that does not help, first remove the newest folder of checkpoints/"
    )
