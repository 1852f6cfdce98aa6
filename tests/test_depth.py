"""The maps of depth: against closed forms, double integrals, sampled layers; their fixed points
attract, and the edge of chaos is where they say."""
import math

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from initnotes.depth import (chi, correlation_length, correlation_map, edge_of_chaos, fixed_point,
                             length_map)
from initnotes.gains import _activation, moments
from initnotes.pairs import Pairs, _edge_at, edge_variances
from initnotes.report import InputError

SEED = 30
quick = settings(max_examples=12, deadline=None)
thorough = settings(max_examples=20, deadline=None)

def arc(c): return (math.sqrt(1 - c*c) + c*(math.pi - math.acos(c)))/(2*math.pi)
def leaky(a): return lambda z: F.leaky_relu(z, a)
def step(z): return (z > .7).to(z.dtype)
SMOOTH = {'tanh': torch.tanh, 'gelu': F.gelu, 'silu': F.silu, 'erf': torch.erf, 'sin': torch.sin,
          'softplus': F.softplus, 'sigmoid': torch.sigmoid, 'mish': F.mish}
KINKED = {'relu': F.relu, 'leaky': leaky(.2), 'hardtanh': F.hardtanh, 'elu': F.elu, 'selu': F.selu,
          'abs': torch.abs, 'hardswish': F.hardswish, 'relu at 1': lambda z: F.relu(z - 1)}
JUMPS = {'sign': torch.sign, 'step': step, 'hardshrink': F.hardshrink}
ANY = SMOOTH | KINKED | JUMPS
correlations = st.one_of(st.floats(-1, 1), st.sampled_from([-1., 0., 1., .999, .9999999]))
lengths = st.floats(-3, 2.5).map(lambda x: 10**x)
variances = st.floats(.05, 6.)

# ---- the average over two Gaussians -----------------------------------------------------------

@pytest.mark.parametrize('f, exact', [
    (F.relu, lambda c, q: q*arc(c)),
    (torch.abs, lambda c, q: q*(4*arc(c) - c)),
    (leaky(.3), lambda c, q: q*(.49*arc(c) + .3*c)),
    (torch.erf, lambda c, q: 2/math.pi*math.asin(2*q*c/(1 + 2*q))),
    (torch.sin, lambda c, q: math.exp(-q)*math.sinh(q*c)),
    (torch.cos, lambda c, q: math.exp(-q)*math.cosh(q*c)),
    (torch.exp, lambda c, q: math.exp(q*(1 + c))),
    (torch.square, lambda c, q: q*q*(1 + 2*c*c)), (lambda z: z, lambda c, q: q*c)],
    ids='relu abs leaky erf sin cos exp square line'.split())
@quick
@given(correlations, st.floats(-2, 1).map(lambda x: 10**x))
def test_against_closed_forms(f, exact, c, q):
    """Cho and Saul 2009 for ReLU, Williams 1997 for erf; the others are Gaussian characteristic
    functions. To 1e-6 of the mean square, as promised; measured 1e-9."""
    assert abs(Pairs(f, q)(c).item() - exact(c, q)) <= 1e-6*max(exact(1., q), abs(exact(-1., q)))

@pytest.mark.slow
@given(st.floats(-1, 1), lengths)
@settings(max_examples=30, deadline=None)
def test_a_jump_near_one(c, q):
    "The only place where more than 1e-6 is lost, as the workshop says."
    tol = 2e-4 if abs(c) > .999 else 1e-6
    assert abs(Pairs(torch.sign, q)(c).item() - 2/math.pi*math.asin(c)) < tol

@pytest.mark.parametrize('f', ['gelu', 'silu', 'tanh', 'softplus'])
@pytest.mark.parametrize('q, c', [(1., .5), (4., -.8), (.3, .97)])
def test_against_a_double_integral(f, q, c):
    import numpy as np
    z, w = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(180))
    w = w/w.sum()
    g, s = ANY[f], math.sqrt(q)
    u, v = z[:, None]*s, s*(c*z[:, None] + math.sqrt(1 - c*c)*z)
    exact = (w[:, None]*w*g(u)*g(v)).sum().item()
    assert Pairs(f, q)(c).item() == pytest.approx(exact, abs=3e-7)    # the rule's own error

@pytest.mark.slow
@pytest.mark.parametrize('name', ANY)
@thorough
@given(correlations, lengths, st.floats(0, 3), variances)
def test_a_sampled_layer(name, c, q, b, w):
    "Both maps within five standard errors of a million pairs of pre-activations."
    g = torch.Generator().manual_seed(SEED)
    z = torch.randn(2, 2**18, generator=g, dtype=torch.float64)
    u, v = math.sqrt(q)*z[0], math.sqrt(q)*(c*z[0] + math.sqrt(1 - c*c)*z[1])
    f, n = ANY[name], z.shape[1]
    squares, products = w*f(u)**2 + b, w*f(u)*f(v) + b
    length = length_map(f, q, w, b)
    # where only one of 2^18 draws counts, a sample has no standard error
    if (squares - b).count_nonzero() < 1000: return
    assert abs(squares.mean().item() - length) <= 5*squares.std().item()/math.sqrt(n) + 1e-9*length
    off = products.mean().item() - correlation_map(f, c, q, w, b)*length
    assert abs(off) <= 5*products.std().item()/math.sqrt(n) + 1e-6*length

@pytest.mark.parametrize('name', ANY)
def test_the_shape_of_the_map(name):
    "Rises and bends upward between 0 and 1, stays within ±1, and ends at 1."
    c = torch.linspace(0, 1, 101, dtype=torch.float64)
    for q, b in ((.1, 0.), (1., .3), (30., 0.)):
        m = correlation_map(ANY[name], c, q, 1.5, b)
        assert m[-1] == pytest.approx(1, abs=1e-12) and m.abs().max() <= 1
        assert (m.diff() > -1e-12).all() and (m.diff().diff() > -1e-9).all()
    assert correlation_map(ANY[name], -torch.ones(1), 1., 1.5).item() >= -1

@pytest.mark.slow
@pytest.mark.parametrize('name', ANY)
@pytest.mark.parametrize('q', [.3, 1., 20.])
def test_slope_and_gap_of_the_series(name, q):
    pair = Pairs(ANY[name], q)
    for c in (.0, .4, .9):
        d = (pair(c + 1e-5) - pair(c - 1e-5)).item()/2e-5
        assert pair.slope(c) == pytest.approx(d, rel=1e-5, abs=1e-6)
        gap = (pair(1.) - pair(c)).item()
        assert pair.gap(c)*(1 - c) == pytest.approx(gap, rel=1e-9, abs=1e-12)
    # the slope comes from f′, the gap from the series, whose rest (of a kink) is a power law
    if name not in JUMPS:
        tol = 1e-5 if name in SMOOTH else 1e-2
        assert pair.slope(1) == pytest.approx(pair.gap(1 - 1e-10), rel=tol)
    assert (pair.slope(1) == math.inf) == (name in JUMPS)

def test_channels_of_their_own():
    p = nn.PReLU(3)
    p.weight.data = torch.tensor([0., .5, 1.])
    for c in (-.5, 0., .7):
        each = sum(Pairs(leaky(a), 2.)(c) for a in (0., .5, 1.))/3
        assert Pairs(p, 2.)(c).item() == pytest.approx(each.item(), abs=1e-9)

def test_modules_and_names_and_tensors():
    assert length_map(nn.GELU(), 1., 2.) == length_map('gelu', 1., 2.) == length_map(F.gelu, 1., 2.)
    assert length_map('gelu', 3., 2., .1) == 2*moments('gelu', 0, math.sqrt(3)).rms**2 + .1
    many = correlation_map('relu', torch.tensor([[0., .5], [1., -1.]]), 1., 2.)
    assert many.shape == (2, 2) and many[0, 1].item() == correlation_map('relu', .5, 1., 2.)

# ---- fixed points and the distance in layers --------------------------------------------------

def iterated(f, w, b, q=1., layers=400):
    for _ in range(layers): q = length_map(f, q, w, b)
    return q

@pytest.mark.slow
@pytest.mark.parametrize('f', ['tanh', 'erf', 'hardtanh', 'sigmoid', 'relu', 'elu', 'softsign'])
@settings(max_examples=12, deadline=None)
@given(st.floats(.2, 5.), st.floats(.01, 2.))
def test_the_fixed_point_attracts(f, w, b):
    f = ANY.get(f, f)
    try: q, c = fixed_point(f, w, b)
    except InputError as e:
        assert 'grows without end' in str(e) and iterated(f, w, b, layers=60) > 20
        return
    assert length_map(f, q, w, b) == pytest.approx(q, rel=1e-9)
    assert correlation_map(f, c, q, w, b) == pytest.approx(c, abs=1e-7)
    v = q*1.1
    for _ in range(3):
        new = length_map(f, v, w, b)
        assert abs(new - q) < abs(v - q)
        v = new
    x = chi(f, q, w)
    assert (c == 1) if x <= 1 else c < 1
    pair = Pairs(f, q)
    for start in (0., (c + 1)/2):                      # from below, and from between c* and 1
        k = start
        for _ in range(4):
            new = (w*pair(k).item() + b)/(w*pair(1.).item() + b)
            assert abs(new - c) <= abs(k - c) + 1e-12
            k = new

@pytest.mark.parametrize('w, b', [(1., .05), (1.3, .05), (2.5, .05), (4., .05), (1.2, .4)])
def test_the_correlation_length_is_what_the_map_does(w, b):
    q, c = fixed_point('tanh', w, b)
    off, pair = -1e-4, Pairs('tanh', q)
    after = (w*pair(c + off).item() + b)/q - c
    assert correlation_length('tanh', w, b) == pytest.approx(-1/math.log(after/off), rel=2e-3)

def test_lengths_of_the_paper():
    "Schoenholz et al. 2017, tanh with σb² = .05."
    found = [correlation_length('tanh', w, .05) for w in (1, 1.3, 1.5, 2.5, 4)]
    assert [round(x, 2) for x in found] == [3.63, 7.83, 15.79, 11.8, 6.98]
    assert correlation_length('tanh', 1.7610, .05) > 1000

def test_where_the_signal_goes():
    assert fixed_point('relu', 2.) == (1., 1.)
    assert fixed_point('relu', 1.)[0] == 0 and fixed_point('tanh', .8) == (0., 1.)
    assert fixed_point('relu', 1., .3) == pytest.approx((.6, 1.))
    q, c = fixed_point('tanh', 3.)                     # chaos without biases: nothing in common
    assert c == pytest.approx(0, abs=1e-9) and q > .5
    assert fixed_point(torch.sign, 2., .5)[1] < 1      # a jump tears any two inputs apart
    for w, b in ((2.1, 0.), (2., 1e-3)):
        with pytest.raises(InputError, match='grows without end.*smaller w_var'):
            fixed_point('relu', w, b)
    with pytest.raises(InputError, match='unstable'):
        fixed_point('gelu', 1/moments('gelu').rms**2)

@pytest.mark.parametrize('name', ANY)
@pytest.mark.parametrize('q', [.2, 1., 9.])
def test_chi_is_the_slope_at_one(name, q):
    f = ANY[name]
    if name in JUMPS: assert chi(f, q, 2.) == math.inf
    else:
        c = 1 - 1e-8
        apart = (1 - correlation_map(f, c, q, 2.))*length_map(f, q, 2.)/(q*1e-8)
        assert chi(f, q, 2.) == pytest.approx(apart, rel=1e-5 if name in SMOOTH else 1e-2)

def test_a_gradient_through_a_real_layer():
    "χ₁ is what a layer does to a gradient: within five standard errors over its weights."
    g, n, q = torch.Generator().manual_seed(SEED), 400, 1.3
    ratios = []
    for _ in range(40):
        z = (math.sqrt(q)*torch.randn(n, generator=g, dtype=torch.float64)).requires_grad_()
        w = torch.randn(n, n, generator=g, dtype=torch.float64)*math.sqrt(1.8/n)
        back = torch.randn(n, generator=g, dtype=torch.float64)
        grad, = torch.autograd.grad((w @ torch.tanh(z)) @ back, z)
        ratios.append((grad.square().sum()/back.square().sum()).item())
    r = torch.tensor(ratios)
    assert abs(r.mean().item() - chi('tanh', q, 1.8)) < 5*r.std().item()/math.sqrt(len(r))

# Their even part is of second order: for a small signal it is far below the odd one's rounding.
@pytest.mark.parametrize('f, slope', [('gelu', .5), ('silu', .5), ('mish', .6), ('elu', 1.),
                                      ('tanh', 1.), ('softsign', 1.), (leaky(.2), math.sqrt(.52))])
def test_the_limit_of_small_signals(f, slope):
    assert fixed_point(f, .9) == (0., 1.)
    assert math.isclose(chi(f, 0., 2.), 2*slope**2, rel_tol=1e-6)
    assert math.isclose(correlation_length(f, .9, 0.), -1/math.log(.9*slope**2), rel_tol=1e-6)

# A long signal meets what is narrow beside it, which is no jump for all that.
@pytest.mark.parametrize('f, q', [(F.selu, 300.), (torch.tanh, 1e4), (F.mish, 1e4), (F.elu, 1e6),
                                  (F.gelu, 1e6), (F.silu, 1e5), (F.relu, 1e8)])
def test_a_long_signal_is_no_jump(f, q):
    z = torch.linspace(-37, 37, 4_000_001, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(f(z*math.sqrt(q)).sum(), z)
    mean = (slope.square()*torch.exp(-z.detach()**2/2)).sum()*(74/4e6)/math.sqrt(2*math.pi)/q
    assert chi(f, q, 1.) == pytest.approx(mean.item(), rel=1e-3)

# ---- the edge ---------------------------------------------------------------------------------

@pytest.mark.slow
@pytest.mark.parametrize('name, b', [('tanh', .05), ('tanh', 1e-6), ('tanh', 2.), ('gelu', .406),
                                  ('gelu', .2), ('silu', 1.14), ('mish', .5), ('elu', .1),
                                  ('selu', .1), ('erf', .05), ('hardtanh', .1), ('sigmoid', .5)])
def test_the_edge_is_where_nothing_changes(name, b):
    f = ANY.get(name, name)
    w = edge_of_chaos(f, b)
    if name in ('tanh', 'erf', 'hardtanh', 'elu', 'selu'): q, c = fixed_point(f, w, b)
    else:                     # the one to which a signal of 1 runs may be another for these
        c = 1.
        q = next(q for k in range(-40, 90) if length_map(f, q := 10**(k/20), w, b) <= q)
        for _ in range(3000): q = length_map(f, q, w, b)
    assert chi(f, q, w) == pytest.approx(1, abs=2e-4) and c == pytest.approx(1, abs=2e-3)
    for factor, ordered in ((.97, True), (1.03, False)):
        if name in ('tanh', 'erf', 'hardtanh'):
            assert (chi(f, fixed_point(f, w*factor, b)[0], w*factor) < 1) == ordered

@pytest.mark.slow
def test_edges_of_the_papers():
    assert edge_of_chaos('tanh', .05) == pytest.approx(1.7610, abs=1e-4)
    assert fixed_point('tanh', 1.7610, .05)[0] == pytest.approx(.570, abs=1e-3)
    assert edge_of_chaos('tanh') == pytest.approx(1, abs=1e-9)
    assert edge_of_chaos(torch.erf) == pytest.approx(math.pi/4, abs=1e-9)
    assert edge_of_chaos('gelu', .406) == pytest.approx(1.957, abs=1e-3)
    assert edge_of_chaos('silu', 1.140) == pytest.approx(1.967, abs=1e-3)

@pytest.mark.slow
@pytest.mark.parametrize('f, w', [(F.relu, 2.), (leaky(.2), 2/1.04), (torch.abs, 1.),
                                  (lambda z: z, 1.)])
def test_a_line_of_edges_says_so(f, w):
    with pytest.warns(UserWarning, match='line of edges'):
        assert edge_of_chaos(f) == pytest.approx(w, abs=1e-9)
    with pytest.raises(InputError, match='no edge of chaos'): edge_of_chaos(f, .1)
    assert edge_variances(f) == pytest.approx((w, 0.), abs=1e-9)
    assert correlation_length(f, w) == math.inf

@pytest.mark.parametrize('f, b, says', [
    ('gelu', 0., r'b_var 0, expected a b_var from 0\.17'),
    ('gelu', .1, r'expected a b_var from 0\.17'),
    ('silu', 0., r'b_var 0, expected a b_var from 0\.5'), ('softplus', .1, 'no edge of chaos'),
    (torch.sign, 0., 'no edge of chaos')])
def test_no_edge_says_so(f, b, says):
    with pytest.raises(InputError, match=says): edge_of_chaos(f, b)

@pytest.mark.slow
@pytest.mark.parametrize('name', ['tanh', 'gelu', 'silu', 'mish', 'elu', 'selu', 'hardswish', 'erf',
                               'softsign', 'hardtanh', 'sigmoid'])
def test_where_to_start(name):
    "On the edge; and the length map halves a deviation, or pulls as hard as it does anywhere."
    f = ANY.get(name, name)
    w, b = edge_variances(f)
    q, _ = fixed_point(f, w, b)
    assert chi(f, q, w) == pytest.approx(1, abs=1e-5) and b >= 0
    slope = (length_map(f, q*1.001, w, b) - length_map(f, q*.999, w, b))/(.002*q)
    shorter, longer = (_edge_at(_activation(f), q*k) for k in (.7, 1/.7))
    if slope < .51: assert shorter[2] > .5 or shorter[1] < 0
    else: assert slope < .99 and slope < min(shorter[2], longer[2])

# ---- wrong input ------------------------------------------------------------------------------

@pytest.mark.parametrize('bad', [-1., math.nan, math.inf, 'x', None, True])
@pytest.mark.parametrize('call', [
    lambda v: length_map('tanh', v, 1.), lambda v: length_map('tanh', 1., v),
    lambda v: length_map('tanh', 1., 1., v), lambda v: correlation_map('tanh', .5, v, 1.),
    lambda v: correlation_map('tanh', .5, 1., v), lambda v: chi('tanh', v, 1.),
    lambda v: chi('tanh', 1., v), lambda v: fixed_point('tanh', v),
    lambda v: fixed_point('tanh', 1., v), lambda v: correlation_length('tanh', v),
    lambda v: edge_of_chaos('tanh', v)])
def test_impossible_numbers(call, bad):
    with pytest.raises(InputError, match='expected a finite number from 0 up'): call(bad)

@pytest.mark.parametrize('c', [1.01, -2., math.nan, torch.tensor([.5, 1.5]), 'x', None])
def test_impossible_correlations(c):
    with pytest.raises(InputError, match='expected a correlation'):
        correlation_map('relu', c, 1., 2.)

def test_nothing_has_no_correlation():
    with pytest.raises(InputError, match='zeros have no correlation'):
        correlation_map('relu', .5, 0., 2.)
    assert correlation_map('relu', .5, 0., 2., .1) == 1
    assert length_map('relu', 0., 2., .1) == .1 and chi('relu', 0., 2.) == pytest.approx(1)

@pytest.mark.parametrize('f, says', [
    ('reluu', 'nonlinearity'), (3, 'expected a function or a module'),
    (lambda z: z.log(), 'gives nan'), (lambda z: z.sum(), 'elementwise|shape'),
    (lambda z: z - z.mean(), 'depend on the others'), (nn.ReLU, 'expected a function or a module')])
@pytest.mark.parametrize('call', [
    lambda f: length_map(f, 1., 1.), lambda f: correlation_map(f, .5, 1., 1.),
    lambda f: fixed_point(f, 1.), lambda f: chi(f, 1., 1.), lambda f: correlation_length(f, 1.),
    edge_of_chaos, edge_variances])
def test_what_is_no_activation(call, f, says):
    with pytest.raises(InputError, match=says): call(f)

def test_nothing_is_changed_or_drawn():
    p, state = nn.PReLU(), torch.get_rng_state()
    fixed_point(p, 1., .1), correlation_map(p, .5, 1., 2.)
    assert p.weight.item() == .25 and p.weight.dtype == torch.float32 and p.training
    assert torch.equal(state, torch.get_rng_state())
