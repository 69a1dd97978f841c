"""What the tests of several evaluators share."""

import pytest
from accelerate import Accelerator

from tests.photographs import forget_accelerate


@pytest.fixture
def accelerator():
    forget_accelerate()
    yield Accelerator(cpu=True)
    forget_accelerate()
