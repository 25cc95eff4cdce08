"""What all comparisons with other packages need."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """PyTorch's second thread would wait by spinning between many small steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
