"""Random structures of every kind, evaluated in every way: what must be true of them all (soak/metamorphic.py); `make soak` looks at many more."""

import pytest
from hypothesis import HealthCheck, given, settings
from soak import metamorphic

pytest.importorskip("torch")
pytest.importorskip("lightning")
OURS = [name for name in metamorphic.MODELS if name not in metamorphic.PUBLISHED]
QUICK = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


def test_relations(folder):
    @settings(QUICK, max_examples=500)
    @given(metamorphic.cases(folder, OURS))
    def holds(case):
        assert metamorphic.differences(case)

    holds()


def test_hosts(folder):
    @settings(QUICK, max_examples=1)
    @given(metamorphic.for_hosts(folder, OURS, together=12))
    def holds(given):
        assert len({len(structure.numbers) for structure, _ in given[1]}) > 3
        assert {all(structure.pbc) for structure, _ in given[1]} == {True, False}
        assert len(metamorphic.hosts_agree(*given)) > 3

    holds()
