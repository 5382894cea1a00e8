"""Which fast tests execute a line of the library, and how long each takes: what a mutant is judged by.

    python -m tests.mutants_tests record RECORD tests/test_certify.py ...     once for all mutants
    python -m tests.mutants_tests judge ORDER RESULT                          once for each, until the first failure

A record is {"library": {file: digest}, "tests": {test file: digest}, "seconds": {test: seconds}, "lines": {file: {line:
[tests]}}}. Of code that `jit` traced before, a later test shows no lines: it then counts as one that reaches the file.
"""

import json
import sys
import time
from pathlib import Path

import coverage
import jax
import pytest

from tests.mutations import digest

ARGUMENTS = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]


def keep_programs() -> None:
    """Every compiled program is kept: a mutation changes few of them."""
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


class Recorder:
    """Notes the lines of the library that each test executes, and the seconds of computing of those that pass."""

    def __init__(self):
        self.coverage = coverage.Coverage(source=["jacreg_jax"], data_file=None, config_file=False)
        self.seconds, self.failed = {}, set()

    def pytest_sessionstart(self):
        keep_programs()
        self.coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.coverage.switch_context(item.nodeid)
        start = time.process_time()
        result = yield
        self.seconds[item.nodeid] = time.process_time() - start
        return result

    def pytest_runtest_logreport(self, report):
        if not report.passed:
            self.failed.add(report.nodeid)

    def lines(self) -> dict[str, dict[int, list[str]]]:
        """{file: {line: tests}} of the tests that passed."""
        self.coverage.stop()
        data, found = self.coverage.get_data(), {}
        for path in map(Path, data.measured_files()):
            contexts = data.contexts_by_lineno(str(path))
            name = str(path.relative_to(Path.cwd() / "jacreg_jax"))
            found[name] = {line: sorted({*tests} - {"", *self.failed}) for line, tests in contexts.items()}
        return found


class Judge:
    """Runs the wanted tests in the wanted order."""

    def __init__(self, order: list[str]):
        self.rank, self.failed = {test: i for i, test in enumerate(order)}, ""

    def pytest_sessionstart(self):
        keep_programs()

    def pytest_collection_modifyitems(self, config, items):
        left_out = [item for item in items if item.nodeid not in self.rank]
        config.hook.pytest_deselected(items=left_out)
        items[:] = sorted((i for i in items if i.nodeid in self.rank), key=lambda i: self.rank[i.nodeid])

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.failed = self.failed or report.nodeid


def record(path: Path, files: list[str]) -> None:
    """Adds these test files to a record; a file that was recorded before is recorded anew."""
    kept = json.loads(path.read_text()) if path.exists() else {"library": {}, "tests": {}, "seconds": {}, "lines": {}}
    recorder = Recorder()
    pytest.main([*ARGUMENTS, *files], plugins=[recorder])
    is_kept = lambda test: test.split("::")[0] not in files
    kept["seconds"] = {t: s for t, s in kept["seconds"].items() if is_kept(t)}
    kept["seconds"] |= {t: s for t, s in recorder.seconds.items() if t not in recorder.failed}
    lines = {name: {k: list(filter(is_kept, v)) for k, v in of.items()} for name, of in kept["lines"].items()}
    for name, of in recorder.lines().items():
        for line, tests in of.items():
            lines.setdefault(name, {}).setdefault(str(line), []).extend(tests)
    kept["lines"] = lines
    kept["library"] |= {name: digest(Path("jacreg_jax", name).read_text()) for name in lines}
    kept["tests"] |= {name: digest(Path(name).read_text()) for name in files}
    path.write_text(json.dumps(kept))


def judge(order: Path, result: Path) -> None:
    """Runs tests until one fails, and writes which; an error at import or collection counts as a failure."""
    tests = json.loads(order.read_text())
    plugin = Judge(tests)
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    status = pytest.main([*ARGUMENTS, "-x", *files], plugins=[plugin])
    killed_by = plugin.failed or ("" if status == pytest.ExitCode.OK else "collection")
    result.write_text(json.dumps(killed_by))


if __name__ == "__main__":
    command, *arguments = sys.argv[1:]
    if command == "record":
        record(Path(arguments[0]), arguments[1:])
    else:
        judge(*map(Path, arguments))
