"The pages on one screen: what they tell you to type runs, and the numbers to remember are right."
import math, re

import initnotes as ini
import torch
from conftest import ROOT

TEXT = (ROOT/'nbs'/'summary.md').read_text(encoding='utf-8')

def test_what_it_says_to_type_runs():
    torch.manual_seed(0)
    exec('\n'.join(re.findall(r'^```python\n(.*?)^```', TEXT, re.M | re.S)), {})

def test_numbers_to_remember():
    gains = re.search(r'tanh ([\d.]+), GELU ([\d.]+), SiLU ([\d.]+), SELU 1 ', TEXT)
    for f, said in zip(('tanh', 'gelu', 'silu'), gains.groups()):
        assert abs(ini.gain(f) - float(said)) <= .0005, f
    assert '1.5335; any' in TEXT and abs(ini.gain('gelu') - 1.5335) < 5e-5
    assert abs(ini.gain('selu') - 1) < 1e-4 and abs(ini.gain('relu') - math.sqrt(2)) < 1e-9
    x = ini.mnist().x_train
    assert f'mean {x.mean():.4f}, std {x.std():.4f}'.replace('0.', '.') in TEXT
    assert abs(1.1**100 - 13_800) < 50 and abs(math.log(10) - 2.303) < 5e-4

def test_numbers_of_deep_nets():
    z = torch.linspace(0, 12, 100_001, dtype=torch.float64)
    density = (-z*z/2).exp()/math.sqrt(2*math.pi)
    second, fourth = (torch.trapezoid(z**k*density, z).item() for k in (2, 4))
    assert abs(fourth/second**2 - 1 - 5) < 1e-9                # κ − 1 of a ReLU
    assert '30 layers of 64: 2.34' in TEXT and abs(30*5/64 - 2.34) < .005
    assert '32 blocks: 4.3 billion' in TEXT and abs(2**32/1e9 - 4.3) < .05
    assert '32 blocks: 2.68' in TEXT and abs((1 + 1/32)**32 - 2.68) < .005
    assert 'GPT-2: 10.98' in TEXT and abs(math.log(50257) + .02**2*768/2 - 10.98) < .005
