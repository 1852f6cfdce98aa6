"The loader gives every item once, accuracy counts; what moved is found at its old place."
import pytest, torch
from hypothesis import given, settings, strategies as st

import initnotes.learner, initnotes.training
from initnotes.core import InputError
from initnotes.training import TensorLoader, accuracy

@given(st.integers(1, 50), st.integers(1, 60), st.booleans())
@settings(deadline=None, max_examples=50)
def test_loader_gives_every_item_once(n, batch_size, shuffle):
    dl = TensorLoader(torch.arange(n), torch.arange(n)*2, batch_size, shuffle)
    batches = list(dl)
    x, y = torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches])
    assert len(dl) == len(batches) and all(len(b[0]) == batch_size for b in batches[:-1])
    assert torch.equal(y, 2*x) and torch.equal(x.sort().values, torch.arange(n))
    if not shuffle: assert torch.equal(x, torch.arange(n))

def test_loader_errors():
    with pytest.raises(InputError, match='5 inputs and 4 targets'):
        TensorLoader(torch.zeros(5), torch.zeros(4), 2)
    with pytest.raises(InputError, match='no items'):
        TensorLoader(torch.zeros(0), torch.zeros(0), 2)
    for b in (0, -1, 2.5):
        with pytest.raises(InputError, match='batch_size is'):
            TensorLoader(torch.zeros(5), torch.zeros(5), b)

@given(st.integers(1, 20), st.integers(2, 5))
@settings(deadline=None, max_examples=30)
def test_accuracy_counts(n, classes):
    pred, y = torch.randn(n, classes), torch.randint(classes, (n,))
    assert accuracy(pred, y).item() == pytest.approx(
        sum(int(p.argmax()) == int(t) for p, t in zip(pred, y)) / n
    )

def test_accuracy_of_positions_and_errors():
    pred = torch.zeros(2, 3, 4, 5); pred[:, 1] = 1
    assert accuracy(pred, torch.ones(2, 4, 5, dtype=int)) == 1
    for shape in ((4, 1), (3,), (1,)):
        with pytest.raises(InputError, match='accuracy got scores'):
            accuracy(torch.zeros(4, 3), torch.zeros(shape, dtype=int))

def test_what_moved_is_found_at_its_old_place():
    moved = ['AvgStats', 'BatchTransform', 'Callback', 'CancelBatch', 'CancelEpoch', 'CancelFit',
             'DeviceCallback', 'DivergedError', 'LRFinder', 'Learner', 'Progress', 'Recorder']
    for name in moved:
        assert getattr(initnotes.training, name) is getattr(initnotes.learner, name)
    everything = {}
    exec('from initnotes.training import *', everything)
    assert set(moved) | {'TensorLoader', 'accuracy'} <= everything.keys()
    with pytest.raises(AttributeError, match="'initnotes.training' has no attribute 'Nobody'"):
        initnotes.training.Nobody
