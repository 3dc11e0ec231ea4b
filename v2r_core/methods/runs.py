"""A finished or running training as something to start from: its record, and the method with its newest weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from v2r_core.encoders.checkpoints import CheckpointError, load_strict, read_run_state
from v2r_core.methods import load_method
from v2r_core.methods.method import Horizon, Method, Recipe

RUN = "run.json"


def read_run(run: str | Path) -> dict[str, Any]:
    """What `run.json` says.

    Raises:
        CheckpointError: not a run.
    """
    file = Path(run).expanduser() / RUN
    if not file.is_file():
        raise CheckpointError(f"{file.parent}: no {RUN} in it; give the folder that `v2r train --out` wrote")
    try:
        content: dict[str, Any] = json.loads(file.read_text())
    except ValueError as error:
        raise CheckpointError(f"{file}: damaged ({error}); restore it from a backup or train again") from error
    return content


def recipe_of(record: Mapping[str, Any], run: str | Path) -> Recipe:
    """The recipe that stands in a run's record.

    Raises:
        CheckpointError: a field that the method's recipe does not have, or lacks.
    """
    recipe_type = load_method(record["method"]).recipe_type
    known = {field.name for field in dataclasses.fields(recipe_type)}
    if unknown := sorted(set(record["recipe"]) - known):
        raise CheckpointError(
            f"{run}: recipe fields {', '.join(unknown)} are unknown; it was trained by another version"
        )
    # JSON knows lists only, recipes only tuples.
    values = {key: tuples(value) for key, value in record["recipe"].items()}
    return recipe_type(**values)


def method_of_run(run: str | Path) -> Method:
    """The method of a run, with the weights of its newest checkpoint.

    Raises:
        CheckpointError: not a run, no checkpoint, or one that does not fit.
    """
    record = read_run(run)
    method = load_method(record["method"])(recipe_of(record, run), Horizon(**record["horizon"]))
    load_strict(method, read_run_state(run), str(run))
    return method


def tuples(value: Any) -> Any:
    """Lists, which is all that JSON knows, as tuples, at any depth."""
    return tuple(tuples(item) for item in value) if isinstance(value, list) else value
