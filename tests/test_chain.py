"What `links` finds in any model, and whether `predict` is right about it: values, spread, cosines."
import copy, math, random

import pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn

from initnotes.chain import PredictReport, links, predict
from initnotes.depth import chi, correlation_map, length_map
from initnotes.gains import moments
from initnotes.init import init_
from initnotes.report import InputError

L = nn.Linear
X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))

class Model(nn.Module):
    "A forward of one's own: `f(self, x)`."
    def __init__(self, f, **modules):
        super().__init__()
        self.f = f
        for name, m in modules.items(): setattr(self, name, m)
    def forward(self, *args, **kwargs): return self.f(self, *args, **kwargs)

def two(between):
    "What the second of two layers says of what is `between`."
    model = Model(lambda s, x: s.b(between(s.a(x))), a=L(8, 8), b=L(8, 8))
    link = links(model, X)[1]
    return link.behind or [getattr(f, '__name__', type(f).__name__) for f in link.before]

def inplace(z):
    view = z.view(-1)
    view.mul_(2)
    return z

def item(z):
    z[:, 0] = 0
    return z

@pytest.mark.parametrize('between, found', [
    (lambda z: z, []), (F.relu, ['relu']), (lambda z: F.relu(z, inplace=True), ['relu']),
    (lambda z: z.relu_(), ['relu']), (lambda z: F.leaky_relu(z, .2).tanh(), ['leaky_relu', 'tanh']),
    (lambda z: z*2 + 1, ['mul', 'add']), (lambda z: torch.exp(-z) + 1,
     ['neg', 'exp', 'add']), (lambda z: z.clamp(min=0), ['clamp']),
    (lambda z: z.view(2, 3, 8).transpose(0, 1).flip(0)[..., 1:].reshape(6, -1)[:, :1].expand(6, 8),
     []), (lambda z: z.double().clone().float().contiguous(), []), (F.dropout, []),
    (lambda z: F.dropout(F.selu(z), inplace=True), ['selu']),
    (lambda z: F.softmax(z, 1), "softmax in '(model)'"), (lambda z: z + z.relu(), 'add'),
    (lambda z: z*torch.sigmoid(z), 'mul'), (lambda z: torch.div(z, z.norm()), 'div'),
    (item, 'setitem'),
    (lambda z: z - z.mean(1, keepdim=True), 'sub'), (lambda z: z.cumsum(0), 'cumsum'),
    (lambda z: torch.where(z > 0, z, .1*z), 'where'), (lambda z: z*(z > 0), 'mul'),
    (lambda z: z + torch.randn(8), 'add'), (F.rrelu, ['rrelu']), (inplace, 'mul'),
    (lambda z: F.rrelu(z, training=True), 'rrelu'), (lambda z: F.layer_norm(z, (8,)), 'layer_norm'),
    (lambda z: z.sort(1)[0], 'sort'), (lambda z: torch.zeros_like(z), 'what cannot be seen'),
    (lambda z: torch.cat([z, z]), 'cat'), (lambda z: z @ torch.eye(8), 'matmul')])
def test_functions_between_two_layers(between, found):
    said = two(between)
    assert said == found or isinstance(said, str) and said.startswith(found)

class Swish(nn.Module):
    def __init__(self):
        super().__init__()
        self.beta = nn.Parameter(torch.ones(1))
    def forward(self, x): return x*torch.sigmoid(self.beta*x)

class Rms(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(8))
    def forward(self, x): return self.weight*x*x.square().mean(-1, keepdim=True).rsqrt()

@pytest.mark.parametrize('module, found', [
    (nn.ReLU(inplace=True), ['ReLU']), (nn.PReLU(8), ['PReLU']), (nn.Identity(), []),
    (nn.Dropout(), []), (nn.AlphaDropout(), []), (Swish(), ['Swish']), (nn.Flatten(), []),
    (nn.Sequential(nn.Tanh(), nn.Sequential(nn.Identity(), nn.GELU())), ['Tanh', 'GELU']),
    (nn.Threshold(.1, 2.), ['Threshold']), (nn.Softmax(1), "Softmax 'm'"), (Rms(), "Rms 'm'"),
    (nn.RReLU(), "RReLU 'm'"), (nn.RReLU().eval(), ['RReLU']), (nn.LayerNorm(8), "LayerNorm 'm'"),
    (nn.BatchNorm1d(8), "BatchNorm1d 'm'"), (nn.BatchNorm1d(8).eval(), "BatchNorm1d 'm'"),
    (nn.MaxPool1d(1), "MaxPool1d 'm'"), (nn.Bilinear(8, 8, 8), None)])
def test_modules_between_two_layers(module, found):
    if found is None:
        model = Model(lambda s, x: s.b(s.m(x, s.a(x))), a=L(8, 8), m=module, b=L(8, 8))
        found = "Bilinear 'm'"
    else: model = Model(lambda s, x: s.b(s.m(s.a(x))), a=L(8, 8), m=module, b=L(8, 8))
    link = next(k for k in links(model, X) if k.name == 'b')
    names = link.before and [type(f).__name__ for f in link.before]
    assert (link.behind or names or []) == found

def test_a_copy_of_a_watched_model_is_not_watched():
    copies = []
    def forward(s, x):
        copies.append(copy.deepcopy(s.a))
        return s.a(x)
    links(Model(forward, a=L(8, 8)), X)
    copies[0](X)

def state(model):
    return [t.clone() for t in (*model.parameters(), *model.buffers())] + [torch.get_rng_state()]

class Noisy(nn.Module):
    def forward(self, x): return x + torch.randn_like(x) + random.random()

def test_model_and_world_are_as_before():
    model = nn.Sequential(L(8, 8), nn.BatchNorm1d(8), nn.Dropout(), Noisy(), L(8, 8))
    model[4].eval()
    before, py, x = state(model), random.getstate(), X.clone().requires_grad_()
    for f in (links, predict): f(model, x)
    assert all(map(torch.equal, before, state(model))) and py == random.getstate()
    assert model[2].training and not model[4].training
    assert x.grad is None and torch.is_grad_enabled()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    model.append(L(9, 9))                              # fails in the middle
    with pytest.raises(RuntimeError): predict(model, x)
    model.pop(5)
    assert all(map(torch.equal, before[:-1], state(model)))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

# What it says of models of many kinds
def columns(report, *keys): return [tuple(r[k] for k in keys) for r in report]

def test_residual_and_reused_layers():
    def forward(s, x):
        x = x + torch.tanh(s.a(x))
        return s.a(F.relu(s.a(x)))
    report = predict(Model(forward, a=L(8, 8)), X)
    assert columns(report, 'name', 'note', 'depth') == [
        ('a', None, 1), ('a', "anew from its input, behind add in '(model)'; "
                              "the weights of 'a' again", 1), ('a', "the weights of 'a' again", 2)]

def test_tied_weights_and_a_mean():
    model = nn.Sequential(L(8, 8), nn.ReLU(), L(8, 8))
    model[2].weight = model[0].weight
    assert predict(model, X)[1]['note'] == "the weights of '0' again"
    nn.init.constant_(model[0].weight, -.3)
    assert "its weights' mean is -0.3, expected about 0" in predict(model, X)[0]['note']

def test_strangers_are_named_and_layers_behind_them_predicted():
    model = nn.Sequential(L(8, 8), nn.ReLU(), nn.GRUCell(8, 8), nn.ReLU(), L(8, 8), L(8, 2))
    report = predict(model, X)
    assert columns(report, 'kind', 'why', 'depth')[1:] == [
        ('GRUCell', 'GRUCell: the maps know Linear and Conv', None), ('Linear', None, 1),
        ('Linear', None, 2)]
    assert report[1]['measured'] > 0 and report[1]['predicted'] is None
    assert report[2]['note'] == "anew from its input, behind GRUCell '2'"

def test_own_forwards_are_strangers():
    class Twice(L):
        def forward(self, x): return 2*super().forward(x)
    patched = L(8, 8)
    patched.forward = lambda x: x
    report = predict(nn.Sequential(Twice(8, 8), nn.ReLU(), patched, L(8, 8)), X)
    assert [r['why'] for r in report] == [
        'Twice has a forward of its own', 'Linear has a forward of its own', None]

def test_an_activation_that_overflows_stops_nothing():
    class Exp(nn.Module):
        def forward(self, x): return torch.exp(9*x*x)
    report = predict(nn.Sequential(L(8, 8), Exp(), L(8, 8), nn.ReLU(), L(8, 8)), X)
    assert 'the activation Exp gives inf' in report[1]['note']
    assert [r['depth'] for r in report] == [1, 1, 2]

def test_what_is_not_called_or_hidden_is_named():
    inner = torch.jit.script(nn.Sequential(L(8, 8), nn.ReLU()))
    report = predict(nn.Sequential(L(8, 8), inner, L(8, 8)), X)
    assert report[1]['note'] == 'anew from its input, behind what cannot be seen'
    assert columns(report, 'name', 'why')[2] == (
        '1.0', 'not called by this forward, or where no hook sees it')

def test_parametrised_weights_count_as_they_are_used():
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(L(8, 8)), nn.ReLU(), L(8, 8))
    with torch.no_grad(): model[0].parametrizations.weight.original0.mul_(3)
    report = predict(model, X)
    assert report[0]['w_var'] == pytest.approx(8*model[0].weight.square().mean().item(), rel=1e-5)
    assert all(r['why'] is None for r in report)

@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16, torch.float16])
def test_other_precisions(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(L(8, 64), nn.ReLU(), L(64, 64))
    single = predict(model, X)
    report = predict(model.to(dtype), X.to(dtype))
    for a, b in zip(single, report):
        for k in ('predicted', 'measured', 'se'): assert a[k] == pytest.approx(b[k], rel=.02)

@pytest.mark.parametrize('wrap', [
    nn.DataParallel, pytest.param(torch.compile, marks=pytest.mark.slow)])
def test_compiled_and_wrapped_models(wrap):
    model = nn.Sequential(L(8, 8), nn.ReLU(), L(8, 8))
    assert columns(predict(wrap(model), X), 'predicted') == columns(predict(model, X), 'predicted')

def test_batches_without_pairs():
    model = nn.Sequential(L(8, 8), nn.ReLU(), L(8, 8))
    for x in (X[:1], X[0]):
        report = predict(model, x)
        assert all(r['cosine_predicted'] is None and r['cosine_measured'] is None for r in report)
        assert all(r['predicted'] > 0 and r['se'] > 0 for r in report)
    assert predict(nn.Conv2d(2, 3, 3), torch.randn(2, 9, 9))[0]['cosine_measured'] is None
    one, many = (predict(model, x)[0] for x in (X[:1], X))
    assert one['se']/one['predicted'] > many['se']/many['predicted']

def test_numbers_that_are_none():
    model = nn.Sequential(L(8, 8), nn.ReLU(), L(8, 8))
    for bad in (math.nan, math.inf):
        report = predict(model, X*bad)
        assert all(r['note'] == 'its input is not finite' for r in report)
        assert report.summary() == ['0 of 2 layers predicted']
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    report = predict(model, X)
    assert report[0]['predicted'] == report[0]['measured'] == 0
    assert report[0]['cosine_measured'] is None
    assert report[1]['predicted'] == pytest.approx(report[1]['measured'])       # its biases
    assert report[1]['se'] == pytest.approx(0, abs=1e-6)

@pytest.mark.parametrize('model, batch, said', [
    (torch.relu, (X,), 'expected a torch.nn.Module'), (nn.ReLU(), (X,), 'calls no layer'),
    (L(8, 8), (), 'has no tensor'), (L(8, 8), (X[:0],), 'has an empty tensor'),
    (nn.LazyLinear(8), (X,), 'has no shape yet'), (L(8, 8, device='meta'), (X,), 'meta device'),
    (torch.jit.script(L(8, 8)), (X,), 'before it is scripted')])
def test_bad_input(model, batch, said):
    with pytest.raises(InputError, match=said): predict(model, *batch)

@pytest.mark.slow
def test_models_of_transformers():
    transformers = pytest.importorskip('transformers')
    config = transformers.GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50,
                                     bos_token_id=0, eos_token_id=0)
    ids = torch.randint(0, 50, (4, 7))
    report = predict(transformers.GPT2LMHeadModel(config), input_ids=ids)
    depth = {r['name'].removeprefix('transformer.'): r['depth'] for r in report}
    assert depth['h.1.mlp.c_fc'] == 1 and depth['h.1.mlp.c_proj'] == 2 and depth['wte'] is None
    known = [r for r in report if r['predicted'] is not None]
    assert len(known) == 9 and all(abs(r['measured'] - r['predicted']) < 6*r['se'] for r in known)
    assert 'Expect' not in str(report)

# Is it right?
def net(act, depth, width, name, bias_std=.1, inputs=8):
    model = nn.Sequential(L(inputs, width))
    for _ in range(depth - 1): model.extend([act(), L(width, width)])
    init_(model, nonlinearity=name, bias_std=bias_std)
    return model

def test_one_input_follows_the_maps_to_the_digit():
    torch.manual_seed(0)
    x = torch.cat([X[:1], X[:1]*torch.tensor([1, -1, 1, 1, -1, 1, 1, 1])])     # of equal length
    model = net(nn.Tanh, 4, 16, 'tanh')
    report = predict(model, x)
    w, b = ([r[k] for r in report] for k in ('w_var', 'b_var'))
    q = w[0]*x[0].square().mean().item() + b[0]
    c = (w[0]*(x[0]*x[1]).mean().item() + b[0])/q
    gradient = 1.
    for k in range(4):
        if k:
            gradient *= chi('tanh', q, w[k])
            c, q = correlation_map('tanh', c, q, w[k], b[k]), length_map('tanh', q, w[k], b[k])
            assert report[k]['chi'] == pytest.approx(gradient/report[k - 1]['gradient'], rel=1e-5)
        assert report[k]['predicted'] == pytest.approx(q, rel=1e-6)
        assert report[k]['gradient'] == pytest.approx(gradient, rel=1e-5)
        assert report[k]['cosine_predicted'] == pytest.approx(c, rel=1e-5)

@pytest.mark.parametrize('f, act', [(torch.relu, nn.ReLU), (torch.tanh, nn.Tanh)])
def test_one_input_strays_as_the_recursion_says(f, act):
    "Relative variance of the length: v' = s²·v + (κ − 1)/n, then 2/n; biases do not stray."
    torch.manual_seed(1)
    model = nn.Sequential(L(8, 30), act(), L(30, 20), act(), L(20, 10))
    for m in model[::2]: nn.init.normal_(m.bias, 0, .5)
    report, v, q, before = predict(model, X[:1]), 0., None, None
    for k, (row, n) in enumerate(zip(report, (30, 20, 10))):
        w, b = row['w_var'], row['b_var']
        if k:
            ms, h = moments(f, 0, math.sqrt(q)).rms**2, 1e-4
            slope = math.log(length_map(f, q*(1 + h), w, b)/length_map(f, q*(1 - h), w, b))/(2*h)
            kappa = moments(lambda z: f(z)**2, 0, math.sqrt(q)).rms**2/ms**2
            share = w*ms/(w*ms + b)
            v = slope**2*v + share**2*(kappa - 1)/before
        q, before = row['predicted'], n
        se = q*math.sqrt(v + 2/n*(1 - (b/q)**2))
        assert row['se'] == pytest.approx(se, rel=1e-5)

def test_unlike_inputs_become_a_little_alike():
    "Eight inputs at right angles: their cosines stray by 1/√n behind a layer of n units."
    report = predict(nn.Sequential(L(8, 20, bias=False), L(20, 50, bias=False)), torch.eye(8))
    for row, n, v, u in zip(report, (20, 50), (0, 2/8/20), (0, 1/20)):
        expected = math.sqrt(v + 2/n*(1/8 + 7/8*u))
        assert row['se'] == pytest.approx(row['predicted']*expected, rel=1e-6)

@pytest.mark.parametrize('conv', [
    nn.Conv1d(4, 6, 3, groups=2, padding=1, stride=2), nn.Conv2d(4, 6, (3, 1), dilation=2),
    nn.Conv3d(4, 6, 2, padding='same', padding_mode='circular', bias=False)])
def test_a_convolution_of_mean_squares(conv):
    "Predicted is what the layer gives for squares, with the mean square of its weights for each."
    x = torch.randn(5, 4, *[6]*len(conv.kernel_size), generator=torch.Generator().manual_seed(1))
    twin = copy.deepcopy(conv)
    for p in twin.parameters(): nn.init.constant_(p, p.square().mean().item())
    row, = predict(conv, x)
    assert row['predicted'] == pytest.approx(twin(x*x).mean().item(), rel=1e-5)

def deviations(make, x, draws, row=-1):
    rows = [predict(make(), x)[row] for _ in range(draws)]
    return (torch.tensor([(r['measured'] - r['predicted'])/r['se'] for r in rows]),
            torch.tensor([(r['cosine_measured'] or 0.) - (r['cosine_predicted'] or 0.)
                          for r in rows]))

@pytest.mark.parametrize('act, name, batch', [
    (nn.Tanh, 'tanh', 40), (nn.SiLU, 'silu', 1),
    pytest.param(nn.ReLU, 'relu', 1, marks=pytest.mark.slow),
    pytest.param(nn.ReLU, 'relu', 40, marks=pytest.mark.slow)])
def test_measurements_stray_by_their_standard_error(act, name, batch):
    torch.manual_seed(3)
    x = torch.randn(batch, 8)*torch.linspace(.7, 1.3, batch)[:, None] + .3
    d, c = deviations(lambda: net(act, 3, 100, name), x, 40)
    rms = d.square().mean().sqrt().item()
    assert abs(rms - 1) < 5*d.square().std().item()/(2*rms*math.sqrt(40))
    assert .6 < rms < 1.6                # by hand: half or twice the se would not pass
    assert (d.abs() > 2).sum() <= 9 and d.abs().max() < 5.5     # of 40 normal ones 1.8 ± 1.3
    assert abs(c.mean()) <= 5*c.std()/math.sqrt(40) + .01

@pytest.mark.slow
def test_convolutions_with_borders_stride_and_groups():
    torch.manual_seed(4)
    x = torch.randn(8, 3, 9, 9)
    def make():
        model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=2), nn.ReLU(),
                              nn.Conv2d(32, 32, 3, padding=1, stride=2, groups=4), nn.Tanh(),
                              nn.Conv2d(32, 64, 3, padding='same', padding_mode='circular'),
                              nn.ReLU(), nn.Flatten(), L(64*36, 50))
        init_(model, bias_std=.2)
        return model
    for row in (1, 3):
        d, c = deviations(make, x, 16, row)
        assert d.square().mean().sqrt() < 1.5 and d.abs().max() < 4.5     # se is an upper bound
        assert abs(d.mean()) < 5*d.std()/4 and abs(c.mean()) < 5*c.std()/4 + .01

def test_gradient_factor():
    torch.manual_seed(5)
    def ratio(model):
        h = model[0](X)
        y = model[1:](h)
        given = torch.randn_like(y)
        back, = torch.autograd.grad(y, h, given)
        return ((back**2).sum()/(given**2).sum()).item()/predict(model, X)[-1]['gradient']
    for act, name in ((nn.SiLU, 'silu'), (nn.Tanh, 'tanh')):
        found = torch.tensor([ratio(net(act, 4, 100, name)) for _ in range(16)])
        assert abs(found.mean() - 1) < 5*found.std()/4 and found.std() < .3

@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(['flip', 'transpose', 'unsqueeze', 'reshape', 'narrow', 'roll']),
                max_size=4), st.integers(0, 99))
def test_moving_numbers_changes_no_prediction(moves, seed):
    "What is moved together stays the same: a linear layer averages over all that comes in."
    torch.manual_seed(seed)
    def between(z):
        for m in moves:
            if m == 'flip': z = z.flip(-1)
            elif m == 'transpose': z = z.unsqueeze(1).transpose(1, -1)
            elif m == 'unsqueeze': z = z[:, None]
            elif m == 'reshape': z = z.reshape(len(z), -1)
            elif m == 'narrow': z = z.flatten(1)[:, 1:]
            else: z = z.roll(1, -1)
        return z.flatten(1)
    n = between(torch.zeros(6, 8)).shape[1]
    a, b = L(8, 8), L(n, 8)
    moved = predict(Model(lambda s, x: s.b(between(F.gelu(s.a(x)))), a=a, b=b), X)[1]
    plain = predict(Model(lambda s, x: s.b(F.gelu(s.a(x))[:, :n]), a=a, b=b), X)[1]
    for k in ('predicted', 'se', 'cosine_predicted', 'chi'):
        assert moved[k] == pytest.approx(plain[k], rel=1e-9)

def test_sixty_layers_that_will_not_train_say_so():
    torch.manual_seed(6)
    model = nn.Sequential(L(8, 64), *[m for _ in range(59) for m in (nn.Tanh(), L(64, 64))])
    report = predict(model, X)
    said = '\n'.join(report.summary())
    assert isinstance(report, PredictReport) and len(report) == 60
    assert 'Expect it not to train' in said and 'Inputs have become alike' in said
    assert report[-1]['gradient'] == pytest.approx(
        math.prod(r['chi'] for r in report[1:]), rel=.1)                    # inputs differ a little
    init_(model, gain=1.3, bias_std=.24)       # about the edge
    assert 'Expect' not in str(predict(model, X))
    assert 'most draws lie below' in str(predict(net(nn.ReLU, 30, 32, 'relu'), X))
