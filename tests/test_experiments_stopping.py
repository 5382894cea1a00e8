"""Runs that are stopped or killed: one line, the state saved, and in the end the numbers of a run left alone."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lab import runner, stopping
from experiments.lab.batches import reshuffled
from jacreg_jax import training

ROOT = Path(__file__).resolve().parents[1]
SIGNALS = [signal.SIGINT, signal.SIGTERM]


def quadratic(params, state, batch, keys):
    noise = jax.vmap(lambda k: jax.random.normal(k))(keys)
    loss = jnp.mean((params["w"] - batch["image"][:, 0] + 0.1 * noise) ** 2)
    return loss, (state.model_state, {"accuracy": loss})


OPTIMIZER = training.sgd(0.05)
STEPS = training.make_train_steps(quadratic, OPTIMIZER)


def train(folder, steps=STEPS):
    state = training.init_state({"w": jnp.zeros(())}, OPTIMIZER, jax.random.key(3))
    data = {"image": jnp.arange(20.0).reshape(20, 1) / 20, "label": jnp.zeros(20, int)}
    rows = lambda first, count: reshuffled(5, first, count, 4, 20)
    return runner.train(steps, state, data, rows, num_steps=60, dispatch=5, checkpoint_every=20, folder=folder)


def signalled(number: int, calls: list):
    """Steps in whose third call, and in no other, the signal comes."""

    def steps(*arguments):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return STEPS(*arguments)

    return steps


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_training_at_a_saved_step(number, tmp_path):
    before = [signal.getsignal(each) for each in SIGNALS]
    steps = signalled(number, [])
    with pytest.raises(stopping.Stopped, match=str(128 + number)) as stop:
        train(tmp_path, steps)
    assert stop.value.message == "stopped at step 15; the same command goes on"
    assert (tmp_path / "checkpoints" / "15.sha256").exists()
    state, history = train(tmp_path, steps)
    whole, expected = train(None)
    np.testing.assert_array_equal(state.params["w"], whole.params["w"])
    without_time = lambda rows: [{k: v for k, v in row.items() if k != "ms_per_step"} for row in rows]
    assert without_time(history) == without_time(expected)
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_where_nothing_is_kept_the_line_says_so():
    with pytest.raises(stopping.Stopped) as stop:
        train(None, signalled(signal.SIGINT, []))
    assert stop.value.message == "stopped at step 15; the same command starts anew"


def test_outside_of_the_main_thread_nothing_is_caught(tmp_path):
    before, found = [signal.getsignal(each) for each in SIGNALS], []

    def work():
        with stopping.in_one_line(), stopping.deferred() as first:
            found.append(([signal.getsignal(each) for each in SIGNALS], first.number))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, None)]


def wait_after(number: int):
    os.kill(os.getpid(), number)
    time.sleep(10)


@pytest.fixture(autouse=True)
def no_alarm(monkeypatch):
    """The tests' own process may take its time to end."""
    monkeypatch.setattr(stopping.atexit, "register", lambda *_: None)


def become_another(number: int):
    try:
        wait_after(number)
    except BaseException:
        raise RuntimeError("as XLA does with what a callback raises") from None


@pytest.mark.parametrize("number", SIGNALS)
def test_outside_of_training_a_signal_is_one_line(number, capsys):
    with pytest.raises(SystemExit) as end, stopping.in_one_line():
        wait_after(number)
    assert end.value.code == 128 + number
    assert capsys.readouterr().err == "stopped; the same command goes on from what it wrote\n"


def test_an_error_that_a_signal_became_is_one_line_too(capsys):
    with pytest.raises(SystemExit) as end, stopping.in_one_line():
        become_another(signal.SIGINT)
    assert end.value.code == 130
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(RuntimeError, match="another"), stopping.in_one_line():
        raise RuntimeError("another")


BUSY = """
import os, signal, threading
import jax, jax.numpy as jnp
from experiments.lab import stopping
stopping.PATIENCE = 1
hours = jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, lambda _, x: jnp.tanh(x @ x), x))
with stopping.in_one_line():
    hours(jnp.ones((100, 100)))
    os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_stopped_process_does_not_wait_for_what_was_dispatched():
    done = subprocess.run([sys.executable, "-c", BUSY], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGALRM
    assert done.stderr == "stopped; the same command goes on from what it wrote\n"


TWICE = """
import os, signal, sys, threading, time
from experiments.lab import stopping
with stopping.in_one_line(), stopping.deferred():
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(0.2)
    print("the first is waited for", flush=True)
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
    time.sleep(20)  # what a call of XLA is
    print("not reached")
"""


def test_a_second_signal_ends_at_once():
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (143, "the first is waited for\n", "")
    assert time.perf_counter() - start < 10


class Runs:
    """Runs of the command line, in a folder."""

    def __init__(self, folder: Path, data: Path):
        self.folder, self.data = folder, data

    def start(self, name: str) -> subprocess.Popen:
        """A checkpoint every other step: most of the time goes into saving."""
        arguments = ["--columns", "1", "--regularizers", "all", "--seeds", "1", "--num-steps", "300", "--norms", "50"]
        arguments += ["--dispatch", "2", "--checkpoint-every", "2", "--data-dir", str(self.data)]
        command = [sys.executable, "-m", "experiments", "table1", *arguments, "--out", f"{name}/out", "--runs", name]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
        with (self.folder / f"{name}.log").open("a") as log:
            return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)

    def rows(self, name: str) -> list[dict]:
        """What is logged, a line that is being written left out; without the times."""
        found = []
        for path in (self.folder / name / "models").glob("*/*/metrics.jsonl"):
            for line in path.read_text().splitlines():
                if line.endswith("}"):
                    found.append({k: v for k, v in json.loads(line).items() if k != "ms_per_step"})
        return found

    def unfinished(self, name: str) -> set[str]:
        """Checkpoints that are being written: of Orbax's own, or without their digests."""
        folders = list((self.folder / name / "models").glob("*/*/checkpoints/[0-9]*[!6]"))
        return {f.name for f in folders if "tmp" in f.name or not f.with_name(f"{f.name}.sha256").exists()}

    def end(self, name: str):
        """The result and the log of the run that finishes it."""
        log = self.folder / f"{name}.log"
        assert self.start(name).wait(600) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
        return json.loads((self.folder / name / "out" / "table1" / "1-all.json").read_text())["models"], self.rows(name)


def wait_for(process: subprocess.Popen, condition, seconds: float = 120):
    """Until the condition holds, while the process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < end, "it hangs"
        time.sleep(0.001)


@pytest.mark.slow
def test_sigkill_at_random_moments(tfds_dir, tmp_path):
    """Twenty kills, five of them while a checkpoint is being written, and the numbers of a run that was left alone."""
    runs, moments, torn = Runs(tmp_path, tfds_dir), random.Random(0), 0
    for i in range(20):
        process, before, more = runs.start("killed"), len(runs.rows("killed")), moments.randint(1, 6)
        wait_for(process, lambda before=before, more=more: len(runs.rows("killed")) >= before + more)
        if i % 4 == 3:
            wait_for(process, lambda: runs.unfinished("killed"))
        else:
            time.sleep(moments.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        torn += bool(runs.unfinished("killed"))
    assert torn >= 5
    assert runs.end("killed") == runs.end("whole")


@pytest.mark.slow
def test_signals_to_the_command_line(tfds_dir, tmp_path):
    """While it starts, and while it trains: one line, the usual status, and the numbers of a run left alone."""
    runs, log, lines = Runs(tmp_path, tfds_dir), tmp_path / "stopped.log", []
    for number in (signal.SIGTERM, *SIGNALS, *SIGNALS):
        log.write_text("")
        process, before = runs.start("stopped"), len(runs.rows("stopped"))
        has_begun = lambda before=before: len(runs.rows("stopped")) > before
        wait_for(process, has_begun if lines else (tmp_path / "stopped" / "out").exists)
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        lines.append(log.read_text().splitlines()[-1])
        assert "Traceback" not in log.read_text()
    assert re.fullmatch(r"stopped( at step \d+)?; the same command goes on( from what it wrote)?", lines[0])
    assert all(re.fullmatch(r"stopped at step \d+; the same command goes on", line) for line in lines[1:])
    assert runs.end("stopped") == runs.end("whole")
