import json, os, shutil, sys
from pathlib import Path

import hypothesis, nbformat, pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))
collect_ignore = ['benchmarks']

# The same examples every time, so that a red run is one's own change; `make proof` tries others.
hypothesis.settings.register_profile('fixed', derandomize=True, database=None)
hypothesis.settings.register_profile('random')
hypothesis.settings.load_profile(os.environ.get('HYPOTHESIS_PROFILE', 'fixed'))

CHROMIUM = next(filter(None, map(shutil.which, (
    'chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable'))), None)

def pytest_collection_modifyitems(items):
    "What takes longest begins first. One worker builds the site and opens it."
    for item in items:
        if item.get_closest_marker('site') or item.get_closest_marker('browser'):
            item.add_marker(pytest.mark.xdist_group('site'))
        if item.get_closest_marker('browser') and not CHROMIUM:
            item.add_marker(pytest.mark.skip(
                'no chromium or chrome is installed, so the site was not opened in a browser: '
                'install one, on Debian and Ubuntu with `apt install chromium`'))
    rank = {'notebooks': 0, 'site': 1, 'browser': 1, 'lab': 2}
    def first(item):
        return min([rank[m.name] for m in item.iter_markers() if m.name in rank], default=3)
    items.sort(key=first)

@pytest.fixture
def copy(tmp_path):
    "A copy of what the in-step check reads, to plant faults in."
    for part in ('settings.ini', 'setup.py'):
        shutil.copy(ROOT/part, tmp_path/part)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs')
    shutil.copytree(ROOT/'initnotes', tmp_path/'initnotes',
                    ignore=shutil.ignore_patterns('_mnist', '__pycache__'))
    return tmp_path

def edit(path, change):
    "Let `change` alter the notebook at `path` and write it as nbdev would."
    nb = json.loads(path.read_text(encoding='utf-8'))
    change(nb)
    path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n',
                    encoding='utf-8')

def write_notebook(path, *cells):
    "A notebook of code cells, for the runner."
    nb = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(c, id=f'cell{i}') for i, c in enumerate(cells)],
        metadata={'kernelspec': dict(name='python3', display_name='python3', language='python')})
    nbformat.write(nb, path)
    return path

@pytest.fixture(scope='session')
def site(tmp_path_factory):
    "The site, built from the notebooks as they are."
    import website
    tmp = tmp_path_factory.mktemp('site')
    website.build(tmp/'_site', work=tmp/'work')
    return tmp/'_site'

@pytest.fixture(autouse=True)
def seeded(request):
    """The same numbers every time, where a test file has a `SEED`.

    And one thread: on small tensors more only wait for one another."""
    if not hasattr(request.module, 'SEED'):
        yield
        return
    import torch
    threads = torch.get_num_threads()
    torch.manual_seed(request.module.SEED); torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)

# ---- for hooks -------------------------------------------------------------------------------

def hooks_on(model):
    "Everything that is registered anywhere in a model."
    kinds = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks',
             '_forward_hooks_with_kwargs', '_forward_pre_hooks_with_kwargs')
    return sum(len(getattr(m, k)) for m in model.modules() for k in kinds)

def small(act=None):
    "A small convolutional net for `images`, its activations ReLUs, or made by `act`."
    from torch import nn
    act = act or nn.ReLU
    return nn.Sequential(nn.Conv2d(1, 4, 3), act(), nn.Flatten(), nn.Linear(4*36, 5), act(),
                         nn.Linear(5, 3))

def images(n=8):
    import torch
    return torch.randn(n, 1, 8, 8)
