"Singular values of the Jacobian, orthogonal convolutions, and the random walk of the norm."
import copy, math

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

import initnotes.isometry as ours
from initnotes.core import se_mean, se_std
from initnotes.gains import moments
from initnotes.isometry import delta_orthogonal_, jacobian_spectrum, lognorm_band
from initnotes.kaiming import gain
from initnotes.report import InputError

SEED = 110
thorough = settings(max_examples=30, deadline=None)

# ---- jacobian_spectrum -------------------------------------------------------------------------

def reference(model, x):
    "By PyTorch's own Jacobian, one input after the other."
    model = copy.deepcopy(model).eval()
    rows = [torch.autograd.functional.jacobian(lambda v: model(v[None]).flatten(), v).flatten(1)
            for v in x]
    return torch.stack([torch.linalg.svdvals(r) for r in rows])

@thorough
@given(n_in=st.integers(1, 7), n_out=st.integers(1, 7), hidden=st.integers(1, 9),
       act=st.sampled_from([nn.Tanh, nn.ReLU, nn.GELU, nn.Identity]), batch=st.integers(1, 3))
def test_spectrum_is_that_of_the_jacobian(n_in, n_out, hidden, act, batch):
    net = nn.Sequential(nn.Linear(n_in, hidden), act(), nn.Linear(hidden, n_out)).double()
    x = torch.randn(batch, n_in, dtype=torch.float64)
    found = jacobian_spectrum(net, x)
    assert found.shape == (batch, min(n_in, n_out)) and (found.diff(dim=1) <= 0).all()
    torch.testing.assert_close(found, reference(net, x), atol=1e-12, rtol=1e-9)
    torch.testing.assert_close(jacobian_spectrum(net, x[0]), found[0])

class Attends(nn.Module):
    def forward(self, x):
        return F.scaled_dot_product_attention(x, x, x)

class Sign(nn.Module):
    def forward(self, x): return (x > 0).float()

@pytest.mark.parametrize('net, shape', [
    (nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), (2, 8, 8)),
    (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh()), (1, 5, 5)),          # more outputs than inputs
    (nn.Sequential(nn.ConvTranspose1d(2, 3, 4, stride=2), nn.GELU()), (2, 6)),
    (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 8)), (3, 4)),
    (nn.Sequential(Attends(), nn.Linear(4, 9)), (5, 4)),
    (nn.Sequential(Attends(), nn.Linear(4, 2)), (5, 4)),
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (3, 8)),
    (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6).eval()), (6,)),
    (nn.Sequential(nn.Flatten(), nn.Linear(600, 3), nn.Linear(3, 700)), (2, 300)),
    (Sign(), (4,)), (nn.Sequential(Sign(), nn.Linear(4, 9)), (4,))])
def test_spectrum_of_many_kinds(net, shape):
    x = torch.randn(2, *shape)
    torch.testing.assert_close(jacobian_spectrum(net, x), reference(net, x), atol=1e-5, rtol=1e-4)
    one = jacobian_spectrum(net, x[1], batched=False)
    assert one.dim() == 1
    torch.testing.assert_close(one, jacobian_spectrum(net, x)[1])

def test_spectrum_counts_products(monkeypatch):
    "As many products as the shorter side is long, and no matrix beyond the Jacobian itself."
    seen = []
    eye = torch.eye
    monkeypatch.setattr(torch, 'eye', lambda n: (seen.append(n), eye(n))[1])
    for n_in, n_out in ((3, 50), (50, 3)):
        jacobian_spectrum(nn.Linear(n_in, n_out), torch.randn(n_in))
    assert seen == [3, 3]

class Counts(nn.Module):
    "Writes a buffer and draws noise at each call."
    def __init__(self):
        super().__init__()
        self.register_buffer('calls', torch.zeros(()))
        self.inner = nn.Linear(3, 5)
    def forward(self, x):
        self.calls += 1
        return self.inner(x) * (1 + torch.rand(1))

@pytest.mark.parametrize('n_out', [2, 9])
def test_spectrum_leaves_all_as_it_was(n_out):
    net = nn.Sequential(nn.Linear(4, 3), nn.Dropout(.5), Counts(), nn.Tanh(), nn.Linear(5, n_out))
    net(torch.randn(2, 4)).sum().backward()
    before = copy.deepcopy(net.state_dict())
    grads = [p.grad.clone() for p in net.parameters()]
    net[4].eval()
    state, x = torch.get_rng_state(), torch.randn(2, 4, requires_grad=True)
    state = torch.get_rng_state()
    found = jacobian_spectrum(net, x)
    assert torch.equal(state, torch.get_rng_state()) and x.grad is None
    assert not found.requires_grad and found.isfinite().all()
    assert [m.training for m in net] == [True]*4 + [False]
    for k, v in net.state_dict().items(): assert torch.equal(v, before[k]), k
    for p, g in zip(net.parameters(), grads): assert torch.equal(p.grad, g)

def test_spectrum_without_dropout_and_anywhere():
    net, x = nn.Sequential(nn.Linear(4, 4), nn.Dropout(.5)), torch.randn(3, 4)
    plain = reference(net, x)
    for context in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with context: torch.testing.assert_close(jacobian_spectrum(net, x), plain)
    half = copy.deepcopy(net).bfloat16()
    found = jacobian_spectrum(half, x.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, plain, atol=.05, rtol=.05)

@pytest.mark.parametrize('model, x, says', [
    (torch.tanh, torch.randn(3), 'expected an nn.Module'),
    (nn.Linear(3, 3), [1., 2., 3.], 'expected a tensor of real numbers'),
    (nn.Linear(3, 3), torch.ones(2, 3, dtype=torch.long), 'torch.int64 of shape'),
    (nn.Linear(3, 3), torch.zeros(0, 3), 'expected a tensor of real numbers'),
    (nn.Linear(3, 3), torch.randn(2, 4), r'failed on an input of shape \(1, 4\)'),
    (nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.randn(2, 3), '1 is a BatchNorm1d'),
    (nn.BatchNorm1d(3, track_running_stats=False).eval(), torch.randn(2, 3), 'by its batch'),
    (nn.LazyLinear(3), torch.randn(2, 3), 'shape is not known yet'),
    (nn.Flatten(0), torch.randn(2, 3), "dimension 0 is the batch's"),
    (nn.GRU(3, 2, batch_first=True), torch.randn(2, 4, 3), 'for one input the model gave'),
    (nn.Linear(3, 3), torch.full((2, 3), math.nan), None),
    (nn.Sequential(nn.Linear(3, 3), nn.Softplus()), torch.full((2, 3), math.nan), 'not finite')])
def test_spectrum_says_what_is_wrong(model, x, says):
    if says is None:                      # the derivative of a linear map knows no nan
        assert jacobian_spectrum(model, x).isfinite().all()
        return
    with pytest.raises(InputError, match=says): jacobian_spectrum(model, x)

# ---- delta_orthogonal_ -------------------------------------------------------------------------

@thorough
@given(n_in=st.integers(1, 6), more=st.integers(0, 4), g=st.floats(.1, 3),
       kernel=st.lists(st.integers(1, 4), max_size=3))
def test_delta_orthogonal_is_a_matrix_in_the_middle(n_in, more, kernel, g):
    w = torch.full((n_in + more, n_in, *kernel), 7., dtype=torch.float64)
    assert delta_orthogonal_(w, g) is w
    middle = w[(..., *((k - 1)//2 for k in kernel))]
    torch.testing.assert_close(middle.T @ middle, g*g*torch.eye(n_in, dtype=torch.float64))
    assert (w != 0).sum() == (middle != 0).sum()

@pytest.mark.parametrize('kernel', [(3,), (4,), (3, 3), (2, 5), (1, 2, 3)])
@pytest.mark.filterwarnings('ignore:Using padding')
def test_delta_orthogonal_keeps_norms_and_places(kernel):
    conv = getattr(nn, f'Conv{len(kernel)}d')(3, 5, kernel, padding='same', bias=False)
    delta_orthogonal_(conv.weight, 2.)
    x = torch.randn(2, 3, *[6]*len(kernel))
    torch.testing.assert_close(conv(x).square().sum(1), 4*x.square().sum(1), atol=1e-4, rtol=1e-4)

def test_delta_orthogonal_draws_like_orthogonal():
    for dtype in (torch.float32, torch.float64):
        ours_, theirs = torch.empty(6, 4, dtype=dtype), torch.empty(6, 4, dtype=dtype)
        delta_orthogonal_(ours_, 1.5, torch.Generator().manual_seed(3))
        nn.init.orthogonal_(theirs, 1.5, torch.Generator().manual_seed(3))
        assert torch.equal(ours_, theirs)
    w = delta_orthogonal_(torch.empty(8, 8, 3, dtype=torch.bfloat16))
    torch.testing.assert_close((w.float()[..., 1].T @ w.float()[..., 1]), torch.eye(8), atol=.03,
                               rtol=0)
    for nothing in (torch.empty(3, 0, 3), torch.empty(3, 3, 3, device='meta')):
        assert delta_orthogonal_(nothing) is nothing
    p = nn.Parameter(torch.empty(4, 4, 3))
    assert delta_orthogonal_(p).requires_grad and p.grad_fn is None

@pytest.mark.parametrize('shape, g, says', [
    ((3,), 1., 'Only tensors with 2 or more dimensions are supported'),
    ((3, 4, 3), 1., 'at least as many outputs as inputs'),
    ((4, 3, 3), math.nan, 'gain nan'), ((4, 3, 3), math.inf, 'gain inf'),
    ((4, 3, 3), 'relu', "gain 'relu'")])
def test_delta_orthogonal_says_what_is_wrong_and_writes_nothing(shape, g, says):
    w = torch.full(shape, 7.)
    with pytest.raises(InputError, match=says): delta_orthogonal_(w, g)
    assert (w == 7).all()

def test_delta_orthogonal_is_all_or_nothing():
    w = torch.full((4, 3, 3), 7)
    with pytest.raises(InputError, match='torch.int64'): delta_orthogonal_(w)
    with pytest.raises(InputError, match='expected a tensor'): delta_orthogonal_([[1.]])
    one = torch.full((1, 1, 1), 7.)
    with pytest.raises(RuntimeError): delta_orthogonal_(one.expand(4, 3, 3))    # shared memory
    w = torch.full((4, 3, 3), 7.)
    with pytest.raises((RuntimeError, TypeError)): delta_orthogonal_(w, generator='no')
    assert (w == 7).all() and one == 7

# ---- lognorm_band ------------------------------------------------------------------------------

ACTIVATIONS = dict(linear=nn.Identity(), relu=nn.ReLU(), leaky=nn.LeakyReLU(.3), tanh=nn.Tanh(),
                   selu=nn.SELU(), gelu=nn.GELU(), silu=nn.SiLU())

def chain(f, n, depth, orthogonal=False, bias=0.):
    "A net whose first layer keeps its input and whose others have the gain of `f`."
    layers = []
    for k in range(depth):
        layer = nn.Linear(n, n, bias=bias > 0)
        g = gain(f) if k else 1.
        if orthogonal: nn.init.orthogonal_(layer.weight, g)
        else: nn.init.normal_(layer.weight, 0, g/math.sqrt(n))
        if bias: nn.init.normal_(layer.bias, 0, bias)
        layers += [layer, f]
    return nn.Sequential(*layers[:-1])

def simulated(f, n, depth, nets, orthogonal=False, bias=0.):
    "Log mean squares of many such nets, (depth, nets); the input's is 1."
    x = torch.randn(nets, 1, n, dtype=torch.float64)
    x /= x.square().mean(2, keepdim=True).sqrt()
    out = []
    for k in range(depth):
        w = torch.randn(nets, n, n, dtype=torch.float64)/math.sqrt(n)
        if orthogonal:
            q, r = torch.linalg.qr(w)
            w = q*r.diagonal(dim1=1, dim2=2).sign()[:, None]
        x = (f(x)*gain(f) if k else x) @ w + bias*torch.randn(nets, 1, n, dtype=torch.float64)
        out.append(x.square().mean((1, 2)).log())
    return torch.stack(out)

def band(net, q=1.):
    "For an input of mean square q."
    return lognorm_band(net, torch.full((1, net[0].in_features), math.sqrt(q)))

@pytest.mark.parametrize('name', ['linear', 'relu', 'leaky', 'tanh', 'selu'])
@pytest.mark.parametrize('orthogonal', [False, True])
def test_band_holds(name, orthogonal):
    "Within five standard errors and the next order, (5 in 64)² a layer, at every layer."
    f, n, depth, nets = ACTIVATIONS[name], 64, 12, 300
    logs = simulated(f, n, depth, nets, orthogonal)
    bands = [band(chain(f, n, depth, orthogonal)) for _ in range(6)]
    for k in range(depth):
        mean, var = (sum(b[k][what] for b in bands)/6 for what in ('mean', 'variance'))
        more = (k + 1)*(5/n)**2       # next order; none where all is exact
        draw = math.sqrt(2*(k + 1)/6)/n*(not orthogonal)      # of the weights' own mean square
        std = logs[k].std()
        assert abs(logs[k].mean() - mean) < 5*(se_mean(std, nets) + draw) + more
        assert abs(std**2 - var) < 5*2*std*se_std(std, nets) + more

def test_band_of_known_numbers():
    "β: (κ − 1)/n a layer and 2/n for the first; tanh settles at .044; biases count."
    for name, kappa in (('linear', 2), ('relu', 5), ('leaky', 3*(1 + .3**4)*2/(1 + .3**2)**2 - 1)):
        row = band(chain(ACTIVATIONS[name], 256, 21))[-1]
        beta = (2 + 20*kappa)/256
        assert row['variance'] == pytest.approx(beta, rel=.02), name
    assert band(chain(nn.Tanh(), 64, 30))[-1]['variance'] == pytest.approx(.044, abs=.003)
    assert band(chain(nn.ReLU(), 64, 9, True))[-1]['variance'] == pytest.approx(8*3/64)
    assert band(chain(nn.Identity(), 64, 9, True))[-1]['variance'] < 1e-9

@pytest.mark.parametrize('q', [.3, 1., 4.])
@pytest.mark.parametrize('name', ['tanh', 'gelu', 'relu', 'selu'])
def test_map_in_logs_is_that_of_finite_differences(name, q):
    f, h = ACTIVATIONS[name], .01
    def log_v(t): return 2*math.log(moments(f, 0., math.sqrt(q*math.exp(t))).rms)
    level, slope, curvature, kappa = ours._in_logs(f, q)
    low, mid, high = map(log_v, (-h, 0, h))
    assert level == pytest.approx(mid)
    assert slope == pytest.approx((high - low)/(2*h), abs=1e-4)
    assert curvature == pytest.approx((high - 2*mid + low)/h**2, abs=1e-3)
    y = f(math.sqrt(q)*torch.randn(10**6, dtype=torch.float64)).square()
    assert kappa == pytest.approx((y.var()/y.mean()**2).item(), rel=.03)    # some five errors

def test_band_with_biases():
    f, n, nets = nn.Tanh(), 64, 400
    logs = simulated(f, n, 8, nets, bias=.7)
    bands = [band(chain(f, n, 8, bias=.7)) for _ in range(20)]
    mean, var = (sum(b[-1][k] for b in bands)/20 for k in ('mean', 'variance'))
    std = logs[-1].std()
    assert abs(logs[-1].mean() - mean) < 5*se_mean(std, nets) + .02
    assert abs(std**2 - var) < 5*2*std*se_std(std, nets) + .002
    assert var < .044

def test_band_starts_from_the_input():
    net = chain(nn.ReLU(), 32, 4)
    for a, b in zip(band(net), band(net, 9.)):
        assert b['mean'] - a['mean'] == pytest.approx(math.log(9))
        assert a['variance'] == pytest.approx(b['variance'])

@pytest.mark.parametrize('name', ['gelu', 'silu'])
def test_band_says_where_the_first_order_fails(name):
    "What it does say is within a quarter."
    rows = band(chain(ACTIVATIONS[name], 64, 20))
    known = [r for r in rows if r['variance'] is not None]
    assert 5 < len(known) < 12 and all(r['mean'] is None for r in rows[len(known):])
    assert all('too wide for a curved length map' in r['note'] for r in rows[len(known):])
    logs = simulated(ACTIVATIONS[name], 64, len(known), 1000)
    for r, v in zip(known, logs): assert r['variance'] == pytest.approx(v.var().item(), rel=.25)

def test_band_of_convolutions_is_that_of_their_channels():
    conv = nn.Sequential(nn.Conv2d(4, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.Flatten(),
                         nn.ReLU(), nn.Linear(32*4, 16))
    for m in conv[::2]:
        if hasattr(m, 'weight'): nn.init.kaiming_normal_(m.weight); nn.init.zeros_(m.bias)
    nn.init.normal_(conv[5].weight, 0, (2/128)**.5); nn.init.zeros_(conv[5].bias)
    rows = lognorm_band(conv, torch.randn(2, 4, 6, 6))
    assert [r['width'] for r in rows] == [32, 32, 16]
    for r, beta in zip(rows, (2/32, 7/32, 10/32 + 2/16)):
        assert r['variance'] == pytest.approx(beta, rel=.35)
    assert [bool(r['note']) for r in rows] == [True, True, False]
    delta = nn.Sequential(*[nn.Conv1d(8, 8, 3, bias=False) for _ in range(3)])
    for m in delta: delta_orthogonal_(m.weight)
    for r in lognorm_band(delta, torch.ones(1, 8, 9)):
        assert abs(r['mean']) < 1e-6 and r['variance'] < 1e-9

twice, dead = nn.Linear(4, 4), nn.Linear(4, 4)
nn.init.zeros_(dead.weight)

@pytest.mark.parametrize('layers, known, says', [
    ([nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)], 1, 'LayerNorm: the maps know'),
    ([nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 4)], 1, "behind Softmax '1'"),
    ([twice, nn.ReLU(), twice], 1, 'used for a second time'),
    ([nn.Linear(4, 4), nn.ReLU(), dead, nn.ReLU(), nn.Linear(4, 4)], 1, 'are 0 or not finite'),
    ([nn.Linear(4, 4), nn.Threshold(1e9, 0.), nn.Linear(4, 4)], 1, 'gives 0'),
    ([nn.Embedding(5, 4), nn.Linear(4, 4)], 0, 'Embedding')])
def test_band_says_what_is_not_known(layers, known, says):
    whole = isinstance(layers[0], nn.Embedding)
    rows = lognorm_band(nn.Sequential(*layers), torch.tensor([1, 2]) if whole else torch.ones(2, 4))
    assert len(rows) > known
    for k, r in enumerate(rows):
        assert (r['mean'] is None) == (k >= known) and (k < known or 'not known' in r['note'])
    assert says in rows[known]['note'] and all(r['measured'] is not None for r in rows)

@pytest.mark.parametrize('model, x, says', [
    (torch.relu, torch.ones(2, 4), 'expected a torch.nn.Module'), (twice, 3., 'no tensor'),
    (twice, torch.ones(0, 4), 'empty tensor'), (nn.ReLU(), torch.ones(2, 4), 'calls no layer')])
def test_band_says_what_is_wrong(model, x, says):
    with pytest.raises(InputError, match=says): lognorm_band(model, x)

class Own(nn.Module):
    "Calls its layers in an order of its own, and its activation as a function."
    def __init__(self):
        super().__init__()
        self.b, self.a = nn.Linear(16, 8, bias=False), nn.Linear(4, 16, bias=False)
        for m in (self.a, self.b): nn.init.normal_(m.weight, 0, (2/m.in_features)**.5)
    def forward(self, x): return self.b(F.dropout(torch.relu(self.a(x))))

def test_band_follows_the_calls():
    net, x = Own(), torch.randn(3, 4)
    rows = lognorm_band(net, x)
    assert [r['name'] for r in rows] == ['a', 'b'] and [r['width'] for r in rows] == [16, 8]
    assert rows[1]['variance'] == pytest.approx(2/16 + 3/16 + 2/8, rel=.5)
    y = net.b(torch.relu(net.a(x)))
    assert rows[1]['measured'] == pytest.approx(y.square().mean(1).log().mean().item(), rel=1e-4)
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 8), nn.ReLU()), nn.Tanh(), nn.Linear(8, 2))
    assert [r['name'] for r in lognorm_band(nested, x)] == ['0.0', '2']

def test_a_net_lies_in_its_band():
    "z-scores of many nets have mean 0 and variance 1."
    z = []
    for _ in range(150):
        row = band(chain(nn.ReLU(), 64, 8))[-1]
        z.append((row['measured'] - row['mean'])/math.sqrt(row['variance']))
    z = torch.tensor(z)
    assert abs(z.mean()) < 5*se_mean(1., 150) + .1 and abs(z.std() - 1) < 5*se_std(1., 150) + .1
