"The Learner: the bare loop, whatever happens on the way; batches of every kind; callbacks; errors."
import copy, dataclasses, itertools, math, os, pickle, random, subprocess, sys, types, warnings
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from collections.abc import Mapping
from contextlib import suppress

import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import initnotes.learner as learner_module
from initnotes.core import InputError
from initnotes.learner import (
    AvgStats,
    BatchTransform,
    Callback,
    CancelBatch,
    CancelEpoch,
    CancelFit,
    DeviceCallback,
    DivergedError,
    Learner,
    LRFinder,
    MixedPrecision,
    Progress,
    Recorder,
    _moved,
    count_items,
)
from initnotes.training import TensorLoader, accuracy

def data(n=40, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)

def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)
    )

def learner(cbs=(), valid=True, lr=.1, seed=0, model=None, **kwargs):
    model = model or net(seed)
    x, y = data()
    return Learner(
        model,
        TensorLoader(x, y, 16),
        TensorLoader(*data(10, 1), 4) if valid else None,
        F.cross_entropy,
        torch.optim.SGD(model.parameters(), lr=lr, **kwargs),
        cbs,
    )

def weights(model):
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()

# ---- the loop ---------------------------------------------------------------------------------

@pytest.mark.parametrize(
    'make',
    [
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        lambda ps: torch.optim.AdamW(ps, lr=0.01),
    ],
)
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
            F.cross_entropy(theirs(x[i]), y[i]).backward()
            opt.step()
            opt.zero_grad()
    assert all(
        torch.equal(a, b) for a, b in zip(ours.state_dict().values(), theirs.state_dict().values())
    )

def test_validation_changes_nothing_and_sees_eval_mode():
    seen = []
    class Look(Callback):
        def after_pred(self, learn):
            seen.append(
                (
                    learn.training,
                    learn.model.training,
                    learn.pred.requires_grad,
                    torch.is_grad_enabled(),
                )
            )
    with_valid, without = learner([Look()]), learner(valid=False)
    torch.manual_seed(1); with_valid.fit(2)
    torch.manual_seed(1); without.fit(2)
    assert torch.equal(weights(with_valid.model), weights(without.model))
    assert set(seen) == {(True, True, True, True), (False, False, False, False)}
    for a, b in zip(with_valid.model.buffers(), without.model.buffers()):
        assert torch.equal(a, b)

def test_order_of_events():
    said = []
    def named(event):
        return lambda self, learn: said.append(
            (event, learn.training if event not in ('before_fit', 'before_epoch') else None)
        )
    events = [e for e in vars(Callback) if e.startswith(('before', 'after'))]
    Say = type('Say', (Callback,), {e: named(e) for e in events})
    learner([Say()]).fit(1)
    train = [
        (e, True)
        for e in events
        if e.startswith('after') or e == 'before_batch'
        if e not in ('after_epoch', 'after_fit')
    ]
    train.sort(key=lambda e: events.index(e[0]))
    valid = [(e, False) for e, _ in train if e not in ('after_backward', 'after_step')]
    assert said == [
        ('before_fit', None),
        ('before_epoch', None),
        *train * 3,
        *valid * 3,
        ('after_epoch', False),
        ('after_fit', False),
    ]

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
    assert [m.training for m in learn.model.modules()] == [
        m is learn.model[1] for m in learn.model.modules()
    ]
    assert len(rec.losses) == {
        'before_fit': 0,
        'before_epoch': 0,
        'before_batch': 0,
        'after_pred': 0,
        'after_epoch': 3,
        'after_fit': 6,
    }.get(event, 1)
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
    assert list(avg.rows[0]) == ['epoch', 'train loss'] and list(avg.rows[1]) == [
        'epoch',
        'train loss',
        'valid loss',
    ]
    assert '| 0 | ' in avg.to_markdown() and avg.to_markdown().count('\n') == 3

DIVERGED = (r'the loss became (nan|inf) in epoch 0, batch [12] of training, '
            r'at learning rate 1e\+30')

def test_a_diverging_loss_is_reported_with_its_place():
    learn = learner(lr=1e30)
    with pytest.raises(DivergedError, match=DIVERGED) as e:
        learn.fit(2)
    assert (e.value.epoch, e.value.batch) == (0, learn.batch_idx) and not learn.training == None
    class Break(Callback):
        def before_batch(self, learn):
            if not learn.training and learn.batch_idx == 2:
                learn.xb = learn.xb*math.nan
    with pytest.raises(DivergedError, match='epoch 0, batch 2 of validation'):
        learner([Break()]).fit(1)

def test_bad_input():
    learn = learner()
    before = weights(learn.model)
    for epochs in (-1, 1.5, None):
        with pytest.raises(InputError, match='epochs is'): learn.fit(epochs)
    class Typo(Callback):
        def after_batches(self, learn): pass
    with pytest.raises(InputError, match='after_batches, expected one of before_fit'):
        learn.fit(1, [Typo()])
    with pytest.raises(InputError, match=r'pass Recorder\(\), not the class'):
        learn.fit(1, [Recorder])
    with pytest.raises(InputError, match='expected an instance of Callback'):
        learn.fit(1, [print])
    with pytest.raises(InputError, match='used up after one epoch'):
        Learner(learn.model, zip(*data()), None, F.cross_entropy, learn.opt).fit(2)
    with pytest.raises(InputError, match='made anew'):
        Learner(net(), learn.train_dl, None, F.cross_entropy, learn.opt).fit(2)
    with pytest.raises(InputError, match='expected an optimizer'):
        Learner(learn.model, learn.train_dl, None, F.cross_entropy, torch.optim.SGD).fit(2)
    assert torch.equal(before, weights(learn.model))
    with pytest.raises(InputError, match='train_dl gave no batch'):
        Learner(learn.model, [], None, F.cross_entropy, learn.opt).fit(1)
    with pytest.raises(InputError, match='a batch is a Tensor, expected a pair'):
        Learner(learn.model, [torch.zeros(3, 6)], None, F.cross_entropy, learn.opt).fit(1)
    with pytest.raises(InputError, match='a batch is a dict'):
        Learner(learn.model, [dict(x=1, y=2)], None, F.cross_entropy, learn.opt).fit(1)
    with pytest.raises(InputError, match=r'loss_func gave shape \(16,\)'):
        Learner(
            learn.model,
            learn.train_dl,
            None,
            lambda p, y: F.cross_entropy(p, y, reduction='none'),
            learn.opt,
            [Recorder()],
        ).fit(1)

# ---- the callbacks ----------------------------------------------------------------------------

def test_averages_are_weighted_by_items():
    model = nn.Linear(6, 3)
    x, y = data(21)
    avg = AvgStats(accuracy)
    Learner(
        model,
        TensorLoader(x, y, 8),
        TensorLoader(x, y, 8),
        F.cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.0),
        [avg],
    ).fit(2)
    for row, epoch in zip(avg.rows, (0, 1)):
        assert row['epoch'] == epoch
        for phase in ('train', 'valid'):
            # float32 rounds by 6e-8: some thirty times for the exponentials and sums of three
            # batches, and of all at once
            assert row[f'{phase} loss'] == pytest.approx(
                F.cross_entropy(model(x), y).item(), rel=2e-6
            )
            assert row[f'{phase} accuracy'] == pytest.approx(accuracy(model(x), y).item(), rel=2e-6)

def test_metrics_are_told_apart_by_name():
    x, y = data()
    half = lambda p, y: torch.tensor(.5)
    avg = AvgStats(half=half, whole=lambda p, y: 1.)
    learn = learner([avg]); learn.fit(1)
    assert avg.rows[0]['train half'] == .5 and avg.rows[0]['valid whole'] == 1
    for bad in (lambda: AvgStats(half, half), lambda: AvgStats(loss=half),
                lambda: AvgStats(accuracy, accuracy=half)):
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
    for ax in (rec.plot_losses(), rec.plot_lrs()):
        assert len(ax.lines[0].get_xdata()) == 6

def test_batch_transform_and_device_reach_training_and_validation():
    x, y = data()
    model = net()
    learn = Learner(
        model,
        TensorLoader(x.view(-1, 2, 3), y, 16),
        TensorLoader(x.view(-1, 2, 3), y, 16),
        F.cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        [BatchTransform(lambda xb: xb.flatten(1)), DeviceCallback('cpu')],
    )
    learn.fit(2)
    assert learn.xb.shape == (8, 6)
    assert len(learn.opt.state) == len(list(model.parameters()))

def test_device_moves_any_structure():
    t = torch.zeros(2)
    moved = _moved(dict(a=[t, (t, 'text')], b=3), 'meta')
    assert (
        moved['a'][0].is_meta
        and moved['a'][1][0].is_meta
        and moved['a'][1][1] == 'text'
        and moved['b'] == 3
        and isinstance(moved['a'][1], tuple)
    )

@pytest.mark.parametrize(
    'opt',
    [
        lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9),
        lambda ps: torch.optim.Adam(ps, lr=0.01),
    ],
)
def test_lr_finder_puts_everything_back(opt):
    model = net()
    x, y = data()
    learn = Learner(
        model,
        TensorLoader(x, y, 16, shuffle=True),
        TensorLoader(x, y, 16),
        F.cross_entropy,
        opt(model.parameters()),
    )
    learn.fit(1)
    state, other, rng = (
        copy.deepcopy(model.state_dict()),
        copy.deepcopy(learn.opt.state_dict()),
        torch.get_rng_state(),
    )
    finder = LRFinder(1e-3, 10., steps=20)
    learn.fit(99, [finder])
    assert all(
        torch.equal(a, b) for a, b in zip(state.values(), model.state_dict().values())
    ) and torch.equal(rng, torch.get_rng_state())
    for a, b in zip(other['state'].values(), learn.opt.state_dict()['state'].values()):
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
    assert other['param_groups'] == learn.opt.state_dict()['param_groups']
    assert finder.lrs[0] == pytest.approx(1e-3) and all(
        b / a == pytest.approx(1e4 ** (1 / 19)) for a, b in zip(finder.lrs, finder.lrs[1:])
    )
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
    code = (
        "import torch, torch.nn.functional as F; from initnotes.training import *\n"
        "m = torch.nn.Linear(6, 3); x = torch.randn(40, 6)\n"
        "opt = torch.optim.SGD(m.parameters(), lr=.1)\n"
        "dl = TensorLoader(x, torch.zeros(40, dtype=int), 8)\n"
        "Learner(m, dl, None, F.cross_entropy, opt, [Progress()]).fit(2)"
    )
    return subprocess.run(
        [sys.executable, '-W', 'error', '-c', code],
        capture_output=True,
        text=True,
        env={**os.environ, **env},
        check=True,
    )

@pytest.mark.slow
def test_progress_shows_and_leaves_nothing():
    done = progress({'TQDM_DISABLE': '', 'TQDM_MININTERVAL': '0'})
    # text mode made newlines of the bar's returns
    assert 'epoch 2/2, loss' in done.stderr and done.stderr.splitlines()[-1].strip() == ''
    assert not done.stdout
    done = progress({'TQDM_DISABLE': '1'})
    assert done.stderr == done.stdout == ''

def test_parameter_groups_and_wrapped_models():
    model = net()
    opt = torch.optim.SGD(
        [dict(params=model[0].parameters(), lr=0.1), dict(params=model[4].parameters(), lr=1e3)]
    )
    learn = Learner(nn.DataParallel(model), TensorLoader(*data(), 16), None, F.cross_entropy, opt)
    before = weights(model)
    finder = LRFinder(1e-4, 1e-3, steps=5)
    learn.fit(9, [finder])
    assert [g['lr'] for g in opt.param_groups] == [.1, 1e3] and torch.equal(before, weights(model))

# ---- batches of every kind, and a finder that leaves no trace --------------------------------

BOXES, EMPTY = dict(boxes=torch.zeros(5, 4)), dict(boxes=torch.zeros(0, 4))
PACKED = nn.utils.rnn.pack_sequence([torch.randn(3, 4), torch.randn(2, 4)])

@pytest.mark.parametrize(
    'yb, n',
    [
        (torch.zeros(7), 7),
        ((torch.zeros(7), torch.zeros(7, 2)), 7),
        ({'file': ['a.png'] * 7, 'y': torch.zeros(7)}, 7),
        ([BOXES, EMPTY, EMPTY], 3),
        (['a', 'b'], 2),
        (None, 8),
        (3, 8),
        (torch.tensor(3.0), 8),
        ('a name', 8),
        ({'id': 'x'}, 8),
        (PACKED, 2),
    ],
)
def test_how_many_items_a_batch_holds(yb, n):
    m, counted = nn.Linear(4, 4), AvgStats(one=lambda p, t: torch.ones(()))
    losses = iter([1., 2.])
    batches = [(torch.randn(8, 4), yb), (torch.randn(8, 4), torch.zeros(8))]
    Learner(
        m,
        batches,
        None,
        lambda p, t: p.mean() * 0 + next(losses),
        torch.optim.SGD(m.parameters(), lr=0.1),
        [counted],
    ).fit(1)
    assert counted.rows[0]['train loss'] == pytest.approx((n + 2*8)/(n + 8))

def test_a_batch_size_that_cannot_be_known_is_asked_for():
    class Graph: x = torch.randn(8, 4)
    m = nn.Linear(4, 4)
    def learner(**kw):
        return Learner(
            nn.Sequential(Take(), m),
            [(Graph(), None)],
            None,
            lambda p, t: p.square().mean(),
            torch.optim.SGD(m.parameters(), lr=0.1),
            [AvgStats(**kw)],
        )
    with pytest.raises(InputError, match='batch of Graph and NoneType.*batch_size='):
        learner().fit(1)
    learner(batch_size=lambda xb, yb: len(xb.x)).fit(1)

class Take(nn.Module):
    def forward(self, g): return g.x

def test_containers_are_moved_and_stay_what_they_are():
    from collections import OrderedDict, UserDict, namedtuple
    Pair = namedtuple('Pair', 'a b')
    t = torch.zeros(2)
    for x in (Pair(t, 'b'), [t, (t, 3)], OrderedDict(a=t), UserDict(a=t), PACKED):
        y = _moved(x, 'meta')
        assert type(y) is type(x)
    assert (
        _moved(Pair(t, 'b'), 'meta').a.is_meta
        and _moved(UserDict(a=t), 'meta')['a'].is_meta
        and _moved(PACKED, 'meta').data.is_meta
    )
    x = UserDict(a=t); _moved(x, 'meta')
    assert not x['a'].is_meta and _moved(None, 'meta') is None and _moved('abc', 'meta') == 'abc'

def test_recorded_learning_rates_are_copies():
    m = nn.Linear(4, 2)
    opt, rec = torch.optim.SGD(m.parameters(), lr=torch.tensor(.1)), Recorder()
    halve = Callback()
    halve.after_step = lambda learn: learn.opt.param_groups[0]['lr'].mul_(.5)
    Learner(
        m,
        TensorLoader(torch.randn(64, 4), torch.randint(2, (64,)), 16),
        None,
        F.cross_entropy,
        opt,
        [rec, halve],
    ).fit(1)
    assert rec.lrs == pytest.approx([0.1, 0.05, 0.025, 0.0125]) and all(
        type(v) is float for v in rec.lrs
    )

def test_an_optimiser_that_wants_a_closure_is_refused():
    m = nn.Linear(4, 2)
    with pytest.raises(InputError, match='LBFGS.*closure'):
        Learner(
            m,
            [(torch.randn(8, 4), torch.zeros(8).long())],
            None,
            F.cross_entropy,
            torch.optim.LBFGS(m.parameters()),
        ).fit(1)

def test_the_finder_leaves_no_trace():
    "Neither in buffers that are not saved, nor in the loader's generator, nor in Python's."
    class Centre(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 2)
            self.register_buffer('mean', torch.zeros(4), persistent=False)
        def forward(self, x):
            random.random()
            if self.training: self.mean.lerp_(x.mean(0), .1)
            return self.lin(x - self.mean)
    x, y, g = torch.randn(64, 4) + 3, torch.randint(2, (64,)), torch.Generator().manual_seed(2)
    ds = torch.utils.data.TensorDataset(x, y)
    for dl in (TensorLoader(x, y, 16, shuffle=True, generator=g),
               torch.utils.data.DataLoader(ds, 16, shuffle=True, generator=g)):
        m = Centre()
        before = (
            m.lin.weight.detach().clone(),
            g.get_state(),
            random.getstate(),
            torch.get_rng_state(),
        )
        Learner(m, dl, None, F.cross_entropy, torch.optim.SGD(m.parameters(), lr=0.1)).fit(
            3, [LRFinder(steps=8)]
        )
        assert (
            not m.mean.any()
            and torch.equal(m.lin.weight, before[0])
            and torch.equal(g.get_state(), before[1])
        )
        assert random.getstate() == before[2] and torch.equal(torch.get_rng_state(), before[3])

# ---- batches taken apart ----------------------------------------------------------------------

class Twofold(nn.Module):
    "Two inputs and, if it is given labels, its own loss."
    def __init__(self): super().__init__(); self.lin = nn.Linear(6, 3)
    def forward(self, x, mask, labels=None):
        z = self.lin(x*mask)
        return z if labels is None else dict(logits=z, loss=F.cross_entropy(z, labels))

Triple = namedtuple('Triple', 'x mask y')
MASK = torch.tensor([1., 1, 1, 0, 0, 1])
X, Y = data(16)
SHAPES = {
    'tuple of three': ((X, MASK, Y), F.cross_entropy, {}),
    'list of three': ([X, MASK, Y], F.cross_entropy, {}),
    'named tuple': (Triple(X, MASK, Y), F.cross_entropy, {}),
    'dict, own loss': (dict(x=X, mask=MASK, labels=Y), lambda out, y: out['loss'], {}),
    'OrderedDict': (OrderedDict(labels=Y, mask=MASK, x=X), lambda out, y: out['loss'], {}),
    'UserDict': (UserDict(labels=Y, mask=MASK, x=X), lambda out, y: out['loss'], {}),
    'split to a tuple': (dict(a=(X, MASK), b=Y), F.cross_entropy,
                         dict(split=lambda b: (b['a'], b['b']))),
    'split to a dict': ([Y, X, MASK], F.cross_entropy,
                        dict(split=lambda b: (dict(mask=b[2], x=b[1]), b[0])))}

@pytest.mark.parametrize('shape', SHAPES)
def test_batches_of_any_shape_train_as_by_hand(shape):
    batch, loss, how = SHAPES[shape]
    torch.manual_seed(1); ours = Twofold()
    torch.manual_seed(1); theirs = Twofold()
    opt = torch.optim.SGD(theirs.parameters(), lr=.1)
    for _ in range(3):
        F.cross_entropy(theirs(X, MASK), Y).backward()
        opt.step()
        opt.zero_grad()
    avg = AvgStats()
    opt = torch.optim.SGD(ours.parameters(), lr=.1)
    Learner(ours, [batch]*3, [batch], loss, opt, [avg, DeviceCallback('cpu')], **how).fit(1)
    assert torch.equal(weights(ours), weights(theirs))
    assert avg.rows[0]['valid loss'] == pytest.approx(F.cross_entropy(theirs(X, MASK), Y).item())

def test_labels_are_kept_from_a_model_that_does_not_take_them():
    class Plain(nn.Module):
        def __init__(self): super().__init__(); self.lin = nn.Linear(6, 3)
        def forward(self, x): return self.lin(x)
    model = Plain()
    for wrapped in (model, nn.DataParallel(model), torch.compile(model, backend='eager')):
        opt = torch.optim.SGD(model.parameters(), lr=.1)
        learn = Learner(wrapped, [dict(x=X, labels=Y)], None, F.cross_entropy, opt)
        learn.fit(1)
        assert learn.step == 1 and learn.predict(dict(x=X)).shape == (16, 3)

@pytest.mark.slow
def test_a_model_of_transformers_trains_on_its_own_batches():
    from transformers import BatchEncoding, BertConfig, BertForSequenceClassification
    config = BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=16, max_position_embeddings=16, num_labels=3)
    model = BertForSequenceClassification(config)
    ids = torch.randint(40, (6, 8))
    batch = dict(input_ids=ids, attention_mask=torch.ones_like(ids), labels=torch.arange(6) % 3)
    metrics = dict(right=lambda out, y: accuracy(out.logits, y))
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for wrap in (dict, BatchEncoding):
        learn = Learner(model, [wrap(batch)]*2, None, lambda out, y: out.loss, opt,
                        [AvgStats(**metrics), DeviceCallback('cpu')])
        learn.fit(1)
        out = learn.predict([wrap(batch)]*2)
        assert type(out).__name__ == 'SequenceClassifierOutput' and out.logits.shape == (12, 3)
        with torch.no_grad(): expected = model.eval()(**batch)
        assert learn.validate([wrap(batch)])['loss'] == pytest.approx(expected.loss.item())

def test_a_packed_sequence_is_one_input():
    class Last(nn.Module):
        def __init__(self):
            super().__init__(); self.rnn = nn.GRU(4, 3, batch_first=True)
        def forward(self, seq): return self.rnn(seq)[1][0]
    model, avg = Last(), AvgStats(accuracy)
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    batch = PACKED, torch.tensor([0, 2])
    learn = Learner(model, [batch], [batch], F.cross_entropy, opt, [avg, DeviceCallback('cpu')])
    learn.fit(1)
    with torch.no_grad(): expected = model(PACKED)
    for given in (PACKED, [batch], batch):
        assert torch.allclose(learn.predict(given), expected)
    assert avg.rows[0]['valid loss'] == pytest.approx(F.cross_entropy(expected, batch[1]).item())

@pytest.mark.parametrize('batch, words', [
    (PACKED, 'a batch is a PackedSequence'), (X, 'a batch is a Tensor'), ((X,), 'a tuple of 1'),
    ('text', 'a batch is a str'), (dict(x=X, y=Y), "expected 'labels' among them"),
    ([(X[0], Y[0])]*3, 'not collated'), ([dict(x=X[0], y=Y[0])]*4, 'not collated')])
def test_a_batch_that_could_be_read_wrongly_is_refused(batch, words):
    learn = learner(valid=False)
    learn.train_dl, before = [batch], weights(learn.model)
    with pytest.raises(InputError, match=words): learn.fit(1)
    assert torch.equal(before, weights(learn.model))

def test_a_split_that_gives_no_pair_is_refused():
    learn = learner(valid=False)
    learn.split = lambda batch: batch[0]
    with pytest.raises(InputError, match='split gave a Tensor'): learn.fit(1)

@dataclasses.dataclass
class Pair:
    a: torch.Tensor
    b: list

@pytest.mark.parametrize('xb', [
    Pair(X, [X, 'text']), defaultdict(list, a=X), types.MappingProxyType(dict(a=(X, None))),
    dict(a=[dict(b=X)], c=3), Triple(X, {'m': X}, None)])
def test_whatever_holds_tensors_is_moved_as_it_is(xb):
    def tensors(v):
        if isinstance(v, torch.Tensor): yield v
        elif dataclasses.is_dataclass(v):
            yield from tensors(list(vars(v).values()))
        elif isinstance(v, Mapping): yield from tensors(list(v.values()))
        elif isinstance(v, (list, tuple)):
            yield from itertools.chain(*map(tensors, v))
    moved = _moved(xb, 'meta')
    assert type(moved) is type(xb) and all(t.is_meta for t in tensors(moved))
    assert len(list(tensors(moved))) == len(list(tensors(xb))) > 0
    assert not any(t.is_meta for t in tensors(xb))

# ---- how many items ---------------------------------------------------------------------------

IMAGES = [torch.zeros(3, 8, 8), torch.zeros(3, 9, 7)]

@pytest.mark.parametrize(
    'xb, yb, n',
    [
        (IMAGES, [BOXES, EMPTY], 2),
        (IMAGES, [torch.zeros(5, 4), torch.zeros(0, 4)], 2),
        (torch.zeros(2, 3, 8, 8), [torch.zeros(5, 4), torch.zeros(5, 4)], 2),
        (torch.zeros(4, 2), [torch.zeros(4), torch.zeros(4, 7)], 4),
        ((X, MASK), Y, 16),
        (dict(ids=X, text=['a'] * 16), None, 16),
        (PACKED, None, 2),
        (torch.zeros(3, 5), ['a', 'b', 'c'], 3),
        (dict(a=torch.zeros(3), b=torch.zeros(5)), None, None),
        (3, 'text', None),
    ],
)
def test_how_many_items_were_meant(xb, yb, n): assert count_items(xb, yb) == n

def test_a_metric_that_is_no_number_is_refused():
    def each(pred, y): return (pred.argmax(1) == y).float()
    with pytest.raises(InputError, match=r'shape \(16,\), expected one number'):
        learner([AvgStats(each)]).fit(1)

# ---- validate and predict ---------------------------------------------------------------------

def test_validate_is_the_validation_of_a_fit_and_leaves_no_trace():
    avg, rec = AvgStats(accuracy), Recorder()
    learn = learner([avg, rec])
    learn.fit(2)
    learn.model.train(); learn.model[3].eval()
    modes, state = (
        [m.training for m in learn.model.modules()],
        copy.deepcopy(learn.model.state_dict()),
    )
    step, rows = learn.step, list(avg.rows)
    found = learn.validate()
    assert found == {k: avg.rows[-1][f'valid {k}'] for k in ('loss', 'accuracy')}
    assert [m.training for m in learn.model.modules()] == modes and learn.step == step
    assert avg.rows == rows and len(rec.losses) == 6 and torch.is_grad_enabled()
    assert all(torch.equal(a, b) for a, b in zip(state.values(), learn.model.state_dict().values()))
    assert learn.validate(cbs=[AvgStats(half=lambda p, y: .5)])['half'] == .5
    assert learn.validate(iter([data(4)])).keys() == {'loss', 'accuracy'}      # once is enough here

def test_validate_in_the_middle_of_a_fit_disturbs_nothing():
    class Other(Callback):
        def __init__(self): self.seen = []
        only_fit = True
        def after_step(self, learn):
            self.seen.append(learn.validate([data(30, 3)])['loss'])
    with_it, without, other = learner([AvgStats()]), learner([AvgStats()]), Other()
    torch.manual_seed(1); with_it.fit(2, [other])
    torch.manual_seed(1); without.fit(2)
    assert torch.equal(weights(with_it.model), weights(without.model)) and len(set(other.seen)) == 6
    assert with_it.cbs[0].rows == without.cbs[0].rows

def test_predict_is_the_model_in_eval_mode_row_by_row():
    learn = learner([AvgStats(accuracy), Progress()])
    learn.fit(1)
    x, y = data(50, 5)
    with torch.no_grad(): expected = learn.model.eval()(x)
    learn.model.train()
    loaders = (
        TensorLoader(x, y, 16),
        [(x[:7], y[:7]), (x[7:], None)],
        iter([[x]]),
        x,
        (x, y),
        [x, y],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x), 8),
    )
    for given in loaders:
        found = learn.predict(given)
        assert torch.allclose(found, expected, atol=1e-6) and not found.requires_grad
        assert all(m.training for m in learn.model.modules()) and torch.is_grad_enabled()
    assert learn.predict().shape == (10, 3) and len(learn.cbs[0].rows) == 1

class Out(nn.Module):
    "Gives what `make` makes of the inputs."
    def __init__(self, make):
        super().__init__(); self.lin, self.make = nn.Linear(6, 3), make
    def forward(self, x): return self.make(self.lin(x))

@pytest.mark.parametrize(
    'make, check',
    [
        (
            lambda z: dict(z=z, none=None, mean=z.mean()),
            lambda p: p['z'].shape == (10, 3) and len(p['mean']) == 3,
        ),
        (lambda z: (z, [z, z[:, :1]]), lambda p: p[1][1].shape == (10, 1)),
        (lambda z: Triple(z, z, z), lambda p: type(p) is Triple and len(p.y) == 10),
        (
            lambda z: [dict(boxes=b) for b in z],
            lambda p: len(p) == 10 and p[9]['boxes'].shape == (3,),
        ),
        (
            lambda z: [torch.zeros(i, 4) for i in range(len(z))],
            lambda p: [len(b) for b in p] == [*range(4)] * 2 + [0, 1],
        ),
    ],
)
def test_predictions_of_any_structure(make, check):
    model = Out(make)
    learn = Learner(
        model, [], TensorLoader(*data(10), 4), None, torch.optim.SGD(model.parameters(), lr=0.1)
    )
    assert check(learn.predict())

def test_predict_and_validate_name_what_is_missing():
    learn = learner(valid=False)
    with pytest.raises(InputError, match='predict has no data'): learn.predict()
    with pytest.raises(InputError, match='validate has no data'):
        learn.validate()
    for what in (learn.predict, learn.validate):
        with pytest.raises(InputError, match='gave no batch'): what([])
    model = Out(lambda z: z[:, :len(z) % 4 + 1])
    ragged = Learner(
        model, [], TensorLoader(*data(10), 4), None, torch.optim.SGD(model.parameters(), lr=0.1)
    )
    with pytest.raises(InputError, match=r'rows of shapes \(1,\), \(3,\)'):
        ragged.predict()

def test_predict_sees_what_changes_the_batch():
    x, y = data(10, 1)
    learn = learner([BatchTransform(lambda xb: xb.flatten(1)), DeviceCallback('cpu')])
    learn.valid_dl = TensorLoader(x.view(-1, 2, 3), y, 4)
    assert learn.predict(x.view(-1, 3, 2)).shape == (10, 3) and learn.validate()['loss'] > 0

# ---- nothing waits ----------------------------------------------------------------------------

class Reads(TorchDispatchMode):
    n = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += func.name() in ('aten::_local_scalar_dense', 'aten::is_nonzero', 'aten::equal')
        return func(*args, **kwargs or {})

@pytest.mark.parametrize('accelerator', [False, True])
def test_no_number_is_asked_for_at_every_step(accelerator, monkeypatch):
    if accelerator:
        monkeypatch.setattr(learner_module, '_waits', lambda t: True)
    def reads(steps):
        model, rec, avg = net(), Recorder(), AvgStats(accuracy)
        dl = TensorLoader(*data(16*steps), 16)
        with Reads() as mode:
            Learner(
                model,
                dl,
                dl,
                F.cross_entropy,
                torch.optim.SGD(model.parameters(), lr=0.01),
                [rec, avg],
            ).fit(1)
        assert len(rec.losses) == steps and avg.rows[0]['train loss'] == pytest.approx(
            sum(rec.losses) / steps
        )
        return mode.n
    assert reads(20) == reads(40) <= 4

@pytest.mark.parametrize('late', [1, 4, 50])
def test_an_accelerator_names_the_first_bad_batch(late, monkeypatch):
    monkeypatch.setattr(learner_module, '_waits', lambda t: True)
    monkeypatch.setattr(learner_module, 'LATE', late)
    class Break(Callback):
        def before_batch(self, learn):
            if learn.training == self.when and learn.batch_idx >= 1:
                learn.xb = learn.xb*math.nan
    for when, phase in ((True, 'training'), (False, 'validation')):
        cb = Break(); cb.when = when
        words = f'nan in epoch 0, batch 1 of {phase}, at learning rate 0.1'
        with pytest.raises(DivergedError, match=words) as e:
            learner([cb]).fit(2)
        assert (e.value.epoch, e.value.batch) == (0, 1)
    class Stop(Callback):
        def after_batch(self, learn):
            if learn.batch_idx == 1: raise CancelFit
    cb.when = True
    with pytest.raises(DivergedError, match='batch 1'):
        learner([cb, Stop()]).fit(1)       # not lost

def test_on_the_cpu_a_bad_loss_makes_no_step():
    learn = learner(valid=False)
    learn.train_dl = [data(8), (data(8)[0]*math.inf, data(8)[1])]
    seen = []
    watch = Callback()
    watch.after_step = lambda learn: seen.append(weights(learn.model))
    for dtype in (torch.float32, torch.bfloat16):
        learn.model.to(dtype)
        learn.train_dl = [(x.to(dtype), y) for x, y in learn.train_dl]
        seen.clear()
        with pytest.raises(DivergedError, match='batch 1'):
            learn.fit(1, [watch])
        assert len(seen) == 1 and torch.equal(seen[0], weights(learn.model))

def test_what_was_recorded_survives_copies_pickles_and_changes_in_place():
    rec, avg = Recorder(), AvgStats()
    class Quarter(Callback):
        order = 1
        def after_loss(self, learn):
            if learn.training: learn.loss.data.div_(4)
    learner([rec, avg, Quarter()], valid=False).fit(1)
    plain = Recorder()
    torch.manual_seed(0)
    for other in (copy.deepcopy(rec), pickle.loads(pickle.dumps(rec))):
        assert other.losses == rec.losses
    assert pickle.loads(pickle.dumps(avg)).rows == avg.rows
    rec.losses.append(0.)
    assert len(rec.losses) == 3 and min(rec.losses) > .5 and plain.losses == []
    assert avg.rows[0]['train loss'] == pytest.approx(
        sum(n * l for n, l in zip((16, 16, 8), rec.losses)) / 40
    )

# ---- the finder -------------------------------------------------------------------------------

def test_lr_find_suggests_a_rate_that_learns_and_changes_nothing():
    model = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 3))
    x = torch.randn(640, 6, generator=torch.Generator().manual_seed(4))
    y = (x[:, :3]*2).argmax(1)
    dl = TensorLoader(x, y, 32, shuffle=True)
    avg = AvgStats(accuracy)
    learn = Learner(
        model,
        dl,
        dl,
        F.cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.1),
        [avg, Recorder()],
    )
    before = weights(model), torch.get_rng_state()
    finder = learn.lr_find()
    assert torch.equal(before[0], weights(model)) and torch.equal(before[1], torch.get_rng_state())
    assert not avg.rows and not learn.cbs[1].losses and learn.step == 0
    assert (
        finder.ended
        and f'suggests {finder.suggestion:.3g}' in repr(finder)
        and 'of 100' in repr(finder)
    )
    reached = {}
    for lr in (finder.suggestion/100, finder.suggestion):
        with torch.no_grad():
            nn.utils.vector_to_parameters(before[0].clone(), model.parameters())
        learn.opt.param_groups[0]['lr'] = lr
        learn.fit(3); reached[lr] = learn.validate()['accuracy']
    assert reached[finder.suggestion] > .8 > reached[finder.suggestion/100]
    assert len(finder.plot().lines) == 3 and finder.plot().lines[2].get_xdata() == [
        finder.suggestion
    ]

@pytest.mark.parametrize(
    'losses, at',
    [
        ([1 - math.tanh((i - 50) / 10) for i in range(100)], 50),
        ([5.0 + 0.1 * i for i in range(100)], None),
        ([1.0] * 100, None),
        ([2 + math.sin(i * 7919) / 9 for i in range(100)], None),
        ([math.nan], None),
        ([], None),
        ([3.0, 2.0], None),
        (
            [
                3 - math.tanh((i - 40) / 8) + math.sin(i * 7919) / 20 + math.exp((i - 90))
                for i in range(100)
            ]
            + [math.nan],
            40,
        ),
    ],
)
def test_the_suggestion_is_where_the_loss_falls_fastest(losses, at):
    finder = LRFinder(1e-4, 10.)
    finder.losses, finder.lrs = losses, [1e-4*1e5**(i/99) for i in range(len(losses))]
    if at is None: assert finder.suggestion is None
    else: assert abs(finder.lrs.index(finder.suggestion) - at) <= 5
    assert len(finder.smoothed) == sum(map(math.isfinite, losses)) and repr(finder)

def test_groups_keep_their_ratios():
    model = net()
    opt = torch.optim.SGD(
        [
            dict(params=model[0].parameters(), lr=0.02),
            dict(params=model[1].parameters(), lr=0.0),
            dict(params=model[4].parameters(), lr=torch.tensor(0.2)),
        ]
    )
    seen = []
    look = Callback()
    look.after_step = lambda learn: seen.append([g['lr'] for g in learn.opt.param_groups])
    finder = Learner(model, TensorLoader(*data(), 16), None, F.cross_entropy, opt, [look]).lr_find(
        1e-4, 1e-2, 5
    )
    assert len(seen) == 5 and all(b == 0 and c == pytest.approx(10*a) for a, b, c in seen)
    assert [a for a, _, _ in seen] == finder.lrs
    assert [float(g['lr']) for g in opt.param_groups] == pytest.approx([.02, 0., .2])

def test_a_finder_that_is_cut_short_says_so():
    learn, finder = learner(), LRFinder(1e-5, 1e-3)
    with pytest.warns(UserWarning, match='over after 3 of 100 steps.*lr_find'):
        learn.fit(1, [finder])
    assert '3 of 100' in repr(finder) and 'the fit was over' in finder.ended
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert learn.lr_find(1.0, 1e30, 40).ended in (
            'the loss was four times its best',
            'the loss was not finite',
        )
        assert learn.lr_find(1e-6, 1e-5, 7).ended == 'all 7 steps were made'

def test_a_schedule_that_fights_the_finder_is_named():
    class Schedule(Callback):
        def before_batch(self, learn): learn.opt.param_groups[0]['lr'] = .3
    learn = learner([Schedule()])
    before = weights(learn.model)
    with pytest.raises(InputError, match='another callback set the learning rates to .*only_fit'):
        learn.lr_find()
    assert torch.equal(before, weights(learn.model)) and learn.opt.param_groups[0]['lr'] == .1
    Schedule.only_fit = True
    assert len(learn.lr_find(steps=5).lrs) == 5

def test_whatever_a_forward_writes_is_put_back():
    class Writer(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin, self.ready, self.calls, self.plain = nn.Linear(6, 3), False, 0, torch.zeros(3)
            self.temperature = nn.Parameter(torch.ones(()))
            self.register_buffer('mean', torch.zeros(6), persistent=False)
            self.own = torch.Generator().manual_seed(0)
        def forward(self, x):
            if not self.ready: self.ready, self.scale = True, x.std()
            self.calls += torch.rand((), generator=self.own).item()
            self.mean = .9*self.mean + .1*x.mean(0)                  # a new tensor every time
            self.plain += 1
            self.temperature.data.clamp_(max=.5)
            return self.lin(x - self.mean)/self.temperature
    class Draws(torch.utils.data.Dataset):
        def __init__(self):
            self.py, self.np = random.Random(1), np.random.default_rng(2)
        def __len__(self): return 32
        def __getitem__(self, i):
            return torch.randn(6) + self.py.random() + self.np.random(), i % 3
    model, ds = Writer(), Draws()
    dl = torch.utils.data.DataLoader(ds, 8, shuffle=True)
    mean, plain = model.mean, model.plain
    states = lambda: (ds.py.getstate(), str(ds.np.bit_generator.state), str(np.random.get_state()),
                      model.own.get_state().tolist())
    before = states()
    Learner(model, dl, None, F.cross_entropy, torch.optim.SGD(model.parameters(), lr=0.1)).lr_find(
        1e-4, 1e-2, 6
    )
    assert (
        not model.ready
        and model.calls == 0
        and not hasattr(model, 'scale')
        and model.temperature == 1
    )
    assert model.mean is mean and not mean.any() and model.plain is plain and not plain.any()
    assert states() == before

# ---- files, and half the bits -----------------------------------------------------------------

def test_what_was_saved_goes_on_to_the_bit(tmp_path):
    a, b = (learner(valid=False, seed=s, momentum=.9) for s in (0, 1))
    a.fit(1); a.save(tmp_path/'a.pt'); b.load(tmp_path/'a.pt')
    for l in (a, b): torch.manual_seed(2); l.fit(2)
    assert torch.equal(weights(a.model), weights(b.model)) and os.listdir(tmp_path) == ['a.pt']

def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    a = learner(valid=False, momentum=.9)
    a.fit(1); a.save(tmp_path/'a.pt')
    narrow = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 2)
    )
    b, c = learner(valid=False, model=narrow), learner(valid=False, seed=3)
    c.opt.add_param_group(dict(params=[nn.Parameter(torch.zeros(1))]))
    torch.save([1, 2], tmp_path/'b.pt')
    for learn, path, words in ((b, 'a.pt', r'4.bias \(3,\).*4.bias \(2,\)'),
                               (c, 'a.pt', 'the optimizer'), (c, 'b.pt', 'a list')):
        before, opt = copy.deepcopy(learn.model.state_dict()), str(learn.opt.state_dict())
        with pytest.raises(InputError, match=words): learn.load(tmp_path/path)
        assert all(torch.equal(v, before[k]) for k, v in learn.model.state_dict().items())
        assert str(learn.opt.state_dict()) == opt

@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_trains_as_full_precision_does(dtype):
    x, y = data(64)
    def trained(cbs):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
        seen = []
        look = Callback()
        look.after_backward = lambda learn: seen.append(
            (learn.pred.dtype, float(learn.scale), model[0].weight.grad.norm().item())
        )
        learn = Learner(
            model,
            TensorLoader(x, y, 16),
            TensorLoader(x, y, 16),
            F.cross_entropy,
            torch.optim.SGD(model.parameters(), lr=0.1),
            [AvgStats(), *cbs, look],
        )
        learn.fit(4)
        assert learn.scale == 1. and not torch.is_autocast_enabled('cpu') and learn.scaler is None
        return seen, learn.cbs[0].rows[-1]['valid loss'], learn.predict(x).dtype
    full, half = trained([]), trained([MixedPrecision(dtype)])
    assert half[0][0][0] is half[2] is dtype and full[2] is torch.float32
    scale = half[0][0][1]
    assert scale == (65536. if dtype is torch.float16 else 1.)
    # numbers of 8 bits (11 in float16) are rounded by 2⁻⁸; some dozen of them in a row
    assert half[0][0][2] / scale == pytest.approx(full[0][0][2], rel=12 * 2**-8) and half[
        1
    ] == pytest.approx(full[1], rel=0.05)

def test_a_step_that_overflows_is_left_out_and_autocast_ends_whatever_happens():
    x, y = data(16)
    model = nn.Linear(6, 3)
    before = weights(model)
    opt = torch.optim.SGD(model.parameters(), lr=.1)
    scales = []
    look = Callback()
    look.after_backward = lambda learn: scales.append(float(learn.scale))
    loss = lambda p, y: F.cross_entropy(p, y)*1e35
    Learner(model, [(x, y)]*3, None, loss, opt, [MixedPrecision(torch.float16), look]).fit(1)
    assert torch.equal(before, weights(model)) and scales == [65536., 32768., 16384.]
    for event in ('before_batch', 'after_pred', 'after_loss', 'after_backward'):
        for error in (ValueError, CancelBatch, CancelEpoch, KeyboardInterrupt):
            bad = Callback(); bad.order = 200
            def fail(learn): raise error
            setattr(bad, event, fail)
            learn = Learner(model, [(x, y)], None, F.cross_entropy, opt, [MixedPrecision(), bad])
            with suppress(ValueError, KeyboardInterrupt): learn.fit(1)
            assert not torch.is_autocast_enabled('cpu')
    with pytest.raises(InputError, match='expected torch.bfloat16'):
        MixedPrecision(torch.int8)
