"""Several processes on this machine, as several hosts: the numbers of one, and what a kill leaves."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.conftest import ROOT


def environment(devices):
    return os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def start(*command, devices, **options):
    command = [sys.executable, "-m", *map(str, command)]
    return subprocess.Popen(command, cwd=ROOT, env=environment(devices), **options)


def worker(out, devices, processes, backends):
    """tests.hosts_worker in as many processes, each with some devices."""
    out.mkdir()
    address = free_address()
    who = [(address, processes, i) for i in range(processes)] if processes > 1 else [()]
    running = [start("tests.hosts_worker", out, backends, *each, devices=devices) for each in who]
    assert [process.wait(timeout=400) for process in running] == [0] * processes
    assert json.loads((out / "world.json").read_text()) == [processes, processes * devices]
    return {path.stem: dict(np.load(path)) for path in out.glob("*.npz")}


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path):
    """Loss, gradient norm, parameters and statistics of 20 steps: 2 x 2 devices, 1 x 4, and one alone."""
    alone = worker(tmp_path / "alone", 1, 1, "jit")
    for name, arguments in {"four": (4, 1, "jit,shard_map,pmap"), "two": (2, 2, "jit,shard_map")}.items():
        for case, found in worker(tmp_path / name, *arguments).items():
            for leaf, value in alone[f"{case.split('-')[0]}-jit"].items():
                close = 1e-5 if case.startswith("smooth") else 1e-11
                np.testing.assert_allclose(found[leaf], value, rtol=close, atol=close, err_msg=f"{name} {case} {leaf}")


# without kinks, so that other numbers of devices differ by rounding alone
TRAIN = ("experiments", "train", "--problem", "tests.own_problem:SMALL", "--num-steps", 600, "--dispatch", 5)
TRAIN += ("--checkpoint-every", 10, "--batch-size", 20, "--evaluate-every", 300, "--norms", 5, "--dropout-rate", 0.2)


def train(folder, devices, processes, patience=10):
    """The train script in as many processes."""
    address = free_address()
    hosts = ("--hosts.coordinator", address, "--hosts.count", processes, "--hosts.patience", patience)
    hosts += ("--hosts.arrival", 40)
    each = [(*hosts, "--hosts.index", i) for i in range(processes)] if processes > 1 else [("--devices", devices)]
    command = (*TRAIN, "--folder", folder)
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.DEVNULL, "text": True}
    return [start(*command, *own, devices=devices, **pipes) for own in each]


def until_logged(folder, rows):
    """Wait until the log has so many rows."""
    log = folder / "metrics.jsonl"
    while not log.exists() or len(log.read_text().splitlines()) < rows:
        time.sleep(0.2)


def outcome(running):
    """Exit statuses and the last lines, of processes that must all end by themselves."""
    ended = [(process.communicate(timeout=240)[1], process.returncode) for process in running]
    return [code for _, code in ended], [text.splitlines()[-1] if text else "" for text, _ in ended]


def arrays(folder):
    with np.load(folder / "last.npz") as found:
        return dict(found)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tfds_dir):
    folder = tmp_path_factory.mktemp("undisturbed")
    assert outcome(train(folder, 2, 2))[0] == [0, 0]
    return arrays(folder)


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path, undisturbed):
    """One of two processes is killed, 20 times: the other ends by itself within a minute, and the end is the same bit
    by bit, though the middle ran on other numbers of devices."""
    draw = random.Random(0)
    for _ in range(20):
        running = train(tmp_path, 2, 2)
        time.sleep(draw.uniform(3, 25))
        victim = draw.randrange(2)
        running[victim].send_signal(signal.SIGKILL)
        since = time.monotonic()
        codes, lines = outcome(running)
        if codes[victim] == 0:  # it was done before
            break
        assert codes[1 - victim] != 0
        assert time.monotonic() - since < 60, lines
    assert outcome(train(tmp_path, 2, 2))[0] == [0, 0]
    for name, array in arrays(tmp_path).items():
        np.testing.assert_array_equal(array, undisturbed[name])


@pytest.mark.slow
def test_terminated_and_gone_on_in_another_world(tmp_path, undisturbed):
    """SIGTERM to one of two: both save and stop; one process with one device, then with four, goes on."""
    running = train(tmp_path, 2, 2)
    until_logged(tmp_path, 3)
    running[1].send_signal(signal.SIGTERM)
    codes, lines = outcome(running)
    assert codes == [143, 143], lines
    assert all("the same command goes on" in line for line in lines)
    (one,) = train(tmp_path, 1, 1)
    until_logged(tmp_path, 20)
    one.send_signal(signal.SIGTERM)
    assert outcome([one])[0] == [143]
    assert outcome(train(tmp_path, 4, 1))[0] == [0]
    for name, array in arrays(tmp_path).items():
        np.testing.assert_allclose(array, undisturbed[name], rtol=1e-4, atol=1e-4)
