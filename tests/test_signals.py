"Signals and gradients along the chain: what is found, what is not, and how far chance may go."
import math

import pytest, torch
from torch import nn

import initnotes as ini
from initnotes import signals
from initnotes.evidence import Finding, Skipped, measure
from initnotes.thresholds import allowed

X = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))

def plain(depth, act=nn.ReLU, width=64, bias=True, norm=None):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width, bias=bias), *([norm(width)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(width, 10))

def found(model, *args, loud=True):
    e = measure(model, args)
    all_ = [f for check in signals.CHECKS.values() for f in check(e)]
    return {f.check: f for f in all_
            if isinstance(f, Finding) and (f.severity != 'info' or not loud)}

def started(model, factor=1., **options):
    ini.init_(model, **options)
    with torch.no_grad():
        for p in model.parameters(): p.mul_(factor)
    return model

@pytest.mark.parametrize('act, name', [(nn.ReLU, 'relu'), (nn.Tanh, 'tanh'), (nn.GELU, 'gelu'),
                                       (nn.SiLU, 'silu'), (nn.SELU, 'selu'), (nn.ELU, 'elu')])
@pytest.mark.parametrize('depth', [3, 12])
def test_healthy_plain_nets(act, name, depth):
    for seed in range(3):
        torch.manual_seed(seed)
        assert not found(started(plain(depth, act), nonlinearity=name), X)

@pytest.mark.parametrize('factor', [.7, 1.42])
def test_a_drift_is_named_where_it_is_material(factor):
    "Each layer multiplies the mean square by factor²: from e⁶ on it is named."
    torch.manual_seed(0)
    first = 6/abs(2*math.log(factor))
    for depth, sick in ((int(first) - 3, False), (int(first) + 5, True)):
        model = started(plain(depth, bias=False), factor)
        assert ('forward' in found(model, X)) == sick, depth

def test_a_finding_says_what_was_measured():
    torch.manual_seed(1)
    f = found(started(plain(20, bias=False), .5), X)['forward']
    assert abs(f.measured - 19*2*math.log(.5)) < 5*f.se and f.measured < 0
    assert 'vanishes' in f.message and f.severity == 'error'
    assert abs(f.predicted) < f.se**2                           # −v/2
    assert abs(f.measured - f.predicted) > allowed(f.se)

def test_the_cause_is_named():
    torch.manual_seed(0)
    assert 'as PyTorch makes them' in found(plain(20), X)['backward'].message
    sick = started(plain(20, bias=False), .5)
    assert 'as PyTorch makes them' not in found(sick, X)['forward'].message

def test_order_and_chaos():
    torch.manual_seed(0)
    order = found(started(plain(40, nn.Tanh), .7, bias_std=.3, nonlinearity='linear'), X)
    assert 'backward' in order and 'vanishes' in order['backward'].message
    near = X[:1] + 1e-4*torch.randn(32, 64)
    chaos = found(started(plain(40, nn.Tanh), 2., nonlinearity='linear'), near)
    assert {'similarity', 'backward'} <= set(chaos) and 'chaos' in chaos['similarity'].message
    assert 'explodes' in chaos['backward'].message and 'forward' not in chaos

@pytest.mark.parametrize('mode', [True, False])
def test_batch_norm_resets_only_in_training(mode):
    torch.manual_seed(0)
    model = started(plain(10, norm=nn.BatchNorm1d), .3).train(mode)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d): m.weight.fill_(1.)
    e = measure(model, (X,))
    if not mode: assert all(isinstance(f, Skipped) and 'model.train()' in f.reason
                            for f in signals.forward(e))
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm1d): m.num_batches_tracked.fill_(1)
    assert ('forward' in found(model, X)) == (not mode)

@pytest.mark.parametrize('norm', [nn.LayerNorm, nn.RMSNorm])
def test_norms_reset(norm):
    torch.manual_seed(0)
    model = plain(25, norm=norm, bias=False)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Linear): m.weight.mul_(.01)
    assert not found(model, X)

class Stream(nn.Module):
    def __init__(self, blocks, norm=nn.Identity, width=64, scale=1.):
        super().__init__()
        self.first, self.head, self.scale = nn.Linear(width, width), nn.Linear(width, 10), scale
        self.blocks = nn.ModuleList(nn.Sequential(norm(width), nn.Linear(width, width), nn.ReLU(),
                                                  nn.Linear(width, width)) for _ in range(blocks))
    def forward(self, x):
        x = self.first(x)
        for block in self.blocks: x = x + self.scale*block(x)
        return self.head(x)

def test_a_stream_that_multiplies_and_one_that_adds():
    for seed in range(3):
        torch.manual_seed(seed)
        assert set(found(started(Stream(14)), X)) == {'backward', 'residual'}
        assert not found(started(Stream(14, nn.LayerNorm)), X)
        assert not found(started(Stream(14, scale=14**-.5)), X)

def test_a_tower_before_a_stream_counts():
    torch.manual_seed(0)
    model = nn.Sequential(plain(14), nn.Linear(10, 64), Stream(4, nn.LayerNorm))
    assert {'backward', 'similarity'} <= set(found(model, X))

def test_pooling_is_no_fault():
    torch.manual_seed(0)
    convs = [l for _ in range(4) for l in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())]
    model = started(nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), *convs, nn.AdaptiveAvgPool2d(1),
                                  nn.Flatten(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 10)))
    assert not found(model, torch.randn(8, 3, 34, 34))

def test_a_constant_that_drowns_the_inputs():
    torch.manual_seed(0)
    model = started(plain(4))
    with torch.no_grad(): model[0].bias.normal_(0, 100)
    f = found(model, X)['similarity']
    assert f.severity == 'warning' and "'0.bias'" in f.fix
    exec(f.fix, dict(model=model, nn=nn))
    assert not found(model, X)

@pytest.mark.parametrize('make', [
    lambda: plain(20), lambda: plain(20, bias=False), lambda: started(plain(20, bias=False), 3.),
    lambda: started(plain(20, nn.Sigmoid)), lambda: plain(24, nn.GELU), lambda: plain(24, nn.Tanh),
    lambda: started(plain(30, norm=nn.BatchNorm1d)), lambda: started(Stream(16))])
def test_repairs_repair(make):
    torch.manual_seed(0)
    model, sick = make(), None
    sick = found(model, X)
    assert sick
    for f in sick.values():
        exec(f.fix, dict(model=model, ini=ini, nn=nn, torch=torch, batch=(X,)))
    assert not found(model, X)

def test_what_is_not_looked_at_is_said():
    e = measure(plain(3), (X[:1],))
    assert [type(f) for f in signals.similarity(e)] == [Skipped]
    e = measure(Stream(1), (X,))
    assert any('residual stream' in f.reason for f in signals.forward(e))
    assert any('1 branches' in f.reason for f in signals.residual(e))
    e = measure(nn.Linear(4, 2), (torch.randn(3, 4),))
    for check in ('forward', 'backward', 'similarity', 'residual', 'batch-norm', 'too-deep'):
        assert [type(f) for f in signals.CHECKS[check](e)] == [Skipped], check
    e = measure(started(plain(3), 0.), (X,))
    assert any('all zero' in f.reason for f in signals.forward(e))

def test_too_deep():
    torch.manual_seed(0)
    model = started(plain(40, nn.Tanh), nonlinearity='linear', bias_std=.224)     # σb² = .05
    assert 'too-deep' not in found(model, X, loud=False) or \
        found(model, X, loud=False)['too-deep'].predicted < 40
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.Linear): m.weight.mul_(.9)
    f = found(model, X, loud=False)['too-deep']
    xi = ini.correlation_length('tanh', model[2].weight.square().mean().item()*64,
                                model[2].bias.square().mean().item())
    assert f.measured == 40 and abs(f.predicted/6/xi - 1) < .3

def test_inputs_and_ranges():
    model = started(plain(3))
    assert found(model, X*100, loud=False)['input'].measured > math.exp(6)
    assert abs(found(model, X + 3, loud=False)['input'].measured - 3) < .2
    assert 'input' not in found(model, X, loud=False)
    assert found(model, X*1e6, loud=False)['range'].measured > 65504
    assert 'range' not in found(model, X, loud=False)

def test_overflow_and_infinite_gradients():
    f = found(started(plain(20, bias=False), 1e6), X)['non-finite']
    assert f.severity == 'error' and f.fix
    class Root(nn.Module):
        def forward(self, x): return x + (x - x.detach()).square().sqrt()
    f = found(nn.Sequential(nn.Linear(64, 8), Root(), nn.Linear(8, 2)), X)['non-finite']
    assert 'gradient' in f.message.lower() and f.layer == '0.weight'

def test_what_is_not_finite_is_traced_to_its_cause():
    net, hole = started(plain(3)), X.clone()
    hole[17, 3] = math.nan
    f = found(net, hole)['non-finite']
    assert f'already 1 of {X.numel():,} numbers' in f.message and not f.fix
    y = torch.randn(len(X), 10)
    y[5] = math.nan
    for loss in (lambda out: (out - y).square().mean(), lambda out: -out.relu().log().mean()):
        of = {f.check: f for f in signals.non_finite(measure(net, (X,), loss=loss))}
        assert 'The loss is' in of['non-finite'].message
    assert not [*signals.non_finite(measure(net, (X,), loss=lambda out: out.square().mean()))]
    with torch.no_grad(): net[2].weight[0, 0] = math.nan
    f = found(net, X)['non-finite']
    assert '2.weight is not finite to begin with' in f.message and not f.fix

def test_bands_hold_what_is_healthy():
    torch.manual_seed(0)
    rows = signals.bands(measure(started(plain(12)), (X,)))
    assert [r['layer'] for r in rows] == ['input', *(str(2*i) for i in range(12))]
    for r in rows:
        for k in ('signal', 'gradient', 'apart'):
            low, high = r.get(f'{k}_low', -math.inf), r.get(f'{k}_high', math.inf)
            assert k not in r or low <= r[k] <= high
