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

def test_numbers_of_an_audit():
    from initnotes.thresholds import MATERIAL, errors, freezing, silent
    assert '90 tests: 98 %' in TEXT and abs(1 - math.erf(2/math.sqrt(2))**90 - .98) < .006
    assert '1,000 tests: 6.2 |' in TEXT and abs(errors(1000) - 6.2) < .05
    assert '6: six correlation lengths' in TEXT and MATERIAL == 6
    assert '$c=.965$, 4,096 inputs: a quarter' in TEXT and abs(silent(.965, 4096) - .25) < .01
    assert '100 classes: 3.03' in TEXT and abs(freezing(100) - 3.03) < .005
