"""Checks of weights and builds: planted faults and their repairs in four families of models,
healthy models of many kinds, factories that misbehave, and parameters that cannot be read."""
import copy, math, random, warnings

import numpy as np, pytest, torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations as P

import initnotes as ini
from initnotes.evidence import Evidence, Finding, Skipped, measure
from initnotes.layers import modules_of, parameters_of
from initnotes.report import InputError
from initnotes.residual import GPT
from initnotes.weights import CHECKS, build

SEED = 0

def say(model, *batch, builds=None, where=None, **more):
    "All that the checks yield; none may fail."
    e = measure(model, batch, builds=builds, chosen=where, **more)
    return [f for check in CHECKS.values() for f in check(e)]

def unseen(model, builds=None):
    "The same of a model that is not run."
    e = Evidence(model, (), {}, None, parameters_of(model), set(modules_of(model)), builds, None,
                 'it was not run', [])
    return [f for check in CHECKS.values() for f in check(e)]

def findings(said): return [f for f in said if isinstance(f, Finding)]
def loud(said): return {(f.check, f.layer) for f in findings(said) if f.severity != 'info'}
def of(said, check): return [f for f in findings(said) if f.check == check]
def repair(model, said):
    for f in said:
        if isinstance(f, Finding) and f.fix:
            exec(f.fix, dict(model=model, ini=ini, nn=nn, torch=torch))

# ---- four families ----------------------------------------------------------------------------

def plain():
    net = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(48, 48), nn.ReLU())),
                        nn.Linear(48, 10))
    ini.init_(net)
    return net

def conv():
    net = nn.Sequential(nn.Conv2d(3, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1),
                        nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1, groups=2),
                        nn.ReLU(), nn.Conv2d(24, 24, 3, padding=1), nn.AdaptiveAvgPool2d(1),
                        nn.Flatten(), nn.Linear(24, 10))
    ini.init_(net)
    return net

class Block(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.norm, self.a, self.b = nn.LayerNorm(n), nn.Linear(n, 2*n), nn.Linear(2*n, n)
    def forward(self, x): return x + self.b(self.a(self.norm(x)).relu())

def residual():
    net = nn.Sequential(nn.Linear(48, 48), *(Block(48) for _ in range(3)), nn.Linear(48, 10))
    ini.init_(net)
    return net

def gpt():
    net = GPT(50, 8, width=32, blocks=2)
    ini.init_(net, nonlinearity='gelu')
    return net

ROWS, IMAGES = torch.randn(8, 48), torch.randn(4, 3, 8, 8)
WORDS = torch.randint(0, 50, (4, 8))
# Family: factory, batch, and the names of a hidden layer's module and weight
FAMILIES = dict(plain=(plain, ROWS, '2'), conv=(conv, IMAGES, '2'), groups=(conv, IMAGES, '5'),
                residual=(residual, ROWS, '2.a'), gpt=(gpt, WORDS, None))

def hidden(family):
    make, batch, layer = FAMILIES[family]
    model = make()
    layer = layer or next(n for n, m in model.named_modules()
                          if isinstance(m, nn.Linear) and 'blocks' in n)
    return model, batch, layer

family = pytest.mark.parametrize('family', FAMILIES)

def check_of(fault, family, check, severity, at=None):
    "Plant a fault; it is found where it is, and nowhere else; the repair makes it go away."
    model, batch, layer = hidden(family)
    assert not loud(say(model, batch)), 'the healthy twin'
    with torch.no_grad(): fault(model.get_submodule(layer))
    said = say(model, batch)
    found = of(said, check)
    assert [(f.severity, f.layer) for f in found] == [(severity, at or layer)], findings(said)
    assert all(isinstance(f.fix, str) and f.fix and len(f.message) > 40 for f in found)
    repair(model, found)
    said = say(model, batch)
    assert not of(said, check), findings(said)
    assert not loud(said)

@family
@pytest.mark.parametrize('value', (math.nan, math.inf, -math.inf))
def test_one_number_that_is_not_finite(family, value):
    def fault(m): m.weight.view(-1)[3] = value
    model, batch, layer = hidden(family)
    check_of(fault, family, 'non-finite', 'error', f'{layer}.weight')

@family
def test_a_bias_that_is_nan(family):
    layer = hidden(family)[2]
    check_of(lambda m: m.bias.fill_(math.nan), family, 'non-finite', 'error', f'{layer}.bias')

@family
@pytest.mark.parametrize('factor', (30, 1000))
def test_a_layer_far_too_large(family, factor):
    check_of(lambda m: m.weight.mul_(factor), family, 'scale', 'warning')

@pytest.mark.parametrize('family', ('plain', 'conv'))
def test_a_layer_far_too_small_on_the_way_of_every_signal(family):
    check_of(lambda m: m.weight.div_(1000), family, 'scale', 'warning')

@family
@pytest.mark.parametrize('factor', (1/3, 1e-4, 0))
def test_a_smaller_head_or_branch_is_healthy(family, factor):
    model, batch, _ = hidden(family)
    with torch.no_grad():
        for name, m in model.named_modules():
            if name.endswith('.b'): m.weight *= factor
        last = [m for m in model.modules() if isinstance(m, nn.Linear)][-1]
        if family != 'gpt': last.weight *= factor
    assert not loud(say(model, batch))

@family
def test_a_layer_twice_too_large_is_information(family):
    check_of(lambda m: m.weight.mul_(2), family, 'scale', 'info')

@family
def test_a_mean(family):
    check_of(lambda m: m.weight.add_(m.weight.std()), family, 'mean', 'info')

@family
@pytest.mark.parametrize('value', (.01, 1., -.3))
def test_all_units_alike(family, value):
    def fault(m): m.weight.fill_(value), m.bias.zero_()
    check_of(fault, family, 'symmetry', 'warning' if family == 'gpt' else 'error')

@family
def test_all_units_alike_but_for_their_biases(family):
    def fault(m): m.weight.fill_(.01), m.bias.normal_()
    check_of(fault, family, 'symmetry', 'warning')

@family
def test_two_units_alike(family):
    def fault(m):
        m.weight[1] = m.weight[0]
        m.bias[1] = m.bias[0]
    check_of(fault, family, 'symmetry', 'warning')

@family
def test_two_units_with_other_biases_are_not_alike(family):
    model, batch, layer = hidden(family)
    m = model.get_submodule(layer)
    with torch.no_grad(): m.weight[1], m.bias[1] = m.weight[0], 1.
    assert not loud(say(model, batch))

@family
def test_few_different_units_are_an_error(family):
    def fault(m):
        m.weight[2:] = m.weight[1]
        m.bias[:] = 0
    model, _, layer = hidden(family)
    mild = family in ('groups', 'gpt')      # in one group only; without a ReLU behind it
    check_of(fault, family, 'symmetry', 'warning' if mild else 'error')

@pytest.mark.parametrize('act, severity', ((nn.ReLU, 'error'), (nn.Tanh, 'warning')))
def test_one_layer_alike_is_told_apart_by_the_next(act, severity):
    net = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(48, 48), act())))
    ini.init_(net, nonlinearity='auto')
    nn.init.constant_(net[2].weight, .1)
    assert [f.severity for f in of(say(net, ROWS), 'symmetry')] == [severity]
    nn.init.constant_(net[4].weight, .1)
    assert [f.severity for f in of(say(net, ROWS), 'symmetry')] == ['error']*2

@pytest.mark.parametrize('kind', (nn.LSTM, nn.GRU, nn.RNN))
def test_recurrent_units_alike(kind):
    model, batch = kind(6, 8, 2), torch.randn(5, 3, 6)
    assert not loud(say(model, batch))
    for p in model.parameters(): nn.init.constant_(p, .1)
    found = of(say(model, batch), 'symmetry')
    assert [f.severity for f in found] == ['error', 'error']
    repair(model, found)
    assert not of(say(model, batch), 'symmetry')
    with torch.no_grad(): model.weight_ih_l0.fill_(.1), model.weight_hh_l0.normal_()
    assert not of(say(model, batch), 'symmetry')       # what comes back tells them apart

@pytest.mark.parametrize('make, batch', (
    (lambda: nn.ConvTranspose2d(6, 12, 3, groups=2), torch.randn(2, 6, 5, 5)),
    (lambda: nn.Bilinear(4, 4, 6), (torch.randn(3, 4), torch.randn(3, 4))),
    (lambda: nn.Linear(1, 40), torch.randn(3, 1)),
    (lambda: nn.Conv1d(3, 8, 3), torch.randn(2, 3, 9))))
def test_any_layer_by_itself(make, batch):
    model, batch = make(), batch if isinstance(batch, tuple) else (batch,)
    assert not loud(say(model, *batch))
    nn.init.constant_(model.weight, .3), nn.init.zeros_(model.bias)
    found = of(say(model, *batch), 'symmetry')
    assert [(f.severity, f.layer) for f in found] == [('warning', '(model)')]     # the output layer
    repair(model, found)
    assert not of(say(model, *batch), 'symmetry')

def test_attention_whose_queries_are_alike():
    model, x = nn.MultiheadAttention(16, 2), torch.randn(5, 3, 16)
    with torch.no_grad(): model.in_proj_weight[:16] = model.in_proj_weight[0].clone()
    found = of(say(model, x, x, x), 'symmetry')
    assert [(f.severity, f.measured) for f in found] == [('warning', '16 of 48 alike')]

def test_a_weight_of_a_class_that_nobody_knows():
    class Own(nn.Module):
        def __init__(self, *shape):
            super().__init__()
            self.w, self.b = nn.Parameter(torch.randn(shape)/8), nn.Parameter(torch.zeros(shape[1]))
        def forward(self, x): return x @ self.w + self.b
    model = nn.Sequential(Own(64, 50), nn.ReLU(), Own(50, 10))
    x = torch.randn(8, 64)
    assert not loud(say(model, x))
    nn.init.constant_(model[0].w, .1), nn.init.normal_(model[2].w, std=20.)
    said = say(model, x)
    assert {('symmetry', '0'), ('scale', '2')} <= loud(said)
    repair(model, said)
    assert not loud(say(model, x))

# ---- clones, frozen layers, biases ------------------------------------------------------------

def stack(layers=3, decoder=False):
    "Of PyTorch's, whose layers are copies."
    if decoder:
        layer = nn.TransformerDecoderLayer(16, 2, 32, batch_first=True)
        return nn.TransformerDecoder(layer, layers)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)

@pytest.mark.parametrize('decoder', (False, True))
def test_copied_layers(decoder):
    model, x = stack(decoder=decoder), torch.randn(2, 5, 16)
    batch = (x, x) if decoder else (x,)
    before = {n: p.std() for n, p in model.named_parameters()}
    found = of(say(model, *batch), 'clone')
    assert [(f.severity, f.layer) for f in found] == [('warning', 'layers.1')]
    assert 'layers.2' in found[0].message
    repair(model, found)
    assert not loud(say(model, *batch))
    for n, p in model.named_parameters():
        if p.dim() > 1: torch.testing.assert_close(p.std(), before[n], rtol=.15, atol=0)
    assert not loud(say(nn.Transformer(16, 2, 2, 2, 32, batch_first=True), x, x))  # it draws anew

def test_copies_that_are_none():
    one = nn.Linear(48, 48)
    for model in (nn.Sequential(one, nn.ReLU(), one),                        # tied
                  nn.Sequential(one, copy.deepcopy(one).requires_grad_(False)),      # a teacher
                  nn.Sequential(*(nn.Linear(48, 48) for _ in range(2)))):
        if not one.weight.requires_grad: one.requires_grad_()
        assert not of(say(model, ROWS), 'clone')
        assert not of(say(model, ROWS), 'frozen')
    for rule in (nn.init.eye_, nn.init.zeros_, nn.init.ones_):
        model = nn.Sequential(*(nn.Linear(48, 48) for _ in range(2)))
        for m in model: rule(m.weight)
        assert not of(say(model, ROWS), 'clone')

@family
def test_a_layer_frozen_at_random(family):
    check_of(lambda m: m.requires_grad_(False), family, 'frozen', 'warning')

@family
@pytest.mark.parametrize('value', ('sinusoid', 'constant', 'trained'))
def test_a_layer_frozen_for_good_reason(family, value):
    model, batch, layer = hidden(family)
    m = model.get_submodule(layer).requires_grad_(False)
    n = m.weight.numel()
    with torch.no_grad():
        if value == 'constant': m.weight.copy_((torch.arange(n) % 7 == 0).view_as(m.weight)*.1)
        if value == 'sinusoid': m.weight.copy_(torch.arange(n).sin().view_as(m.weight))
        if value == 'trained': m.weight *= 1 + torch.randn(len(m.weight), *[1]*(m.weight.dim() - 1))
    assert not of(say(model, batch), 'frozen')

def test_frozen_embeddings():
    def make(table): return nn.Sequential(table, nn.Linear(32, 50))
    model = make(nn.Embedding(50, 32, padding_idx=0))
    model[0].weight.requires_grad_(False)
    found = of(say(model, WORDS), 'frozen')
    assert [f.layer for f in found] == ['0']
    repair(model, found)
    assert model[0].weight.requires_grad
    table = torch.randn(50, 32)*torch.rand(50, 1)                # some words matter more
    assert not of(say(make(nn.Embedding.from_pretrained(table)), WORDS), 'frozen')
    model = make(nn.Embedding(50, 32)).requires_grad_(False)
    said = say(model, WORDS)
    assert not loud(said) and any(s.check == 'frozen' for s in said if isinstance(s, Skipped))

def test_biases_before_norms():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=False),
                          nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.BatchNorm2d(8),
                          nn.Flatten(), nn.Linear(32, 8), nn.LayerNorm(8), nn.Linear(8, 4),
                          nn.BatchNorm1d(4))
    said = say(model, IMAGES)
    found = of(said, 'batch-norm')
    assert [(f.layer, f.severity) for f in found] == [('0', 'info'), ('10', 'info')]
    before = model.train()(IMAGES)
    repair(model, found)
    torch.testing.assert_close(model(IMAGES), before)              # they had no effect
    assert not of(say(model, IMAGES), 'batch-norm')
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(48, 48), nn.BatchNorm1d(48)
        def forward(self, x):
            h = self.a(x)
            return h + self.norm(h)
    assert not of(say(Twice(), ROWS), 'batch-norm')                # it is used elsewhere

# ---- PyTorch's default ------------------------------------------------------------------------

@pytest.mark.parametrize('seed', range(10))
def test_the_default_is_known_and_nothing_else_is(seed):
    torch.manual_seed(seed)
    def told(net, x):
        return {n for f in of(say(net, x), 'torch-default')
                for n in f.message.split(': ')[0].split(', ')}
    net = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.ConvTranspose2d(12, 6, 2), nn.Flatten(),
                        nn.Linear(6*49, 10))
    assert told(net, IMAGES) == {'0', '2', '4'}
    for scheme in ('kaiming_uniform', 'kaiming_normal', 'xavier_uniform', 'lecun_uniform'):
        ini.init_(net, scheme)
        assert not told(net, IMAGES)
    net[4].reset_parameters()
    found = of(say(net, IMAGES), 'torch-default')
    assert [(f.layer, f.severity) for f in found] == [('4', 'info')]
    repair(net, found)
    assert not told(net, IMAGES)
    with torch.no_grad():                                # the same variance, another distribution
        bound = 1/math.sqrt(6*49)
        net[4].weight.normal_(0, bound/math.sqrt(3)).clamp_(-bound, bound)
    assert not told(net, IMAGES)

# ---- healthy ----------------------------------------------------------------------------------

def zero_writers():
    net = residual()
    for m in net[1:4]: nn.init.zeros_(m.b.weight)
    return net

def shuffled():
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.PixelShuffle(2), nn.Conv2d(8, 3, 3))
    with torch.no_grad():
        net[0].weight.copy_(net[0].weight[::4].repeat_interleave(4, 0))
        net[0].bias.zero_()
    return net

class Scaled(nn.Linear):
    "Equalized learning rates: N(0, 1), scaled when used."
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        nn.init.normal_(self.weight)
    def forward(self, x): return F.linear(x, self.weight*self.in_features**-.5, self.bias)

HEALTHY = dict(
    narrow=(lambda: nn.Sequential(nn.Linear(48, 2), nn.ReLU(), nn.Linear(2, 1)), ROWS),
    scalar=(lambda: nn.Sequential(nn.Linear(1, 64), nn.ReLU(), nn.Linear(64, 1)),
            torch.randn(9, 1)),
    double=(lambda: plain().double(), ROWS.double()),
    half=(lambda: plain().bfloat16(), ROWS.bfloat16()),
    depthwise=(lambda: nn.Conv2d(8, 16, 3, groups=8), torch.randn(2, 8, 6, 6)),
    signs=(lambda: nn.Sequential(Signs(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32*36, 10)),
           torch.randn(2, 1, 8, 8)),
    sparse_draw=(lambda: with_(plain(), lambda w: nn.init.sparse_(w, .9, .2)), ROWS),
    identity=(lambda: with_(plain(), nn.init.eye_), ROWS),
    orthogonal=(lambda: with_(plain(), nn.init.orthogonal_), ROWS),
    dirac=(lambda: with_(conv(), lambda w: nn.init.dirac_(w) if w.dim() > 2 else w), IMAGES),
    zero_writers=(zero_writers, ROWS), shuffled=(shuffled, IMAGES),
    weight_norm=(lambda: nn.Sequential(P.weight_norm(nn.Linear(48, 48)), nn.Linear(48, 9)), ROWS),
    spectral=(lambda: nn.Sequential(P.spectral_norm(nn.Linear(48, 48)), nn.Linear(48, 9)), ROWS),
    lstm=(lambda: nn.LSTM(6, 12, 2, bidirectional=True), torch.randn(5, 3, 6)),
    complex=(lambda: nn.Linear(6, 6, dtype=torch.cfloat), torch.randn(3, 6, dtype=torch.cfloat)),
    gpt=(gpt, WORDS),
    encoder=(lambda: nn.TransformerEncoderLayer(16, 2, 32), torch.randn(4, 3, 16)))

class Signs(nn.Conv2d):
    def reset_parameters(self):
        super().reset_parameters()
        with torch.no_grad(): self.weight.sign_().mul_(.3), self.bias.zero_()

def with_(net, rule):
    for m in net.modules():
        if isinstance(m, (nn.Linear, nn.Conv2d)): rule(m.weight)
    return net

@pytest.mark.parametrize('name', HEALTHY)
def test_a_healthy_model_and_its_factory(name):
    make, batch = HEALTHY[name]
    model, builds = build(make)
    assert not loud(say(model, batch, builds=builds))
    assert not loud(say(make(), batch))
    assert not loud(unseen(make()))

def test_weights_that_are_scaled_in_use():
    model = nn.Sequential(Scaled(48, 2048), nn.ReLU(), Scaled(2048, 2048), nn.ReLU(),
                          Scaled(2048, 9))
    assert not loud(say(model, ROWS))

def test_findings_are_wanted_only_of_what_was_chosen():
    model = plain()
    nn.init.constant_(model[2].weight, .1), nn.init.constant_(model[4].weight, .1)
    assert {n for _, n in loud(say(model, ROWS, where={'4'}))} == {'4'}

# ---- what cannot be read ----------------------------------------------------------------------

def test_strange_parameters_stop_nothing_and_are_named():
    net = nn.Sequential(nn.Linear(4, 40), nn.LazyLinear(4), nn.Linear(4, 4, device='meta'),
                        nn.Linear(4, 4), nn.Linear(4, 4, dtype=torch.cfloat),
                        P.weight_norm(nn.Linear(4, 4)), nn.Linear(40, 40))
    net[3].weight = nn.Parameter(torch.eye(4).to_sparse())
    net.register_buffer('packed', torch.zeros(3, dtype=torch.int8))
    net.register_buffer('tiny', torch.zeros(3).to(torch.float8_e4m3fn))
    nn.init.constant_(net[6].weight, .1), nn.init.zeros_(net[6].bias)
    said = unseen(net)
    assert ('symmetry', '6') in loud(said)
    skipped = {s.layer for s in said if isinstance(s, Skipped) and s.check == 'symmetry'}
    assert skipped == {'1.weight', '2.weight', '3.weight', '4.weight',
                       '5.weight'}
    with torch.no_grad(): net[4].weight[0, 0] = math.nan
    assert ('non-finite', '4.weight') in loud(unseen(net))

def test_masks_and_running_minima_are_fine():
    net = plain()
    net.register_buffer('mask', torch.full((4, 4), -math.inf).triu(1))
    net.register_buffer('least', torch.full((3,), math.inf))
    assert not loud(say(net, ROWS))
    net.register_buffer('odd', torch.tensor([1., math.inf]))
    said = say(net, ROWS)
    assert loud(said) == {('non-finite', 'odd')}
    repair(net, said)
    assert not loud(say(net, ROWS))

# ---- factories --------------------------------------------------------------------------------

def states():
    bits = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), bits[1].tolist(), bits[2:]

def interrupted(): raise KeyboardInterrupt

@pytest.mark.parametrize('make', (plain, lambda: 3, lambda: 1/0, interrupted))
def test_a_build_leaves_no_trace(make):
    before = states()
    for mode, fill in ((0, True), (1, False), (2, True)):
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fill
        try: build(make)
        except (InputError, KeyboardInterrupt): pass
        try:
            assert torch.get_deterministic_debug_mode() == mode
            assert torch.utils.deterministic.fill_uninitialized_memory is fill
        finally:
            torch.set_deterministic_debug_mode(0)
            torch.utils.deterministic.fill_uninitialized_memory = True
    assert states() == before

def test_what_a_build_refuses():
    def failing(): raise ValueError('no such width')
    with pytest.raises(InputError, match='failing failed, expected .* ValueError: no such width'):
        build(failing)
    for made in (None, 3, plain, (1, plain()), []):
        with pytest.raises(InputError, match=f'returned {type(made).__name__}, expected'):
            build(lambda: made)
    for make in (plain(), 'plain', None):
        with pytest.raises(InputError, match=f'got {type(make).__name__}'): build(make)

def test_a_build_is_the_model_that_one_would_have_had():
    torch.manual_seed(3)
    model, builds = build(plain)
    torch.manual_seed(3)
    for n, p in plain().named_parameters():
        assert torch.equal(p, model.get_parameter(n)) and torch.equal(p, builds.same[n])
        assert n.endswith('bias') or not torch.equal(p, builds.other[n])
    (net, batch), _ = build(lambda n: (nn.Linear(n, 2), torch.zeros(3, n)), 4)
    assert batch.shape == (3, 4) and net.in_features == 4

def test_a_factory_warns_once():
    def make():
        warnings.warn('old')
        return nn.Linear(2, 2)
    with pytest.warns(UserWarning) as caught: build(make)
    assert len(caught) == 1

class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.words = nn.Linear(48, 8), nn.LayerNorm(8), nn.Embedding(9, 8)
        self.own = nn.Parameter(torch.empty(8, 8))
        self.register_buffer('cache', torch.empty(3))
        nn.utils.skip_init(nn.Linear, 8, 8)
        for p in (self.a.weight, self.norm.weight, self.words.weight):
            p.data = torch.empty_like(p)
        self.b = nn.utils.skip_init(nn.Linear, 8, 8)
        nn.init.zeros_(self.b.bias)
    def forward(self, x): return self.b(self.norm(self.a(x)) @ self.own)

def test_what_was_never_written():
    model, builds = build(Forgetful)
    assert set(builds.unwritten) == {'a.weight', 'norm.weight', 'words.weight', 'own', 'cache',
                                     'b.weight'}
    said = say(model, ROWS, builds=builds)
    assert loud(said) == {('uninitialised', n) for n in ('(model)', 'a', 'norm', 'words', 'b')}
    def repaired():
        made = Forgetful()
        repair(made, said)
        return made
    model, builds = build(repaired)
    assert not loud(say(model, ROWS, builds=builds))
    assert model.norm.weight.eq(1).all()
    said = say(Forgetful(), ROWS)
    assert any(s.check == 'uninitialised' for s in said if isinstance(s, Skipped))

def audited(make):
    model, builds = build(make)
    return say(model, ROWS, builds=builds)

def test_a_layer_that_draws_from_a_seeded_generator():
    def make():
        net = plain()
        nn.init.normal_(net[2].weight, std=.2, generator=torch.Generator().manual_seed(1))
        return net
    said = audited(make)
    assert loud(said) == {('seed', '2.weight')}
    def repaired():
        net = make()
        repair(net, of(said, 'seed'))
        return net
    assert not loud(audited(repaired))

def test_a_factory_with_a_seed_of_its_own():
    def make():
        torch.manual_seed(0)
        return plain()
    said = audited(make)
    assert loud(said) == {('seed', '(model)')} and 'take that out' in of(said, 'seed')[0].message

@pytest.mark.parametrize('draw', (lambda: random.gauss(0, .1), lambda: np.random.normal(0, .1)))
def test_other_sources_of_numbers_are_seeded_too(draw):
    def make():
        net = plain()
        drawn = torch.tensor([draw() for _ in range(48*48)])
        with torch.no_grad(): net[2].weight.copy_(drawn.view(48, 48))
        return net
    assert not loud(audited(make))

def test_a_source_of_its_own_is_not_seeded():
    def make():
        net = plain()
        drawn = torch.from_numpy(np.random.default_rng().normal(0, .2, (48, 48)))
        with torch.no_grad(): net[2].weight.copy_(drawn)
        return net
    said = audited(make)
    assert loud(said) == {('seed', '2.weight')} and 'differ' in of(said, 'seed')[0].message
    def repaired():
        net = make()
        repair(net, of(said, 'seed'))
        return net
    assert not loud(audited(repaired))

def test_constants_and_loaded_weights_are_no_seeds():
    state = plain().state_dict()
    for v in state.values():
        if v.dim() > 1: v *= 1 + torch.randn(len(v), 1)             # it was trained
    def make():
        net = plain()
        net.load_state_dict(state)
        nn.init.eye_(net[4].weight)
        return net
    assert not loud(audited(make))
    model = plain()
    said = audited(lambda: model)                                    # the same again
    assert not loud(said) and any(s.check == 'seed' for s in said if isinstance(s, Skipped))

def test_frozen_weights_of_a_factory_are_judged_by_their_seeds():
    def make(std=.2):
        net = plain()
        net[2].requires_grad_(False)
        with torch.no_grad(): net[2].weight.pow_(3)                   # no draw that is known
        return net
    assert ('frozen', '2') in loud(audited(make))
    assert not of(say(make(), ROWS), 'frozen')
