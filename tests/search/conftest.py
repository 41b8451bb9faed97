"""The fixtures of the study tests."""

from tests.study.conftest import *  # noqa: F403
