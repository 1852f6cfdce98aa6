"The Learner: the same as a bare loop, whatever happens on the way; batches of every kind; callbacks; errors."
import copy, math, os, random, subprocess, sys
import pytest, torch
import torch.nn.functional as F
from torch import nn
from initnotes.core import InputError
from initnotes.learner import (AvgStats, BatchTransform, Callback, CancelBatch, CancelEpoch, CancelFit,
                               DeviceCallback, DivergedError, Learner, LRFinder, Progress, Recorder)
from initnotes.training import TensorLoader, accuracy

def data(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(.1), nn.Linear(8, 3))

def learner(cbs=(), valid=True, lr=.1, seed=0, model=None, **kwargs):
    model = model or net(seed)
    x, y = data()
    return Learner(model, TensorLoader(x, y, 16), TensorLoader(*data(10, 1), 4) if valid else None, F.cross_entropy,
                   torch.optim.SGD(model.parameters(), lr=lr, **kwargs), cbs)

def weights(model): return nn.utils.parameters_to_vector(model.parameters()).detach().clone()

# ---- the loop ---------------------------------------------------------------------------------

@pytest.mark.parametrize('make', [lambda ps: torch.optim.SGD(ps, lr=.1, momentum=.9), lambda ps: torch.optim.AdamW(ps, lr=.01)])
def test_fit_is_the_bare_loop_to_the_bit(make):
    x, y = data()
    ours, theirs = net(), net()
    opt = make(ours.parameters())
    torch.manual_seed(3)
    Learner(ours, TensorLoader(x, y, 16, shuffle=True), None, F.cross_entropy, opt).fit(3)
    opt = make(theirs.parameters())
    torch.manual_seed(3)
    theirs.train()
    for _ in range(3):
        for i in torch.randperm(len(x)).split(16):
            F.cross_entropy(theirs(x[i]), y[i]).backward(); opt.step(); opt.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()))

def test_validation_changes_nothing_and_sees_eval_mode():
    seen = []
    class Look(Callback):
        def after_pred(self, learn): seen.append((learn.training, learn.model.training, learn.pred.requires_grad, torch.is_grad_enabled()))
    with_valid, without = learner([Look()]), learner(valid=False)
    torch.manual_seed(1); with_valid.fit(2)
    torch.manual_seed(1); without.fit(2)
    assert torch.equal(weights(with_valid.model), weights(without.model))
    assert set(seen) == {(True, True, True, True), (False, False, False, False)}
    for a, b in zip(with_valid.model.buffers(), without.model.buffers()): assert torch.equal(a, b)

def test_order_of_events():
    said = []
    def named(event): return lambda self, learn: said.append((event, learn.training if event not in ('before_fit', 'before_epoch') else None))
    events = [e for e in vars(Callback) if e.startswith(('before', 'after'))]
    Say = type('Say', (Callback,), {e: named(e) for e in events})
    learner([Say()]).fit(1)
    train = [(e, True) for e in events if e.startswith('after') or e == 'before_batch' if e not in ('after_epoch', 'after_fit')]
    train.sort(key=lambda e: events.index(e[0]))
    valid = [(e, False) for e, _ in train if e not in ('after_backward', 'after_step')]
    assert said == [('before_fit', None), ('before_epoch', None), *train*3, *valid*3, ('after_epoch', False), ('after_fit', False)]

def test_callbacks_run_by_order_and_clean_up_in_reverse():
    said = []
    class Say(Callback):
        def __init__(self, order): self.order = order
        def before_batch(self, learn): said.append(self.order)
        def after_fit(self, learn): said.append(('end', self.order))
    learner([Say(2), Say(-1)], valid=False).fit(1, [Say(1)])
    assert said == [-1, 1, 2]*3 + [('end', 2), ('end', 1), ('end', -1)]

@pytest.mark.parametrize('event', [e for e in vars(Callback) if e.startswith(('before', 'after'))])
@pytest.mark.parametrize('error', [ValueError, KeyboardInterrupt, CancelFit])
def test_whatever_ends_a_fit_modes_are_restored_and_clean_up_is_done(event, error):
    class Bad(Callback):
        def fail(self, learn): raise error('planted')
    setattr(Bad, event, Bad.fail)
    class Watch(Callback):
        cleaned = 0
        def after_fit(self, learn): self.cleaned += 1
    rec, watch = Recorder(), Watch()
    learn = learner([watch, rec, Bad()])
    learn.model.eval(); learn.model[1].train()
    if error is CancelFit: learn.fit(2)
    else:
        with pytest.raises(error, match='planted'): learn.fit(2)
    assert watch.cleaned == 1
    assert [m.training for m in learn.model.modules()] == [m is learn.model[1] for m in learn.model.modules()]
    assert len(rec.losses) == {'before_fit': 0, 'before_epoch': 0, 'before_batch': 0, 'after_pred': 0, 'after_epoch': 3, 'after_fit': 6}.get(event, 1)
    assert torch.is_grad_enabled()
    learn.cbs = [rec]
    learn.fit(1)                                   # and it can go on
    assert learn.step == 3

def test_a_gradient_left_by_an_interrupted_fit_does_not_count():
    a, b = learner(valid=False), learner(valid=False)
    for p in a.model.parameters(): p.grad = torch.ones_like(p)
    for l in (a, b): torch.manual_seed(5); l.fit(1)
    assert torch.equal(weights(a.model), weights(b.model))

@pytest.mark.parametrize('event', ['before_batch', 'after_pred', 'after_loss'])
def test_cancelled_batches_make_no_step(event):
    class Skip(Callback):
        batches = 0
        def skip(self, learn):
            if learn.training: raise CancelBatch
        def after_batch(self, learn): self.batches += 1
    setattr(Skip, event, Skip.skip)
    cb, learn = Skip(), learner(lr=1.)
    learn.opt.param_groups[0]['lr'] = 1.
    before = weights(learn.model)
    learn.fit(1, [cb])
    assert learn.step == 0 and cb.batches == 6 and torch.equal(before, weights(learn.model))

def test_cancel_after_the_step_leaves_no_gradient():
    class Skip(Callback):
        def after_step(self, learn): raise CancelBatch
    a, b = learner([Skip()], valid=False), learner(valid=False)
    for l in (a, b): torch.manual_seed(5); l.fit(2)
    assert torch.equal(weights(a.model), weights(b.model))

def test_cancelled_epoch_skips_validation_but_not_the_next():
    class Stop(Callback):
        def __init__(self): self.seen = []
        def after_batch(self, learn):
            self.seen.append((learn.epoch, learn.training))
            if learn.epoch == 0 and learn.batch_idx == 1: raise CancelEpoch
    cb, avg = Stop(), AvgStats()
    learner().fit(2, [cb, avg])
    assert cb.seen == [(0, True)]*2 + [(1, True)]*3 + [(1, False)]*3
    assert list(avg.rows[0]) == ['epoch', 'train loss'] and list(avg.rows[1]) == ['epoch', 'train loss', 'valid loss']
    assert '| 0 | ' in avg.to_markdown() and avg.to_markdown().count('\n') == 3

def test_a_diverging_loss_is_reported_with_its_place():
    learn = learner(lr=1e30)
    with pytest.raises(DivergedError, match=r'the loss became (nan|inf) in epoch 0, batch [12] of training, at learning rate 1e\+30') as e: learn.fit(2)
    assert (e.value.epoch, e.value.batch) == (0, learn.batch_idx) and not learn.training == None
    class Break(Callback):
        def before_batch(self, learn):
            if not learn.training and learn.batch_idx == 2: learn.xb = learn.xb*math.nan
    with pytest.raises(DivergedError, match='epoch 0, batch 2 of validation'): learner([Break()]).fit(1)

def test_bad_input():
    learn = learner()
    before = weights(learn.model)
    for epochs in (-1, 1.5, None):
        with pytest.raises(InputError, match='epochs is'): learn.fit(epochs)
    class Typo(Callback):
        def after_batches(self, learn): pass
    with pytest.raises(InputError, match='after_batches, expected one of before_fit'): learn.fit(1, [Typo()])
    with pytest.raises(InputError, match=r'pass Recorder\(\), not the class'): learn.fit(1, [Recorder])
    with pytest.raises(InputError, match='expected an instance of Callback'): learn.fit(1, [print])
    with pytest.raises(InputError, match='used up after one epoch'): Learner(learn.model, zip(*data()), None, F.cross_entropy, learn.opt).fit(2)
    with pytest.raises(InputError, match='made anew'): Learner(net(), learn.train_dl, None, F.cross_entropy, learn.opt).fit(2)
    with pytest.raises(InputError, match='expected an optimiser'): Learner(learn.model, learn.train_dl, None, F.cross_entropy, torch.optim.SGD).fit(2)
    assert torch.equal(before, weights(learn.model))
    with pytest.raises(InputError, match='train_dl gave no batch'): Learner(learn.model, [], None, F.cross_entropy, learn.opt).fit(1)
    with pytest.raises(InputError, match='a batch is a Tensor, expected a pair'): Learner(learn.model, [torch.zeros(3, 6)], None, F.cross_entropy, learn.opt).fit(1)
    with pytest.raises(InputError, match='a batch is a dict'): Learner(learn.model, [dict(x=1, y=2)], None, F.cross_entropy, learn.opt).fit(1)
    with pytest.raises(InputError, match=r'loss_func gave shape \(16,\)'): Learner(learn.model, learn.train_dl, None, lambda p, y: F.cross_entropy(p, y, reduction='none'), learn.opt, [Recorder()]).fit(1)

# ---- the callbacks ----------------------------------------------------------------------------

def test_averages_are_weighted_by_items():
    model = nn.Linear(6, 3)
    x, y = data(21)
    avg = AvgStats(accuracy)
    Learner(model, TensorLoader(x, y, 8), TensorLoader(x, y, 8), F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.), [avg]).fit(2)
    for row, epoch in zip(avg.rows, (0, 1)):
        assert row['epoch'] == epoch
        for phase in ('train', 'valid'):
            # float32 rounds by 6e-8: some thirty times for the exponentials and sums of three batches, and of all at once
            assert row[f'{phase} loss'] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=2e-6)
            assert row[f'{phase} accuracy'] == pytest.approx(accuracy(model(x), y).item(), rel=2e-6)

def test_metrics_are_told_apart_by_name():
    x, y = data()
    half = lambda p, y: torch.tensor(.5)
    avg = AvgStats(half=half, whole=lambda p, y: 1.)
    learn = learner([avg]); learn.fit(1)
    assert avg.rows[0]['train half'] == .5 and avg.rows[0]['valid whole'] == 1
    for bad in (lambda: AvgStats(half, half), lambda: AvgStats(loss=half), lambda: AvgStats(accuracy, accuracy=half)):
        with pytest.raises(InputError, match='expected different names'): bad()

def test_methods_set_on_an_instance_count_and_data_attributes_are_none_of_our_business():
    cb, seen = Callback(), []
    cb.after_batch = lambda learn: seen.append(1)
    cb.before_norm = 3.
    learner([cb], valid=False).fit(1)
    assert len(seen) == 3

def test_progress_without_a_length_or_a_loss():
    class Endless:
        def __iter__(self): return iter([data()]*3)
        def __len__(self): raise TypeError('no length')
    class Skip(Callback):
        def before_batch(self, learn): raise CancelBatch
    learn = learner([Progress()], valid=False)
    learn.train_dl = Endless()
    learn.fit(1); learn.fit(1, [Skip()])

def test_lr_finder_counts_its_own_steps():
    class Accumulate(Callback):
        def after_backward(self, learn):
            if learn.batch_idx % 3: raise CancelBatch
    finder = LRFinder(1e-6, 1e-3, steps=9)
    learner([Accumulate()]).fit(9, [finder])
    assert len(finder.lrs) == 9 and finder.lrs[-1] == pytest.approx(1e-3)

def test_lr_finder_bears_a_negative_loss():
    learn = learner()
    learn.loss_func = lambda p, y: F.cross_entropy(p, y) - 5
    finder = LRFinder(1e-6, 1e-4, steps=10)
    learn.fit(10, [finder])
    assert len(finder.lrs) == 10

def test_recorder_goes_on_and_skips_validation():
    rec = Recorder()
    learn = learner([rec])
    learn.fit(1); learn.opt.param_groups[0]['lr'] = .05; learn.fit(1)
    assert len(rec.losses) == 6 and rec.lrs == [.1]*3 + [.05]*3
    for ax in (rec.plot_losses(), rec.plot_lrs()): assert len(ax.lines[0].get_xdata()) == 6

def test_batch_transform_and_device_reach_training_and_validation():
    x, y = data()
    model = net()
    learn = Learner(model, TensorLoader(x.view(-1, 2, 3), y, 16), TensorLoader(x.view(-1, 2, 3), y, 16), F.cross_entropy,
                    torch.optim.SGD(model.parameters(), lr=.1, momentum=.9), [BatchTransform(lambda xb: xb.flatten(1)), DeviceCallback('cpu')])
    learn.fit(2)
    assert learn.xb.shape == (8, 6)
    assert len(learn.opt.state) == len(list(model.parameters()))

def test_device_moves_any_structure():
    from initnotes.learner import _moved
    t = torch.zeros(2)
    moved = _moved(dict(a=[t, (t, 'text')], b=3), 'meta')
    assert moved['a'][0].is_meta and moved['a'][1][0].is_meta and moved['a'][1][1] == 'text' and moved['b'] == 3 and isinstance(moved['a'][1], tuple)

@pytest.mark.parametrize('opt', [lambda ps: torch.optim.SGD(ps, lr=.1, momentum=.9), lambda ps: torch.optim.Adam(ps, lr=.01)])
def test_lr_finder_puts_everything_back(opt):
    model = net()
    x, y = data()
    learn = Learner(model, TensorLoader(x, y, 16, shuffle=True), TensorLoader(x, y, 16), F.cross_entropy, opt(model.parameters()))
    learn.fit(1)
    state, other, rng = copy.deepcopy(model.state_dict()), copy.deepcopy(learn.opt.state_dict()), torch.get_rng_state()
    finder = LRFinder(1e-3, 10., steps=20)
    learn.fit(99, [finder])
    assert all(torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values())) and torch.equal(rng, torch.get_rng_state())
    for a, b in zip(other['state'].values(), learn.opt.state_dict()['state'].values()):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
    assert other['param_groups'] == learn.opt.state_dict()['param_groups']
    assert finder.lrs[0] == pytest.approx(1e-3) and all(b/a == pytest.approx(1e4**(1/19)) for a, b in zip(finder.lrs, finder.lrs[1:]))
    assert 2 < len(finder.losses) == len(finder.lrs) <= 20
    assert finder.plot().get_xscale() == 'log'

def test_lr_finder_survives_divergence_and_refuses_nonsense():
    learn = learner()
    before = weights(learn.model)
    finder = LRFinder(1., 1e35, steps=30)
    learn.fit(99, [finder])
    assert torch.equal(before, weights(learn.model)) and len(finder.lrs) < 30
    for bad in (dict(lr_min=0), dict(lr_min=1, lr_max=.1), dict(steps=1)):
        with pytest.raises(InputError, match='LRFinder got'): LRFinder(**bad)

def progress(env):
    code = ("import torch, torch.nn.functional as F; from initnotes.training import *; m = torch.nn.Linear(6, 3); x = torch.randn(40, 6)\n"
            "Learner(m, TensorLoader(x, torch.zeros(40, dtype=int), 8), None, F.cross_entropy, torch.optim.SGD(m.parameters(), lr=.1), [Progress()]).fit(2)")
    return subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True, text=True, env={**os.environ, **env}, check=True)

@pytest.mark.slow
def test_progress_shows_and_leaves_nothing():
    done = progress({'TQDM_DISABLE': '', 'TQDM_MININTERVAL': '0'})
    assert 'epoch 2/2, loss' in done.stderr and done.stderr.splitlines()[-1].strip() == ''   # text mode made newlines of the bar's returns
    assert not done.stdout
    done = progress({'TQDM_DISABLE': '1'})
    assert done.stderr == done.stdout == ''

def test_parameter_groups_and_wrapped_models():
    model = net()
    opt = torch.optim.SGD([dict(params=model[0].parameters(), lr=.1), dict(params=model[4].parameters(), lr=1e3)])
    learn = Learner(nn.DataParallel(model), TensorLoader(*data(), 16), None, F.cross_entropy, opt)
    before = weights(model)
    finder = LRFinder(1e-4, 1e-3, steps=5)
    learn.fit(9, [finder])
    assert [g['lr'] for g in opt.param_groups] == [.1, 1e3] and torch.equal(before, weights(model))

# ---- batches of every kind, and a finder that leaves no trace --------------------------------

BOXES, EMPTY = dict(boxes=torch.zeros(5, 4)), dict(boxes=torch.zeros(0, 4))
PACKED = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])

@pytest.mark.parametrize('yb, n', [(torch.zeros(7), 7), ((torch.zeros(7), torch.zeros(7, 2)), 7), ({'file': ['a.png']*7, 'y': torch.zeros(7)}, 7), ([BOXES, EMPTY, EMPTY], 3),
                                   (['a', 'b'], 2), (None, 8), (3, 8), (torch.tensor(3.), 8), ('a name', 8), ({'id': 'x'}, 8), (PACKED, 2)])
def test_how_many_items_a_batch_holds(yb, n):
    m, counted = nn.Linear(4, 4), AvgStats(one=lambda p, t: torch.ones(()))
    losses = iter([1., 2.])
    batches = [(torch.randn(8, 4), yb), (torch.randn(8, 4), torch.zeros(8))]
    Learner(m, batches, None, lambda p, t: p.mean()*0 + next(losses), torch.optim.SGD(m.parameters(), lr=.1), [counted]).fit(1)
    assert counted.rows[0]['train loss'] == pytest.approx((n + 2*8)/(n + 8))

def test_a_batch_size_that_cannot_be_known_is_asked_for():
    class Graph: x = torch.randn(8, 4)
    m = nn.Linear(4, 4)
    def learner(**kw): return Learner(nn.Sequential(Take(), m), [(Graph(), None)], None, lambda p, t: p.square().mean(), torch.optim.SGD(m.parameters(), lr=.1), [AvgStats(**kw)])
    with pytest.raises(InputError, match='batch of Graph and NoneType.*batch_size='): learner().fit(1)
    learner(batch_size=lambda xb, yb: len(xb.x)).fit(1)

class Take(nn.Module):
    def forward(self, g): return g.x

def test_containers_are_moved_and_stay_what_they_are():
    from collections import OrderedDict, UserDict, namedtuple
    from initnotes.learner import _moved
    Pair = namedtuple('Pair', 'a b')
    t = torch.zeros(2)
    for x in (Pair(t, 'b'), [t, (t, 3)], OrderedDict(a=t), UserDict(a=t), PACKED):
        y = _moved(x, 'meta')
        assert type(y) is type(x)
    assert _moved(Pair(t, 'b'), 'meta').a.is_meta and _moved(UserDict(a=t), 'meta')['a'].is_meta and _moved(PACKED, 'meta').data.is_meta
    x = UserDict(a=t); _moved(x, 'meta')
    assert not x['a'].is_meta and _moved(None, 'meta') is None and _moved('abc', 'meta') == 'abc'

def test_recorded_learning_rates_are_copies():
    m = nn.Linear(4, 2)
    opt, rec = torch.optim.SGD(m.parameters(), lr=torch.tensor(.1)), Recorder()
    halve = Callback(); halve.after_step = lambda learn: learn.opt.param_groups[0]['lr'].mul_(.5)
    Learner(m, TensorLoader(torch.randn(64, 4), torch.randint(2, (64,)), 16), None, F.cross_entropy, opt, [rec, halve]).fit(1)
    assert rec.lrs == pytest.approx([.1, .05, .025, .0125]) and all(type(v) is float for v in rec.lrs)

def test_an_optimiser_that_wants_a_closure_is_refused():
    m = nn.Linear(4, 2)
    with pytest.raises(InputError, match='LBFGS.*closure'): Learner(m, [(torch.randn(8, 4), torch.zeros(8).long())], None, F.cross_entropy, torch.optim.LBFGS(m.parameters())).fit(1)

def test_the_finder_leaves_no_trace():
    "Neither in buffers that are not saved, nor in the loader's generator, nor in Python's random numbers."
    class Centre(nn.Module):
        def __init__(self): super().__init__(); self.lin = nn.Linear(4, 2); self.register_buffer('mean', torch.zeros(4), persistent=False)
        def forward(self, x):
            random.random()
            if self.training: self.mean.lerp_(x.mean(0), .1)
            return self.lin(x - self.mean)
    x, y, g = torch.randn(64, 4) + 3, torch.randint(2, (64,)), torch.Generator().manual_seed(2)
    for dl in (TensorLoader(x, y, 16, shuffle=True, generator=g), torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), 16, shuffle=True, generator=g)):
        m = Centre()
        before = m.lin.weight.detach().clone(), g.get_state(), random.getstate(), torch.get_rng_state()
        Learner(m, dl, None, F.cross_entropy, torch.optim.SGD(m.parameters(), lr=.1)).fit(3, [LRFinder(steps=8)])
        assert not m.mean.any() and torch.equal(m.lin.weight, before[0]) and torch.equal(g.get_state(), before[1])
        assert random.getstate() == before[2] and torch.equal(torch.get_rng_state(), before[3])
