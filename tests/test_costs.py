"What `audit` calls an error costs something in training, what costs much has a name: audit.csv."
import functools

import pytest, torch
import torch.nn.functional as F
from torch import nn

from conftest import ROOT
from initnotes import audit
from initnotes import experiments as ex
from initnotes import trained as tr

SEED = 79
pytestmark = pytest.mark.slow
ACTIVATIONS = dict(relu=nn.ReLU, tanh=nn.Tanh, sigmoid=nn.Sigmoid, softplus=nn.Softplus)
SERIES = [(f'signal {k:+d}', 20, 'relu') for k in range(-12, 13, 3)]
SERIES += [(f'gradient {k:+d}', 20, 'tanh') for k in tr.BACKWARD]
FAULTS = [(s, 5, 'relu') for s in ('Kaiming', 'one seed', *tr.FAULTS)]
FAULTS += [(s, 5, 'tanh') for s in ('Kaiming', 'constant', 'one layer alike', 'two layers zero',
                                    'layer zero', 'alike by 2', 'alike by 8', 'alike by 32',
                                    'alike by 64')]

@functools.cache
def data(): return ex.pooled()

@functools.cache
def tops(): return ex.best(ex.read_results(ROOT/'nbs'/'experiments'/'audit.csv'))

def model(start, depth, activation, seed):
    "One net of the experiment, in plain PyTorch."
    net, _ = ex.started(ex.Arm(start, depth, False, 'SGD', .1, activation=activation), [seed],
                        data()[0])
    layers = []
    for w, b in zip(net.w, net.b):
        layer = nn.Linear(*w.shape[1:])
        layer.weight.data, layer.bias.data = w[0].T.clone(), b[0, 0].clone()
        layers += [layer, ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])

@functools.cache
def found(start, depth, activation):
    "Of two nets: the checks that find an error."
    x, y = (t[:64] for t in data()[:2])
    reports = [audit(model(start, depth, activation, s), x, loss=lambda z: F.cross_entropy(z, y))
               for s in range(2)]
    return [{f.check for f in r.findings if f.severity == 'error'} for r in reports]

def lost(start, depth, activation):
    "Accuracy lost with SGD and with Adam, and half of the intervals."
    healthy = {'signal': 'signal +0', 'gradient': 'gradient +0'}.get(start.split()[0], 'Kaiming')
    net = dict(depth=depth, activation=activation, trained='all')
    return [ex.ahead(tops(), healthy, start, optimiser=how, **net) for how in ('SGD', 'Adam')
            if ex.of(tops(), start=start, optimiser=how, **net)]

@pytest.mark.parametrize('kind', SERIES + FAULTS, ids=lambda k: f'{k[0]}, {k[2]}')
def test_errors_cost(kind):
    "An error that is found in both nets costs accuracy, for certain: beyond its interval."
    errors = found(*kind)
    if all(errors): assert any(cost > half for cost, half in lost(*kind)), errors

@pytest.mark.parametrize('kind', SERIES + FAULTS, ids=lambda k: f'{k[0]}, {k[2]}')
def test_what_costs_is_found(kind):
    "A start that loses more than .4 with each optimizer is an error, of whichever check."
    if all(cost > .4 for cost, _ in lost(*kind)): assert all(found(*kind))
