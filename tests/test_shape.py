"""shape_activation: the conditions hold by another quadrature, the numbers are those of the
authors' package, and what cannot be shaped says so."""
import copy, math, pickle
import numpy as np
import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from initnotes.depth import correlation_map
from initnotes.kaiming import gain
from initnotes.report import InputError
from initnotes.shape import Shaped, _leaky_map, _through, shape_activation

SMOOTH = dict(gelu=F.gelu, silu=F.silu, mish=F.mish, tanh=torch.tanh, sigmoid=torch.sigmoid,
              softplus=F.softplus, erf=torch.erf, atan=torch.atan, asinh=torch.asinh, sin=torch.sin,
              cos=torch.cos, logsigmoid=F.logsigmoid, snake=lambda x: x + torch.sin(x)**2)

# Of PyPI's dks 0.1.2 (pip install --no-deps dks autograd absl-py; it imports absl without saying
# so, and a private part of SciPy, and is therefore no requirement of these tests):
#   from dks.base.activation_transform import _get_activations_params
#   _get_activations_params([name], 'DKS' or 'TAT', subnet_max_func=net)[name]
# with name gelu_exact, swish, …, and net(x, r) = r applied `depth` times to x. α, β, γ, δ.
PEER = [
    ('gelu', 5, 'dks', .4227690142, .2282686175, 3.469998374, -.1973814794),
    ('gelu', 5, 'tat', .2690488307, .3222508276, 4.922535205, -.192089683),
    ('gelu', 50, 'dks', .1213606133, .2577426236, 11.75142778, -.1605413848),
    ('gelu', 50, 'tat', .08174011959, .3268328012, 16.26047742, -.2043029575),
    ('gelu', 200, 'dks', .06023247147, .2597270921, 23.62839286, -.15782583),
    ('gelu', 200, 'tat', .04073512723, .3271553427, 32.6401683, -.20528166),
    ('silu', 5, 'dks', .6668477441, .3261245645, 2.26634806, -.2859479939),
    ('silu', 5, 'tat', .4132313603, .4541125414, 3.335672472, -.2634125676),
    ('silu', 50, 'dks', .1844286136, .3488179217, 8.081396143, -.2124652447),
    ('silu', 50, 'tat', .1233588636, .4474844795, 11.30415568, -.2715723949),
    ('tanh', 5, 'dks', .4358053679, .7507259984, 3.685460158, -.5735784789),
    ('tanh', 5, 'tat', .263598591, -.5947259502, 5.219257974, .5414571085),
    ('tanh', 50, 'dks', .1284404787, .5707795475, 10.60444762, -.5098072417),
    ('tanh', 50, 'tat', .08165523497, .5258489445, 15.94163368, -.4831889547),
    ('softplus', 5, 'dks', 1.3143569, .4202636734, 1.261085909, -1.104158124),
    ('softplus', 50, 'tat', .2121012164, .540025075, 7.455736272, -.9970455849),
    ('erf', 50, 'dks', .1111580816, .5896444418, 11.28462032, -.5899278823),
    ('elu', 5, 'dks', .6085288253, -.4680420744, 2.444891239, .2769998337),
    ('elu', 50, 'dks', .1385336561, -.2013391978, 8.759869629, .1747411271)]

# The same, with net: twenty-five blocks of shortcut w and a branch of two, and one more at the end,
# or one branch alone if that is more (the rule of its modified ResNet).
PEER_BLOCKS = [
    ('gelu', .8, 'dks', .1987953317, .2532852192, 7.206934025, -.166482648),
    ('gelu', .8, 'tat', .1335601803, .3261003004, 9.944237441, -.202152037),
    ('tanh', .8, 'dks', .209787881, .604172526, 6.706491915, -.5239731162)]
# slope, γ and δ of the leaky ReLU
PEER_LEAKY = [
    (50, 0., 'dks', .7963707059, 1.110765725, -.08123633529),
    (50, 0., 'tat', .4305229485, 1.298947786, 0.),
    (200, 0., 'dks', .8930558708, 1.055880775, -.04266453497),
    (200, 0., 'tat', .6795996428, 1.169668378, 0.),
    (51, .6, 'dks', .7550849927, 1.135535437, -.09770695193),
    (51, .6, 'tat', .3174129128, 1.347939692, 0.)]

def four(s): return s.input_scale, s.input_shift, s.output_scale, s.output_shift

def same(found, peer):
    "Equal but for what the peer's solver leaves open (it stops at 1e-8), up to a mirror image."
    mirror = found[0], -found[1], found[2], -found[3]
    return any(all(math.isclose(a, b, rel_tol=2e-6) for a, b in zip(f, peer))
               for f in (found, mirror))

@pytest.mark.parametrize('name, depth, method, a, b, scale, shift', PEER)
def test_numbers_of_the_authors_package(name, depth, method, a, b, scale, shift):
    found = four(shape_activation(SMOOTH.get(name) or getattr(F, name), depth, method))
    assert same(found, (a, b, scale, shift)), found

@pytest.mark.parametrize('name, shortcut, method, a, b, scale, shift', PEER_BLOCKS)
def test_numbers_of_the_authors_package_for_residual_nets(
        name, shortcut, method, a, b, scale, shift):
    found = four(shape_activation(name, 51, method, shortcut=shortcut))
    assert same(found, (a, b, scale, shift)), found

@pytest.mark.parametrize('depth, shortcut, method, slope, scale, shift', PEER_LEAKY)
def test_the_authors_numbers_for_leaky_relu(depth, shortcut, method, slope, scale, shift):
    s = shape_activation('leaky_relu', depth, method, shortcut=shortcut)
    found = s.f.negative_slope, s.output_scale, s.output_shift
    assert found == pytest.approx((slope, scale, shift), rel=1e-7, abs=1e-12)
    assert (s.input_scale, s.input_shift) == (1, 0)

# Gauss–Hermite points from NumPy, and no derivatives: nothing of the package's own quadrature.
Z, P = (torch.tensor(v) for v in np.polynomial.hermite_e.hermegauss(120))
P = P/P.sum()

def conditions(f):
    "Q(1), Q′(1), C(0), C′(1), C″(1) from Hermite coefficients: no derivative of f is taken."
    y, h, before, a = f(Z), torch.ones_like(Z), torch.zeros_like(Z), []
    for k in range(60):
        a.append((P*y*h).sum())
        h, before = (Z*h - math.sqrt(k)*before)/math.sqrt(k + 1), h
    a2, k = torch.stack(a)**2, torch.arange(60)
    q1 = (P*y*y*(Z*Z - 1)).sum()/2
    return [v.item() for v in ((P*y*y).sum(), q1, a2[0], (k*a2).sum(), (k*(k - 1)*a2).sum())]

@settings(max_examples=12, deadline=None)
@given(st.sampled_from(sorted(SMOOTH)), st.integers(8, 2000), st.sampled_from(['dks', 'tat']))
def test_the_conditions_hold(name, depth, method):
    s = shape_activation(SMOOTH[name], depth, method)
    q, q1, c0, c1, c2 = conditions(s)
    local = 1.5**(1/depth) if method == 'dks' else .3/depth
    small = local - 1 if method == 'dks' else local          # the errors are errors of this
    assert s.local == pytest.approx(local, rel=1e-12) and s.depth == depth and s.method == method
    assert q == pytest.approx(1, abs=1e-9) and q1 == pytest.approx(1, abs=1e-5*small)
    if method == 'dks':
        assert c0 < 1e-18 and c1 - 1 == pytest.approx(local - 1, rel=1e-5)
        assert s.condition == 'C′(1)' and s.target == 1.5
    else:
        assert c1 == pytest.approx(1, abs=1e-5*small) and c2 == pytest.approx(local, rel=1e-5)
        assert s.condition == 'C″(1)' and s.target == .3

@pytest.mark.parametrize('depth', [1, 2, 3, 5])
@pytest.mark.parametrize('name', ['gelu', 'silu', 'tanh', 'sigmoid', 'erf', 'mish'])
def test_shallow_nets_too(name, depth):
    for method in ('dks', 'tat'):
        assert gain(shape_activation(SMOOTH[name], depth, method)) == pytest.approx(1, abs=1e-9)

@settings(max_examples=15, deadline=None)
@given(st.integers(13, 3000), st.sampled_from(['dks', 'tat']), st.sampled_from([0., .3, .6]))
def test_leaky_relu_reaches_its_target(depth, method, w):
    s = shape_activation('relu', depth, method, shortcut=w)
    blocks, rest = (depth//2, depth % 2) if w else (0, depth)
    slope = s.f.negative_slope
    if method == 'tat':
        value, target = 0., .9
        def layer(c): return _leaky_map(c, slope)
    else:
        value, target = 1., 1.5
        def layer(c): return s.local*c
        ms, mean = (1 + slope**2)/2, (1 - slope)/math.sqrt(2*math.pi)
        assert s.local == pytest.approx(ms/(ms - mean**2), rel=1e-12)
    for _ in range(blocks):
        value = w*w*value + (1 - w*w)*layer(layer(value))
    for _ in range(rest): value = layer(value)
    assert value == pytest.approx(target, rel=1e-9)
    assert gain(s) == pytest.approx(1, abs=1e-12)

def test_the_leaky_map_is_that_of_the_maps_of_depth():
    for slope in (0., .2, .7):
        def f(z): return F.leaky_relu(z, slope)
        for c in (0., .3, .9, 1.):
            assert _leaky_map(c, slope) == pytest.approx(
                correlation_map(f, c, 1., gain(f)**2), abs=1e-8)

def test_any_form_of_the_same_activation():
    forms = [four(shape_activation(f, 20)) for f in
             ('gelu', F.gelu, nn.GELU(), lambda x: x*(1 + torch.erf(x/2**.5))/2)]
    for form in forms[1:]: assert form == pytest.approx(forms[0], rel=1e-6)
    moved = shape_activation(lambda x: 5 + 2*F.gelu(3*x - 1), 20)
    x = torch.linspace(-4, 4, 50, dtype=torch.float64)
    assert torch.allclose(moved(x), shape_activation('gelu', 20)(x), atol=1e-6)
    # odd, and turned around: the same numbers, another sign
    a, b, scale, shift = four(shape_activation(torch.tanh, 20))
    turned = four(shape_activation(lambda x: -torch.tanh(x), 20))
    assert turned == pytest.approx((a, b, scale, -shift))
    assert b > 0

@pytest.mark.parametrize('f', [nn.ReLU(), nn.ReLU(inplace=True), nn.LeakyReLU(.2), F.relu,
                               'leaky_relu', nn.RReLU(), lambda x: 3*x.relu()])
def test_relus_of_all_kinds_get_the_tailored_slope(f):
    s = shape_activation(f, 100)
    assert isinstance(s.f, nn.LeakyReLU) and s.f.negative_slope == pytest.approx(.5704, abs=5e-5)

@pytest.mark.filterwarnings('ignore:.*jit.script.* is deprecated')
def test_a_module_like_any_other():
    for f in (F.gelu, nn.SiLU(), torch.tanh, 'relu', nn.ELU(inplace=True)):
        s, x = shape_activation(f, 30), torch.randn(3, 5)
        before = x.clone()
        for t in (copy.deepcopy(s), pickle.loads(pickle.dumps(s)), torch.jit.script(s)):
            assert torch.equal(t(x), s(x))
        assert torch.equal(x, before)
        assert isinstance(s, Shaped) and not list(s.parameters()) and not s.state_dict()
        net = nn.Sequential(nn.Linear(5, 5), s)
        assert net(x).shape == x.shape and 'depth=30' in repr(net)
        for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
            assert s.to(dtype)(x.to(dtype)).dtype == dtype

def test_what_goes_in_stays_as_it_was():
    f = nn.GELU().train()
    s = shape_activation(f, 10)
    assert s.f is not f and f.training and not torch.is_inference_mode_enabled()
    with torch.inference_mode(), torch.no_grad():
        assert four(shape_activation(F.gelu, 10)) == four(s)
    torch.set_default_dtype(torch.float64)
    try: assert four(shape_activation(F.gelu, 10)) == four(s)
    finally: torch.set_default_dtype(torch.float32)

def test_float32_and_half_precision_keep_the_promise():
    z = torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    for name, depth, method in (('gelu', 50, 'tat'), ('tanh', 200, 'dks'), ('silu', 1000, 'tat')):
        s = shape_activation(name if name != 'tanh' else torch.tanh, depth, method)
        exact = s(z.double())
        assert (s(z) - exact).abs().max() < 3e-7*(s.output_scale + 10)
        half = z.bfloat16()
        assert torch.allclose(s(half).float(), s(half.float()), rtol=2**-8, atol=1e-6)

def test_a_target_of_ones_own():
    for method, name, target in (('dks', 'gelu', 3.), ('tat', 'gelu', 1.), ('tat', 'relu', .5)):
        s = shape_activation(name, 40, method, target=target)
        assert s.target == target and gain(s) == pytest.approx(1, abs=1e-9)
    assert shape_activation('gelu', 40, target=.6).local == pytest.approx(.6/40)
    assert shape_activation('gelu', 40, 'dks', target=3).local == pytest.approx(3**(1/40))

def test_shortcuts_allow_more_curve():
    plain = shape_activation('gelu', 40)
    found = [shape_activation('gelu', 40, shortcut=w).local for w in (.3, .6, .9)]
    assert plain.local < found[0] < found[1] < found[2]
    assert found[1] == pytest.approx(.3/(40*(1 - .36)))
    # one branch alone is a net too, and sets the limit where shortcuts are strong
    assert shape_activation('gelu', 40, shortcut=.999, branch=4).local == pytest.approx(.3/4)
    assert _through(lambda x: x + 1, 0., 40, 0., 7) == 40

def test_a_net_of_shaped_layers_keeps_what_it_should():
    generator = torch.Generator().manual_seed(0)
    s, nets = shape_activation('gelu', 30, 'dks'), []
    for _ in range(6):
        h = torch.linalg.qr(torch.randn(300, 4, generator=generator))[0].T*300**.5
        for _ in range(30): h = s(h) @ torch.randn(300, 300, generator=generator)/300**.5
        c = F.normalize(h) @ F.normalize(h).T
        nets.append((h.square().mean().item(), c[0, 1].item()))
    q, c = torch.tensor(nets).T
    assert abs(q.mean() - 1) < 5*q.std()/6**.5 + .05 and abs(c.mean()) < 5*c.std()/6**.5 + .02

@pytest.mark.parametrize('f, method, message', [
    (F.selu, 'tat', "kink.*method='dks'"), (F.hardswish, 'tat', 'kink'),
    (F.hardtanh, 'tat', 'kink'),
    (F.relu6, 'tat', 'kink'), (torch.abs, 'tat', 'kink'), (F.hardsigmoid, 'tat', 'kink'),
    (torch.sign, 'dks', 'kink or a jump'), (torch.abs, 'dks', 'no scales and shifts of abs'),
    (F.hardtanh, 'dks', 'no scales'), (lambda x: 2*x + 1, 'tat', 'a line has no curve'),
    (lambda x: 2*x + 1, 'dks', 'a line has no curve'), (torch.square, 'tat', 'no scales'),
    (torch.exp, 'dks', 'exponentials'), (lambda x: x**3, 'dks', 'powers'),
    (lambda x: 0*x + 1, 'tat', 'no scales'), (nn.PReLU(), 'tat', 'PReLU learns its shape'),
    (nn.PReLU(8), 'dks', 'PReLU learns'), ('prelu', 'tat', 'learns'),
    (nn.Softmax(0), 'tat', 'depend'),
    (3, 'tat', 'expected a function or a module'), ('gelo', 'tat', "nonlinearity is 'gelo'"),
    (nn.GELU, 'tat', 'expected a function or a module'),
    (torch.log, 'tat', 'expected finite numbers')])
def test_what_cannot_be_shaped_says_so(f, method, message):
    with pytest.raises(InputError, match=message): shape_activation(f, 50, method)

@pytest.mark.parametrize('how, message', [
    (dict(depth=0), 'depth is 0'), (dict(depth=2.), 'depth is 2.0'),
    (dict(depth=True), 'depth is True'), (dict(depth='9'), "depth is '9'"),
    (dict(method='DKS'), "method is 'DKS'"), (dict(method=None), 'method is None'),
    (dict(target=0.), 'target is 0.0, expected a number above 0'),
    (dict(target=True), 'target is True'), (dict(target='.3'), "target is '.3'"),
    (dict(target=math.nan), 'target is nan'), (dict(target=1., method='dks'), 'above 1'),
    (dict(target=math.inf), 'target is inf'), (dict(f='relu', target=1.), 'below 1'),
    (dict(shortcut=1.), 'shortcut is 1.0'), (dict(shortcut=-.1), 'shortcut is -0.1'),
    (dict(shortcut=True), 'shortcut is True'), (dict(branch=0), 'branch is 0'),
    (dict(shortcut=.5, branch=9, depth=8), 'a branch has 9'), (dict(f='relu', depth=10), '0.8715'),
    (dict(f='relu', depth=1, method='dks'), r'C′\(1\) of a net of ReLUs is 1.467')])
def test_bad_input(how, message):
    how = dict(f='gelu', depth=50) | how
    with pytest.raises(InputError, match=message): shape_activation(**how)
