"""lsuv_ on plain 3×3 conv nets (16 channels, 28×28, batch 32, one thread).

Against a bare forward, the textbook loop and lsuv 0.3.0. With --store the table goes into
nbs/measured.md as well."""
import copy, ctypes, functools, re, sys, time
from pathlib import Path

here = Path(__file__).resolve().parent   # last in the path: `lsuv` is not this file
sys.path = [p for p in sys.path if Path(p or '.').resolve() != here] + [str(here)]
import torch
from lsuv import lsuv_with_singlebatch
from torch import nn
from initnotes import ConvLayer, lsuv_
from ratios import into_page, report

torch.set_num_threads(1)
report = functools.partial(report, clock=time.process_time)
# Memory of this size is otherwise given back to the system and taken again at every tensor,
# by one side more than by the other.
try:
    for option in (-1, -3): ctypes.CDLL(None).mallopt(option, 1 << 30)
except (AttributeError, OSError): pass
torch.manual_seed(0)
x = torch.randn(32, 16, 28, 28)

def plain(n):
    return nn.Sequential(
        *[l for _ in range(n) for l in (nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())])
def blocks(n):
    return nn.Sequential(*[ConvLayer(16, 16, stride=1, leak=.1, sub=.4, maxv=6.) for _ in range(n)])
def bare(model):
    with torch.no_grad(): model(x)

def seen(model, kind):
    "Each layer's output, one after the other, in float64."
    with torch.no_grad():
        y = x
        for layer in model:
            y = layer(y)
            if isinstance(layer, kind): yield y.double()

def worst(model, kind=nn.Conv2d):
    return max(abs(y.std().item() - 1) for y in seen(model, kind))

def textbook(model, tol=1e-3, most=20):
    "Layer by layer; the whole model again after every step."
    found = {}
    for layer in model:
        if not isinstance(layer, nn.Conv2d): continue
        handle = layer.register_forward_hook(lambda m, args, y: found.update(std=y.std()))
        bare(model)
        for _ in range(most):
            if abs(found['std'] - 1) <= tol: break
            with torch.no_grad(): layer.weight.div_(found['std'])
            bare(model)
        handle.remove()

def theirs(model):
    lsuv_with_singlebatch(model, x, do_orthonorm=False, verbose=False)

rows = []
for n in (10, 40, 80, 160):
    model = plain(n)
    _, mid, _ = report(f'lsuv_ on {n} layers against a bare forward', lambda: lsuv_(model, x),
                       lambda: bare(model), 1.5, 9)
    row = [str(n), f'{mid:.2f}×']
    lsuv_(model := plain(n), x)
    off = worst(model)
    # beyond 80 layers a ReLU net magnifies float32's own rounding above it
    assert off <= 1e-5 or n > 80, off
    for loop, goal, most in ((textbook, 1, 80), (theirs, 60 if n == 80 else 1, 80)):
        if n > most: row += ['', '']; continue
        fresh, other = plain(n), plain(n)
        states = copy.deepcopy(other.state_dict())
        def run():   # else they would find their work done
            other.load_state_dict(states)
            loop(other)
        whose = 'the textbook loop' if loop is textbook else 'lsuv 0.3.0'
        _, mid, _ = report(f'lsuv_ on {n} layers against {whose}', lambda: lsuv_(fresh, x), run,
                           goal, 3, faster=True)
        row += [f'{mid:,.0f}×', f'{worst(other):.1e}']
    rows.append(row[:2] + [f'{off:.1e}'] + row[2:])

for n in (10, 40):
    model = blocks(n)
    models = iter([copy.deepcopy(model) for _ in range(20)])
    report(f'mean and std behind GeneralReLU on {n} layers against a bare forward',
           lambda: lsuv_(next(models), x, at=ConvLayer, mean=0.), lambda: bare(model), 6, 9)
    report_ = lsuv_(model, x, at=ConvLayer, mean=0.)
    for y in seen(model, ConvLayer):
        assert abs(y.std().item() - 1) <= 1.01e-3 and abs(y.mean().item()) <= 1.01e-3
    each = sum(r['evaluations'] for r in report_)/n
    print(f'  {each:.1f} evaluations of what follows the convolution, a block')

def vgg11(layers=(64, 'M', 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512, 'M')):
    "133 million weights, nearly all of them in three layers."
    n, body = 3, []
    for k in layers:
        body += [nn.MaxPool2d(2)] if k == 'M' else [nn.Conv2d(n, k, 3, padding=1), nn.ReLU(True)]
        n = n if k == 'M' else k
    head = [m for a, b in ((512*7*7, 4096), (4096, 4096))
            for m in (nn.Linear(a, b), nn.ReLU(True), nn.Dropout())]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head, nn.Linear(4096, 1000))

model, images = vgg11(), torch.randn(32, 3, 64, 64)
def forward():
    with torch.no_grad(): model(images)
report('lsuv_ on VGG11 (133 M weights, 64 pixels) against a bare forward',
       lambda: lsuv_(model, images), forward, 2, 7)

off = r'largest \|std − 1\|'
head = ['layers', 'against one forward', off, 'faster than the textbook loop', f'its {off}',
        'faster than `lsuv` 0.3.0', f'its {off}']
table = '\n'.join(['| ' + ' | '.join(r) + ' |' for r in (head, *rows)])
table = table.replace('\n', '\n' + '|---'*len(head) + '|\n', 1)
print(table)
if '--store' in sys.argv:
    into_page('lsuv', table)
