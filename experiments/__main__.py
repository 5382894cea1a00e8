"""python -m experiments NAME [options]: every file of paper/ and beyond/ with a Config, and the demo.

A file of your own is one too: JACREG_EXPERIMENTS names folders of them, separated as in PATH.
"""

import dataclasses
import os
import sys

from experiments import catalogue
from experiments.catalogue import names
from experiments.lab import stopping
from experiments.lab.process import prepare_process


def parse(name: str, arguments: list[str]):
    """The module of an experiment and its frozen Config, the paper's by default; --quick starts from its QUICK."""
    import tyro  # here, as what follows is slow to import, and a signal that comes meanwhile is one line too

    from experiments.lab.options import in_paragraphs

    module = catalogue.load(name)
    default = module.Config()
    if "--quick" in arguments:
        default = dataclasses.replace(default, **module.QUICK)
    arguments = [a for a in arguments if a != "--quick"]
    program = f"python -m experiments {name} [--quick]"
    words = in_paragraphs(module.__doc__)
    return module, tyro.cli(module.Config, args=arguments, default=default, prog=program, description=words)


def run(module, config):
    """What the module does with the configuration: its own `run`, or all of its cells."""
    if hasattr(module, "run"):
        return module.run(config)
    from experiments.lab.cells import fill

    return fill(module.cells(config), config)


def main():
    """Run the experiment that the command line names; SIGINT and SIGTERM end it with one line."""
    with stopping.in_one_line():
        _main()


def _main():
    listing = "experiments: " + ", ".join(names())
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"{__doc__}\n{listing}\n\nOptions of one: python -m experiments NAME --help")
        return
    if sys.argv[1] not in names():
        sys.exit(f"unknown experiment {sys.argv[1]!r}; {listing}")
    prepare_process()  # before other imports start threads
    module, config = parse(sys.argv[1], sys.argv[2:])
    from experiments.lab import world

    try:
        world.join(getattr(config, "hosts", world.Hosts()))
        with world.faults_of_others():
            run(module, config)
    except (ValueError, TypeError, OSError, ImportError, FloatingPointError) as error:  # OSError: a failed download
        if os.environ.get("JACREG_TRACEBACK"):
            raise
        sys.exit(f"{type(error).__name__}: {error}\n(JACREG_TRACEBACK=1 shows where)")


if __name__ == "__main__":
    main()
