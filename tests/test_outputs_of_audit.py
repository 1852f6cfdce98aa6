"What the checks of units, heads and gradients find in nets of one fault, and in healthy ones."
import math, random

import pytest, torch
import torch.nn.functional as F
from torch import nn

import initnotes.all as ini
from initnotes import outputs
from initnotes.evidence import Evidence, Finding, Skipped, measure
from initnotes.outputs import (
    Attention, FirstLoss, Units, _edges, _log_tail, _logits, _spread, _visible, recorders)
from initnotes.thresholds import silent

L, C = nn.Linear, nn.Conv2d

class Net(nn.Module):
    "A forward of one's own: `f(self, …)`."
    def __init__(self, forward, **modules):
        super().__init__()
        self.f = forward
        for name, m in modules.items(): setattr(self, name, m)
    def forward(self, *args, **kwargs): return self.f(self, *args, **kwargs)

def audit(model, *args, loss=None, **kwargs):
    "Everything that the checks yield; a recorder that failed is a bug."
    e = measure(model, args, kwargs, loss, recorders())
    assert not [r.failed for r in e.recorders if r.failed]
    return [f for check in outputs.CHECKS.values() for f in check(e)]

def loud(found): return [f for f in found if isinstance(f, Finding) and f.severity != 'info']
def repair(model, found):
    for f in found: exec(f.fix, dict(model=model, ini=ini, nn=nn, torch=torch))

def ce(classes, n=32, **options):
    y = torch.randint(0, classes, (n,))
    return lambda out: F.cross_entropy(out, y, **options)

def rows(): return torch.randn(32, 24)
def images(): return torch.randn(32, 3, 16, 16)
def tokens(n=16): return torch.randint(0, 60, (4, n))
def words(model_out, n=16):
    y = torch.randint(0, 60, (4, n))
    return F.cross_entropy(model_out.mT, y)

def mlp(act=nn.ReLU, n=64, depth=4, classes=10):
    layers = [m for k in range(depth) for m in (L(n if k else 24, n), act())]
    return ini_(nn.Sequential(*layers, L(n, classes)))

def ini_(model):
    ini.init_(model)
    return model

def cnn(act=nn.ReLU, n=16):
    return ini_(nn.Sequential(C(3, n, 3), act(), C(n, n, 3), act(), C(n, n, 3), act(), nn.Flatten(),
                              L(n*100, 10)))

def residual(act=nn.ReLU, n=32):
    def forward(s, x):
        x = s.first(x)
        for b in s.blocks: x = x + b(x)
        return s.head(x)
    blocks = [nn.Sequential(nn.LayerNorm(n), L(n, 2*n), act(), L(2*n, n)) for _ in range(4)]
    return Net(forward, first=L(24, n), blocks=nn.ModuleList(blocks), head=L(n, 10))

def transformer(act='relu', n=64, tie=False):
    def forward(s, i):
        mask = nn.Transformer.generate_square_subsequent_mask(i.shape[1])
        x = s.embed(i)
        for b in s.blocks: x = b(x, src_mask=mask, is_causal=True)
        return s.head(s.norm(x))
    block = [nn.TransformerEncoderLayer(n, 4, 2*n, 0., act, batch_first=True, norm_first=True)
             for _ in range(2)]
    m = Net(forward, embed=nn.Embedding(60, n), blocks=nn.ModuleList(block), norm=nn.LayerNorm(n),
            head=L(n, 60, bias=False))
    if tie: m.head.weight = m.embed.weight
    return m

def layer(model, name): return model.get_submodule(name)
def const(p, value): return nn.init.constant_(p, value)

# ---- one fault each ----------------------------------------------------------------------------

FAULTS = []

def fault(check, at, also='', mends=True):
    "A model with a fault: the check that names it, the layer; other checks that may; is it mended?"
    def add(make):
        may = {check, *also.split()}
        FAULTS.append(pytest.param(make, check, at, may, mends, id=make.__name__))
        return make
    return add

@fault('dead', '2', 'no-gradient')
def a_bias_that_silences():
    m = mlp()
    const(m[2].bias, -9.)
    return m, rows(), ce(10)

@fault('dead', '2')
def half_a_layer_silenced():
    m = mlp()
    const(m[2].bias[:32], -9.)
    return m, rows(), ce(10)

@fault('dead', '2', 'no-gradient')
def eight_channels_silenced():
    m = cnn(n=8)
    const(m[2].bias, -9.)
    return m, images(), ce(10)

@fault('dead', '2', 'no-gradient')
def weights_that_only_take_away():
    m = mlp()
    m[2].weight.data -= .5
    return m, rows(), ce(10)

@fault('dead', 'blocks.2.1', 'no-gradient')
def a_silent_branch():
    m = residual()
    const(m.blocks[2][1].bias, -9.)
    return m, rows(), ce(10)

@fault('dead', '1', 'no-gradient')
def a_norm_that_silences():
    m = nn.Sequential(C(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(inplace=True), C(32, 8, 3),
                      nn.Flatten(), L(8*144, 10))
    const(m[1].bias, -9.)
    return m, images(), ce(10)

@fault('dead', 'blocks.1.linear1', 'no-gradient')
def a_silent_feed_forward():
    m = transformer()
    const(m.blocks[1].linear1.bias, -9.)
    return m, tokens(), words

@fault('saturated', '2', 'initial-loss no-gradient')
def a_hot_tanh():
    m = mlp(nn.Tanh)
    m[2].weight.data *= 40
    return m, rows(), ce(10)

@fault('saturated', '2', 'no-gradient')
def a_shifted_sigmoid():
    m = cnn(nn.Sigmoid)
    const(m[2].bias, 30.)
    return m, images(), ce(10)

@fault('saturated', '0')
def pixels_of_255():
    return mlp(nn.Tanh), 255*rows().abs(), ce(10)

@fault('saturated', '0')
def a_relu6_above_six():
    m = mlp(nn.ReLU6)
    m[0].weight.data *= 60
    return m, rows(), ce(10)

@fault('saturated', 'blocks.1.linear1', 'no-gradient')
def a_gelu_that_is_off():
    m = transformer('gelu')
    const(m.blocks[1].linear1.bias, -20.)
    return m, tokens(), words

@fault('attention', 'blocks.1.self_attn')
def hot_queries():
    m = transformer()
    m.blocks[1].self_attn.in_proj_weight.data[:64] *= 60
    return m, tokens(), words

@fault('attention', '(model)')
def logits_that_nobody_scaled():
    m = ini_(Net(lambda s, x: (s.q(x) @ s.k(x).mT).softmax(-1) @ s.v(x),
                 q=L(64, 64), k=L(64, 64), v=L(64, 64)))
    return m, torch.randn(4, 20, 64), None

@fault('attention', '(model)')
def one_sequence_one_head():
    m, x, loss = logits_that_nobody_scaled()
    return m, x[:1], loss

@fault('attention', '(model)')
def hot_additive_attention():
    m = additive()
    m.v.weight.data *= 100
    return m, torch.randn(16, 20, 24), None

@fault('initial-loss', '8')
def a_hot_head():
    m = mlp()
    nn.init.normal_(m[-1].weight)
    return m, rows(), ce(10)

@fault('initial-loss', '8')
def a_hot_head_of_two():
    m = mlp(classes=2)
    m[-1].weight.data *= 30
    return m, rows(), ce(2, label_smoothing=.1, weight=torch.tensor([1., 3.]))

@fault('initial-loss', '8')
def a_hot_head_and_a_written_out_loss():
    m, x, _ = a_hot_head()
    y = torch.randint(0, 10, (32,))
    return m, x, lambda z: (z.logsumexp(-1) - z.gather(1, y[:, None])[:, 0]).mean()

@fault('initial-loss', 'head')
def a_hot_head_of_words():
    m = transformer()
    nn.init.normal_(m.head.weight)
    return m, tokens(), words

@fault('tied', 'embed.weight', 'initial-loss')
def an_embedding_as_head():
    return transformer(tie=True), tokens(), words

@fault('no-gradient', '4', 'dead')
def two_layers_of_zeros():
    m = mlp(nn.Tanh)
    for p in (*m[2].parameters(), *m[4].parameters()): nn.init.zeros_(p)
    return m, rows(), ce(10)

@fault('no-gradient', 'blocks.1.3', 'dead')
def a_branch_of_zeros():
    m = residual()
    for k in (1, 3):
        for p in m.blocks[1][k].parameters(): nn.init.zeros_(p)
    return m, rows(), ce(10)

@fault('no-gradient', 'a', mends=False)
def detached():
    return Net(lambda s, x: s.b(s.a(x).relu().detach()), a=L(24, 24), b=L(24, 10)), rows(), ce(10)

@fault('no-gradient', 'a', mends=False)
def rounded():
    return Net(lambda s, x: s.b(s.a(x).round()), a=L(24, 24), b=L(24, 10)), rows(), None

@fault('no-gradient', '8', mends=False)
def accuracy_as_loss():
    return mlp(), rows(), lambda out: (out.argmax(-1) == 0).float().mean()

@fault('unused', 'each.2')
def a_forgotten_layer():
    return Net(lambda s, x: s.each[1](s.each[0](x)),
               each=nn.ModuleList([L(24, 24) for _ in range(3)])), rows(), None

@fault('unused', '(model)')
def a_forgotten_parameter():
    m = mlp()
    m.scale = nn.Parameter(torch.ones(3))
    return m, rows(), ce(10)

@fault('unused', 'a', mends=False)
def a_result_thrown_away():
    return Net(lambda s, x: (s.a(x), s.b(x))[1], a=L(24, 24), b=L(24, 10)), rows(), None

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('make, check, at, may, mends', FAULTS)
def test_a_fault_is_named_and_mended(make, check, at, may, mends, seed):
    torch.manual_seed(seed)
    model, x, loss = make()
    found = loud(audit(model, x, loss=loss))
    assert [f.layer for f in found if f.check == check] == [at], found
    assert {f.check for f in found} <= may
    for f in found:
        assert f.severity == ('error' if f.check == 'no-gradient' else 'warning')
        assert f.message.endswith('.')
    repair(model, [f for f in found if f.check == check])
    left = loud(audit(model, x, loss=loss))
    assert not left if mends else not any(f.fix for f in found)

# ---- nothing is wrong --------------------------------------------------------------------------

HEALTHY = []
def healthy(make):
    HEALTHY.append(make)
    return make

def additive():
    def forward(s, x): return (s.v(s.a(x).tanh()).squeeze(-1).softmax(-1)[..., None]*x).sum(1)
    return Net(forward, a=L(24, 32), v=L(32, 1))

@healthy
def thirty_layers(): return mlp(depth=30), rows(), ce(10)
@healthy
def thirty_layers_and_two_classes(): return mlp(depth=30, classes=2), rows(), ce(2)
@healthy
def twenty_narrow_layers(): return mlp(depth=10, n=16), rows(), ce(10)
@healthy
def two_images(): return cnn(), images()[:2], ce(10, 2)
@healthy
def a_tanh_net(): return mlp(nn.Tanh, depth=20), rows(), ce(10)
@healthy
def a_sigmoid_net(): return mlp(nn.Sigmoid), rows(), ce(10)
@healthy
def a_sigmoid_net_at_the_edge():
    m = mlp(nn.Sigmoid)
    ini.init_(m, nonlinearity='sigmoid', start='edge')
    return m, rows(), None
@healthy
def a_tanh_net_of_std_three():
    m = mlp(nn.Tanh, depth=1)
    m[0].weight.data *= 3
    return m, rows(), None
@healthy
def a_silu_net(): return mlp(nn.SiLU, depth=20, n=32), rows(), ce(10)
@healthy
def a_residual_net(): return residual(), rows(), ce(10)
@healthy
def a_transformer(): return transformer(), tokens(), words
@healthy
def initialised_for_gelu():
    m = transformer('gelu')
    ini.init_(m, nonlinearity='gelu')
    return m, tokens(8), lambda out: words(out, 8)
@healthy
def a_small_embedding_as_head():
    m = transformer(tie=True)
    nn.init.normal_(m.embed.weight, std=.02)
    return m, tokens(), words
@healthy
def one_token(): return transformer(), tokens(1), lambda out: words(out, 1)
@healthy
def additive_attention(): return additive(), torch.randn(16, 20, 24), None
@healthy
def a_router_that_is_sure():
    m = Net(lambda s, x: s.r(x).softmax(-1), r=L(24, 8))
    m.r.weight.data *= 100
    return m, rows(), None
@healthy
def distances():
    far = torch.arange(200.)[None] - torch.arange(200.)[:, None]
    def forward(s, x):
        z = s.q(x) @ s.k(x).mT/5 + far.where(far <= 0, -math.inf)/2
        return z.softmax(-1) @ s.v(x)
    return Net(forward, q=L(24, 24), k=L(24, 24), v=L(24, 24)), torch.randn(1, 200, 24), None
@healthy
def a_highway():
    def forward(s, x):
        for h, t in zip(s.h, s.t):
            g = t(x).sigmoid()
            x = g*h(x).relu() + (1 - g)*x
        return x
    m = Net(forward, h=nn.ModuleList([L(24, 24) for _ in range(5)]),
            t=nn.ModuleList([L(24, 24) for _ in range(5)]))
    for t in m.t: const(t.bias, -6.)
    return m, rows(), None
@healthy
def a_detector():
    m = nn.Sequential(C(3, 16, 3), nn.ReLU(), C(16, 9, 3), nn.Sigmoid())
    const(m[2].bias, -4.6)
    return m, images(), None
@healthy
def a_head_that_knows_the_shares():
    m = mlp()
    m[-1].bias.data = torch.tensor([.991] + [.001]*9).log()
    return m, rows(), lambda out: F.cross_entropy(out, torch.zeros(32, dtype=torch.long))
@healthy
def masked_classes():
    mask = torch.zeros(10).index_fill(0, torch.arange(5), -1e9)
    y = torch.randint(5, 10, (32,))
    return mlp(), rows(), lambda out: F.cross_entropy(out + mask, y)
@healthy
def a_zero_head_on_zero_branches():
    m = residual()
    for b in m.blocks: nn.init.zeros_(b[3].weight), nn.init.zeros_(b[3].bias)
    nn.init.zeros_(m.head.weight)
    return m, rows(), lambda out: (out - 1).square().mean()
@healthy
def an_rnn_of_one_step():
    m = Net(lambda s, x: s.head(s.rnn(x)[0][:, -1]), rnn=nn.LSTM(24, 16, batch_first=True),
            head=L(16, 10))
    return m, rows()[:, None], ce(10)
@healthy
def a_codebook():
    def forward(s, x):
        z = s.a(x)
        q = s.book(torch.cdist(z, s.book.weight).argmin(-1))
        return s.b(z + (q - z).detach())
    return Net(forward, a=L(24, 8), book=nn.Embedding(30, 8), b=L(8, 24)), rows(), None
class Experts(nn.Module):
    def __init__(self, n=16):
        super().__init__()
        self.router = L(24, n)
        self.each = nn.ModuleList([nn.Sequential(L(24, 32), nn.ReLU(), L(32, 24))
                                   for _ in range(n)])
    def forward(self, x):
        w, which = self.router(x).softmax(-1).max(-1)
        out = x.clone()
        for k, expert in enumerate(self.each):
            at = (which == k).nonzero()[:, 0]
            if len(at): out = out.index_add(0, at, w[at, None]*expert(x[at]))
        return out
@healthy
def idle_experts(): return Experts(), rows()[:4], None
@healthy
def layers_dropped_at_random():
    def forward(s, x):
        for m in s.each:
            if random.random() < .5: x = x + m(x).relu()
        return x
    return Net(forward, each=nn.ModuleList([L(24, 24) for _ in range(6)])), rows(), None
@healthy
def squeezed_to_two():
    def gated(s, x):
        g = s.up(s.down(x.mean((2, 3))).relu()).sigmoid()
        return x + s.c(x)*g[..., None, None]
    parts = [Net(gated, c=C(16, 16, 3, padding=1), down=L(16, 2), up=L(2, 16)) for _ in range(6)]
    return nn.Sequential(C(3, 16, 3), *parts), images()[:4], None

@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('make', HEALTHY)
def test_nothing_is_said_of_a_healthy_model(make, seed):
    torch.manual_seed(seed)
    model, x, loss = make()
    assert not loud(audit(model, x, loss=loss))

@pytest.mark.parametrize('depth', [1, 5, 20, 60])
def test_no_kaiming_net_is_dead(depth):
    "However many units are silent."
    for seed in range(2, 14, 2):
        torch.manual_seed(seed)
        units, x = Units(), torch.randn(seed, 24)
        e = measure(mlp(depth=depth, n=40), (x,), recorders=[units])
        assert not loud(outputs.dead(e))
    if depth == 60: assert list(units.found.values())[-1].off > 5

# ---- what was not looked at ----------------------------------------------------------------------

def skipped(found): return {f.check: f.reason for f in found if isinstance(f, Skipped)}

def test_what_does_not_apply_is_said():
    found = skipped(audit(L(24, 10), rows()))
    assert found['dead'].startswith('no layer feeds a ReLU') and 'no loss' in found['initial-loss']
    assert {'attention', 'saturated', 'tied'} <= found.keys()
    found = skipped(audit(L(24, 10), rows(), loss=lambda out: out.square().mean()))
    assert 'no cross-entropy' in found['initial-loss']
    assert 'was given' in skipped(audit(transformer(tie=True), tokens()))['tied']
    assert 'fewer than 8' in skipped(audit(transformer(), tokens(7)))['attention']

def test_what_chance_and_the_batch_explain_is_said():
    torch.manual_seed(0)
    model, x, _ = idle_experts()
    assert 'experts' in skipped(audit(model, x))['unused']
    model, x, loss = an_rnn_of_one_step()
    assert 'constant' in skipped(audit(model, x, loss=loss))['no-gradient']
    model, x, _ = a_codebook()
    assert 'codebook' in skipped(audit(model, x))['no-gradient']
    assert 'zeros' in skipped(audit(mlp(), torch.zeros(8, 24)))['no-gradient']
    model, x, _ = logits_that_nobody_scaled()
    assert 'one key' in skipped(audit(model, x[:, :1]))['no-gradient']

def test_without_recorders_or_a_pass_checks_are_skipped():
    m = mlp()
    for e in (measure(m, (rows(),)), Evidence(m, (), {}, None, [], set(), None, None, 'why', [])):
        for name in ('dead', 'saturated', 'attention', 'initial-loss', 'rank'):
            assert all(isinstance(f, Skipped) for f in outputs.CHECKS[name](e))

def test_a_recorder_that_fails_stops_nothing():
    units = Units()
    units.look = lambda call: 1/0
    e = measure(mlp(), (rows(),), recorders=[units])
    assert 'ZeroDivisionError' in [f.reason for f in outputs.dead(e)][0]

def test_information_on_branches_that_begin_at_zero():
    torch.manual_seed(0)
    model, x, loss = a_zero_head_on_zero_branches()
    (f,) = [f for f in audit(model, x, loss=loss) if getattr(f, 'severity', '') == 'info']
    assert f.check == 'no-gradient' and 'two steps' in f.message
    heads = Net(lambda s, x: (s.a(x), s.b(x)), a=L(24, 10), b=L(24, 10))
    y = ce(10)
    (f,) = [f for f in audit(heads, rows(), loss=lambda out: y(out[0])) if isinstance(f, Finding)]
    assert f.severity == 'info' and 'does not depend on b.weight' in f.message

def test_the_model_is_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(C(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(),
                        L(8*196, 10), L(10, 10), nn.ReLU(), L(10, 10))
    for p in (net[8].weight, net[6].weight, net[6].bias): nn.init.zeros_(p)
    net[3].eval()
    first = net[0].weight
    first.grad = torch.ones_like(first)
    m = Net(lambda s, x: s.net(x), net=net, spare=L(3, 3))
    before = {n: v.clone() for n, v in m.state_dict().items()}
    x, loss, modes = images(), ce(10), [k.training for k in m.modules()]
    state = torch.get_rng_state()
    found = {f.check for f in loud(audit(m, x, loss=loss))}
    assert {'no-gradient', 'unused'} <= found
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[n]) for n, v in m.state_dict().items())
    assert [k.training for k in m.modules()] == modes
    assert all(p.grad is None for p in m.parameters() if p is not first)
    assert first.grad.eq(1).all() and not any(k._forward_hooks for k in m.modules())

def test_at_most_two_passes_more():
    "The measuring pass, and two steps; a third where parameters are unused."
    model = a_branch_of_zeros()[0]
    runs, loss = [], ce(10)
    forward = model.f
    model.f = lambda *args: runs.append(1) or forward(*args)
    audit(model, rows(), loss=loss)
    assert len(runs) == 3
    model.spare = L(3, 3)
    runs.clear()
    audit(model, rows(), loss=loss)
    assert len(runs) == 4

# ---- parts ---------------------------------------------------------------------------------------

@pytest.mark.parametrize('op, f, options', [
    ('tanh', torch.tanh, {}), ('sigmoid', torch.sigmoid, {}), ('gelu', F.gelu, {}),
    ('silu', F.silu, {}), ('elu', F.elu, {'alpha': 2.}), ('mish', F.mish, {}),
    ('hardtanh', F.hardtanh, {'min_val': -2., 'max_val': 3.}), ('hardswish', F.hardswish, {})])
def test_edges_are_where_the_slope_is_e3_below_the_steepest(op, f, options):
    low, high = _edges(op, tuple(options.items()))
    z = torch.linspace(-50, 50, 100_001, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(f(z, **options).sum(), z)[0].abs()
    live = z.detach()[slope >= math.exp(-3)*slope.max()]
    for edge, seen, end in ((low, live.min(), -50), (high, live.max(), 50)):
        if math.isinf(edge): assert abs(seen - end) < .02
        else: assert abs(edge - seen.item()) < .011

def test_the_tail_is_the_binomials():
    for k, n, p in ((3, 10, .5), (10, 10, .1), (1, 40, .02), (0, 5, .3)):
        exact = sum(math.comb(n, j)*p**j*(1 - p)**(n - j) for j in range(k, n + 1))
        assert abs(_log_tail(k, n, p) - math.log(exact)) < 1e-9
    assert _log_tail(1, 5, 0.) == -math.inf and _log_tail(5, 5, 1.) == 0

def test_random_signs_agree_with_the_theory_of_alike_inputs():
    "Of inputs of a given cosine, and of many units; five standard errors of a share."
    torch.manual_seed(0)
    for c in (.5, .9, .99):
        x = c**.5*torch.randn(1, 4000) + (1 - c)**.5*torch.randn(8, 4000)
        m = nn.Sequential(L(4000, 64), nn.ReLU())
        const(m[0].bias, -30.)
        units = Units()
        measure(m, (x,), recorders=[units])
        (u,) = units.found.values()
        p = silent(c, 8)
        assert u.off == 64 and abs(u.alike - p) < 5*math.sqrt(p/u.draws) + .01

@pytest.mark.parametrize('options', [{}, dict(is_causal=True), dict(scale=.7), 'bool', 'float',
                                     'gqa'])
def test_logits_are_those_of_the_fused_kernel(options):
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 4, 9, 8, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(9, 9) < .7
    mask[:, 0] = True
    if options == 'bool': options = dict(attn_mask=mask)
    elif options == 'float': options = dict(attn_mask=torch.randn(3, 1, 9, 9, dtype=q.dtype))
    elif options == 'gqa': k, v, options = k[:, :2], v[:, :2], dict(enable_gqa=True)
    out = F.scaled_dot_product_attention(q, k, v, **options)
    z = _logits(dict(query=q, key=k) | options).double()
    v = v.repeat_interleave(4//v.shape[1], 1)
    assert torch.allclose(z.softmax(-1) @ v, out, atol=1e-5)

def test_masks_are_seen_and_hot_rows_are_not_taken_for_masks():
    torch.manual_seed(0)
    z = torch.randn(40, 64)
    for low in (-math.inf, torch.finfo(torch.float32).min, -1e9, -1e4, -100.):
        masked = z.clone()
        masked[:, ::3] = z[:, ::3] + low if low > -1e38 else low
        assert torch.equal(_visible(masked)[0], torch.arange(64) % 3 > 0)
    for s in (1., 5., 20.): assert _visible(s*z).all()
    variance, n, _ = _spread(300*z)                     # even then most of each row counts
    assert (variance/2 > n.double().log())[n > 7].all() and (n > 7).sum() > 20

@pytest.mark.parametrize('options', [
    {}, dict(label_smoothing=.3), dict(reduction='sum'), dict(ignore_index=0),
    dict(weight=torch.arange(1., 11.))], ids=str)
def test_a_cross_entropy_is_recognized(options):
    torch.manual_seed(0)
    m, x, y = mlp(), rows(), torch.randint(0, 10, (32,))
    first = FirstLoss()
    measure(m, (x,), loss=lambda out: F.cross_entropy(out, y, **options), recorders=[first])
    (f,) = first.found
    options.pop('label_smoothing', 0)
    value = F.cross_entropy(m(x), y, **options | dict(reduction='mean')).item()
    assert f.classes == 10 and abs(f.value - value) < 1e-5
    assert abs(f.square - m(x).var(-1).mean().item()) < 1e-4

def test_a_loss_inside_the_model_is_seen():
    torch.manual_seed(0)
    m, y = mlp(), torch.randint(0, 10, (32,))
    whole = Net(lambda s, x: F.nll_loss(s.m(x).log_softmax(-1), y), m=m)
    first = FirstLoss()
    measure(whole, (rows(),), recorders=[first])
    assert first.found[0].classes == 10 and first.found[0].node.params == ('m.8.weight',)

@pytest.mark.parametrize('make, at', [(mlp, '2'), (cnn, '2'), (residual, 'blocks.1.1')])
def test_a_layer_of_rank_one_is_mentioned(make, at):
    torch.manual_seed(0)
    m, x = make(), images() if make is cnn else rows()
    def ranks(): return [f for f in audit(m, x) if isinstance(f, Finding) and f.check == 'rank']
    assert not ranks()
    w = m.get_submodule(at).weight.data
    w.copy_((torch.randn(len(w), 1) @ torch.randn(1, w[0].numel())).reshape(w.shape)/5)
    found = ranks()
    assert [f.layer for f in found][0] == at and found[0].severity == 'info'
    repair(m, found[:1])
    assert not ranks()

def test_a_hot_tied_head_is_found_behind_a_copy_of_the_logits():
    torch.manual_seed(0)
    m, x, y = transformer(tie=True), tokens(), torch.randint(0, 60, (4*15,))
    def loss(out): return F.cross_entropy(out[:, :-1].reshape(-1, 60), y)
    assert {f.check for f in loud(audit(m, x, loss=loss))} == {'tied', 'initial-loss'}

def test_gradients_may_be_sparse():
    torch.manual_seed(0)
    m = Net(lambda s, i: s.head(s.e(i).mean(1)), e=nn.Embedding(60, 24, sparse=True),
            head=L(24, 10))
    nn.init.zeros_(m.head.weight)
    y = ce(10, 4)
    assert not loud(audit(m, tokens(), loss=y))

def test_uniform_attention_of_keys_that_are_alike_is_mentioned():
    m = transformer()
    nn.init.zeros_(m.blocks[0].self_attn.in_proj_weight)
    found = [f for f in audit(m, tokens()) if isinstance(f, Finding) and f.check == 'attention']
    assert [f.severity for f in found] == ['info']

# ---- architectures of transformers ---------------------------------------------------------------

SMALL = dict(vocab_size=60, hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
             intermediate_size=96, pad_token_id=0, bos_token_id=1, eos_token_id=2)

def architectures():
    T = pytest.importorskip('transformers')
    i, image = tokens(), torch.randn(2, 3, 32, 32)
    lm = dict(input_ids=i, labels=tokens())
    yield T.GPT2LMHeadModel(T.GPT2Config(vocab_size=60, n_embd=64, n_layer=2, n_head=4)), lm
    yield T.LlamaForCausalLM(T.LlamaConfig(**SMALL, num_key_value_heads=2)), lm
    yield T.MixtralForCausalLM(T.MixtralConfig(**SMALL, num_key_value_heads=2)), lm
    yield T.BloomForCausalLM(T.BloomConfig(vocab_size=60, hidden_size=64, n_layer=2, n_head=4)), lm
    yield T.BertModel(T.BertConfig(**SMALL)), dict(input_ids=i)
    yield T.T5ForConditionalGeneration(T.T5Config(
        vocab_size=60, d_model=64, d_kv=16, d_ff=96, num_layers=2, num_heads=4,
        decoder_start_token_id=0)), lm
    yield T.MambaForCausalLM(T.MambaConfig(vocab_size=60, hidden_size=64, num_hidden_layers=2,
                                           state_size=8)), lm
    yield T.SwinModel(T.SwinConfig(image_size=32, patch_size=2, embed_dim=16, depths=[2, 2],
                                   num_heads=[2, 4], window_size=4)), dict(pixel_values=image)
    yield T.RegNetModel(T.RegNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[2, 2],
                                       groups_width=8)), dict(pixel_values=image)

@pytest.mark.slow
def test_architectures_are_healthy_at_their_own_start():
    for seed in range(2):
        torch.manual_seed(seed)
        for model, batch in architectures():
            loss = (lambda out: out.loss) if 'labels' in batch else None
            assert not loud(audit(model, loss=loss, **batch)), type(model).__name__

@pytest.mark.slow
def test_hot_attention_of_an_architecture_is_found():
    T = pytest.importorskip('transformers')
    for how in ('eager', 'sdpa'):
        torch.manual_seed(0)
        m = T.GPT2LMHeadModel(T.GPT2Config(vocab_size=60, n_embd=64, n_layer=2, n_head=4,
                                           attn_implementation=how))
        m.transformer.h[1].attn.c_attn.weight.data[:, :128] *= 20
        found = loud(audit(m, input_ids=tokens(), labels=tokens(), loss=lambda out: out.loss))
        assert [(f.check, f.layer) for f in found] == [('attention', 'transformer.h.1.attn')]
        repair(m, found)
        assert not loud(audit(m, input_ids=tokens(), labels=tokens(), loss=lambda out: out.loss))
