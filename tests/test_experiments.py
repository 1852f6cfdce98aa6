"Experiments: stacked training is training one net at a time; tables are resumed and checked."
import math
from dataclasses import replace
from functools import partial

import pytest, torch
import torch.nn.functional as F
from torch import nn

import experiments as tool
from conftest import ROOT
from initnotes import InputError, init_, lsuv_
from initnotes import experiments as ex

SEED = 77

def arm(**k):
    return ex.Arm(**dict(start='Kaiming', depth=4, residual=False, optimiser='SGD', rate=.05,
                         width=16, steps=6, batch=8) | k)

@pytest.fixture
def data():
    return (torch.randn(400, 12), torch.randint(10, (400,)), torch.randn(60, 12),
            torch.randint(10, (60,)))

class Net(nn.Module):
    "Net i of a stack, in plain PyTorch."
    def __init__(self, net, i):
        super().__init__()
        self.residual, self.act = net.residual, net.act
        self.layers = nn.ModuleList(nn.Linear(*w.shape[1:]) for w in net.w)
        with torch.no_grad():
            for m, w, b in zip(self.layers, net.w, net.b):
                m.weight.copy_(w[i].T)
                m.bias.copy_(b[i, 0])

    def forward(self, x):
        first, *inner, last = self.layers
        h = first(x)
        if not self.residual:
            for m in inner: h = m(self.act(h))
            return last(self.act(h))
        for a, b in zip(inner[::2], inner[1::2]): h = h + b(self.act(a(h)))
        return last(h)

@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('optimiser, rate', [('SGD', .05), ('Adam', .003)])
@pytest.mark.parametrize('trained', ['all', 'last', 'first'])
def test_stacked_training_is_plain_training(data, residual, optimiser, rate, trained):
    "Against torch.nn and torch.optim, net by net, with the same weights and batches."
    a = arm(residual=residual, optimiser=optimiser, rate=rate, trained=trained)
    x, y, x_valid, y_valid = data
    rows = ex.train(a, range(3), data)
    for s in range(3):
        net = Net(ex.started(a, range(3), x)[0], s)
        layers = dict(all=net.layers, last=net.layers[-1:], first=net.layers[:-1])[trained]
        opt = getattr(torch.optim, optimiser)(layers.parameters(), lr=rate)
        order = torch.randperm(400, generator=torch.Generator().manual_seed(s))[:a.steps*a.batch]
        for i in order.split(a.batch):
            opt.zero_grad()
            F.cross_entropy(net(x[i]), y[i]).backward()
            opt.step()
        with torch.no_grad(): loss = F.cross_entropy(net(x_valid), y_valid).item()
        assert rows[s]['loss'] == pytest.approx(loss, rel=1e-4)

@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('start', ['default', 'Kaiming', 'LSUV', 'LSUV, no head'])
def test_a_seed_is_the_same_alone(data, start, residual):
    a = arm(start=start, residual=residual)
    together, alone = ex.train(a, [3, 5], data), ex.train(a, [5], data)
    assert together[1]['loss'] == pytest.approx(alone[0]['loss'], rel=1e-4)
    assert together[1]['seed'] == 5

@pytest.mark.parametrize('residual', [False, True])
def test_rescaling_is_lsuv_(data, residual):
    "The library's, to its tolerance: each layer's output has std 1, by the same factors."
    x = data[0][:64]
    stack = ex.started(arm(residual=residual, depth=6), range(2), data[0])[0]
    nets = [Net(stack, i) for i in range(2)]
    ex.rescale_(stack, x)
    for i, net in enumerate(nets):
        lsuv_(net, x, tol=1e-5)
        for m, w in zip(net.layers, stack.w):
            assert torch.allclose(m.weight, w[i].T, rtol=1e-4, atol=1e-6)

def test_head_is_left_alone(data):
    a = arm()
    kaiming, body = (ex.started(replace(a, start=s), [0], data[0])[0]
                     for s in ('Kaiming', 'LSUV, no head'))
    assert torch.equal(kaiming.w[-1], body.w[-1]) and not torch.equal(kaiming.w[1], body.w[1])

@pytest.mark.parametrize('start, make', [('default', lambda m: m), ('Kaiming', init_)])
def test_starts_have_the_scale_of_the_librarys(start, make):
    "Std of weights and biases; 64·64 uniform or normal numbers, five standard errors."
    net = ex.started(arm(start=start, width=64), [0], torch.randn(300, 196))[0]
    make(own := nn.Linear(64, 64))
    se = own.weight.std()/math.sqrt(2*4096)
    assert abs(net.w[1].std() - own.weight.std()) < 5*math.sqrt(2)*se
    assert (net.b[1].abs().max() > 0) == (own.bias.abs().max() > 0)

def drawn(start, width=64, **k):
    "A net of a start that is a function, in place of one of STARTS; 300 images of 196 pixels."
    net = ex.Stacked(arm(width=width, **k), 2, 196)
    start(net, [torch.Generator().manual_seed(s) for s in (SEED, SEED + 1)], torch.randn(300, 196))
    return net

def close_to(x, std):
    "Whether normal numbers have this standard deviation: within five standard errors."
    return abs(x.square().mean().sqrt()/std - 1) < 5/math.sqrt(2*x.numel())

@pytest.mark.parametrize('w_var, b_var, first', [(1.3, .05, None), (2., 0., None), (3., 1.2, 1.)])
def test_variances(w_var, b_var, first):
    net = drawn(partial(ex.variances_, w_var=w_var, b_var=b_var, first=first))
    for k, (w, b) in enumerate(zip(net.w, net.b)):
        var = first if first is not None and k == 0 else w_var
        assert close_to(w*math.sqrt(w.shape[1]), math.sqrt(var))
        assert not torch.equal(w[0], w[1])
        if not b_var: assert not b.any()
    if b_var: assert close_to(torch.cat([b.flatten() for b in net.b]), math.sqrt(b_var))

@pytest.mark.parametrize('w_var', [1., 1.05])
def test_orthogonal(w_var):
    "Wᵀ·W is w_var times the identity, where a layer has no more outputs than inputs."
    for w in drawn(partial(ex.orthogonal_, w_var=w_var)).w:
        assert torch.allclose(w.mT @ w, w_var*torch.eye(w.shape[2]).expand(2, -1, -1), atol=1e-5)
        assert not torch.equal(w[0], w[1])

@pytest.mark.parametrize('name', ['tanh', 'gelu', 'silu'])
def test_kaiming_is_init_(name):
    "With `nonlinearity='auto'`, layer by layer: the standard deviation that its report names."
    modules = dict(tanh=nn.Tanh, gelu=nn.GELU, silu=nn.SiLU)
    model = nn.Sequential(nn.Linear(196, 64), modules[name](), nn.Linear(64, 64), modules[name](),
                          nn.Linear(64, 64), modules[name](), nn.Linear(64, 10))
    report = [r for r in init_(model, nonlinearity='auto') if r['parameter'].endswith('weight')]
    net = drawn(ex.kaiming_, activation=name)
    assert all(close_to(w, r['std_asked']) for w, r in zip(net.w, report, strict=True))

def test_kaimings_relu_is_what_the_stored_tables_were_trained_with():
    net = drawn(ex.kaiming_)
    for i, seed in enumerate((SEED, SEED + 1)):
        g = torch.Generator().manual_seed(seed)
        for w in net.w:
            assert torch.equal(w[i], torch.empty_like(w[i]).normal_(0, math.sqrt(2/w.shape[1]),
                                                                    generator=g))

def bent_(net, generators, x):
    "A start that puts another activation in the place of the net's."
    f = net.act
    net.act = nn.Sequential(nn.LeakyReLU(.5), nn.Softplus()) if net.activation == 'silu' else f
    ex.orthogonal_(net, generators, x)

@pytest.mark.parametrize('name', ['relu', 'tanh', 'gelu', 'silu', 'mish', 'erf'])
def test_a_start_of_ones_own(data, monkeypatch, name):
    "Named by its key, it trains as plain PyTorch does, with an activation of its own, too."
    with pytest.raises(InputError, match="start is 'bent'"): arm(start='bent')
    monkeypatch.setitem(ex.STARTS, 'bent', bent_)
    a, (x, y, x_valid, y_valid) = arm(start='bent', activation=name), data
    net = Net(ex.started(a, [4], x)[0], 0)
    assert (net.act is getattr(F, name, None) or name == 'erf') == (name != 'silu')
    opt = torch.optim.SGD(net.parameters(), lr=a.rate)
    order = torch.randperm(400, generator=torch.Generator().manual_seed(4))[:a.steps*a.batch]
    for i in order.split(a.batch):
        opt.zero_grad()
        F.cross_entropy(net(x[i]), y[i]).backward()
        opt.step()
    with torch.no_grad(): loss = F.cross_entropy(net(x_valid), y_valid).item()
    assert ex.train(a, [4], data)[0]['loss'] == pytest.approx(loss, rel=1e-4)

def test_a_seed_that_diverges_is_named_and_spares_the_others(data):
    rows = ex.train(arm(rate=.05), range(2), data)
    wild = ex.train(arm(rate=1e6, steps=40), range(2), data)
    assert all(math.isfinite(r['loss']) for r in rows)
    assert all(math.isnan(r['accuracy']) and math.isnan(r['loss']) for r in wild)
    found = ex.curves(wild)[0]
    assert found['failed'] == 2 and found['accuracy'] == pytest.approx(ex.GUESSING)

def experiment(n_seeds=2, most=0):
    return ex.Experiment('small', (arm(), arm(rate=.1), arm(start='default')), n_seeds, most)

def test_a_table_is_resumed(tmp_path, data, monkeypatch):
    "Arm by arm; what is there is not trained again, what is missing of an arm is."
    e, path, trained, real = experiment(), tmp_path/'new'/'t.csv', [], ex.train
    def counted(a, seeds, data):
        trained.append((a, list(seeds)))
        if len(trained) == 3: raise KeyboardInterrupt
        return real(a, seeds, data)
    monkeypatch.setattr(ex, 'train', counted)
    with pytest.raises(KeyboardInterrupt): ex.run(e, path, data)
    assert len(ex.read_results(path)) == 4
    path.write_text('\n'.join(path.read_text().splitlines()[:-1]) + '\n')
    rows = ex.run(e, path, data)
    assert trained[3:] == [(e.arms[1], [1]), (e.arms[2], [0, 1])] and len(rows) == 6
    ex.run(e, path, data)
    assert len(trained) == 5

@pytest.mark.parametrize('spoil, said', [
    (lambda t: t.replace('accuracy', 'acuracy', 1), 'expected the columns'),
    (lambda t: t + t.splitlines()[1] + '\n', 'line 8: a row that was there before'),
    (lambda t: t + 'Kaiming,4,False\n', 'line 8: expected 14 values'),
    (lambda t: t.replace('False', 'no', 1), 'line 2: expected 14 values'),
    (lambda t: t.replace('Kaiming', 'lucky', 1), "start is 'lucky'"),
    (lambda t: '', 'expected the columns')])
def test_bad_tables(tmp_path, data, spoil, said):
    path = tmp_path/'t.csv'
    ex.run(experiment(), path, data)
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=said): ex.read_results(path)

def test_no_table(tmp_path):
    with pytest.raises(InputError, match='make experiments'): ex.read_results(tmp_path/'t.csv')

@pytest.mark.parametrize('bad', [dict(start='lucky'), dict(optimiser='Lion'), dict(rate=0.),
                                 dict(depth=5, residual=True), dict(residual='lstm'),
                                 dict(trained='middle'),
                                 dict(activation='lucky')])
def test_bad_arms(bad):
    with pytest.raises(InputError, match=str(next(iter(bad.values()))).replace('.', '[.]')):
        arm(**bad)

def rows_at(accuracies):
    "A made-up table of accuracies by rate."
    return [vars(arm(rate=r)) | dict(seed=s, accuracy=a, loss=1., torch='')
            for r, a in accuracies.items() for s in range(3)]

def test_the_grid_grows_where_its_best_is_at_an_end():
    assert ex.extended(rows_at({.03: .5, .1: .8, .3: .6})) == []
    assert ex.extended(rows_at({.1: .8, .3: .6})) == [arm(rate=.03)]
    assert ex.extended(rows_at({.1: .5, .3: .6})) == [arm(rate=1.)]
    assert {a.rate for a in ex.extended(rows_at({.1: .8}))} == {.03, .3}
    assert ex.extended(rows_at({.1: .11, .3: .1})) == []      # nothing learns

def test_the_best_rate_by_loss():
    losses = {.03: 2., .1: 1.5, .3: 1.2, 1.: math.nan}        # what diverged is never the best
    rows = [r | dict(loss=losses[r['rate']] + .01*r['seed'])
            for r in rows_at({.03: .5, .1: .8, .3: .6, 1.: .1})]
    (by_loss,), (by_accuracy,) = ex.best(rows, by='loss'), ex.best(rows)
    assert by_loss['rate'] == .3 and by_loss['inside'] and by_accuracy['rate'] == .1
    assert by_loss['each'].tolist() == pytest.approx([1.2, 1.21, 1.22])
    assert by_loss['loss'] == pytest.approx(1.21) and by_accuracy['each'].tolist() == [.8]*3
    with pytest.raises(InputError, match="by is 'speed'"): ex.best(rows, by='speed')

def test_activations_are_shown_where_there_are_several(data):
    rows = ex.train(arm(), range(2), data)
    assert 'activation' not in ex.curves(rows).columns
    both = rows + ex.train(arm(activation='tanh'), range(2), data)
    assert ex.curves(both).columns[:2] == ex.best(both).columns[:2] == ['start', 'activation']
    assert [r['activation'] for r in ex.again(both, both[1:4:2], data)] == ['relu', 'tanh']

def test_colours_of_starts(monkeypatch):
    "Those of COLORS for the starts it knows, others that are nowhere in it for the rest."
    from matplotlib import pyplot as plt
    from matplotlib.colors import to_hex
    for s in ('edge', 'orthogonal', 'mine', 'yours'): monkeypatch.setitem(ex.STARTS, s, bent_)
    starts = ['mine', 'default', 'Kaiming', 'edge', 'orthogonal', 'LSUV', 'yours']
    rows = [r | dict(start=s) for s in starts for r in rows_at({.03: .5, .1: .8})]
    ax = ex.plot_rates(ex.curves(rows), [4, 8], activation='relu')[0]
    drawn = {c.get_label(): to_hex(c.lines[0].get_color()) for c in ax.containers}
    plt.close()
    assert drawn.keys() == set(starts) and len(set(drawn.values())) == len(starts)
    for s in starts:
        if s.lower() in ex.COLORS: assert drawn[s] == to_hex(ex.COLORS[s.lower()])

@pytest.mark.parametrize('tail, df', [(.025, 15), (2.87e-7, 15), (.025, 5), (.1, 40)])
def test_t_quantile(tail, df):
    from scipy.stats import t
    assert ex.t_quantile(tail, df) == pytest.approx(t.isf(tail, df), rel=1e-3)

def test_lessons_declare_what_the_tables_hold():
    "Each declared experiment is complete: every arm, every seed, no best rate at an end."
    for name, e in tool.declared().items():
        rows = ex.read_results(ROOT/'nbs'/'experiments'/f'{name}.csv')
        there = {(ex.arm_of(r), r['seed']) for r in rows}
        assert {(a, s) for a in e.arms for s in range(e.n_seeds)} <= there
        assert all(r['inside'] for r in ex.best(rows) if r['learns'])

@pytest.mark.proof
@pytest.mark.slow
def test_a_sample_of_rows_trained_again():
    "Of arms at their best rate; each new result lies in the stored distribution."
    draw = torch.Generator().manual_seed(SEED)
    for name, e in tool.declared().items():
        rows = ex.read_results(ROOT/'nbs'/'experiments'/f'{name}.csv')
        tops = {ex.arm_of(r) for r in ex.best(rows) if r['learns']}
        some = [r for r in rows if ex.arm_of(r) in tops]
        chosen = torch.randperm(len(some), generator=draw)[:12].tolist()
        ex.again(rows, [some[i] for i in chosen], e.data())
