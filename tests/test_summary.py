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
