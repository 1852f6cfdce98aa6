"Lesson 03's functions and classes against autograd and torch.nn, on other shapes than its own."
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

from initnotes.core import InputError
from initnotes.foundations import (Lin, Model, Mse, Relu, lin, lin_grad, mse, mse_grad, relu,
                                   relu_grad)

def data(n, m, h, seed):
    g = torch.Generator().manual_seed(seed)
    def randn(*s): return torch.randn(*s, generator=g, dtype=torch.float64)
    y = torch.randint(10, (n,), generator=g)
    return randn(n, m), randn(m, h), randn(h), randn(h, 1), randn(1), y

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 6), m=st.integers(1, 6), h=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_forward_and_gradients_equal_autograd(n, m, h, seed):
    x, w1, b1, w2, b2, y = data(n, m, h, seed)
    loss = lambda x, w1, b1, w2, b2: nn.functional.mse_loss(
        (torch.relu(x @ w1 + b1) @ w2 + b2)[:, 0], y.double())
    inputs = [t.clone().requires_grad_() for t in (x, w1, b1, w2, b2)]
    wanted = torch.autograd.grad(loss(*inputs), inputs)
    z = lin(x, w1, b1); a = relu(z); out = lin(a, w2, b2)
    torch.testing.assert_close(mse(out, y), loss(x, w1, b1, w2, b2))
    g, gw2, gb2 = lin_grad(mse_grad(out, y), a, w2)
    gx, gw1, gb1 = lin_grad(relu_grad(g, z), x, w1)
    for ours, theirs in zip((gx, gw1, gb1, gw2, gb2), wanted):
        torch.testing.assert_close(ours, theirs)

def test_model_equals_torch():
    x, w1, b1, w2, b2, y = data(7, 5, 4, 0)
    model = Model([Lin(w1, b1), Relu(), Lin(w2, b2)], Mse())
    theirs = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        for p, v in zip(theirs.parameters(), (w1.T, b1, w2.T, b2)): p.copy_(v)
    wanted = nn.functional.mse_loss(theirs(x)[:, 0], y.double())
    wanted.backward()
    torch.testing.assert_close(model(x, y), wanted.detach())
    model.backward()
    for ours, p in zip((w1.grad.T, b1.grad, w2.grad.T, b2.grad), theirs.parameters()):
        torch.testing.assert_close(ours, p.grad)

@pytest.mark.parametrize('call', [lambda: lin(torch.ones(2, 3), torch.ones(4, 3), torch.ones(4)),
                                  lambda: lin(torch.ones(2, 1, 3), torch.ones(3, 4), torch.ones(4)),
                                  lambda: lin(torch.ones(2, 3), torch.ones(3, 4), torch.ones(1)),
                                  lambda: mse(torch.ones(3), torch.ones(3)),
                                  lambda: mse(torch.ones(3, 1), torch.ones(3, 1))])
def test_shapes_are_checked(call):
    with pytest.raises(InputError): call()
