import json, shutil, sys
from pathlib import Path

import nbformat, pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT/'tools'))

@pytest.fixture
def copy(tmp_path):
    "A copy of what the in-step check reads, to plant faults in."
    for part in ('settings.ini', 'setup.py'): shutil.copy(ROOT/part, tmp_path/part)
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs')
    shutil.copytree(ROOT/'initnotes', tmp_path/'initnotes', ignore=shutil.ignore_patterns('_mnist', '__pycache__'))
    return tmp_path

def edit(path, change):
    "Let `change` alter the notebook at `path` and write it as nbdev would."
    nb = json.loads(path.read_text(encoding='utf-8'))
    change(nb)
    path.write_text(json.dumps(nb, indent=1, sort_keys=True, ensure_ascii=False) + '\n', encoding='utf-8')

def write_notebook(path, *cells):
    "A notebook of code cells, for the runner."
    nb = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c, id=f'cell{i}') for i, c in enumerate(cells)],
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
