"""The Kubernetes schemas; without them, the tests that need them are skipped."""

from __future__ import annotations

import pytest

from tests.k8s.schemas import DEFAULT, Schemas, folder


@pytest.fixture(scope="session")
def schemas() -> Schemas:
    found = folder()
    if found is None:
        pytest.skip(f"no Kubernetes schemas: MPTUNE_K8S_SCHEMAS is not set, {DEFAULT} is not there")
    return Schemas(found)
