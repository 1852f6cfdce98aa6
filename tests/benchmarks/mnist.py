"mnist() against the least that the same files ask for: gunzip, frombuffer, scale to float32."
import gzip
from pathlib import Path

import torch, initnotes
from initnotes import mnist
from ratios import report

folder = Path(initnotes.__file__).parent/'_mnist'

def least():
    out = []
    for f in sorted(folder.glob('*.gz')):
        header = 16 if 'images' in f.name else 8
        x = torch.frombuffer(bytearray(gzip.decompress(f.read_bytes())), dtype=torch.uint8)[header:]
        out.append(x.float().div_(256) if header == 16 else x.long())
    return out

report('mnist() against gunzip + frombuffer + scaling', mnist, least, 1.3)
