"What one pass shows, of models of every kind, and that it leaves no trace."
import math

import pytest, torch, torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

import initnotes as ini
from initnotes.evidence import _chain, _items, _look_at, measure
from initnotes.stream import _Node


def paths(nodes, node):
    "All ways from a source to a node."
    if not node.came: return [[node]]
    return [p + [node] for m in node.came for p in paths(nodes, m)]

@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_chain_is_what_lies_on_every_path(data):
    "Against a list of all paths, in random graphs with one source."
    nodes = [_Node(0, 'source', 'batch')]
    for i in range(1, data.draw(st.integers(2, 9))):
        came = data.draw(st.sets(st.sampled_from(nodes), min_size=1, max_size=2))
        nodes.append(_Node(i, 'other', 'op', tuple(came)))
    every = paths(nodes, nodes[-1])
    expected = [n for n in nodes if all(n in p for p in every)]
    assert _chain(nodes, {nodes[0]}, {nodes[-1]}) == expected

@pytest.mark.parametrize('size', [1e-40, 1e-30, 1e-10, 1., 1e10, 1e30])
def test_sizes_that_squares_cannot_hold(size):
    x = torch.full((4, 50), size)
    assert torch.allclose(_look_at(x, 4).log_ms, torch.full((4,), 2*math.log(size)).double(),
                          atol=.1 if size < 1e-38 else 1e-4)

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_other_formats(dtype):
    seen = _look_at(torch.randn(8, 400).to(dtype), 8)
    assert abs(seen.level) < .3 and abs(seen.apart - 1) < .1 and abs(seen.kurtosis - 3) < 1

def test_items_of_time_first_batches():
    x = torch.arange(24.).view(3, 4, 2)                 # time, batch, features
    assert torch.equal(_items(x, 4, 1), x.transpose(0, 1).reshape(4, 6))
    assert torch.equal(_items(x.flatten(0, 1), 4, 1), x.transpose(0, 1).reshape(4, 6))
    assert torch.equal(_items(x.transpose(0, 1).flatten(0, 1), 4), x.transpose(0, 1).reshape(4, 6))

def world(model):
    state = {k: (v.clone(), v._version) for k, v in model.state_dict().items()}
    return (state, torch.get_rng_state(), [m.training for m in model.modules()],
            [p.requires_grad for p in model.parameters()],
            [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()])

def alike(a, b):
    (old, *rest), (new, *others) = a, b
    same = all(torch.equal(old[k][0], new[k][0]) for k in old)
    return same and torch.equal(rest[0], others[0]) and rest[1:] == others[1:]

class Writes(nn.Module):
    "Writes into its input, counts in a buffer, drops out."
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Dropout(.5)
        self.register_buffer('count', torch.zeros(()))
    def forward(self, x):
        self.count += 1
        return self.drop(self.norm(self.a(x.mul_(2))))

def test_nothing_is_left_behind():
    model, x = nn.Sequential(Writes(), nn.Linear(6, 2)), torch.randn(8, 6)
    model[1].weight.requires_grad_(False)
    before, copy = world(model), x.clone()
    measure(model, (x,), loss=lambda out: out.sum())
    assert alike(before, world(model)) and torch.equal(x, copy)
    assert all(p.grad is None for p in model.parameters())

def test_nothing_is_left_behind_when_it_fails():
    model = nn.Sequential(Writes(), nn.Linear(5, 2))
    x = torch.randn(8, 6)
    before = world(model)
    with pytest.raises(ini.InputError, match=r'Sequential does not run .*\(8, 6\)'):
        measure(model, (x,))
    with pytest.raises(ini.InputError, match='loss gave str'):
        measure(model[0], (x,), loss=lambda out: 'a')
    assert alike(before, world(model))

def test_gradients_are_kept_out_of_grad():
    model = nn.Linear(4, 2)
    model.weight.grad = torch.ones(2, 4)
    measure(model, (torch.randn(3, 4),), loss=lambda out: out.sum())
    assert torch.equal(model.weight.grad, torch.ones(2, 4)) and model.bias.grad is None

def test_frozen_models_and_whole_numbers():
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(18, 3)).requires_grad_(False)
    e = measure(model, (torch.randint(9, (5, 3)),))
    assert all(e.flow.seen[n].log_grad is not None for n in e.flow.chain if n.kind == 'weight')
    assert not any(p.requires_grad for p in model.parameters())

def test_a_pass_that_autograd_cannot_see():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.m = model
        @torch.no_grad()
        def forward(self, x): return self.m(x)
    e = measure(Cut(), (torch.randn(3, 4),))
    assert 'autograd' in e.flow.gradient and e.flow.zero_grad
    assert [n.where for n in e.flow.chain if n.kind == 'weight'] == ['m.0', 'm.1']

def test_the_loss_gives_the_gradients_that_count():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)
        def forward(self, x): return self.a(x), self.b(x)
    x = torch.randn(4, 3)
    assert measure(Two(), (x,)).flow.zero_grad == []
    e = measure(Two(), (x,), loss=lambda out: F.mse_loss(out[0], x))
    assert e.flow.zero_grad == ['b.weight', 'b.bias'] and e.flow.unreached == []
    assert isinstance(e.flow.loss, float)

def test_recorders_see_each_operation():
    class Counts:
        def __init__(self): self.ops, self.kept = [], None
        def want(self, op): return op == 'relu'
        def see(self, call):
            self.ops.append(call.op)
            if call.op == 'relu': self.kept = call.before('self').min().item(), call.where
        def lost(self, fn, out, value, flow): self.value = value.item()
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
    r = Counts()
    e = measure(model, (torch.randn(8, 4),), loss=lambda out: out.sum(), recorders=[r])
    assert 'addmm' in r.ops and r.kept[0] < 0 and r.kept[1] == '1'
    assert r.value == e.flow.loss and e.recorded(Counts) is r

@pytest.mark.parametrize('width', [8, 64])
def test_gradients_against_autograd(width):
    "The chain rule by hand, through a residual stream."
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Linear(width, width)
        def forward(self, x): return x + self.f(x).tanh()
    model = nn.Sequential(nn.Linear(4, width), Block(), Block(), nn.Linear(width, 2))
    x, got = torch.randn(16, 4), {}
    e = measure(model, (x,))
    def keep(i): return lambda g: got.__setitem__(i, g)
    h, out = x, None
    for i, m in enumerate(model):
        h = m(h)
        h.register_hook(keep(i))
    (h*torch.randn(h.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    sums = [n for n in e.flow.chain if n.kind == 'add']
    for i, n in zip((1, 2), sums):
        expected = got[i].double().square().sum(1).log()
        assert torch.allclose(e.flow.seen[n].log_grad, expected, atol=1e-4)
