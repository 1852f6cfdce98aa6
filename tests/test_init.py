"init_: every kind of model, rules, ties, and all or nothing."
import copy, fnmatch, itertools, math, os, re, subprocess, sys, warnings
from pathlib import Path

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

import initnotes.init as ours
from initnotes.core import InputError, se_std
from initnotes.depth import length_map
from initnotes.init import init_
from initnotes.kaiming import gain, variance_scaling_
from initnotes.layers import Fans, Kind, kinds, parameters_of
from initnotes.pairs import edge_variances
from initnotes.shape import shape_activation

HALVES = torch.float16, torch.bfloat16
CUT = .87962566103423978                              # std of a normal cut at ±2, and its kurtosis
KURTOSIS = (3 - 28*math.exp(-2)/math.sqrt(2*math.pi)/math.erf(math.sqrt(2)))/CUT**4
thorough = settings(max_examples=40, deadline=None)

SEED = 20

# ---- init_: every kind of model ----------------------------------------------------------------

LAST = torch.channels_last

class Res(nn.Module):
    "Strided, grouped and transposed, with a norm between."
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.mix = nn.Conv2d(16, 16, (3, 1), groups=4, padding=(1, 0))
        self.norm = nn.GroupNorm(4, 16)
        self.up = nn.ConvTranspose2d(16, 8, 4, stride=2, groups=2, padding=1)
        self.again = nn.Conv1d(2, 6, 27, dilation=2, stride=4)

class Tied(nn.Module):
    "Input and output embedding are one; so are two Linears; and one module stands in two places."
    def __init__(self):
        super().__init__()
        self.head, self.embed = nn.Linear(12, 50), nn.Embedding(50, 12)
        self.head.weight = self.embed.weight
        self.one, self.two = nn.Linear(12, 40), nn.Linear(12, 40)
        self.two.weight = self.one.weight
        self.again = self.one

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(30, 20))
        self.list = nn.ParameterList([torch.randn(3)])
        self.inner = nn.Linear(20, 30)
        self.register_buffer('table', torch.randn(4))

class Wider(nn.Linear):
    "A Linear with something of its own."
    def __init__(self): super().__init__(30, 20); self.scale = nn.Parameter(torch.randn(20))

def frozen():
    m = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 20))
    m[0].requires_grad_(False); m[3].bias.requires_grad_(False)
    return m

def old(f, *args, **kw):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return f(*args, **kw)

ORTHO, BIAS, ZERO, FORGET = 'orthogonal', 'bias', 'zero', 'forget'
NORM, EMBEDDING, FROZEN, UNKNOWN, TIED, PARAMETRISED = (
    ('alone', w) for w in ('norm', 'embedding', 'frozen', 'not know', 'tied', 'parametri'))
ENCODER = {'*in_proj_weight': (16, 16), '*out_proj.weight': (16, 16), '*linear1.weight': (16, 40),
           '*linear2.weight': (40, 16), '*norm*': NORM, '*bias': BIAS}
RES = {'*down.weight': (72, 36), '*mix.weight': (12, 12), '*up.weight': (32, 64),
       '*again.weight': (54, 40.5), '*norm*': NORM, '*bias': BIAS}
def rnn(n_in, hidden, forget=ZERO, out=None):
    return {'*weight_hr*': (hidden, out), '*weight_hh*': ORTHO,
            '*weight_ih*_l1*': (2*(out or hidden), hidden), '*weight_ih*': (n_in, hidden),
            '*bias_ih*': forget, '*bias_hh*': ZERO}
# a model, and what becomes of its parameters: the first pattern that fits; a pair are fans, by hand
MODELS = {
    'MLP':          (lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(),
                                           nn.Linear(30, 25, bias=False), nn.PReLU()),
                     {'0.weight': (20, 30), '2.weight': (30, 25), '0.bias': BIAS,
                      '3.weight': UNKNOWN}),
    'bare Linear':  (lambda: nn.Linear(20, 30), {'weight': (20, 30), 'bias': BIAS}),
    'no parameters': (nn.ReLU, {}),
    'CNN':          (lambda: nn.Sequential(nn.Conv2d(3, 16, 5), nn.BatchNorm2d(16),
                                           nn.Conv2d(16, 8, 3, stride=3),
                                           nn.InstanceNorm2d(8, affine=True), nn.Flatten(),
                                           nn.Linear(72, 10), nn.LayerNorm(10), nn.RMSNorm(10)),
                     {'0.weight': (75, 400), '2.weight': (144, 8), '5.weight': (72, 10),
                      '[136]*': NORM, '7*': NORM, '*bias': BIAS}),
    'resnet':       (Res, RES),
    'channels last': (lambda: Res().to(memory_format=LAST), RES),
    'encoder':      (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 40), 2,
                                                   enable_nested_tensor=False), ENCODER),
    'transformer':  (lambda: nn.Transformer(16, 2, 1, 1, 40, batch_first=True), ENCODER),
    'attention':    (lambda: nn.MultiheadAttention(16, 2, kdim=30, vdim=40, add_bias_kv=True),
                     {'q_proj*': (16, 16), 'k_proj*': (30, 16), 'v_proj*': (40, 16),
                      'out*weight': (16, 16), 'bias_?': ('alone', 'attention'), '*bias': BIAS}),
    'LSTM':         (lambda: nn.LSTM(20, 24, num_layers=2, bidirectional=True),
                     rnn(20, 24, FORGET)),
    'LSTM, projected': (lambda: nn.LSTM(20, 24, num_layers=2, bidirectional=True, proj_size=10),
                        rnn(20, 24, FORGET, 10)),
    'GRU':          (lambda: nn.GRU(20, 24, num_layers=2, bidirectional=True), rnn(20, 24)),
    'RNN':          (lambda: nn.RNN(20, 24, num_layers=2, bidirectional=True, bias=False),
                     rnn(20, 24)),
    'double LSTM':  (lambda: nn.LSTM(20, 24).double(), rnn(20, 24, FORGET)),
    'cells':        (lambda: nn.ModuleList([nn.LSTMCell(20, 24), nn.LSTMCell(20, 24)]),
                     rnn(20, 24, FORGET)),
    'other cells':  (lambda: nn.ModuleList([nn.GRUCell(20, 24), nn.RNNCell(20, 24)]), rnn(20, 24)),
    'Bilinear':     (lambda: nn.Bilinear(5, 6, 20), {'weight': (30, 120), 'bias': BIAS}),
    'weight norm':  (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 30)),
                                           nn.Linear(30, 20)),
                     {'1.weight': (30, 20), '*bias': BIAS, '*': PARAMETRISED}),
    'orthogonal':   (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(20, 20)),
                     {'bias': BIAS, '*': PARAMETRISED}),
    'old weight norm': (lambda: nn.Sequential(old(nn.utils.weight_norm, nn.Conv1d(20, 30, 2)),
                                              nn.Linear(30, 20)),
                        {'1.weight': (30, 20), '*bias': BIAS, '*': ('alone', '')}),
    'old weight norm, recurrent': (
        lambda: old(nn.utils.weight_norm,
                    old(nn.utils.weight_norm, nn.LSTM(20, 24), 'weight_hh_l0'), 'weight_ih_l0'),
        {'bias_ih*': FORGET, 'bias_hh*': ZERO, '*': ('alone', '')}),
    'weight norm, recurrent': (
        lambda: nn.utils.parametrizations.weight_norm(nn.LSTM(20, 24), 'weight_hh_l0'),
        {'weight_ih*': (20, 24), 'bias_ih*': FORGET, 'bias_hh*': ZERO, '*': PARAMETRISED}),
    'tied':         (Tied, {'head.weight': EMBEDDING, 'embed.weight': TIED, 'one.weight': (12, 40),
                            'two.weight': TIED, '*bias': BIAS}),
    'frozen':       (frozen, {'0*': FROZEN, '1.weight': (30, 20), '2*': NORM, '3.weight': (20, 20),
                              '3.bias': FROZEN, '*bias': BIAS}),
    'its own':      (Own, {'weight': UNKNOWN, 'list*': UNKNOWN, 'inner.weight': (20, 30),
                           '*bias': BIAS}),
    'subclass':     (Wider, {'weight': (30, 20), 'scale': UNKNOWN, 'bias': BIAS}),
    'bag':          (lambda: nn.Sequential(nn.EmbeddingBag(30, 20), nn.Linear(20, 30)),
                     {'0*': EMBEDDING, '1.weight': (20, 30), '*bias': BIAS}),
    'float16':      (lambda: nn.ModuleList([Res(), nn.LSTM(20, 24)]).half(),
                     {**RES, **rnn(20, 24, FORGET)}),
    'bfloat16':     (lambda: nn.ModuleList([Res(), nn.GRU(20, 24)]).bfloat16(),
                     {**RES, **rnn(20, 24)})}

CALLS = [dict(), dict(scheme='kaiming_uniform', nonlinearity='tanh', mode='fan_out', bias=.125),
         dict(scheme='xavier_normal', nonlinearity=nn.LeakyReLU(.5), mode='fan_in', bias=-1.),
         dict(scheme='xavier_uniform', nonlinearity='linear'),
         dict(scheme='lecun_normal', nonlinearity='relu', mode='fan_out'),
         dict(scheme='lecun_uniform'),
         dict(scheme='kaiming_normal', nonlinearity=lambda z: 2*z, mode='fan_avg')]
TANH = 1.592537419722831
GAINS = [2**.5, TANH, (2/1.25)**.5, 1, 1, 1, .5]

def expected_std(call, g, n_in, n_out):
    scheme, mode = call.get('scheme', 'kaiming_normal'), call.get('mode', 'fan_in')
    if 'xavier' in scheme: mode = 'fan_avg'
    if 'lecun' in scheme: mode = 'fan_in'
    fan = dict(fan_in=n_in, fan_out=n_out, fan_avg=(n_in + n_out)/2)[mode]
    return g/math.sqrt(fan), fan

def gain_at(module, call, g):
    "Of a recurrent layer, of its own activation: nothing is before an LSTM's or a GRU's gates."
    recurrent = isinstance(module, (nn.RNNBase, nn.RNNCellBase))
    if not recurrent or 'lecun' in call.get('scheme', ''): return g
    return TANH if isinstance(module, (nn.RNN, nn.RNNCell)) else 1

def everything(model):
    "All that init_ may not touch, beside the values of the parameters it sets."
    return ({k: v.clone() for k, v in model.named_buffers()},
            [(n, id(p), p.requires_grad, p.dtype, p.stride(), p.data_ptr())
             for n, p in model.named_parameters(remove_duplicate=False)],
            [m.training for m in model.modules()],
            {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()})

def same(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b

def values(model):
    return {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}

def call_id(x): return x.get('scheme', '') if isinstance(x, dict) else f'{x:.3g}'

def check_drawn(r, p, call, g, n_in, n_out):
    "A weight drawn by a scheme: what was asked is right, and what was drawn is what was asked."
    std, fan = expected_std(call, g, n_in, n_out)
    assert r['scheme'] == call.get('scheme', 'kaiming_normal') and r['fan'] == fan
    assert r['std_asked'] == pytest.approx(std, rel=1e-9)
    assert r['std_drawn'] == pytest.approx(p.double().std(correction=0).item(), rel=1e-3, abs=1e-9)
    k = 1.8 if 'uniform' in r['scheme'] else KURTOSIS if r['scheme'] == 'lecun_normal' else 3
    if p.numel() >= 400:
        assert abs(r['std_drawn'] - std) < 5*se_std(std, p.numel(), k)
        assert abs(p.double().mean()) < 5*std/math.sqrt(p.numel())
    most = {1.8: math.sqrt(3), KURTOSIS: 2/CUT}.get(k, math.inf)*std
    assert p.abs().max() <= most*(1 + torch.finfo(p.dtype).eps)

def check_orthogonal(p):
    tol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3,
           torch.bfloat16: 2e-2}[p.dtype]
    for block in p.double().split(24):
        unit = block.T @ block              # 24 rows: as many columns, or the fewer of a projection
        assert torch.allclose(unit, torch.eye(len(unit), dtype=torch.float64), atol=tol)
    # every gate a draw of its own
    assert len({b.double().sum().item() for b in p.split(24)}) == len(p)//24

@pytest.mark.parametrize('call, g', list(zip(CALLS, GAINS)), ids=call_id)
@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_of_every_model(name, call, g):
    make, spec = MODELS[name]
    model = make().train(name != 'CNN')
    for p in list(model.parameters())[::2]: p.grad = torch.ones_like(p)
    was, before = values(model), everything(model)
    report = init_(model, **call)
    assert same(everything(model), before)
    assert len({r['parameter'] for r in report}) == len(report)
    ids = {r['parameter']: id(model.get_parameter(r['parameter'])) for r in report}
    assert set(ids.values()) == {id(p) for p in model.parameters()}
    once = [ids[r['parameter']] for r in report if not str(r['why']).startswith('tied')]
    assert sorted(once) == sorted(id(p) for p in model.parameters())
    for r in report:
        assert set(r) == {'name', 'kind', 'note', 'parameter', 'scheme', 'fan', 'std_asked',
                          'std_drawn', 'rule', 'why'}
        path, p = r['parameter'], model.get_parameter(r['parameter']).detach()
        kind = next(v for k, v in spec.items() if fnmatch.fnmatchcase(path, k))
        if isinstance(kind, tuple) and kind[0] == 'alone':
            assert kind[1] in r['why']
            assert [r[k] for k in ('scheme', 'fan', 'std_asked', 'std_drawn')] == [None]*4
            if kind is not TIED: assert same(p, was[path])
            continue
        assert r['why'] is None and r['scheme']
        if isinstance(kind, tuple):
            owner = model.get_submodule(path.rpartition('.')[0])
            check_drawn(r, p, call, gain_at(owner, call, g), *kind)
        elif kind == ORTHO: check_orthogonal(p)
        elif kind == BIAS: assert p.eq(call.get('bias', 0)).all()
        else:
            forget = torch.tensor([0, 1, 0, 0]).repeat_interleave(24)
            assert p.eq(forget if kind == FORGET else 0).all()

@pytest.mark.parametrize('name', MODELS)
def test_seeds_and_generators(name):
    """The same seed, the same weights, whether global or a generator's; and a generator leaves the
    global random state alone."""
    twins = []
    for _ in range(5): torch.manual_seed(1); twins.append(MODELS[name][0]())
    torch.manual_seed(7); init_(twins[0]); after = torch.get_rng_state()
    torch.manual_seed(7); init_(twins[1])
    state, g = torch.get_rng_state(), torch.Generator().manual_seed(7)
    init_(twins[2], generator=g)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(after, state)
    assert torch.equal(g.get_state(), after)
    init_(twins[3], generator=g)
    for t in twins[1:3]: assert same(values(t), values(twins[0]))
    if any(not r['why'] and r['std_drawn'] for r in init_(twins[4])):
        assert not same(values(twins[3]), values(twins[0]))

def test_memory_format_changes_no_number():
    a = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ConvTranspose2d(16, 8, 4))
    b = copy.deepcopy(a).to(memory_format=LAST)
    for m in (a, b): torch.manual_seed(5); init_(m)
    assert same(values(a), values(b))
    assert b[0].weight.is_contiguous(memory_format=LAST)
    assert not b[0].weight.is_contiguous()

def test_the_report_as_text():
    report = init_(Tied())
    table = report.to_markdown().split('\n')
    assert len(table) == len(report) + 2
    assert {line.count('|') for line in table} == {7}
    assert report._repr_markdown_() == '\n'.join(table)
    assert len(str(report).split('\n')) == len(report) + 1
    assert 'tied to head.weight' in str(report)
    assert '|' not in str(report)
    assert repr(report) == 'InitReport: 4 parameters set, 3 left alone'

# ---- seed_by_name ------------------------------------------------------------------------------

LAYERS = {'a': lambda: nn.Linear(6, 7), 'b': lambda: nn.Conv2d(2, 3, 3), 'c': lambda: nn.LSTM(3, 4),
          'd': lambda: nn.MultiheadAttention(4, 2), 'e': lambda: nn.Embedding(3, 4),
          'f': lambda: nn.Linear(6, 7)}

@thorough
@given(one=st.lists(st.sampled_from('abcdef'), unique=True),
       two=st.lists(st.sampled_from('abcdef'), unique=True), seed=st.integers(0, 2**40),
       own=st.booleans(), scheme=st.sampled_from(['kaiming_normal', 'xavier_uniform',
                                                  'lecun_normal']))
def test_seed_by_name(one, two, seed, own, scheme):
    """A weight depends on the seed and its own name, not on which other layers there are, or in
    what order; and no random state moves."""
    nets = []
    for keys in (one, two):
        net = nn.ModuleDict({k: LAYERS[k]() for k in keys})
        g = torch.Generator().manual_seed(seed) if own else None
        # the seed counts, not what has been drawn since
        torch.manual_seed(99 if own else seed); torch.rand(len(keys))
        state = torch.get_rng_state(), own and g.get_state()
        init_(net, scheme, generator=g, seed_by_name=True)
        assert same((torch.get_rng_state(), own and g.get_state()), state)
        nets.append(net)
    a, b = map(values, nets)
    for k in a.keys() & b.keys() - {'e.weight'}: assert torch.equal(a[k], b[k])
    if 'a' in one and 'f' in two: assert not torch.equal(a['a.weight'], b['f.weight'])
    if one:
        torch.manual_seed(seed + 1)
        init_(nets[0], scheme, generator=torch.Generator().manual_seed(seed + 1) if own else None,
              seed_by_name=True)
        assert one == ['e'] or not same(values(nets[0]), a)

# ---- all or nothing ----------------------------------------------------------------------------

def meta(): return nn.Linear(3, 3, device='meta')
def overlapping():
    "A weight that no one can write to: all its elements are one."
    m = nn.Linear(3, 3); m.weight = nn.Parameter(torch.zeros(1).expand(3, 3)); return m
def noise(z): return torch.randn_like(z)*math.nan
def stop(z): raise KeyboardInterrupt
def with_weight(w): m = nn.Linear(3, 3); m.weight = w; return m

def unchanged(call, error, words=None, *last):
    """`call(model, generator)` must fail, and leave no trace: neither in a model that ends in
    `last`, nor in a random state."""
    model = nn.Sequential(Res(), Tied(), nn.LSTM(4, 5), nn.Linear(3, 4), nn.BatchNorm1d(4),
                          *last).eval()
    plain = [p for p in model.parameters() if not isinstance(p, nn.UninitializedParameter)
             and not p.is_meta]
    was, g = [p.detach().clone() for p in plain], torch.Generator().manual_seed(3)
    def state():
        return (torch.get_rng_state(), g.get_state(), [m.training for m in model.modules()],
                [(p.requires_grad, p.grad) for p in plain])
    torch.rand(3); before = state()
    with pytest.raises(error, match=words): call(model, g)
    assert all(map(torch.equal, plain, was)) and same(state(), before)

@pytest.mark.parametrize('generator', [False, True])
@pytest.mark.parametrize('by_name', [False, True])
@pytest.mark.parametrize('last, kw, words', [
    (lambda: nn.LazyLinear(3), {}, r'5\.weight.*LazyLinear'),
    (lambda: nn.LazyBatchNorm1d(), {}, r'5\.weight.*LazyBatchNorm'),
    (lambda: nn.Sequential(nn.LazyConv2d(3, 2)), {}, r'5\.0\.weight'),
    (nn.ReLU, dict(scheme='kaiming'), "scheme.*'kaiming'.*'kaiming_normal'"),
    (nn.ReLU, dict(scheme=None), 'scheme'), (nn.ReLU, dict(scheme=['kaiming_normal']), 'scheme'),
    (nn.ReLU, dict(mode='fan'), "mode.*'fan'.*'fan_avg'"),
    (nn.ReLU, dict(nonlinearity='rellu'), "'rellu'"), (nn.ReLU, dict(nonlinearity=3), '3'),
    (nn.ReLU, dict(nonlinearity=nn.ReLU), 'ReLU'),
    (nn.ReLU, dict(nonlinearity=torch.log), 'nan'), (nn.ReLU, dict(nonlinearity=noise), 'nan'),
    (nn.ReLU, dict(nonlinearity=torch.zeros_like), '0 everywhere'),
    (nn.ReLU, dict(nonlinearity=lambda z: z.sum()), 'each element'),
    (nn.ReLU, dict(bias=math.nan), 'bias is nan'), (nn.ReLU, dict(bias=math.inf), 'bias is inf')])
def test_what_fails_changes_nothing(last, kw, words, generator, by_name):
    unchanged(lambda m, g: init_(m, **kw, generator=g if generator else None, seed_by_name=by_name),
              InputError, words, last())

@pytest.mark.parametrize('last, words', [
    (meta, 'meta device'), (lambda: old(nn.Linear, 0, 3), r'no elements: shape \(3, 0\)'),
    (lambda: nn.Linear(3, 3, dtype=torch.complex64), 'complex64'),
    (lambda: with_weight(nn.Parameter(torch.eye(3).to_sparse())), 'sparse'),
    (lambda: with_weight(nn.Parameter(torch.ones(3, 3).char(), requires_grad=False)), 'int8')])
def test_one_strange_layer_is_reported_and_stops_nothing(last, words):
    model = nn.Sequential(nn.Linear(4, 3), last(), nn.Linear(3, 3))
    report = {r['parameter']: r for r in init_(model)}
    assert re.search(words, report['1.weight']['why'])
    assert report['0.weight']['scheme'] == report['2.weight']['scheme'] == 'kaiming_normal'

@pytest.mark.parametrize('exclude', ['1', nn.LayerNorm, lambda m: isinstance(m, nn.Linear)
                                     and m.out_features == 3])
def test_excluded_modules_are_left_alone(exclude):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3), nn.LayerNorm(3))
    before = [p.detach().clone() for p in model.parameters()]
    report = init_(model, exclude=exclude)
    for r, p, old in zip(report, model.parameters(), before):
        assert torch.equal(p, old) == bool(r['why'])
    assert any(r['why'] == 'excluded' for r in report)
    with pytest.raises(InputError, match="exclude names '7'"): init_(model, exclude='7')

def shared_parameter(m): m['head'].weight = nn.Parameter(m['embed'].weight)
def shared_data(m): m['head'].weight.data = m['embed'].weight.data
def transposed(m):
    m['head'] = nn.Linear(50, 8, bias=False); m['head'].weight = nn.Parameter(m['embed'].weight.T)
def part(m):
    m['head'] = nn.Linear(8, 20, bias=False)
    m['head'].weight = nn.Parameter(m['embed'].weight[10:30])
def strided(m):
    m['head'] = nn.Linear(4, 50, bias=False)
    m['head'].weight = nn.Parameter(m['embed'].weight[:, ::2])

@pytest.mark.parametrize('tie', [shared_parameter, shared_data, transposed, part, strided])
def test_what_is_left_alone_is_not_changed_through_a_tie(tie):
    m = nn.ModuleDict(dict(embed=nn.Embedding(50, 8), head=nn.Linear(8, 50, bias=False),
                           free=nn.Linear(3, 3)))
    tie(m)
    before = m['embed'].weight.detach().clone()
    report = {r['parameter']: r['why'] for r in init_(m)}
    assert torch.equal(m['embed'].weight, before)
    assert report == {'embed.weight': 'embedding', 'head.weight': 'tied to embed.weight',
                      'free.weight': None, 'free.bias': None}

def test_a_frozen_twin_stays():
    m = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    m[1].weight = nn.Parameter(m[0].weight.detach(), requires_grad=False)
    before = m[0].weight.detach().clone()
    assert [r['why'] for r in init_(m)] == ['frozen', 'tied to 0.weight']
    assert torch.equal(m[0].weight, before)

def test_columns_of_one_tensor_are_not_tied():
    w = torch.zeros(6, 8)
    m = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(4, 6, bias=False))
    m[0].weight, m[1].weight = nn.Parameter(w[:, ::2]), nn.Parameter(w[:, 1::2])
    assert [r['why'] for r in init_(m)] == [None, None] and w.count_nonzero() == w.numel()

def test_another_default_device_or_dtype_changes_nothing():
    expected = gain('gelu')
    with torch.device('meta'): assert gain('gelu') == expected
    model = nn.Linear(3, 4)
    with torch.device('meta'): init_(model)
    assert model.weight.std() > 0
    default = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype); assert gain('gelu') == pytest.approx(expected, rel=1e-9)
    finally: torch.set_default_dtype(default)

def test_a_model_that_is_all_meta_is_refused():
    with pytest.raises(InputError, match='0.weight and all other .*meta'):
        init_(nn.Sequential(meta(), meta()))

@pytest.mark.parametrize('generator', [False, True])
@pytest.mark.parametrize('last, kw, error', [
    (overlapping, {}, (RuntimeError, InputError)),
    (lambda: nn.Linear(3, 3).half(), dict(bias=1e6), (RuntimeError, InputError)),
    (nn.ReLU, dict(nonlinearity=stop), KeyboardInterrupt),
    (nn.ReLU, dict(nonlinearity='cross_entropy'), (TypeError, InputError))])
def test_what_breaks_changes_nothing(last, kw, error, generator):
    unchanged(lambda m, g: init_(m, **kw, generator=g if generator else None), error, None, last())

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize('where, after', [('orthogonal_', 0), ('orthogonal_', 2), ('_draw_', 0),
                                          ('_draw_', 3)])
@pytest.mark.parametrize('generator', [False, True])
def test_an_error_amid_the_drawing(monkeypatch, error, where, after, generator):
    real, calls = getattr(ours, where), itertools.count()
    def planted(*args, **kw):
        result = real(*args, **kw)               # what it takes from the random state is taken
        if next(calls) == after: raise error('planted')
        return result
    monkeypatch.setattr(ours, where, planted)
    unchanged(lambda m, g: init_(m, generator=g if generator else None), error, 'planted')

@pytest.mark.parametrize('after', [0, 1, 5, 12])
def test_an_error_amid_the_copying(monkeypatch, after):
    "Some parameters have their new values already when Ctrl-C comes."
    real, calls = torch.Tensor.copy_, itertools.count()
    def planted(self, other, *args, **kw):
        result = real(self, other, *args, **kw)
        if isinstance(self, nn.Parameter) and next(calls) == after:
            raise KeyboardInterrupt('planted')
        return result
    monkeypatch.setattr(torch.Tensor, 'copy_', planted)
    unchanged(lambda m, g: init_(m), KeyboardInterrupt, 'planted')

def test_parameters_that_share_memory_are_restored():
    "Two Parameters, one storage: putting back in the wrong order would leave the new numbers."
    one = nn.Linear(3, 3)
    two = with_weight(nn.Parameter(one.weight.data.T))
    unchanged(lambda m, g: init_(m), (RuntimeError, InputError), None, one, two, overlapping())

@pytest.mark.parametrize('model', [None, 3, 'model', nn.Linear, torch.ones(2, 2),
                                   [nn.Linear(2, 2)]])
def test_not_a_model(model):
    state = torch.get_rng_state()
    with pytest.raises(InputError, match='model'): init_(model)
    assert torch.equal(torch.get_rng_state(), state)

# ---- rules -------------------------------------------------------------------------------------

def rows(model, **kw): return {r['parameter']: r for r in init_(model, **kw)}

class Net(nn.Module):
    "A stem, two blocks, a norm between, and a head."
    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Linear(20, 30), nn.LayerNorm(30)
        self.blocks = nn.ModuleList([nn.ModuleDict(dict(fc=nn.Linear(30, 40),
                                                        proj=nn.Linear(40, 30)))
                                     for _ in range(2)])
        self.head, self.token = nn.Linear(30, 10), nn.Parameter(torch.zeros(1, 1, 30))
        self.scale = nn.Parameter(torch.ones(30))

ALL_BLOCKS = {f'blocks.{k}.{m}.{p}' for k in (0, 1) for m in ('fc', 'proj')
              for p in ('weight', 'bias')}
KEYS = [   # a key, and the parameters that it reaches
    ('head', {'head.weight', 'head.bias'}), ('head.weight', {'head.weight'}),
    ('blocks', ALL_BLOCKS),
    ('blocks.*', ALL_BLOCKS), ('blocks.1.fc', {'blocks.1.fc.weight', 'blocks.1.fc.bias'}),
    ('*.proj.weight', {'blocks.0.proj.weight', 'blocks.1.proj.weight'}),
    ('*.[f]c', {p for p in ALL_BLOCKS if '.fc.' in p}), ('token', {'token'}), ('?oken', {'token'}),
    (nn.ModuleDict, ALL_BLOCKS), (('head', '*.0.proj'), {'head.weight', 'head.bias', *(
        f'blocks.0.proj.{p}' for p in ('weight', 'bias'))}),
    (lambda m: getattr(m, 'out_features', 0) == 10, {'head.weight', 'head.bias'})]

def key_id(k): return '' if isinstance(k, set) else getattr(k, '__name__', str(k))[:20]

@pytest.mark.parametrize('key, reached', KEYS, ids=key_id)
@pytest.mark.parametrize('value', [.003, dict(std=.003), None])
def test_whom_a_rule_reaches(key, reached, value):
    model = Net()
    was, report = values(model), rows(model, rules={key: value})
    assert {k for k, r in report.items() if r['rule']} == reached
    for k in reached:
        if value is None:
            assert report[k]['why'] == 'a rule leaves it alone' and same(was[k], values(model)[k])
        elif k.endswith('bias'): assert report[k]['scheme'] == '0'
        else: assert report[k]['std_asked'] == .003 and 0 < report[k]['std_drawn'] < .006

def test_a_module_as_key():
    model = Net()
    report = rows(model, rules={model.blocks[1]: .01})
    assert {k for k, r in report.items() if r['rule']} == {k for k in ALL_BLOCKS if '.1.' in k}

@pytest.mark.parametrize('key, reached', KEYS, ids=key_id)
def test_exclude_reaches_the_same(key, reached):
    model = Net()
    was, report = values(model), rows(model, exclude=key)
    assert {k for k, r in report.items() if r['why'] == 'excluded'} == reached
    for k in reached: assert same(was[k], values(model)[k])

def test_a_predicate_of_shells_alone_is_refused():
    with pytest.raises(InputError, match='true of a ModuleDict.*its type'):
        init_(Net(), exclude=lambda m: isinstance(m, nn.ModuleDict))
    for nothing in (nn.Conv2d, lambda m: isinstance(m, nn.Conv2d)):
        assert not any(r['why'] == 'excluded' for r in init_(Net(), exclude=nothing))
    report = rows(Net(), exclude=lambda m: not isinstance(m, nn.Linear))
    assert {k for k, r in report.items() if r['why'] == 'excluded'} == {'token', 'scale',
        'norm.weight', 'norm.bias'}

def test_the_first_rule_counts():
    rules = {'head.weight': .1, 'head': dict(bias=2.), nn.Linear: dict(scheme='lecun_uniform'),
             '*': None}
    report = rows(Net(), rules=rules)
    assert report['head.weight']['std_asked'] == .1
    assert report['head.weight']['rule'] == 'head.weight'
    assert report['head.bias']['scheme'] == '2' and report['head.bias']['rule'] == 'head'
    assert report['stem.weight']['scheme'] == 'lecun_uniform'
    assert report['norm.weight']['why'] == 'a rule leaves it alone' == report['token']['why']

@pytest.mark.parametrize('rules, words', [
    ({'haed': .1}, "'haed'.*reaches no parameter"),
    ({nn.Conv2d: .1}, 'Conv2d.*reaches no parameter'),
    ({'*': .1, 'head': .2}, "'head'.*too late.*head.weight"),
    ({'norm': .1}, "'norm'.*sets nothing.*norms="),
    ({nn.LayerNorm: dict(scheme='lecun_normal')}, 'sets nothing'),
    ({'scale': dict(gain=1.)}, 'sets nothing'),
    ({'head': dict(sd=.1)}, "'head'.*'sd' is no option.*std"),
    ({'head': 'xavier'}, "'head'.*'xavier'"),
    ({'head': dict(scheme='xavier')}, "'head'.*scheme is 'xavier'"),
    ({'head': dict(std=-1)}, "'head'.*std is -1"),
    ({'head': dict(gain=math.nan)}, 'gain is nan'), ({'head': dict(mode='fan')}, 'mode'),
    ({'head': -.1}, 'std'),
    ({'head': dict(nonlinearity='rellu')}, "'head'.*'rellu'"),
    ({'token': dict(fans=(0, 3))}, 'fans'),
    ({'head': dict(fans=3)}, 'fans'), ({3: .1}, 'the key 3'), ({(): .1}, 'the key'),
    (['head'], 'rules is list'),
    ({'head': dict(norms='one')}, 'norms'), ({'head': dict(bias=None)}, 'bias is None')])
def test_rules_that_cannot_be_meant(rules, words):
    model = Net()
    was, state = values(model), torch.get_rng_state()
    with pytest.raises(InputError, match=words): init_(model, rules=rules)
    assert same(values(model), was) and torch.equal(torch.get_rng_state(), state)

@pytest.mark.parametrize('kw, words', [
    (dict(gain=math.inf), 'gain'), (dict(std=-.1), 'std'), (dict(bias_std=-1), 'bias_std'),
    (dict(embedding=-1), 'embedding'), (dict(norms='no'), 'norms'),
    (dict(bias_std=None), 'bias_std'),
    (dict(embedding='x'), 'embedding')])
def test_options_that_cannot_be_meant(kw, words):
    model = Net()
    was = values(model)
    with pytest.raises(InputError, match=words): init_(model, **kw)
    assert same(values(model), was)

def test_a_rule_may_say_what_init_may():
    "Every option in a rule for all does what it does for the whole model."
    for kw in (dict(scheme='xavier_uniform'), dict(nonlinearity='tanh'), dict(mode='fan_out'),
               dict(gain=1.3), dict(start='edge', nonlinearity='tanh'),
               dict(std=.02), dict(bias=.5), dict(bias=.1, bias_std=.2), dict(norms=.5)):
        nets = [nn.Sequential(nn.Linear(20, 30), nn.LayerNorm(30), nn.Linear(30, 4))
                for _ in range(2)]
        for net, call in zip(nets, (kw, dict(rules={nn.Sequential: kw}))):
            torch.manual_seed(3); init_(net, **call)
        was = values(nets[0])
        assert all(torch.equal(was[k], v) for k, v in values(nets[1]).items() if '1.' not in k
                   or 'norms' in kw)

def test_a_rule_replaces_a_std_for_all():
    report = rows(Net(), std=.02, rules={'head': dict(scheme='xavier_normal'),
                                         'stem': dict(bias=1.)})
    assert report['head.weight']['std_asked'] == pytest.approx(gain('relu')*math.sqrt(2/40))
    assert report['stem.weight']['std_asked'] == .02 == report['blocks.0.fc.weight']['std_asked']

def test_numbers_of_any_kind():
    numpy = pytest.importorskip('numpy')
    report = rows(Net(), bias=numpy.float32(.5), rules={'head': numpy.float64(.01)})
    assert report['head.weight']['std_asked'] == .01 and report['stem.bias']['scheme'] == '0.5'

# ---- what is not a weight ----------------------------------------------------------------------

def test_a_std_for_modules_is_not_for_norms_biases_and_single_rows():
    model = Net()
    report = rows(model, rules={'*': .02})
    assert model.norm.weight.eq(1).all() and model.scale.eq(1).all() and model.stem.bias.eq(0).all()
    assert report['token']['std_asked'] == .02 == report['stem.weight']['std_asked']
    rows(model, rules={('norm.weight', 'scale', 'stem.bias'): dict(std=.5, mean=3.)})
    for p in (model.norm.weight, model.scale, model.stem.bias):
        assert abs(p.mean() - 3) < 5*.5/30**.5 and p.std() > .1

@pytest.mark.parametrize('norm', [nn.BatchNorm2d(6), nn.GroupNorm(2, 6), nn.LayerNorm(6),
                                  nn.RMSNorm(6),
                                  nn.InstanceNorm2d(6, affine=True)])
@pytest.mark.parametrize('kw, scale', [(dict(norms='reset'), 1), (dict(norms=.3), .3),
                                       (dict(rules={'1': dict(norms=0)}), 0),
                                       (dict(norms='reset', rules={'1.weight': 0}), 0)])
def test_norms(norm, kw, scale):
    model = nn.Sequential(nn.Conv2d(3, 6, 3), copy.deepcopy(norm))
    for p in model[1].parameters(): nn.init.normal_(p)
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    report = rows(model, **kw)
    assert torch.allclose(model[1].weight, torch.tensor(float(scale)))
    if getattr(model[1], 'bias', None) is not None: assert model[1].bias.eq(0).all()
    assert report['1.weight']['why'] is None and same(dict(model.named_buffers()), buffers)

def test_norms_are_left_alone_unless_asked():
    model = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6))
    nn.init.zeros_(model[1].weight)
    assert rows(model)['1.weight']['why'] == 'norm' and model[1].weight.eq(0).all()

@pytest.mark.parametrize('make', [nn.Embedding, nn.EmbeddingBag])
@pytest.mark.parametrize('kw', [dict(embedding=.02), dict(rules={'0': .02}),
                                dict(rules={(nn.Embedding, nn.EmbeddingBag): dict(std=.02)}),
                                dict(rules={'0.weight': dict(embedding=.02)})])
def test_embeddings(make, kw):
    model = nn.Sequential(make(300, 40, padding_idx=3), nn.Linear(40, 5))
    r = rows(model, **kw)['0.weight']
    w = model[0].weight.detach()
    assert r['std_asked'] == .02 and w[3].eq(0).all()
    rest = torch.cat([w[:3], w[4:]])
    assert abs(rest.std() - .02) < 5*se_std(.02, rest.numel())
    assert abs(rest.mean()) < 5*.02/rest.numel()**.5

@pytest.mark.parametrize('tie', [shared_parameter, shared_data, transposed, part, strided])
@pytest.mark.parametrize('first', ['embed', 'head'])
@pytest.mark.parametrize('kw', [dict(embedding=.02), dict(rules={nn.Embedding: .02}),
                                dict(embedding=.02,
                                     rules={nn.Linear: dict(scheme='xavier_uniform')})])
def test_a_tied_head_follows_its_embedding(tie, first, kw):
    parts = dict(embed=nn.Embedding(50, 8), head=nn.Linear(8, 50, bias=False), free=nn.Linear(3, 3))
    m = nn.ModuleDict(dict(sorted(parts.items(), key=lambda p: p[0] != first)))
    tie(m)
    report = rows(m, **kw)
    w = m['embed'].weight.detach()
    assert abs(w.std() - .02) < 5*se_std(.02, w.numel()) and w.ne(0).all()
    set_, tied = sorted(('embed.weight', 'head.weight'), key=lambda k: report[k]['why'] is not None)
    assert report[set_]['std_asked'] == .02 and report[tied]['why'] == f'tied to {set_}'

def test_a_rule_for_a_tied_head_alone_is_refused():
    m = nn.ModuleDict(dict(embed=nn.Embedding(50, 8), head=nn.Linear(8, 50, bias=False)))
    shared_parameter(m)
    with pytest.raises(InputError, match="'head'.*sets nothing.*tied"):
        init_(m, rules={'head': .02})
    with pytest.raises(InputError, match="'head'.*sets nothing.*tied"):
        init_(m, embedding=.1, rules={'head': .02})
    before = m['embed'].weight.detach().clone()
    init_(m, embedding=.1, rules={'head': None}); assert torch.equal(before, m['embed'].weight)
    init_(m, embedding=.1, exclude='head'); assert torch.equal(before, m['embed'].weight)

class Model(nn.Module):
    "A small language model with a tied head."
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(200, 64), nn.LayerNorm(64)
        self.block = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, norm_first=True)
        self.head = nn.Linear(64, 200, bias=False)
        self.head.weight = self.embed.weight
    def forward(self, ids): return self.head(self.norm(self.block(self.embed(ids))))

def test_a_language_model_begins_at_ln_v():
    "Tied, with embeddings of std .02 the logits are near 0: the loss is that of a guess."
    model, ids, target = Model().eval(), torch.randint(200, (32, 8)), torch.randint(200, (32, 8))
    def loss(): return F.cross_entropy(model(ids).flatten(0, 1), target.flatten()).item()
    init_(model)
    high = loss()
    init_(model, embedding=.02)
    assert abs(loss() - math.log(200)) < .1 < high - math.log(200)

def test_biases_with_a_std():
    model = nn.Linear(3, 4000)
    r = rows(model, bias=.5, bias_std=.1)['bias']
    assert abs(model.bias.std() - .1) < 5*se_std(.1, 4000)
    assert abs(model.bias.mean() - .5) < 5*.1/4000**.5
    assert (r['std_asked'], r['scheme']) == (.1, 'normal')

def test_gate_biases_only_when_a_rule_says_so():
    lstm = nn.LSTM(4, 6)
    init_(lstm, bias=3.); assert lstm.bias_ih_l0.mean() == .25 and lstm.bias_hh_l0.eq(0).all()
    init_(lstm, rules={nn.LSTM: dict(bias=3.)}); assert lstm.bias_ih_l0.eq(3).all()

@pytest.mark.parametrize('shape', [(), (7,), (1, 7), (3, 4, 5)])
def test_parameters_that_nobody_knows(shape):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.odd = nn.Linear(2, 2), nn.Parameter(torch.ones(shape))
    for kw in ({}, dict(std=.1), dict(scheme='xavier_normal')):
        assert 'Odd' in rows(Odd(), **kw)['odd']['why']
    model = Odd()
    assert rows(model, rules={'odd': dict(mean=2.5)})['odd']['scheme'] == '2.5'
    assert model.odd.eq(2.5).all()
    init_(model, rules={'odd': .1}); assert model.odd.ne(2.5).all() and model.odd.abs().max() < .7
    r = rows(model, rules={'odd': dict(scheme='lecun_normal', fans=(16, 3))})['odd']
    assert r['fan'] == 16 and r['std_asked'] == .25

def test_a_registered_class_is_a_layer():
    class Stack(nn.Module):
        def __init__(self): super().__init__(); self.w = nn.Parameter(torch.zeros(8, 64, 32))
    kinds[Stack] = Kind('w', None, lambda m: Fans(*m.w.shape[1:]))
    try: assert rows(Stack())['w']['fan'] == 64
    finally: del kinds[Stack]

# ---- schemes -----------------------------------------------------------------------------------

ALIASES = [('he_normal', 'kaiming_trunc_normal'), ('trunc_normal', 'kaiming_trunc_normal'),
           ('he_uniform', 'kaiming_uniform'),
           ('he_trunc_normal', 'kaiming_trunc_normal'), ('glorot_normal', 'xavier_trunc_normal'),
           ('glorot_uniform', 'xavier_uniform'), ('lecun_trunc_normal', 'lecun_normal')]

@pytest.mark.parametrize('name, other', ALIASES)
def test_names_of_schemes(name, other):
    a, b = nn.Linear(60, 70), nn.Linear(60, 70)
    for m, scheme in ((a, name), (b, other)):
        torch.manual_seed(4); assert init_(m, scheme)[0]['scheme'] == scheme
    assert torch.equal(a.weight, b.weight)

@pytest.mark.parametrize('scheme, like', [('he_normal', (2., 'fan_in', 'truncated_normal')),
                                          ('glorot_normal', (1., 'fan_avg', 'truncated_normal')),
                                          ('lecun_normal', (1., 'fan_in', 'truncated_normal')),
                                          ('lecun_uniform', (1., 'fan_in', 'uniform'))])
def test_jax_names_are_jax_distributions(scheme, like):
    m, w = nn.Linear(60, 70), torch.empty(70, 60)
    torch.manual_seed(4); init_(m, scheme, gain=1. if 'glorot' in scheme else None)
    torch.manual_seed(4); variance_scaling_(w, *like)
    assert torch.allclose(m.weight, w, rtol=1e-5)

@pytest.mark.parametrize('make, blocks', [
    (lambda: nn.Linear(20, 30), 1), (lambda: nn.Linear(30, 20), 1),
    (lambda: nn.Conv2d(8, 16, 3, groups=4), 4),
    (lambda: nn.Conv1d(4, 40, 3), 1), (lambda: nn.Bilinear(3, 4, 5), 1)])
def test_orthogonal(make, blocks):
    model = make()
    r = rows(model, scheme='orthogonal', gain=1.5)['weight']
    for block in model.weight.detach().double().flatten(1).chunk(blocks):
        wide = block if len(block) <= block.shape[1] else block.T
        assert torch.allclose(wide @ wide.T, 2.25*torch.eye(len(wide), dtype=torch.float64),
                              atol=1e-5)
        rms = block.square().mean().sqrt().item()
    assert r['std_asked'] == pytest.approx(rms, rel=1e-5)
    assert r['scheme'] == 'orthogonal'
    assert r['fan'] is None

def test_orthogonal_attention_is_three_matrices():
    model = nn.MultiheadAttention(16, 2)
    init_(model, 'orthogonal', gain=1)
    for w in model.in_proj_weight.detach().chunk(3):
        assert torch.allclose(w @ w.T, torch.eye(16), atol=1e-5)

def test_orthogonal_in_half_precision():
    model = nn.Linear(16, 16).bfloat16()
    init_(model, 'orthogonal', nonlinearity='linear')
    assert model.weight.dtype == torch.bfloat16
    assert torch.allclose(model.weight.double() @ model.weight.double().T, torch.eye(16).double(),
                          atol=2e-2)

# ---- gains -------------------------------------------------------------------------------------

def test_a_numeric_gain():
    assert rows(nn.Linear(25, 4), gain=3.)['weight']['std_asked'] == pytest.approx(.6)
    report = rows(Net(), gain=1., rules={'head': dict(gain=2.), 'stem': dict(nonlinearity='relu')})
    assert report['head.weight']['std_asked'] == pytest.approx(2/30**.5)
    assert report['stem.weight']['std_asked'] == pytest.approx(2**.5/20**.5)
    assert report['blocks.0.fc.weight']['std_asked'] == pytest.approx(1/30**.5)

@pytest.mark.parametrize('make, kw, g', [
    (lambda: nn.LSTM(25, 6), {}, 1), (lambda: nn.GRU(25, 6), dict(nonlinearity='gelu'), 1),
    (lambda: nn.LSTMCell(25, 6), dict(nonlinearity='auto'), 1), (lambda: nn.RNN(25, 6), {}, TANH),
    (lambda: nn.RNN(25, 6, nonlinearity='relu'), dict(nonlinearity='tanh'), 2**.5),
    (lambda: nn.RNNCell(25, 6, nonlinearity='relu'), {}, 2**.5),
    (lambda: nn.LSTM(25, 6), dict(gain=3.), 3),
    (lambda: nn.LSTM(25, 6), dict(rules={nn.LSTM: dict(nonlinearity='relu')}), 2**.5),
    (lambda: nn.RNN(25, 6), dict(scheme='lecun_normal'), 1)])
def test_gates_have_their_own_gain(make, kw, g):
    report = rows(make(), **kw)
    weight = next(r for k, r in report.items() if k.startswith('weight_ih'))
    assert weight['std_asked'] == pytest.approx(g/5)

def notes(model):
    return {k: (r['std_asked']*r['fan']**.5, r['note']) for k,
            r in rows(model, nonlinearity='auto').items() if r['fan']}

def test_the_gain_of_what_comes_before():
    slope, L = nn.PReLU(init=.5), nn.Linear
    model = nn.Sequential(L(8, 8), nn.Tanh(), L(8, 8), nn.Dropout(),
                          nn.Sequential(L(8, 8), nn.LeakyReLU(.5)), L(8, 8),
                          nn.ReLU(), nn.LayerNorm(8), L(8, 8), slope, nn.Identity(), L(8, 8),
                          nn.Softmax(-1), L(8, 8),
                          nn.Hardtanh(), nn.ReLU(), L(8, 8))
    found = notes(model)
    expected = {'0': 1, '2': TANH, '4.0': 1, '5': (2/1.25)**.5, '8': 1, '11': (2/1.25)**.5,
                '13': 2**.5,
                '16': gain(lambda z: F.hardtanh(z).relu())}
    assert {k.removesuffix('.weight'): v[0] for k, v in found.items()} == pytest.approx(expected,
        rel=1e-6)
    assert found['0.weight'][1] == 'no activation before it'
    assert found['2.weight'][1] == 'after Tanh: slope 0.46, χ 1.18'
    assert 'not seen' in found['13.weight'][1]
    assert found['16.weight'][1].startswith('after Hardtanh, ReLU: ')
    assert found['5.weight'][1] == 'after LeakyReLU'             # a line: nothing to say

class Branch(nn.Module):
    "Its forward could do anything."
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
    def forward(self, x): return self.b(self.a(x).tanh())

class Backwards(nn.Sequential):
    def forward(self, x): return self[0](self[1](self[2](x)))

def test_what_cannot_be_seen_is_said():
    found = notes(nn.Sequential(nn.Linear(8, 8), Branch(), nn.Linear(8, 8)))
    assert [('not seen' in note) for _, note in found.values()] == [False, True, True, True]
    assert [g for g, _ in found.values()] == pytest.approx([1] + [2**.5]*3)
    backwards = Backwards(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    assert 'not seen' in notes(backwards)['2.weight'][1]
    shared = nn.Linear(8, 8)
    assert 'not seen' in notes(nn.Sequential(shared, nn.Tanh(), shared))['0.weight'][1]

@pytest.mark.filterwarnings('ignore:enable_nested_tensor')
@pytest.mark.parametrize('activation', ['relu', 'gelu', F.silu])
def test_transformers_are_seen(activation):
    found = notes(nn.Transformer(16, 2, 1, 1, 32, activation=activation, batch_first=True))
    for k, (g, note) in found.items():
        assert g == pytest.approx(gain(activation) if 'linear2' in k else 1), (k, note)

def test_looking_changes_nothing():
    "A module that counts its calls, or draws, does not notice that it was asked."
    class Counts(nn.Module):
        calls = 0
        def forward(self, x): self.calls += 1; return x + torch.rand(())
    model = nn.Sequential(nn.Linear(3, 3), Counts(), nn.Linear(3, 3))
    torch.manual_seed(1)
    init_(model, nonlinearity='auto', seed_by_name=True); state = torch.get_rng_state()
    torch.manual_seed(1)
    assert model[1].calls == 0 and torch.equal(state, torch.get_rng_state())

@pytest.mark.parametrize('acts', [(nn.Tanh, nn.ReLU), (nn.SELU, nn.ReLU),
                                  (nn.ReLU, nn.Tanh, nn.Sigmoid)])
def test_mixed_nets_keep_their_level(acts):
    "Pre-activations of mean square 1 in every layer, measured over nets."
    squares = []
    for _ in range(24):
        layers = [m for k in range(9) for m in (nn.Linear(256, 256), acts[k % len(acts)]())]
        model, x = nn.Sequential(*layers), torch.randn(8, 256)
        init_(model, nonlinearity='auto')
        for m in model:
            x = m(x).detach()
            if isinstance(m, nn.Linear): squares.append(x.square().mean().item())
    # Student's t
    for q in torch.tensor(squares).view(24, 9).T: assert abs(q.mean() - 1) < 6.5*q.std()/24**.5

# ---- start ------------------------------------------------------------------------------------

ACTS = dict(tanh=nn.Tanh, gelu=nn.GELU)

def plain(act, depth=50, width=256):
    return nn.Sequential(*[m for _ in range(depth) for m in (nn.Linear(width, width), act())])

@pytest.mark.parametrize('f', ACTS)
@pytest.mark.parametrize('scheme', ['kaiming_normal', 'kaiming_uniform', 'he_normal', 'orthogonal'])
def test_the_edge_draws_weights_and_biases(f, scheme):
    w_var, b_var = edge_variances(f)
    model = nn.Sequential(nn.Conv2d(20, 300, 3, groups=2), nn.Linear(400, 4000))
    report = rows(model, scheme=scheme, nonlinearity=f, start='edge')
    for k, fan in (('0', 90), ('1', 400)):
        r, b = report[f'{k}.weight'], report[f'{k}.bias']
        if scheme == 'orthogonal': fan = max(fan, len(model[int(k)].weight)//(2 if k == '0' else 1))
        assert r['std_asked']**2*fan == pytest.approx(w_var)
        assert b['std_asked']**2 == pytest.approx(b_var) and b['scheme'] == 'normal'
        assert r['note'] == b['note'] == f'edge: w_var {w_var:.4g}, b_var {b_var:.4g}'
        for row, p in ((r, model[int(k)].weight), (b, model[int(k)].bias)):
            std = row['std_asked']
            if scheme == 'orthogonal' and p.dim() > 1:
                assert abs(row['std_drawn']/std - 1) < 5/math.sqrt(2*p.numel())
                continue
            assert abs(row['std_drawn'] - std) < 5*se_std(std, p.numel())
            assert abs(p.mean()) < 5*std/p.numel()**.5

def test_for_a_line_of_edges_start_changes_nothing():
    for kw in (dict(), dict(nonlinearity='auto'), dict(nonlinearity=nn.LeakyReLU(.3))):
        twins = [plain(nn.ReLU, 3, 40) for _ in range(2)]
        reports = []
        for twin, start in zip(twins, ('gain', 'edge')):
            torch.manual_seed(4); reports.append(init_(twin, start=start, **kw))
        assert same(*map(values, twins))
        assert [r['std_asked'] for r in reports[0]] == [r['std_asked'] for r in reports[1]]

def fates(f, depth=50, nets=5, **kw):
    """Mean square of the last layer over the net's first and of the gradient, and the cosine of two
    unrelated inputs' last layers, typical of nets."""
    found = []
    for _ in range(nets):
        net, x = plain(ACTS.get(f, f), depth), torch.randn(2, 256, requires_grad=True)
        init_(net, nonlinearity='auto', **kw)
        y = net[:-1](x)
        g, = torch.autograd.grad(y, x, torch.randn_like(y))
        found.append((y.square().mean().log().item(), g.square().mean().log().item(),
                      F.cosine_similarity(*y.detach(), dim=0).item()))
    return torch.tensor(found).median(0).values.tolist()

def test_fifty_layers_at_the_edge_keep_signal_and_gradient():
    for f in ACTS:                                             # bounds set by hand: e² is 7.4
        length, gradient, cosine = fates(f, start='edge')
        q, (w_var, b_var) = 1., edge_variances(f)
        for _ in range(49): q = length_map(f, q, w_var, b_var)
        assert abs(length - math.log(q)) < 2 and abs(gradient) < 2 and cosine > .7, f
    assert fates('tanh', start='gain')[1] > math.log(1.1778**49) - 2         # χ of its gain: 1.178
    length, gradient, _ = fates(nn.Softplus)
    assert abs(length) < 1 and gradient < -50                  # χ .3185, and 49 ln χ = −56

def test_auto_at_the_edge():
    "First layers, norms, LSTMs and what has no edge keep their gain, and nothing stops the others."
    L, (w_var, b_var) = nn.Linear, edge_variances('tanh')
    model = nn.Sequential(L(8, 8), nn.Tanh(), L(8, 8), nn.Softplus(), L(8, 8), nn.Tanh(),
                          nn.LayerNorm(8), L(8, 8), nn.ReLU(), L(8, 8), Branch())
    report = rows(model, nonlinearity='auto', start='edge')
    stds = {k: (r['std_asked'] or 0) for k, r in report.items()}
    gains = {k: v*8**.5 for k, v in stds.items() if k.endswith('weight') and '6' not in k}
    assert list(gains.values()) == pytest.approx([1, w_var**.5, gain('softplus'), 1] + [2**.5]*3)
    assert {k: v for k, v in stds.items() if k.endswith('bias') and v} == {
        '2.bias': pytest.approx(b_var**.5)}
    assert report['4.weight']['note'] == 'after Softplus, no edge: slope 0.49, χ 0.32'
    assert report['2.bias']['note'].startswith('after Tanh: edge: w_var 1.808, b_var 0.0588')
    assert report['7.weight']['note'] == 'no activation before it'
    tanh = dict(nonlinearity='tanh', start='edge')
    for f in (tanh, dict(nonlinearity='auto', start='edge'), dict(rules={nn.LSTM: tanh})):
        lstm = rows(nn.LSTM(25, 6), **f)
        assert lstm['weight_ih_l0']['std_asked'] == .2
        assert lstm['bias_ih_l0']['scheme'] == '0, forget gate 1'

class RootMeanSquare(nn.Module):
    "A norm of one's own, with a scale for each feature."
    def __init__(self, n): super().__init__(); self.scale = nn.Parameter(torch.ones(n))
    def forward(self, x): return self.scale*x/x.square().mean(-1, keepdim=True).sqrt()

def test_a_norm_of_ones_own_is_no_activation():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), RootMeanSquare(8), nn.Linear(8, 8))
    note = rows(model, nonlinearity='auto')['3.weight']['note']
    assert note == "the activation before it is not seen: ReLU's gain"

def test_rules_and_the_edge():
    w_var, b_var = edge_variances('tanh')
    edge = dict(nonlinearity='tanh', start='edge')
    report = rows(Net(), **edge, rules={'head': .02, 'stem': dict(bias=2.), '*.fc': dict(gain=1.),
                                        'blocks.1': dict(start='gain')})
    std = {k: r['std_asked'] for k, r in report.items()}
    assert (std['head.weight'], std['head.bias']) == (.02, None)
    assert std['stem.weight'] == pytest.approx((w_var/20)**.5)
    assert (std['stem.bias'], report['stem.bias']['scheme']) == (None, '2')
    assert std['blocks.0.fc.weight'] == pytest.approx(30**-.5) and std['blocks.0.fc.bias'] is None
    assert std['blocks.0.proj.bias'] == pytest.approx(b_var**.5)
    assert std['blocks.1.proj.weight'] == pytest.approx(gain('tanh')/40**.5)
    assert std['blocks.1.proj.bias'] is None
    report = rows(Net(), std=.02, gain=2., rules={'blocks': edge})
    assert report['head.weight']['std_asked'] == .02
    assert report['blocks.0.fc.weight']['std_asked'] == pytest.approx((w_var/30)**.5)

@pytest.mark.parametrize('by_name', [False, True])
def test_the_edge_is_drawn_by_its_generator(by_name):
    nets, state = [plain(nn.Tanh, 2, 16) for _ in range(3)], torch.get_rng_state()
    for net, seed in zip(nets, (7, 7, 8)):
        init_(net, nonlinearity='auto', start='edge', seed_by_name=by_name,
              generator=torch.Generator().manual_seed(seed))
    assert torch.equal(state, torch.get_rng_state())
    a, b, c = map(values, nets)
    assert same(a, b) and not torch.equal(a['2.bias'], c['2.bias'])

class Residual(nn.Module):
    def __init__(self, *f): super().__init__(); self.f = nn.Sequential(*f)
    def forward(self, x): return x + self.f(x)

def at_edge(model, **kw):
    "The layers whose weights start at the edge."
    return [r['name'] for r in init_(model, **kw)
            if r['parameter'].endswith('weight') and 'edge: w_var' in (r['note'] or '')]

def test_deep_plain_chains_start_at_the_edge():
    "From 20 layers on, seen in nn.Sequential, nested or not, each chain by itself; others do not."
    def chain(n, *between):
        return [m for _ in range(n) for m in (nn.Linear(6, 6), *between)]
    S, auto = nn.Sequential, dict(nonlinearity='auto')
    assert len(at_edge(S(*chain(20, nn.Tanh())), **auto)) == 19        # but for the first layer
    assert len(at_edge(S(*chain(20, nn.Tanh())), nonlinearity='tanh')) == 20
    assert len(at_edge(S(S(*chain(12, nn.SiLU())), S(*chain(12, nn.Tanh()))), **auto)) == 23
    norm = nn.BatchNorm1d(6)
    for model in (S(*chain(19, nn.Tanh())), S(*chain(19, nn.Tanh()), norm, *chain(19, nn.Tanh())),
                  S(*chain(30, norm, nn.Tanh())), S(*[Residual(*chain(2, nn.Tanh()))]*30),
                  S(*chain(30)), S(*chain(30, nn.ReLU())[:-1])):
        before = copy.deepcopy(model)
        for kw in (auto, dict(nonlinearity='tanh')):
            torch.manual_seed(3); found = at_edge(model, **kw)
            torch.manual_seed(3); init_(before, start='gain', **kw)
            plain_relu = any(isinstance(m, nn.ReLU) for m in model)
            if not plain_relu or kw is auto: assert same(values(model), values(before))
            if not plain_relu: assert not found
    model = S(*chain(25, nn.Softplus()))                                # no edge: the gain, and why
    note = init_(model, **auto)[2]['note']
    assert note == 'after Softplus, no edge: slope 0.49, χ 0.32'
    assert init_(model, nonlinearity='softplus')[0]['note'].startswith('no edge: slope')
    for act in (nn.GELU(), F.gelu, nn.ReLU()):      # shaped for this depth: its gain is right
        shaped = shape_activation(act, 30, 'tat')
        assert not at_edge(S(*chain(30, shaped)), **auto)
        std = init_(S(*chain(30, shaped)), **auto)[2]['std_asked']
        assert std == pytest.approx(gain(shaped)/6**.5)
    assert at_edge(S(*chain(50, nn.SELU())), **auto)
    assert not at_edge(S(*chain(20, nn.SELU())), **auto)
    deep = S(*chain(25, nn.GELU()))
    own = {'4': dict(gain=2.), '6': .3, '8': dict(bias=1.)}
    report = rows(deep, nonlinearity='gelu', rules=own)
    assert [k for k, r in report.items() if 'edge' not in (r['note'] or '')] == [
        '4.weight', '4.bias', '6.weight', '6.bias', '8.weight', '8.bias']

@pytest.mark.parametrize('kw, words', [
    (dict(start='x'), "start is 'x', expected one of 'gain', 'edge'"), (dict(start=1), 'start'),
    (dict(gain=1.), "start='edge'.*gain=1.0"), (dict(std=.1), 'std=0.1'), (dict(bias=1.), 'bias'),
    (dict(bias_std=.1), 'bias_std'), (dict(scheme='lecun_normal'), "scheme='lecun_normal'"),
    (dict(nonlinearity='softplus'), 'softplus has no edge of chaos')])
def test_a_start_that_cannot_be_meant(kw, words):
    for call in (dict(start='edge') | kw, dict(rules={'*': dict(start='edge') | kw})):
        model = Net()
        was, state = values(model), torch.get_rng_state()
        with pytest.raises(InputError, match=words): init_(model, **call)
        assert same(values(model), was) and torch.equal(torch.get_rng_state(), state)

def test_notes_of_a_named_activation():
    def note(**kw): return rows(nn.Linear(4, 4), **kw)['weight']['note']
    assert note(nonlinearity='gelu') == 'slope 1.14, χ 1.07'
    assert note(nonlinearity='sigmoid') == 'slope 0.11, χ 0.15'
    assert note() is note(nonlinearity='gelu', gain=1.) is note(nonlinearity='gelu', std=.1) is None
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z): return z.tanh()
    assert note(nonlinearity=Own.apply) is None                # no derivative, and no matter

# ---- roles -------------------------------------------------------------------------------------

ROLES = [(nn.Linear(3, 4), 'weight bias'), (nn.Conv2d(4, 4, 3, groups=2), 'weight bias'),
         (nn.BatchNorm1d(3), 'scale shift'),
         (nn.RMSNorm(3), 'scale'), (nn.EmbeddingBag(4, 3), 'embedding'),
         (nn.GRUCell(3, 4), 'input recurrent|gate bias|gate bias'),
         (nn.PReLU(), 'unknown'), (nn.Bilinear(2, 3, 4), 'weight bias'),
         (nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True),
          'weight weight weight bias token token weight bias'),
         (nn.LSTM(3, 4, proj_size=2), 'input recurrent|gate bias|gate bias|weight')]

@pytest.mark.parametrize('module, roles', ROLES, ids=lambda x: type(x).__name__)
def test_roles(module, roles):
    records = parameters_of(nn.ModuleDict(dict(a=module)))
    expected = [r for part in roles.split('|')
                for r in ([part] if part.startswith('gate') else part.split())]
    assert [r.role for r in records] == expected
    assert [r.name for r in records] == [n for n,
                                         _ in nn.ModuleDict(dict(a=module)).named_parameters()]
    for r in records:
        assert r.layer in ('a', 'a.out_proj')
        assert (r.fans is None) == (r.role not in ('weight', 'input', 'recurrent', 'embedding'))

def test_why_a_parameter_is_not_to_be_set():
    model = nn.Sequential(nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 3, device='meta'),
                          nn.LazyLinear(3),
                          nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
                          old(nn.utils.weight_norm, nn.Linear(3, 3)))
    why = {r.name: r.why for r in parameters_of(model)}
    assert why['0.weight'] == 'frozen' and 'meta' in why['1.bias'] and 'no shape' in why['2.weight']
    assert 'parametrized' in why['3.parametrizations.weight.original0']
    assert why['3.bias'] is None
    assert 'parametrized' in why['4.weight_g']

# ---- norms and layers that only rescale, known by what they do --------------------------------

class ReZero(nn.Module):
    "A block whose branch is multiplied by a parameter of the block."
    def __init__(self, scale=0.):
        super().__init__()
        self.f, self.scale = nn.Linear(8, 8), nn.Parameter(torch.tensor(scale))
    def forward(self, x): return x + self.scale*self.f(x)

class Scale(nn.Module):
    "LayerScale; with a shift, the Affine of ResMLP; for images, ConvNeXt's."
    def __init__(self, value=1e-4, shape=(8,), shift=False):
        super().__init__()
        self.gamma = nn.Parameter(torch.full(shape, value))
        self.beta = nn.Parameter(torch.zeros(shape)) if shift else None
    def forward(self, x): return self.gamma*x if self.beta is None else self.gamma*x + self.beta

class RMSNorm(nn.Module):
    "Of T5 and Llama; with offset 1 Gemma's."
    def __init__(self, offset=0.):
        super().__init__()
        self.offset, self.weight = offset, nn.Parameter(torch.full((8,), 3.))
    def forward(self, x):
        x = x*(x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
        return x*(self.offset + self.weight)

class ChannelNorm(nn.Module):
    "LayerNorm over the channels of an image, as ConvNeXt writes it."
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))
    def forward(self, x):
        x = (x - x.mean(1, keepdim=True))/(x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
        return self.weight[:, None, None]*x + self.bias[:, None, None]

class Position(nn.Module):
    def __init__(self): super().__init__(); self.p = nn.Parameter(torch.zeros(8))
    def forward(self, x): return x + self.p

class Swish(nn.Module):
    def __init__(self): super().__init__(); self.b = nn.Parameter(torch.ones(8))
    def forward(self, x): return x*(self.b*x).sigmoid()

class Mixer(nn.Module):
    "Proportional to the parameter, and to the input, but not element by element."
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(8))
    def forward(self, x): return self.w*x.flip(-1)

class Skip(nn.Module):
    "A norm and a skip: it does not only normalize."
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.ones(8))
    def forward(self, x): return x + self.w*F.rms_norm(x, (8,))

class Fails(Scale):
    def forward(self, x): raise OSError

@pytest.mark.parametrize('module, roles', [
    (Scale(), {'gamma': ('rescale', 0.)}), (Scale(shape=(1,)), {'gamma': ('rescale', 0.)}),
    (Scale(shape=(8, 1, 1)), {'gamma': ('rescale', 0.)}),
    (Scale(1., ()), {'gamma': ('rescale', 0.)}),
    (Scale(shift=True), dict.fromkeys(['gamma', 'beta'], ('rescale', 0.))),
    (RMSNorm(), {'weight': ('scale', 0.)}), (RMSNorm(1.), {'weight': ('scale', 1.)}),
    (ChannelNorm(), {'weight': ('scale', 0.), 'bias': ('shift', 0.)}),
    (Position(), {}), (Swish(), {}), (Mixer(), {}), (Skip(), {}), (Fails(), {}), (ReZero(), {}),
    (nn.PReLU(), {}), (nn.PReLU(8), {}), (nn.Linear(8, 8), {}),
    (nn.ParameterList([torch.ones(3)]), {})])
def test_natures(module, roles):
    before, state = values(module), torch.get_rng_state()
    assert ours._nature(module) == roles
    assert same(before, values(module)) and torch.equal(state, torch.get_rng_state())

def test_norms_of_any_class_are_reset():
    llama, channels = RMSNorm(), ChannelNorm()
    init_(nn.ModuleList([llama, channels]))
    assert llama.weight.mean() == 3                        # left alone unless asked
    assert {r['why'] for r in init_(llama)} == {'norm'}
    init_(nn.ModuleList([llama, channels]), norms='reset')
    assert (llama.weight == 1).all() and (channels.bias == 0).all()
    gemma = RMSNorm(1.)                                    # the same class, and another offset
    init_(gemma, norms=.5)
    assert (gemma.weight == -.5).all()

def test_what_only_rescales_stays_unless_a_rule_says_so():
    net = nn.ModuleDict(dict(scale=Scale(), zero=ReZero()))
    found = rows(net, norms='reset')
    assert found['scale.gamma']['why'] == 'it only rescales what it is given'
    assert 'ReZero, which init_ does not know' in found['zero.scale']['why']
    assert (net['scale'].gamma == 1e-4).all()
    init_(net, rules={Scale: dict(mean=.1)})
    assert torch.allclose(net['scale'].gamma, torch.tensor(.1))

# ---- residual models: branches, embeddings, heads -----------------------------------------------

class Block(nn.Module):
    def __init__(self, *branch): super().__init__(); self.f = nn.Sequential(*branch)
    def forward(self, x):
        y = self.f(x)
        return x + (y[0] if isinstance(y, tuple) else y)

def linear(**kw): return Block(nn.LayerNorm(8), nn.Linear(8, 16, **kw), nn.Tanh(), nn.Linear(16, 8))
X = torch.randn(4, 5, 8)

@pytest.mark.parametrize('block, taken', [
    (linear(), '3.weight 3.bias'), (Block(nn.Linear(8, 8), nn.LayerNorm(8)), '1.weight 1.bias'),
    (Block(nn.Linear(8, 8), RMSNorm()), '1.weight'),
    (Block(nn.Linear(8, 8), RMSNorm(1.)), '1.weight'),
    (Block(nn.Linear(8, 8), Scale(1.)), '0.weight 0.bias'),
    (nn.TransformerEncoderLayer(8, 2, 16, 0., batch_first=True, norm_first=True),
     'self_attn.out_proj.weight self_attn.out_proj.bias linear2.weight linear2.bias')])
@pytest.mark.parametrize('residual', ['depth', 'zero', 0, .3, 2])
def test_what_a_branch_adds_is_multiplied(block, taken, residual):
    "The same numbers times the factor; nothing else has changed; at 0 the input is handed on."
    model, states = nn.Sequential(copy.deepcopy(block)), {}
    for r in (1., residual):
        torch.manual_seed(0)
        report = init_(model, bias_std=.1, norms='reset', seed_by_name=True, residual=r, batch=X)
        states[r] = [p.detach().clone() for p in model.parameters()]
    noted = [r['parameter'] for r in report if r['note']]
    assert [n.removeprefix('0.').removeprefix('f.') for n in noted] == taken.split()
    attention = isinstance(block, nn.TransformerEncoderLayer)
    factor = dict(depth=(1 + attention)**-.5, zero=0.).get(residual, residual)
    for (name, _), before, after in zip(model.named_parameters(), states[1.], states[residual]):
        offset = 0. if attention or name != '0.f.1.weight' else getattr(block.f[-1], 'offset', 0.)
        if name in noted: assert torch.allclose(after + offset, factor*(before + offset), atol=1e-7)
        else: assert torch.equal(after, before)
    if not factor: assert torch.equal(model(X), X)

def lstm(): return Block(nn.LSTM(8, 8, batch_first=True))
def normed():
    return Block(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
def frozen_last(): b = linear(); b.f[3].requires_grad_(False); return b

@pytest.mark.parametrize('block, kw, words', [
    (lstm(), {}, 'LSTM is not proportional'), (normed(), {}, 'parametrized'),
    (frozen_last(), {}, 'frozen'), (linear(), dict(exclude='0.f.3'), 'excluded'),
    (linear(), dict(rules={'0.f.3': .02}), 'the rule for 0.f.3 counts'),
    (linear(), dict(rules={'0': None}), 'the rule for 0'),
    (linear(), dict(rules={'0': dict(gain=1)}), 'rule for 0'),
    (Block(nn.Linear(8, 8), nn.LayerNorm(8, elementwise_affine=False)), {},
     'norm without a weight'),
    (Block(nn.Linear(8, 8), nn.LayerNorm(8)), dict(exclude=nn.LayerNorm), 'excluded'),
    (Block(nn.Linear(8, 8), nn.LayerNorm(8)), dict(rules={nn.LayerNorm: dict(norms=1.)}), 'rule'),
    (Block(nn.Linear(8, 8), Scale()), {}, 'is as small already: 0.0001'),
    (ReZero(), {}, 'is as small already: 0')])
def test_a_branch_that_is_not_weighed(block, kw, words):
    "The report says why, and the other branch is weighed."
    report = init_(nn.Sequential(copy.deepcopy(block), linear()), residual='depth', batch=X, **kw)
    mine = [r['note'] or '' for r in report if r['parameter'].startswith('0')]
    assert any('not weighed: ' in note and words in note for note in mine), mine
    assert not any('residual' in note for note in mine)
    other, = [r['note'] for r in report if r['parameter'] == '1.f.3.weight']
    assert '1/√2 behind 2' in other

def test_a_scale_of_the_block_is_known_by_the_run():
    found = rows(nn.Sequential(ReZero(), linear()), residual='zero', batch=X)
    assert found['0.scale']['why'] == 'it only rescales what it is given'
    found = rows(nn.Sequential(ReZero(1.)), residual='zero', batch=X)       # not small: weighed
    assert found['0.f.weight']['scheme'] == '0'

def test_a_writer_of_many_branches_is_weighed_once():
    block = linear()
    found = rows(nn.Sequential(*[block]*9), std=.3, residual='depth', batch=X)
    assert math.isclose(found['0.f.3.weight']['std_asked'], .1)

def test_a_writer_that_is_shared_stays():
    model = nn.Sequential(nn.Linear(8, 8), Block(nn.Tanh(), nn.Linear(8, 8)), linear())
    model[1].f[1].weight = model[0].weight
    found = rows(model, residual='zero', batch=X)
    assert 'shared with' in found['0.weight']['note'] and found['0.weight']['std_drawn'] > 0

@pytest.mark.parametrize('wrap', [torch.compile, nn.DataParallel,
                                  lambda m: nn.DataParallel(torch.compile(m))])
def test_the_module_inside_wrappers_is_run(wrap):
    torch.manual_seed(0); plain = linear(); init_(plain, residual='depth', batch=X)
    torch.manual_seed(0); inner = linear(); init_(wrap(inner), residual='depth', batch=X)
    assert same(values(plain), values(inner))

SHARDED = """
import os, torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from initnotes.init import init_
dist.init_process_group('gloo')
mesh, rank = init_device_mesh('cpu', (2,)), dist.get_rank()
class RMS(nn.Module):
    def __init__(self): super().__init__(); self.weight = nn.Parameter(torch.full((8,), 3.))
    def forward(self, x): return x*(x.square().mean(-1, keepdim=True) + 1e-6).rsqrt()*self.weight
class Block(nn.Module):
    def __init__(self, *f): super().__init__(); self.f = nn.Sequential(*f)
    def forward(self, x): return x + self.f(x)
class Uncalled(nn.Module):
    def __init__(self): super().__init__(); self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
    def forward(self, x): return nn.functional.linear(self.a(x).tanh(), self.b.weight, self.b.bias)
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), Block(RMS(), nn.Linear(8, 8)), Block(Uncalled()),
                         Block(nn.Linear(8, 8), RMS()), nn.Linear(8, 2))
x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
whole, parts, found = net(), net(), []
for layer in parts[1:4]: fully_shard(layer, mesh=mesh)
fully_shard(parts, mesh=mesh)
for model, data in ((whole, x), (parts, x.chunk(2)[rank])):
    torch.manual_seed(2)
    found.append(init_(model, residual='depth', batch=data, norms='reset'))
assert list(found[0]) == list(found[1])
weighed = [r['parameter'] for r in found[0] if '1/√3' in (r['note'] or '')]
assert weighed == ['1.f.1.weight', '2.f.0.b.weight', '3.f.1.weight'], weighed
for p, q in zip(whole.parameters(), parts.parameters()): assert torch.equal(p, q.full_tensor())
assert torch.equal(whole(x).chunk(2)[rank], parts(x.chunk(2)[rank]))   # what was written is used
dist.barrier()
dist.destroy_process_group()
os._exit(0)
"""

@pytest.mark.slow
def test_branches_of_a_sharded_model(tmp_path):
    "On two processes, each with half of the batch: the numbers of one process with all of it."
    (tmp_path/'worker.py').write_text(SHARDED)
    root = str(Path(__file__).parents[1])
    env = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=root)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone',
                           '--nproc-per-node=2', tmp_path/'worker.py'],
                          capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr

@pytest.mark.parametrize('kw, words', [
    (dict(residual='depth'), 'batch is NoneType'), (dict(batch=X), 'residual='),
    (dict(residual='deep', batch=X), "'depth'"), (dict(residual=True, batch=X), 'True'),
    (dict(residual=-.1, batch=X), 'from 0 up'), (dict(residual=math.nan, batch=X), 'finite'),
    (dict(residual='depth', batch=[X]), 'batch is list'),
    (dict(residual=torch.ones(2), batch=X), 'residual is'),
    (dict(embedding=.1, embedding_std=.1), 'both set'), (dict(embedding_std=-1), 'from 0 up'),
    (dict(embedding_std=True), 'finite'), (dict(residual='depth', batch=()), 'no tensor'),
    (dict(residual='zero', batch=X, rules={'*': .02}), 'can weigh none of 1 branches')])
def test_branch_options_that_cannot_be_meant(kw, words):
    model = linear()
    before, state = values(model), torch.get_rng_state()
    with pytest.raises(InputError, match=words): init_(model, **kw)
    assert same(before, values(model)) and torch.equal(state, torch.get_rng_state())

@pytest.mark.parametrize('model', [
    nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))])
def test_a_model_without_branches_is_refused(model):
    before = values(model)
    with pytest.raises(InputError, match='has none with this batch'):
        init_(model, residual='depth', batch=X)
    assert same(before, values(model))

@pytest.mark.parametrize('positions', [12, 256, 64])
def test_an_untied_head_is_drawn_as_an_embedding(positions):
    "Also where a block's layers have the shape of the position embedding."
    model = nn.ModuleDict(dict(words=nn.Embedding(99, 64), places=nn.Embedding(positions, 64)))
    for k in range(2): model[f'b{k}'] = nn.TransformerEncoderLayer(64, 4, 256)
    model['head'] = nn.Linear(64, 99, bias=False)
    found = rows(model, std=.5, embedding_std=.02)
    small = [n for n, r in found.items() if r['std_asked'] == .02]
    assert small == ['words.weight', 'places.weight', 'head.weight']
    assert rows(model, std=.5, embedding=.02)['head.weight']['std_asked'] == .5
    assert rows(model, rules={'head': .3}, embedding_std=.02)['head.weight']['std_asked'] == .3
    assert rows(model, exclude='head', embedding_std=.02)['head.weight']['why'] == 'excluded'

@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('kw', [dict(std=.02), dict(nonlinearity='gelu')])
def test_gpt2_begins_at_ln_v(tied, kw):
    "The first loss is ln V + s²/2: s² is the variance of the logits, the targets are random."
    transformers = pytest.importorskip('transformers')
    config = transformers.GPT2Config(vocab_size=1000, n_embd=192, n_layer=12, n_head=6,
                                     n_positions=64, bos_token_id=0, eos_token_id=0,
                                     tie_word_embeddings=tied)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(config).eval()
    def start(seed):
        ids, target = torch.randint(1000, (2, 8, 64), generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(): logits = model(ids).logits
        loss = F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction='none')
        return loss.mean() - math.log(1000), loss.std()/512**.5, logits.var(-1).mean()/2
    for seed in range(3):
        torch.manual_seed(seed)
        ids = torch.zeros(1, 4, dtype=torch.long)
        report = init_(model, residual='depth', embedding_std=.02, batch=dict(input_ids=ids), **kw)
        excess, se, half = start(seed)
        assert abs(excess - half) < 5*se and half < .2
    note = 'residual: 1/√24 behind 24 branches'
    noted = [r['parameter'] for r in report if note in (r['note'] or '')]
    assert noted == [f'transformer.h.{k}.{part}.c_proj.weight'
                     for k in range(12) for part in ('attn', 'mlp')]
    if not tied and 'std' in kw: return                    # the head has this std anyway
    init_(model, **kw, embedding=1.)                       # as PyTorch makes it
    assert start(0)[0] > (10 if tied else .5)
