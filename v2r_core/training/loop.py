"""The one loop that trains every method: on a CPU, a GPU, or many of them with `accelerate launch`.

    for each step: micro-batches -> loss -> backward; gradients as the paper clips them; optimizer; averaged networks

Everything that a run needs to go on is in its folder. A run that was killed and resumed continues with the same
examples, random numbers and losses as one that was not.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from PIL import Image
from torch import Tensor

from v2r_core.methods import load_method
from v2r_core.methods.method import Batch, Horizon, Method, Recipe, Step
from v2r_core.methods.runs import RUN
from v2r_core.training import checkpoint
from v2r_core.training.adjusting import advice, changes_of, without, write_changes
from v2r_core.training.collapse import CollapseWatch
from v2r_core.training.features import frame_features
from v2r_core.training.log import RunLog
from v2r_core.training.options import RunOptions
from v2r_core.training.record import claim, new_record, with_whole_paths
from v2r_core.training.signals import stop_signals
from v2r_core.video.batches import finish, make_loader
from v2r_core.video.clips import ClipDataset, steps_per_epoch
from v2r_core.video.footage import find_videos
from v2r_core.video.labels import Labels, read_labels

_SHOWN_CLASSES = 20
"""Classes that the log names."""


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step, why, and what is left on disk."""


def train(
    method_name: str, recipe: Recipe, sources: Sequence[str | Path], out: str | Path, options: RunOptions
) -> Path:
    """Trains a method on videos.

    Args:
        method_name: see `v2r_core.methods.METHODS`.
        recipe: of that method.
        sources: video files, folders of images, bags, LeRobotDatasets, and folders of all these; see `find_videos`.
        out: folder of the run; made if need be.
        options: how to train.

    Returns:
        The run's folder.

    Raises:
        ValueError: settings or data that do not fit; a folder that holds a run, without `resume`; a run of another
            method or recipe, with it.
        TrainingError: loss or weights are not finite, or the last checkpoint could not be saved.
    """
    run = Path(out).expanduser()
    recipe = with_whole_paths(recipe, recipe.paths, RUN)
    accelerator = Accelerator(
        mixed_precision=recipe.precision,
        cpu=options.cpu,
        # Every process keeps its own batch norm statistics; queues and centres agree by construction.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )
    method_type = load_method(method_name)
    videos = find_videos(sources)
    labels = _labels(method_type, options, videos)
    if labels is not None and method_type.labels == "required":
        videos = [video for video in videos if video in labels.of_video]
    dataset = ClipDataset(videos, method_type.data(recipe), seed=options.seed, every=options.every, cache=options.cache)
    micro = _micro_batch(recipe, options, accelerator.num_processes)
    horizon = Horizon(steps_per_epoch(len(dataset), recipe.batch_size), recipe.epochs, recipe.batch_size, len(dataset))
    # The same weights on every process; different dropout afterwards.
    torch.manual_seed(options.seed)
    method = method_type(recipe, horizon)
    method.check_videos([source.path for source in dataset.sources])
    if not (options.resume and checkpoint.list_checkpoints(run)):
        method.begin()
    record = new_record(method_name, recipe, horizon, dataset)
    record |= {
        "options": {
            "seed": options.seed,
            "accumulate": options.accumulate,
            "every": options.every,
            "label_fraction": options.label_fraction,
        },
        "classes": list(labels.classes) if labels is not None else [],
        "processes": accelerator.num_processes,
    }
    changes = changes_of(run, record) if options.resume and options.adjust else []
    if accelerator.is_main_process or options.resume:
        claim(run, without(changes, record), options.resume)
    accelerator.wait_for_everyone()
    optimizer = method.optimizer()
    wrapped, stepper = accelerator.prepare(method, optimizer)
    torch.manual_seed(options.seed * 1000 + accelerator.process_index)
    start = _restore(run, method, optimizer, accelerator) if options.resume else 0
    news = write_changes(run, changes, start) if accelerator.is_main_process else []
    frozen = method.frozen()
    if frozen is not None:
        dataset.features = frame_features(frozen, dataset, accelerator.device, options.cache)
    last = min(horizon.steps, options.stop_after) if options.stop_after else horizon.steps
    loader = make_loader(
        dataset,
        micro,
        workers=options.workers,
        start_step=start * options.accumulate,
        rank=accelerator.process_index,
        world=accelerator.num_processes,
        steps=(last - start) * options.accumulate,
        device=accelerator.device,
    )
    # Before anything starts a thread: a worker is forked, and what a thread holds at that moment stays held in it.
    batches = iter(loader)
    trainer = _Trainer(run, accelerator, wrapped, method, stepper, options, labels)
    with RunLog(run, horizon.steps, start, accelerator.is_main_process) as log, stop_signals() as stopping:
        for line in [*news, *(f"skipped {name}: {reason}" for name, reason in dataset.skipped)]:
            log.say(line)
        if labels is not None:
            log.say(f"{len(labels.classes)} classes: {', '.join(labels.classes[:_SHOWN_CLASSES])}")
        trainer.run(batches, start, last, log, stopping)
    accelerator.end_training()
    return run


class _Trainer:
    """The loop's body, with what it needs at hand."""

    def __init__(
        self,
        run: Path,
        accelerator: Accelerator,
        wrapped: Any,
        method: Method,
        stepper: Any,
        options: RunOptions,
        labels: Labels | None,
    ) -> None:
        self.run_folder = run
        self.accelerator = accelerator
        self.wrapped = wrapped
        self.method = method
        self.stepper = stepper
        self.options = options
        self.labels = labels
        self.watch = CollapseWatch(max(50, method.horizon.steps // 10))
        self.damaged: set[str] = set()

    def run(self, batches: Iterator[Batch], start: int, last: int, log: RunLog, stopping: list[int]) -> None:
        """Steps `start` to `last`, or to the one in which a signal arrives."""
        self.wrapped.train()
        epoch_length = self.method.horizon.steps_per_epoch
        began, waited, seen = time.perf_counter(), 0.0, 0
        done = start
        batch: Batch | None = None
        for step in range(start, last):
            outcomes = []
            for number in range(self.options.accumulate):
                asked = time.perf_counter()
                batch = finish(next(batches), self.accelerator.device)
                waited += time.perf_counter() - asked
                if self.labels is not None:
                    found = self.labels.of_names(batch["names"])
                    batch["labels"] = torch.tensor(found, device=self.accelerator.device)
                self._report_damaged(batch, log)
                outcomes.append(self._backward(batch, step, number))
                seen += len(batch["names"])
            numbers = self._update(step)
            done = step + 1
            for outcome in outcomes:
                self.watch.add(outcome.features, outcome.teacher_probs)
            if done % self.options.log_every == 0 or done in (start + 1, last):
                numbers |= _mean_metrics(outcomes)
                looked, verdict = self.watch.look(done)
                elapsed = time.perf_counter() - began
                numbers |= looked | {
                    "epoch": step / epoch_length,
                    "examples_per_s": seen * self.accelerator.num_processes / elapsed,
                    "waiting_for_data": waited / elapsed,
                }
                log.step(done, numbers, _text(numbers))
                if verdict:
                    log.say(f"step {done}: {verdict.text}")
            else:
                log.advance(done)
            if stopping:
                log.say(f"signal {stopping[0]}: saving at step {done}; go on with --resume")
                break
            if done % self.options.save_every == 0 and done < last:
                self._save(done, log, final=False)
        if done > start:
            self._save(done, log, final=True)
            self._picture(batch, done)

    def _backward(self, batch: Batch, step: int, number: int) -> Step:
        accelerator = self.accelerator
        last = number == self.options.accumulate - 1
        # Gradients are exchanged once a step, with the last of its batches.
        with contextlib.nullcontext() if last else accelerator.no_sync(self.wrapped):
            outcome = cast(Step, self.wrapped(batch, step))
            if not bool(torch.isfinite(outcome.loss.detach())):
                raise TrainingError(self._dump(batch, step, outcome))
            accelerator.backward(outcome.loss / self.options.accumulate)
        return outcome

    def _update(self, step: int) -> dict[str, float]:
        values = set_rates(self.stepper, self.method, step)
        self.accelerator.unscale_gradients(self.stepper)
        norms = self.method.adjust_gradients(step)
        self.stepper.step()
        self.stepper.zero_grad(set_to_none=True)
        self.method.after_step(step)
        return values | norms

    def _save(self, done: int, log: RunLog, final: bool) -> None:
        accelerator = self.accelerator
        if broken := checkpoint.not_finite(self.method.named_parameters()):
            # A run that went on from them could only end again.
            told = advice(self.method.recipe_type)
            raise TrainingError(
                f"step {done}: weights are not finite: {broken[0]}; no checkpoint is made of them. {told}"
            )
        lost: OSError | None = None
        try:
            checkpoint.write_rng(self.run_folder, done, accelerator.process_index)
        except OSError as error:
            lost = error
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else {}
            optimizer = self.stepper.optimizer
            try:
                if lost is not None:
                    raise lost
                checkpoint.save_checkpoint(self.run_folder, done, self.method, optimizer, scaler, self.options.keep)
            except OSError as error:
                lost = error
                checkpoint.drop_partial(self.run_folder, done)
        if lost is not None and final:
            raise TrainingError(f"step {done}: the last checkpoint is lost: {lost}") from lost
        if lost is not None:
            # A full disk must not end a run that may have space again by the next checkpoint.
            log.say(f"step {done}: {lost}")
        accelerator.wait_for_everyone()

    def _dump(self, batch: Batch, step: int, outcome: Step) -> str:
        folder = self.run_folder / f"not-finite-step-{step}-rank-{self.accelerator.process_index}"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"views.{number}": view for number, view in enumerate(batch.get("views", []))}
        tensors |= {key: value for key, value in batch.items() if isinstance(value, Tensor)}
        checkpoint.save_tensors(tensors, folder / "batch.safetensors")
        state = self.method.state_dict()
        checkpoint.save_tensors(state, folder / "method.safetensors")
        metrics = {key: float(value) for key, value in outcome.metrics.items()}
        broken = checkpoint.not_finite(state.items())
        checkpoint.write_json(
            folder / "batch.json",
            {
                "step": step,
                "names": batch["names"],
                "metrics": {k: repr(v) for k, v in metrics.items()},
                "not_finite": broken,
            },
        )
        names = ", ".join(batch["names"][:4]) + (", ..." if len(batch["names"]) > 4 else "")
        reason = f"weights are not finite: {broken[0]}" if broken else "weights are finite"
        return (
            f"step {step}: the loss is {float(outcome.loss.detach())} ({reason}) on {names}; "
            f"batch and weights are in {folder}. {advice(self.method.recipe_type)}"
        )

    def _report_damaged(self, batch: Batch, log: RunLog) -> None:
        for name in batch.get("damaged", []):
            if name not in self.damaged:
                self.damaged.add(name)
                log.say(f"damaged frame {name}: replaced by another example of the batch ({len(self.damaged)} so far)")

    def _picture(self, batch: Batch | None, done: int) -> None:
        if batch is None or not self.accelerator.is_main_process:
            return
        picture = self.method.picture(batch)
        if picture is not None:
            Image.fromarray(picture).save(self.run_folder / f"picture-{done:08d}.png")


def _labels(method_type: type[Method], options: RunOptions, videos: Sequence[str]) -> Labels | None:
    if method_type.labels == "required" and not options.labels:
        raise ValueError(f"{method_type.name} needs labels; give --labels folders, or a CSV file")
    if method_type.labels == "unused" and options.labels:
        raise ValueError(f"{method_type.name} uses no labels; leave --labels away")
    if not options.labels:
        return None
    return read_labels(options.labels, videos).fraction(options.label_fraction, options.seed)


def set_rates(optimizer: torch.optim.Optimizer, method: Method, step: int) -> dict[str, float]:
    """Gives every group its learning rate and weight decay for a step; returns the method's whole schedule."""
    values = method.schedule(step)
    for group in optimizer.param_groups:
        group["lr"] = values[group.get("lr_key", "lr")] * group.get("lr_scale", 1.0)
        group["weight_decay"] = values["weight_decay"] * group.get("wd_scale", 1.0)
    return values


def _micro_batch(recipe: Recipe, options: RunOptions, processes: int) -> int:
    parts = processes * options.accumulate
    if recipe.batch_size % parts:
        raise ValueError(
            f"batch_size {recipe.batch_size} is no multiple of {processes} processes x {options.accumulate} "
            f"accumulated batches; choose a multiple of {parts}"
        )
    return recipe.batch_size // parts


def _restore(run: Path, method: Method, optimizer: torch.optim.Optimizer, accelerator: Accelerator) -> int:
    if not checkpoint.list_checkpoints(run):
        return 0
    newest = checkpoint.latest_checkpoint(run)
    state = checkpoint.restore(newest, method, optimizer)
    if accelerator.scaler is not None and state["scaler"]:
        accelerator.scaler.load_state_dict(state["scaler"])
    checkpoint.restore_rng(newest, accelerator.process_index)
    return int(state["step"])


def _mean_metrics(outcomes: Sequence[Step]) -> dict[str, float]:
    numbers = {"loss": sum(float(outcome.loss.detach()) for outcome in outcomes) / len(outcomes)}
    for key in outcomes[0].metrics:
        numbers[key] = sum(float(outcome.metrics[key]) for outcome in outcomes) / len(outcomes)
    return numbers


def _text(numbers: dict[str, float]) -> str:
    parts = [f"loss {numbers['loss']:.4g}", f"{numbers['examples_per_s']:.3g}/s"]
    if math.isfinite(numbers.get("effective_rank", math.nan)):
        parts.append(f"rank {numbers['effective_rank']:.3g}")
    return "  ".join(parts)
