"Lesson 03 and its workshop against autograd and torch.nn, on other shapes than their own."
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

import initnotes.all, initnotes.foundations, initnotes.modules
from initnotes.core import InputError
from initnotes.foundations import lin, lin_grad, mse, mse_grad, relu, relu_grad
from initnotes.modules import Lin, Model, Mse, Relu

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
                                  lambda: mse(torch.ones(3, 1), torch.ones(3, 1)),
                                  lambda: mse_grad(torch.ones(3, 1), torch.ones(3, 1)),
                                  lambda: relu_grad(torch.ones(3), torch.ones(3, 1)),
                                  lambda: lin_grad(torch.ones(2, 3), torch.ones(3, 4),
                                                   torch.ones(4, 2))])
def test_shapes_are_checked(call):
    with pytest.raises(InputError): call()

def test_gradients_in_small():
    out = torch.tensor([[1.], [2.], [3.]])
    torch.testing.assert_close(mse_grad(out, torch.tensor([1., 2., 6.])),
                               torch.tensor([[0.], [0.], [-2.]]))
    torch.testing.assert_close(relu_grad(torch.full((3,), 5.), torch.tensor([-1., 0., 1.])),
                               torch.tensor([0., 0., 5.]))

def test_relu_has_no_slope_at_zero_as_in_torch():
    zero = torch.zeros(1, requires_grad=True)
    assert torch.autograd.grad(relu(zero), zero)[0] == 0
    assert relu_grad(torch.ones(1), zero.detach()) == 0

@pytest.mark.parametrize('layer', [Lin(torch.ones(2, 1), torch.ones(1)), Relu()])
def test_no_way_back_before_the_way_there(layer):
    with pytest.raises(InputError, match='run the forward pass first'):
        layer.backward(torch.ones(1, 1))

def test_a_loss_that_was_not_called():
    with pytest.raises(InputError, match='run the forward pass first'): Mse().backward()

def test_the_classes_are_found_where_they_once_were():
    for name in ('Lin', 'Relu', 'Mse', 'Model'):
        assert getattr(initnotes.foundations, name) is getattr(initnotes.modules, name)
        assert getattr(initnotes.all, name) is getattr(initnotes.modules, name)
    with pytest.raises(AttributeError): initnotes.foundations.nothing
