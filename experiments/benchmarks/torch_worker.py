"""PyTorch in a process of its own, as its users run it: no setting of ours reaches it, and no thread of it ours."""

import multiprocessing


class Worker:
    """Builds and runs torch steps in a child process, which is idle between calls."""

    def __init__(self, threads: int):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, threads), daemon=True)
        self.process.start()

    def make(self, *arguments) -> int:
        """Build the step that `_make` describes; its number."""
        return self._call("make", *arguments)

    def run(self, number: int, count: int) -> float:
        """Seconds that `count` steps take."""
        return self._call("run", number, count)

    def _call(self, *message):
        self.pipe.send(message)
        reply = self.pipe.recv()
        if isinstance(reply, Exception):
            raise reply
        return reply


def _serve(pipe, threads: int):
    import time

    import torch

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


def _make(model, penalty, compiled, device, image, label):
    """run(k) of the twin's training step on one batch; image [B, C, H, W]."""
    import torch

    from experiments.benchmarks import torch_twin

    x, y = torch.from_numpy(image).to(device), torch.from_numpy(label).to(device)
    step = torch_twin.make_step(torch_twin.MODELS[model]().to(device), penalty, compiled=compiled)

    def run(count):
        for _ in range(count):
            step(x, y)
        if device == "cuda":
            torch.cuda.synchronize()

    return run
