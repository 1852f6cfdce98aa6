"init_: every kind of model, rules, ties, and all or nothing."
import copy, fnmatch, itertools, math, re, warnings

import pytest, torch
from hypothesis import given, settings, strategies as st
from torch import nn

import initnotes.init as ours
from initnotes.core import InputError, se_std
from initnotes.init import init_
from initnotes.kaiming import gain

HALVES = torch.float16, torch.bfloat16
CUT = .87962566103423978                              # std of a normal cut at ±2, and its kurtosis
KURTOSIS = (3 - 28*math.exp(-2)/math.sqrt(2*math.pi)/math.erf(math.sqrt(2)))/CUT**4
thorough = settings(max_examples=40, deadline=None)

@pytest.fixture(autouse=True)
def seeded():
    "The same numbers every time; on one thread: on small tensors more only wait for one another."
    threads = torch.get_num_threads()
    torch.manual_seed(20); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

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
