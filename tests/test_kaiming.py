"Kaiming: PyTorch's bits, exact distributions, fans that are counted, moments that are integrated."
import copy, inspect, itertools, math, warnings

import pytest, torch
import torch.nn.functional as F
from hypothesis import example, given, settings, strategies as st
from torch import nn
from torch.nn import init as theirs

import initnotes
import initnotes.kaiming as ours
from initnotes.core import InputError, se_std
from initnotes.kaiming import (Fans, calculate_gain, fans, gain, lecun_normal_, lecun_uniform_,
                               moments, variance_scaling_)

HALVES = torch.float16, torch.bfloat16
DTYPES = torch.float32, torch.float64, *HALVES
# std of a normal cut at ±2
CUT = math.sqrt(1 - 4*math.exp(-2)/math.sqrt(2*math.pi)/math.erf(math.sqrt(2)))
quick = settings(max_examples=150, deadline=None)
thorough = settings(max_examples=40, deadline=None)

SEED = 20

def Phi(x): return math.erfc(-x/math.sqrt(2))/2
def phi(x): return math.exp(-x*x/2)/math.sqrt(2*math.pi)

# ---- drop-ins: torch.nn.init, bit for bit ----------------------------------------------------

LAYOUTS = {'contiguous': lambda s, **kw: torch.zeros(s, **kw),
           'transposed': lambda s, **kw: torch.zeros(s[::-1],
                                                     **kw).permute(tuple(range(len(s)))[::-1]),
           'channels last': lambda s, **kw: torch.zeros(s[0], *s[2:], s[1], **kw).movedim(-1, 1)
           if len(s) > 1 else torch.zeros(s, **kw),
           'every other': lambda s, **kw: torch.zeros(*s, 2, **kw)[..., 0]}
weights = st.builds(lambda shape, dtype, layout: LAYOUTS[layout](shape, dtype=dtype),
                    st.one_of(st.lists(st.integers(1, 6), min_size=2, max_size=5),
                              st.lists(st.integers(0, 6), max_size=5),
                              st.sampled_from([[40, 60], [9, 8, 3, 3]])).map(tuple),
                    st.sampled_from([*DTYPES, *DTYPES, torch.int64]),
                    st.sampled_from(list(LAYOUTS)))
numbers = st.one_of(st.floats(-3, 3), st.integers(-2, 2),
                    st.sampled_from([.01, 0, math.nan, math.inf, -1., 1e200, True, None, '1', [1]]))
names = st.sampled_from(['linear', *(f'conv{t}{d}d' for t in ('', '_transpose') for d in (1, 2, 3)),
                         'sigmoid', 'tanh', 'relu', 'leaky_relu', 'leaky_relu', 'selu', 'gelu',
                         'RELU', '', None, ('relu',), ['relu']])
modes = st.sampled_from(['fan_in', 'fan_in', 'fan_out', 'fan_out', 'FAN_OUT', 'fan_avg', 'fan', '',
                         None])

def outcome(f, *args, **kw):
    "What came back, or the error; and the warnings, with the file they blame."
    with warnings.catch_warnings(record=True) as w:
        warnings.simplefilter('always')
        try: result = f(*args, **kw)
        except Exception as e: result = e
    return result, [(x.category, str(x.message), x.filename) for x in w]

def as_theirs(name, w, kw, seed, own):
    "Of both the same bits in the same tensor, or a like error; and the same random state."
    one, two, results, states = w, copy.deepcopy(w), [], []
    for module, x in ((ours, one), (theirs, two)):
        torch.manual_seed(seed)
        g = torch.Generator().manual_seed(seed + 1) if own else None
        results.append(outcome(getattr(module, name), x, **kw, generator=g))
        states.append(torch.cat([torch.get_rng_state(), g.get_state()]) if own
                      else torch.get_rng_state())
    (a, said), (b, says) = results
    assert torch.equal(*states) and said == says
    if isinstance(b, Exception):
        assert isinstance(a, type(b)) and str(a)
        assert not isinstance(b, ValueError) or isinstance(a, InputError)
    else: assert a is one and b is two
    assert one.stride() == two.stride() and one.dtype == two.dtype and torch.equal(one, two)

@settings(quick, max_examples=250)
@given(w=weights, a=numbers, mode=modes, f=names, kind=st.sampled_from(['uniform', 'normal']),
       seed=st.integers(0, 2**40), own=st.booleans())
def test_kaiming_is_theirs(w, a, mode, f, kind, seed, own):
    as_theirs(f'kaiming_{kind}_', w, dict(a=a, mode=mode, nonlinearity=f), seed, own)

@quick
@given(w=weights, g=numbers, kind=st.sampled_from(['uniform', 'normal']),
       seed=st.integers(0, 2**40), own=st.booleans())
def test_xavier_is_theirs(w, g, kind, seed, own):
    as_theirs(f'xavier_{kind}_', w, dict(gain=g), seed, own)

@quick
@given(f=names, param=numbers)
def test_calculate_gain_is_theirs(f, param):
    (a, said), (b, says) = (outcome(g.calculate_gain, f, param) for g in (ours, theirs))
    assert said == says
    if isinstance(b, Exception): assert isinstance(a, type(b)) and str(a)
    else: assert type(a) is type(b) and (a == b or math.isnan(a) and math.isnan(b))

@pytest.mark.parametrize('name', ['orthogonal_', 'trunc_normal_'])
def test_what_is_handed_on_is_pytorchs_own(name):
    "The same object, under the same name; and the module's pages do not list it as ours."
    assert getattr(initnotes, name) is getattr(ours, name) is getattr(theirs, name)
    assert getattr(theirs, name).__module__ == 'torch.nn.init' and name not in ours.__all__

DROP_INS = ['kaiming_uniform_', 'kaiming_normal_', 'xavier_uniform_', 'xavier_normal_',
            'calculate_gain']

@pytest.mark.parametrize('name', DROP_INS)
def test_signatures_are_theirs(name):
    "A drop-in takes the same calls, by keyword too."
    one, two = ([(p.name, p.default, p.kind)
                 for p in inspect.signature(getattr(m, name)).parameters.values()]
                 for m in (ours, theirs))
    assert one == two

@pytest.mark.parametrize('f', [*(getattr(ours, n) for n in DROP_INS[:4]), variance_scaling_,
                               lecun_normal_, lecun_uniform_])
def test_parameters_and_graphs(f):
    p = nn.Parameter(torch.zeros(4, 5))
    assert f(p) is p
    assert p.is_leaf
    assert p.requires_grad
    assert p.grad_fn is None
    assert p.grad is None
    assert p.detach().all()

@pytest.mark.parametrize('name', DROP_INS[:2])
def test_nothing_to_draw(name):
    for shape in ((0, 3), (3, 0), (0,), (2, 3, 0)):
        w, state = torch.empty(shape), torch.get_rng_state()
        with pytest.warns(UserWarning, match='zero-element') as said:
            assert getattr(ours, name)(w) is w
        # blames the caller
        assert torch.equal(torch.get_rng_state(), state) and said[0].filename == __file__

LSTM, UNPACKED = nn.LSTM(2, 2), nn.MultiheadAttention(4, 2, kdim=3)

@pytest.mark.parametrize('call', [lambda w: ours.kaiming_normal_(w, mode='fan'),
                                  lambda w: ours.kaiming_uniform_(w, nonlinearity='gelu'),
                                  lambda w: ours.kaiming_normal_(w, a='1'),
                                  lambda w: ours.kaiming_normal_(w[0]),
                                  lambda w: ours.kaiming_normal_(w, a=True),
                                  lambda w: ours.xavier_normal_(w[0]),
                                  lambda w: ours.xavier_uniform_(w[0]), lambda w: fans(w[0]),
                                  lambda w: fans(3), lambda w: fans(nn.ReLU()),
                                  lambda w: fans(LSTM), lambda w: fans(nn.LazyLinear(3)),
                                  lambda w: fans(UNPACKED),
                                  lambda w: variance_scaling_(w, mode='fan'),
                                  lambda w: variance_scaling_(w, distribution='cauchy'),
                                  lambda w: variance_scaling_(w[0]),
                                  lambda w: variance_scaling_(w, 0),
                                  lambda w: variance_scaling_(w, -1.),
                                  lambda w: variance_scaling_(w, math.nan),
                                  lambda w: variance_scaling_(w, math.inf),
                                  lambda w: variance_scaling_(w.long()),
                                  lambda w: variance_scaling_(w.to('meta')),
                                  lambda w: variance_scaling_(w[:0]),
                                  lambda w: variance_scaling_(w, mode=['fan_in']),
                                  lambda w: variance_scaling_(w, distribution=None)])
def test_refusals(call):
    w, state = torch.ones(3, 3), torch.get_rng_state()
    with pytest.raises(InputError, match='.{20}'): call(w)
    assert w.eq(1).all() and torch.equal(torch.get_rng_state(), state)

# ---- variance_scaling_: the distribution itself ----------------------------------------------

MASS = math.erf(math.sqrt(2))
KURTOSIS = {'normal': 3., 'uniform': 1.8, 'truncated_normal': (3 - 2*(8 + 6)*phi(2)/MASS)/(1
    - 4*phi(2)/MASS)**2}
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
@pytest.mark.slow
def test_the_distribution_is_exact(mode, distribution, dtype):
    stats = pytest.importorskip('scipy.stats')
    w, std = scaled(mode, distribution, dtype, 2., 9)
    exact = {'normal': stats.norm(0, std), 'uniform': stats.uniform(-math.sqrt(3)*std,
        2*math.sqrt(3)*std), 'truncated_normal': stats.truncnorm(-2, 2, 0, std/CUT)}[distribution]
    assert exact.std() == pytest.approx(std, rel=1e-9)
    assert exact.stats('k') + 3 == pytest.approx(KURTOSIS[distribution], rel=1e-6)
    assert stats.kstest(w.numpy(), exact.cdf).pvalue > 1e-6

@pytest.mark.parametrize('f, distribution', [(lecun_normal_, 'truncated_normal'),
                                             (lecun_uniform_, 'uniform')])
@pytest.mark.parametrize('dtype', DTYPES)
def test_lecun_is_variance_scaling(f, distribution, dtype):
    a, b = torch.empty(2, 30, 20, 3, dtype=dtype)
    torch.manual_seed(3); f(a)
    torch.manual_seed(3); variance_scaling_(b, 1., 'fan_in', distribution)
    assert torch.equal(a, b)
    state = torch.get_rng_state()
    f(b, torch.Generator().manual_seed(3))
    assert torch.equal(a, b) and torch.equal(torch.get_rng_state(), state)

# ---- fans, counted -----------------------------------------------------------------------------

def inside(x, margin, period):
    "For each channel the mean over one stride period in every direction, `margin` from the edge."
    for d, (m, s) in enumerate(zip(margin, period)): x = x.narrow(d + 2, m, s)
    return x.flatten(2).mean(2)

@settings(quick, max_examples=80)
@given(d=st.integers(1, 3), transposed=st.booleans(), groups=st.integers(1, 3),
       n_in=st.integers(1, 3), n_out=st.integers(1, 3), data=st.data())
def test_fans_of_convolutions_are_counted(d, transposed, groups, n_in, n_out, data):
    """With a kernel of ones, an output is the number of its products, and an input's gradient that
    of the outputs it takes part in."""
    k, s, dilation = (tuple(data.draw(st.lists(st.integers(1, n), min_size=d, max_size=d)))
                      for n in ((5, 4, 3) if d < 3 else (3, 3, 2)))
    layer = getattr(nn, f'Conv{"Transpose"*transposed}{d}d')(n_in*groups, n_out*groups, k, stride=s,
        dilation=dilation, groups=groups, bias=False).double()
    nn.init.ones_(layer.weight)
    margin = [q*(n - 1) + t for q, n, t in zip(dilation, k, s)]
    margin = [-(-m//t)*t for m, t in zip(margin, s)]
    x = torch.ones(1, n_in*groups, *[2*m + 2*t for m, t in zip(margin, s)], dtype=torch.float64,
                   requires_grad=True)
    y = layer(x)
    y.sum().backward()
    one = [1]*d
    counted = inside(y, margin if transposed else [m//t for m, t in zip(margin, s)], s if transposed
                     else one), inside(x.grad, margin, one if transposed else s)
    for n, fan in zip(counted, fans(layer)):
        assert torch.allclose(n, torch.full_like(n, fan), rtol=1e-12)
        assert isinstance(fan, int) or fan != int(fan)

@quick
@given(a=st.integers(1, 9), b=st.integers(1, 9), c=st.integers(1, 9))
def test_fans_of_other_layers_are_counted(a, b, c):
    def count(layer, f, *shapes):
        for p in layer.parameters(): nn.init.ones_(p)
        xs = [torch.ones(s, requires_grad=True) for s in shapes]
        y = f(*xs); y.sum().backward()
        return y[0, 0].item(), xs[0].grad[0, 0].item()
    linear, bilinear, embedding, attention = nn.Linear(a, b, bias=False), nn.Bilinear(a, b, c,
        bias=False), nn.Embedding(a, b), nn.MultiheadAttention(a, 1)
    assert fans(linear) == count(linear, linear, (1, a)) == (a, b)
    assert fans(bilinear) == count(bilinear, bilinear, (1, a), (1, b)) == (a*b, c*b)
    # the one hot row
    counted = count(embedding, lambda x: (x[:, :1]*embedding(torch.tensor([0]))), (1, a))
    assert fans(embedding) == counted == (1, b)
    assert fans(attention) == count(attention, lambda x: F.linear(x, attention.in_proj_weight[:a]),
                                    (1, a)) == (a, a)
    assert isinstance(fans(linear), Fans)

@quick
@given(shape=st.lists(st.integers(0, 7), min_size=2, max_size=5))
def test_fans_of_tensors_are_theirs(shape):
    assert fans(torch.empty(shape)) == theirs._calculate_fan_in_and_fan_out(torch.empty(shape))

# ---- moments and gain --------------------------------------------------------------------------

def relu_moments(m, s):
    "E[X⁺] and E[X⁺²] of X with mean m and std s."
    if s == 0: return max(m, 0), max(m, 0)**2
    return m*Phi(m/s) + s*phi(m/s), (m*m + s*s)*Phi(m/s) + m*s*phi(m/s)

def is_near(f, mean, std, m1, m2, tol=1e-6):
    got, m2 = moments(f, mean, std), max(m2, 0)                # the formulas may round below 0
    assert got == pytest.approx((m1, math.sqrt(max(m2 - m1*m1, 0)), math.sqrt(m2)), rel=tol,
                                abs=tol)

means, stds, cuts = st.floats(-4, 4), st.floats(.05, 8), st.floats(-6, 6)

@thorough
# just beside a round number, where a rule's points may all miss it
@example(0., 1., .5003)
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
    for f, forward, backward in ((lambda z: z, 1, 1), (F.relu, 2**.5, 2**.5),
                                 (nn.LeakyReLU(.1), calculate_gain('leaky_relu', .1),
                                  calculate_gain('leaky_relu', .1)),
                                  (lambda z: z.relu()**2, (2/3)**.5, .5**.5),
                                 (torch.abs, 1, 1),
                                 (torch.sin, (2/(1 - math.exp(-2)))**.5,
                                  (2/(1 + math.exp(-2)))**.5),
                                  (lambda z: (z/2).exp(), math.exp(-1/2)**.5,
                                   2*math.exp(-1/2)**.5)):
        assert gain(f) == pytest.approx(forward, rel=1e-9)
        assert gain(f, backward=True) == pytest.approx(backward, rel=1e-9)
    assert gain(torch.sign) == pytest.approx(1, rel=1e-9)
    assert gain('relu') == gain(F.relu)
    assert gain('linear') == pytest.approx(1)

def sigmoid(x): return 1/(1 + math.exp(-x)) if x > 0 else math.exp(x)/(1 + math.exp(x))
def softplus(x): return max(x, 0) + math.log1p(math.exp(-abs(x)))
A, L = 1.6732632423543772, 1.0507009873554805               # SELU's two
SMOOTH = {   # PyTorch's function or module, the same by its formula, and its derivative
    'tanh':        (torch.tanh, math.tanh, lambda x: 1 - math.tanh(x)**2),
    'gelu':        (F.gelu, lambda x: x*Phi(x), lambda x: Phi(x) + x*phi(x)),
    'silu':        (F.silu, lambda x: x*sigmoid(x), lambda x: sigmoid(x)*(1 + x*(1 - sigmoid(x)))),
    'selu':        (F.selu, lambda x: L*(x if x > 0 else A*math.expm1(x)),
                    lambda x: L*(1 if x > 0 else A*math.exp(x))),
    'mish':        (F.mish, lambda x: x*math.tanh(softplus(x)), lambda x: math.tanh(softplus(x))
                    + x*sigmoid(x)*(1 - math.tanh(softplus(x))**2)),
    'elu':         (F.elu, lambda x: x if x > 0 else math.expm1(x), lambda x: 1 if x > 0
                    else math.exp(x)),
    'softplus':    (F.softplus, softplus, sigmoid),
    'sigmoid':     (nn.Sigmoid(), sigmoid, lambda x: sigmoid(x)*(1 - sigmoid(x))),
    'PReLU':       (nn.PReLU(init=.25), lambda x: x if x > 0 else .25*x, lambda x: 1 if x > 0
                    else .25),
    'half PReLU':  (nn.PReLU(init=.25).half(), lambda x: x if x > 0 else .25*x, lambda x: 1 if x > 0
                    else .25),
    'RReLU':       (nn.RReLU(), lambda x: x if x > 0 else 11/48*x, lambda x: 1 if x > 0 else 11/48),
    'Hardswish':   (nn.Hardswish(), lambda x: x*min(max(x + 3, 0), 6)/6, lambda x: 0 if x < -3
                    else 1 if x > 3 else (2*x + 3)/6),
    'half GELU':   (nn.GELU().half(), lambda x: x*Phi(x), lambda x: Phi(x) + x*phi(x)),
    'ELU in place': (nn.ELU(.5, inplace=True), lambda x: x if x > 0 else .5*math.expm1(x),
                     lambda x: 1 if x > 0 else .5*math.exp(x)),
    'ReLU in place': (nn.ReLU(inplace=True), lambda x: max(x, 0), lambda x: x > 0),
    'two layers':  (nn.Sequential(nn.Tanh(), nn.Softplus()).bfloat16(),
                    lambda x: softplus(math.tanh(x)),
                    lambda x: sigmoid(math.tanh(x))*(1 - math.tanh(x)**2))}

def expectation(f, mean=0., std=1.):
    "E[f(mean + std·Z)], by QUADPACK, cut where the functions above have their kinks."
    quad = pytest.importorskip('scipy.integrate').quad
    at = sorted({-13., 13., *(z for c in (-3, 0, 3) if abs(z := (c - mean)/std) < 13)})
    return math.fsum(quad(lambda z: f(mean + std*z)*phi(z), a, b, epsabs=1e-13, epsrel=1e-12,
                          limit=200)[0] for a, b in zip(at, at[1:]))

@pytest.mark.parametrize('name', SMOOTH)
def test_moments_are_those_of_quadpack(name):
    f, value, slope = SMOOTH[name]
    for mean, std in ((0, 1), (.7, 2.5), (-2, .3)):
        is_near(f, mean, std, expectation(value, mean, std),
                expectation(lambda x: value(x)**2, mean, std), 1e-8)
    assert gain(f) == pytest.approx(expectation(lambda x: value(x)**2)**-.5, rel=1e-8)

@pytest.mark.parametrize('name', SMOOTH)
def test_backward_gain_is_that_of_quadpack(name):
    f, _, slope = SMOOTH[name]
    assert gain(f, backward=True) == pytest.approx(expectation(lambda x: slope(x)**2)**-.5,
                                                   rel=1e-7)

@thorough
@example(-6., 1, .2971, lambda z: z > 0, False)
@given(log_c=st.floats(-9, 9), sign=st.sampled_from([-1, 1]), t=st.floats(-2, 2),
       f=st.sampled_from([F.relu, torch.tanh, F.gelu, lambda z: z > 0, F.softplus]),
       backward=st.booleans())
def test_gain_undoes_a_factor(log_c, sign, t, f, backward):
    "gain(c·f) = gain(f)/|c|, wherever the kink or jump is; and a mirror image has the same gain."
    if backward and f(torch.ones(1)).dtype == torch.bool: backward = False
    c, shifted = sign*10**log_c, lambda z: f(z - t)
    assert gain(lambda z: c*shifted(z), backward) == pytest.approx(gain(shifted, backward)/abs(c),
        rel=1e-6)
    assert gain(lambda z: shifted(-z), backward) == pytest.approx(gain(shifted, backward), rel=1e-6)

@pytest.mark.parametrize('call, words', [(lambda: gain(torch.log), 'nan'),
                                         (lambda: gain(lambda z: (z > 2)*math.inf), 'nan|inf'),
                                         (lambda: gain(lambda z: torch.where(z > 1, math.inf, z)),
                                          'inf'), (lambda: gain(lambda z: (20*z).exp()), 'inf'),
                                         (lambda: gain(lambda z: z.sum()), 'each element'),
                                         (lambda: gain(lambda z: z[:-1]), 'each element'),
                                         (lambda: gain(lambda z: 3.), 'float'),
                                         (lambda: gain(lambda z: None), 'NoneType'),
                                         (lambda: gain(nn.GLU()), 'each element'),
                                         (lambda: gain(torch.zeros_like), '0 everywhere'),
                                         (lambda: gain(torch.sign, backward=True), 'slope'),
                                         (lambda: gain(torch.ones_like, backward=True), 'slope'),
                                         (lambda: gain('rellu'), "'rellu'"),
                                         (lambda: gain(F.softmax), 'each element'),
                                         (lambda: gain(lambda z: z - z.mean()), 'each element'),
                                         (lambda: gain(lambda z: z.cumsum(0)), 'each element'),
                                         (lambda: gain(nn.LayerNorm(16)), 'each element'),
                                         (lambda: gain(nn.LayerNorm(8)), 'each element'),
                                         (lambda: gain(nn.RMSNorm(5)), 'each element'),
                                          (lambda: gain(lambda z: z.abs()**-.6), 'settle|inf'),
                                          (lambda: gain(None), 'None'), (lambda: gain(2.), '2.0'),
                                         (lambda: gain(nn.ReLU), 'ReLU'),
                                         (lambda: moments(F.relu, math.nan), 'nan'),
                                         (lambda: moments(F.relu, 0, math.inf), 'inf'),
                                         (lambda: moments(F.relu, 0, -1), '-1')])
def test_gain_refuses(call, words):
    with pytest.raises(InputError, match=words): call()

def test_gain_leaves_the_activation_alone():
    m = nn.Sequential(nn.PReLU(), nn.Dropout(.5), nn.RReLU()).half().train()
    m[0].weight.grad = torch.ones_like(m[0].weight)
    random, before = torch.get_rng_state(), copy.deepcopy(m.state_dict())
    with torch.no_grad(): gain(m, backward=True)
    gain(m); moments(m, 1., 2.); gain(m, backward=True)
    assert m.training
    assert m[2].training
    assert m[0].weight.dtype == torch.float16
    assert m[0].weight.grad.eq(1).all()
    assert m[0].weight.requires_grad
    assert torch.equal(m[0].weight, before['0.weight'])
    assert torch.equal(torch.get_rng_state(), random)

@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gain_in_every_grad_mode(mode):
    with mode():
        assert gain(torch.tanh) == pytest.approx(1.5925374, rel=1e-6)
        assert gain(F.relu, backward=True) == pytest.approx(2**.5, rel=1e-9)

def test_the_second_argument_of_gain():
    assert gain('leaky_relu', .2) == pytest.approx(theirs.calculate_gain('leaky_relu', .2))
    assert gain('relu', True) == gain('relu', backward=True)
    assert gain('leaky_relu') == pytest.approx(theirs.calculate_gain('leaky_relu'))
    assert gain('swish') == gain('silu')
    assert gain('sin') == pytest.approx(math.sqrt(2/(1 - math.exp(-2))))
    with pytest.raises(InputError, match="only 'leaky_relu'"): gain('elu', .2)

def test_the_name_of_prelu():
    assert gain('prelu') == pytest.approx(gain(nn.PReLU())) == gain('prelu', .25)

# ---- variance_scaling_: JAX's axes, and layers -------------------------------------------------

AXES = [   # shape, axes, and the two fans, by hand
    ((256, 512), dict(in_axis=-2), (256, 512)),
    ((256, 512), dict(in_axis=1, out_axis=0), (512, 256)),
    ((8, 256, 512), dict(batch_axis=0), (256, 512)),
    ((8, 256, 512), dict(in_axis=1), (8*256, 8*512)),
    ((3, 3, 16, 32), dict(out_axis=-1), (144, 288)),
    ((3, 16, 32, 5), dict(in_axis=1, out_axis=2, batch_axis=(0, 3)), (16, 32)),
    ((4, 8, 16, 64), dict(in_axis=(0, 1), out_axis=(2, 3)), (32, 1024)),
    ((64,), dict(in_axis=0, out_axis=()), (64, 1)),
    ((4, 6, 10), dict(in_axis=-1, out_axis=-2, batch_axis=[-3]), (10, 6))]

@pytest.mark.parametrize('shape, axes, fans_', AXES)
@pytest.mark.parametrize('mode', ['fan_in', 'fan_out', 'fan_avg', 'fan_geo_avg'])
@pytest.mark.parametrize('distribution', KURTOSIS)
def test_axes_count_as_in_jax(shape, axes, fans_, mode, distribution):
    "The same draws, scaled by the fan that the axes say."
    a, b = fans_
    fan = dict(fan_in=a, fan_out=b, fan_avg=(a + b)/2, fan_geo_avg=math.sqrt(a*b))[mode]
    w, unit = torch.empty(shape), torch.empty(1, math.prod(shape), 1)
    torch.manual_seed(3); assert variance_scaling_(w, 2., mode, distribution, **axes) is w
    torch.manual_seed(3); variance_scaling_(unit, 2., 'fan_out', distribution)
    assert torch.allclose(w.flatten(), unit.flatten()/math.sqrt(fan), rtol=1e-5)

@pytest.mark.parametrize('shape, axes, fans_', AXES)
@pytest.mark.parametrize('mode', ['fan_in', 'fan_out', 'fan_avg'])
def test_the_std_is_that_of_jax(shape, axes, fans_, mode):
    jax = pytest.importorskip('jax')
    f = jax.nn.initializers.variance_scaling(2., mode, 'uniform',
                                             **(dict(in_axis=-2, out_axis=-1) | axes))
    theirs_, w = f(jax.random.key(0), shape), variance_scaling_(torch.empty(shape), 2., mode,
        'uniform', **axes)
    bound = math.sqrt(6/dict(zip(('fan_in', 'fan_out', 'fan_avg'), (*fans_, sum(fans_)/2)))[mode])
    for x in (float(abs(theirs_).max()), w.abs().max().item()):
        assert .8*bound < x <= bound*(1 + 1e-6)

@pytest.mark.parametrize('layer, name', [
    (nn.Linear(20, 30), 'weight'), (nn.Conv2d(8, 16, 3, stride=2, groups=4), 'weight'),
    (nn.ConvTranspose1d(8, 6, 4, stride=2), 'weight'),
    (nn.Embedding(30, 8), 'weight'), (nn.MultiheadAttention(8, 2), 'in_proj_weight'),
    (nn.Bilinear(3, 4, 5), 'weight')])
@pytest.mark.parametrize('mode', ['fan_in', 'fan_out', 'fan_avg'])
def test_a_layer_is_scaled_by_its_own_fans(layer, name, mode):
    w, f = getattr(layer, name), fans(layer)
    bias = None if getattr(layer, 'bias', None) is None else layer.bias.detach().clone()
    fan = dict(fan_in=f.fan_in, fan_out=f.fan_out, fan_avg=sum(f)/2)[mode]
    assert variance_scaling_(layer, 3., mode, 'uniform') is w
    assert .85 < w.abs().max().item()/math.sqrt(9/fan) <= 1 + 1e-6
    assert bias is None or torch.equal(bias, layer.bias)

def test_lecun_of_a_layer():
    layer = nn.ConvTranspose2d(16, 16, 4, stride=2)
    assert lecun_normal_(layer) is layer.weight
    assert abs(layer.weight.std() - 1/8) < 5*se_std(1/8, 4096)
    assert lecun_uniform_(layer).abs().max() <= math.sqrt(3)/8

@pytest.mark.parametrize('call, words', [
    (lambda: variance_scaling_(nn.ReLU()), 'ReLU'),
    (lambda: variance_scaling_(nn.LSTM(2, 2)), 'LSTM'),
    (lambda: variance_scaling_(nn.LazyLinear(2)), 'run the model once'),
    (lambda: variance_scaling_(nn.Linear(2, 2, device='meta')), 'meta'),
    (lambda: variance_scaling_(nn.Linear(2, 2), batch_axis=0), 'axes and a layer'),
    (lambda: variance_scaling_(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))),
     'parametrized'),
    (lambda: variance_scaling_(torch.ones(2, 2), in_axis=0, out_axis=-2), 'share a dimension'),
    (lambda: variance_scaling_(torch.ones(2, 2, 2), batch_axis=-1), 'share a dimension'),
    (lambda: variance_scaling_(torch.ones(2, 2), in_axis=2), 'not one of'),
    (lambda: variance_scaling_(torch.ones(2, 2), batch_axis='0'), 'not one of')])
def test_layers_and_axes_that_cannot_be_meant(call, words):
    with pytest.raises(InputError, match=words): call()

# ---- activations with parameters per channel ---------------------------------------------------

class Slopes(nn.Module):
    "A slope for each channel, of any shape."
    def __init__(self, slopes, shape):
        super().__init__(); self.a = nn.Parameter(torch.tensor(slopes).view(shape))
    def forward(self, x): return torch.where(x > 0, x, x*self.a)

@pytest.mark.parametrize('slopes', [[.25]*4, [0., 1., -.5, .3]])
@pytest.mark.parametrize('make', [lambda s: nn.PReLU(len(s)), lambda s: Slopes(s, (-1,)),
                                  lambda s: Slopes(s, (1, -1, 1, 1)),
                                  lambda s: nn.Sequential(nn.PReLU(len(s)), nn.Identity())])
def test_channels_are_averaged(make, slopes):
    f = make(slopes)
    with torch.no_grad():
        next(f.parameters()).copy_(torch.tensor(slopes).view_as(next(f.parameters())))
    mean = sum(1 - a for a in slopes)/len(slopes)*phi(0)
    ms = sum((1 + a*a)/2 for a in slopes)/len(slopes)
    assert moments(f) == pytest.approx((mean, math.sqrt(ms - mean**2), math.sqrt(ms)), rel=1e-6)
    assert gain(f) == pytest.approx(ms**-.5, rel=1e-9) == gain(f, backward=True)

def test_old_places():
    import initnotes.families, initnotes.gains, initnotes.init
    assert ours.init_ is initnotes.init.init_ and ours.InitReport is initnotes.init.InitReport
    for name in ('variance_scaling_', 'lecun_normal_', 'lecun_uniform_', 'xavier_normal_',
                 'xavier_uniform_'):
        assert getattr(ours, name) is getattr(initnotes.families, name)
    for name in ('moments', 'calculate_gain'):
        assert getattr(ours, name) is getattr(initnotes.gains, name)
    with pytest.raises(AttributeError, match='no attribute'): ours.never_there
