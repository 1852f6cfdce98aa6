"Kaiming: PyTorch's bits, exact distributions, fans that are counted, moments that are integrated, and init_, all or nothing."
import copy, fnmatch, inspect, itertools, math, re, warnings

import pytest, torch
import torch.nn.functional as F
from hypothesis import example, given, settings, strategies as st
from torch import nn
from torch.nn import init as theirs

import initnotes
import initnotes.kaiming as ours
from initnotes.core import InputError, se_std
from initnotes.kaiming import Fans, calculate_gain, fans, gain, init_, lecun_normal_, lecun_uniform_, moments, variance_scaling_

HALVES = torch.float16, torch.bfloat16
DTYPES = torch.float32, torch.float64, *HALVES
CUT = math.sqrt(1 - 4*math.exp(-2)/math.sqrt(2*math.pi)/math.erf(math.sqrt(2)))     # std of a normal cut at ±2
quick = settings(max_examples=150, deadline=None)
thorough = settings(max_examples=40, deadline=None)

@pytest.fixture(autouse=True)
def seeded():
    "The same numbers every time; on one thread, for on small tensors more of them only wait for one another."
    threads = torch.get_num_threads()
    torch.manual_seed(20); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

def Phi(x): return math.erfc(-x/math.sqrt(2))/2
def phi(x): return math.exp(-x*x/2)/math.sqrt(2*math.pi)

# ---- drop-ins: torch.nn.init, bit for bit ----------------------------------------------------

LAYOUTS = {'contiguous': lambda s, **kw: torch.zeros(s, **kw),
           'transposed': lambda s, **kw: torch.zeros(s[::-1], **kw).permute(tuple(range(len(s)))[::-1]),
           'channels last': lambda s, **kw: torch.zeros(s[0], *s[2:], s[1], **kw).movedim(-1, 1) if len(s) > 1 else torch.zeros(s, **kw),
           'every other': lambda s, **kw: torch.zeros(*s, 2, **kw)[..., 0]}
weights = st.builds(lambda shape, dtype, layout: LAYOUTS[layout](shape, dtype=dtype),
                    st.one_of(st.lists(st.integers(1, 6), min_size=2, max_size=5), st.lists(st.integers(0, 6), max_size=5), st.sampled_from([[40, 60], [9, 8, 3, 3]])).map(tuple),
                    st.sampled_from([*DTYPES, *DTYPES, torch.int64]), st.sampled_from(list(LAYOUTS)))
numbers = st.one_of(st.floats(-3, 3), st.integers(-2, 2), st.sampled_from([.01, 0, math.nan, math.inf, -1., 1e200, True, None, '1', [1]]))
names = st.sampled_from(['linear', *(f'conv{t}{d}d' for t in ('', '_transpose') for d in (1, 2, 3)), 'sigmoid', 'tanh', 'relu', 'leaky_relu', 'leaky_relu', 'selu', 'gelu', 'RELU', '', None, ('relu',), ['relu']])
modes = st.sampled_from(['fan_in', 'fan_in', 'fan_out', 'fan_out', 'FAN_OUT', 'fan_avg', 'fan', '', None])

def outcome(f, *args, **kw):
    "What came back, or the error; and the warnings, with the file they blame."
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        try: result = f(*args, **kw)
        except Exception as e: result = e
    return result, [(x.category, str(x.message), x.filename) for x in w]

def as_theirs(name, w, kw, seed, own):
    "The same call of both: the same tensor with the same bits, or an error of the same kind; and the same random state."
    one, two, results, states = w, copy.deepcopy(w), [], []
    for module, x in ((ours, one), (theirs, two)):
        torch.manual_seed(seed)
        g = torch.Generator().manual_seed(seed + 1) if own else None
        results.append(outcome(getattr(module, name), x, **kw, generator=g))
        states.append(torch.cat([torch.get_rng_state(), g.get_state()]) if own else torch.get_rng_state())
    (a, said), (b, says) = results
    assert torch.equal(*states) and said == says
    if isinstance(b, Exception): assert isinstance(a, type(b)) and str(a); assert not isinstance(b, ValueError) or isinstance(a, InputError)
    else: assert a is one and b is two
    assert one.stride() == two.stride() and one.dtype == two.dtype and torch.equal(one, two)

@settings(quick, max_examples=250)
@given(w=weights, a=numbers, mode=modes, f=names, kind=st.sampled_from(['uniform', 'normal']), seed=st.integers(0, 2**40), own=st.booleans())
def test_kaiming_is_theirs(w, a, mode, f, kind, seed, own): as_theirs(f'kaiming_{kind}_', w, dict(a=a, mode=mode, nonlinearity=f), seed, own)

@quick
@given(w=weights, g=numbers, kind=st.sampled_from(['uniform', 'normal']), seed=st.integers(0, 2**40), own=st.booleans())
def test_xavier_is_theirs(w, g, kind, seed, own): as_theirs(f'xavier_{kind}_', w, dict(gain=g), seed, own)

@quick
@given(f=names, param=numbers)
def test_calculate_gain_is_theirs(f, param):
    (a, said), (b, says) = outcome(calculate_gain, f, param), outcome(theirs.calculate_gain, f, param)
    assert said == says
    if isinstance(b, Exception): assert isinstance(a, type(b)) and str(a)
    else: assert type(a) is type(b) and (a == b or math.isnan(a) and math.isnan(b))

@pytest.mark.parametrize('name', ['orthogonal_', 'trunc_normal_'])
def test_what_is_handed_on_is_pytorchs_own(name):
    "The same object, under the same name; and the module's pages do not list it as ours."
    assert getattr(initnotes, name) is getattr(ours, name) is getattr(theirs, name)
    assert getattr(theirs, name).__module__ == 'torch.nn.init' and name not in ours.__all__

DROP_INS = ['kaiming_uniform_', 'kaiming_normal_', 'xavier_uniform_', 'xavier_normal_', 'calculate_gain']

@pytest.mark.parametrize('name', DROP_INS)
def test_signatures_are_theirs(name):
    "A drop-in takes the same calls, by keyword too."
    one, two = ([(p.name, p.default, p.kind) for p in inspect.signature(getattr(m, name)).parameters.values()] for m in (ours, theirs))
    assert one == two

@pytest.mark.parametrize('f', [*(getattr(ours, n) for n in DROP_INS[:4]), variance_scaling_, lecun_normal_, lecun_uniform_])
def test_parameters_and_graphs(f):
    p = nn.Parameter(torch.zeros(4, 5))
    assert f(p) is p and p.is_leaf and p.requires_grad and p.grad_fn is None and p.grad is None and p.detach().all()

@pytest.mark.parametrize('name', DROP_INS[:2])
def test_nothing_to_draw(name):
    for shape in ((0, 3), (3, 0), (0,), (2, 3, 0)):
        w, state = torch.empty(shape), torch.get_rng_state()
        with pytest.warns(UserWarning, match='zero-element') as said: assert getattr(ours, name)(w) is w
        assert torch.equal(torch.get_rng_state(), state) and said[0].filename == __file__      # blames the caller

LSTM, UNPACKED = nn.LSTM(2, 2), nn.MultiheadAttention(4, 2, kdim=3)

@pytest.mark.parametrize('call', [lambda w: ours.kaiming_normal_(w, mode='fan'), lambda w: ours.kaiming_uniform_(w, nonlinearity='gelu'), lambda w: ours.kaiming_normal_(w, a='1'), lambda w: ours.kaiming_normal_(w[0]),
                                  lambda w: ours.kaiming_normal_(w, a=True), lambda w: ours.xavier_normal_(w[0]), lambda w: ours.xavier_uniform_(w[0]), lambda w: fans(w[0]), lambda w: fans(3), lambda w: fans(nn.ReLU()),
                                  lambda w: fans(LSTM), lambda w: fans(nn.LazyLinear(3)), lambda w: fans(UNPACKED),
                                  lambda w: variance_scaling_(w, mode='fan'), lambda w: variance_scaling_(w, distribution='cauchy'), lambda w: variance_scaling_(w[0]), lambda w: variance_scaling_(w, 0), lambda w: variance_scaling_(w, -1.),
                                  lambda w: variance_scaling_(w, math.nan), lambda w: variance_scaling_(w, math.inf), lambda w: variance_scaling_(w.long()), lambda w: variance_scaling_(w.to('meta')), lambda w: variance_scaling_(w[:0]),
                                  lambda w: variance_scaling_(w, mode=['fan_in']), lambda w: variance_scaling_(w, distribution=None)])
def test_refusals(call):
    w, state = torch.ones(3, 3), torch.get_rng_state()
    with pytest.raises(InputError, match='.{20}'): call(w)
    assert w.eq(1).all() and torch.equal(torch.get_rng_state(), state)

# ---- variance_scaling_: the distribution itself ----------------------------------------------

MASS = math.erf(math.sqrt(2))
KURTOSIS = {'normal': 3., 'uniform': 1.8, 'truncated_normal': (3 - 2*(8 + 6)*phi(2)/MASS)/(1 - 4*phi(2)/MASS)**2}
CASES = list(itertools.product(('fan_in', 'fan_out', 'fan_avg'), KURTOSIS, DTYPES))

def scaled(mode, distribution, dtype, scale, seed=1):
    "60·40·9 draws, and the std they should have: fan_in 360, fan_out 540."
    w = torch.empty(60, 40, 3, 3, dtype=dtype)
    assert variance_scaling_(w, scale, mode, distribution, torch.Generator().manual_seed(seed)) is w
    return w.double().flatten(), math.sqrt(scale/dict(fan_in=360, fan_out=540, fan_avg=450)[mode])

@pytest.mark.parametrize('mode, distribution, dtype', CASES)
def test_variance_is_scale_over_fan(mode, distribution, dtype):
    for seed, scale in enumerate((1., 2., .01, 50.)):
        w, std = scaled(mode, distribution, dtype, scale, seed)
        assert abs(w.std() - std) < 5*se_std(std, len(w), KURTOSIS[distribution])
        assert abs(w.mean()) < 5*std/math.sqrt(len(w))
        most = {'normal': 7, 'uniform': math.sqrt(3), 'truncated_normal': 2/CUT}[distribution]*std
        assert .8*min(most, 4*std) < w.abs().max() <= most*(1 + torch.finfo(dtype).eps)

@pytest.mark.parametrize('mode, distribution, dtype', CASES)
def test_the_distribution_is_exact(mode, distribution, dtype):
    stats = pytest.importorskip('scipy.stats')
    w, std = scaled(mode, distribution, dtype, 2., 9)
    exact = {'normal': stats.norm(0, std), 'uniform': stats.uniform(-math.sqrt(3)*std, 2*math.sqrt(3)*std), 'truncated_normal': stats.truncnorm(-2, 2, 0, std/CUT)}[distribution]
    assert exact.std() == pytest.approx(std, rel=1e-9) and exact.stats('k') + 3 == pytest.approx(KURTOSIS[distribution], rel=1e-6)
    assert stats.kstest(w.numpy(), exact.cdf).pvalue > 1e-6

@pytest.mark.parametrize('f, distribution', [(lecun_normal_, 'truncated_normal'), (lecun_uniform_, 'uniform')])
@pytest.mark.parametrize('dtype', DTYPES)
def test_lecun_is_variance_scaling(f, distribution, dtype):
    a, b = torch.empty(2, 30, 20, 3, dtype=dtype)
    torch.manual_seed(3); f(a)
    torch.manual_seed(3); variance_scaling_(b, 1., 'fan_in', distribution)
    assert torch.equal(a, b)
    state = torch.get_rng_state()
    f(b, torch.Generator().manual_seed(3)); assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), state)

# ---- fans, counted -----------------------------------------------------------------------------

def inside(x, margin, period):
    "The mean over one whole stride period in every direction, `margin` away from the edge, for each channel."
    for d, (m, s) in enumerate(zip(margin, period)): x = x.narrow(d + 2, m, s)
    return x.flatten(2).mean(2)

@settings(quick, max_examples=80)
@given(d=st.integers(1, 3), transposed=st.booleans(), groups=st.integers(1, 3), n_in=st.integers(1, 3), n_out=st.integers(1, 3), data=st.data())
def test_fans_of_convolutions_are_counted(d, transposed, groups, n_in, n_out, data):
    "With a kernel of ones, an output is the number of its products, and an input's gradient that of the outputs it takes part in."
    k, s, dilation = (tuple(data.draw(st.lists(st.integers(1, n), min_size=d, max_size=d))) for n in ((5, 4, 3) if d < 3 else (3, 3, 2)))
    layer = getattr(nn, f'Conv{"Transpose"*transposed}{d}d')(n_in*groups, n_out*groups, k, stride=s, dilation=dilation, groups=groups, bias=False).double()
    nn.init.ones_(layer.weight)
    margin = [q*(n - 1) + t for q, n, t in zip(dilation, k, s)]
    margin = [-(-m//t)*t for m, t in zip(margin, s)]
    x = torch.ones(1, n_in*groups, *[2*m + 2*t for m, t in zip(margin, s)], dtype=torch.float64, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    one = [1]*d
    counted = inside(y, margin if transposed else [m//t for m, t in zip(margin, s)], s if transposed else one), inside(x.grad, margin, one if transposed else s)
    for n, fan in zip(counted, fans(layer)):
        assert torch.allclose(n, torch.full_like(n, fan), rtol=1e-12) and (isinstance(fan, int) or fan != int(fan))

@quick
@given(a=st.integers(1, 9), b=st.integers(1, 9), c=st.integers(1, 9))
def test_fans_of_other_layers_are_counted(a, b, c):
    def count(layer, f, *shapes):
        for p in layer.parameters(): nn.init.ones_(p)
        xs = [torch.ones(s, requires_grad=True) for s in shapes]
        y = f(*xs); y.sum().backward()
        return y[0, 0].item(), xs[0].grad[0, 0].item()
    linear, bilinear, embedding, attention = nn.Linear(a, b, bias=False), nn.Bilinear(a, b, c, bias=False), nn.Embedding(a, b), nn.MultiheadAttention(a, 1)
    assert fans(linear) == count(linear, linear, (1, a)) == (a, b)
    assert fans(bilinear) == count(bilinear, bilinear, (1, a), (1, b)) == (a*b, c*b)
    counted = count(embedding, lambda x: (x[:, :1]*embedding(torch.tensor([0]))), (1, a))       # the one hot row
    assert fans(embedding) == counted == (1, b)
    assert fans(attention) == count(attention, lambda x: F.linear(x, attention.in_proj_weight[:a]), (1, a)) == (a, a)
    assert isinstance(fans(linear), Fans)

@quick
@given(shape=st.lists(st.integers(0, 7), min_size=2, max_size=5))
def test_fans_of_tensors_are_theirs(shape): assert fans(torch.empty(shape)) == theirs._calculate_fan_in_and_fan_out(torch.empty(shape))

# ---- moments and gain --------------------------------------------------------------------------

def relu_moments(m, s):
    "E[X⁺] and E[X⁺²] of X with mean m and std s."
    if s == 0: return max(m, 0), max(m, 0)**2
    return m*Phi(m/s) + s*phi(m/s), (m*m + s*s)*Phi(m/s) + m*s*phi(m/s)

def is_near(f, mean, std, m1, m2, tol=1e-6):
    got, m2 = moments(f, mean, std), max(m2, 0)                # the formulas may round below 0
    assert got == pytest.approx((m1, math.sqrt(max(m2 - m1*m1, 0)), math.sqrt(m2)), rel=tol, abs=tol)

means, stds, cuts = st.floats(-4, 4), st.floats(.05, 8), st.floats(-6, 6)

@thorough
@example(0., 1., .5003)                     # just beside a round number, where a rule's points may all miss it
@example(1.5, 1., 1.4961)
@given(m=means, s=stds | st.just(0.), c=cuts)
def test_moments_with_a_kink_or_a_jump_anywhere(m, s, c):
    is_near(lambda z: z, m, s, m, m*m + s*s, 1e-9)
    is_near(lambda z: (z - c).relu(), m, s, *relu_moments(m - c, s))
    if s == 0: return
    p = Phi((m - c)/s)
    is_near(lambda z: z > c, m, s, p, p, 2e-6)
    is_near(lambda z: (z - c).sign(), m, s, 2*p - 1, 1., 2e-6)

@thorough
@given(m=means, s=stds, a=st.floats(-1, 1))
def test_moments_of_piecewise_linear_functions(m, s, a):
    (up, up2), (down, down2) = relu_moments(m, s), relu_moments(-m, s)
    is_near(F.relu, m, s, up, up2)
    is_near(lambda z: F.leaky_relu(z, a), m, s, up - a*down, up2 + a*a*down2)
    low, high = -(1 + m)/s, (1 - m)/s                      # hardtanh
    p, q, inner = Phi(low), Phi(-high), Phi(high) - Phi(low)
    first = m*inner + s*(phi(low) - phi(high))
    second = (m*m + s*s)*inner + 2*m*s*(phi(low) - phi(high)) + s*s*(low*phi(low) - high*phi(high))
    is_near(F.hardtanh, m, s, first + q - p, second + p + q)

def test_gains_in_closed_form():
    for f, forward, backward in ((lambda z: z, 1, 1), (F.relu, 2**.5, 2**.5), (nn.LeakyReLU(.1), calculate_gain('leaky_relu', .1), calculate_gain('leaky_relu', .1)), (lambda z: z.relu()**2, (2/3)**.5, .5**.5),
                                 (torch.abs, 1, 1), (torch.sin, (2/(1 - math.exp(-2)))**.5, (2/(1 + math.exp(-2)))**.5), (lambda z: (z/2).exp(), math.exp(-1/2)**.5, 2*math.exp(-1/2)**.5)):
        assert gain(f) == pytest.approx(forward, rel=1e-9) and gain(f, backward=True) == pytest.approx(backward, rel=1e-9)
    assert gain(torch.sign) == pytest.approx(1, rel=1e-9) and gain('relu') == gain(F.relu) and gain('linear') == pytest.approx(1)

def sigmoid(x): return 1/(1 + math.exp(-x)) if x > 0 else math.exp(x)/(1 + math.exp(x))
def softplus(x): return max(x, 0) + math.log1p(math.exp(-abs(x)))
A, L = 1.6732632423543772, 1.0507009873554805               # SELU's two
SMOOTH = {   # PyTorch's function or module, the same by its formula, and its derivative
    'tanh':        (torch.tanh, math.tanh, lambda x: 1 - math.tanh(x)**2),
    'gelu':        (F.gelu, lambda x: x*Phi(x), lambda x: Phi(x) + x*phi(x)),
    'silu':        (F.silu, lambda x: x*sigmoid(x), lambda x: sigmoid(x)*(1 + x*(1 - sigmoid(x)))),
    'selu':        (F.selu, lambda x: L*(x if x > 0 else A*math.expm1(x)), lambda x: L*(1 if x > 0 else A*math.exp(x))),
    'mish':        (F.mish, lambda x: x*math.tanh(softplus(x)), lambda x: math.tanh(softplus(x)) + x*sigmoid(x)*(1 - math.tanh(softplus(x))**2)),
    'elu':         (F.elu, lambda x: x if x > 0 else math.expm1(x), lambda x: 1 if x > 0 else math.exp(x)),
    'softplus':    (F.softplus, softplus, sigmoid),
    'sigmoid':     (nn.Sigmoid(), sigmoid, lambda x: sigmoid(x)*(1 - sigmoid(x))),
    'PReLU':       (nn.PReLU(init=.25), lambda x: x if x > 0 else .25*x, lambda x: 1 if x > 0 else .25),
    'half PReLU':  (nn.PReLU(init=.25).half(), lambda x: x if x > 0 else .25*x, lambda x: 1 if x > 0 else .25),
    'RReLU':       (nn.RReLU(), lambda x: x if x > 0 else 11/48*x, lambda x: 1 if x > 0 else 11/48),
    'Hardswish':   (nn.Hardswish(), lambda x: x*min(max(x + 3, 0), 6)/6, lambda x: 0 if x < -3 else 1 if x > 3 else (2*x + 3)/6),
    'half GELU':   (nn.GELU().half(), lambda x: x*Phi(x), lambda x: Phi(x) + x*phi(x)),
    'ELU in place': (nn.ELU(.5, inplace=True), lambda x: x if x > 0 else .5*math.expm1(x), lambda x: 1 if x > 0 else .5*math.exp(x)),
    'ReLU in place': (nn.ReLU(inplace=True), lambda x: max(x, 0), lambda x: x > 0),
    'two layers':  (nn.Sequential(nn.Tanh(), nn.Softplus()).bfloat16(), lambda x: softplus(math.tanh(x)), lambda x: sigmoid(math.tanh(x))*(1 - math.tanh(x)**2))}

def expectation(f, mean=0., std=1.):
    "E[f(mean + std·Z)], by QUADPACK, cut where the functions above have their kinks."
    quad = pytest.importorskip('scipy.integrate').quad
    at = sorted({-13., 13., *(z for c in (-3, 0, 3) if abs(z := (c - mean)/std) < 13)})
    return math.fsum(quad(lambda z: f(mean + std*z)*phi(z), a, b, epsabs=1e-13, epsrel=1e-12, limit=200)[0] for a, b in zip(at, at[1:]))

@pytest.mark.parametrize('name', SMOOTH)
def test_moments_are_those_of_quadpack(name):
    f, value, slope = SMOOTH[name]
    for mean, std in ((0, 1), (.7, 2.5), (-2, .3)):
        is_near(f, mean, std, expectation(value, mean, std), expectation(lambda x: value(x)**2, mean, std), 1e-8)
    assert gain(f) == pytest.approx(expectation(lambda x: value(x)**2)**-.5, rel=1e-8)

@pytest.mark.parametrize('name', SMOOTH)
def test_backward_gain_is_that_of_quadpack(name):
    f, _, slope = SMOOTH[name]
    assert gain(f, backward=True) == pytest.approx(expectation(lambda x: slope(x)**2)**-.5, rel=1e-7)

@thorough
@example(-6., 1, .2971, lambda z: z > 0, False)
@given(log_c=st.floats(-9, 9), sign=st.sampled_from([-1, 1]), t=st.floats(-2, 2), f=st.sampled_from([F.relu, torch.tanh, F.gelu, lambda z: z > 0, F.softplus]), backward=st.booleans())
def test_gain_undoes_a_factor(log_c, sign, t, f, backward):
    "Units do not matter: gain(c·f) = gain(f)/|c|, wherever the kink or jump is; and a mirror image has the same gain."
    if backward and f(torch.ones(1)).dtype == torch.bool: backward = False
    c, shifted = sign*10**log_c, lambda z: f(z - t)
    assert gain(lambda z: c*shifted(z), backward) == pytest.approx(gain(shifted, backward)/abs(c), rel=1e-6)
    assert gain(lambda z: shifted(-z), backward) == pytest.approx(gain(shifted, backward), rel=1e-6)

@pytest.mark.parametrize('call, words', [(lambda: gain(torch.log), 'nan'), (lambda: gain(lambda z: (z > 2)*math.inf), 'nan|inf'), (lambda: gain(lambda z: torch.where(z > 1, math.inf, z)), 'inf'), (lambda: gain(lambda z: (20*z).exp()), 'inf'),
                                         (lambda: gain(lambda z: z.sum()), 'each element'), (lambda: gain(lambda z: z[:-1]), 'each element'), (lambda: gain(lambda z: 3.), 'float'), (lambda: gain(lambda z: None), 'NoneType'), (lambda: gain(nn.GLU()), 'each element'),
                                         (lambda: gain(torch.zeros_like), '0 everywhere'), (lambda: gain(torch.sign, backward=True), 'slope'), (lambda: gain(torch.ones_like, backward=True), 'slope'), (lambda: gain('rellu'), "'rellu'"), (lambda: gain(F.softmax), 'each element'), (lambda: gain(lambda z: z - z.mean()), 'each element'), (lambda: gain(lambda z: z.cumsum(0)), 'each element|settle'), (lambda: gain(lambda z: z.abs()**-.6), 'settle|inf'), (lambda: gain(None), 'None'), (lambda: gain(2.), '2.0'),
                                         (lambda: gain(nn.ReLU), 'ReLU'), (lambda: moments(F.relu, math.nan), 'nan'), (lambda: moments(F.relu, 0, math.inf), 'inf'), (lambda: moments(F.relu, 0, -1), '-1')])
def test_gain_refuses(call, words):
    with pytest.raises(InputError, match=words): call()

def test_gain_leaves_the_activation_alone():
    m = nn.Sequential(nn.PReLU(), nn.Dropout(.5), nn.RReLU()).half().train()
    m[0].weight.grad = torch.ones_like(m[0].weight)
    random, before = torch.get_rng_state(), copy.deepcopy(m.state_dict())
    with torch.no_grad(): gain(m, backward=True)
    gain(m); moments(m, 1., 2.); gain(m, backward=True)
    assert m.training and m[2].training and m[0].weight.dtype == torch.float16 and m[0].weight.grad.eq(1).all() and m[0].weight.requires_grad
    assert torch.equal(m[0].weight, before['0.weight']) and torch.equal(torch.get_rng_state(), random)

@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gain_in_every_grad_mode(mode):
    with mode(): assert gain(torch.tanh) == pytest.approx(1.5925374, rel=1e-6) and gain(F.relu, backward=True) == pytest.approx(2**.5, rel=1e-9)

# ---- init_: every kind of model ----------------------------------------------------------------

LAST = torch.channels_last

class Res(nn.Module):
    "Strided, grouped and transposed, with a norm between."
    def __init__(self):
        super().__init__()
        self.down, self.mix, self.norm = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, (3, 1), groups=4, padding=(1, 0)), nn.GroupNorm(4, 16)
        self.up, self.again = nn.ConvTranspose2d(16, 8, 4, stride=2, groups=2, padding=1), nn.Conv1d(2, 6, 27, dilation=2, stride=4)

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
        self.weight, self.list, self.inner = nn.Parameter(torch.randn(30, 20)), nn.ParameterList([torch.randn(3)]), nn.Linear(20, 30)
        self.register_buffer('table', torch.randn(4))

class Wider(nn.Linear):
    "A Linear with something of its own."
    def __init__(self): super().__init__(30, 20); self.scale = nn.Parameter(torch.randn(20))

def frozen():
    m = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 20), nn.BatchNorm1d(20), nn.Linear(20, 20))
    m[0].requires_grad_(False); m[3].bias.requires_grad_(False)
    return m

def old(f, *args, **kw):
    with warnings.catch_warnings(): warnings.simplefilter('ignore'); return f(*args, **kw)

ORTHO, BIAS, ZERO, FORGET = 'orthogonal', 'bias', 'zero', 'forget'
NORM, EMBEDDING, FROZEN, UNKNOWN, TIED, PARAMETRISED = (('alone', w) for w in ('norm', 'embedding', 'frozen', 'not know', 'tied', 'parametri'))
ENCODER = {'*in_proj_weight': (16, 16), '*out_proj.weight': (16, 16), '*linear1.weight': (16, 40), '*linear2.weight': (40, 16), '*norm*': NORM, '*bias': BIAS}
RES = {'*down.weight': (72, 36), '*mix.weight': (12, 12), '*up.weight': (32, 64), '*again.weight': (54, 40.5), '*norm*': NORM, '*bias': BIAS}
def rnn(n_in, hidden, forget=ZERO, out=None): return {'*weight_hr*': (hidden, out), '*weight_hh*': ORTHO, '*weight_ih*_l1*': (2*(out or hidden), hidden), '*weight_ih*': (n_in, hidden), '*bias_ih*': forget, '*bias_hh*': ZERO}
MODELS = {   # a model, and what becomes of its parameters: the first pattern that fits; a pair are fans, worked out by hand
    'MLP':          (lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 25, bias=False), nn.PReLU()), {'0.weight': (20, 30), '2.weight': (30, 25), '0.bias': BIAS, '3.weight': UNKNOWN}),
    'bare Linear':  (lambda: nn.Linear(20, 30), {'weight': (20, 30), 'bias': BIAS}),
    'no parameters': (nn.ReLU, {}),
    'CNN':          (lambda: nn.Sequential(nn.Conv2d(3, 16, 5), nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, stride=3), nn.InstanceNorm2d(8, affine=True), nn.Flatten(), nn.Linear(72, 10), nn.LayerNorm(10), nn.RMSNorm(10)), {'0.weight': (75, 400), '2.weight': (144, 8), '5.weight': (72, 10), '[136]*': NORM, '7*': NORM, '*bias': BIAS}),
    'resnet':       (Res, RES),
    'channels last': (lambda: Res().to(memory_format=LAST), RES),
    'encoder':      (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 40), 2, enable_nested_tensor=False), ENCODER),
    'transformer':  (lambda: nn.Transformer(16, 2, 1, 1, 40, batch_first=True), ENCODER),
    'attention':    (lambda: nn.MultiheadAttention(16, 2, kdim=30, vdim=40, add_bias_kv=True), {'q_proj*': (16, 16), 'k_proj*': (30, 16), 'v_proj*': (40, 16), 'out*weight': (16, 16), 'bias_?': ('alone', 'attention'), '*bias': BIAS}),
    'LSTM':         (lambda: nn.LSTM(20, 24, num_layers=2, bidirectional=True), rnn(20, 24, FORGET)),
    'LSTM, projected': (lambda: nn.LSTM(20, 24, num_layers=2, bidirectional=True, proj_size=10), rnn(20, 24, FORGET, 10)),
    'GRU':          (lambda: nn.GRU(20, 24, num_layers=2, bidirectional=True), rnn(20, 24)),
    'RNN':          (lambda: nn.RNN(20, 24, num_layers=2, bidirectional=True, bias=False), rnn(20, 24)),
    'double LSTM':  (lambda: nn.LSTM(20, 24).double(), rnn(20, 24, FORGET)),
    'cells':        (lambda: nn.ModuleList([nn.LSTMCell(20, 24), nn.LSTMCell(20, 24)]), rnn(20, 24, FORGET)),
    'other cells':  (lambda: nn.ModuleList([nn.GRUCell(20, 24), nn.RNNCell(20, 24)]), rnn(20, 24)),
    'Bilinear':     (lambda: nn.Bilinear(5, 6, 20), {'weight': (30, 120), 'bias': BIAS}),
    'weight norm':  (lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(20, 30)), nn.Linear(30, 20)), {'1.weight': (30, 20), '*bias': BIAS, '*': PARAMETRISED}),
    'orthogonal':   (lambda: nn.utils.parametrizations.orthogonal(nn.Linear(20, 20)), {'bias': BIAS, '*': PARAMETRISED}),
    'old weight norm': (lambda: nn.Sequential(old(nn.utils.weight_norm, nn.Conv1d(20, 30, 2)), nn.Linear(30, 20)), {'1.weight': (30, 20), '*bias': BIAS, '*': ('alone', '')}),
    'old weight norm, recurrent': (lambda: old(nn.utils.weight_norm, old(nn.utils.weight_norm, nn.LSTM(20, 24), 'weight_hh_l0'), 'weight_ih_l0'), {'bias_ih*': FORGET, 'bias_hh*': ZERO, '*': ('alone', '')}),
    'weight norm, recurrent': (lambda: nn.utils.parametrizations.weight_norm(nn.LSTM(20, 24), 'weight_hh_l0'), {'weight_ih*': (20, 24), 'bias_ih*': FORGET, 'bias_hh*': ZERO, '*': PARAMETRISED}),
    'tied':         (Tied, {'head.weight': EMBEDDING, 'embed.weight': TIED, 'one.weight': (12, 40), 'two.weight': TIED, '*bias': BIAS}),
    'frozen':       (frozen, {'0*': FROZEN, '1.weight': (30, 20), '2*': NORM, '3.weight': (20, 20), '3.bias': FROZEN, '*bias': BIAS}),
    'its own':      (Own, {'weight': UNKNOWN, 'list*': UNKNOWN, 'inner.weight': (20, 30), '*bias': BIAS}),
    'subclass':     (Wider, {'weight': (30, 20), 'scale': UNKNOWN, 'bias': BIAS}),
    'bag':          (lambda: nn.Sequential(nn.EmbeddingBag(30, 20), nn.Linear(20, 30)), {'0*': EMBEDDING, '1.weight': (20, 30), '*bias': BIAS}),
    'float16':      (lambda: nn.ModuleList([Res(), nn.LSTM(20, 24)]).half(), {**RES, **rnn(20, 24, FORGET)}),
    'bfloat16':     (lambda: nn.ModuleList([Res(), nn.GRU(20, 24)]).bfloat16(), {**RES, **rnn(20, 24)})}

CALLS = [dict(), dict(scheme='kaiming_uniform', nonlinearity='tanh', mode='fan_out', bias=.125), dict(scheme='xavier_normal', nonlinearity=nn.LeakyReLU(.5), mode='fan_in', bias=-1.), dict(scheme='xavier_uniform', nonlinearity='linear'),
         dict(scheme='lecun_normal', nonlinearity='relu', mode='fan_out'), dict(scheme='lecun_uniform'), dict(scheme='kaiming_normal', nonlinearity=lambda z: 2*z, mode='fan_avg')]
GAINS = [2**.5, 1.592537419722831, (2/1.25)**.5, 1, 1, 1, .5]

def expected_std(call, g, n_in, n_out):
    scheme, mode = call.get('scheme', 'kaiming_normal'), call.get('mode', 'fan_in')
    fan = (n_in + n_out)/2 if 'xavier' in scheme or 'lecun' not in scheme and mode == 'fan_avg' else n_out if 'kaiming' in scheme and mode == 'fan_out' else n_in
    return g/math.sqrt(fan), fan

def everything(model):
    "All that init_ may not touch, beside the values of the parameters it sets."
    return ({k: v.clone() for k, v in model.named_buffers()}, [(n, id(p), p.requires_grad, p.dtype, p.stride(), p.data_ptr()) for n, p in model.named_parameters(remove_duplicate=False)],
            [m.training for m in model.modules()], {n: None if p.grad is None else p.grad.clone() for n, p in model.named_parameters()})

def same(a, b):
    if isinstance(a, torch.Tensor): return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict): return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)): return len(a) == len(b) and all(map(same, a, b))
    return a == b

def values(model): return {n: p.detach().clone() for n, p in model.named_parameters(remove_duplicate=False)}

@pytest.mark.parametrize('call, g', list(zip(CALLS, GAINS)), ids=lambda x: x.get('scheme', '') if isinstance(x, dict) else f'{x:.3g}')
@pytest.mark.parametrize('name', MODELS)
def test_every_parameter_of_every_model(name, call, g):
    make, spec = MODELS[name]
    model = make().train(name != 'CNN')
    for p in list(model.parameters())[::2]: p.grad = torch.ones_like(p)
    was, before = values(model), everything(model)
    report = init_(model, **call)
    assert same(everything(model), before)
    assert len({r['parameter'] for r in report}) == len(report) and {id(model.get_parameter(r['parameter'])) for r in report} == {id(p) for p in model.parameters()}
    assert sorted(id(p) for p in model.parameters()) == sorted(id(model.get_parameter(r['parameter'])) for r in report if not str(r['why']).startswith('tied'))
    for r in report:
        assert set(r) == {'name', 'kind', 'note', 'parameter', 'scheme', 'fan', 'std_asked', 'std_drawn', 'why'}
        path, p = r['parameter'], model.get_parameter(r['parameter']).detach()
        kind = next(v for k, v in spec.items() if fnmatch.fnmatchcase(path, k))
        if isinstance(kind, tuple) and kind[0] == 'alone':
            assert kind[1] in r['why'] and [r[k] for k in ('scheme', 'fan', 'std_asked', 'std_drawn')] == [None]*4
            if kind is not TIED: assert same(p, was[path])
            continue
        assert r['why'] is None and r['scheme']
        if isinstance(kind, tuple):
            std, fan = expected_std(call, g, *kind)
            assert r['scheme'] == call.get('scheme', 'kaiming_normal') and r['fan'] == fan and r['std_asked'] == pytest.approx(std, rel=1e-9)
            assert r['std_drawn'] == pytest.approx(p.double().std(correction=0).item(), rel=1e-3, abs=1e-9)
            k = {'uniform': 1.8, 'lecun_normal': KURTOSIS['truncated_normal']}.get(r['scheme'] if r['scheme'] == 'lecun_normal' else r['scheme'].split('_')[1], 3)
            if p.numel() >= 400: assert abs(r['std_drawn'] - std) < 5*se_std(std, p.numel(), k) and abs(p.double().mean()) < 5*std/math.sqrt(p.numel())
            if k < 3: assert p.abs().max() <= {1.8: math.sqrt(3)}.get(k, 2/CUT)*std*(1 + torch.finfo(p.dtype).eps)
        elif kind == ORTHO:
            tol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}[p.dtype]
            for block in p.double().split(24):
                unit = block.T @ block                    # 24 rows: as many columns, or the fewer of a projection
                assert torch.allclose(unit, torch.eye(len(unit), dtype=torch.float64), atol=tol)
            assert len({b.double().sum().item() for b in p.split(24)}) == len(p)//24        # every gate a draw of its own
        elif kind == BIAS: assert p.eq(call.get('bias', 0)).all()
        else: assert p.eq(torch.tensor([0, kind == FORGET, 0, 0]).repeat_interleave(24) if kind == FORGET else 0).all()

@pytest.mark.parametrize('name', MODELS)
def test_seeds_and_generators(name):
    "The same seed, the same weights, whether global or a generator's; and a generator leaves the global random state alone."
    twins = []
    for _ in range(5): torch.manual_seed(1); twins.append(MODELS[name][0]())
    torch.manual_seed(7); init_(twins[0]); after = torch.get_rng_state()
    torch.manual_seed(7); init_(twins[1])
    state, g = torch.get_rng_state(), torch.Generator().manual_seed(7)
    init_(twins[2], generator=g)
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(after, state) and torch.equal(g.get_state(), after)
    init_(twins[3], generator=g)
    for t in twins[1:3]: assert same(values(t), values(twins[0]))
    if any(not r['why'] and r['std_drawn'] for r in init_(twins[4])): assert not same(values(twins[3]), values(twins[0]))

def test_memory_format_changes_no_number():
    a = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ConvTranspose2d(16, 8, 4))
    b = copy.deepcopy(a).to(memory_format=LAST)
    for m in (a, b): torch.manual_seed(5); init_(m)
    assert same(values(a), values(b)) and b[0].weight.is_contiguous(memory_format=LAST) and not b[0].weight.is_contiguous()

def test_the_report_as_text():
    report = init_(Tied())
    table = report.to_markdown().split('\n')
    assert len(table) == len(report) + 2 and {line.count('|') for line in table} == {7} and report._repr_markdown_() == '\n'.join(table)
    assert len(str(report).split('\n')) == len(report) + 1 and 'tied to head.weight' in str(report) and '|' not in str(report)
    assert repr(report) == 'InitReport: 4 parameters set, 3 left alone'

# ---- seed_by_name ------------------------------------------------------------------------------

LAYERS = {'a': lambda: nn.Linear(6, 7), 'b': lambda: nn.Conv2d(2, 3, 3), 'c': lambda: nn.LSTM(3, 4), 'd': lambda: nn.MultiheadAttention(4, 2), 'e': lambda: nn.Embedding(3, 4), 'f': lambda: nn.Linear(6, 7)}

@thorough
@given(one=st.lists(st.sampled_from('abcdef'), unique=True), two=st.lists(st.sampled_from('abcdef'), unique=True), seed=st.integers(0, 2**40), own=st.booleans(), scheme=st.sampled_from(['kaiming_normal', 'xavier_uniform', 'lecun_normal']))
def test_seed_by_name(one, two, seed, own, scheme):
    "A weight depends on the seed and its own name, not on which other layers there are, or in what order; and no random state moves."
    nets = []
    for keys in (one, two):
        net = nn.ModuleDict({k: LAYERS[k]() for k in keys})
        g = torch.Generator().manual_seed(seed) if own else None
        torch.manual_seed(99 if own else seed); torch.rand(len(keys))      # the seed counts, not what has been drawn since
        state = torch.get_rng_state(), own and g.get_state()
        init_(net, scheme, generator=g, seed_by_name=True)
        assert same((torch.get_rng_state(), own and g.get_state()), state)
        nets.append(net)
    a, b = map(values, nets)
    for k in a.keys() & b.keys() - {'e.weight'}: assert torch.equal(a[k], b[k])
    if 'a' in one and 'f' in two: assert not torch.equal(a['a.weight'], b['f.weight'])
    if one:
        torch.manual_seed(seed + 1)
        init_(nets[0], scheme, generator=torch.Generator().manual_seed(seed + 1) if own else None, seed_by_name=True)
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
    "`call(model, generator)` must fail, and leave no trace: neither in a model that ends in `last`, nor in a random state."
    model = nn.Sequential(Res(), Tied(), nn.LSTM(4, 5), nn.Linear(3, 4), nn.BatchNorm1d(4), *last).eval()
    plain = [p for p in model.parameters() if not isinstance(p, nn.UninitializedParameter) and not p.is_meta]
    was, g = [p.detach().clone() for p in plain], torch.Generator().manual_seed(3)
    def state(): return torch.get_rng_state(), g.get_state(), [m.training for m in model.modules()], [(p.requires_grad, p.grad) for p in plain]
    torch.rand(3); before = state()
    with pytest.raises(error, match=words): call(model, g)
    assert all(map(torch.equal, plain, was)) and same(state(), before)

@pytest.mark.parametrize('generator', [False, True])
@pytest.mark.parametrize('by_name', [False, True])
@pytest.mark.parametrize('last, kw, words', [
    (lambda: nn.LazyLinear(3), {}, r'5\.weight.*LazyLinear'), (lambda: nn.LazyBatchNorm1d(), {}, r'5\.weight.*LazyBatchNorm'), (lambda: nn.Sequential(nn.LazyConv2d(3, 2)), {}, r'5\.0\.weight'),
    (nn.ReLU, dict(scheme='kaiming'), "scheme.*'kaiming'.*'kaiming_normal'"),
    (nn.ReLU, dict(scheme=None), 'scheme'), (nn.ReLU, dict(scheme=['kaiming_normal']), 'scheme'), (nn.ReLU, dict(mode='fan'), "mode.*'fan'.*'fan_avg'"), (nn.ReLU, dict(nonlinearity='rellu'), "'rellu'"), (nn.ReLU, dict(nonlinearity=3), '3'), (nn.ReLU, dict(nonlinearity=nn.ReLU), 'ReLU'),
    (nn.ReLU, dict(nonlinearity=torch.log), 'nan'), (nn.ReLU, dict(nonlinearity=noise), 'nan'), (nn.ReLU, dict(nonlinearity=torch.zeros_like), '0 everywhere'), (nn.ReLU, dict(nonlinearity=lambda z: z.sum()), 'each element'),
    (nn.ReLU, dict(bias=math.nan), 'bias is nan'), (nn.ReLU, dict(bias=math.inf), 'bias is inf')])
def test_what_fails_changes_nothing(last, kw, words, generator, by_name):
    unchanged(lambda m, g: init_(m, **kw, generator=g if generator else None, seed_by_name=by_name), InputError, words, last())

@pytest.mark.parametrize('last, words', [
    (meta, 'meta device'), (lambda: old(nn.Linear, 0, 3), r'no elements: shape \(3, 0\)'), (lambda: nn.Linear(3, 3, dtype=torch.complex64), 'complex64'),
    (lambda: with_weight(nn.Parameter(torch.eye(3).to_sparse())), 'sparse'), (lambda: with_weight(nn.Parameter(torch.ones(3, 3).char(), requires_grad=False)), 'int8')])
def test_one_strange_layer_is_reported_and_stops_nothing(last, words):
    model = nn.Sequential(nn.Linear(4, 3), last(), nn.Linear(3, 3))
    report = {r['parameter']: r for r in init_(model)}
    assert re.search(words, report['1.weight']['why']) and report['0.weight']['scheme'] == report['2.weight']['scheme'] == 'kaiming_normal'

@pytest.mark.parametrize('exclude', ['1', nn.LayerNorm, lambda m: isinstance(m, nn.Linear) and m.out_features == 3])
def test_excluded_modules_are_left_alone(exclude):
    model = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 3), nn.LayerNorm(3))
    before = [p.detach().clone() for p in model.parameters()]
    report = init_(model, exclude=exclude)
    for r, p, old in zip(report, model.parameters(), before): assert torch.equal(p, old) == bool(r['why'])
    assert any(r['why'] == 'excluded' for r in report)
    with pytest.raises(InputError, match="exclude names '7'"): init_(model, exclude='7')

def shared_parameter(m): m['head'].weight = nn.Parameter(m['embed'].weight)
def shared_data(m): m['head'].weight.data = m['embed'].weight.data
def transposed(m): m['head'] = nn.Linear(50, 8, bias=False); m['head'].weight = nn.Parameter(m['embed'].weight.T)
def part(m): m['head'] = nn.Linear(8, 20, bias=False); m['head'].weight = nn.Parameter(m['embed'].weight[10:30])
def strided(m): m['head'] = nn.Linear(4, 50, bias=False); m['head'].weight = nn.Parameter(m['embed'].weight[:, ::2])

@pytest.mark.parametrize('tie', [shared_parameter, shared_data, transposed, part, strided])
def test_what_is_left_alone_is_not_changed_through_a_tie(tie):
    m = nn.ModuleDict(dict(embed=nn.Embedding(50, 8), head=nn.Linear(8, 50, bias=False), free=nn.Linear(3, 3)))
    tie(m)
    before = m['embed'].weight.detach().clone()
    report = {r['parameter']: r['why'] for r in init_(m)}
    assert torch.equal(m['embed'].weight, before) and report == {'embed.weight': 'embedding', 'head.weight': 'tied to embed.weight', 'free.weight': None, 'free.bias': None}

def test_a_frozen_twin_stays():
    m = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    m[1].weight = nn.Parameter(m[0].weight.detach(), requires_grad=False)
    before = m[0].weight.detach().clone()
    assert [r['why'] for r in init_(m)] == ['frozen', 'tied to 0.weight'] and torch.equal(m[0].weight, before)

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
        for dtype in (torch.float64, torch.bfloat16): torch.set_default_dtype(dtype); assert gain('gelu') == pytest.approx(expected, rel=1e-9)
    finally: torch.set_default_dtype(default)

def test_the_second_argument_of_gain():
    assert gain('leaky_relu', .2) == pytest.approx(theirs.calculate_gain('leaky_relu', .2)) and gain('relu', True) == gain('relu', backward=True)
    assert gain('leaky_relu') == pytest.approx(theirs.calculate_gain('leaky_relu')) and gain('swish') == gain('silu')
    assert gain('sin') == pytest.approx(math.sqrt(2/(1 - math.exp(-2))))
    with pytest.raises(InputError, match="only 'leaky_relu'"): gain('elu', .2)

def test_a_model_that_is_all_meta_is_refused():
    with pytest.raises(InputError, match='0.weight and all other .*meta'): init_(nn.Sequential(meta(), meta()))

@pytest.mark.parametrize('generator', [False, True])
@pytest.mark.parametrize('last, kw, error', [(overlapping, {}, (RuntimeError, InputError)), (lambda: nn.Linear(3, 3).half(), dict(bias=1e6), (RuntimeError, InputError)), (nn.ReLU, dict(nonlinearity=stop), KeyboardInterrupt), (nn.ReLU, dict(nonlinearity='cross_entropy'), (TypeError, InputError))])
def test_what_breaks_changes_nothing(last, kw, error, generator):
    unchanged(lambda m, g: init_(m, **kw, generator=g if generator else None), error, None, last())

@pytest.mark.parametrize('error', [KeyboardInterrupt, RuntimeError, MemoryError])
@pytest.mark.parametrize('where, after', [('orthogonal_', 0), ('orthogonal_', 2), ('_draw_', 0), ('_draw_', 3)])
@pytest.mark.parametrize('generator', [False, True])
def test_an_error_amid_the_drawing(monkeypatch, error, where, after, generator):
    real, calls = getattr(ours, where), itertools.count()
    def planted(*args, **kw):
        result = real(*args, **kw)                        # what it takes from the random state is taken
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
        if isinstance(self, nn.Parameter) and next(calls) == after: raise KeyboardInterrupt('planted')
        return result
    monkeypatch.setattr(torch.Tensor, 'copy_', planted)
    unchanged(lambda m, g: init_(m), KeyboardInterrupt, 'planted')

def test_parameters_that_share_memory_are_restored():
    "Two Parameters, one storage: putting back in the wrong order would leave the new numbers."
    one = nn.Linear(3, 3)
    two = with_weight(nn.Parameter(one.weight.data.T))
    unchanged(lambda m, g: init_(m), (RuntimeError, InputError), None, one, two, overlapping())

@pytest.mark.parametrize('model', [None, 3, 'model', nn.Linear, torch.ones(2, 2), [nn.Linear(2, 2)]])
def test_not_a_model(model):
    state = torch.get_rng_state()
    with pytest.raises(InputError, match='model'): init_(model)
    assert torch.equal(torch.get_rng_state(), state)
