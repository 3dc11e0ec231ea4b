"""An update of DrQ-v2 against the straightforward one in the same process, and the replay at 84 pixels.

python -m benchmarks.drqv2                 # writes out/bench/drqv2.json
python -m benchmarks.drqv2 --sizes tiny-pixels embedding --no-replay

Both sides start from the same weights and get the same batches and draws. What they log in the first two updates has to
agree; later, rounding grows as it does in any training. The bound of 1.5 is for the paper's size: at the small ones
most of either side's time is convolutions and matrix products that run near the processor's peak.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.devices import device_name
from benchmarks.drqv2_plain import PlainUpdate
from v2r_core.rl.drqv2 import Draws, DrQv2Agent
from v2r_core.rl.drqv2_recipe import DrQv2Recipe
from v2r_core.rl.replay import Batch, Layout, ReplayStore
from v2r_core.rl.replay_files import FRAMES, JOURNAL, STEPS

TARGET = 1.5
"""How much faster than the straightforward update ours has to be."""
AGREE = 1e-3
"""Largest difference of a logged number over max(1, its size), in the first two updates."""
GPU_UPDATES = 5
"""Times as many updates and rounds on a GPU."""
ACTIONS = 6
WRITTEN, EPISODE = 20_000, 500
"""Rows of the replay in all, and of an episode."""


@dataclass(frozen=True)
class Size:
    """What is updated.

    Attributes:
        recipe: preset, with what differs from it.
        frame: shape of one frame.
        updates: in a round, on each side.
        rounds: both sides in turn.
    """

    recipe: DrQv2Recipe
    frame: tuple[int, ...]
    updates: int
    rounds: int


def sizes() -> dict[str, Size]:
    """The sizes by name: the paper's, two smaller ones from pixels, and frozen embeddings."""
    paper, tiny = DrQv2Recipe.preset("paper"), DrQv2Recipe.preset("tiny-pixels")
    return {
        "paper": Size(paper, (3, 84, 84), 1, 2),
        "64-pixels": Size(replace(paper, batch_size=64), (3, 64, 64), 3, 3),
        "tiny-pixels": Size(tiny, (3, 48, 48), 10, 5),
        "embedding": Size(DrQv2Recipe.preset("tiny"), (128,), 20, 5),
    }


@dataclass(frozen=True)
class Options:
    """Options of the benchmark."""

    out: Path = Path("out/bench/drqv2.json")
    """Where the numbers go."""
    sizes: tuple[str, ...] = ("paper", "64-pixels", "tiny-pixels", "embedding")
    """Which updates to measure."""
    replay: bool = True
    """Measure the replay too; writes 450 MB for a moment."""
    threads: int = 1
    """CPU threads of both sides."""
    device: str = "cpu"
    """Where both sides compute: `cpu`, or `cuda` for a GPU."""
    alone: str = ""
    """Internal: measure the updates of this size in this process."""
    memory_rows: int = 0
    """Internal: measure the memory of a process with a store of so many rows."""


def make_batch(size: Size, rng: np.random.Generator) -> Batch:
    """Transitions of noise."""
    shape = (size.recipe.batch_size, size.recipe.frame_stack, *size.frame)
    pixels = len(size.frame) > 1

    def frames() -> np.ndarray:
        return rng.integers(0, 256, shape, np.uint8) if pixels else rng.standard_normal(shape, np.float32)

    count = shape[0]
    action = rng.uniform(-1, 1, (count, ACTIONS)).astype(np.float32)
    discount = np.full(count, size.recipe.gamma**size.recipe.nstep, np.float32)
    return Batch(frames(), action, rng.standard_normal(count, np.float32), discount, frames())


def compare(size: Size, device: str) -> dict[str, float]:
    """Milliseconds an update on both sides, the median ratio, and how far the numbers are apart.

    The milliseconds are processor time on a CPU, time on a GPU.
    """
    ours = DrQv2Agent(size.recipe, size.frame, ACTIONS, device=device)
    plain = PlainUpdate(ours)
    batch = make_batch(size, np.random.default_rng(0))
    apart = 0.0
    for _ in range(2):  # the second update sees what the first one made; it also warms up
        draws = [ours.draw(size.recipe.batch_size)]
        said = [_time(update, batch, draws, device)[0] for update in (ours.update, plain.update)]
        apart = max(apart, _apart(*said))
    seen: dict[str, list[float]] = {"ours": [], "plain": []}
    longer = 1 if device == "cpu" else GPU_UPDATES
    for _ in range(size.rounds * longer):
        draws = [ours.draw(size.recipe.batch_size) for _ in range(size.updates * longer)]
        seen["ours"].append(_time(ours.update, batch, draws, device)[1])
        seen["plain"].append(_time(plain.update, batch, draws, device)[1])
    ratios = [slow / fast for slow, fast in zip(seen["plain"], seen["ours"], strict=True)]
    return {
        "ours_ms": 1000 * statistics.median(seen["ours"]),
        "plain_ms": 1000 * statistics.median(seen["plain"]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "largest_difference": apart,
    }


def replay_speed(folder: Path) -> dict[str, float]:
    """Rows written a second, and transitions drawn from memory and from the disk: 20,000 rows of 84 pixels."""
    layout = Layout((3, 84, 84), "uint8", ACTIONS)
    frames = np.random.default_rng(0).integers(0, 256, (64, *layout.frame_shape), np.uint8)
    with ReplayStore(folder, layout) as store:
        start = time.perf_counter()
        for _ in range(WRITTEN // EPISODE):
            store.begin(frames[0])
            for row in range(1, EPISODE):
                store.append(np.zeros(ACTIONS), 0.0, 1.0, frames[row % len(frames)])
            store.end()
        written = time.perf_counter() - start
        drawn = [_draw(store, 20) for _ in range(5)]
    file = os.open(folder / FRAMES, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    with ReplayStore(folder, read_only=True) as store:
        cold = _draw(store, 4)
    return {
        "written_rows_per_s": WRITTEN / written,
        "transitions_per_s": statistics.median(drawn),
        "transitions_per_s_from_disk": cold,
    }


def replay_memory(folder: Path, rows: int) -> dict[str, float]:
    """MB that a store of so many rows adds to this process once 512 transitions were drawn.

    Anonymous memory is the process's own. Pages of the file grow with what is drawn, and are the kernel's to take back.
    frames.bin is a hole here, which takes no disk and shows no speed.
    """
    layout = Layout((3, 84, 84), "uint8", ACTIONS)
    ReplayStore(folder, layout, rows * layout.row_bytes).close()
    for name, size in ((FRAMES, layout.frame_bytes), (STEPS, layout.step_dtype.itemsize)):
        os.truncate(folder / name, rows * size)
    lines = ({"episode": i, "first": i * EPISODE, "rows": EPISODE} for i in range(rows // EPISODE))
    (folder / JOURNAL).write_text("".join(json.dumps(line) + "\n" for line in lines))
    before = _memory()
    start = time.perf_counter()
    with ReplayStore(folder) as store:
        opened = time.perf_counter() - start
        assert store.rows == rows
        _draw(store, 2)
        after = _memory()
    return {
        "rows": rows,
        "frames_gb": rows * layout.frame_bytes / 1e9,
        "open_s": opened,
        "anonymous_mb": after["Anonymous"] - before["Anonymous"],
        "file_pages_mb": after["Rss"] - after["Anonymous"] - before["Rss"] + before["Anonymous"],
    }


def _child(options: Options, *arguments: str) -> dict[str, float]:
    settings = ("--out", str(options.out), "--threads", str(options.threads), "--device", options.device)
    command = [sys.executable, "-m", "benchmarks.drqv2", *arguments, *settings]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    answer: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _draw(store: ReplayStore, batches: int) -> float:
    rng = np.random.default_rng(0)
    start = time.perf_counter()
    for _ in range(batches):
        store.sample(256, rng, nstep=3, gamma=0.99, stack=3)
    return 256 * batches / (time.perf_counter() - start)


def _memory() -> dict[str, float]:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    return {line.split(":")[0]: int(line.split()[1]) * 1024 / 1e6 for line in lines}


def _time(
    update: Callable[[Batch, int, Draws], dict[str, float]], batch: Batch, draws: list[Draws], device: str
) -> tuple[dict[str, float], float]:
    # Processor time: with one thread that of an idle machine, whatever else runs on this one. An update ends with
    # numbers on the CPU, so a GPU has done it by then.
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    for item in draws:
        said = update(batch, 20_000, item)
    return said, (clock() - start) / len(draws)


def _apart(ours: dict[str, float], plain: dict[str, float]) -> float:
    assert ours.keys() == plain.keys()
    return max(abs(ours[name] - plain[name]) / max(1, abs(plain[name])) for name in plain)


def main(options: Options) -> int:
    """Measures, prints the tables, writes the JSON; 1 if the numbers differ or the paper's size misses its bound."""
    torch.set_num_threads(options.threads)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.alone:
        print(json.dumps(compare(sizes()[options.alone], options.device)))
        return 0
    if options.memory_rows:
        with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
            print(json.dumps(replay_memory(Path(folder), options.memory_rows)))
        return 0
    console, known = Console(), sizes()
    updates: dict[str, dict[str, float]] = {}
    for name in options.sizes:
        with console.status(f"measuring {name}"):
            # A fresh process: large buffers change how the allocator treats the small ones that come after them.
            updates[name] = _child(options, "--alone", name)
    found: dict[str, object] = {
        "threads": options.threads,
        "device": device_name(options.device),
        "torch": torch.__version__,
        "updates": updates,
    }
    table = Table("size", "batch", "ours ms", "plain ms", "plain / ours", "difference", title="an update of DrQ-v2")
    for name, row in updates.items():
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        times = [f"{row[key]:.1f}" for key in ("ours_ms", "plain_ms")]
        table.add_row(name, str(known[name].recipe.batch_size), *times, spread, f"{row['largest_difference']:.1e}")
    console.print(table)
    if options.replay:
        with tempfile.TemporaryDirectory(dir=options.out.parent) as folder:
            found["replay"] = replay_speed(Path(folder))
        found["replay_of_1M_rows"] = _child(options, "--memory-rows", "1000000")
        console.print_json(data={key: found[key] for key in ("replay", "replay_of_1M_rows")})
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    slow = [name for name, row in updates.items() if row["ratio"] < TARGET]
    wrong = [name for name, row in updates.items() if not row["largest_difference"] <= AGREE]
    console.print(f"below {TARGET} times the plain update's speed: {slow or 'none'}; other numbers: {wrong or 'none'}")
    return int(bool(wrong) or "paper" in slow)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Options)))
