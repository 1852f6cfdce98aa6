"""Training with ActivationStats on every layer against the same training bare.

Activations, gradients, dead units, updates, histograms."""
import torch
import torch.nn.functional as F
from torch import nn
from initnotes import ActivationStats, init_, mnist, normalize_to
from ratios import report

torch.set_num_threads(1)
data = mnist()
x, y = normalize_to(data.x_train)[0][:5120].view(-1, 1, 28, 28), data.y_train[:5120]

class Shifted(nn.Module):
    "Flat in two places: the costliest kind to find dead units in."
    def forward(self, x): return (F.relu(x) - .4).clamp_max(6.)

def conv_net(act=nn.ReLU):
    sizes, layers = (1, 8, 16, 32, 64, 64), []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:])):
        layers += [nn.Conv2d(a, b, 3 if i else 5, stride=2, padding=1 if i else 2), act()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))

def mlp(*sizes):
    layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])

def deep(n, width):
    widths = [784] + [width]*(n + 1)
    return mlp(*widths, 10)

def compare(name, net, batch, limit):
    init_(net)
    opt, stats = torch.optim.SGD(net.parameters(), lr=.01), ActivationStats(net)
    few = min(len(x), 50*batch)
    def bare(step=lambda: None):
        for xb, yb in zip(x[:few].split(batch), y[:few].split(batch)):
            F.cross_entropy(net(xb), yb).backward()
            opt.step(); step(); opt.zero_grad()
    def watched():
        with stats: bare(stats.step)
    report(f'ActivationStats, {name}, batch {batch}', watched, bare, limit, repeat=21)

compare('5 convolutions, ReLU', conv_net(), 512, 1.25)
compare('5 convolutions, GELU', conv_net(nn.GELU), 512, 1.25)
compare('5 convolutions, shifted and capped ReLU', conv_net(Shifted), 512, 1.25)
compare('784-256-256-10', mlp(784, 256, 256, 10), 512, 1.25)
compare('784-50-10', mlp(784, 50, 10), 64, 1.5)
compare('twenty Linear(64) and ReLU', deep(20, 64), 128, 2.)
