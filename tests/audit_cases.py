"""Sick nets and their healthy twins, for `audit` and for other tools (no test by itself).

Each case is a fault in words, the checks that may name it, and one of four families. For a seed it
gives a faulty net or its twin, drawn alike, that differs in this one thing. Width, depth,
activation, norms, biases, kernels and laws vary with the seed. A twin would train.

    for case in CASES: model, args, loss = case.example(seed, faulty=True)

`model` is a factory where the check needs one (`case.factory`), `loss` takes what it returns."""
import copy, functools, math, random, re, zlib
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Callable, NamedTuple

import torch, torch.nn.functional as F
from torch import nn

FAMILIES = 'plain', 'convolutional', 'residual', 'transformer'
SEEDS = range(10)

class Example(NamedTuple):
    model: Callable              # a module, or a factory
    args: tuple                  # of the forward
    loss: Callable | None        # of what it returns

@dataclass(frozen=True)
class Case:
    "A fault in one family."
    checks: tuple                # any of these names it
    what: str
    family: str
    build: Callable
    factory: bool = False

    def __str__(self): return f'{self.checks[0]}-{self.family}-{self.what}'.replace(' ', '_')

    def example(self, seed: int, faulty: bool) -> Example:
        "The same draws for the faulty net and its twin; the global random state is left alone."
        key = zlib.crc32(f'{self} {seed}'.encode())
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key)
            got = self.build(self.family, random.Random(key), faulty)
        return Example(*got)

CASES: list[Case] = []

def case(checks, what, *families, factory=False):
    "Note a function of family, choices and whether it is to be faulty, for these families."
    def note(f):
        CASES.extend(Case(tuple(checks.split()), what, x, f, factory)
                     for x in families or FAMILIES)
        return f
    return note

# ---- four families ---------------------------------------------------------------------------

# What keeps the mean square of a standard normal signal at 1; for tanh the edge of chaos.
GAINS = dict(relu=2**.5, leaky=(2/1.01)**.5, tanh=1., selu=1., elu=1.245, gelu=1.534, silu=1.677,
             sigmoid=1.)
ACTS = dict(relu=nn.ReLU, leaky=functools.partial(nn.LeakyReLU, .1), tanh=nn.Tanh, selu=nn.SELU,
            elu=nn.ELU, gelu=nn.GELU, silu=nn.SiLU, sigmoid=nn.Sigmoid)

@torch.no_grad()
def start_(layer, gain, law='normal', bias='zero'):
    "A layer's weight by a law of its fan-in, and its bias."
    w = layer.weight
    std = gain/math.sqrt(w[0].numel())
    if law == 'uniform': w.uniform_(-3**.5*std, 3**.5*std)
    elif law == 'orthogonal' and w[0].numel() >= len(w): nn.init.orthogonal_(w, gain)
    else: w.normal_(0, std)
    if layer.bias is None: return layer
    if bias == 'small': layer.bias.normal_(0, .05)
    else: layer.bias.fill_(.01 if bias == 'constant' else 0)
    return layer

def norm_of(kind, n, images):
    if kind is None: return nn.Identity()
    if kind == 'batch': return (nn.BatchNorm2d if images else nn.BatchNorm1d)(n)
    if kind == 'group' or images: return nn.GroupNorm(4, n)
    return nn.RMSNorm(n) if kind == 'rms' else nn.LayerNorm(n)

def layer_of(d, n_in, n_out, gain=None, kernel=None, **kw):
    "A linear or convolutional layer of a design, started well."
    gain = GAINS[d.act] if gain is None else gain
    if not d.images: return start_(nn.Linear(n_in, n_out, bias=d.bias), gain, d.law, d.biases)
    kernel = kernel or d.kernel
    conv = nn.Conv2d(n_in, n_out, kernel, padding=kernel//2, padding_mode=d.padding, bias=d.bias,
                     **kw)
    return start_(conv, gain, d.law, d.biases)

def stack(d):
    "Layers one after another: layer0, norm0, act0, layer1, … head."
    parts, n = OrderedDict(), d.features
    for i in range(d.depth):
        parts[f'layer{i}'] = layer_of(d, n, d.width, gain=1. if i == 0 else None)
        if d.norm: parts[f'norm{i}'] = norm_of(d.norm, d.width, d.images)
        parts[f'act{i}'] = ACTS[d.act]()
        n = d.width
    if d.images: parts |= dict(pool=nn.AdaptiveAvgPool2d(1), flat=nn.Flatten())
    parts['head'] = start_(nn.Linear(n, d.classes), .3)
    return nn.Sequential(parts)

class Block(nn.Module):
    "x + down(act(up(norm(x)))), of linear layers or of convolutions with batch-norm."
    def __init__(self, d):
        super().__init__()
        inner = d.width if d.images else 2*d.width
        self.norm = norm_of(d.norm, d.width, d.images)
        self.up, self.act = layer_of(d, d.width, inner), ACTS[d.act]()
        self.down = layer_of(d, inner, d.width, gain=1.)
        with torch.no_grad(): self.down.weight *= d.branch

    def forward(self, x): return x + self.down(self.act(self.up(self.norm(x))))

class Residual(nn.Module):
    "A stem, blocks, a norm and a head."
    def __init__(self, d):
        super().__init__()
        self.stem = layer_of(d, d.features, d.width, gain=1.)
        self.blocks = nn.ModuleList(Block(d) for _ in range(d.depth))
        self.norm = norm_of(d.norm, d.width, d.images)
        self.head = start_(nn.Linear(d.width, d.classes), .3)

    def forward(self, x):
        x = self.stem(x)
        for b in self.blocks: x = b(x)
        x = self.norm(x)
        return self.head(x.mean((2, 3)) if x.ndim == 4 else x)

class Attention(nn.Module):
    "Softmax attention, by hand, by torch's function, or by its module."
    def __init__(self, d):
        super().__init__()
        self.heads, self.kind, self.causal, self.hot = d.heads, d.attention, d.tokens, 1.
        self.first = 1          # keys from here on are hidden: 1 is causal, 0 hides a token itself
        if d.attention == 'module':
            self.mha = nn.MultiheadAttention(d.width, d.heads, batch_first=True)
            return
        for name in 'qkv': self.add_module(name, start_(nn.Linear(d.width, d.width, bias=d.bias),
                                                        1., d.law))
        self.o = start_(nn.Linear(d.width, d.width), d.branch)

    def forward(self, x):
        B, T, n = x.shape
        mask = torch.full((T, T), -math.inf).triu(self.first) if self.causal else None
        if self.kind == 'module':
            return self.mha(x, x, x, attn_mask=mask, need_weights=False)[0]
        q, k, v = (f(x).view(B, T, self.heads, -1).transpose(1, 2)
                   for f in (self.q, self.k, self.v))
        q = q*self.hot
        if self.kind == 'function':
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            a = q @ k.transpose(-1, -2)/math.sqrt(q.shape[-1])
            out = (a if mask is None else a + mask).softmax(-1) @ v
        return self.o(out.transpose(1, 2).reshape(B, T, n))

class TransformerBlock(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.norm1, self.norm2 = (norm_of(d.norm, d.width, False) for _ in range(2))
        self.attention = Attention(d)
        self.up, self.act = layer_of(d, d.width, 4*d.width), ACTS[d.act]()
        self.down = layer_of(d, 4*d.width, d.width, gain=d.branch)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.act(self.up(self.norm2(x))))

class Transformer(nn.Module):
    "Pre-norm, of tokens (each predicts the next) or of patches (their mean is classified)."
    def __init__(self, d):
        super().__init__()
        self.tied, self.tokens = d.tied, d.tokens
        if d.tokens: self.embed = nn.Embedding(d.classes, d.width)
        else: self.embed = start_(nn.Linear(d.features, d.width), 1.)
        self.pos = nn.Parameter(d.embed*torch.randn(d.length, d.width))
        self.blocks = nn.ModuleList(TransformerBlock(d) for _ in range(d.depth))
        self.norm = norm_of(d.norm or 'layer', d.width, False)
        self.head = start_(nn.Linear(d.width, d.classes, bias=not d.tokens), .3)
        if d.tokens: nn.init.normal_(self.embed.weight, 0, d.embed)
        if d.tied: self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x) + self.pos[:x.shape[1]]
        for b in self.blocks: x = b(x)
        x = self.norm(x)
        return self.head(x if self.tokens else x.mean(1))

def design(family, r, **given):
    "A choice of everything, as far as it is not given."
    images = family == 'convolutional' or family == 'residual' and given.get(
        'images', r.random() < .4)
    d = dict(family=family, images=images, classes=r.choice([7, 10, 16]), tokens=False, bias=True,
             act=r.choice(['relu', 'relu', 'leaky', 'tanh', 'elu', 'selu']), norm=None,
             width=r.choice([64, 80]), depth=r.choice([6, 8, 9]), features=r.choice([24, 48]),
             law=r.choice(['normal', 'uniform', 'orthogonal']), kernel=r.choice([3, 3, 5]),
             biases=r.choice(['zero', 'zero', 'small', 'constant']), padding='zeros')
    if images:
        d |= dict(features=3, width=r.choice([32, 48]), depth=r.choice([5, 7]), size=8,
                  padding=r.choice(['zeros', 'circular', 'reflect']))
    if family == 'residual':
        d |= dict(norm='batch' if images else r.choice(['layer', 'rms', 'batch']),
                  depth=r.choice([4, 6, 10]), act=r.choice(['relu', 'gelu', 'silu']))
    if family == 'transformer':
        tokens = given.get('tokens', r.random() < .5)
        d |= dict(tokens=tokens, tied=tokens and r.random() < .5, length=r.choice([12, 16]),
                  heads=r.choice([2, 4]), attention=r.choice(['hand', 'function', 'module']),
                  norm=r.choice(['layer', 'rms']), depth=r.choice([2, 3, 4]), width=64,
                  act=r.choice(['gelu', 'relu', 'silu']), embed=r.choice([.02, .05]),
                  classes=r.choice([50, 90]) if tokens else 10)
    d |= given
    d.setdefault('branch', 1/math.sqrt(2*d['depth']) if r.random() < .5 else 1.)
    return SimpleNamespace(**d)

def build(d):
    "A healthy net of this design."
    return {'plain': stack, 'convolutional': stack, 'residual': Residual,
            'transformer': Transformer}[d.family](d)

def batch(d, n=None):
    "Inputs and labels."
    n = n or (16 if d.images or d.family == 'transformer' else 48)
    if d.tokens:
        ids = torch.randint(d.classes, (n, d.length + 1))
        return ids[:, :-1], ids[:, 1:]
    shape = ((d.features, d.size, d.size) if d.images else
             (d.length, d.features) if d.family == 'transformer' else (d.features,))
    return torch.randn(n, *shape), torch.randint(d.classes, (n,))

def against(out, y): return F.cross_entropy(out.flatten(0, -2), y.flatten())

def cross_entropy(y): return functools.partial(against, y=y)

def given(d, model, scale=1., shift=0., loss=True):
    "An example of a model: its batch, and a cross-entropy."
    x, y = batch(d)
    if x.is_floating_point(): x = scale*x + shift
    return model, (x,), cross_entropy(y) if loss else None

def named(model, pattern):
    "Modules whose last name begins so."
    return [m for n, m in model.named_modules() if re.match(pattern, n.rpartition('.')[2])]

def readers(model): return named(model, r'layer|up')     # whose output goes into an activation

def hidden(model):
    "Layers that are neither the first, nor the last, nor write into a stream."
    return named(model, r'layer[1-9]|up')

def two(model, r):
    "A hidden layer and the one that reads it."
    layers = named(model, r'layer|up|down')
    at = r.choice([i for i in range(len(layers) - 1)
                   if layers[i+1].weight.shape[1] == len(layers[i].weight)])
    return layers[at], layers[at + 1]

# ---- numbers that are none, memory that nobody wrote, seeds -----------------------------------

@case('non-finite', 'one weight is nan')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r))
    w = r.choice(hidden(model)).weight
    if faulty: w.view(-1)[r.randrange(w.numel())] = math.nan
    return given(d, model)

@case('non-finite', 'a running variance overflowed', 'plain', 'convolutional')
def _(family, r, faulty):
    model = build(d := design(family, r, norm='batch', depth=4, act='relu'))
    if faulty: r.choice(named(model, 'norm')).running_var[3] = math.inf
    return given(d, model)

@case('non-finite', 'a causal mask hides every key of the first token', 'transformer')
def _(family, r, faulty):
    model = build(d := design(family, r, tokens=True, attention='hand'))
    if faulty: model.blocks[0].attention.first = 0
    return given(d, model)

class Distances(nn.Module):
    "Between all items of a batch; an item's distance from itself has the gradient 0·∞."
    def __init__(self, eps): super().__init__(); self.eps = eps
    def forward(self, z): return ((z[:, None] - z).square().sum(-1) + self.eps).sqrt()

@case('non-finite', "a root's gradient at zero", 'plain', 'convolutional')
def _(family, r, faulty):
    model = build(d := design(family, r))
    model.distances = Distances(0. if faulty else 1e-4)
    return model, (batch(d)[0],), torch.mean if r.random() < .5 else None

def forgotten(shape, faulty, how):
    "A parameter from torch.empty, which is written or not, or in half of it only."
    p = nn.Parameter(torch.empty(*shape))
    with torch.no_grad():
        part = p[:len(p)//2] if how == 'half' and faulty else p
        if not faulty or how == 'half': part.normal_(0, .05)
    return p

@case('uninitialised', 'memory of torch.empty is never written', factory=True)
def _(family, r, faulty):
    d, how = design(family, r), r.choice(['none', 'half'])
    def make():
        model = build(d)
        if family == 'transformer': model.pos = forgotten(model.pos.shape, faulty, how)
        else:
            layer = hidden(model)[0]
            layer.bias = forgotten(layer.bias.shape, faulty, how)
        return model
    return given(d, make)

@case('uninitialised', 'a buffer of torch.empty is never written', 'plain', 'residual',
      factory=True)
def _(family, r, faulty):
    d = design(family, r, images=False, norm='layer')
    class Shifted(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = build(d)
            self.register_buffer('mean', torch.empty(d.features))
            if not faulty: self.mean.fill_(.1)
        def forward(self, x): return self.net(x - self.mean)
    return given(d, Shifted)

@case('seed', 'the factory sets the same seed', factory=True)
def _(family, r, faulty):
    d, number = design(family, r), r.randrange(1000)
    def make():
        if faulty: torch.manual_seed(number)
        return build(d)
    return given(d, make)

@case('seed', 'one layer is drawn by a generator that always starts alike', factory=True)
def _(family, r, faulty):
    d = design(family, r)
    def make():
        model, g = build(d), torch.Generator().manual_seed(3) if faulty else None
        w = hidden(model)[-1].weight
        with torch.no_grad(): w.normal_(0, w[0].numel()**-.5, generator=g)
        return model
    return given(d, make)

@case('seed', 'one layer is drawn by a generator that nobody seeds', factory=True)
def _(family, r, faulty):
    d = design(family, r)
    def make():
        model, g = build(d), torch.Generator()
        w = hidden(model)[0].weight
        if faulty: g.seed()
        else: g.manual_seed(torch.randint(2**31, ()).item())
        with torch.no_grad(): w.normal_(0, w[0].numel()**-.5, generator=g)
        return model
    return given(d, make)

# ---- distributions of single layers ----------------------------------------------------------

@case('torch-default', "layers are left at torch's own start")
def _(family, r, faulty):
    # torch's module of attention leaves its last layer at the default, too
    model = build(d := design(family, r, act='relu', attention='function'))
    if faulty:
        for m in named(model, r'layer|up|down'): m.reset_parameters()
    return given(d, model)

@case('scale', 'one layer is fifty times too large')
@torch.no_grad()
def _(family, r, faulty):
    norm = None if family == 'transformer' else 'batch' if family == 'convolutional' else 'layer'
    kw = dict(norm=norm) if norm and family != 'residual' else {}
    model = build(d := design(family, r, **kw, depth=4))
    if faulty: r.choice(hidden(model)).weight.mul_(50)
    return given(d, model)

@case('scale', 'one layer at 1e-5 among others that are right')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r))
    if faulty:
        w = r.choice(hidden(model)).weight
        w.mul_(1e-5/w.std())
    return given(d, model)

@case('mean', 'one layer is not drawn about zero')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r))
    w = r.choice(hidden(model)).weight
    std = w.std().item()
    if faulty: w.add_(.3*std)
    return given(d, model)

# ---- units and layers alike --------------------------------------------------------------------

@case('symmetry', 'every weight is .01')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, norm='layer' if family == 'plain' else 'group'
                              if family == 'convolutional' else 'batch'
                              if family == 'residual' else 'layer', depth=4))
    if faulty:
        for m in named(model, r'layer|up|down|head'): m.weight.fill_(.01)
    return given(d, model)

@case('symmetry no-gradient', 'every weight is zero')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, tied=False))
    if faulty:
        for m in named(model, r'layer|up|down|head|stem'):
            for p in m.parameters(): p.zero_()
    return given(d, model)

@case('symmetry', 'two units of a layer are alike')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, biases='zero'))
    a, b = two(model, r)
    i, j = r.sample(range(len(a.weight)), 2)
    if faulty: a.weight[i], b.weight[:, i] = a.weight[j], b.weight[:, j]
    return given(d, model)

@case('symmetry', 'all units of a layer are alike, with one bias for all')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, biases='constant'))
    a, b = two(model, r)
    if faulty:
        a.weight.copy_(a.weight[:1].clone().expand_as(a.weight))
        b.weight.fill_(b.weight.std())
    return given(d, model)

@case('clone', 'layers are deep copies')
def _(family, r, faulty):
    model = build(d := design(family, r))
    if family in ('residual', 'transformer'):
        first = model.blocks[0]
        if faulty: model.blocks = nn.ModuleList(copy.deepcopy(first) for _ in model.blocks)
    elif faulty:
        for i in range(2, d.depth): setattr(model, f'layer{i}', copy.deepcopy(model.layer1))
    return given(d, model)

@case('clone', "nn.TransformerEncoder's layers, as torch makes them", 'transformer')
def _(family, r, faulty):
    layer = nn.TransformerEncoderLayer(64, r.choice([2, 4]), 128, dropout=0., batch_first=True,
                                       norm_first=True, activation=r.choice(['relu', 'gelu']))
    net = nn.TransformerEncoder(layer, r.choice([2, 3]), nn.LayerNorm(64),
                                enable_nested_tensor=False)
    if not faulty:
        for p in net.parameters():
            if p.ndim > 1: nn.init.xavier_uniform_(p)
    return net, (torch.randn(16, 12, 64),), None

@case('clone', 'one layer is a copy where it should be shared', 'plain', 'residual')
def _(family, r, faulty):
    model = build(d := design(family, r, images=False, norm='layer'))
    if family == 'plain': model.layer2 = copy.deepcopy(model.layer1) if faulty else model.layer1
    else: model.blocks[1].up.weight = (nn.Parameter(model.blocks[0].up.weight.detach().clone())
                                       if faulty else model.blocks[0].up.weight)
    return given(d, model)

class Words(nn.Module):
    "Guesses a word from the words before it; the embedding is the head, too."
    def __init__(self, d, body, std):
        super().__init__()
        self.embed, self.body = nn.Embedding(d.classes, d.width), body
        self.norm, self.head = nn.LayerNorm(d.width), nn.Linear(d.width, d.classes, bias=False)
        nn.init.normal_(self.embed.weight, 0, std)
        self.head.weight = self.embed.weight
    def forward(self, ids): return self.head(self.norm(self.body(self.embed(ids))))

class Convolved(nn.Module):
    def __init__(self, n, k):
        super().__init__()
        self.pad, self.conv, self.act = k - 1, start_(nn.Conv1d(n, n, k), 1.), nn.GELU()
    def forward(self, x): return self.act(self.conv(F.pad(x.mT, (self.pad, 0)))).mT

@case('tied initial-loss', 'an embedding drawn from N(0, 1) is the head')
def _(family, r, faulty):
    std = 1. if faulty else r.choice([.02, .05])
    d = design('transformer', r, tokens=True, tied=True, embed=std)
    if family == 'transformer': return given(d, build(d))
    body = dict(plain=lambda: nn.Sequential(start_(nn.Linear(64, 64), 2**.5), nn.ReLU()),
                convolutional=lambda: Convolved(64, r.choice([2, 3])),
                residual=lambda: Block(design('residual', r, images=False, width=64,
                                              norm='layer')))[family]()
    return given(d, Words(d, body, std))

# ---- signal, gradient, similarity ------------------------------------------------------------

def towered(family, r, hurt, **kw):
    "A net, or a tower of layers below a residual net or a transformer; hurt by a function."
    if family in ('plain', 'convolutional'):
        model = build(d := design(family, r, **kw))
        hurt(model)
        return given(d, model)
    d = design(family, r, images=False, tokens=False, norm='layer')
    tower = stack(SimpleNamespace(**vars(d) | dict(width=64, norm=None) | kw))
    tower.head = start_(nn.Linear(tower.head.in_features, d.features), 1.)
    hurt(tower)
    x, y = batch(d)
    return nn.Sequential(tower, build(d)), (x,), cross_entropy(y)

@torch.no_grad()
def drawn(model, std):
    for m in named(model, 'layer'): m.weight.normal_(0, std)

def law_of(faulty, std): return lambda model: drawn(model, std) if faulty else None

@case('forward', 'every weight from N(0, 1)')
def _(family, r, faulty):
    return towered(family, r, law_of(faulty, 1.), act='relu', depth=7, biases='zero')

@case('forward', 'every weight at a std of 1e-5')
def _(family, r, faulty):
    return towered(family, r, law_of(faulty, 1e-5), act=r.choice(['relu', 'tanh']), depth=6,
                   biases='zero')

@case('forward', 'every weight at a std of .25 in a wide net', 'plain', 'convolutional')
def _(family, r, faulty):
    return towered(family, r, law_of(faulty, .25), act='relu', depth=10,
                   width=128 if family == 'plain' else 32, biases='zero')

# The biases of torch's start keep up some signal: it is the same for all inputs.
@case('backward similarity forward', "torch's own start of a deep net")
def _(family, r, faulty):
    def hurt(model):
        for m in named(model, 'layer') if faulty else (): m.reset_parameters()
    return towered(family, r, hurt, act='relu', depth=12, biases='zero')

@case('forward', "a deep linear net at He's gain", 'plain', 'convolutional')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, act='tanh', depth=16, biases='zero', padding='circular',
                              kernel=3))
    for name, m in list(model.named_children()):
        if name.startswith('act'): setattr(model, name, nn.Identity())
        if name.startswith('layer') and faulty: m.weight.mul_(2**.5)
    return given(d, model)

@case('backward', 'sigmoids instead of tanhs', 'plain', 'convolutional')
def _(family, r, faulty):
    model = build(d := design(family, r, act='tanh', depth=10))
    if faulty:
        for name, m in list(model.named_children()):
            if name.startswith('act'): setattr(model, name, nn.Sigmoid())
    return given(d, model, loss=r.random() < .5)

@case('backward', 'tanhs deep in chaos', 'plain', 'convolutional')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, act='tanh', depth=12))
    if faulty:
        for m in named(model, 'layer'): m.weight.mul_(4)
    return given(d, model, loss=r.random() < .5)

@case('similarity', 'random biases outweigh small weights', 'plain', 'convolutional')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, act='tanh', depth=12, padding='circular'))
    if faulty:
        for m in named(model, 'layer'): m.weight.mul_(.6), m.bias.normal_(0, .8)
    return given(d, model)

@case('similarity', 'a constant drowns the data', 'residual', 'transformer')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, images=False, tokens=False, norm='layer'))
    if faulty: (model.pos if family == 'transformer' else model.stem.bias).normal_(0, 60)
    return given(d, model)

@case('too-deep', 'a net off the edge, six times as deep as what it carries', 'plain',
      'convolutional')
@torch.no_grad()
def _(family, r, faulty):
    d = design(family, r, act='tanh', depth=64 if faulty else 10, padding='circular', kernel=3,
               width=64 if family == 'plain' else 32)
    model = build(d)
    for m in named(model, 'layer'): m.bias.normal_(0, .05**.5)      # ξ is 3.6 layers
    return given(d, model)

# ---- activations -----------------------------------------------------------------------------

@case('dead', "a layer's biases are at -10")
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, act='relu'))
    if faulty: r.choice(readers(model)).bias.fill_(-10)
    return given(d, model)

@case('dead', 'half of the units are silent in a deep net', 'plain', 'convolutional')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, act='relu', depth=10))
    if faulty:
        for m in named(model, 'layer[5-9]'): m.bias[::2] = -8
    return given(d, model)

@case('saturated', 'tanhs get twenty times what they should')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, act='tanh', depth=3))
    if faulty: r.choice(readers(model)).weight.mul_(20)
    return given(d, model)

@case('saturated', 'sigmoids get inputs of hundreds', 'plain', 'convolutional')
def _(family, r, faulty):
    model = build(d := design(family, r, act='sigmoid', depth=2))
    return given(d, model, scale=300. if faulty else 1.)

@case('rank', 'the weight of a layer has rank one')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, act='tanh', depth=4, biases='zero', tokens=False))
    if faulty:
        w = (model.embed if family == 'transformer' else
             model.stem if family == 'residual' else model.layer0).weight
        u, v = torch.randn(len(w)), torch.randn(w[0].numel())
        w.copy_(torch.outer(u, v).view_as(w)/w[0].numel()**.5)
        if family == 'transformer': model.pos.zero_()
    return given(d, model)

# ---- heads and attention -----------------------------------------------------------------------

@case('initial-loss', 'a head drawn from N(0, 1) behind a norm')
@torch.no_grad()
def _(family, r, faulty):
    norm = dict(plain='layer', convolutional='batch').get(family)
    kw = dict(norm=norm) if norm else dict(images=False, tokens=family == 'transformer')
    model = build(d := design(family, r, tied=False, depth=3, **kw))
    if family == 'convolutional': model.pool, model.flat = nn.Flatten(), nn.Identity()
    if family == 'convolutional': model.head = start_(nn.Linear(d.width*64, d.classes), .3)
    if faulty: model.head.weight.normal_()
    return given(d, model)

@case('attention', 'queries and keys eight times too large', 'transformer')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r))
    for b in model.blocks if faulty else ():
        a = b.attention
        if d.attention == 'module': a.mha.in_proj_weight[:2*d.width] *= 5
        else: a.q.weight.mul_(4), a.k.weight.mul_(4)
    return given(d, model)

@case('attention', 'nobody divides by the root of the head size', 'transformer')
def _(family, r, faulty):
    model = build(d := design(family, r, attention=r.choice(['hand', 'function']), heads=1))
    if faulty:
        for b in model.blocks: b.attention.hot = math.sqrt(d.width)
    return given(d, model)

# ---- streams ---------------------------------------------------------------------------------

@case('residual', 'branches at full size on a stream without norms', 'convolutional', 'residual',
      'transformer')
@torch.no_grad()
def _(family, r, faulty):
    depth = 14
    branch = 1. if faulty else 1/math.sqrt(depth)
    if family != 'transformer':
        d = design('residual', r, images=family == 'convolutional', norm=None, depth=depth,
                   branch=branch, act='relu', padding='circular')
        model = build(d)
        model.norm = norm_of('batch', d.width, d.images)
        return given(d, model)
    d = design('transformer', r, norm=None, depth=depth, branch=branch, act='relu', embed=.5,
               tokens=False, attention='function')
    model = build(d)
    for b in model.blocks: b.attention.hot = .2       # the stream is no longer of size 1
    return given(d, model)

@case('batch-norm', 'batch-norm between thirty layers without skips', 'plain', 'convolutional')
def _(family, r, faulty):
    return given(d := design(family, r, norm='batch', act='relu', bias=False, width=48, kernel=3,
                             depth=30 if faulty else 5), build(d))

@case('bias-before-norm batch-norm', 'a bias before batch-norm', 'plain', 'convolutional',
      'residual')
def _(family, r, faulty):
    d = design(family, r, norm='batch', act='relu', depth=4, bias=faulty)
    if family != 'residual': return given(d, build(d))
    model = build(d)
    for b in model.blocks:
        b.act = nn.Sequential(norm_of('batch', len(b.up.weight), d.images), b.act)
    return given(d, model)

# ---- gradients that do not arrive, parameters that do nothing ----------------------------------

class Cut(nn.Module):
    "A part whose result is detached, as a number of ways do it."
    def __init__(self, part, how): super().__init__(); self.part, self.how = part, how
    def forward(self, *args):
        if self.how == 'none': return self.part(*args)
        if self.how == 'detach': return self.part(*args).detach()
        if self.how == 'data': return self.part(*args).data
        with torch.no_grad(): return self.part(*args)

def cut(model, family, how, r):
    "Cut a part out of the graph."
    name = ('embed' if family == 'transformer' else 'stem' if family == 'residual' else
            r.choice(['layer0', 'layer1', 'layer2']))
    setattr(model, name, Cut(getattr(model, name), how))

@case('no-gradient', 'a part is detached')
def _(family, r, faulty):
    model, how = build(d := design(family, r, tied=False)), r.choice(['detach', 'data', 'no_grad'])
    cut(model, family, how if faulty else 'none', r)
    return given(d, model, loss=r.random() < .5)

@case('no-gradient dead', 'every unit of a layer is silent for good', 'plain', 'convolutional')
@torch.no_grad()
def _(family, r, faulty):
    model = build(d := design(family, r, act='relu'))
    layer = r.choice(readers(model))
    layer.bias.fill_(-200 if faulty else 0)
    return given(d, model)

class Step(nn.Module):
    "Rounds what it gets, with a gradient of one or of none."
    def __init__(self, through): super().__init__(); self.through = through
    def forward(self, x): return x + (x.round() - x).detach() if self.through else x.round()

@case('no-gradient', 'rounding has no gradient')
def _(family, r, faulty):
    model = build(d := design(family, r, depth=3, tied=False))
    m = Step(not faulty)
    if family == 'plain' or family == 'convolutional': model.act0 = nn.Sequential(model.act0, m)
    else:
        name = 'stem' if family == 'residual' else 'embed'
        if family == 'transformer' and d.tokens: nn.init.normal_(model.embed.weight)
        setattr(model, name, nn.Sequential(getattr(model, name), m))
    return given(d, model)

@case('frozen', 'a layer at random values does not learn')
def _(family, r, faulty):
    model = build(d := design(family, r, tied=False))
    r.choice(named(model, r'layer|up|down|stem|embed')).requires_grad_(not faulty)
    return given(d, model, loss=r.random() < .5)

class Spare(nn.Module):
    "A net with a layer beside it that is used or not."
    def __init__(self, net, n, used):
        super().__init__()
        self.net, self.extra, self.used = net, start_(nn.Linear(n, n), 1.), used
    def forward(self, x):
        out = self.net(x)
        return self.extra(out) if self.used else out

@case('unused', 'a layer is made and never called')
def _(family, r, faulty):
    model = build(d := design(family, r))
    return given(d, Spare(model, d.classes, not faulty), loss=r.random() < .5)

@case('unused', 'a block is made and skipped', 'residual', 'transformer')
def _(family, r, faulty):
    model = build(d := design(family, r))
    if faulty: r.choice(model.blocks).forward = lambda x: x
    return given(d, model)

# ---- numbers' range, inputs ----------------------------------------------------------------------

@case('range', 'numbers beyond float16')
def _(family, r, faulty):
    norm = {} if family in ('plain', 'convolutional') else dict(norm='layer', images=False)
    model = build(d := design(family, r, act='relu', depth=4, tokens=False, **norm))
    return given(d, model, scale=1e7 if faulty else 1., loss=False)

@case('range', 'numbers below float16', 'plain', 'convolutional')
def _(family, r, faulty):
    model = build(d := design(family, r, act='relu', depth=4, biases='zero'))
    return given(d, model, scale=1e-9 if faulty else 1., loss=False)

@case('input', 'pixels from 0 to 255')
def _(family, r, faulty):
    model = build(d := design(family, r, tokens=False))
    (x, y) = batch(d)
    x = 74*x.clamp(-1.7, 1.7) + 127.5 if faulty else x
    return model, (x,), cross_entropy(y)

@case('input', 'inputs all of one sign, far from zero')
def _(family, r, faulty):
    model = build(d := design(family, r, tokens=False))
    return given(d, model, shift=8. if faulty else 0.)
