"""How tests are shared out among processes: a test that brings its process down has failed, and is not tried again."""

import sys

import pytest
from xdist.scheduler import LoadGroupScheduling


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
