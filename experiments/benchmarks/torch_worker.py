"""PyTorch in a process of its own, with the memory that it frees kept as ours is: no thread of it meets one of ours."""

import multiprocessing
import threading


class Worker:
    """Builds and runs torch steps in a child process, which is idle between calls."""

    def __init__(self, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, threads), daemon=True)
        self.process.start()
        self.alone = threading.Lock()

    def make(self, *arguments) -> int:
        """Build the step that `_make` describes; its number."""
        return self._call("make", *arguments)

    def run(self, number: int, count: int) -> float:
        """Seconds that `count` steps take."""
        return self._call("run", number, count)

    def _call(self, *message):
        with self.alone:
            self.pipe.send(message)
            reply = self.pipe.recv()
        if isinstance(reply, Exception):
            raise reply
        return reply


def _serve(pipe, threads: int):
    import time

    import torch

    import experiments.benchmarks.kept_memory  # noqa: F401  as on our side, before torch starts threads

    torch.set_num_threads(threads)
    steps = []
    while True:
        try:
            command, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            if command == "make":
                steps.append(_make(*arguments))
                pipe.send(len(steps) - 1)
            else:
                number, count = arguments
                start = time.perf_counter()
                steps[number](count)
                pipe.send(time.perf_counter() - start)
        except Exception as error:
            pipe.send(error)


def _make(kind, *arguments):
    return _make_attack(*arguments) if kind == "attack" else _make_step(kind, *arguments)


def _make_attack(network, library, name, batch_size, steps):
    """run(k) of a peer's attack on a batch of images; balls are too small to fool anything."""
    import torch

    from experiments.benchmarks import attack_peers, torch_twin

    model = torch_twin.MODELS[network]().eval()
    shape = (3, 32, 32) if network == "ddnet" else (1, 28, 28)
    x = torch.rand(batch_size, *shape, generator=torch.Generator().manual_seed(0))
    y = model(x).argmax(1)
    attack = attack_peers.timed(name, library, steps)

    def run(count):
        for _ in range(count):
            attack(model, x, y)

    return run


def _make_step(model, penalty, compiled, device, image, label):
    """run(k) of the twin's training step on one batch; image [B, C, H, W]."""
    import torch

    from experiments.benchmarks import torch_twin

    x, y = torch.from_numpy(image).to(device), torch.from_numpy(label).to(device)
    module = torch_twin.MODELS[model]().to(device)
    if model == "critic":
        step = torch_twin.make_critic_step(module)
    else:
        step = torch_twin.make_step(module, penalty, compiled=compiled)

    def run(count):
        for _ in range(count):
            step(x, y)
        if device == "cuda":
            torch.cuda.synchronize()

    return run
