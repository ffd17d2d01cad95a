"""Fixtures of the tests of behaviour."""

import pytest
from loopback import open_pair


@pytest.fixture
async def pair(tmp_path):
    """Two peers with empty databases."""
    async with open_pair(tmp_path) as pair:
        yield pair
