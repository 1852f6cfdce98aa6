"Statistics that are torch's, dead units that are the planted ones, and every way of being misled."
import copy, io, itertools, math, pickle, subprocess, sys, warnings

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from conftest import hooks_on, images, small
from initnotes.core import InputError
from initnotes.hooks import Hook, Hooks
from initnotes.layers import find_modules
from initnotes.watch import ActivationStats, _over
from initnotes.training import Callback, CancelFit, DivergedError, Learner, TensorLoader

quick = settings(max_examples=60, deadline=None)

SEED = 30

def watch(model, *batches, loss=lambda out: out.square().mean(), **kwargs):
    "Statistics of some batches, without an optimizer."
    with ActivationStats(model, **kwargs) as s:
        for b in batches: loss(model(b)).backward(); s.step()
    return s
def close(a, b, rtol=1e-6):
    return math.isclose(float(a), float(b), rel_tol=rtol, abs_tol=1e-12)

# ---- sums ------------------------------------------------------------------------------------

def truth(xs):
    x = torch.cat([x.detach().double().flatten() for x in xs])
    std, mean = torch.std_mean(x)
    return mean, std, x.square().mean().sqrt()

@quick
@given(st.lists(st.integers(1, 9), min_size=1, max_size=25), st.sampled_from([2, 4, 6]),
       st.floats(-3, 3), st.integers(0, 10**6))
def test_sums_are_torchs_however_often_rows_merge(sizes, rows, shift, seed):
    torch.manual_seed(seed)
    m, kept, grads = nn.Linear(4, 3), [], []
    with torch.no_grad(): m.bias.add_(shift)
    with (ActivationStats(m, rows=rows) as s, Hook(m, lambda h, mod, i, o: kept.append(o)),
          Hook(m, lambda h, mod, g: grads.append(g), backward=True)):
        for n in sizes: m(torch.randn(n, 4)).pow(3).sum().backward(); s.step()
    r = s.table()[0]
    for found, true in zip((r['mean'], r['std'], r['rms']), truth(kept)):
        assert math.isclose(found, true, rel_tol=2e-6, abs_tol=1e-6)
    assert close(r['grad_rms'], truth(grads)[2], 2e-6)
    h = s.history()
    assert len(h['step']) == -(-len(sizes)//s.every) <= rows
    assert s.every <= max(1, 2*len(sizes)/rows) and r['passes'] == len(sizes)

def test_each_window_is_its_own_steps():
    m, kept = nn.Linear(4, 3), []
    with ActivationStats(m, rows=4) as s:
        for _ in range(13):
            y = m(torch.randn(6, 4))
            kept.append(y)
            y.sum().backward()
            s.step()
    h = s.history()
    assert s.every == 4 and h['step'].tolist() == [0, 4, 8, 12]
    for i in range(4):
        for k, v in zip(('mean', 'std', 'rms'), truth(kept[4*i:4*i + 4])):
            assert close(h[k][i, 0], v, 1e-5)

@pytest.mark.parametrize('mean', [0., 1., 30., 1e3, 1e5, -1e5])
def test_huge_means(mean):
    m, kept = nn.Identity(), []
    with ActivationStats(m, exact=True) as s:
        for _ in range(6):
            y = (torch.randn(500, 200) + mean).requires_grad_()
            kept.append(y)
            m(y).sum().backward()
            s.step()
    r = s.table()[0]
    assert close(r['std'], truth(kept)[1], 1e-5)
    assert math.isclose(r['mean'], truth(kept)[0], rel_tol=1e-6, abs_tol=1e-5)

def test_a_mean_that_jumps_is_measured():
    m = nn.Identity()
    with ActivationStats(m, exact=True) as s:
        xs = [torch.randn(400, 300) + (0 if i < 3 else 1e4) for i in range(6)]
        for x in xs: m(x.requires_grad_()).sum().backward(); s.step()
    std = s.history()['std'][:, 0]
    for i in range(6): assert close(std[i], xs[i].detach().double().std(), 1e-5)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_dtypes_and_layouts(dtype, layout):
    m = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 1),
                      nn.GELU()).to(dtype).to(memory_format=layout)
    with torch.no_grad(): m[0].bias[2] = -100
    x, kept = torch.randn(6, 3, 7, 7, dtype=dtype).to(memory_format=layout), []
    with ActivationStats(m) as s, Hook(m[2], lambda h, mod, i, o: kept.append(o)):
        for _ in range(2): m(x).float().sum().backward(); s.step()
    for found, true in zip((s.table()[2]['mean'], s.table()[2]['std']), truth(kept)):
        assert math.isclose(found, true, rel_tol=2e-6, abs_tol=1e-6)
    assert s.units()['1']['dead'] == [2] and s.units()['3']['dead'] == []
    assert s.histogram('2')[0].sum() == kept[0].numel()

# ---- dead units ------------------------------------------------------------------------------

class General(nn.Module):
    "Leaky ReLU, shifted and cut off, as a module."
    def __init__(self, leak=0., sub=.4, most=6.):
        super().__init__()
        self.leak, self.sub, self.most = leak, sub, most
    def forward(self, x):
        return (F.leaky_relu(x, self.leak) - self.sub).clamp_max(self.most)

class Bump(nn.Module):
    "Flat at 0 on both sides, and not monotone."
    def forward(self, x): return (1 - x*x).clamp_min(0)

FLAT_LEFT = [nn.ReLU(), nn.ReLU(inplace=True), nn.GELU(), General(), General(most=99.), nn.ReLU6(),
             nn.Hardtanh(), nn.Hardswish(), nn.Sigmoid(), nn.Tanh(), nn.Threshold(.1, 20), nn.ELU(),
             nn.SiLU(), nn.Softplus(), Bump()]
NEVER_FLAT_LEFT = [nn.LeakyReLU(.1), nn.LeakyReLU(.1, inplace=True), nn.PReLU(), nn.PReLU(6),
                   General(.1), nn.RReLU(), nn.Softsign(), nn.Tanhshrink(), nn.LogSigmoid()]

def brute(act, x, d):
    "Units with no slope anywhere, by differentiating everywhere."
    act = copy.deepcopy(act).eval()
    z = x.detach().clone().requires_grad_()
    g, = torch.autograd.grad(act(z.clone()).sum(), z)
    return (g == 0).movedim(d, 0).flatten(1).all(1)

@pytest.mark.parametrize('act', FLAT_LEFT + NEVER_FLAT_LEFT, ids=lambda a: str(a))
@pytest.mark.parametrize('kind', ['linear', 'conv', 'sequence'])
def test_planted_dead_units_are_found_exactly(act, kind):
    act = copy.deepcopy(act)
    layer, x = dict(linear=(nn.Linear(5, 6), torch.randn(200, 5)),
                    conv=(nn.Conv2d(2, 6, 3), torch.randn(8, 2, 9, 9)),
                    sequence=(nn.Linear(5, 6), torch.randn(20, 10, 5)))[kind]
    if kind == 'sequence' and isinstance(act, nn.PReLU) and act.num_parameters > 1:
        pytest.skip('PReLU wants channels in dimension 1')
    with torch.no_grad(): layer.bias[[1, 4]] = -500.
    s = watch(nn.Sequential(layer, act), x, x + .1)
    found = s.units()['1']
    d = 1 if kind != 'sequence' else 2
    assert found['dead'] == (brute(act, layer(x), d)
                             & brute(act, layer(x + .1), d)).nonzero()[:, 0].tolist()
    assert found['dead'] == ([1, 4] if any(type(act) is type(a) and str(a) == str(act)
                                           and getattr(a, 'leak', 0) == getattr(act, 'leak', 0)
                                           for a in FLAT_LEFT) else [])
    if not found['dead']: assert {1, 4} <= set(found['always_negative'])
    else: assert not {1, 4} & set(found['always_negative'])

@quick
@given(st.sampled_from([nn.ReLU(), nn.Hardtanh(), nn.ReLU6(), nn.Hardshrink(), nn.Softshrink(),
                        nn.Tanh(), General(), General(.1), Bump()]), st.integers(0, 10**6),
       st.floats(.01, 1000))
def test_against_differentiating_everywhere(act, seed, scale):
    "Units whose inputs jump between flat stretches, too."
    torch.manual_seed(seed)
    x = torch.randn(5, 40)*scale + torch.randn(40)*scale
    m = nn.Sequential(nn.Identity(), act)
    s = watch(m, x.requires_grad_())
    assert s.units()['1']['dead'] == brute(act, x, 1).nonzero()[:, 0].tolist()

def test_one_live_position_in_one_batch_is_enough():
    act, x = nn.ReLU(), -torch.rand(16, 3, 5, 5)
    y = x.clone(); y[13, 1, 4, 2] = 1e-30
    assert watch(act, x.clone().requires_grad_(),
                 x.clone().requires_grad_()).units()['(model)']['dead'] == [0, 1, 2]
    s = watch(act, x.clone().requires_grad_(), y.requires_grad_(), x.clone().requires_grad_(),
              rows=2)
    assert s.units()['(model)']['dead'] == [0, 2]
    # a window may hold more than one step
    assert s.units(last=1)['(model)']['dead'] in ([0, 1, 2], [0, 2])

def test_last_looks_at_the_last_steps():
    act = nn.ReLU()
    s = watch(act, torch.ones(2, 3, requires_grad=True), -torch.ones(2, 3, requires_grad=True))
    assert s.units()['(model)']['dead'] == [] and s.units(last=1)['(model)']['dead'] == [0, 1, 2]
    assert s.history()['dead'][:, 0].tolist() == [0, 1] and s.table(last=1)[0]['mean'] == 0

@pytest.mark.parametrize('module', [nn.Dropout(), nn.Dropout(1.), nn.Identity(), nn.BatchNorm1d(6),
                                    nn.LayerNorm(6), nn.Softmax(-1), nn.LogSoftmax(-1),
                                    nn.Linear(6, 6), nn.Flatten(), nn.GLU(), nn.GroupNorm(2, 6),
                                    nn.RMSNorm(6)], ids=str)
def test_no_activation(module):
    assert watch(nn.Sequential(nn.Linear(6, 6), module), torch.randn(9, 6)).units() == {}

@pytest.mark.slow
def test_probing_and_watching_leave_random_numbers_and_modules_alone():
    class Counting(nn.Module):
        def __init__(self): super().__init__(); self.calls = 0
        def forward(self, x): self.calls += 1; return x.relu()
    def train(watched):
        torch.manual_seed(1)
        m = nn.Sequential(nn.Linear(6, 6), nn.RReLU(), nn.Dropout(), nn.BatchNorm1d(6), Counting(),
                          nn.Linear(6, 1))
        opt, s = torch.optim.SGD(m.parameters(), lr=.1), ActivationStats(m)
        if watched: s.attach()
        for _ in range(7):
            m(torch.randn(9, 6)).square().mean().backward()
            opt.step()
            opt.zero_grad()
            if watched: s.step()
        s.remove()
        assert all(x.training for x in m.modules())
        return m
    a, b = train(False), train(True)
    assert all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values()))

def test_units_of_a_conv1d_and_of_channels_last_linears():
    m = nn.Sequential(nn.Conv1d(2, 3, 3), nn.ReLU())
    assert watch(m, torch.randn(4, 2, 9)).units()['1']['units'] == 3
    class Next(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc, self.act = nn.Conv2d(2, 3, 3), nn.Linear(3, 7), nn.GELU()
        def forward(self, x):
            return self.act(self.fc(self.conv(x).permute(0, 2, 3, 1)))
    assert watch(Next(), torch.randn(4, 2, 9, 9)).units()['act']['units'] == 7

def test_saturated_share():
    s = watch(nn.Tanh(), torch.tensor([[0., 1., 3., -4.]], requires_grad=True))
    assert s.history()['saturated'][0, 0] == .5 and s.table()[0]['saturated'] == .5

@pytest.mark.parametrize('d', [0, 1, 2, 3])
def test_over_any_memory_layout(d):
    for p in itertools.permutations(range(4)):
        x = torch.randn(3, 4, 5, 6).permute(p)
        assert torch.equal(_over(torch.amax, x, d), x.movedim(d, 0).flatten(1).amax(1))

# ---- in time ---------------------------------------------------------------------------------

@pytest.mark.slow
def test_memory_does_not_grow_with_the_run():
    m = small()
    def held(s):
        return sum(t.numel() for t in [s._windows.sums, s._windows.moves, s._windows.hist,
                                       s._sheet.values]
                   + [t for w in s.watched for u in w.units for t in (u.ends, u.alive, u.small)])
    with ActivationStats(m, rows=8) as s:
        sizes = []
        for i in range(100):
            m(images(2)).sum().backward()
            s.step()
            sizes.append(held(s))
    assert len(set(sizes)) == 1 and len(s._pending) <= 64 and len(s._took) <= 65
    with ActivationStats(m, where=nn.Flatten) as s:                # nobody calls step
        for i in range(6000):
            m[2](torch.ones(2, 2, requires_grad=True)).sum().backward()
        assert len(s._pending) <= 10_000
    assert s.table()[0]['passes'] == 6000 and s.table()[0]['mean'] == 1

def test_histogram_counts_and_grows():
    m = nn.Identity()
    with ActivationStats(m, rows=4, sample=1, bins=16) as s:
        for scale in (1, 1, 1e-3, 40., 40, 1e6):
            m((scale*torch.randn(50, 3).clamp(-2, 2)).requires_grad_()).sum().backward()
            s.step()
    counts, edges = s.histogram('(model)')
    assert len(edges) == 17 and edges[-1] == 128 and s.every == 2
    assert counts.sum(1).tolist() == [300, 300, 150]
    assert counts[:2, 7:9].sum(1).min() > 148  # once a window, from the fifth step on
    x = torch.linspace(-4, 4, 1001)[:, None]
    counts, edges = watch(m, x.requires_grad_(), bins=8).histogram('(model)')
    assert torch.equal(counts[0], torch.histc(x.detach(), 8, -4, 4).double())
    assert torch.equal(edges, torch.linspace(-4, 4, 9))

def test_histogram_after_doubling_equals_one_made_at_once():
    torch.manual_seed(2)
    xs = [torch.randn(300, 2)*k for k in (.1, 1., 10., 3.)]
    m = nn.Identity()
    with ActivationStats(m, sample=1, bins=32) as s:
        for x in xs: m(x.clone().requires_grad_()).sum().backward(); s.step()
    counts, edges = s.histogram('(model)')
    R = edges[-1].item()
    for row, x in zip(counts, xs):
        assert torch.equal(row, torch.bincount(((x.flatten()/(2*R) + .5)*32).long().clamp(0, 31),
                                               minlength=32).double())

def test_update_ratio_is_exact_for_any_optimiser():
    for make in (lambda p: torch.optim.SGD(p, lr=.1, momentum=.9),
                 lambda p: torch.optim.AdamW(p, lr=1e-2)):
        m = small(); opt = make(m.parameters()); expected = []
        with ActivationStats(m) as s:
            for _ in range(5):
                before = [p.detach().clone() for p in m.parameters()]
                m(images()).square().mean().backward()
                opt.step()
                s.step()
                opt.zero_grad()
                expected.append([((p - b).norm()/b.norm()).item()
                                 for p, b in zip(m.parameters(), before)])
        assert torch.allclose(s.history()['update_ratio'], torch.tensor(expected).double(),
                              rtol=1e-4)
    assert s.parameters == [n for n, _ in m.named_parameters()]

def test_frozen_parameters_and_zero_weights():
    m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    m[0].requires_grad_(False); nn.init.zeros_(m[1].bias)
    s = watch(m, torch.randn(4, 3))
    assert s.parameters == ['1.weight', '1.bias']
    assert s.history()['update_ratio'][0, 0] == 0
    assert s.history()['update_ratio'][0, 1].isnan()

# ---- trouble ---------------------------------------------------------------------------------

def test_in_place_activations():
    torch.manual_seed(3); a = small(); b = copy.deepcopy(a)
    for i in (1, 4): b[i] = nn.ReLU(inplace=True)
    x = images()
    s, t = watch(a, x, x), watch(b, x, x)
    for k in s.history():
        assert torch.allclose(s.history()[k].double(), t.history()[k].double(), rtol=1e-5,
                              equal_nan=True), k
    for n in s.names: assert torch.equal(s.histogram(n)[0], t.histogram(n)[0])
    assert s.units() == t.units()

def test_called_several_times_in_a_pass():
    m, kept = nn.Linear(4, 4), []
    with ActivationStats(m) as s, Hook(m, lambda h, mod, i, o: kept.append(o)):
        m(m(m(torch.randn(5, 4)))).sum().backward()
        s.step()
    assert s.table()[0]['passes'] == 3
    assert close(s.table()[0]['std'], truth(kept)[1])
    assert s._windows.sums[0, 0, :, 0].tolist() == [60, 60]

def test_gradient_accumulation_is_one_step():
    m, x = small(), images()
    with ActivationStats(m) as s:
        for part in x.split(2): m(part).sum().backward()
        s.step()
    t = watch(m, x, loss=torch.sum)
    assert s.steps == 1
    for k in ('mean', 'std', 'rms', 'grad_rms', 'dead'):
        assert torch.allclose(s.history()[k], t.history()[k], rtol=1e-4, atol=1e-7,
                              equal_nan=True), k

def test_lstm_tuple_dict_and_nothing():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.wrap, self.none = nn.LSTM(3, 4, batch_first=True), Wrap(), Nothing()
        def forward(self, x):
            self.none(x)
            return self.wrap(self.lstm(x))['out']
    class Wrap(nn.Module):
        def forward(self, o):
            return dict(n=torch.ones(2, dtype=torch.int64), rest=[None, o[1]], out=o[0])
    class Nothing(nn.Module):
        def forward(self, x): return 'text', 7
    m, x = Odd(), torch.randn(2, 5, 3)
    s = watch(m, x)
    rows = {r['module']: r for r in s.table()}
    out, (h, c) = m.lstm(x)
    assert close(rows['lstm']['std'], out.detach().double().std(), 1e-5)
    assert close(rows['wrap']['std'], h.detach().double().std(), 1e-5)
    assert 'returns tuple without' in rows['none']['note'] and math.isnan(rows['none']['mean'])

def test_validation_and_no_grad_are_not_counted():
    m = small()
    with ActivationStats(m) as s:
        m(images()).sum().backward(); s.step()
        before = s.table()
        m.eval(); m(1e3*images()); m.train()
        with torch.no_grad(): m(1e3*images())
        with torch.inference_mode(): m(1e3*images())
        assert str(s.table()) == str(before)
    with ActivationStats(m.eval()) as s:
        m(images())
        with pytest.raises(InputError, match='no pass that counts'): s.history()
    m.train()
    # a frozen part counts, if the model trains
    m[0].eval()
    assert watch(m, images()).table()[0]['passes'] == 1

def test_never_called_is_said():
    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3)
        def forward(self, x):
            with torch.no_grad(): self.c(x)
            return self.a(x)
    notes = {r['module']: r['note'] for r in watch(Uses(), torch.randn(2, 3)).table()}
    assert notes == dict(a='', b='never called', c='called only in eval mode or without gradients')

def test_transformer_in_training_and_in_the_fused_path():
    block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0., batch_first=True)
    m = nn.Sequential(nn.Linear(3, 16), nn.TransformerEncoder(block, 2, enable_nested_tensor=False),
                      nn.Linear(16, 1))
    x = torch.randn(4, 7, 3)
    s = watch(m, x, x)
    notes = {r['module']: r['note'] for r in s.table()}
    # attention uses its out_proj without calling it
    assert not any(notes.values())
    assert {'1.layers.0.self_attn', '1.layers.1.self_attn'} <= set(notes)
    assert all(math.isfinite(r['grad_rms']) for r in s.table() if not r['note'])
    with torch.no_grad():
        plain = m.eval()(x)
        with ActivationStats(m): assert torch.allclose(m(x), plain, atol=1e-5)
        assert torch.equal(m(x), plain)

def test_copies_and_pickles_are_not_watched():
    m, x = small(), images()
    with (ActivationStats(m) as s, Hooks(find_modules(m), lambda *a: None) as hs,
          Hook(m[0], lambda *a: None, backward=True)):
        m(x).sum().backward(); s.step()
        before = s.table()
        f = io.BytesIO(); torch.save(m, f); f.seek(0)
        for twin in (copy.deepcopy(m), pickle.loads(pickle.dumps(m)),
                     torch.load(f, weights_only=False)):
            assert torch.equal(twin(x), m(x))
            twin(x).sum().backward()
        assert [h.calls for h in hs] == [4]*len(hs)
    assert s.table()[0]['passes'] == 4 and before[0]['passes'] == 1

@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_not_finite_is_reported_where_and_when(bad):
    m = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    with ActivationStats(m, sample=1) as s:
        for i in range(4):
            if i == 2:
                with torch.no_grad(): m[2].bias[0] = bad
            m(torch.randn(5, 3)).sum().backward(); s.step()
    notes = [r['note'] for r in s.table()]
    assert notes == ['', '', 'not finite from step 2 on']
    assert not math.isfinite(s.table()[2]['mean'])
    # the rest is still counted
    assert s.histogram('2')[0].sum(1).tolist() == [15, 15, 10, 10]
    for plot in (s.plot_stats, s.plot_grads, s.plot_histograms): plot()

def test_gradient_that_is_not_finite():
    m = nn.Sequential(nn.Linear(3, 3), nn.Identity())
    s = watch(m, torch.randn(4, 3), loss=lambda out: (out*math.inf).sum())
    assert s.table()[0]['note'] == 'gradient not finite from step 0 on'

def test_number_of_units_that_changes_is_said():
    s = watch(nn.ReLU(), torch.randn(2, 3, requires_grad=True),
              torch.randn(2, 4, requires_grad=True))
    assert s.table()[0]['note'] == 'had 3 units, then 4: not counted'
    assert s.table()[0]['passes'] == 2

def test_empty_and_integer_batches():
    m = nn.Sequential(nn.Embedding(5, 4), nn.ReLU(), nn.Linear(4, 2))
    s = watch(m, torch.tensor([[1, 2, 0]]), torch.zeros(0, 3, dtype=torch.int64),
              torch.tensor([[1, 2, 0]]), loss=torch.sum)
    assert s.steps == 3 and s.table()[0]['mean'] == s.table()[0]['mean']
    assert s.units()['1']['units'] == 4

def test_one_number_and_unbatched():
    s = watch(nn.Sequential(nn.Linear(3, 1), nn.ReLU(), nn.Flatten(0)), torch.randn(3))
    assert math.isnan(s.table()[0]['std']) and s.units()['1']['units'] == 1      # a std needs two

def test_create_graph_and_retain_graph():
    m, x = small(nn.Tanh), images()
    with ActivationStats(m) as s:
        loss = m(x).square().sum()
        g = torch.autograd.grad(loss, m[0].weight, create_graph=True)[0]
        g.square().sum().backward(); s.step()
    assert math.isfinite(s.table()[0]['grad_rms'])

def test_checkpointed():
    from torch.utils.checkpoint import checkpoint
    m, x = small(), images()
    with ActivationStats(m) as s:
        checkpoint(m, x, use_reentrant=False).sum().backward()
        s.step()
    assert s.table()[0]['passes'] == 1
    assert s.units()['1']['units'] == 4  # the recomputation is no call
    assert not any(r['note'] for r in s.table())
    assert all(math.isfinite(r['grad_rms']) for r in s.table())

# ---- use -------------------------------------------------------------------------------------

def data(n=64):
    return TensorLoader(torch.randn(n, 1, 8, 8), torch.randint(0, 3, (n,)), 16)
def learner(m, cbs=(), valid=None, lr=.1):
    return Learner(m, data(), valid, F.cross_entropy, torch.optim.SGD(m.parameters(), lr=lr), cbs)

def test_callback_counts_training_only_and_goes_on():
    m, s = small(), ActivationStats()
    learn = learner(m, [s], valid=data())
    learn.fit(2)
    assert s.steps == 8 and s.table()[0]['passes'] == 8 and hooks_on(m) == 0
    learn.fit(1)
    assert s.steps == 12 and hooks_on(m) == 0

@pytest.mark.parametrize('at', ['before_epoch', 'after_pred', 'after_backward', 'after_step'])
@pytest.mark.parametrize('error', [RuntimeError, KeyboardInterrupt, CancelFit])
def test_callback_leaves_no_hook_behind(at, error):
    class Bad(Callback): order = 1
    def fail(self, learn): raise error()
    setattr(Bad, at, fail)
    m, s = small(), ActivationStats()
    try: learner(m, [s, Bad()]).fit(1)
    except error: pass
    assert hooks_on(m) == 0

def test_callback_keeps_the_pass_that_diverged():
    m, s = small(), ActivationStats()
    with torch.no_grad(): m[3].weight[0, 0] = math.nan
    with pytest.raises(DivergedError): learner(m, [s]).fit(1)
    assert [r['note'] for r in s.table()][:4] == ['', '', '', 'not finite from step 0 on']

@pytest.mark.parametrize('kwargs, says', [(dict(rows=3), 'rows is 3'), (dict(rows=0), 'rows is 0'),
                                          (dict(sample=0), 'sample is 0'),
                                          (dict(bins=30), 'bins is 30')])
def test_bad_arguments(kwargs, says):
    with pytest.raises(InputError, match=says):
        ActivationStats(small(), **kwargs)

def test_without_a_model_or_data():
    with pytest.raises(InputError, match='no model'):
        ActivationStats().__enter__()
    with pytest.raises(InputError, match='no model'): ActivationStats().step()
    with pytest.raises(InputError, match='nothing yet'):
        ActivationStats().history()
    with pytest.raises(InputError, match='no pass that counts'):
        ActivationStats(small()).table()
    with pytest.raises(InputError, match='no shape yet'):
        ActivationStats(nn.LazyLinear(3))
    s = watch(small(), images())
    with pytest.raises(InputError, match='no module'): s.histogram('x')
    with pytest.raises(InputError, match='last is 0'): s.table(last=0)
    assert 'ActivationStats of' in repr(ActivationStats())

def test_plots_draw_what_is_there():
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    s = watch(small(nn.LeakyReLU), *[images() for _ in range(6)])
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert len(s.plot_stats()[0].get_lines()) == 6 and len(s.plot_grads()[0].get_lines()) == 6
        assert len(s.plot_dead()[0].get_lines()) == 2 and len(s.plot_updates()[0].get_lines()) == 4
        assert s.plot_histograms(['0', '1']).shape == (1, 2)
        assert len(s.plot_updates(vectors=True)[0].get_lines()) == 7
        plt.gcf().canvas.draw()
    plt.close('all')

# ---- found by readers ------------------------------------------------------------------------

class Residual(nn.Module):
    "One ReLU in two places, as in torchvision."
    def __init__(self, out=8):
        super().__init__()
        self.c1 = nn.Conv2d(8, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, out, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
    def forward(self, x):
        y = self.c2(self.relu(self.c1(x)))
        return self.relu(y + x if y.shape == x.shape else y)

def test_a_vector_is_a_batch_of_one_unit():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.act = nn.Linear(5, 1), nn.Sigmoid()
        def forward(self, x): return self.act(self.fc(x).squeeze(-1))
    s = watch(Classifier(), *[torch.randn(n, 5) for n in (64, 64, 40, 64)])
    assert s.history()['dead'][:, 1].tolist() == [0]*4
    assert s.table()[1]['units'] == 1 and not s.table()[1]['note']

def test_an_activation_in_two_places_has_units_in_each():
    m = Residual(out=32)
    with torch.no_grad():
        m.c1.bias[[2, 3]] = -100.
        m.c2.bias[[0, 31]] = -1000.
    s = watch(m, *[torch.randn(4, 8, 6, 6) for _ in range(5)])
    row, units = s.table()[2], s.units()
    assert [units[f'relu, call {i}']['units'] for i in (1, 2)] == [8, 32]
    assert (row['units'], row['dead']) == (40, 4)
    assert units['relu, call 1']['dead'] == [2, 3] and units['relu, call 2']['dead'] == [0, 31]
    assert row['note'] == '2 calls in a pass: moments of all, units of each' and row['passes'] == 10
    assert s.history()['dead'][:, 2].tolist() == [.1]*5

def test_widths_that_change_are_not_counted_at_all():
    s = watch(nn.ReLU(), torch.randn(4, 8, requires_grad=True),
              torch.randn(4, 32, requires_grad=True))
    assert s.table()[0]['note'] == 'had 8 units, then 32: not counted'
    assert s.table()[0]['units'] is None and not s.units()
    assert all(s.history()[k][:, 0].isnan().all() for k in ('dead', 'always_negative', 'saturated'))

def test_a_window_that_saw_no_input_is_nan():
    act = nn.ReLU()
    class Sometimes(nn.Module):
        def forward(self, x, i): return act(x) if i != 1 else x
        def __init__(self): super().__init__(); self.act = act
    m, x = Sometimes(), -torch.ones(3, 2, requires_grad=True)
    with ActivationStats(m) as s:
        for i in range(3): m(x, i).sum().backward(); s.step()
    dead = s.history()['dead'][:, 0]
    assert dead[[0, 2]].tolist() == [1, 1] and dead[1].isnan()
    assert s.units(last=1)['act']['dead'] == [0, 1]

def test_an_activation_in_two_places_is_said_and_accumulation_is_not():
    m = Residual()
    with torch.no_grad(): m.c1.bias[[2, 3]] = -100.
    s = watch(m, torch.randn(4, 8, 6, 6), torch.randn(4, 8, 6, 6))
    notes = {r['module']: r['note'] for r in s.table()}
    assert notes == dict(c1='', c2='', relu='2 calls in a pass: moments of all, units of each')
    with ActivationStats(m, where=['c1']) as s:
        for _ in range(3): m(torch.randn(4, 8, 6, 6)).sum().backward()
        s.step()
    assert s.table()[0]['note'] == '' and s.table()[0]['passes'] == 3

def test_step_never_called_is_said():
    with ActivationStats(m := small()) as s:
        for _ in range(3): m(images()).sum().backward()
    assert s.table()[0]['note'].startswith('step() not called')

def test_last_covers_at_least_so_many_steps():
    m = nn.Identity()
    for n in range(1, 30):
        with ActivationStats(nn.Sequential(m, nn.ReLU()), rows=4) as s:
            for i in range(n):
                s.model(torch.full((2, 1), float(i), requires_grad=True)).sum().backward()
                s.step()
        for last in range(1, n + 1):
            used = s._used(last)
            assert used.start*s.every <= n - last < (used.start + 1)*s.every
            assert used.stop == -(-n//s.every)

@pytest.mark.parametrize('layer, shape, then', [
    (nn.Conv2d(1, 12, 4, 4), (8, 1, 28, 28), lambda y: y.flatten(2).transpose(1, 2)),
    (nn.Conv2d(1, 12, 4), (8, 1, 9, 9), lambda y: y.permute(0, 2, 3, 1)),
    (nn.Conv2d(1, 12, 4), (8, 1, 9, 9), lambda y: y.flatten(2)),
    (nn.Conv2d(1, 12, 4), (1, 9, 9), lambda y: y),
    (nn.Conv1d(1, 12, 3), (8, 1, 9), lambda y: y.mT),
    (nn.Conv1d(1, 12, 3), (1, 9), lambda y: y),
    (nn.Linear(5, 12), (8, 9, 5), lambda y: y.transpose(1, -1)),
    (nn.Linear(5, 12), (8, 3, 3, 5), lambda y: y.movedim(-1, 1)),
    (nn.Linear(5, 12), (8, 9, 5), lambda y: y.view(8, 3, 3, 12)),
    (nn.Linear(5, 12), (8, 5), lambda y: y.T),
    (nn.Conv2d(1, 12, 4), (8, 1, 9, 9), lambda y: 2*y.mean((2, 3)) + 1)])
def test_units_are_followed_through_reshapes(layer, shape, then):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = layer, nn.ReLU()
        def forward(self, x): return self.act(then(self.layer(x)))
    with torch.no_grad(): layer.bias.fill_(9.); layer.bias[[2, 3]] = -100.
    assert watch(Net(), torch.randn(shape)).units()['act'] == dict(
        units=12, dead=[2, 3], always_negative=[])

def test_units_split_apart_fall_back():
    m = nn.Sequential(nn.Linear(5, 12), nn.Unflatten(1, (3, 4)), nn.ReLU(), nn.Flatten(), nn.ReLU())
    s = watch(m, torch.randn(8, 5))
    assert [u['units'] for u in s.units().values()] == [4, 12]

def test_a_second_model_is_refused_and_a_part_is_not():
    s, m = ActivationStats(), small()
    learner(m, [s]).fit(1)
    with pytest.raises(InputError, match='another model'):
        learner(small(), [s]).fit(1)
    assert s.steps == 4 and hooks_on(m) == 0
    part = ActivationStats(m[3:])
    learner(m, [ActivationStats(m[0])]).fit(1)
    with pytest.raises(InputError, match='another model'):
        learner(m, [part]).fit(1)          # a slice is a new module

def test_a_hook_can_be_put_on_again():
    m = small()
    for make in (lambda: Hook(m[0], lambda *a: None),
                 lambda: Hooks(find_modules(m), lambda *a: None)):
        h = make()
        with h: m(images())
        m(images())
        with h: m(images())
        assert (h if isinstance(h, Hook) else h[0]).calls == 2 and hooks_on(m) == 0

def test_find_modules_by_types_names_and_modules_in_any_mixture():
    m = small()
    assert list(find_modules(m, [nn.ReLU])) == ['1', '4']
    assert list(find_modules(m, '3')) == ['3'] == list(find_modules(m, m[3]))
    assert list(find_modules(m, [nn.Linear, '0', m[1]])) == ['0', '1', '3', '5']
    with pytest.raises(InputError, match='expected a module type'):
        ActivationStats(where=5)
    with pytest.raises(InputError, match='expected a module type'):
        find_modules(m, [5])

@pytest.mark.parametrize('own', [False, True])
def test_a_module_is_called_by_its_owner_only(own):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__(); self.calls, self.modes = 0, set()
            self.leak = nn.Parameter(torch.tensor(.2)) if own else 0.
        def forward(self, x):
            self.calls += 1
            self.modes.add(self.training)
            return torch.where(x > 0, x, self.leak*x)
    m = nn.Sequential(nn.Linear(6, 6), Counting())
    s = watch(m, *[torch.randn(4, 6) for _ in range(7)], sample=1)
    s.units(); s.history(); s.table()
    assert m[1].calls == 7 and m[1].modes == {True} and s.units()['1']['units'] == 6

def test_a_learned_slope_is_the_present_one():
    m = nn.Sequential(nn.Identity(), nn.PReLU(init=0.))
    opt = torch.optim.SGD(m.parameters(), lr=.1)
    with ActivationStats(m) as s:
        for i in range(2):
            m((-torch.ones(3, 2)).requires_grad_()).sum().backward()
            opt.step()
            s.step()
    assert s.history()['dead'][:, 1].tolist() == [1, 0]

def test_plots_of_many_layers():
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    m = nn.Sequential(*[k for _ in range(20) for k in (nn.Linear(8, 8), nn.ReLU())])
    s = watch(m, *[torch.randn(4, 8) for _ in range(3)])
    with plt.rc_context({'figure.constrained_layout.use': False}):
        for plot in (s.plot_stats, s.plot_grads, s.plot_dead, s.plot_updates):
            fig = plot()[0].figure
            fig.canvas.draw()
            assert len(fig.legends[0].get_texts()) <= 11
            assert fig.legends[0].get_window_extent().height < fig.bbox.height
    plt.close('all')

# ---- kinds of fault that users met ------------------------------------------------------------

@pytest.mark.parametrize('scale', [1e-30, 1e-25, 1e-19, 1., 1e19, 1e25])
def test_signals_of_any_size_are_measured(scale):
    m, x = nn.Identity(), (torch.randn(100, 100)*scale).requires_grad_()
    with ActivationStats(m) as s: m(x).sum().backward(); s.step()
    row = s.table()[0]
    assert row['std']/scale == pytest.approx(1, abs=.05)
    assert row['rms']/scale == pytest.approx(1, abs=.05) and not row['note']

def test_an_empty_batch_is_skipped_and_what_follows_counts():
    m, both = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU()), torch.tensor([[1.], [-1.]])
    with torch.no_grad(): m[0].weight.copy_(both)
    with ActivationStats(m) as s:
        for x in (torch.ones(4, 1), torch.ones(0, 1), both):
            m(x).sum().backward()
            s.step()
    assert s.units()['1']['dead'] == [] and not any(r['note'] for r in s.table())

def test_the_losses_gradient_is_told_from_one_inside_it():
    m = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    x, outs = torch.randn(10, 3, requires_grad=True), []
    def penalty(out):
        g, = torch.autograd.grad(out.sum(), x, create_graph=True)
        return out.mean() + 10*((g.norm(dim=1) - 1)**2).mean()
    with ActivationStats(m) as s: penalty(m(x)).backward(); s.step()
    m[2].register_forward_hook(lambda m, i, o: outs.append(o))
    true = torch.autograd.grad(penalty(m(x)), outs)[0].square().mean().sqrt().item()
    assert s.table()[2]['grad_rms'] == pytest.approx(true, rel=1e-4)

def test_layers_unfrozen_or_replaced_between_fits_appear():
    m = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    m[0].requires_grad_(False)
    s = ActivationStats(m)
    def train():
        opt = torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=.1)
        with s:
            m(torch.randn(8, 4)).square().sum().backward()
            opt.step()
            s.step()
    train()
    assert s.parameters == ['2.weight', '2.bias']
    m[0].requires_grad_(True); m[2].weight = nn.Parameter(torch.randn(2, 8))
    train()
    ratios = s.history()['update_ratio']
    assert s.parameters == ['2.weight', '2.bias', '0.weight', '0.bias']
    assert ratios[1].isfinite().all() and ratios[0, 2:].isnan().all()

def test_what_was_recorded_still_answers_from_a_copy():
    m = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    with ActivationStats(m) as s:
        m(torch.randn(8, 4)).sum().backward(); s.step()
        while_watching = copy.deepcopy(s)
    for other in (copy.deepcopy(s), pickle.loads(pickle.dumps(s)), while_watching):
        assert str(other.table()) == str(s.table()) and not other._handles

# ---- units: known, or said to be unknown -------------------------------------------------------

def net_of(layer, act, then=lambda y: y):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.act = layer, act
        def forward(self, x): return self.act(then(self.layer(x)))
    return Net()

def planted(layer, units=(2, 3)):
    with torch.no_grad():
        if layer.bias is None: layer.weight.abs_()[list(units)] *= -1
        else: layer.bias.fill_(9.); layer.bias[list(units)] = -100.
    return layer

@pytest.mark.parametrize('layer, shape, then, positive', [
    (nn.Linear(5, 12, bias=False), (8, 9, 5), lambda y: y, True),
    (nn.Linear(5, 12, bias=False), (8, 9, 5), lambda y: y.transpose(1, 2), True),
    (nn.Linear(5, 12, bias=False), (8, 3, 3, 5), lambda y: y, True),
    (nn.Conv2d(1, 12, 3, bias=False), (8, 1, 9, 9), lambda y: F.interpolate(y, scale_factor=2),
     True),
    (nn.Conv2d(1, 12, 3), (8, 1, 9, 9), lambda y: F.max_pool2d(F.pad(y, (1, 1, 1, 1)), 2), False),
    (nn.Conv2d(1, 12, 3), (8, 1, 9, 9), lambda y: y.permute(0, 2, 3, 1).contiguous(), False),
    (nn.Conv2d(1, 12, 3), (8, 1, 9, 9), lambda y: y*torch.ones(12, 1, 1), False)])
def test_units_of_layers_without_bias_and_behind_what_keeps_them(layer, shape, then, positive):
    x = torch.rand(shape) if positive else torch.randn(shape)
    s = watch(net_of(planted(layer), nn.ReLU(), then), x)
    assert s.units()['act']['units'] == 12 and s.units()['act']['dead'][:2] == [2, 3]
    assert not s.table()[1]['note']

@pytest.mark.parametrize('equation, d', [('oi,bti->bto', 2), ('bti,oi->bto', 2),
                                         ('oi,bti->bot', 1)])
def test_units_of_einsum(equation, d):
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.w, self.act = nn.Parameter(torch.rand(12, 5)), nn.ReLU()
        def forward(self, x):
            return self.act(torch.einsum(equation, *((self.w, x) if equation.startswith('oi')
                                                     else (x, self.w))))
    m = Product()
    with torch.no_grad(): m.w[[2, 3]] *= -1
    assert watch(m, torch.rand(8, 9, 5)).units()['act'] == dict(
        units=12, dead=[2, 3], always_negative=[])

def test_an_unknown_dimension_is_said_and_can_be_told():
    m = net_of(nn.Conv2d(1, 12, 3), nn.ReLU(), lambda y: F.pixel_shuffle(y, 2))
    x = torch.randn(4, 1, 6, 6)
    assert 'which dimension holds the units is not known' in watch(m, x).table()[1]['note']
    for unit_dim in (1, -3, {'act': 1}):
        s = watch(m, x, unit_dim=unit_dim)
        assert s.units()['act']['units'] == 3 and not s.table()[1]['note']
    assert watch(m, x, unit_dim=-1).units()['act']['units'] == 8
    with pytest.raises(InputError, match="unit_dim names relu, expected some of"):
        ActivationStats(m, unit_dim={'relu': 1})
    with pytest.raises(InputError, match="unit_dim is 7 for .act., whose input has 4"):
        watch(m, x, unit_dim=7)
    with pytest.raises(InputError, match='unit_dim is 1.5'):
        ActivationStats(m, unit_dim=1.5)

def test_units_that_met_a_nan_are_their_own_class():
    x = torch.ones(4, 3)
    x[0, 1], x[:, 2] = math.nan, -1.
    s = watch(nn.LeakyReLU(.1), x.requires_grad_())
    assert s.units()['(model)'] == dict(units=3, dead=[], always_negative=[2], nan=[1])
    row = s.table()[0]
    assert (row['dead'], row['always_negative'], row['nan']) == (0, 1, 1)
    assert '1 units have met a nan' in row['note']
    assert s.history()['nan'][0, 0] == pytest.approx(1/3)

def test_a_step_that_was_not_judged_is_not_counted():
    m = nn.ModuleDict(dict(a=nn.ReLU(), b=nn.ReLU()))
    class Expert(nn.Module):
        def __init__(self): super().__init__(); self.e = m
        def forward(self, x, i): return self.e['a' if i % 2 else 'b'](x)
    net, x = Expert(), torch.randn(4, 3, requires_grad=True)
    with ActivationStats(net) as s:
        for i in range(5): net(x, i).sum().backward(); s.step()
    assert [(r['steps'], r['passes']) for r in s.table()] == [(2, 2), (3, 3)]

@pytest.mark.parametrize('times', [2, 3, 40])
def test_an_activation_called_again_and_again_has_units_in_each_call(times):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.act, self.lin = nn.ReLU(), nn.Linear(4, 4)
        def forward(self, x):
            for i in range(times): x = self.act(x - 1000.*(i == 1))
            return self.lin(x)
    m = Loop()
    s = watch(m, torch.rand(8, 4, requires_grad=True))
    assert len(s.units()) == min(times, 16) and s.units()['act, call 2']['dead'] == [0, 1, 2, 3]
    assert s.units()['act, call 1']['dead'] == []

# ---- activations of any shape, and those no hook sees -------------------------------------------

@pytest.mark.parametrize('shape', [(6, 1, 1), (1, 6, 1, 1), (6, 5, 5), (1,), ()])
def test_activations_with_parameters_of_any_shape(shape):
    class Slope(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.zeros(shape))
        def forward(self, x): return torch.where(x > 0, x, self.slope*x)
    m = nn.Sequential(planted(nn.Conv2d(1, 6, 3)), Slope())
    assert watch(m, torch.randn(4, 1, 7, 7)).units()['1'] == dict(
        units=6, dead=[2, 3], always_negative=[])

def test_functional_activations_are_said():
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.act = nn.Linear(4, 8), nn.GELU()
            self.b, self.rnn = nn.Linear(8, 3), nn.LSTM(3, 3)
        def forward(self, x):
            return F.silu(self.rnn(torch.relu(self.b(self.act(self.a(x)))))[0])
    s = watch(Half(), torch.randn(5, 4), torch.randn(5, 4))
    assert s.functions == ['relu', 'silu']
    assert 'functions (relu, silu), which no hook sees' in str(s.table())
    s = watch(small(), images())
    assert s.functions == [] and not s.table().summary()

# ---- the loss's gradient, and no other ---------------------------------------------------------

def grads_of(run):
    torch.manual_seed(4)
    m = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    x = torch.randn(10, 3, requires_grad=True)
    with ActivationStats(m) as s: run(m, x); s.step()
    return [r['grad_rms'] for r in s.table()]

def test_saliency_and_other_inner_gradients_are_not_the_losses():
    def loss(m, x): return m(x).square().mean()
    plain = grads_of(lambda m, x: loss(m, x).backward())
    def before(m, x):
        out = m(x)
        torch.autograd.grad(out[:, 0].sum(), x, retain_graph=True)
        out.square().mean().backward()
    def after(m, x):
        out = m(x)
        out.square().mean().backward(retain_graph=True)
        torch.autograd.grad(out[:, 0].sum(), x)
    def functional(m, x):
        p = {k: v.detach().clone().requires_grad_() for k, v in m.named_parameters()}
        torch.autograd.grad(torch.func.functional_call(m, p, x).square().mean(), list(p.values()))
    def to_weights(m, x): torch.autograd.grad(loss(m, x), list(m.parameters()))
    def one(m, x): loss(m, x).backward(inputs=[m[0].weight])
    for run in (before, after, functional, to_weights, one):
        assert grads_of(run) == pytest.approx(plain), run.__name__
    only = grads_of(lambda m, x: torch.autograd.grad(m(x).sum(), x))
    assert all(math.isnan(v) for v in only)

@pytest.mark.parametrize('how', ['number', 'tensor', 'scaler'])
def test_what_the_loss_was_multiplied_by_is_taken_out(how):
    class Scaler:
        def get_scale(self): return 1024.
    plain = grads_of(lambda m, x: m(x).square().mean().backward())
    torch.manual_seed(4)
    m, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(10, 3)
    with ActivationStats(m) as s:
        (1024*m(x).square().mean()).backward()
        s.step(scale=dict(number=1024., tensor=torch.tensor(1024.), scaler=Scaler())[how])
        (m(x)*math.inf).sum().backward()
        s.step(scale=1024.)        # a step that the scaler skips
    assert [r['grad_rms'] for r in s.table()] == pytest.approx(plain)
    assert not any(r['note'] for r in s.table())
    assert s.history()['param_grad_rms'].isfinite().all(1).tolist() == [True, False]
    with pytest.raises(InputError, match='scale is 0'): s.step(scale=0)

def test_vmap_is_refused():
    m = small()
    with ActivationStats(m), pytest.raises(InputError, match='vmap'):
        torch.vmap(m)(torch.randn(4, 1, 1, 8, 8))

# ---- compiled --------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('first', [False, True])
def test_compiled_models_are_watched(first):
    m = small()
    c = torch.compile(m, backend='eager')
    if first: c(images())
    with ActivationStats(c) as s, Hook(m[1], lambda *a: None) as h:
        for _ in range(2): c(images()).sum().backward(); s.step()
    assert h.calls == 2 and s.names == ['0', '1', '2', '3', '4', '5']
    assert [r['passes'] for r in s.table()] == [2]*6
    c(images())
    assert h.calls == 2
    s = ActivationStats()
    Learner(c, data(), None, F.cross_entropy, torch.optim.SGD(m.parameters(), lr=.1), [s]).fit(1)
    assert s.steps == 4 and s.table()[0]['passes'] == 4

# ---- what is asked of a record -----------------------------------------------------------------

def test_samples_are_bounded_and_fair():
    m, x = nn.Identity(), torch.randn(600, 100, 7)*3 + 1
    with ActivationStats(m) as s:
        for _ in range(30):
            m(x.clone().requires_grad_()).sum().backward()
            s.step()
    n = s._windows.sums[:30, 0, 0, 0]
    row = s.table()[0]
    assert n.max() <= 2**13 and n.min() > 2**12
    assert row['mean'] == pytest.approx(x.mean().item(), abs=5*3/math.sqrt(n.sum()))
    assert row['std'] == pytest.approx(3, rel=.02)

def test_parameters_gradients_and_updates():
    m, x = nn.Linear(4, 3), torch.randn(8, 4)
    opt = torch.optim.SGD(m.parameters(), lr=.1)
    with ActivationStats(m) as s:
        m(x).square().sum().backward()
        before = m.weight.detach().clone()
        opt.step()
        s.step()
    w, b = s.updates()
    assert w['rms'] == pytest.approx(before.square().mean().sqrt().item())
    assert w['elements'] == 12 and w['kind'] == 'Linear'
    assert w['grad_rms'] == pytest.approx(m.weight.grad.square().mean().sqrt().item())
    assert w['update_ratio'] == pytest.approx(.1*w['grad_rms']/w['rms'], rel=1e-4)
    moved = math.sqrt((.1*m.weight.grad).square().sum() + (.1*m.bias.grad).square().sum())
    old = math.sqrt(before.square().sum() + (m.bias.detach() + .1*m.bias.grad).square().sum())
    assert s.table()[0]['update_ratio'] == pytest.approx(moved/old, rel=1e-4)

def test_saved_and_loaded(tmp_path):
    import matplotlib
    matplotlib.use('agg')
    import matplotlib.pyplot as plt
    m = Residual(out=32)
    with torch.no_grad(): m.c1.bias[[2, 3]] = -100.
    s = watch(m, *[torch.randn(4, 8, 6, 6) for _ in range(9)], rows=4)
    s.save(tmp_path/'s.pt')
    t = ActivationStats.load(tmp_path/'s.pt')
    for last in (None, 3):
        assert t.units(last) == s.units(last) and str(t.table(last)) == str(s.table(last))
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num())
               for a, b in zip(s.history().values(), t.history().values()))
    assert str(t.updates()) == str(s.updates())
    assert torch.equal(t.histogram('c1')[0], s.histogram('c1')[0])
    for plot in (t.plot_stats, t.plot_grads, t.plot_dead, t.plot_updates, t.plot_histograms):
        plot()
    plt.close('all')
    for bad in (b'nothing', pickle.dumps({'a': 1})):
        (tmp_path/'bad.pt').write_bytes(bad)
        with pytest.raises(InputError,
                           match='bad.pt is not a file that ActivationStats.save wrote'):
            ActivationStats.load(tmp_path/'bad.pt')
    with pytest.raises(FileNotFoundError):
        ActivationStats.load(tmp_path/'none.pt')

def test_to_frame_and_tensorboard(monkeypatch):
    s, seen = watch(small(), images(), images()), []
    class Writer:
        def add_scalar(self, tag, value, step): seen.append((tag, value, step))
    s.to_tensorboard(Writer())
    h = s.history()
    assert ('std/0', h['std'][1, 0].item(), 1) in seen
    assert len(seen) == sum(int((~v.isnan()).sum()) for k, v in h.items() if k != 'step')
    import sys, types
    monkeypatch.setitem(sys.modules, 'pandas', types.SimpleNamespace(DataFrame=list))
    rows = s.to_frame()
    assert dict(step=1, name='0', statistic='std', value=h['std'][1, 0].item()) in rows
    assert len(rows) == len(seen)
    monkeypatch.setitem(sys.modules, 'torch.utils.tensorboard', None)
    with pytest.raises(InputError, match='pip install tensorboard'):
        s.to_tensorboard('folder')

def test_scripting_a_watched_model_is_refused_and_speaks_of_the_hook():
    m = small().eval()
    with Hook(m[1], lambda *a: None), pytest.raises(InputError, match='TorchScript'):
        torch.jit.script(m)
    with pytest.raises(InputError, match='before it is scripted'):
        Hook(torch.jit.script(m), lambda *a: None)
    assert hooks_on(m) == 0

def test_one_strange_layer_never_stops_the_others():
    class Strange(nn.Module):
        def __init__(self, what): super().__init__(); self.what = what
        def forward(self, x): self.what(x); return self.what(x)
    for what in (lambda x: x.to_sparse(),
                 lambda x: torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged),
                 lambda x: x.bool(), lambda x: None):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.odd, self.lin = Strange(what), nn.Linear(3, 2)
            def forward(self, x): self.odd(x); return self.lin(x)
        s = watch(Net(), torch.randn(4, 3))
        assert s.table()[0]['note'] and s.table()[1]['passes'] == 1
        assert math.isfinite(s.table()[1]['grad_rms'])

def test_small_nets_are_looked_at_less_often_after_a_while(tmp_path):
    def run(n, **kwargs):
        m = small()
        opt = torch.optim.SGD(m.parameters(), lr=.01)
        with ActivationStats(m, **kwargs) as s:
            for _ in range(n):
                m(images()).square().mean().backward()
                opt.step(); s.step(); opt.zero_grad()
        return s
    s, every = run(70), run(70, exact=True)
    steps = [*range(32), 32, 40, 48, 56, 64]
    h = s.history()
    assert h['step'].tolist() == steps and s.table()[0]['steps'] == len(steps) and s.steps == 70
    assert every.history()['step'].tolist() == [*range(70)] and every.table()[0]['passes'] == 70
    for k in ('std', 'grad_rms', 'update_ratio'): assert h[k].isfinite().all(), k
    assert len(s.histogram('0')[0]) == len(steps) and s.units(last=3)['1']['units'] == 4
    s.save(tmp_path/'s.pt')
    assert ActivationStats.load(tmp_path/'s.pt').history()['step'].tolist() == steps
    long = run(300, rows=64)
    assert long.every == 8 and long.history()['step'].tolist() == [*range(0, 300, 8)]
    assert long.history()['std'].isfinite().all()
    with ActivationStats(nn.Identity()) as large:
        for _ in range(40):
            large.model(torch.ones(40, 1000, requires_grad=True)).sum().backward()
            large.step()
    assert large.table()[0]['steps'] == 40

@pytest.mark.slow
def test_a_sharded_model_is_watched_like_a_whole_one():
    code = '''
import torch, torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from initnotes import ActivationStats

dist.init_process_group('gloo', rank=0, world_size=1, store=dist.HashStore())
torch.manual_seed(0)
whole, parts = (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)) for _ in range(2))
parts.load_state_dict(whole.state_dict())
fully_shard(parts, mesh=init_device_mesh('cpu', (1,)))
x, found = torch.randn(16, 6), []
for m in (whole, parts):
    opt = torch.optim.SGD(m.parameters(), lr=.1)
    with ActivationStats(m) as s:
        for _ in range(3):
            m(x).square().mean().backward()
            opt.step(); s.step(); opt.zero_grad()
    found.append(s.history())
for k in ('std', 'grad_rms', 'dead', 'update_ratio', 'param_rms', 'param_grad_rms'):
    a, b = (h[k].nan_to_num() for h in found)
    assert torch.allclose(a, b, rtol=1e-5), k
dist.destroy_process_group()
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-2000:]

@pytest.mark.parametrize('scale', [1e-30, 1e-22, 3e-21, 1e-19, 1., 1e20])
def test_small_and_large_signals_keep_their_digits(scale):
    m, x = nn.Identity(), (torch.randn(90, 90)*scale).requires_grad_()
    s = watch(m, x, loss=torch.sum)
    assert s.table()[0]['std']/x.detach().double().std().item() == pytest.approx(1, rel=1e-5)

def test_a_gradient_that_the_loss_is_made_from_is_not_the_losses():
    m, x, outs = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(10, 3), []
    def loss():
        inner = 100*m(x).square().mean()
        g, = torch.autograd.grad(inner, m[0].weight, create_graph=True)
        return g.square().sum()
    with ActivationStats(m) as s: loss().backward(); s.step()
    m[2].register_forward_hook(lambda m, i, o: outs.append(o))
    true, = torch.autograd.grad(loss(), outs)
    assert s.table()[2]['grad_rms'] == pytest.approx(true.square().mean().sqrt().item(), rel=1e-5)
