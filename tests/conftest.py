"""How tests are shared out among processes: a test that brings its process down has failed, and is not tried again."""

import os
import sys

import pytest
from xdist.scheduler import LoadGroupScheduling

# A process for each core: threads of their own would only wait for each other. Read by torch when it is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items):
    """Tests that share what a fixture made run in one process, or each process would make it."""
    for item in items:
        fixtures = getattr(item, "_fixtureinfo", None)
        for name, found in fixtures.name2fixturedefs.items() if fixtures else ():
            if found[-1].scope != "function" and found[-1].func.__code__.co_filename == str(item.path):
                of = item.callspec.indices.get(name, "") if hasattr(item, "callspec") else ""
                item.add_marker(pytest.mark.xdist_group(f"{item.path.stem}-{name}{of}"))
                break


class FailOnce(LoadGroupScheduling):
    """xdist would give the test to the next process, and to the one after that."""

    def remove_node(self, node):
        """The test that was running there; what else was to run there goes to others."""
        work = self.assigned_work.pop(node)
        unit, test = next(((u, t) for u in work.values() for t, ended in u.items() if not ended), (None, None))
        if unit is not None:
            unit[test] = True
            self.workqueue.update({scope: unit for scope, unit in work.items() if not all(unit.values())})
            for other in self.assigned_work:
                self._reschedule(other)
        return test

    def _reschedule(self, node):
        super()._reschedule(node)
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            self._assign_work_unit(node)
        if not self.workqueue:
            node.shutdown()  # a process waits with its last test until it is told that there is no other


def pytest_xdist_make_scheduler(config, log):
    return FailOnce(config, log) if config.getoption("dist") == "loadgroup" else None


@pytest.fixture(autouse=True)
def loaders_as_torch_has_them():
    """One test's Trainer whose data raise must not change the next test's loaders."""
    yield
    if "lightning" in sys.modules:
        from lightning_depth.training.guards import restore_loaders

        restore_loaders()
