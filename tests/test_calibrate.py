"""LSUV: exact in one forward, on any model, and nothing else changed; against the textbook loop,
and with faults planted."""
import copy, functools, itertools, json, math, os, random, subprocess, sys

import pytest, torch
import torch.nn.functional as F
import torch.nn.utils.prune
from hypothesis import assume, given, settings, strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils.checkpoint import checkpoint

import initnotes.calibrate as calibrate
import initnotes.undisturbed as ours
from conftest import ROOT
from initnotes.calibrate import LsuvError, LsuvReport, lsuv_, lsuv_kinds
from initnotes.core import Moments
from initnotes.lsuv import ConvLayer, GeneralReLU
from initnotes.report import InputError

thorough = settings(max_examples=60, deadline=None)

SEED = 70

def first(out):
    while not isinstance(out, torch.Tensor):
        out = next(iter(out.values() if isinstance(out, dict) else out))
    return out

def outputs(model, *args, **kw):
    "Each module's output at its first call in a fresh forward, with dropout off."
    found, handles, modes = {}, [], [(m, m.training) for m in model.modules()]
    def keep(n, m, a, o): found.setdefault(n, first(o).detach().clone())
    for n, m in model.named_modules():
        handles.append(m.register_forward_hook(functools.partial(keep, n)))
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for m in model.modules():
        if not isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.training = False
    try:
        with torch.no_grad(): model(*args, **kw)
    finally:
        for h in handles: h.remove()
        for m, t in modes: m.training = t
        torch.backends.mha.set_fastpath_enabled(fused)
    return found

def std(y): return y.detach().double().std().item()
def rows(report): return {r['layer']: r for r in report}
def why(report): return {r['layer']: r['why'] for r in report if r['why']}
def snapshot(model):
    named = itertools.chain(model.named_parameters(), model.named_buffers())
    return [(n, t.detach().clone(), t) for n, t in named]
def same(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a.nan_to_num(), b.nan_to_num())

def calibrated(model, *args, target=1., centre=None, eps=1e-5, **kw):
    """Run `lsuv_` and hold every layer that it set to the target, in a fresh forward; and
    everything else to what it was."""
    before, state = snapshot(model), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    report = lsuv_(model, *args, std=target, mean=centre, **kw)
    assert torch.equal(torch.get_rng_state(), state)
    assert modes == [m.training for m in model.modules()]
    assert hooks == [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    after = snapshot(model)
    options = 'at', 'tol', 'orthogonal', 'generator'
    fresh = outputs(model, *args, **{k: v for k, v in kw.items() if k not in options})
    set_, named = [r for r in report if not r['why']], set()
    for r in set_:
        y = fresh[r['layer'].removesuffix('.out_proj')].double()
        assert abs(y.std().item()/target - 1) < eps, (r, y.std())
        assert r['std'] == pytest.approx(y.std().item(), rel=eps)
        assert r['mean'] == pytest.approx(y.mean().item(), abs=eps*target*10)
        if centre is not None and not (r['note'] and 'not centred' in r['note']):
            assert abs(y.mean().item() - centre) < eps*target*max(1, abs(centre)), r
        named |= {r['layer'], (r['note'] or '').partition("'")[2].partition("'")[0]}
    for (n, old, _), (_, t, _) in zip(before, after):
        owner = n.rpartition('.')[0]
        if owner not in named and owner.partition('.parametrizations')[0] not in named:
            assert same(old, t), n
    return report

# ---- properties over random architectures ----------------------------------------------------

class Net(nn.Module):
    """Blocks of five kinds on vectors or images: plain, residual, branching, shared, and one that
    is called before it is registered."""
    def __init__(self, kinds, width, bias, act, conv):
        super().__init__()
        def layer():
            if conv: return nn.Conv2d(width, width, 3, padding=1, bias=bias)
            return nn.Linear(width, width, bias=bias)
        self.kinds, self.act = kinds, act
        self.shared = layer()
        self.second = nn.ModuleList(layer() for _ in kinds)
        self.one = nn.ModuleList(layer() for _ in kinds)
    def forward(self, x):
        for kind, a, b in zip(self.kinds, self.one, self.second):
            if kind == 'plain': x = self.act(b(self.act(a(x))))
            if kind == 'residual': x = x + b(self.act(a(x)))
            if kind == 'branch':
                both = torch.cat([a(x), b(x)], 1).unflatten(1, (2, -1))
                share = torch.tensor([1., -.5], dtype=x.dtype).view(1, 2, *[1]*(x.dim() - 1))
                x = both.mul(share).sum(1)
            if kind == 'shared': x = self.act(self.shared(x))
            if kind == 'alone': x = self.act(a(x))
        return x

blocks = st.sampled_from(['plain', 'residual', 'branch', 'shared', 'shared', 'alone'])
activations = st.sampled_from([torch.relu, torch.tanh, F.leaky_relu, F.gelu])
nets = st.builds(Net, st.lists(blocks, min_size=1, max_size=6),
                 st.integers(7, 12), st.booleans(), activations, st.booleans())

def batch_for(net, seed, dtype=torch.float32):
    g, width = torch.Generator().manual_seed(seed), net.shared.weight.shape[1]
    area = [5, 5] if net.shared.weight.dim() == 4 else []
    x = torch.randn(24, width, *area, generator=g, dtype=dtype)
    return x*10**torch.empty(()).uniform_(-3, 3, generator=g).to(dtype)

def scatter_(net, seed):
    "Weights of very different sizes."
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for m in net.modules():
            for p in m._parameters.values():
                if p is not None:
                    p.normal_(generator=g).mul_(10**torch.empty(()).uniform_(-2, 1, generator=g))
    return net

def or_dead(call, *args, **kw):
    """What `call` gives; nothing where ReLUs have switched everything off, which must be an error
    that says so."""
    try: report = call(*args, **kw)
    except LsuvError as e:
        assert 'everywhere' in str(e) and 'input is all zero' in str(e)
        assume(False)
    # nothing to compare where a ReLU net is dead
    assume(not any('input is all zero' in (r['why'] or '') for r in report))
    return report

@thorough
@given(net=nets, seed=st.integers(0, 10**6), target=st.sampled_from([1., .3, 7.]),
       centre=st.sampled_from([None, 0., 2.]))
def test_a_fresh_forward_gives_the_target_at_every_layer(net, seed, target, centre):
    scatter_(net, seed)
    report = or_dead(calibrated, net, batch_for(net, seed), target=target, centre=centre,
                     eps=2e-5 if centre else 1e-5)
    called = {n for n in outputs(net, batch_for(net, seed)) if n}
    assert {r['layer'] for r in report if not r['why']} == called
    assert all(r['why'] == 'never called in this forward' for r in report
               if r['layer'] not in called)
    for r in report:
        shared = r['layer'] == 'shared'
        assert r['calls'] == (net.kinds.count('shared') if shared else r['layer'] in called)

@thorough
@given(net=nets, seed=st.integers(0, 10**6), centre=st.sampled_from([None, 0.]))
def test_again_changes_nothing(net, seed, centre):
    x = batch_for(scatter_(net, seed), seed)
    or_dead(lsuv_, net, x, mean=centre)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    lsuv_(net, x, mean=centre)
    for n, p in net.named_parameters():
        if 'weight' in n:
            assert (p - before[n]).abs().max() <= 1e-5*before[n].abs().max()

def textbook_(model, x, tol=1e-7, most=60):
    "The paper's loop: layer by layer in execution order, the whole model again for every step."
    order = []
    handles = [m.register_forward_hook(lambda m, a, o: order.append(m)) for m in model.modules()
               if hasattr(m, 'weight')]
    with torch.no_grad():
        model(x)
        for h in handles: h.remove()
        for layer in dict.fromkeys(order):
            for _ in range(most):
                seen = []
                h = layer.register_forward_hook(lambda m, a, o: seen.append(o))
                model(x); h.remove()
                if abs(std(seen[0]) - 1) < tol: break
                layer.weight.div_(std(seen[0]))
            else: return False
    return True

@thorough
@given(net=nets, seed=st.integers(0, 10**6))
@pytest.mark.slow
def test_the_same_as_the_textbook_loop(net, seed):
    "In float64, where biases are zero and the loop converges."
    net = scatter_(net, seed).double()
    for m in net.modules():
        if getattr(m, 'bias', None) is not None: nn.init.zeros_(m.bias)
    x, loop = batch_for(net, seed, torch.float64), copy.deepcopy(net)
    or_dead(lsuv_, net, x)
    assert textbook_(loop, x)
    for p, q in zip(net.parameters(), loop.parameters()):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-9)

# ---- one forward -----------------------------------------------------------------------------

def count_calls(model):
    "How often each module's forward runs."
    calls, handles = dict.fromkeys(dict(model.named_modules()), 0), []
    for n, m in model.named_modules():
        def pre(m, a, n=n): calls[n] += 1
        handles.append(m.register_forward_pre_hook(pre))
    return calls, handles

def deep(n=6, width=16, bias=True):
    return nn.Sequential(*[l for _ in range(n)
                           for l in (nn.Linear(width, width, bias=bias), nn.ReLU())])

def test_the_model_runs_once():
    model = deep()
    calls, _ = count_calls(model)
    lsuv_(model, torch.randn(32, 16), mean=0.)
    assert set(calls.values()) == {1}

def test_a_block_reruns_alone_and_without_its_layer(monkeypatch):
    model = nn.Sequential(*[ConvLayer(3 if i == 0 else 4, 4, leak=.1, sub=.4) for i in range(4)])
    seen = []
    real = F.conv2d
    monkeypatch.setattr(F, 'conv2d', lambda *a, **k: seen.append(1) or real(*a, **k))
    calls, _ = count_calls(model)
    report = lsuv_(model, torch.randn(16, 3, 33, 33), at=ConvLayer, mean=0.)
    assert calls[''] == 1 and len(seen) == 2*4  # once to measure, once for the real thing
    assert all(1 < r['evaluations'] < 12 for r in report)
    assert all(r['evaluations'] <= 6 for r in report[1:])

# ---- cases -----------------------------------------------------------------------------------

def test_registration_order_does_not_matter():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(8, 8), nn.Linear(8, 8)
        def forward(self, x): return self.last(torch.relu(self.first(x)))
    assert [r['layer'] for r in calibrated(Backwards(), torch.randn(32, 8))] == ['first', 'last']

@pytest.mark.parametrize('bias', ['none', 'zero', 'some', 'large'])
@pytest.mark.parametrize('centre', [None, 0., -1.])
def test_biases(bias, centre):
    model = deep(bias=bias != 'none')
    for m in model[::2]:
        if bias != 'none':
            nn.init.constant_(m.bias, {'zero': 0, 'some': .3, 'large': 30.}[bias])
    old = copy.deepcopy(model)
    report = calibrated(model, torch.randn(64, 16), centre=centre, eps=2e-5)
    for r in report:
        m, o = model[int(r['layer'])], old[int(r['layer'])]
        torch.testing.assert_close(m.weight, o.weight*r['scale'])
        if bias == 'none':
            assert r['shift'] == 0
            assert r['note'] == (None if centre is None else 'no bias: not centred')
        else:
            torch.testing.assert_close(m.bias, o.bias*r['scale'] + r['shift'], rtol=1e-4, atol=1e-5)

class Tied(nn.Module):
    def __init__(self, view=False):
        super().__init__()
        self.embed, self.body = nn.Embedding(30, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 30, bias=False)
        shared = self.embed.weight
        self.head.weight = nn.Parameter(shared.data.view(30, 8)) if view else shared
    def forward(self, i): return self.head(torch.relu(self.body(self.embed(i))))

@pytest.mark.parametrize('view', [False, True])
def test_a_head_that_shares_the_embedding_is_left_alone(view):
    report = calibrated(Tied(view), torch.randint(30, (16, 5)))
    assert why(report)['head'] == 'its weight is tied to embed.weight'
    assert set(why(report)) == {'head', 'embed'}
    assert rows(report)['head']['std'] == rows(report)['head']['std_before'] > 0

def test_tied_linears_and_tied_biases():
    a, b, c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
    b.weight, c.bias = a.weight, b.bias
    report = calibrated(nn.Sequential(a, b, c, nn.Linear(6, 6)), torch.randn(20, 6))
    assert why(report) == {'0': 'its weight is tied to 1.weight',
                           '1': 'its weight is tied to 0.weight', '2': 'its bias is tied to 1.bias'}

def test_parameters_side_by_side_in_one_storage_are_not_tied():
    flat, layers = torch.randn(72), [nn.Linear(6, 6, bias=False) for _ in range(2)]
    for l, part in zip(layers, flat.split(36)):
        l.weight = nn.Parameter(part.view(6, 6))
    assert not why(calibrated(nn.Sequential(*layers), torch.randn(20, 6)))
    layers[1].weight = nn.Parameter(flat[30:66].view(6, 6))  # one row is in both
    assert set(why(calibrated(nn.Sequential(*layers), torch.randn(20, 6)))) == {'0', '1'}

def test_one_module_under_two_names_is_not_tied():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 6)
            self.b = self.a
        def forward(self, x): return self.b(torch.relu(self.a(x)))
    report = calibrated(Twice(), torch.randn(20, 6))
    found = [(r['layer'], r['calls'], r['note']) for r in report]
    assert found == [('a', 2, 'called 2 times: calibrated at the first')]

def test_frozen():
    model = deep(4)
    model[2].weight.requires_grad_(False); model[4].bias.requires_grad_(False)
    assert why(calibrated(model, torch.randn(32, 16))) == {'2': 'its weight is frozen',
                                                           '4': 'its bias is frozen'}

class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.gate = nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
    def forward(self, x): return x + self.gate(torch.relu(self.a(x)))

@pytest.mark.parametrize('orthogonal', [False, True])
def test_zero_initialised_gates_stay_zero(orthogonal):
    model = nn.Sequential(Gated(), Gated())
    report = lsuv_(model, torch.randn(32, 8), orthogonal=orthogonal)
    assert why(report) == {'0.gate': 'its weight is all zero', '1.gate': 'its weight is all zero'}
    assert not model[0].gate.weight.any()
    report = lsuv_(model, torch.randn(32, 8), at=Gated)
    assert all('0' in r['layer'] or '1' in r['layer'] for r in report)
    assert all('must stay: its weight is all zero' in r['why'] for r in report)

@pytest.mark.parametrize('kind, shape', [
    (nn.Conv1d, (9,)), (nn.Conv2d, (9, 9)), (nn.Conv3d, (5, 5, 5)),
    (nn.ConvTranspose1d, (9,)), (nn.ConvTranspose2d, (9, 9)), (nn.ConvTranspose3d, (5, 5, 5))])
@pytest.mark.parametrize('kw', [{}, dict(groups=2), dict(stride=2), dict(bias=False)])
def test_convolutions(kind, shape, kw):
    assert not why(calibrated(nn.Sequential(kind(4, 6, 3, **kw), nn.ReLU()),
                              torch.randn(16, 4, *shape), centre=0.))

def test_channels_last_is_kept():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                          nn.Conv2d(8, 8, 3)).to(memory_format=torch.channels_last)
    x, seen = torch.randn(16, 3, 9, 9).contiguous(memory_format=torch.channels_last), []
    def keep(m, a, o):
        seen.append(o.is_contiguous(memory_format=torch.channels_last))
    model[1].register_forward_hook(keep)
    calibrated(model, x, centre=0.)
    assert all(seen)
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in model[::2])

@pytest.mark.parametrize('dtype, eps', [
    (torch.float64, 1e-9), (torch.bfloat16, 1e-3), (torch.float16, 1e-3)])
@pytest.mark.parametrize('centre', [None, 0.])
def test_dtypes(dtype, eps, centre):
    model = deep(4, 64).to(dtype)
    if centre is not None and dtype != torch.float64: eps = max(eps, 4e-3)
    report = calibrated(model, torch.randn(256, 64, dtype=dtype), centre=centre, eps=eps)
    assert not why(report) and all(p.dtype == dtype for p in model.parameters())

def test_half_precision_is_measured_in_float32():
    "A hundred thousand numbers: summed in float16 they would overflow."
    report = lsuv_(nn.Linear(8, 1000).half(), 5 + torch.randn(1000, 8).half())
    assert report[0]['std'] == pytest.approx(1, abs=1e-3)

def test_autocast():
    model, x = deep(4), torch.randn(64, 16)
    with torch.autocast('cpu', torch.bfloat16):
        report = lsuv_(model, x)
        fresh = outputs(model, x)
    assert all(abs(std(fresh[r['layer']]) - 1) < 2e-3 for r in report)
    assert model[0].weight.dtype == torch.float32

@pytest.mark.parametrize('mean', [1e2, 1e4])
@pytest.mark.parametrize('factor', [1e-15, 1., 1e15, 1e25])
def test_a_large_mean_or_size(mean, factor):
    """|std − 1| ≤ 1e-5 of what float32 can show: the measurement, on numbers whose mean swallows
    their std."""
    y = (mean + torch.randn(300, 70))*factor
    found, true = Moments.of(y), y.double()
    assert abs(found.std/true.std().item() - 1) < 1e-5
    assert abs(found.mean - true.mean().item()) < 1e-5*true.std().item()

@pytest.mark.parametrize('shape', [
    (10**7,), (1, 4 * 10**6), (2, 3, 5), (5,), (1, 2), (400, 1), (10**6, 2), (3, 1, 4, 1)])
def test_measurement_over_any_shape(shape):
    y = 3 + torch.randn(shape)
    found = Moments.of(y)
    assert abs(found.std/std(y) - 1) < 1e-6
    assert found.n == y.numel()
    assert (found.se is None) == (len(shape) == 1 or shape[0] == 1)

def test_layouts_are_measured_without_losing_an_element():
    y = torch.randn(6, 5, 4, 3)
    for v in (y, y.permute(0, 3, 1, 2), y.contiguous(memory_format=torch.channels_last), y[:, ::2],
              y.transpose(0, 1), y[:, :1].expand(-1, 7, -1, -1)):
        assert Moments.of(v).std == pytest.approx(std(v), rel=1e-6)
        assert Moments.of(v).se == pytest.approx(Moments.of(v.contiguous()).se, rel=1e-4)

def test_the_standard_error_is_that_of_independent_samples():
    g = torch.Generator().manual_seed(1)
    draws = [Moments.of(torch.randn(50, 1, generator=g)*torch.randn(50, 200, generator=g))
             for _ in range(600)]
    spread = torch.tensor([d.std for d in draws]).std().item()
    # ten times that of 10,000 independent numbers
    assert sum(d.se for d in draws)/600 == pytest.approx(spread, rel=.15)

# ---- batch-norm, dropout, modes, buffers ------------------------------------------------------

@pytest.mark.parametrize('training', [True, False])
def test_batch_norm_is_measured_in_its_mode_and_keeps_its_buffers(training):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
                          nn.BatchNorm2d(8)).train(training)
    x, buffers = 5*torch.randn(16, 3, 9, 9), [b.clone() for b in model.buffers()]
    report = lsuv_(model, x)
    assert all(map(torch.equal, model.buffers(), buffers)) and model.training == training
    assert abs(std(outputs(copy.deepcopy(model), x)['3']) - 1) < 1e-5 and len(report) == 2

class FunctionalDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
    def forward(self, x):
        x = F.dropout(self.a(x), .5, training=self.training)
        x = torch.dropout(self.b(x), .5, self.training)
        q = x.view(2, -1, 8)
        p = .5 if self.training else 0.
        return self.c(F.scaled_dot_product_attention(q, q, q, dropout_p=p).view_as(x))

def dropouts():
    return nn.Sequential(nn.Linear(8, 8), nn.Dropout(.5), nn.Linear(8, 8), nn.AlphaDropout(.5),
                         nn.Linear(8, 8))

@pytest.mark.parametrize('make', [FunctionalDropout, dropouts])
def test_dropout_is_off_while_measuring(make):
    one, two, x = make(), None, torch.randn(64, 8)
    two = copy.deepcopy(one).eval()
    lsuv_(one, x); lsuv_(two, x)
    assert one.training and all(m.training for m in one.modules())
    for p, q in zip(one.parameters(), two.parameters()):
        torch.testing.assert_close(p, q)

def test_dropout_within_attention_and_recurrence():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(8, 8, 2, dropout=.5, batch_first=True)
            self.att = nn.MultiheadAttention(8, 2, dropout=.5, batch_first=True)
            self.out = nn.Linear(8, 8)
        def forward(self, x):
            x = self.lstm(x)[0]
            return self.out(self.att(x, x, x)[0])
    one, x = M(), torch.randn(8, 5, 8)
    two = copy.deepcopy(one).eval()
    report = lsuv_(one, x); lsuv_(two, x)
    for p, q in zip(one.parameters(), two.parameters()):
        torch.testing.assert_close(p, q)
    assert set(why(report)) == {'lstm', 'att'}
    assert 'recurrent' in why(report)['lstm']
    assert 'in_proj_weight' in why(report)['att']

@pytest.mark.parametrize('kind', [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell])
def test_recurrent_layers_are_left_alone(kind):
    model = nn.Sequential(nn.Linear(6, 6), kind(6, 6))
    report = lsuv_(model, torch.randn(9, 6))
    assert 'recurrent' in why(report)['1'] and not rows(report)['0']['why']

def test_random_forwards_and_random_states():
    class Noise(nn.Module):
        def forward(self, x): return x + torch.randn_like(x)*random.random()
    model, x = nn.Sequential(Noise(), nn.Linear(8, 8), Noise(), nn.Linear(8, 8)), torch.randn(32, 8)
    state, python = torch.get_rng_state(), random.getstate()
    lsuv_(model, x, at=lambda m: isinstance(m, nn.Linear))
    assert torch.equal(torch.get_rng_state(), state) and random.getstate() == python
    # the same noise again
    assert all(abs(std(v) - 1) < 1e-5 for k, v in outputs(model, x).items() if k in '13' and k)
    torch.set_rng_state(state); random.setstate(python)
    block = nn.Sequential(nn.Linear(8, 8), Noise(), nn.Tanh())
    torch.set_rng_state(state); random.setstate(python)
    lsuv_(block, x, at=[block], std=.7)
    torch.set_rng_state(state); random.setstate(python)
    assert std(block(x)) == pytest.approx(.7, abs=1e-3)

# ---- attention -------------------------------------------------------------------------------

@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('kw', [
    {}, dict(norm_first=True), dict(activation='gelu', dim_feedforward=24)])
def test_transformer_encoder(training, kw):
    kw = {'dim_feedforward': 32, **kw}
    layer = nn.TransformerEncoderLayer(16, 4, dropout=.1, batch_first=True, **kw)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    report = calibrated(model, torch.randn(16, 7, 16))
    parts = 'self_attn.out_proj', 'linear1', 'linear2'
    expected = [f'layers.{i}.{n}' for i in (0, 1) for n in parts]
    assert [r['layer'] for r in report if not r['why']] == expected
    assert all('in_proj_weight' in why(report)[f'layers.{i}.self_attn'] for i in (0, 1))
    assert torch.backends.mha.get_fastpath_enabled()

def test_attention_with_unpacked_projections_and_masks():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.att = nn.MultiheadAttention(16, 4, kdim=6, vdim=10, batch_first=True)
        def forward(self, q, k, v, pad):
            return self.att(q, k, v, key_padding_mask=pad)[0]
    pad = torch.zeros(12, 5, dtype=torch.bool); pad[:, 3:] = True
    report = calibrated(M(), torch.randn(12, 7, 16), torch.randn(12, 5, 6),
                        v=torch.randn(12, 5, 10), pad=pad, centre=0.)
    assert not rows(report)['att.out_proj']['why']
    assert 'q_proj_weight, k_proj_weight, v_proj_weight' in why(report)['att']

def test_nn_transformer():
    model = nn.Transformer(16, 4, 1, 1, 32, batch_first=True)
    report = calibrated(model, torch.randn(8, 6, 16), torch.randn(8, 5, 16))
    assert sum(not r['why'] for r in report) == 3 + 4

# ---- calls, structures, inputs ---------------------------------------------------------------

def test_uncalled_layers():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        def forward(self, x): return self.a(x)
    report = calibrated(M(), torch.randn(20, 4))
    assert why(report) == {'b': 'never called in this forward'} and rows(report)['b']['calls'] == 0

def test_inputs_and_outputs_of_any_structure():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        def forward(self, batch, *, scale, pair=None):
            return {'out': (self.b(torch.tanh(self.a(batch['x']*scale + pair[0]))), None)}
    model, x = M(), torch.randn(20, 4)
    calibrated(model, {'x': x}, scale=2., pair=(x, x))
    report = lsuv_(model, {'x': x}, scale=2., pair=(x, x), at=[model], std=3., mean=1.)
    y = model({'x': x}, scale=2., pair=(x, x))['out'][0]
    assert std(y) == pytest.approx(3, rel=1e-3)
    assert y.mean().item() == pytest.approx(1, abs=3e-3)
    assert report[0]['note'] == "adjusts 'b'"

def test_arguments_with_the_same_names():
    class M(nn.Module):
        def __init__(self): super().__init__(); self.a = nn.Linear(4, 4)
        def forward(self, x, mean, std=1., at=None):
            return self.a((x - mean)/std)
    model, x, mean = M(), torch.randn(20, 4), torch.randn(4)
    with pytest.raises(InputError, match='partial'): lsuv_(model, x, mean=mean)
    lsuv_(functools.partial(model, mean=mean, std=2., at='there'), x)
    assert std(model(x, mean, 2.)) == pytest.approx(1, abs=1e-5)
    lsuv_(functools.partial(functools.partial(model, 3*x), mean), std=5.)
    assert std(model(3*x, mean)) == pytest.approx(5, abs=5e-5)

def test_gradient_checkpointing_and_no_grad_forwards():
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        def forward(self, x):
            with torch.no_grad(): x = self.a(x)
            x = checkpoint(lambda x: torch.relu(self.b(x)), x, use_reentrant=False)
            with torch.inference_mode(): return self.c(x)
    calibrated(M(), torch.randn(32, 8))

def test_models_made_in_inference_mode():
    with torch.inference_mode(): model, x = deep(3), torch.randn(32, 16)
    old = model[0].weight.clone()
    report = lsuv_(model, x)
    with torch.inference_mode():
        assert all(abs(std(outputs(model, x)[r['layer']]) - 1) < 1e-5 for r in report)
    lsuv_(model, x, dry_run=True); assert not torch.equal(old, model[0].weight)
    with torch.inference_mode(): lsuv_(deep(3), torch.randn(32, 16))

def test_in_place_activations_and_views():
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(inplace=True), nn.Unflatten(1, (3, 4)),
                          nn.Linear(4, 4), nn.ReLU(inplace=True))
    x = torch.randn(30, 8)
    old = x.clone()
    # an in-place activation would hide what a hook sees: alone
    calibrated(copy.deepcopy(model)[:1], x)
    lsuv_(model, x)
    assert torch.equal(x, old)
    assert std(model[0](x)) == pytest.approx(1, abs=1e-5)
    assert std(model[3](model[:3](x))) == pytest.approx(1, abs=1e-5)

def test_gradients_are_left_alone():
    model, x = deep(3), torch.randn(20, 16)
    model(x).sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    lsuv_(model, x.requires_grad_())
    assert all(map(torch.equal, grads, [p.grad for p in model.parameters()]))
    assert x.grad is None
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    model(x).sum().backward()                              # and training goes on

def test_users_hooks_stay_and_see_the_corrected_output():
    model, seen, x = deep(2), [], torch.randn(40, 16)
    h = model[2].register_forward_hook(lambda m, a, o: seen.append(std(o)))
    lsuv_(model, x)
    assert seen == [pytest.approx(1, abs=1e-5)] and list(model[2]._forward_hooks) == [h.id]

# ---- parametrized weights --------------------------------------------------------------------

@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('norm', [parametrizations.weight_norm, torch.nn.utils.weight_norm])
@pytest.mark.parametrize('orthogonal', [False, True])
def test_weight_norm_is_calibrated_by_its_length(norm, orthogonal):
    model = nn.Sequential(norm(nn.Linear(8, 8)), nn.ReLU(), norm(nn.Conv1d(1, 3, 3)), nn.Flatten(),
                          nn.Linear(18, 4))
    model = nn.Sequential(model[0], model[1], nn.Unflatten(1, (1, 8)), *model[2:])
    x = torch.randn(40, 8)
    v = [p.detach().clone() for n, p in model.named_parameters() if n.endswith(('original1', '_v'))]
    report = calibrated(model, x, centre=0., orthogonal=orthogonal,
                        generator=torch.Generator().manual_seed(1))
    assert not why(report)
    assert all(map(torch.equal, v,
                   [p for n, p in model.named_parameters() if n.endswith(('original1', '_v'))]))

@pytest.mark.filterwarnings('ignore::FutureWarning')
@pytest.mark.parametrize('kw', [{}, dict(dry_run=True), dict(at='it'), dict(mean='bad')])
def test_the_old_weight_norm_keeps_no_stale_weight(kw):
    model, x = torch.nn.utils.weight_norm(nn.Linear(8, 8)), torch.randn(40, 8)
    block = nn.Sequential(model, nn.ReLU())
    if 'at' in kw: kw = dict(at=[block])
    if 'mean' in kw:
        with pytest.raises(LsuvError): lsuv_(block, x, at=[block], mean=-1.)
    else: lsuv_(block, x, **kw)
    assert torch.equal(model.weight, torch._weight_norm(model.weight_v, model.weight_g, 0))

@pytest.mark.parametrize('norm, name', [
    (parametrizations.spectral_norm, 'SpectralNorm'),
    (torch.nn.utils.spectral_norm, 'SpectralNorm'),
    (parametrizations.orthogonal, 'Orthogonal')])
def test_spectral_norm_and_the_like_are_left_alone(norm, name):
    model = nn.Sequential(nn.Linear(8, 8), norm(nn.Linear(8, 8)))
    assert name in why(calibrated(model, torch.randn(40, 8)))['1']

def test_pruned_and_parametrised_biases():
    one, two = nn.Linear(8, 8), nn.Linear(8, 8)
    torch.nn.utils.prune.random_unstructured(one, 'weight', .5)
    class Double(nn.Module):
        def forward(self, b): return 2*b
    parametrize.register_parametrization(two, 'bias', Double())
    report = calibrated(nn.Sequential(one, two), torch.randn(30, 8))
    assert 'RandomUnstructured' in why(report)['0'] and 'Double' in why(report)['1']

# ---- wrappers --------------------------------------------------------------------------------

@pytest.mark.slow
def test_compiled_models():
    model, x = deep(3), torch.randn(32, 16)
    wrapped = torch.compile(model, backend='eager')
    wrapped(x)
    report = lsuv_(wrapped, x)
    assert [r['layer'] for r in report] == ['0', '2', '4']
    assert all(abs(std(outputs(model, x)[r['layer']]) - 1) < 1e-5 for r in report)
    assert torch.allclose(wrapped(x), model(x))
    inner = nn.Sequential(deep(1), torch.compile(deep(1), backend='eager'), deep(1))
    inner[2].compile(backend='eager'); inner(x)
    report = lsuv_(inner, x)
    assert not why(report)
    assert len(report) == 3
    assert std(inner[2][0](inner[:2](x))) == pytest.approx(1, abs=1e-5)

def test_data_parallel():
    model, x = deep(3), torch.randn(32, 16)
    report = lsuv_(nn.DataParallel(model), x)
    assert [r['layer'] for r in report] == ['0', '2', '4']
    assert all(abs(std(outputs(model, x)[r['layer']]) - 1) < 1e-5 for r in report)

@pytest.mark.parametrize('model, words', [
    (nn.Sequential(nn.LazyLinear(3)), '0.weight.*run the model once'),
    (nn.Sequential(nn.Linear(4, 4), nn.LazyBatchNorm1d()), '1.*run the model once'),
    (nn.Linear(4, 4, device='meta'), 'meta'), (nn.ReLU(), 'holds no layer'),
    (None, 'NoneType'), (nn.Linear, 'type')])
@pytest.mark.filterwarnings('ignore')
def test_models_that_cannot(model, words):
    with pytest.raises(InputError, match=words): lsuv_(model, torch.randn(8, 4))

@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_scripted_and_quantised_models_hold_no_layer():
    model = nn.Sequential(nn.Linear(4, 4))
    for m in (torch.jit.script(model), torch.ao.quantization.quantize_dynamic(model, {nn.Linear})):
        with pytest.raises(InputError, match='scripted or quantized'):
            lsuv_(m, torch.randn(8, 4))

def test_quantised_and_complex_weights():
    class Int8(nn.Linear):
        def __init__(self):
            super().__init__(4, 4)
            self.weight = nn.Parameter(torch.randint(-9, 9, (4, 4), dtype=torch.int8),
                                       requires_grad=False)
        def forward(self, x):
            return F.linear(x, self.weight.to(x.dtype), self.bias)
    report = calibrated(nn.Sequential(nn.Linear(4, 4), Int8()), torch.randn(20, 4))
    assert 'int8' in why(report)['1']
    report = lsuv_(nn.Sequential(nn.Linear(4, 4, dtype=torch.complex64)),
                   torch.randn(20, 4, dtype=torch.complex64))
    assert 'complex' in why(report)['0']

# ---- the registry ----------------------------------------------------------------------------

class Kernel(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.offset = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(5))
    def forward(self, x): return x @ self.kernel + self.offset

@pytest.fixture
def kinds():
    before = dict(lsuv_kinds)
    yield lsuv_kinds
    lsuv_kinds.clear(); lsuv_kinds.update(before)

def test_own_layers(kinds):
    model, x = nn.Sequential(Kernel(), nn.ReLU(), nn.Linear(5, 5)), torch.randn(40, 4)
    assert 'lsuv_kinds does not know' in why(lsuv_(model, x))['0']
    kinds[Kernel] = 'kernel', 'offset'
    report = calibrated(model, x, centre=0.)
    assert not why(report) and [r['layer'] for r in report] == ['0', '2']
    kinds[Kernel] = 'kernel', 'ofset'
    with pytest.raises(InputError, match='ofset'): lsuv_(model, x)

def test_bilinear_and_embedding_on_request(kinds):
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.bi = nn.Embedding(9, 6, padding_idx=0), nn.Bilinear(6, 6, 5)
        def forward(self, i): e = self.embed(i); return self.bi(e, e)
    i = torch.randint(1, 9, (50,))
    assert set(why(lsuv_(nn.Sequential(M(), nn.Linear(5, 5)), i))) == {'0.embed', '0.bi'}
    kinds[nn.Embedding], kinds[nn.Bilinear] = ('weight', None), ('weight', 'bias')
    model = M()
    assert not why(calibrated(model, i)) and not model.embed.weight[0].any()

def test_subclasses_that_compute_something_else():
    class Squashed(nn.Linear):
        def forward(self, x): return torch.tanh(super().forward(x))
    class Equalised(nn.Linear):
        def forward(self, x): return F.linear(x, self.weight*7, self.bias)
    model, x = nn.Sequential(nn.Linear(8, 8), Squashed(8, 8), Equalised(8, 8)), torch.randn(64, 8)
    with pytest.raises(LsuvError, match="'1'"): lsuv_(model, x)
    report = lsuv_(model, x, std=.6)
    fresh = outputs(model, x)
    assert all(std(fresh[r['layer']]) == pytest.approx(.6, rel=1e-3) for r in report)
    assert not why(report)

# ---- blocks ----------------------------------------------------------------------------------

class Residual(nn.Module):
    def __init__(self, bias=True):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8, bias=bias), nn.Linear(8, 8, bias=bias)
    def forward(self, x): return x + torch.relu(self.b(torch.relu(self.a(x))))

class Overwriting(nn.Module):
    "Adds into its input, in place: running it twice on the same tensor gives something else."
    def __init__(self): super().__init__(); self.a = nn.Linear(8, 8)
    def forward(self, x): x += torch.relu_(self.a(x)); return x*1.

class Repeating(nn.Module):
    "One layer, three calls: the last feeds on the first."
    def __init__(self): super().__init__(); self.a = nn.Linear(8, 8)
    def forward(self, x):
        return torch.tanh(self.a(torch.tanh(self.a(torch.tanh(self.a(x))))))

class Several(nn.Module):
    "Two inputs, one of them by keyword and one and the same, and a structure that comes out."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
    def forward(self, x, *, y):
        assert x is y
        return {'y': F.gelu(self.b(torch.tanh(self.a(x)))) + y}

def held(model, report, x, blocks, std_=1., mean=None, tol=1e-3):
    fresh = outputs(model, x.clone())
    for name in blocks:
        y = fresh[name].double()
        assert abs(y.std().item()/std_ - 1) <= tol*1.01, (name, y.std())
        if mean is not None: assert abs(y.mean().item() - mean) <= tol*std_*1.01
        assert rows(report)[name]['std'] == pytest.approx(y.std().item(), rel=1e-5)

@pytest.mark.parametrize('make, std_, mean', [
    (lambda: GeneralReLU(.1, .4), 1., 0.), (lambda: GeneralReLU(.1, .4, 6.), 1., 0.),
    (lambda: GeneralReLU(sub=.3), 2., None), (nn.ReLU, 1., .5), (nn.ReLU, 3., None),
    (nn.Tanh, .6, .1), (nn.Tanh, .9, 0.), (nn.GELU, 1., .4), (nn.SELU, 1., 0.),
    (nn.Sigmoid, .2, .4), (lambda: nn.Hardtanh(-2, 2), 1., None),
    (lambda: nn.LayerNorm(8, bias=False), None, None)])
@pytest.mark.parametrize('bias', [True, False])
def test_targets_behind_activations(make, std_, mean, bias):
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8, bias=bias), make()) for _ in range(4)])
    x = 3*torch.randn(100, 8)
    if std_ is None:
        with pytest.raises(LsuvError, match="'0': std 2 cannot be reached"):
            lsuv_(model, x, at=list(model), std=2.)
        return
    if mean == .5 and not bias: mean = None
    report = lsuv_(model, x, at=list(model), std=std_, mean=mean)
    held(model, report, x, '0123', std_, mean if bias else None)
    assert bias or mean is None or all('not centred' in r['note'] for r in report)
    before = [p.detach().clone() for p in model.parameters()]
    again = lsuv_(model, x, at=list(model), std=std_, mean=mean)
    assert all(map(torch.equal, model.parameters(), before))
    assert all(r['evaluations'] == 1 and r['scale'] == 1 and r['shift'] == 0 for r in again)

def additions(model, names, *args, **kw):
    "What each of these modules adds to its first input, in a fresh forward without dropout."
    given, handles = {}, []
    def keep(n, m, a, kw): given.setdefault(n, first([a, kw] if a else kw).detach().clone())
    for n in names:
        hook = functools.partial(keep, n)
        handles.append(model.get_submodule(n).register_forward_pre_hook(hook, with_kwargs=True))
    fresh = outputs(model, *args, **kw)
    for h in handles: h.remove()
    return {n: fresh[n].double() - given[n].double() for n in names}

def adds(model, report, x, names, std_=1., mean=None):
    for n, y in additions(model, names, x.clone()).items():
        r = rows(report)[n]
        assert not r['why'] and 'of what it adds to the stream' in r['note']
        assert abs(y.std().item()/std_ - 1) <= 1.01e-3, (n, y.std())
        if mean is not None: assert abs(y.mean().item() - mean) <= 1.01e-3*std_
        assert r['std'] == pytest.approx(y.std().item(), rel=1e-5)

@pytest.mark.parametrize('make', [Residual, Overwriting, Repeating, Several])
@pytest.mark.parametrize('mean', [None, 'now'])
def test_blocks_of_every_kind(make, mean):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(make() for _ in range(3))
        def forward(self, x):
            x = x*1.
            for b in self.blocks:
                x = .5*(b(x, y=x)['y'] if make is Several else b(x))
            return x
    model, x, goal = Model(), torch.randn(200, 8), .6 if make is Repeating else 1.5
    if mean: mean = .9 if make is not Repeating else .05
    old = x.clone()
    report = lsuv_(model, x, at=make, std=goal, mean=mean)
    check = held if make is Repeating else adds
    check(model, report, x, [f'blocks.{i}' for i in range(3)], goal, mean)
    assert torch.equal(x, old) and len(report) == 3 and all(r['calls'] == 1 for r in report)
    adds_ = '' if make is Repeating else '; of what it adds to the stream'
    last = 'b' if make in (Residual, Several) else 'a'
    assert all(r['note'] == f"adjusts '{r['layer']}.{last}'{adds_}" for r in report)

def test_convolutional_blocks_by_predicate():
    model = nn.Sequential(ConvLayer(1, 8, 5, leak=.1, sub=.4), ConvLayer(8, 8, leak=.1, sub=.4),
                          nn.Flatten(), nn.Linear(72, 10))
    x = torch.randn(64, 1, 12, 12)
    for at in (ConvLayer, (ConvLayer, nn.Bilinear), [model[0], model[1]],
               lambda m: isinstance(m, ConvLayer), nn.ModuleList(model[:2])):
        one = copy.deepcopy(model)
        if isinstance(at, (list, nn.ModuleList)):
            at = type(at)([one[0], one[1]])
        report = lsuv_(one, x, at=at, mean=0.)
        held(one, report, x, '01', 1., 0.)
        assert [r['layer'] for r in report] == ['0', '1']
        assert torch.equal(one[3].weight, model[3].weight)

def test_weight_layers_selected_by_type_are_exact():
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(18, 5))
    report = calibrated(model, torch.randn(30, 2, 8), at=nn.Linear)
    assert [r['layer'] for r in report] == ['2']

def test_nested_blocks():
    "The inner ones are set; the outer one finds its last layer taken, and says so."
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Tanh()),
                          nn.Sequential(nn.Linear(8, 8), nn.Tanh()))
    x = torch.randn(100, 8)
    report = lsuv_(model, x, at=nn.Sequential, std=.5)
    held(model, report, x, '01', .5)
    assert why(report) == {'Sequential': "its last weight layer, '1.0', was adjusted for '1'"}
    assert [r['calls'] for r in report] == [1, 1, 1]
    report = lsuv_(model, x, at=(nn.Sequential, nn.Linear), std=.5)
    assert set(why(report)) == {'0', '1', 'Sequential'}
    assert std(model[0][0](x)) == pytest.approx(.5, abs=1e-5)

def test_calls_are_those_of_the_model_and_not_of_the_measuring():
    block = Repeating()
    report = lsuv_(nn.Sequential(block, nn.Linear(8, 8)), torch.randn(100, 8),
                   at=(Repeating, nn.Linear), std=.5)
    assert {r['layer']: r['calls'] for r in report} == {'0': 1, '0.a': 3, '1': 1}

def test_blocks_that_share_a_layer_and_blocks_called_twice():
    shared = nn.Linear(8, 8)
    one, two = nn.Sequential(shared, nn.Tanh()), nn.Sequential(shared, nn.Sigmoid())
    model, x = nn.Sequential(one, two, one), torch.randn(100, 8)
    report = lsuv_(model, x, at=nn.Sequential, std=.3)
    held(model, report, x, ['0'], .3)
    assert rows(report)['0']['calls'] == 2 and "'0.0', was adjusted for '0'" in why(report)['1']

def end_in_integers(block):
    block[1], block[0] = nn.Flatten(0, 1), nn.Sequential(nn.Linear(8, 8), Integers())

@pytest.mark.parametrize('spoil, words', [
    (lambda b: b[0].weight.requires_grad_(False), 'frozen'),
    (lambda b: nn.init.zeros_(b[0].weight), 'all zero'),
    (lambda b: b.__setitem__(0, nn.Identity()), 'no weight layer'),
    (end_in_integers, 'no tensor of real numbers')])
def test_blocks_that_must_stay(spoil, words):
    block, x = nn.Sequential(nn.Linear(8, 8), nn.Tanh()), torch.randn(40, 8)
    spoil(block)
    assert words in why(lsuv_(nn.Sequential(nn.Linear(8, 8), block), x,
                              at=lambda m: m is block))['1']

class Integers(nn.Module):
    def forward(self, x): return x.argmax(1, keepdim=True)

def test_a_constant_pre_activation():
    "The block's output varies, by its input; what its layer adds does not."
    class M(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(8, 8)
            nn.init.constant_(self.a.bias, 1.)
        def forward(self, x): return x + torch.relu(self.a(0*x))
    with pytest.raises(LsuvError, match="'a': its output is 1 everywhere"):
        model = M()
        lsuv_(model, torch.randn(40, 8), at=[model])

def test_the_solver_takes_a_handful_of_evaluations():
    model = nn.Sequential(*[ConvLayer(8 if i else 1, 8, stride=1, leak=.1, sub=.4, maxv=6.)
                            for i in range(12)])
    report = lsuv_(model, torch.randn(32, 1, 12, 12), at=ConvLayer, mean=0.)
    found = [r['evaluations'] for r in report]
    assert found[0] <= 10 and sum(found[1:])/11 <= 5

# ---- what cannot be reached ------------------------------------------------------------------

@pytest.mark.parametrize('make, std_, mean', [
    (nn.ReLU, 1., 0.), (nn.ReLU, 1., .01), (nn.ReLU, 1., .1), (nn.ReLU, 1., -.5),
    (nn.Tanh, 1., None), (nn.Tanh, 1., 0.), (nn.Tanh, .99, .3), (nn.Tanh, .9999, None),
    (nn.Sigmoid, 1., None), (lambda: GeneralReLU(sub=.4, maxv=.3), 1., None),
    (lambda: GeneralReLU(sub=.4, maxv=.5), 1., 0.), (lambda: GeneralReLU(.1, .4, 3.), 1., 4.),
    (nn.Softmax, 1., None)])
def test_impossible_targets_are_named_and_nothing_is_changed(make, std_, mean):
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Sequential(nn.Linear(64, 64), make()))
    x = torch.randn(200, 32)
    if isinstance(model[2][1], nn.Softmax): model[2][1].dim = 1
    before = [p.detach().clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    with pytest.raises(LsuvError, match=r"'2': std .* reached .*std \S+.* mean \S+"):
        lsuv_(model, x, at=[model[2]], std=std_, mean=mean)
    assert all(map(torch.equal, model.parameters(), before))
    assert all(map(torch.equal, model.buffers(), buffers))

@pytest.mark.parametrize('make', [
    lambda: nn.BatchNorm1d(64), lambda: nn.LayerNorm(64),
    lambda: nn.Sequential(nn.BatchNorm1d(64), nn.SiLU())])
def test_a_normalisation_in_the_block_is_named_as_the_cause(make):
    model = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Sequential(nn.Linear(64, 64), make()))
    before = [t.clone() for t in model.state_dict().values()]
    words = r"'2': std 2 cannot be reached: its output .* does not depend on the scale of '2.0'"
    with pytest.raises(LsuvError, match=words):
        lsuv_(model, torch.randn(200, 32), at=[model[2]], std=2.)
    assert all(map(torch.equal, model.state_dict().values(), before))

def test_a_model_that_is_a_layer_has_its_class_for_a_name():
    model = nn.Linear(8, 8)
    assert lsuv_(model, torch.randn(50, 8))[0]['layer'] == 'Linear'
    with pytest.raises(LsuvError, match="'Linear': "):
        lsuv_(model, torch.zeros(50, 8)*math.nan)

@pytest.mark.parametrize('where', [
    '1', ['1'], lambda m: getattr(m, 'out_features', 0) == 7,
    [nn.Conv2d, '1']])
def test_one_way_to_choose(where):
    model, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 7)), torch.randn(50, 8)
    assert [r['name'] for r in lsuv_(model, x, where=where)] == ['1']
    assert [r['name'] for r in lsuv_(model, x, at=model[1])] == ['1']
    report = lsuv_(model, x, exclude='1')
    assert why(report) == {'1': 'excluded'}
    with pytest.raises(InputError, match='two names of one argument'):
        lsuv_(model, x, where='0', at='1')
    with pytest.raises(InputError, match="exclude names '7'"):
        lsuv_(model, x, exclude='7')

@pytest.mark.parametrize('make', [
    nn.ReLU, lambda: GeneralReLU(.1, .4), nn.Tanh,
    lambda: GeneralReLU(.1, .4, 3.)])
def test_what_is_called_impossible_is_and_what_is_possible_is_found(make):
    """Against a fine grid over all scales and shifts of a Gaussian, with at least a tenth of the
    units alive."""
    act, z = make(), torch.randn(20_000, generator=torch.Generator().manual_seed(3))
    grid = [(a, c) for a in torch.logspace(-1, 1, 25).tolist()
            for c in torch.linspace(-2, 2, 17).tolist()]
    random.Random(1).shuffle(grid)
    for a, c in grid[:25]:
        y = act(a*(z + c))
        if std(y) < .02: continue
        if (act(a*(z + c) + .01*a) != y).float().mean() < .12: continue
        model = nn.Sequential(nn.Linear(1, 1), act)
        r, = lsuv_(model, z[:, None], at=[model], std=std(y), mean=y.mean().item())
        assert r['std'] == pytest.approx(std(y), rel=1.1e-3)
        assert r['mean'] == pytest.approx(y.mean().item(), abs=1.1e-3*std(y))

def test_no_solution_with_dead_units():
    "The textbook loop gets a ReLU's mean below any bound, by killing units; this must not."
    x = torch.randn(400, 32)
    for mean in (.02, .05, .1):
        model = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
        with pytest.raises(LsuvError, match='dead|cannot be reached'):
            lsuv_(model, x, at=[model], mean=mean)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU())
    lsuv_(model, x, at=[model], mean=.4)
    assert (model(x) > 0).float().mean() > .2

# ---- errors, and what they leave behind -----------------------------------------------------

def unchanged(model, call, error, words=None):
    "`call(model)` must fail and leave no trace."
    x = torch.randn(3)
    def state():
        return [torch.get_rng_state().tolist(), random.getstate(),
                torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(),
                [(p.requires_grad, p.grad) for p in model.parameters()],
                [(m.training, len(m._forward_hooks) + len(m._forward_pre_hooks),
                  'forward' in vars(m)) for m in model.modules()]]
    was, before = snapshot(model), state()
    with pytest.raises(error, match=words): call(model)
    assert state() == before
    for (n, old, _), (m, new, _) in zip(was, snapshot(model)):
        assert n == m and same(old, new), n
    if hasattr(torch.overrides, '_len_torch_function_stack'):
        assert torch.overrides._len_torch_function_stack() == 0

class Stops(nn.Module):
    "Raises at its call number `when`; keeps a buffer that it writes to and takes random numbers."
    def __init__(self, when, error=KeyboardInterrupt):
        super().__init__()
        self.when, self.error, self.calls = when, error, 0
        self.register_buffer('seen', torch.zeros(3))
    def forward(self, x):
        self.calls += 1; self.seen += torch.rand(3); random.random()
        if self.calls == self.when: raise self.error('planted')
        return x

def full(stop, when=1, error=KeyboardInterrupt):
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(.3),
                         nn.Sequential(nn.Linear(8, 8), GeneralReLU(.1, .4)),
                         nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 8),
                         Stops(when, error) if stop else nn.Identity(), nn.Linear(8, 8))

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, MemoryError, SystemExit])
@pytest.mark.parametrize('kw', [{}, dict(mean=0.), dict(orthogonal=True), dict(dry_run=True)])
def test_an_error_in_the_forward(error, kw):
    x = torch.ones(30, 8) + torch.randn(30, 8, generator=torch.Generator().manual_seed(1))
    unchanged(full(True, 1, error), lambda m: lsuv_(m, x, **kw), error, 'planted')

@pytest.mark.parametrize('when', [1, 2, 3, 5])
@pytest.mark.parametrize('mean', [None, 0.])
def test_an_error_within_a_block_and_its_re_evaluations(when, mean):
    model = nn.Sequential(nn.Linear(8, 8),
                          nn.Sequential(nn.Linear(8, 8), GeneralReLU(.1, .4), Stops(when)))
    x = torch.randn(40, 8)
    if when == 5 and mean is None: return
    unchanged(model, lambda m: lsuv_(m, x, at=[m[0], m[1]], mean=mean),
              KeyboardInterrupt, 'planted')

@pytest.mark.parametrize('after', [0, 1, 4, 9, 12])
@pytest.mark.parametrize('orthogonal', [False, True])
def test_an_error_amid_the_writing(monkeypatch, after, orthogonal):
    real, calls, x = ours._put, itertools.count(), torch.randn(30, 8)
    def planted(p, value):
        n = next(calls)
        if n == after:
            real(p, value*math.nan if p.is_floating_point() else value)
            raise KeyboardInterrupt('planted')
        real(p, value)
    monkeypatch.setattr(ours, '_put', planted)
    unchanged(full(False), lambda m: lsuv_(m, x, mean=0., orthogonal=orthogonal),
              KeyboardInterrupt, 'planted')

def nan_in(model): model[5].weight.data[2, 3] = math.nan; return model
def inf_in(model): model[5].bias.data[1] = math.inf; return model
def constant_in(model):
    model[0].weight.data.fill_(1.)
    model[0].bias.data.fill_(3.)
    return model

@pytest.mark.parametrize('spoil, x, error, words', [
    (nan_in, torch.randn(30, 8), LsuvError,
     "'5': 30 of the 240 numbers of its output are nan or inf; its input has none"),
    (inf_in, torch.randn(30, 8), LsuvError, "'5': 30 of the 240"),
    (lambda m: m, torch.randn(30, 8)*math.nan, LsuvError, "'0': .* and its input as well"),
    (constant_in, torch.zeros(30, 8), LsuvError,
     r"'0': its output is 3 everywhere .*Its input is all zero"),
    (constant_in, torch.ones(30, 8), LsuvError, r"'0': its output is 11 everywhere"),
    (lambda m: m[:1], torch.randn(30, 9), RuntimeError, 'shapes'),
    (lambda m: nn.Sequential(nn.Linear(8, 1)), torch.randn(1, 8), LsuvError, 'larger batch'),
    (lambda m: nn.Sequential(nn.Linear(8, 1)), torch.randn(0, 8), LsuvError, 'larger batch'),
    (lambda m: nn.Sequential(nn.Linear(8, 8).half()), 6e4*torch.randn(9, 8).sign().half(),
     LsuvError, 'float16'),
])
def test_bad_models_and_batches(spoil, x, error, words):
    unchanged(spoil(full(False)), lambda m: lsuv_(m, x, mean=0.), error, words)

@pytest.mark.parametrize('kw, words', [
    (dict(std=0), 'std is 0'), (dict(std=-1.), 'std'), (dict(std=math.nan), 'std'),
    (dict(std=math.inf), 'std'), (dict(std=None), 'std'), (dict(std='1'), 'std'),
    (dict(std=True), 'std'), (dict(std=torch.ones(3)), 'std'),
    (dict(mean=math.inf), 'mean'), (dict(mean='0'), 'mean'), (dict(tol=0), 'tol'),
    (dict(tol=-1e-3), 'tol'), (dict(at=nn.Conv2d), 'matches no module'),
    (dict(at=[]), 'matches no module'), (dict(at=[nn.Linear(2, 2)]), 'not in the model'),
    (dict(at=3), 'where is 3'), (dict(at=lambda m: False), 'matches no module'),
    (dict(at=[3]), r'where is \[3\]')])
def test_refusals(kw, words):
    x = torch.randn(9, 8, generator=torch.Generator().manual_seed(1))
    unchanged(full(False), lambda m: lsuv_(m, x, **kw), InputError, words)

# ---- dry run, orthogonal, generator ----------------------------------------------------------

@pytest.mark.parametrize('kw', [
    {}, dict(mean=0.), dict(orthogonal=True),
    dict(at=nn.Sequential, mean=0.)])
def test_dry_run_reports_and_changes_nothing(kw):
    model, x, g = full(False), torch.randn(50, 8), torch.Generator().manual_seed(5)
    if 'at' in kw: kw['at'] = [model[3]]
    was, state, drawn = snapshot(model), torch.get_rng_state(), g.get_state()
    dry = lsuv_(model, x, generator=g, dry_run=True, **kw)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(g.get_state(), drawn)
    assert all(same(old, t) for _, old, t in was)
    assert list(dry) == list(lsuv_(model, x, generator=g, **kw))
    assert not all(same(old, t) for _, old, t in was)

def test_orthogonal_start():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(80, 40), nn.ReLU(),
                          nn.Linear(40, 40))
    x, g = torch.randn(64, 3, 6, 6), torch.Generator().manual_seed(5)
    for m in model:
        if isinstance(m, nn.Linear): nn.init.constant_(m.bias, 3.)
    calibrated(model, x, orthogonal=True, generator=g)
    for m in (model[0], model[3], model[5]):
        w = m.weight.flatten(1).double()
        gram = w @ w.T
        torch.testing.assert_close(gram/gram[0, 0], torch.eye(len(w)).double(), atol=1e-5, rtol=0)
        assert not m.bias.any()
    other = copy.deepcopy(model)
    torch.manual_seed(3)
    lsuv_(model, x, orthogonal=True)
    # what was drawn is used up
    assert not torch.equal(torch.get_rng_state(), torch.random.manual_seed(3).get_state())
    torch.manual_seed(3); lsuv_(other, x, orthogonal=True)
    assert all(map(torch.equal, model.parameters(), other.parameters()))

def test_the_paper_end_to_end():
    "Orthonormal, then unit variance: as the paper's loop from the same start."
    model, x = deep(5, 12).double(), torch.randn(100, 12, dtype=torch.float64)
    loop = copy.deepcopy(model)
    g = torch.Generator().manual_seed(9)
    for m in loop[::2]:
        nn.init.orthogonal_(m.weight, generator=g)
        nn.init.zeros_(m.bias)
    assert textbook_(loop, x)
    lsuv_(model, x, orthogonal=True, generator=torch.Generator().manual_seed(9))
    for p, q in zip(model.parameters(), loop.parameters()):
        torch.testing.assert_close(p, q)

# ---- report ----------------------------------------------------------------------------------

def test_report():
    import matplotlib; matplotlib.use('agg')
    report = lsuv_(Tied(), torch.randint(30, (64, 5)))
    assert isinstance(report, LsuvReport) and json.loads(json.dumps(report)) == list(report)
    assert set(report[0]) == {'name', 'between_batches', 'layer', 'kind', 'mean_before',
                              'std_before', 'mean', 'std', 'se', 'scale', 'shift', 'evaluations',
                              'calls', 'why', 'note'}
    table, markdown = repr(report), report._repr_markdown_()
    for r in report:
        assert r['layer'] in table and f"| {r['layer']} |" in markdown
    assert '1 set, 2 left alone' in table
    assert 'tied to embed.weight' in table
    assert '\n' in str(report)
    assert max(map(len, table.splitlines()[:-1])) < 140
    axes = report.plot()
    assert [len(a.lines) for a in axes] == [3, 2] and axes[0].get_yscale() == 'log'
    matplotlib.pyplot.close('all')

def test_report_warns_of_small_batches():
    model = deep(2)
    report = lsuv_(model, torch.randn(20, 16))
    # two batches have an error each
    assert f"off by about {math.sqrt(2)*max(r['se'] for r in report):.2g} (" in repr(report)
    assert 'larger batch' in repr(report)
    assert 'one sample' in repr(lsuv_(deep(2), torch.randn(1, 16)))
    quiet = lsuv_(nn.Linear(4, 4), torch.randn(200_000, 4), tol=.05)
    assert 'batch' not in repr(quiet) and quiet[0]['se'] < .05

# ---- several processes -----------------------------------------------------------------------

WORKER = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from initnotes.lsuv import ConvLayer, LsuvError, lsuv_
dist.init_process_group('gloo')
rank = dist.get_rank()
torch.manual_seed(1 + rank*(len(sys.argv) > 2))
model = nn.Sequential(ConvLayer(1, 6, leak=.1, sub=.4), ConvLayer(6, 6, leak=.1, sub=.4),
                      nn.Flatten(), nn.Linear(54, 10))
x = torch.load(sys.argv[1])
mine = x[:30] if rank == 0 else x[30:]                # unequal shares
if len(sys.argv) > 2:
    try: lsuv_(model, mine)
    except LsuvError as e: assert 'ranks start from different weights' in str(e)
    else: raise SystemExit('no error')
else:
    wrapped = nn.parallel.DistributedDataParallel(model)
    reports = (lsuv_(wrapped, mine), lsuv_(wrapped, mine, at=ConvLayer, mean=0.),
               lsuv_(model, mine, at=nn.Linear, mean=0.))
    assert [r['layer'] for r in reports[0]] == ['0.conv', '1.conv', '3']
    try: lsuv_(model, mine*torch.nan if rank else mine)
    except LsuvError as e: assert "'0.conv'" in str(e)  # on every rank, also where all is well
    else: raise SystemExit('no error')
    state = {k: v for k, v in model.state_dict().items()}
    torch.save([state, [list(r) for r in reports]], f'{sys.argv[1]}.{rank}')
dist.barrier()                                        # nobody leaves while the other still talks
dist.destroy_process_group()
os._exit(0)       # gloo's threads do not always survive the interpreter's end
"""

def torchrun(tmp_path, *args, script=None):
    (tmp_path/'worker.py').write_text(script or WORKER)
    env = {**os.environ, 'OMP_NUM_THREADS': '1',
           'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')])}
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone',
               '--nproc-per-node=2', tmp_path/'worker.py', *args]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr

@pytest.mark.slow
def test_two_processes_as_one_on_both_batches(tmp_path):
    x, path = torch.randn(50, 1, 9, 9)*torch.rand(50, 1, 1, 1), str(tmp_path/'x')
    torch.save(x, path)
    torchrun(tmp_path, path)
    (one, reports), (two, theirs) = (torch.load(f'{path}.{r}') for r in (0, 1))
    # the same bits on both
    assert reports == theirs and all(map(torch.equal, one.values(), two.values()))
    torch.manual_seed(1)
    model = nn.Sequential(ConvLayer(1, 6, leak=.1, sub=.4), ConvLayer(6, 6, leak=.1, sub=.4),
                          nn.Flatten(), nn.Linear(54, 10))
    single = (lsuv_(model, x), lsuv_(model, x, at=ConvLayer, mean=0.),
              lsuv_(model, x, at=nn.Linear, mean=0.))
    for k, v in model.state_dict().items():
        torch.testing.assert_close(one[k], v, rtol=1e-4, atol=1e-5)
    for r, s in zip(itertools.chain(*reports), itertools.chain(*single)):
        assert r['layer'] == s['layer']
        assert r['std_before'] == pytest.approx(s['std_before'], rel=1e-5)
        assert r['se'] == pytest.approx(s['se'], rel=.05)

@pytest.mark.slow
def test_ranks_that_start_differently_are_refused(tmp_path):
    path = str(tmp_path/'x')
    torch.save(torch.randn(50, 1, 9, 9), path)
    torchrun(tmp_path, path, 'differently')

# ---- real architectures ----------------------------------------------------------------------

SMALL = dict(vocab_size=101, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
             intermediate_size=64)
REAL = {'ResNet-50': ('ResNetForImageClassification', 'ResNetConfig',
                      dict(embedding_size=16, hidden_sizes=[32, 64, 64, 96], depths=[3, 4, 6, 3],
                           layer_type='bottleneck')),
        'ConvNeXt': ('ConvNextForImageClassification', 'ConvNextConfig',
                     dict(hidden_sizes=[16, 32, 32, 48], depths=[2, 2, 3, 2])),
        'ViT': ('ViTForImageClassification', 'ViTConfig',
                {**SMALL, 'image_size': 32, 'patch_size': 8}),
        'BERT': ('BertForMaskedLM', 'BertConfig', SMALL),
        'GPT-2': ('GPT2LMHeadModel', 'GPT2Config',
                  dict(vocab_size=101, n_positions=24, n_embd=32, n_layer=3, n_head=4,
                       bos_token_id=0, eos_token_id=0))}

@pytest.mark.parametrize('name', REAL)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.slow
def test_real_architectures(name, training):
    """Random weights, nothing downloaded: calibrated in one pass, every row that is left alone
    explained."""
    import transformers
    cls, config, kw = REAL[name]
    # in float64: many batch-norms in a row magnify float32's rounding
    model = getattr(transformers, cls)(getattr(transformers, config)(**kw)).train(training).double()
    text = name in ('BERT', 'GPT-2')
    if text: inputs = dict(input_ids=torch.randint(101, (16, 12)))
    else: inputs = dict(pixel_values=torch.randn(8, 3, 32, 32).double())
    if name == 'BERT': inputs['attention_mask'] = torch.ones(16, 12).long()
    calls, handles = count_calls(model)
    report = calibrated(model, **inputs, eps=1e-8)
    # ours, and the fresh forward that checks it
    assert calls[''] == 2 and max(calls[r['layer']] for r in report) == 2
    reasons = why(report)
    kinds = nn.Linear, nn.Conv2d, transformers.pytorch_utils.Conv1D
    ours_ = {n for n, m in model.named_modules() if isinstance(m, kinds)}
    assert ours_ == {r['layer'] for r in report if r['layer'] in ours_} and len(ours_) >= 12
    assert set(reasons) & ours_ == ({'BERT': {'cls.predictions.decoder'},
                                     'GPT-2': {'lm_head'}}.get(name, set()))
    tied = {'BERT': 'bert.embeddings.word_embeddings.weight', 'GPT-2': 'transformer.wte.weight'}
    if text:
        head = 'cls.predictions.decoder' if name == 'BERT' else 'lm_head'
        assert reasons[head] == f'its weight is tied to {tied[name]}'
    allowed = ('tied', 'embedding:', 'lsuv_kinds does not know')
    assert all(any(a in v for a in allowed) for v in reasons.values()), reasons

# ---- one strange layer, and looking that changes nothing -------------------------------------

class Routed(nn.Module):
    "A mixture of experts that sends nothing to the last one, in so many of its calls."
    def __init__(self, idle):
        super().__init__()
        self.experts, self.idle = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), idle
    def forward(self, x):
        for call in range(2):
            n = len(x)//3
            parts = x[:n], x[n:], x[:0] if call < self.idle else x[:n]
            x = torch.cat([e(p) for e, p in zip(self.experts, parts)])[:len(x)]
        return x

@pytest.mark.parametrize('idle, frozen', [(2, False), (2, True), (1, False)])
def test_an_idle_expert_stops_nothing_and_counts_when_it_is_not(idle, frozen):
    model = Routed(idle)
    model.experts[2].requires_grad_(not frozen)
    report = {r['name']: r for r in lsuv_(model, torch.randn(90, 8))}
    assert not report['experts.0']['why'] and not report['experts.1']['why']
    if frozen:
        assert 'frozen' in report['experts.2']['why'] or 'empty' in report['experts.2']['why']
    elif idle == 2:
        assert 'only empty batches (2 calls)' in report['experts.2']['why']
    else: assert report['experts.2']['std'] == pytest.approx(1, abs=1e-6)

def test_a_query_of_zeros_is_the_models_doing():
    class Queries(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.query = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
            self.out = nn.Linear(8, 8)
        def forward(self, x):
            return self.out(self.encode(x) + self.query(torch.zeros(1, 8)))
    report = lsuv_(Queries(), torch.randn(50, 8))
    assert list(why(report)) == ['query'] and 'input is all zero' in why(report)['query']
    with pytest.raises(LsuvError, match='input is all zero'):
        lsuv_(nn.Sequential(nn.Linear(8, 8, bias=False), nn.Linear(8, 8)), torch.zeros(50, 8))

@pytest.mark.parametrize('strange, words', [
    (lambda: nn.Linear(4, 4, device='meta'), 'meta device'),
    (lambda: nn.Linear(0, 4), 'no elements')])
@pytest.mark.filterwarnings('ignore:Initializing zero-element')
def test_a_strange_layer_elsewhere_is_named(strange, words):
    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.unused = nn.Linear(4, 4), strange()
        def forward(self, x): return self.a(x)
    assert words in why(lsuv_(Elsewhere(), torch.randn(50, 4)))['unused']

class Writes(nn.Module):
    "A forward that writes its own parameters, in one of several ways."
    def __init__(self, how):
        super().__init__()
        self.a, self.own, self.how = nn.Linear(8, 8), nn.Parameter(torch.ones(8)), how
    def forward(self, x):
        with torch.no_grad(): self.how(self.own)
        return self.a(x)*self.own

def swap(p): p.data = p*2
def index(p): p[1:3] = 7.
def foreach(p): torch._foreach_mul_([p], .5)
def into(p): torch.mul(p, 3., out=p)

@pytest.mark.parametrize('how', [
    lambda p: p.lerp_(torch.zeros(8), .1), lambda p: p.data.clamp_(2.),
    lambda p: p.view(2, 4)[0].add_(1), lambda p: p.copy_(torch.zeros(8)),
    swap, index, foreach, into])
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('dry_run', [True, False])
def test_what_a_forward_writes_is_put_back(how, training, dry_run):
    model = Writes(how).train(training)
    lsuv_(model, torch.randn(50, 8), dry_run=dry_run)
    assert torch.equal(model.own, torch.ones(8))

def test_what_a_forward_writes_is_put_back_when_it_fails():
    def fail(p): p.mul_(2); raise RuntimeError('planted')
    model = Writes(fail)
    with pytest.raises(RuntimeError, match='planted'):
        lsuv_(model, torch.randn(50, 8))
    assert torch.equal(model.own, torch.ones(8))

@pytest.mark.parametrize('kw', [{}, dict(mean=0.)])
def test_a_model_that_differentiates_in_forward(kw):
    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(),
                                     nn.Linear(16, 1))
        def forward(self, x):
            with torch.enable_grad():
                x = x.detach().requires_grad_()
                e = self.net(x)
                return e, -torch.autograd.grad(e.sum(), x, create_graph=True)[0]
    model, x, seen = Forces(), torch.randn(64, 3), []
    handle = model.register_forward_hook(lambda m, a, out: seen.append(out[1].detach()))
    assert not why(lsuv_(model, x, **kw))
    handle.remove()
    assert all(abs(std(outputs(model, x)[n]) - 1) < 1e-5 for n in ('net.0', 'net.2', 'net.4'))
    # the forces of that pass are those of the calibrated model
    assert torch.allclose(seen[0], model(x)[1], rtol=1e-4, atol=1e-6)

SHARDED = """
import os, sys, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
import initnotes as ini
dist.init_process_group('gloo')
mesh, rank, kind = init_device_mesh('cpu', (2,)), dist.get_rank(), sys.argv[1]
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 2))
torch.manual_seed(1); x = torch.randn(64, 8)
whole, parts = net(), net()
if kind == 'fsdp':
    for layer in parts[::2]: fully_shard(layer, mesh=mesh)
    fully_shard(parts, mesh=mesh); mine = x.chunk(2)[rank]
else:
    parallelize_module(parts, mesh, {'0': ColwiseParallel(), '2': RowwiseParallel()})
    mine = x
for model in (whole, parts): torch.manual_seed(2); ini.init_(model)
def full(p): return p.full_tensor() if hasattr(p, 'full_tensor') else p
def same(tol, what):
    for (n, p), q in zip(whole.named_parameters(), parts.parameters()):
        off = (p - full(q)).abs().max().item()
        assert off <= tol*p.abs().max().item() + 1e-12, (what, n, off)
same(0., 'init_')
if kind == 'fsdp':
    from initnotes.lsuv import lsuv_
    report = lsuv_(parts, mine)
    assert len(report) == 3 and not any(r['why'] for r in report), report
    y = mine
    for k, layer in enumerate(parts):
        y = layer(y)
        if k % 2 == 0:
            out = [torch.empty_like(y) for _ in range(2)]
            dist.all_gather(out, y.detach().contiguous())
            assert abs(torch.cat(out).std().item() - 1) < 1e-4, (k, torch.cat(out).std())
dist.destroy_process_group()
"""

@pytest.mark.slow
@pytest.mark.parametrize('kind', ['fsdp', 'tensor parallel'])
@pytest.mark.filterwarnings('ignore')
def test_sharded_models_on_two_processes(tmp_path, kind):
    torchrun(tmp_path, kind, script=SHARDED)

# ---- large weights are written at the end ----------------------------------------------------

@pytest.fixture
def all_large(monkeypatch): monkeypatch.setattr(calibrate, '_LARGE', 0)

class Borrowing(nn.Module):
    """Uses a weight again: by a second call, by itself, by a view made before, within another
    function."""
    def __init__(self, how):
        super().__init__()
        self.a, self.b, self.how = nn.Linear(8, 8), nn.Linear(8, 8), how
    def forward(self, x):
        view = self.a.weight[:, :4]
        return self.b(self.how(self, self.a(x), view))

class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, w): return h @ w

BORROWED = [lambda m, h, v: m.a(h),
            lambda m, h, v: F.linear(h, m.a.weight),
            lambda m, h, v: h @ m.a.weight.data.T,
            lambda m, h, v: h[:, :4] @ v.T,
            lambda m, h, v: F.bilinear(h, h, m.a.weight.expand(3, 8, 8))[:, [0]*8]*h,
            lambda m, h, v: Through.apply(h, m.a.weight),
            lambda m, h, v: h + m.a.bias,
            lambda m, h, v: torch.func.functional_call(m.a, {}, h),
            lambda m, h, v: h*m.a.weight.square().mean(),
            lambda m, h, v: torch.vmap(lambda r: m.a.weight @ r)(h),
            lambda m, h, v: checkpoint(m.a, h, use_reentrant=False),
            lambda m, h, v: h.to(m.a.weight.dtype),
            lambda m, h, v: h @ torch.func.grad(lambda w: w.square().sum())(m.a.weight),
            lambda m, h, v: torch.func.jvp(lambda w: h @ w, (m.a.weight,), (torch.ones(8, 8),))[0],
            lambda m, h, v: h*torch.vmap(lambda w: w.sum())(m.a.weight)]

@pytest.mark.parametrize('how', BORROWED)
@pytest.mark.parametrize('centre', [None, 0.])
def test_a_weight_that_is_used_again_is_written_before(how, centre, monkeypatch):
    one, x = Borrowing(how), torch.randn(60, 8)
    two = copy.deepcopy(one)
    theirs = lsuv_(two, x, mean=centre)
    monkeypatch.setattr(calibrate, '_LARGE', 0)
    ours = calibrated(one, x, centre=centre, eps=2e-5)
    assert ours == theirs and all(map(torch.equal, one.parameters(), two.parameters()))

def test_large_weights_are_not_copied(all_large):
    model, copied = deep(3), []
    real = ours.Trace.remember
    try:
        ours.Trace.remember = lambda self, p: copied.append(p) or real(self, p)
        calibrated(model, torch.randn(40, 16), centre=0.)
    finally: ours.Trace.remember = real
    assert not copied
    big, x = nn.Linear(2**10, 2**10), torch.randn(64, 2**10)
    assert big.weight.numel() >= 2**20
    assert not why(calibrated(nn.Sequential(big, nn.Linear(2**10, 4)), x))

def test_two_large_weights_in_one_memory(all_large):
    flat, layers = torch.randn(72), [nn.Linear(6, 6, bias=False) for _ in range(2)]
    for l, part in zip(layers, flat.split(36)):
        l.weight = nn.Parameter(part.view(6, 6))
    assert not why(calibrated(nn.Sequential(*layers), torch.randn(20, 6)))

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError])
def test_nothing_of_a_large_model_is_written_when_the_forward_fails(all_large, error):
    x = torch.randn(30, 8)
    unchanged(full(True, 1, error), lambda m: lsuv_(m, x, mean=0.), error, 'planted')
    unchanged(nan_in(full(False)), lambda m: lsuv_(m, x), LsuvError, "'5': 30 of the 240")
    model = full(False)
    was = snapshot(model)
    lsuv_(model, x, dry_run=True)
    assert all(same(old, t) for _, old, t in was)

def test_large_weights_of_every_sort(all_large):
    """What cannot wait does not: halves, orthogonal starts, blocks, forces, two names for one
    memory."""
    calibrated(deep(3), torch.randn(60, 16), orthogonal=True, generator=torch.Generator())
    half = deep(2, 64).to(torch.bfloat16)
    assert all(abs(r['std'] - 1) < 1e-3
               for r in lsuv_(half, torch.randn(256, 64, dtype=torch.bfloat16)))
    test_a_model_that_differentiates_in_forward({})
    test_blocks_of_every_kind(Repeating, None)
    test_autocast()
    test_models_made_in_inference_mode()
    calibrated(Tied(), torch.randint(30, (16, 5)))

def test_an_interruption_during_the_last_writing_waits(all_large, monkeypatch):
    "Ctrl-C while weights are written: all of them are, then it is raised."
    import signal
    model, x, real = deep(4), torch.randn(40, 16), calibrate._renew
    two, calls = copy.deepcopy(model), []
    lsuv_(two, x)
    monkeypatch.setattr(calibrate, '_renew',
                        lambda m: (real(m), calls.append(m),
                                   len(calls) == 2 and signal.raise_signal(signal.SIGINT)))
    with pytest.raises(KeyboardInterrupt): lsuv_(model, x)
    assert len(calls) == 4 and all(map(torch.equal, model.parameters(), two.parameters()))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

# ---- what the report says --------------------------------------------------------------------

class Dense(nn.Module):
    "Each layer sees all before it through a batch norm, as in a densenet."
    def __init__(self, n=4, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(16 + 8*n, 10)
        self.norms = nn.ModuleList(norm(16 + 8*i) for i in range(n))
        self.convs = nn.ModuleList(nn.Conv2d(16 + 8*i, 8, 3, padding=1, bias=False)
                                   for i in range(n))
    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(x.mean((2, 3)))

def modes(report):
    return [s for s in report.summary() if 'evaluation mode' in s]
def worst(model, x, report):
    with torch.no_grad(): fresh = outputs(model, x)
    return max(abs(std(fresh[r['layer']]) - 1) for r in report)

def test_where_evaluation_mode_will_differ_is_said_and_both_ways_out_lead_out():
    model, x = Dense(), 2*torch.randn(32, 3, 12, 12) + 1
    report = lsuv_(model, x)
    said = modes(report)
    assert said and all("'norms.0' and 3 more" in s and 'the 5 set behind' in s for s in said)
    assert worst(model.eval(), x, report) > .05                          # it is true
    model.train()
    with torch.no_grad():
        for _ in range(80): model(x)  # the statistics run
    assert worst(model.eval(), x, report) < .01
    again = lsuv_(Dense().eval(), x)
    assert not modes(again)
    model = Dense().eval()
    assert worst(model, x, lsuv_(model, x)) < 1e-5  # or evaluation mode from the start

class OwnNorm(nn.Module):
    "Keeps running statistics without being one of torch's norms."
    def __init__(self, n):
        super().__init__()
        self.register_buffer('running', torch.zeros(n))
    def forward(self, x):
        if self.training: self.running.lerp_(x.mean((0, 2, 3)), .1)
        return x - (x.mean((0, 2, 3)) if self.training else self.running)[:, None, None]

@pytest.mark.parametrize('norm, said', [
    (OwnNorm, True), (nn.BatchNorm2d, True),
    (lambda n: nn.InstanceNorm2d(n, track_running_stats=True), True),
    (lambda n: nn.RReLU(), True), (lambda n: nn.BatchNorm2d(n, track_running_stats=False), False),
    (lambda n: nn.GroupNorm(4, n), False), (lambda n: nn.Dropout(.5), False),
    (lambda n: nn.BatchNorm2d(n).eval(), False)])
def test_whatever_keeps_statistics_counts(norm, said):
    assert bool(modes(lsuv_(Dense(norm=norm), torch.randn(8, 3, 6, 6)))) == said

def test_a_norm_behind_everything_changes_nothing_that_was_set():
    assert not modes(lsuv_(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)), torch.randn(30, 8)))

class Tokens(nn.Module):
    def __init__(self, flat):
        super().__init__()
        self.embed, self.a, self.flat = nn.Embedding(20, 8), nn.Linear(8, 8), flat
    def forward(self, i):
        x = self.embed(i)
        return self.a(x.reshape(-1, 8) if self.flat else x)

@pytest.mark.parametrize('model, args, speaks', [
    (lambda: Tokens(False), [(16, 6)], True), (lambda: Tokens(True), [(16, 6)], False),
    (lambda: nn.Linear(8, 8), [(50, 8)], True),
    (lambda: nn.Transformer(8, 2, 1, 1, 16), [(5, 9, 8), (4, 9, 8)], False),
    (lambda: nn.Transformer(8, 2, 1, 1, 16, batch_first=True), [(9, 5, 8), (9, 4, 8)], True)])
def test_another_batch_is_spoken_of_only_where_rows_are_samples(model, args, speaks):
    model = model()
    batch = [torch.randint(20, s) if isinstance(model, Tokens) else torch.randn(s) for s in args]
    done = [r for r in lsuv_(model, *batch) if not r['why']]
    assert done and all(r['se'] is not None for r in done)
    for r in done:
        assert r['between_batches'] == (math.sqrt(2)*r['se'] if speaks else None)

@pytest.mark.filterwarnings('ignore')
def test_a_quantised_child_and_a_weight_that_is_a_buffer_are_named():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer('weight', torch.randn(4, 4))
        def forward(self, x): return x @ self.weight
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), Fixed())
    model[1] = torch.ao.quantization.quantize_dynamic(model[1], {nn.Linear})
    assert why(lsuv_(model, torch.randn(50, 4))) == {
        '1.0': 'quantized: its weight is packed, no parameter',
        '2': 'its weight is a buffer, no parameter'}

# ---- residual blocks -------------------------------------------------------------------------

class Sum(nn.Module):
    "A block of two layers, and how its output comes of its input."
    def __init__(self, how, conv=False):
        super().__init__()
        self.a, self.b, self.c = [nn.Conv2d(8, 8, 3, padding=1) if conv else nn.Linear(8, 8)
                                  for _ in range(3)]
        self.norm, self.drop, self.gamma = nn.LayerNorm(8), nn.Dropout(.5), nn.Parameter(
            torch.full((8,), .01))
        self.batch = nn.BatchNorm1d(8)
        self.how = how
    def branch(self, x): return self.b(torch.relu(self.a(x)))
    def forward(self, x): return self.how(self, x)

def in_place(m, x): x += m.branch(x); return x

HANDED_ON = dict(
    plain=lambda m, x: x + m.branch(x), twice=lambda m, x: x + torch.tanh(m.branch(x)),
    norm=lambda m, x: x + m.branch(m.norm(x)), scale=lambda m, x: x + m.gamma*m.branch(x),
    drop=lambda m, x: x + m.drop(m.branch(x)), place=in_place,
    pair=lambda m, x: (x + m.branch(x), 5.), minus=lambda m, x: x - m.branch(x))

@pytest.mark.parametrize('how', HANDED_ON)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('big', [.01, 1., 30.])
def test_a_residual_block_is_set_at_what_it_adds(how, training, big):
    model = nn.Sequential(Sum(HANDED_ON[how])).train(training)
    x = big*torch.randn(200, 8)
    adds(model, lsuv_(model, x.clone(), where=Sum, std=.4), x, '0', .4)

def test_a_convolutional_residual_net():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), *[Sum(HANDED_ON['plain'], True) for _ in range(4)])
    x = torch.randn(20, 3, 8, 8)
    report = lsuv_(model, x, where=Sum)
    adds(model, report, x, '1234')
    assert std(model(x)) > 1.5 and all(r['evaluations'] <= 3 for r in report)

@pytest.mark.parametrize('how', [lambda m, x: 3*x + m.branch(x),
                                 lambda m, x: m.c(x) + m.branch(x)])
def test_another_shortcut_is_subtracted_as_well(how):
    model, x = nn.Sequential(Sum(how)), torch.randn(100, 8)
    report = lsuv_(model, x, where=Sum, std=.5)
    assert std(model[0].branch(x)) == pytest.approx(.5, rel=1e-3)
    assert 'of what it adds' in report[0]['note']

@pytest.mark.parametrize('how, writers', [
    (lambda m, x: (lambda h: h + m.c(h))(x + m.branch(x)), ['0.b', '0.c']),
    (lambda m, x: m.branch(x) + m.c(x), ['0.b']),
    (lambda m, x: torch.relu(x + m.branch(x)), ['0.b']),
    (lambda m, x: m.norm(x + m.branch(x)), ['0.b'])])
def test_what_to_name_instead_is_said_and_works(how, writers):
    model, x = nn.Sequential(Sum(how)), torch.randn(100, 8)
    with pytest.raises(LsuvError, match='hands on a stream') as e: lsuv_(model, x, where=Sum)
    named = eval(str(e.value).partition('where=')[2].rpartition('.')[0])
    assert named == writers and 'activation' not in str(e.value)
    calibrated(model, x, at=named)

@pytest.mark.parametrize('norm_first', [True, False])
def test_a_transformer_block_names_attention_and_mlp(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    model, x = nn.Sequential(layer), torch.randn(30, 6, 8)
    with pytest.raises(LsuvError, match='2 branches add') as e:
        lsuv_(model, x, where=nn.TransformerEncoderLayer)
    assert ('A norm follows' in str(e.value)) == (not norm_first)
    named = ['0.self_attn.out_proj', '0.linear2']
    assert str(named) in str(e.value)
    fresh = lsuv_(model, x, where=named)
    assert [r['std'] for r in fresh] == pytest.approx([1, 1], rel=1e-5) and not why(fresh)

@pytest.mark.parametrize('how, words', [
    (lambda m, x: x + m.batch(m.branch(x)), "does not depend on the scale of '0.b'"),
    (lambda m, x: torch.relu(x + m.batch(m.branch(x))), '0.batch.weight')])
def test_a_norm_behind_the_writer(how, words):
    model, x = nn.Sequential(Sum(how)), torch.randn(100, 8)
    unchanged(model, lambda m: lsuv_(m, x, where=Sum, std=.7), LsuvError, words)

def test_a_closed_branch_is_left_alone():
    model, x = nn.Sequential(Sum(HANDED_ON['scale'])), torch.randn(100, 8)
    nn.init.zeros_(model[0].gamma)
    assert 'what it adds to the stream is zero' in why(lsuv_(model, x, where=Sum))['0']

@pytest.mark.parametrize('how', [
    lambda m, x: m.branch(x), lambda m, x: m.a(x) + m.b(x), lambda m, x: torch.cat([x, m.b(x)], 1),
    lambda m, x: m.a(x)*torch.sigmoid(m.c(x)) + m.b(x)])
def test_blocks_without_a_stream_are_set_at_their_outputs(how):
    model, x = nn.Sequential(Sum(how)), torch.randn(100, 8)
    report = lsuv_(model, x, where=Sum, std=1.5)
    held(model, report, x, '0', 1.5)
    assert report[0]['note'] == "adjusts '0.b'"

def test_an_output_of_one_number_stops_nothing():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.t = nn.Linear(8, 8), nn.Linear(1, 1)
        def forward(self, x): return self.a(x)*self.t(torch.ones(1, 1))
    report = calibrated(Scaled(), torch.randn(50, 8))
    assert why(report) == {'t': 'its output has 1 number: a std needs two'}

# ---- torch.func inside a forward -------------------------------------------------------------

@pytest.mark.parametrize('first', [True, False])
@pytest.mark.parametrize('large', [True, False])
def test_forces_by_torch_func(first, large, monkeypatch):
    class Forces(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
        def forward(self, x):
            energy = self.net(x) if first else None
            return energy, torch.func.grad(lambda x: self.net(x).sum())(x)
    if large: monkeypatch.setattr(calibrate, '_LARGE', 0)
    model, x, seen = Forces(), torch.randn(64, 3), []
    handle = model.register_forward_hook(lambda m, a, out: seen.append(out[1]))
    assert not why(lsuv_(model, x))
    handle.remove()
    assert std(model.net[0](x)) == pytest.approx(1, abs=1e-5)
    assert std(model.net(x)) == pytest.approx(1, abs=1e-5)
    assert torch.allclose(seen[0], model(x)[1], rtol=1e-4, atol=1e-6)

def test_a_layer_that_only_sees_single_samples_is_refused():
    class Mapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        def forward(self, x): return torch.vmap(self.b)(self.a(x))
    x = torch.randn(30, 8)
    unchanged(Mapped(), lambda m: lsuv_(m, x), InputError, "'b' is called inside torch.vmap")
