"""What `branches` finds where the branches are known: by construction, or read off by hand.

Random residual nets, nets of many kinds, nets that have none, and architectures of transformers."""
import contextlib, copy, functools, math, random
from dataclasses import dataclass

import pytest, torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings, strategies as st
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from conftest import hooks_on
from initnotes.report import InputError
from initnotes.stream import branches

SEED = 0
D = 8
L, C = nn.Linear, nn.Conv2d

class Net(nn.Module):
    "A forward of one's own: `f(self, …)`."
    def __init__(self, f, **modules):
        super().__init__()
        self.f = f
        for name, m in modules.items(): setattr(self, name, m)
    def forward(self, *args, **kwargs): return self.f(self, *args, **kwargs)

def found(report):
    "Of each branch its writers, its skip and the norm behind the writers."
    return [(*sorted(r['writers']), r['skip'], r['norm']) for r in report]

def one(*writers, skip='identity', norm=None): return (*sorted(writers), skip, norm)

def P(*shape): return nn.Parameter(torch.ones(*shape))
def lin(): return L(D, D)
def conv(**more): return C(D, D, 3, **{'padding': 1} | more)
def rows(): return torch.randn(5, D)
def tokens(n=4): return torch.randn(3, n, D)
def images(): return torch.randn(2, D, 8, 8)
def words(): return torch.randint(0, 11, (3, 4))

# ---- one model of a kind, and its branches read off by hand -----------------------------------

CASES = {}

def case(*branches_, batch=rows):
    "A model of its own kind, made by the function; its batch, and its branches."
    def add(make):
        CASES[make.__name__] = make, batch, list(branches_)
        return make
    return add

@case(one('b'))
def a_residual_mlp(): return Net(lambda s, x: x + s.b(s.a(x).relu()), a=lin(), b=lin())

@case(one('b'))
def in_place():
    def forward(s, x):
        x = x.clone()
        x += s.b(s.a(x).relu())
        return x
    return Net(forward, a=lin(), b=lin())

@case(one('b'))
def in_place_on_the_branch(): return Net(lambda s, x: s.b(s.a(x)).add_(x), a=lin(), b=lin())

@case(one('b'))
def subtracted(): return Net(lambda s, x: x - s.b(s.a(x).relu()), a=lin(), b=lin())

@case(one('b'))
def added_with_alpha(): return Net(lambda s, x: x.add(s.b(s.a(x)), alpha=.1), a=lin(), b=lin())

@case(one('b'))
def averaged(): return Net(lambda s, x: (x + s.b(s.a(x)))/2**.5, a=lin(), b=lin())

@case(one('b'))
def summed_as_a_list(): return Net(lambda s, x: sum([x, s.b(s.a(x))]), a=lin(), b=lin())

@case(one('b'))
def summed_by_einsum():
    def forward(s, x): return x + torch.einsum('bi,oi->bo', s.a(x).relu(), s.b.weight)
    return Net(forward, a=lin(), b=lin())

@case(one('b'))
def fused_into_addmm():
    def forward(s, x): return torch.addmm(x, s.a(x).relu(), s.b.weight.T)
    return Net(forward, a=lin(), b=lin())

@case(one('b'), batch=tokens)
def fused_into_baddbmm():
    def forward(s, x): return torch.baddbmm(x, s.a(x).relu(), s.b.weight.T.expand(3, D, D))
    return Net(forward, a=lin(), b=lin())

@case(one('b'))
def an_addcmul():
    return Net(lambda s, x: torch.addcmul(x, s.b(s.a(x)), s.g), a=lin(), b=lin(), g=P(D))

@case(one('b'))
def dropout_behind():
    return Net(lambda s, x: x + F.dropout(s.b(s.a(x)), .5, s.training), a=lin(), b=lin())

@case(one('b'))
def stochastic_depth():
    def forward(s, x):
        keep = torch.bernoulli(torch.full((len(x), 1), .9))/.9
        return x + keep*s.b(s.a(x))
    return Net(forward, a=lin(), b=lin())

@case(one('a.out_proj'), one('c'), batch=tokens)
def attention_then_mlp():
    def forward(s, x):
        y = s.n(x)
        x = x + s.a(y, y, y, need_weights=False)[0]
        return x + s.c(F.gelu(s.b(s.m(x))))
    return Net(forward, n=nn.LayerNorm(D), m=nn.LayerNorm(D), b=L(D, 4*D), c=L(4*D, D),
               a=nn.MultiheadAttention(D, 2, batch_first=True))

@case(one('a.out_proj'), one('c'), batch=tokens)
def post_norm():
    def forward(s, x):
        x = s.n(x + s.a(x, x, x)[0])
        return s.m(x + s.c(F.gelu(s.b(x))))
    return Net(forward, n=nn.LayerNorm(D), m=nn.LayerNorm(D), b=L(D, 4*D), c=L(4*D, D),
               a=nn.MultiheadAttention(D, 2, batch_first=True))

@case(one('a.out_proj', 'c'), batch=tokens)
def parallel_in_one_sum():
    def forward(s, x):
        y = s.n(x)
        return s.a(y, y, y)[0] + s.c(F.gelu(s.b(y))) + x
    return Net(forward, n=nn.LayerNorm(D), b=L(D, 4*D), c=L(4*D, D),
               a=nn.MultiheadAttention(D, 2, batch_first=True))

@case(one('b', norm='n'))
def norm_behind(): return Net(lambda s, x: x + s.n(s.b(s.a(x).relu())), a=lin(), b=lin(),
                              n=nn.LayerNorm(D))

@case(one('b', norm='n'), batch=images)
def a_basic_block():
    def forward(s, x): return (x + s.n(s.b(s.m(s.a(x)).relu()))).relu()
    return Net(forward, a=conv(), b=conv(), m=nn.BatchNorm2d(D), n=nn.BatchNorm2d(D))

@case(one('b', norm='n', skip='projection'), batch=images)
def a_basic_block_with_stride():
    def forward(s, x): return (s.q(s.p(x)) + s.n(s.b(s.m(s.a(x)).relu()))).relu()
    return Net(forward, a=conv(stride=2), b=conv(), m=nn.BatchNorm2d(D), n=nn.BatchNorm2d(D),
               p=C(D, D, 1, stride=2, bias=False), q=nn.BatchNorm2d(D))

@case(one('b', skip='projection'), batch=images)
def pooled_projection():
    def forward(s, x): return s.p(F.avg_pool2d(x, 2)) + s.b(s.a(x).relu())
    return Net(forward, a=conv(stride=2), b=conv(), p=C(D, D, 1))

@case(one('b', skip='projection'))
def a_linear_projection():
    return Net(lambda s, x: s.b(s.a(x).relu()) + s.p(x), a=L(D, 9), b=L(9, 6), p=L(D, 6))

@case(one('b'), batch=images)
def pooled_identity():
    def forward(s, x): return F.avg_pool2d(x, 2) + s.b(s.a(x).relu())
    return Net(forward, a=conv(stride=2), b=conv())

@case(one('b'), batch=images)
def padded_identity():          # option A of He et al. 2015
    def forward(s, x):
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4)) + s.b(s.a(x).relu())
    return Net(forward, a=C(D, 16, 3, padding=1, stride=2), b=C(16, 16, 3, padding=1))

@case(one('b'), batch=images)
def pre_activation():
    def forward(s, x): return x + s.b(s.n(s.a(s.m(x).relu())).relu())
    return Net(forward, a=conv(), b=conv(), m=nn.BatchNorm2d(D), n=nn.BatchNorm2d(D))

@case(one('b'), one('d', skip='projection'), batch=images)
def pre_activation_shared_with_the_projection():       # He et al. 2016, where the image is halved
    def forward(s, x):
        x = x + s.b(s.a(x.relu()).relu())
        y = s.m(x).relu()
        return s.p(y) + s.d(s.c(y).relu())
    return Net(forward, a=conv(), b=conv(), c=conv(stride=2), d=conv(), m=nn.BatchNorm2d(D),
               p=C(D, D, 1, stride=2))

@case(one('c', norm='n'), batch=images)
def squeeze_and_excitation_behind_the_norm():
    def forward(s, x):
        y = s.n(s.c(s.a(x).relu()))
        gate = torch.sigmoid(s.up(s.down(y.mean((2, 3))).relu()))
        return x + y*gate[:, :, None, None]
    return Net(forward, a=conv(), c=conv(), n=nn.BatchNorm2d(D), down=L(D, 2), up=L(2, D))

@case(one('c'), batch=images)
def an_inverted_residual_with_hard_gate():
    def forward(s, x):
        y = F.hardswish(s.dw(F.hardswish(s.a(x))))
        y = F.hardsigmoid(s.up(s.down(F.adaptive_avg_pool2d(y, 1)).relu()))*y
        return x + s.c(y)
    return Net(forward, a=C(D, 16, 1), dw=C(16, 16, 3, padding=1, groups=16), c=C(16, D, 1),
               down=C(16, 4, 1), up=C(4, 16, 1))

@case(one('b'), batch=tokens)
def a_gate_that_is_not_bounded_but_broadcast():
    return Net(lambda s, x: x + s.b(x)*s.a(x.mean(1, keepdim=True)), a=lin(), b=lin())

@case(one('c'))
def a_swiglu(): return Net(lambda s, x: x + s.c(F.silu(s.a(x))*s.b(x)), a=lin(), b=lin(), c=lin())

@case(one('c'))
def a_fused_glu(): return Net(lambda s, x: x + s.c(F.glu(s.a(x), -1)), a=L(D, 2*D), c=lin())

@case(one('b'))
def gated_last(): return Net(lambda s, x: x + torch.sigmoid(s.a(x))*s.b(x), a=lin(), b=lin())

@case(one('b'))
def gated_last_the_other_way(): return Net(lambda s, x: x + s.b(x)*s.a(x).sigmoid(), a=lin(),
                                           b=lin())

@case(one('a'))
def a_glu_at_the_end(): return Net(lambda s, x: x + F.glu(s.a(x), -1), a=L(D, 2*D))

@case(one('a'))
def a_chunked_glu_at_the_end():
    def forward(s, x):
        u, g = s.a(x).chunk(2, -1)
        return x + u*torch.sigmoid(g)
    return Net(forward, a=L(D, 2*D))

@case(one('b'))
def layer_scale():
    return Net(lambda s, x: x + s.g*s.b(s.a(x).relu()), a=lin(), b=lin(), g=P(D))

@case(one('b'))
def rezero(): return Net(lambda s, x: x + s.g*s.b(s.a(x).relu()), a=lin(), b=lin(),
                         g=nn.Parameter(torch.zeros(())))

@case(one('b'))
def a_scaled_stream():
    return Net(lambda s, x: s.r*x + s.g*s.b(s.a(x)), a=lin(), b=lin(), g=P(1), r=P(1))

@case(one('a'))
def one_layer(): return Net(lambda s, x: x + s.a(x).relu(), a=lin())

@case(one('c.a'), one('c.a'))
def shared(): return Net(lambda s, x: s.c(s.c(x)), c=Net(lambda s, x: x + s.a(x).tanh(), a=lin()))

@case(one('inner.c'), one('b'))
def nested():
    inner = Net(lambda s, x: x + s.c(x.relu()), c=lin())
    return Net(lambda s, x: x + s.b(s.inner(s.a(x)).relu()), a=lin(), b=lin(), inner=inner)

@case(one('inner.c'), one('a', 'inner.c'))
def nested_at_the_end():
    "What a residual branch adds at the end may itself end in a stream."
    inner = Net(lambda s, x: x + s.c(x.relu()), c=lin())
    return Net(lambda s, x: x + s.inner(s.a(x)), a=lin(), inner=inner)

@case(one('a'), one('b'))
def two_after_one_another():
    def forward(s, x):
        x = x + s.a(x.tanh())
        return x + s.b(x.tanh())
    return Net(forward, a=lin(), b=lin())

@case(one('a', 'b'))
def two_from_one_point():
    return Net(lambda s, x: x + (s.a(x.tanh()) + s.b(x.tanh())), a=lin(), b=lin())

@case(one('e.0', 'e.1', 'e.2'), batch=lambda: torch.randn(40, D))
def experts():
    def forward(s, x):
        w, pick = s.router(x).softmax(-1).topk(2)
        y = torch.zeros_like(x)
        for k, e in enumerate(s.e):
            row, col = (pick == k).nonzero(as_tuple=True)
            y.index_add_(0, row, e(x[row])*w[row, col, None])
        return x + y
    return Net(forward, router=L(D, 3), e=nn.ModuleList([lin() for _ in range(3)]))

@case(one('o'), batch=words)
def integers(): return Net(lambda s, i: s.head((x := s.wte(i)) + s.o(s.m(x).relu())),
                           wte=nn.Embedding(11, D), o=lin(), m=lin(), head=L(D, 11))

@case(one('o'), batch=words)
def tied_head():
    net = integers()
    net.head.weight = net.wte.weight
    return net

def in_checkpoint(**how):
    block = Net(lambda s, x: x + s.b(s.a(x).relu()), a=lin(), b=lin())
    def forward(s, x):
        x = s.first(x)
        return checkpoint(s.block, x, **how)
    return Net(forward, first=lin(), block=block)

@case(one('block.b'))
def checkpointed(): return in_checkpoint(use_reentrant=False)

@case(one('block.b'))
def checkpointed_reentrant(): return in_checkpoint(use_reentrant=True)

@case(one('b'))
def frozen(): return a_residual_mlp().requires_grad_(False)

@case(one('b'))
def weight_normed(): return Net(lambda s, x: x + s.b(s.a(x).relu()), a=weight_norm(lin()),
                                b=weight_norm(lin()))

@case(one('b'))
def spectrally_normed(): return Net(lambda s, x: x + s.b(s.a(x).relu()), a=lin(),
                                    b=spectral_norm(lin()))

@case(one('b'))
def old_weight_norm():
    return Net(lambda s, x: x + s.b(s.a(x).relu()), a=lin(), b=nn.utils.weight_norm(lin()))

@case(one('b'))
def under_autocast():
    def forward(s, x):
        with torch.autocast('cpu', torch.bfloat16): return x + s.b(s.a(x).relu())
    return Net(forward, a=lin(), b=lin())

@case(one('b'), batch=lambda: rows().double())
def float64(): return a_residual_mlp().double()

@case(one('b'))
def a_partial():
    net = a_residual_mlp()
    net.f = functools.partial(lambda more, s, x: x + more*s.b(s.a(x).relu()), 1)
    return net

@case(one('b'))                 # the wrapped model's names
def data_parallel(): return nn.DataParallel(a_residual_mlp())

@case(one('b'))
def compiled(): return torch.compile(a_residual_mlp())

@case(one('b'))
def scaled_weights():           # equalized learning rate: the weight is made anew at every call
    def forward(s, x): return x + F.linear(s.a(x).relu(), s.b.weight*.5, s.b.bias)
    return Net(forward, a=lin(), b=lin())

@case(one('b', 'up', 'down'))
def lora():
    def forward(s, x):
        return x + F.linear(s.a(x).relu(), s.b.weight + s.up.weight @ s.down.weight)
    return Net(forward, a=lin(), b=lin(), up=L(2, D), down=L(D, 2))

@case(one('(model)'))
def a_parameter_of_ones_own():
    def forward(s, x): return x + s.a(x).relu() @ s.w
    return Net(forward, a=lin(), w=nn.Parameter(torch.randn(D, D)))

@dataclass
class Out:
    hidden: torch.Tensor
    words: str = 'extra'

@case(one('inner.b'))
def a_dataclass_between():
    inner = Net(lambda s, x: Out(x + s.b(s.a(x).relu())), a=lin(), b=lin())
    return Net(lambda s, x: s.head(s.inner(x).hidden), inner=inner, head=lin())

@case(one('inner.b'))
def a_tuple_between():
    inner = Net(lambda s, x, more=None: (x + s.b(s.a(x).relu()), more), a=lin(), b=lin())
    return Net(lambda s, x: s.head(s.inner(x, more=3)[0]), inner=inner, head=lin())

@case(one('b'), batch=images)
def diffusion_block():
    "Time is added inside; that is no branch."
    def forward(s, x):
        t = s.t2(F.silu(s.t1(torch.linspace(0, 1, len(x))[:, None].sin())))
        h = s.a(F.silu(s.m(x))) + s.emb(F.silu(t))[:, :, None, None]
        return x + s.b(F.silu(s.n(h)))
    return Net(forward, a=conv(), b=conv(), m=nn.GroupNorm(2, D), n=nn.GroupNorm(2, D),
               t1=L(1, D), t2=lin(), emb=lin())

def timed(): return images(), torch.rand(2)

@case(one('b'), batch=timed)
def diffusion_block_with_time_given():
    def forward(s, x, t):
        t = s.t2(F.silu(s.t1(torch.cat([t[:, None].sin(), t[:, None].cos()], 1))))
        h = s.a(F.silu(s.m(x))) + s.emb(F.silu(t))[:, :, None, None]
        return x + s.b(F.silu(s.n(h)))
    return Net(forward, a=conv(), b=conv(), m=nn.GroupNorm(2, D), n=nn.GroupNorm(2, D),
               t1=L(2, D), t2=lin(), emb=lin())

@case(one('b'), batch=timed)
def adaptive_norm_zero():       # Peebles & Xie 2022: shift, scale and gate are made from the time
    def forward(s, x, t):
        shift, scale, gate = s.ada(F.silu(s.t1(t[:, None])))[:, :, None, None].chunk(3, 1)
        y = s.m(x)*(1 + scale) + shift
        return x + gate*s.b(F.gelu(s.a(y)))
    return Net(forward, a=conv(), b=conv(), m=nn.GroupNorm(2, D, affine=False), t1=L(1, D),
               ada=L(D, 3*D))

@case(one('c.b'), one('up'), batch=images)
def u_net_with_sums():
    "A U-Net that adds: the way down is a stream, and the way through the bottom a branch."
    def forward(s, x):
        y = s.c(F.avg_pool2d(x, 2))
        return x + s.up(F.interpolate(y, scale_factor=2))
    return Net(forward, c=Net(lambda s, x: x + s.b(s.a(x).relu()), a=conv(), b=conv()), up=conv())

@case(one('b'))
def a_norm_written_out():
    def forward(s, x):
        y = s.w*x*torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return x + s.b(s.a(y).relu())
    return Net(forward, a=lin(), b=lin(), w=P(D))

class Rms(nn.Module):
    "Of Llama, or of Gemma with its 1 + weight."
    def __init__(self, offset=0.):
        super().__init__()
        self.weight, self.offset = nn.Parameter(torch.full((D,), 1 - offset)), offset
    def forward(self, x):
        y = x*torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
        return y*(self.offset + self.weight) if self.offset else self.weight*y

@case(one('b', norm='n'))
def rms_norm_behind(): return Net(lambda s, x: x + s.n(s.b(s.a(x).relu())), a=lin(), b=lin(),
                                  n=Rms())

@case(one('b', norm='n'))
def gemmas_norm_behind(): return Net(lambda s, x: x + s.n(s.b(s.a(x).relu())), a=lin(), b=lin(),
                                     n=Rms(1.))

@case(one('b', norm='n'))
def torchs_rms_norm_behind(): return Net(lambda s, x: x + s.n(s.b(s.a(x).relu())), a=lin(),
                                         b=lin(), n=nn.RMSNorm(D))

@case(one('b', norm='n'))
def norm_without_a_weight_behind():
    return Net(lambda s, x: x + s.n(s.b(s.a(x).relu())), a=lin(), b=lin(),
               n=nn.LayerNorm(D, elementwise_affine=False))

@case(one('b'), batch=tokens)
def query_key_norm_is_not_behind():
    def forward(s, x):
        q, k, v = s.q(x), s.k(x), s.v(x)
        q, k = s.n(q), s.m(k)
        return x + s.b(F.scaled_dot_product_attention(q, k, v))
    return Net(forward, q=lin(), k=lin(), v=lin(), n=nn.LayerNorm(D), m=Rms(), b=lin())

@case(one('v'), batch=tokens)
def attention_without_an_output_layer():
    def forward(s, x):
        return x + F.scaled_dot_product_attention(s.q(x), s.k(x), s.v(x))
    return Net(forward, q=lin(), k=lin(), v=lin())

@case(one('v'), batch=tokens)
def attention_written_out():
    def forward(s, x):
        p = (s.q(x) @ s.k(x).transpose(1, 2)/D**.5).softmax(-1)
        return x + p @ s.v(x)
    return Net(forward, q=lin(), k=lin(), v=lin())

@case(one('qkv'), batch=tokens)
def attention_from_one_layer():
    def forward(s, x):
        q, k, v = s.qkv(x).chunk(3, -1)
        return x + F.scaled_dot_product_attention(q, k, v)
    return Net(forward, qkv=L(D, 3*D))

@case(one('v'), batch=tokens)
def non_local():                # Wang et al. 2018, with scores that are not bounded
    def forward(s, x): return x + (s.q(x) @ s.k(x).transpose(1, 2)) @ s.v(x)/4
    return Net(forward, q=lin(), k=lin(), v=lin())

@case(one('b'), batch=tokens)
def a_class_token():
    def forward(s, x):
        x = torch.cat([s.cls.expand(len(x), 1, D), x], 1) + s.pos
        return (x + s.b(s.a(x).relu()))[:, 0]
    return Net(forward, cls=P(1, 1, D), pos=P(1, 5, D), a=lin(), b=lin())

@case(one('b'), batch=tokens)
def shifted_and_rolled():       # as Swin's windows
    def forward(s, x):
        y = torch.roll(x, -1, 1).view(6, 2, D)
        return x + torch.roll(s.b(s.a(y).relu()).view(3, 4, D), 1, 1)
    return Net(forward, a=lin(), b=lin())

@case(one('tok.b'), one('ch.b'), batch=tokens)
def mixer():
    def forward(s, x):
        x = x + s.tok(s.n(x).transpose(1, 2)).transpose(1, 2)
        return x + s.ch(s.m(x))
    def mlp(n): return Net(lambda s, x: s.b(F.gelu(s.a(x))), a=L(n, 9), b=L(9, n))
    return Net(forward, tok=mlp(4), ch=mlp(D), n=nn.LayerNorm(D), m=nn.LayerNorm(D))

@case(one('b'), batch=lambda: torch.randn(3, D, 12))
def wavenet():
    "A gate of two convolutions; one layer for the stream, one for the skips."
    def forward(s, x):
        h = torch.tanh(s.u(x))*torch.sigmoid(s.v(x))
        return s.head(s.skip(h)), x + s.b(h)
    return Net(forward, u=nn.Conv1d(D, D, 3, padding=1), v=nn.Conv1d(D, D, 3, padding=1),
               b=nn.Conv1d(D, D, 1), skip=nn.Conv1d(D, D, 1), head=nn.Conv1d(D, D, 1))

@case(one('gru'), batch=tokens)
def a_recurrent_branch(): return Net(lambda s, x: x + s.gru(x)[0],
                                     gru=nn.GRU(D, D, batch_first=True))

@case(one('up'), batch=lambda: torch.randn(2, D, 4, 4))
def a_transposed_convolution():
    def forward(s, x): return F.interpolate(x, scale_factor=2) + s.up(x)
    return Net(forward, up=nn.ConvTranspose2d(D, D, 2, 2))

@case(one('v'))
def reversible():
    "Gomez et al. 2017: of the first sum's two sides neither was made from the other."
    def forward(s, x):
        a, b = x.chunk(2, -1)
        a = a + s.u(b.tanh())
        return torch.cat([a, b + s.v(a.tanh())], -1)
    return Net(forward, u=L(4, 4), v=L(4, 4))

@case(one('b'), one('b'))
def euler_steps():
    def forward(s, x):
        for _ in range(2): x = x + .1*s.b(s.a(x).tanh())
        return x
    return Net(forward, a=lin(), b=lin())

@case(one('b', skip='projection'), one('d'))
def a_projection_and_then_an_identity():
    def forward(s, x):
        x = s.p(x) + s.b(s.a(x).relu())
        return x + s.d(s.c(x).relu())
    return Net(forward, a=lin(), b=lin(), c=lin(), d=lin(), p=lin())

@case(one('b'), batch=images)
def fixup():
    "Zhang et al. 2019: biases and a multiplier, no norm."
    def forward(s, x):
        y = s.b((s.a(x + s.b1) + s.b2).relu() + s.b3)*s.scale + s.b4
        return (x + y).relu()
    return Net(forward, a=conv(bias=False), b=conv(bias=False), scale=P(1), b1=P(1), b2=P(1),
               b3=P(1), b4=P(1))

@case(one('a'), one('b'), batch=images)
def shake_shake():
    def forward(s, x): return x + .3*s.a(x.relu()) + .7*s.b(x.relu())
    return Net(forward, a=conv(), b=conv())

@case(one('b'))
def a_clamped_branch(): return Net(lambda s, x: x + s.b(x).clamp(-1, 1), b=lin())

@case(one('b'))
def masked(): return Net(lambda s, x: x + s.b(s.a(x)).masked_fill(x > 3, 0.), a=lin(), b=lin())

@case(one('b'))
def where_masked(): return Net(lambda s, x: x + torch.where(x > 3, 0., s.b(s.a(x))), a=lin(),
                               b=lin())

@case(one('b'))
def written_into_a_slice():
    def forward(s, x):
        x = x.clone()
        x[:, :4] += s.b(s.a(x).relu())
        return x
    return Net(forward, a=lin(), b=L(D, 4))

@case(one('b'), batch=tokens)
def written_into_a_token():
    def forward(s, x):
        y = x.clone()
        y[:, 0] = x[:, 0] + s.b(s.a(x[:, 0]).relu())
        return y
    return Net(forward, a=lin(), b=lin())

@case(one('b'), one('b'), batch=tokens)
def a_loop_over_time():
    def forward(s, x): return torch.stack([x[:, t] + s.b(x[:, t].tanh()) for t in (0, 1)], 1)
    return Net(forward, b=lin())

@case(one('b'), batch=lambda: torch.randn(2, D, 8, 8))
def channels_last():
    return Net(lambda s, x: (x := x.contiguous(memory_format=torch.channels_last)) + s.b(s.a(x)),
               a=conv(), b=conv())

@case(one('b'))
def inference_tensors():
    with torch.inference_mode(): return a_residual_mlp()

@case(one('b'), batch=tokens)
def a_branch_that_is_broadcast():
    return Net(lambda s, x: x + s.b(s.a(x.mean(1, keepdim=True)).relu()), a=lin(), b=lin())

@case(one('b'), batch=tokens)
def chunked_over_tokens():
    def forward(s, x): return x + torch.cat([s.b(s.a(c).relu()) for c in x.chunk(2, 1)], 1)
    return Net(forward, a=lin(), b=lin())

@case(one('c'), batch=images)
def inception_residual():
    def forward(s, x): return x + .2*s.c(torch.cat([s.a(x).relu(), s.b(x).relu()], 1))
    return Net(forward, a=conv(), b=conv(), c=C(16, D, 1))

@case(one('block.c'), one('mid'), batch=images)
def dense_blocks_in_a_residual():
    def dense(s, x):
        a = s.a(x).relu()
        return x + .2*s.c(torch.cat([x, a], 1))
    block = Net(dense, a=conv(), c=C(16, D, 3, padding=1))
    return Net(lambda s, x: s.tail(x + .2*s.mid(s.block(x))), block=block, mid=conv(), tail=conv())

@case(one('w'))
def messages_on_a_graph():
    src, dst = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 3, 4])
    return Net(lambda s, x: x.index_add(0, dst, s.w(x[src]).relu()), w=lin())

@case(one('w'))
def messages_gathered_first():
    src, dst = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 0, 3, 4])
    def forward(s, x):
        return x + torch.zeros_like(x).scatter_add_(0, dst[:, None].expand(4, D), s.w(x[src]))
    return Net(forward, w=lin())

@case(one('w'))
def a_sparse_neighborhood():
    A = torch.eye(5).to_sparse()
    return Net(lambda s, x: x + torch.sparse.mm(A, s.w(x)).relu(), w=lin())

@case(one('b'), batch=lambda: torch.randn(40, D))
def some_tokens_only():
    def forward(s, x):
        top = s.router(x)[:, 0].topk(10)[1]
        y = x.clone()
        y[top] = x[top] + s.b(s.a(x[top]).relu())
        return y
    return Net(forward, router=L(D, 1), a=lin(), b=lin())

@case(one('1._orig_mod.b'))
def compiled_inside(): return nn.Sequential(lin(), torch.compile(a_residual_mlp()), lin())

class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = lin(), lin()
    def forward(self, x): return x + self.b(self.a(x).relu())

@case(one('1.b'))
def scripted_inside(): return nn.Sequential(lin(), torch.jit.script(Scripted()), lin())

class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x*2
    @staticmethod
    def backward(ctx, g): return g*2

@case(one('b'))
def an_autograd_function():
    return Net(lambda s, x: x + Doubled.apply(s.b(Doubled.apply(s.a(x)))), a=lin(), b=lin())

@case(one('m.2'))
def functional_call():
    inner = nn.Sequential(lin(), nn.ReLU(), lin())
    def forward(s, x): return x + torch.func.functional_call(s.m, dict(s.m.named_parameters()), x)
    return Net(forward, m=inner)

@case(one('b'), batch=tokens)
def under_vmap():
    return Net(lambda s, x: torch.vmap(lambda r: r + s.b(s.a(r).relu()))(x), a=lin(), b=lin())

@case(one('w'), one('w'))
def in_a_parameter_list():
    def forward(s, x):
        for w in s.w: x = x + x.tanh() @ w
        return x
    return Net(forward, w=nn.ParameterList([nn.Parameter(torch.randn(D, D)) for _ in range(2)]))

@case(one('b'))
def learned_mixing():
    def forward(s, x):
        t = torch.sigmoid(s.t)
        return t*x + (1 - t)*s.b(s.a(x).relu())
    return Net(forward, a=lin(), b=lin(), t=P(1))

@case(one('b'), batch=tokens)
def fourier_then_mlp():         # FNet: the mixing has no weights
    def forward(s, x):
        x = s.n(x + torch.fft.fft2(x).real)
        return s.m(x + s.b(F.gelu(s.a(x))))
    return Net(forward, a=lin(), b=lin(), n=nn.LayerNorm(D), m=nn.LayerNorm(D))

@case(one('b'), batch=lambda: torch.randn(5, D).to(torch.complex64))
def complex_numbers():
    return Net(lambda s, x: x + s.b(s.a(x)), a=L(D, D, dtype=torch.complex64),
               b=L(D, D, dtype=torch.complex64))

@case(one('attn.out_proj'), one('b'), batch=lambda: torch.randn(3, 6, D))
def latents_that_are_learned():
    "As in Perceiver and DETR: the stream begins with a parameter."
    def forward(s, x):
        z = s.z.expand(len(x), 4, D)
        z = z + s.attn(z, x, x)[0]
        return z + s.b(s.a(z).relu())
    return Net(forward, z=P(1, 4, D), attn=nn.MultiheadAttention(D, 2, batch_first=True), a=lin(),
               b=lin())

@case(one('self_attn.out_proj'), one('linear2'), batch=tokens)
def torchs_layer_in_eval():
    return nn.TransformerEncoderLayer(D, 2, 16, batch_first=True).eval()

@case(one('b'))
def nothing_is_added_to_the_stream_in_train():
    "Stochastic depth that skips whole blocks: in train mode by chance, seen in eval."
    def forward(s, x):
        if s.training and random.random() < 2: return x
        return x + s.b(s.a(x))
    return Net(forward, a=lin(), b=lin()).eval()

@case(one('b'))
def with_hooks_of_its_own():
    net = a_residual_mlp()
    net.b.register_forward_hook(lambda m, i, o: o*2)
    net.register_forward_pre_hook(lambda m, i: (i[0] + 1,))
    return net

@case(one('b'))
def keyword_batch(): return a_residual_mlp()

@case(one('b'), batch=lambda: (dict(x=rows(), words='hello'),))
def a_dict_as_batch(): return Net(lambda s, d: d['x'] + s.b(s.a(d['x']).relu()), a=lin(), b=lin())

@case(one('0.b'), one('1.b'))
def in_place_on_the_stream():
    def forward(s, x):
        x += s.b(s.a(x).relu())
        return x
    return nn.Sequential(*[Net(forward, a=lin(), b=lin()) for _ in range(2)])

@case(one('b'))
def in_place_activation():
    return Net(lambda s, x: x + s.b(F.relu(s.a(x), inplace=True)), a=lin(), b=lin())

@case(one('1.b'))
def pre_activation_in_place():
    "The branch's own activation is put over its input, as in old ResNets: the stream is ReLU'd."
    block = Net(lambda s, x: s.b(F.relu(x, inplace=True)) + x, b=lin())
    return nn.Sequential(lin(), block)

@case(one('b'))
def an_expanded_weight():
    return Net(lambda s, x: x + s.b(x), b=nn.Linear(D, D, bias=False))

@case(one('b'))
def a_scale_for_each_channel_behind_the_activation():
    return Net(lambda s, x: x + s.g*s.b(x).relu(), b=lin(), g=P(D))

@case(one('b', norm='n'), batch=images)
def norm_and_scale_behind():
    return Net(lambda s, x: x + s.g*s.n(s.b(x)), b=conv(), n=nn.BatchNorm2d(D), g=P(1))

@case(one('b', norm='n'), batch=images)
def batch_norm_in_eval(): return Net(lambda s, x: x + s.n(s.b(x)), b=conv(),
                                     n=nn.BatchNorm2d(D)).eval()

@case(one('b', norm='n'), batch=images)
def instance_norm(): return Net(lambda s, x: x + s.n(s.b(x)), b=conv(),
                                n=nn.InstanceNorm2d(D, affine=True))

@case(one('b', norm='n'), batch=images)
def group_norm(): return Net(lambda s, x: x + s.n(s.b(x)), b=conv(), n=nn.GroupNorm(2, D))

class Layer2d(nn.Module):
    "As in ConvNeXt: over channels, written out."
    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(D)), nn.Parameter(torch.zeros(D))
    def forward(self, x):
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u)/torch.sqrt(s + 1e-6)
        return self.weight[:, None, None]*x + self.bias[:, None, None]

@case(one('b', norm='n'), batch=images)
def layer_norm_over_channels_behind(): return Net(lambda s, x: x + s.n(s.b(x)), b=conv(),
                                                  n=Layer2d())

class Unit(nn.Module):
    "Divides by the length (ScaleNorm, Nguyen and Salazar 2019)."
    def __init__(self):
        super().__init__()
        self.g = nn.Parameter(torch.ones(()))
    def forward(self, x): return self.g*x/x.norm(dim=-1, keepdim=True).clamp(min=1e-5)

@case(one('b', norm='n'))
def scale_norm_behind(): return Net(lambda s, x: x + s.n(s.b(x)), b=lin(), n=Unit())

@case(one('b', norm='(model)'))
def normalize_behind():
    return Net(lambda s, x: x + F.normalize(s.b(x), dim=-1)*s.g, b=lin(), g=P(D))

class Grn(nn.Module):
    "ConvNeXt v2: a norm of lengths, with a skip of its own and no layer."
    def __init__(self):
        super().__init__()
        self.gamma, self.beta = nn.Parameter(torch.zeros(D)), nn.Parameter(torch.zeros(D))
    def forward(self, x):
        g = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        return self.gamma*(x*g/(g.mean(-1, keepdim=True) + 1e-6)) + self.beta + x

@case(one('b'), batch=lambda: torch.randn(2, 4, 4, D))
def grn_inside(): return Net(lambda s, x: x + s.b(s.n(F.gelu(s.a(x)))), a=lin(), b=lin(), n=Grn())

# ---- models without a branch ------------------------------------------------------------------

NONE = {}

def none(batch=rows):
    def add(make):
        NONE[make.__name__] = make, batch
        return make
    return add

@none()
def plain(): return nn.Sequential(lin(), nn.LayerNorm(D), nn.GELU(), lin())

@none(images)
def plain_convolutions(): return nn.Sequential(conv(), nn.BatchNorm2d(D), nn.ReLU(), conv())

@none(images)
def dense_net():
    def forward(s, x):
        x = torch.cat([x, s.a(x.relu())], 1)
        return s.b(torch.cat([x, s.c(x.relu())], 1))
    return Net(forward, a=conv(), c=C(16, D, 3, padding=1), b=C(24, D, 1))

@none(images)
def u_net():
    def forward(s, x):
        a = s.a(x).relu()
        b = s.b(F.max_pool2d(a, 2)).relu()
        return s.c(torch.cat([a, F.interpolate(b, scale_factor=2)], 1))
    return Net(forward, a=conv(), b=conv(), c=C(16, 3, 3, padding=1))

@none()
def gelu_written_out():
    def f(x): return .5*x*(1 + torch.tanh(.8*(x + .044715*x**3)))
    return Net(lambda s, x: s.b(f(s.a(x))), a=lin(), b=lin())

@none(tokens)
def rotary():
    def turn(x):
        t = torch.arange(4.)[:, None]*torch.arange(4.).repeat(2)
        a, b = x.chunk(2, -1)
        return x*t.cos() + torch.cat([-b, a], -1)*t.sin()
    def forward(s, x):
        return s.o(F.scaled_dot_product_attention(turn(s.q(x)), turn(s.k(x)), s.v(x)))
    return Net(forward, q=lin(), k=lin(), v=lin(), o=lin())

@none()
def highway():
    def forward(s, x):
        t = torch.sigmoid(s.t(x))
        return t*s.h(x).relu() + (1 - t)*x
    return Net(forward, t=lin(), h=lin())

def cell(update, n):
    "A recurrent cell written by hand, over four steps."
    def forward(s, x):
        h = x.new_zeros(len(x), D)
        for t in range(4): h = update(s, x[:, t], h)
        return h
    return Net(forward, **{f'w{k}': lin() for k in range(n)}, **{f'u{k}': lin() for k in range(n)})

@none(tokens)
def elman(): return cell(lambda s, x, h: torch.tanh(s.w0(x) + s.u0(h)), 1)

@none(tokens)
def gru():
    def update(s, x, h):
        z, r = torch.sigmoid(s.w0(x) + s.u0(h)), torch.sigmoid(s.w1(x) + s.u1(h))
        return (1 - z)*h + z*torch.tanh(s.w2(x) + s.u2(r*h))
    return cell(update, 3)

@none(tokens)
def gru_as_torch_writes_it():
    def update(s, x, h):
        z, r = torch.sigmoid(s.w0(x) + s.u0(h)), torch.sigmoid(s.w1(x) + s.u1(h))
        n = torch.tanh(s.w2(x) + r*s.u2(h))
        return n + z*(h - n)
    return cell(update, 3)

@none(tokens)
def lstm():
    def forward(s, x):
        h = c = x.new_zeros(len(x), D)
        for t in range(4):
            i, f, g, o = (s.w(x[:, t]) + s.u(h)).chunk(4, -1)
            c = f.sigmoid()*c + i.sigmoid()*g.tanh()
            h = o.sigmoid()*c.tanh()
        return s.head(h)
    return Net(forward, w=L(D, 4*D), u=L(D, 4*D), head=lin())

@none(tokens)
def lstm_with_parameters():
    def forward(s, x):
        h = c = torch.zeros(len(x), D)
        for t in range(4):
            i, f, g, o = (x[:, t] @ s.w + h @ s.u + s.b).chunk(4, 1)
            c = torch.sigmoid(f)*c + torch.sigmoid(i)*torch.tanh(g)
            h = torch.sigmoid(o)*torch.tanh(c)
        return h
    return Net(forward, w=nn.Parameter(torch.randn(D, 4*D)), u=nn.Parameter(torch.randn(D, 4*D)),
               b=P(4*D))

@none(tokens)
def torchs_cells():
    def forward(s, x):
        h = x.new_zeros(len(x), D)
        for t in range(4): h = s.gru(x[:, t], h)
        return h
    return Net(forward, gru=nn.GRUCell(D, D))

@none(tokens)
def torchs_layers():
    return Net(lambda s, x: s.b(s.a(x)[0])[0], a=nn.LSTM(D, D, 2, batch_first=True),
               b=nn.RNN(D, D, batch_first=True, bidirectional=True))

@none()
def two_towers(): return Net(lambda s, x: s.a(x).relu() + s.b(x).relu(), a=lin(), b=lin())

@none()
def two_deep_towers():
    return Net(lambda s, x: s.b(s.a(x).relu()) + s.e(s.d(s.c(x).relu()).relu()), a=lin(), b=lin(),
               c=lin(), d=lin(), e=lin())

@none(lambda: (rows(), rows()))
def two_inputs(): return Net(lambda s, x, y: s.c(s.a(x) + s.b(y)), a=lin(), b=lin(), c=lin())

@none(lambda: (rows(), rows()))
def two_inputs_one_deeper():
    return Net(lambda s, x, y: s.d(s.a(x) + s.c(s.b(y).relu())), a=lin(), b=lin(), c=lin(),
               d=lin())

@none()
def composed_norms():
    def forward(s, x):
        y = s.a(x)
        y = (y - y.mean(-1, keepdim=True))/(y.var(-1, keepdim=True) + 1e-5).sqrt()
        return s.b(y*s.w + s.v)
    return Net(forward, a=lin(), b=lin(), w=P(D), v=P(D))

@none()
def group_standardized():
    def forward(s, x):
        y = s.a(x)
        return s.b(y - y.mean(0)) + y.std()
    return Net(forward, a=lin(), b=lin())

@none(tokens)
def mambas_d():
    "The state-space layer's D is a gain on its input, not a stream."
    def forward(s, x):
        u, h, out = s.i(x), torch.zeros(3, D), []
        for t in range(4):
            h = h*torch.exp(-F.softplus(s.dt(u[:, t]))) + s.b(u[:, t])*u[:, t]
            out.append(s.c(u[:, t])*h + s.d*u[:, t])
        return s.o(torch.stack(out, 1))
    return Net(forward, i=lin(), dt=lin(), b=lin(), c=lin(), d=P(D), o=lin())

@none(tokens)
def masked_attention():
    def forward(s, x):
        score = s.q(x) @ s.k(x).transpose(1, 2) + torch.full((4, 4), -1e4).triu(1)
        return s.o(score.softmax(-1) @ s.v(x))
    return Net(forward, q=lin(), k=lin(), v=lin(), o=lin())

@none(tokens)
def relative_positions():
    def forward(s, x):
        bias = s.rel(torch.arange(4)[:, None] - torch.arange(4) + 3)[..., 0]
        score = s.q(x) @ s.k(x).transpose(1, 2) + bias
        return s.o(score.softmax(-1) @ s.v(x))
    return Net(forward, q=lin(), k=lin(), v=lin(), o=lin(), rel=nn.Embedding(7, 1))

@none(words)
def embeddings(): return Net(lambda s, i: s.a(s.wte(i) + s.wpe(torch.arange(4))),
                             wte=nn.Embedding(11, D), wpe=nn.Embedding(4, D), a=lin())

@none(words)
def three_embeddings():
    def forward(s, i):
        x = s.wte(i) + s.wpe(torch.arange(4)) + s.kind(torch.zeros_like(i))
        return s.a(s.n(x))
    return Net(forward, wte=nn.Embedding(11, D), wpe=nn.Embedding(4, D), kind=nn.Embedding(2, D),
               a=lin(), n=nn.LayerNorm(D))

@none(words)
def continuous_positions():
    "A small net of the positions is added to the words: no stream."
    def forward(s, i):
        t = torch.linspace(0, 1, 4)[:, None]
        return s.a(s.wte(i) + s.q(s.p(t).relu()))
    return Net(forward, wte=nn.Embedding(11, D), p=L(1, D), q=lin(), a=lin())

@none(timed)
def time_added_to_an_image():
    def forward(s, x, t): return s.b((s.a(x) + s.t(t[:, None])[:, :, None, None]).relu())
    return Net(forward, a=conv(), b=conv(), t=L(1, D))

@none()
def a_penalty(): return Net(lambda s, x: s.a(x).square().mean() + s.b(x).square().mean(), a=lin(),
                            b=lin())

@none()
def film():
    def forward(s, x):
        g, b = s.m(x).chunk(2, -1)
        return s.o(s.a(x)*(1 + g) + b)
    return Net(forward, m=L(D, 2*D), a=lin(), o=lin())

@none()
def bilinear(): return Net(lambda s, x: s.o(s.a(x)*s.b(x)), a=lin(), b=lin(), o=lin())

@none()
def maxout(): return Net(lambda s, x: torch.maximum(s.a(x), s.b(x)), a=lin(), b=lin())

@none()
def a_bias_made_from_parameters():
    return Net(lambda s, x: s.a(x) + s.p @ s.w, a=lin(), p=P(D), w=nn.Parameter(torch.randn(D, D)))

@none()
def highway_as_a_difference():
    return Net(lambda s, x: x + torch.sigmoid(s.t(x))*(s.h(x).relu() - x), t=lin(), h=lin())

@none()
def an_attention_mask_over_features():      # x(1 + M): Wang et al. 2017
    return Net(lambda s, x: s.o(x + x*torch.sigmoid(s.m(x))), m=lin(), o=lin())

@none()
def quantized():
    "A vector-quantized bottleneck with its straight-through sum."
    def forward(s, x):
        z = s.a(x)
        q = s.book(torch.cdist(z, s.book.weight).argmin(1))
        return s.b(z + (q - z).detach())
    return Net(forward, a=lin(), b=lin(), book=nn.Embedding(11, D))

@none()
def an_autoencoders_loss():
    return Net(lambda s, x: (s.b(s.a(x).relu()) - x).square().mean(), a=lin(), b=lin())

@none()
def kl_and_sampling():
    def forward(s, x):
        mu, log = s.a(x).chunk(2, -1)
        z = mu + torch.randn_like(mu)*(log/2).exp()
        return s.b(z), (mu.square() + log.exp() - 1 - log).mean()
    return Net(forward, a=L(D, 2*D), b=lin())

@none(words)
def a_bag_of_words(): return Net(lambda s, i: s.a(s.e(i)), e=nn.EmbeddingBag(11, D), a=lin())

@none(lambda: (rows(), rows()))
def a_siamese_net(): return Net(lambda s, x, y: s.b((s.a(x) - s.a(y)).abs()), a=lin(), b=lin())

@none(tokens)
def attention_scores_from_two_sums():       # Bahdanau et al. 2015
    def forward(s, x):
        e = s.v(torch.tanh(s.w(x)[:, None] + s.u(x)[:, :, None]))[..., 0]
        return s.o(e.softmax(-1) @ x)
    return Net(forward, w=lin(), u=lin(), v=L(D, 1), o=lin())

@none(images)
def convolution_in_two_axes():
    return Net(lambda s, x: s.a(x) + s.b(x), a=C(D, D, (1, 3), padding=(0, 1)),
               b=C(D, D, (3, 1), padding=(1, 0)))

@none(images)
def coordinates():
    def forward(s, x):
        grid = torch.linspace(-1, 1, 8).expand(2, 1, 8, 8)
        return s.a(torch.cat([x, grid], 1))
    return Net(forward, a=C(9, D, 1))

@none(lambda: torch.randn(3, D))
def fourier_features():
    def forward(s, x): return s.a(torch.cat([(x @ s.w).sin(), (x @ s.w).cos()], 1))
    return Net(forward, w=nn.Parameter(torch.randn(D, D)), a=L(2*D, D))

@none()
def swish_and_mish(): return nn.Sequential(lin(), nn.SiLU(), lin(), nn.Mish(), nn.PReLU(D), lin(),
                                           nn.Softplus(), nn.RReLU(), lin())

@none()
def shifted_activation(): return Net(lambda s, x: s.b((y := s.a(x)) + y.tanh()), a=lin(), b=lin())

@none()
def concatenated_relu(): return Net(lambda s, x: s.b(torch.cat([(y := s.a(x)).relu(), (-y).relu()],
                                                               1)), a=lin(), b=L(2*D, D))

@none(tokens)
def token_shift():
    def forward(s, x):
        before = F.pad(x, (0, 0, 1, -1))
        return s.a(s.m*x + (1 - s.m)*before)
    return Net(forward, a=lin(), m=P(D))

@none(tokens)
def linear_attention():
    def forward(s, x):
        q, k, v = F.elu(s.q(x)) + 1, F.elu(s.k(x)) + 1, s.v(x)
        kv, z = k.transpose(1, 2) @ v, k.sum(1)
        return s.o((q @ kv)/(q @ z[..., None]))
    return Net(forward, q=lin(), k=lin(), v=lin(), o=lin())

@none(tokens)
def retention_in_a_loop():
    def forward(s, x):
        state, out = torch.zeros(3, D, D), []
        for t in range(4):
            k, v = s.k(x[:, t]), s.v(x[:, t])
            state = .9*state + k[:, :, None]*v[:, None]
            out.append((s.q(x[:, t])[:, None] @ state)[:, 0])
        return s.o(torch.stack(out, 1))
    return Net(forward, q=lin(), k=lin(), v=lin(), o=lin())

@none()
def the_stream_is_subtracted(): return Net(lambda s, x: s.b(s.a(x).relu()) - x, a=lin(), b=lin())

@none()
def interpolated(): return Net(lambda s, x: torch.lerp(x, s.b(s.a(x)), .5), a=lin(), b=lin())

@none()
def summed_as_a_stack():
    return Net(lambda s, x: torch.stack([x, s.b(s.a(x))]).sum(0), a=lin(), b=lin())

def batch_of(make):
    b = make()
    return b if isinstance(b, tuple) else (b,)

@pytest.mark.parametrize('name', CASES)
def test_branches_are_found(name):
    make, batch, expected = CASES[name]
    assert found(branches(make(), *batch_of(batch))) == expected

@pytest.mark.parametrize('name', NONE)
def test_there_are_none(name):
    make, batch = NONE[name]
    assert found(branches(make(), *batch_of(batch))) == []

# ---- random residual nets ----------------------------------------------------------------------

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.router, self.e = L(D, 2), nn.ModuleList([lin(), lin()])
    def forward(self, x):
        flat = x.reshape(-1, D)
        weight, pick = self.router(flat).softmax(-1).max(-1)
        y = torch.zeros_like(flat)
        for k, e in enumerate(self.e):
            at = torch.where(pick == k)[0]
            y.index_add_(0, at, weight[at, None]*e(flat[at]).tanh())
        return y.view_as(x)

def attention(s, x): return s.a(x, x, x, need_weights=False)[0]
def through_channels(s, x): return s.b(s.a(x.transpose(1, 2)).relu()).transpose(1, 2)
def squeezed(s, x): return s.b(x)*torch.sigmoid(s.a(x.mean(1, keepdim=True)))

# What a branch computes: a module, and the writers in it.
BODIES = dict(
    mlp=lambda: (nn.Sequential(L(D, 12), nn.GELU(), nn.Dropout(.1), L(12, D)), ['3']),
    layer=lambda: (nn.Sequential(nn.Tanh(), lin()), ['1']),
    weight_norm=lambda: (nn.Sequential(nn.Tanh(), weight_norm(lin())), ['1']),
    attention=lambda: (Net(attention, a=nn.MultiheadAttention(D, 2, batch_first=True)),
                       ['a.out_proj']),
    convolution=lambda: (Net(through_channels, a=nn.Conv1d(D, 6, 3, padding=1),
                             b=nn.Conv1d(6, D, 1)), ['b']),
    glu=lambda: (nn.Sequential(L(D, 2*D), nn.GLU()), ['0']),
    swiglu=lambda: (Net(lambda s, x: s.c(F.silu(s.a(x))*s.b(x)), a=lin(), b=lin(), c=lin()), ['c']),
    squeezed=lambda: (Net(squeezed, a=lin(), b=lin()), ['b']),
    experts=lambda: (Experts(), ['e.0', 'e.1']),
)
NORMS = dict(layer=lambda: nn.LayerNorm(D), rms=lambda: nn.RMSNorm(D), own=Rms,
             gemma=lambda: Rms(1.))

def subtract(x, y): return x - y
def halve(x, y): return (x + y)/2**.5
def in_its_place(x, y):
    x = x*1
    x += y
    return x
def onto_the_branch(x, y): return y.add_(x)
def with_alpha(x, y): return torch.add(x, y, alpha=.3)
JOINS = [torch.add, subtract, halve, in_its_place, onto_the_branch, with_alpha]
WRAPS = [None, 'checkpoint', 'reentrant', 'tuple', 'partial', 'twice']

class Block(nn.Module):
    "A stream to which branches add, as its plan says."
    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        made = [BODIES[b]() for b in plan['bodies']]
        self.body = nn.ModuleList([m for m, _ in made])
        writers = [f'body.{k}.{w}' for k, (_, own) in enumerate(made) for w in own]
        if plan['inner']:          # the first branch ends in a layer behind a stream of its own
            self.inner, self.last = Block(plan['inner']), lin()
            writers = ['last', *(w for w in writers if not w.startswith('body.0.'))]
        self.inside = plan['inner'] and [(*(f'inner.{w}' for w in ws), s, n and f'inner.{n}')
                                         for *ws, s, n in self.inner.expected()] or []
        norm = NORMS[plan['norm']]
        self.before = norm() if plan['where'] == 'before' else nn.Identity()
        self.after = norm() if plan['where'] == 'after' else nn.Identity()
        self.behind = norm() if plan['where'] == 'behind' else nn.Identity()
        if plan['scale']: self.scale = P(D)
        if plan['project']: self.project = nn.Sequential(lin(), norm())
        self.writers = writers

    def expected(self):
        "Its branches, in the order of the forward."
        skip = 'projection' if self.plan['project'] else 'identity'
        norm = 'behind' if self.plan['where'] == 'behind' else None
        return ([*self.inside, one(*self.writers, skip=skip, norm=norm)]
                * (1 + (self.plan['wrap'] == 'twice')))

    def add(self, x):
        y = self.before(x)
        ys = [b(y) for b in self.body]
        if self.plan['inner']: ys[0] = self.last(self.inner(ys[0]).relu())
        y = self.behind(sum(ys[1:], ys[0]))
        if self.plan['scale']: y = self.scale*y
        if self.plan['project']: x = self.project(x)
        return self.after(self.plan['join'](x, y))

    def forward(self, x):
        wrap = self.plan['wrap']
        if wrap in ('checkpoint', 'reentrant'):
            return checkpoint(self.add, x, use_reentrant=wrap == 'reentrant')
        if wrap == 'tuple': return (lambda o: o[1]['x'])((0, dict(x=self.add(x))))
        if wrap == 'partial': return functools.partial(self.add, x)()
        return self.add(self.add(x)) if wrap == 'twice' else self.add(x)

    def hands_on(self):
        "With the writers at zero, is its output its input?"
        return (self.plan['where'] != 'after' and not self.plan['project']
                and self.plan['join'] is not halve)

def plans(inner=st.none()):
    return st.fixed_dictionaries(dict(
        bodies=st.lists(st.sampled_from(list(BODIES)), min_size=1, max_size=2),
        inner=inner, norm=st.sampled_from(list(NORMS)), join=st.sampled_from(JOINS),
        where=st.sampled_from([None, 'before', 'after', 'behind']), scale=st.booleans(),
        project=st.sampled_from([False, False, True]), wrap=st.sampled_from(WRAPS)))

def told_apart(plan):
    "Beside a projection a branch needs two weights, or it is one of two towers."
    if plan['inner'] and not told_apart(plan['inner']): return False
    deep = {'mlp', 'attention', 'convolution', 'swiglu'}
    return not plan['project'] or deep.issuperset(plan['bodies'])

nets = st.lists(plans(st.one_of(st.none(), plans())).filter(told_apart), min_size=1, max_size=3)
CONTEXTS = {None: contextlib.nullcontext, 'inference': torch.inference_mode,
            'no_grad': torch.no_grad, 'autocast': lambda: torch.autocast('cpu', torch.bfloat16)}
ways = st.fixed_dictionaries(dict(
    context=st.sampled_from(list(CONTEXTS)), words=st.booleans(), frozen=st.booleans(),
    training=st.booleans(), double=st.booleans(), parallel=st.booleans()))

def build(plans_, how):
    "The net, its batch, and its branches by construction."
    first = nn.Embedding(11, D) if how['words'] else lin()
    net = nn.Sequential(first, *map(Block, plans_), lin()).train(how['training'])
    batch = words() if how['words'] else tokens()
    if how['frozen']: net.requires_grad_(False)
    if how['double']:
        net = net.double()
        batch = batch if how['words'] else batch.double()
    expected = [(*sorted(f'{k}.{w}' for w in ws), skip, norm and f'{k}.{norm}')
                for k, b in enumerate(net[1:-1], 1) for *ws, skip, norm in b.expected()]
    if how['parallel']: net = nn.DataParallel(net)
    return net, batch, expected

def everything(net):
    "What must be as before: parameters, buffers, modes, hooks, gradients, random states."
    numbers = [t.clone() for t in (*net.parameters(), *net.buffers())]
    return (numbers, [m.training for m in net.modules()], [p.grad for p in net.parameters()],
            [p.requires_grad for p in net.parameters()], hooks_on(net),
            [torch.get_rng_state(), torch.tensor(random.getstate()[1], dtype=torch.int64)])

def same(a, b):
    return (all(map(torch.equal, a[0], b[0])) and a[1:5] == b[1:5]
            and all(map(torch.equal, a[5], b[5])))

# A net that fails is small enough to read as it is.
RANDOM = dict(deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))

@settings(max_examples=60, **RANDOM)
@given(nets, ways)
def test_random_nets(plans_, how):
    net, batch, expected = build(plans_, how)
    before = everything(net)
    with CONTEXTS[how['context']](): report = branches(net, batch)
    assert found(report) == expected
    assert same(before, everything(net))
    net = getattr(net, 'module', net)
    for k, block in enumerate(net[1:-1], 1):      # of a whole block, the experiment was made
        own = [r for r in report if r['name'] == str(k)]
        assert own and all(r['kind'] == 'Block' for r in own)
        if block.hands_on() and block.plan['join'] is not in_its_place:
            assert all(r['confirmed'] for r in own)
        else: assert all(r['confirmed'] is None for r in own)

def zero(net, report):
    "What decides over each branch's size is put to zero, by the names in the report."
    params = dict(net.named_parameters())
    with torch.no_grad():
        for r in report:
            if r['norm']: names, value = r['norm_weights'], -r['norm_offset']
            else: names, value = r['weights'] + r['biases'], 0.
            for n in names: params[n].fill_(value)

@settings(max_examples=40, **RANDOM)
@given(nets)
def test_with_the_reports_parameters_at_zero_a_block_hands_on_its_input(plans_):
    # weight norm's writers are made of several parameters, and 0/0 of a zero one is nan
    for p in plans_: p['bodies'] = [b.replace('weight_norm', 'layer') for b in p['bodies']]
    net, batch, _ = build(plans_, dict(words=False, frozen=False, training=False, double=False,
                                       parallel=False))
    zero(net, branches(net, batch))
    for b in net[1:-1]:
        if not b.hands_on(): continue
        x = tokens()
        assert torch.equal(b(x), x)

# ---- architectures of transformers: from configurations, at random weights --------------------

SIZES = dict(vocab_size=101, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
             intermediate_size=64)

def ids(): return torch.randint(3, 100, (4, 12))
def text(): return dict(input_ids=ids())
def pairs(): return dict(input_ids=ids(), decoder_input_ids=ids())
def pixels(): return dict(pixel_values=torch.randn(2, 3, 32, 32))
def sound(): return dict(input_features=torch.randn(4, 8, 40), decoder_input_ids=ids())

def layers(path, *branches_, n=2):
    "For each of n layers, its branches; names within a layer."
    return [(*sorted(f'{path}.{k}.{w}' for w in ws), skip, norm and f'{path}.{k}.{norm}')
            for k in range(n) for *ws, skip, norm in branches_]

ALBERT = 'albert.encoder.albert_layer_groups.0.albert_layers'
# Class, configuration, batch, and its branches, as its forward is written.
ARCHITECTURES = [
    ('GPT2LMHeadModel', 'GPT2', dict(vocab_size=101, n_embd=32, n_layer=2, n_head=4), text,
     layers('transformer.h', one('attn.c_proj'), one('mlp.c_proj'))),
    ('LlamaForCausalLM', 'Llama', {**SIZES, 'num_key_value_heads': 2}, text,
     layers('model.layers', one('self_attn.o_proj'), one('mlp.down_proj'))),
    ('BertForMaskedLM', 'Bert', SIZES, text,
     layers('bert.encoder.layer', one('attention.output.dense'), one('output.dense'))),
    ('GPTJForCausalLM', 'GPTJ',
     dict(vocab_size=101, n_embd=32, n_layer=2, n_head=4, rotary_dim=4), text,
     layers('transformer.h', one('attn.out_proj', 'mlp.fc_out'))),
    ('ViTForImageClassification', 'ViT', SIZES | dict(image_size=32, patch_size=8), pixels,
     layers('vit.layers', one('attention.o_proj'), one('mlp.fc2'))),
    ('SwinForImageClassification', 'Swin',       # windows are shifted in every second block
     dict(image_size=32, patch_size=2, embed_dim=16, depths=[2, 1], num_heads=[2, 2],
          window_size=4), pixels,
     layers('swin.encoder.layers.0.blocks', one('attention.o_proj'), one('mlp.fc2'))
     + layers('swin.encoder.layers.1.blocks', one('attention.o_proj'), one('mlp.fc2'), n=1)),
    ('ResNetForImageClassification', 'ResNet',
     dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type='basic'), pixels,
     layers('resnet.encoder.stages.0.layers',
            one('layer.1.convolution', norm='layer.1.normalization'), n=1)
     + layers('resnet.encoder.stages.1.layers', one('layer.1.convolution', skip='projection',
                                                    norm='layer.1.normalization'), n=1)),
    ('ResNetForImageClassification', 'ResNet',
     dict(embedding_size=8, hidden_sizes=[16, 16], depths=[2, 1], layer_type='bottleneck'), pixels,
     [one('resnet.encoder.stages.0.layers.0.layer.2.convolution', skip='projection',
          norm='resnet.encoder.stages.0.layers.0.layer.2.normalization'),
      one('resnet.encoder.stages.0.layers.1.layer.2.convolution',
          norm='resnet.encoder.stages.0.layers.1.layer.2.normalization'),
      one('resnet.encoder.stages.1.layers.0.layer.2.convolution', skip='projection',
          norm='resnet.encoder.stages.1.layers.0.layer.2.normalization')]),
    ('ConvNextForImageClassification', 'ConvNext',
     dict(hidden_sizes=[8, 16], depths=[2, 1], num_stages=2, patch_size=2), pixels,
     layers('convnext.encoder.stages.0.layers', one('pwconv2'))
     + layers('convnext.encoder.stages.1.layers', one('pwconv2'), n=1)),
    ('T5ForConditionalGeneration', 'T5',
     dict(vocab_size=101, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4,
          decoder_start_token_id=0), pairs,
     layers('encoder.block', one('layer.0.SelfAttention.o'), one('layer.1.DenseReluDense.wo'))
     + layers('decoder.block', one('layer.0.SelfAttention.o'), one('layer.1.EncDecAttention.o'),
              one('layer.2.DenseReluDense.wo'))),
    ('WhisperForConditionalGeneration', 'Whisper',
     dict(vocab_size=101, num_mel_bins=8, d_model=32, encoder_layers=2, decoder_layers=1,
          encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=64,
          decoder_ffn_dim=64, max_source_positions=20, max_target_positions=20, pad_token_id=0,
          bos_token_id=1, eos_token_id=2, decoder_start_token_id=1), sound,
     layers('model.encoder.layers', one('self_attn.out_proj'), one('fc2'))
     + layers('model.decoder.layers', one('self_attn.out_proj'), one('encoder_attn.out_proj'),
              one('fc2'), n=1)),
    ('MambaForCausalLM', 'Mamba',
     dict(vocab_size=101, hidden_size=32, num_hidden_layers=2, state_size=8), text,
     layers('backbone.layers', one('mixer.out_proj'))),
    ('Gemma2ForCausalLM', 'Gemma2', {**SIZES, 'num_key_value_heads': 2, 'head_dim': 8}, text,
     layers('model.layers', one('self_attn.o_proj', norm='post_attention_layernorm'),
            one('mlp.down_proj', norm='post_feedforward_layernorm'))),
    ('MixtralForCausalLM', 'Mixtral', {**SIZES, 'num_key_value_heads': 2, 'num_local_experts': 4},
     text, layers('model.layers', one('self_attn.o_proj'), one('mlp.experts'))),
    ('AlbertForMaskedLM', 'Albert', SIZES | dict(embedding_size=16), text,    # one shared layer
     2*layers(ALBERT, one('attention.dense'), one('ffn_output'), n=1)),
]

@pytest.fixture
def transformers(monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    return pytest.importorskip('transformers')

def architecture(transformers, cls, config, kw):
    return getattr(transformers, cls)(getattr(transformers, f'{config}Config')(**kw))

@pytest.mark.slow
@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('cls, config, kw, batch, expected', ARCHITECTURES)
def test_architectures_of_transformers(transformers, cls, config, kw, batch, expected, training):
    model = architecture(transformers, cls, config, kw).train(training)
    given_ = batch()
    before = everything(model)
    report = branches(model, **given_)
    assert found(report) == expected
    assert same(before, everything(model))
    assert all(r['confirmed'] is not False for r in report)
    offset = 1. if config == 'Gemma2' else 0.
    assert all(r['norm_offset'] == offset for r in report)
    assert all(len(r['norm_weights']) == bool(r['norm']) for r in report)
    if config == 'ConvNext': assert all('layer_scale_parameter' in r['scales'][0] for r in report)
    else: assert not any(r['scales'] for r in report)

def encoder(**kw): return nn.TransformerEncoder(
    nn.TransformerEncoderLayer(D, 2, 16, batch_first=True, **kw), 2, enable_nested_tensor=False)
def decoder(**kw): return nn.TransformerDecoder(
    nn.TransformerDecoderLayer(D, 2, 16, batch_first=True, **kw), 2)

@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('first', [False, True])
def test_torchs_transformers(first, training):
    report = branches(encoder(norm_first=first).train(training), tokens())
    assert found(report) == layers('layers', one('self_attn.out_proj'), one('linear2'))
    assert all(r['confirmed'] is (True if first else None) for r in report)
    report = branches(decoder(norm_first=first).train(training), tokens(), tokens())
    assert found(report) == layers('layers', one('self_attn.out_proj'),
                                   one('multihead_attn.out_proj'), one('linear2'))
    assert all(r['confirmed'] is (True if first else None) for r in report)
    whole = nn.Transformer(D, 2, 1, 1, 16, batch_first=True, norm_first=first).train(training)
    assert found(branches(whole, tokens(), tokens())) == [
        *layers('encoder.layers', one('self_attn.out_proj'), one('linear2'), n=1),
        *layers('decoder.layers', one('self_attn.out_proj'), one('multihead_attn.out_proj'),
                one('linear2'), n=1)]
