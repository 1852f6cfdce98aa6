"The small GPT and the conv net: stacked nets are PyTorch's, and so is their training."
import math
from dataclasses import replace

import pytest, torch
import torch.nn.functional as F
from torch import nn

from initnotes import experiments as ex
from initnotes import init_
from initnotes import trained as tr

SEED = 78

def arm(net, **k):
    own = dict(gpt=dict(depth=2, activation='gelu'), conv=dict(depth=6, activation='relu'))[net]
    return ex.Arm(**dict(start='depth', residual=net, optimiser='Adam', rate=.003, width=8, steps=6,
                         batch=8) | own | k)

@pytest.fixture
def data():
    "Text, or images of 6 × 6."
    def some(n, net):
        return (torch.randint(10, (2, n, 5)) if net == 'gpt'
                else (torch.randn(n, 36), torch.randint(10, (n,))))
    return {net: (*some(100, net), *some(30, net)) for net in ('gpt', 'conv')}

class Block(nn.Module):
    "Of a GPT, with PyTorch's own attention."
    def __init__(self, d):
        super().__init__()
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.attention = nn.MultiheadAttention(d, 4, batch_first=True)
        self.up, self.down = nn.Linear(d, 4*d), nn.Linear(4*d, d)

    def forward(self, h):
        z, t = self.norm(h), h.shape[1]
        mask = torch.full((t, t), -math.inf).triu(1)
        h = h + self.attention(z, z, z, attn_mask=mask, need_weights=False)[0]
        return h + self.down(F.gelu(self.up(self.norm(h))))

    def linears(self):
        a = self.attention
        return [(a.in_proj_weight, a.in_proj_bias), (a.out_proj.weight, a.out_proj.bias),
                (self.up.weight, self.up.bias), (self.down.weight, self.down.bias)]

class Plain(nn.Module):
    "Net i of a stack, in plain PyTorch."
    def __init__(self, net, i):
        super().__init__()
        self.gpt = isinstance(net, tr.GPT)
        d = net.w[0].shape[2]
        with torch.no_grad():
            if self.gpt:
                self.embedding = nn.Parameter(net.w[0][i].clone())
                self.position = nn.Parameter(net.b[0][i].clone())
                self.blocks = nn.ModuleList(Block(d) for _ in net.w[1::4])
                here = [two for b in self.blocks for two in b.linears()]
                there = zip(net.w[1:], net.b[1:])
            else:
                shapes = [w.shape[1:] for w in net.w]
                self.convs = nn.ModuleList(nn.Conv2d(n//9, c, 3, 2 if k == 0 else 1, 1)
                                           for k, (n, c) in enumerate(shapes[:-1]))
                self.head = nn.Linear(*shapes[-1])
                here = [(m.weight, m.bias) for m in (*self.convs, self.head)]
                there = zip(net.w, net.b)
            for (w, b), (ws, bs) in zip(here, there, strict=True):
                w.copy_(ws[i].T.view(w.shape))
                b.copy_(bs[i, 0])

    def forward(self, x):
        if self.gpt:
            h = self.embedding[x] + self.position
            for b in self.blocks: h = b(h)
            return F.layer_norm(h, h.shape[-1:]) @ self.embedding.T
        first, *inner = self.convs
        h = first(x.unflatten(1, (1, 6, 6)))
        for a, b in zip(inner[::2], inner[1::2]): h = h + b(F.relu(a(h)))
        return self.head(h.mean((2, 3)))

STARTS = [('gpt', s) for s in ('unscaled', 'depth', 'zero', 'GPT-2', 'PyTorch')]
STARTS += [('conv', s) for s in ('default', 'unscaled', 'depth', 'zero')]

@pytest.mark.parametrize('net, start', STARTS)
@pytest.mark.parametrize('optimiser', ['SGD', 'Adam', 'Adam, warm-up'])
def test_stacked_training_is_plain_training(data, net, start, optimiser):
    "Net by net, with the same weights and batches: PyTorch's layers, attention and scheduler."
    a, (x, y, x_valid, y_valid) = arm(net, start=start, optimiser=optimiser), data[net]
    rows = ex.train(a, range(2), data[net])
    stack = ex.started(a, range(2), x)[0]
    for s in range(2):
        model = Plain(stack, s)
        opt = getattr(torch.optim, optimiser.partition(',')[0])(model.parameters(), lr=a.rate)
        slow = torch.optim.lr_scheduler.LambdaLR(
            opt, lambda k: (k + 1)/50 if 'warm' in optimiser else 1.)
        order = torch.randperm(100, generator=torch.Generator().manual_seed(s))[:a.steps*a.batch]
        for i in order.split(a.batch):
            opt.zero_grad()
            F.cross_entropy(model(x[i]).flatten(0, -2), y[i].flatten()).backward()
            opt.step()
            slow.step()
        with torch.no_grad(): z = model(x_valid).flatten(0, -2)
        loss = F.cross_entropy(z, y_valid.flatten()).item()
        assert rows[s]['loss'] == pytest.approx(loss, rel=1e-3)
        right = (z.argmax(1) == y_valid.flatten()).double().mean().item()
        assert rows[s]['accuracy'] == pytest.approx(right, abs=2.5/y_valid.numel())

@pytest.mark.parametrize('net', ['gpt', 'conv'])
def test_a_seed_is_the_same_alone(data, net):
    together, alone = (ex.train(arm(net), seeds, data[net]) for seeds in ([3, 5], [5]))
    assert together[1]['loss'] == pytest.approx(alone[0]['loss'], rel=1e-4)
    assert together[0]['loss'] != together[1]['loss']

@pytest.mark.parametrize('net, blocks', [('gpt', 2), ('conv', 2)])
def test_writers(data, net, blocks):
    "Blocks whose writers are zero hand the stream on; 'depth' is 'unscaled' by 1/√branches."
    x = data[net][0]
    unscaled, depth, zero = (ex.started(arm(net, start=s), [0], x)[0]
                             for s in ('unscaled', 'depth', 'zero'))
    branches = blocks*(2 if net == 'gpt' else 1)
    for k, (u, d, z) in enumerate(zip(unscaled.w, depth.w, zero.w)):
        writes = k in zero.writers
        assert torch.allclose(d, u/math.sqrt(branches) if writes else u)
        assert z.any() != writes
    for k, b in enumerate(zero.b):
        if k not in zero.writers: b += torch.randn_like(b)   # what is zero is not zero by chance
    bare = ex.started(arm(net, start='zero', depth=2), [0], x)[0]
    ends = [0] if net == 'gpt' else [0, -1]   # a GPT's head is its embedding
    bare.w, bare.b = ([p[k] for k in ends] for p in (zero.w, zero.b))
    assert torch.allclose(bare(x[None, :4]), zero(x[None, :4]), atol=1e-6)

def close_to(x, std):
    "Whether normal or uniform numbers have this standard deviation: within five standard errors."
    return abs(x.square().mean().sqrt()/std - 1) < 5/math.sqrt(2*x.numel())

def test_starts_of_the_gpt_are_what_their_names_say(data):
    a = arm('gpt', width=32)
    starts = 'PyTorch', 'PyTorch, embedding .02', 'GPT-2', 'unscaled', 'zero, embedding 1'
    nets = {s: ex.started(replace(a, start=s), range(2), data['gpt'][0])[0] for s in starts}
    for name, std in zip(nets, (1., .02, .02, .02, 1.)):
        assert close_to(nets[name].w[0], std) and close_to(nets[name].b[0], std)
    for k, w in enumerate(nets['GPT-2'].w[1:], 1):
        assert close_to(w, .02/math.sqrt(4) if k % 2 == 0 else .02)
    linear = nn.Linear(32, 96)
    assert close_to(nets['PyTorch'].w[1], linear.weight.std().item())
    report = [r for r in init_(nn.Sequential(nn.Linear(32, 96), nn.GELU(), nn.Linear(96, 8)),
                               nonlinearity='auto') if r['parameter'] == '2.weight']
    gelu = report[0]['std_asked']*math.sqrt(96)
    assert close_to(nets['unscaled'].w[4], gelu/math.sqrt(128))

def test_the_text_has_the_sources_chances():
    "Of the commonest pair, the next character's shares; five standard errors of a binomial."
    p, (x, y, *_) = tr.source(), tr.written(n_train=2000)
    assert torch.allclose(p.sum(-1), torch.ones_like(p[..., 0]))
    last, before, after = x[:, 1:].flatten(), x[:, :-1].flatten(), y[:, 1:].flatten()
    pairs = 10*before + last
    top = pairs.bincount().argmax().item()
    seen = after[pairs == top].bincount(minlength=10)
    chances = p[top//10, top % 10]
    se = (chances*(1 - chances)/seen.sum()).sqrt()
    assert ((seen/seen.sum() - chances).abs() <= 5*se + 1/seen.sum()).all()
    two, one, best = tr.limits(p)
    assert two < one < math.log(10) and .1 < best < 1
    even = tr.limits(torch.full((10, 10, 10), .1, dtype=torch.float64))
    assert even == pytest.approx((math.log(10), math.log(10), .1))

# Faulty starts.

def mlp(start, **k):
    return ex.Arm(**dict(start=start, depth=5, residual=False, optimiser='SGD', rate=.05, width=16,
                         steps=20, batch=8) | k)

def nets(start, steps=0, images=None, **k):
    "Three stacked nets of a start, after some steps of SGD."
    draw = torch.Generator().manual_seed(5)
    a, x = mlp(start, **k), torch.randn(64, 30, generator=draw) if images is None else images
    net, _ = ex.started(a, range(3), x)
    y = torch.randint(10, (len(x),), generator=draw)
    opt = torch.optim.SGD(ex._trained(net, a), lr=a.rate)
    for _ in range(steps):
        opt.zero_grad()
        F.cross_entropy(net(x.expand(3, *x.shape)).flatten(0, 1), y.repeat(3)).backward()
        opt.step()
    return net

def test_a_signal_drifts_by_what_its_name_says():
    "ReLU nets without biases pass a factor on: exactly e^k in mean square, spread evenly."
    x = torch.randn(3, 20, 30)
    with torch.no_grad(): healthy = nets('signal +0', depth=8)(x)
    for k in range(-12, 13, 3):
        net = nets(f'signal {k:+d}', depth=8)
        with torch.no_grad(): assert torch.allclose(net(x), healthy*math.exp(k/2), rtol=1e-3)
        plain = nets('Kaiming', depth=8)
        ratios = torch.stack([w.norm()/v.norm() for w, v in zip(net.w, plain.w)])
        assert torch.allclose(ratios[[0, -1]], torch.ones(2))
        assert torch.allclose(ratios[1:-1], torch.full((6,), math.exp(k/12)))

def test_variances_of_drifting_gradients_are_the_mean_fields():
    "Σ ln χ over the hidden layers, at the lengths that the length map gives: equation 5's factor."
    from initnotes.depth import chi, length_map
    for k, w_var in tr.BACKWARD.items():
        q, total = w_var + .05, 0.
        for _ in range(18):
            total += math.log(chi('tanh', q, w_var))
            q = length_map('tanh', q, w_var, .05)
        assert total == pytest.approx(k, abs=1e-3)

@pytest.mark.parametrize('k', tr.BACKWARD)
def test_gradients_drift_by_what_the_name_says(k):
    "Measured in nets of width 256, by a random gradient at the outputs."
    x, seen = torch.randn(8, 196), []
    x = x/x.square().mean(1, keepdim=True).sqrt()
    arm = mlp(f'gradient {k:+d}', depth=20, activation='tanh', width=256)
    net, _ = ex.started(arm, range(6), x)
    def look(_, z):
        seen.append(z.requires_grad_() if z.is_leaf else z)
        seen[-1].retain_grad()
        return z
    out = net(x.expand(6, 8, 196), look)
    out.backward(torch.randn_like(out))
    first, last = (seen[i].grad.square().sum((1, 2)).log() for i in (0, -2))
    mean, half = ex.interval(first - last, tail=2.87e-5)   # the chance of four standard errors
    assert abs(mean - k) < half + 20/256

def kinds(net, k):
    "Of the stack's nets: how many different units a layer has, by what they read."
    return [len(w.T.unique(dim=0)) for w in net.w[k]]

@pytest.mark.parametrize('size', [2, 8, 64])
def test_units_alike(size):
    "In groups; only on both sides the next layer treats them alike, too."
    net, x = nets(f'alike by {size}', width=64), torch.randn(3, 20, 30)
    assert all(kinds(net, k) == [64//size]*3 for k in range(4)) and kinds(net, 4) == [10]*3
    assert [len(w.unique(dim=0)) for w in net.w[1]] == [64]*3
    both = nets(f'alike by {size}, both sides', width=64)
    assert all(kinds(both, k) == [64//size]*3 for k in range(4))
    assert all(len(w[i].unique(dim=0)) == 64//size for w in both.w[1:] for i in range(3))
    with torch.no_grad(): assert torch.allclose(net(x), both(x), rtol=1e-3, atol=1e-4)

def test_only_units_that_the_next_layer_treats_alike_stay_alike():
    starts = ('alike by 2', False), ('alike by 2, both sides', True), ('constant', True)
    for start, stay in starts:
        net = nets(start, steps=10, activation='tanh')
        close = [torch.allclose(w[..., ::2], w[..., 1::2], rtol=1e-4, atol=1e-6) for w in net.w[:4]]
        assert close == [stay]*4

def test_one_layer_or_two_units_alike():
    net = nets('one layer alike')
    assert [kinds(net, k) for k in range(4)] == [[16]*3, [16]*3, [1]*3, [16]*3]
    assert [kinds(nets('two units alike'), k) for k in range(5)] == [[15]*3]*4 + [[10]*3]
    x = torch.ones(3, 5, 30)
    with torch.no_grad(): assert torch.allclose(nets('constant')(x), torch.ones(3, 5, 10))

@pytest.mark.parametrize('start, activation, moves', [
    ('all zero', 'relu', False), ('all zero', 'tanh', False), ('two layers zero', 'relu', False),
    ('two layers zero', 'tanh', False), ('layer zero', 'relu', False), ('layer zero', 'tanh', True),
    ('head zero', 'relu', True), ('Kaiming', 'relu', True)])
def test_weights_that_get_no_gradient_stay(start, activation, moves):
    "Zero weights in two layers stop all; in one hidden layer those of ReLU, whose slope at 0 is 0."
    before, after = (nets(start, steps, activation=activation) for steps in (0, 10))
    changed = [not torch.equal(a, b) for a, b in zip(before.w, after.w)]
    assert changed[:4] == [moves]*4    # the head of a tanh net turns a bias into another
    assert not torch.equal(before.b[-1], after.b[-1])

def test_small_faults_are_what_their_names_say():
    plain = nets('Kaiming')
    for factor in (3, 10, 30):
        net = nets(f'head x{factor}')
        assert torch.allclose(net.w[-1], plain.w[-1]*factor)
        assert all(torch.equal(a, b) for a, b in zip(net.w[:-1], plain.w))
    for k in (1, 2, 3):
        net = nets(f'bias -{k}')
        assert (net.b[1] == -k*math.sqrt(2)).all() and not any(net.b[j].any() for j in (0, 2, 3, 4))
    net = nets('layers cloned')
    assert torch.equal(net.w[2], net.w[1]) and torch.equal(net.w[3], net.w[1])
    assert net.w[2].data_ptr() != net.w[1].data_ptr() and not torch.equal(net.w[1], plain.w[2])
    net = nets('one nan')
    assert [w.isnan().sum().item() for w in net.w] == [0, 3, 0, 0, 0]
    net = nets('one seed')
    assert all((w == w[:1]).all() for w in net.w) and not (plain.w[0][0] == plain.w[0][1]).any()

def test_centered_activations():
    draws = torch.randn(1_000_000)
    for f in ('sigmoid', 'softplus'):
        z = nets('centered', activation=f).act(draws)
        assert abs(z.mean()) < .005 and abs(z.std() - 1) < .005    # five standard errors

@pytest.mark.parametrize('std', [4, 8])
def test_attention_logits_have_the_std_of_their_name(data, std):
    net, _ = ex.started(arm('gpt', start=f'attention {std}', width=256), range(4), data['gpt'][0])
    h = torch.randn(4, 200, 256)
    q, k, _ = (h @ net.w[1]).unflatten(-1, (3, 4, 64)).unbind(2)
    each = (q*k).sum(-1).div(8).flatten(1).std(1)
    assert (each - std).abs().max() <= 5*std*(1/800 + 8/64/64)**.5    # 800 logits, 64 × 64 weights

def test_blocks_cloned(data):
    net, _ = ex.started(arm('gpt', start='blocks cloned', depth=3), range(2), data['gpt'][0])
    assert all(torch.equal(net.w[k], net.w[k + 4]) for k in range(1, 9))
    assert net.w[1].data_ptr() != net.w[5].data_ptr()
