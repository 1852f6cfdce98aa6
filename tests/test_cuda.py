"On a GPU, where there is one: the same numbers, the model's device, random states as they were."
import os, subprocess, sys

import pytest, torch
import torch.nn.functional as F
from torch import nn

import initnotes as ini

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
CUDA = torch.device('cuda')

def net():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(.5), nn.Linear(64, 10))

def states(): return torch.get_rng_state(), torch.cuda.get_rng_state()

def test_stats_are_those_of_the_cpu():
    x = torch.randn(1000, 100) + 3
    for a, b in zip(ini.stats(x), ini.stats(x.to(CUDA))):
        assert abs(a - b) < 1e-5

@pytest.mark.parametrize('scheme',
                         ['kaiming_normal', 'kaiming_uniform', 'xavier_normal', 'lecun_normal'])
def test_init_stays_on_the_device(scheme):
    model = net().to(CUDA)
    report = ini.init_(model, scheme)
    assert all(p.device.type == 'cuda' for p in model.parameters())
    assert all(abs(r['std_drawn']/r['std_asked'] - 1) < .1 for r in report if r['std_asked'])

def test_a_generator_of_the_cpu_gives_the_cpus_weights():
    a, b = net(), net().to(CUDA)
    for m in (a, b): ini.init_(m, generator=torch.Generator().manual_seed(3))
    assert all(torch.equal(p, q.cpu()) for p, q in zip(a.parameters(), b.parameters()))

@pytest.mark.parametrize('dry_run', [False, True])
def test_lsuv_calibrates_and_keeps_random_states(dry_run):
    model, x = net().to(CUDA).train(), torch.randn(256, 64, device=CUDA)
    before, kept = states(), [p.clone() for p in model.parameters()]
    report = ini.lsuv_(model, x, dry_run=dry_run)
    assert all(torch.equal(a, b) for a, b in zip(states(), before))
    assert all(abs(r['std'] - 1) < 1e-5 for r in report)
    assert dry_run == all(torch.equal(p, q) for p, q in zip(model.parameters(), kept))
    assert abs(model[0](x).std().item() - 1) < 1e-4 or dry_run

def test_activation_stats_are_those_of_the_cpu():
    found, start = [], net().eval()
    x, y = torch.randn(128, 64), torch.randint(10, (128,))
    for device in ('cpu', 'cuda'):
        model = net().to(device)
        model.load_state_dict(start.state_dict())
        model.train()
        model[2].p = 0.
        opt = torch.optim.SGD(model.parameters(), lr=.1)
        with ini.ActivationStats(model) as s:
            for _ in range(3):
                F.cross_entropy(model(x.to(device)), y.to(device)).backward()
                opt.step(); s.step(); opt.zero_grad()
        assert all(v.device.type == 'cpu' for v in s.history().values())
        found.append(s.table())
    for a, b in zip(*found):
        assert a['dead'] == b['dead'] and a['units'] == b['units']
        for k in ('mean', 'std', 'rms', 'grad_rms'):
            assert abs(a[k] - b[k]) <= 1e-4*abs(a['rms'] + b[k]) + 1e-7

def test_learner_moves_batches():
    model = net().to(CUDA)
    batches = ini.TensorLoader(torch.randn(64, 64), torch.randint(10, (64,)), 16)
    learn = ini.Learner(model, batches, None, F.cross_entropy,
                        torch.optim.SGD(model.parameters(), lr=.1),
                        [ini.DeviceCallback(), ini.AvgStats()])
    learn.fit(1)
    assert next(model.parameters()).device.type == 'cuda'

NCCL = '''
import os, torch, torch.distributed as dist, initnotes as ini
from torch import nn
rank = int(os.environ['LOCAL_RANK']); torch.cuda.set_device(rank)
dist.init_process_group('nccl')
torch.manual_seed(0); model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)).cuda()
torch.manual_seed(1); x = torch.randn(64, 16).cuda()
ini.lsuv_(model, x.chunk(dist.get_world_size())[rank])
out = [torch.empty_like(model[2].weight) for _ in range(dist.get_world_size())]
dist.all_gather(out, model[2].weight.detach())
assert all(torch.equal(o, out[0]) for o in out)
y = model[0](x); assert abs(y.std().item() - 1) < 1e-4, y.std()
dist.destroy_process_group()
'''

@pytest.mark.parametrize('n', [1, 2])
def test_statistics_of_all_ranks_over_nccl(tmp_path, n):
    if torch.cuda.device_count() < n: pytest.skip(f'{n} GPUs are needed')
    (tmp_path/'ranks.py').write_text(NCCL)
    done = subprocess.run([sys.executable, '-m', 'torch.distributed.run', '--standalone',
                           f'--nproc-per-node={n}', tmp_path/'ranks.py'], capture_output=True,
                          text=True, env={**os.environ}, timeout=300)
    assert done.returncode == 0, done.stderr
