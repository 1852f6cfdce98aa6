"The release in one file: what is in it, that it begins without a network, the same bytes again."
import json, re, zipfile

import pytest

import bundle
from conftest import ROOT

pytestmark = pytest.mark.slow

@pytest.fixture
def parts(tmp_path):
    "A small site, two notebooks and a file in place of a wheel."
    for name in ('index.html', '_static/site.css'):
        (tmp_path/'site'/name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path/'site'/name).write_text('x')
    nbs = tmp_path/'nbs'
    for name in ('images', 'experiments', '.ipynb_checkpoints'):
        (nbs/name).mkdir(parents=True)
        (nbs/name/'a.txt').write_text('a')
    for name in ('01_core.ipynb', 'index.ipynb', 'matplotlibrc', 'glossary.md', 'summary.md',
                 'measured.md', 'explorer.html', 'references.bib'):
        (nbs/name).write_bytes((ROOT/'nbs'/name).read_bytes())
    (tmp_path/'initnotes-1-py3-none-any.whl').write_bytes(b'wheel')
    return dict(site=tmp_path/'site', nbs=nbs, built=tmp_path/'initnotes-1-py3-none-any.whl')

def outputs(z, name): return [o for c in json.loads(z.read(name))['cells']
                              for o in c.get('outputs', [])]

def test_what_is_in_it(parts, tmp_path):
    z = zipfile.ZipFile(bundle.bundle(tmp_path/'a.zip', **parts))
    names = {n.removeprefix(bundle.NAME + '/') for n in z.namelist()}
    assert all(n.startswith(bundle.NAME + '/') for n in z.namelist())
    assert {'START.html', 'LICENSE', 'initnotes-1-py3-none-any.whl', 'site/index.html',
            'site/_static/site.css', 'lessons/index.ipynb', 'lessons/images/a.txt',
            'notebooks/01_core.ipynb', 'notebooks/glossary.md'} <= names
    assert not any('/.' in n or '__pycache__' in n for n in names)
    lesson = f'{bundle.NAME}/lessons/01_core.ipynb'
    assert not outputs(z, lesson) and outputs(z, lesson.replace('lessons', 'notebooks'))

def test_where_to_begin(parts, tmp_path):
    "The first page names what is there, and loads nothing."
    z = zipfile.ZipFile(bundle.bundle(tmp_path/'a.zip', **parts))
    start = z.read(f'{bundle.NAME}/START.html').decode()
    assert 'WHEEL' not in start and 'no network is needed' in start
    assert re.findall(r'(?:href|src)="(.*?)"', start) == ['site/index.html']
    for name in (*re.findall(r'<code>(\w+)</code>,', start), 'initnotes-1-py3-none-any.whl'):
        assert any(n.startswith(f'{bundle.NAME}/{name}') for n in z.namelist()), name

def test_the_same_bytes_again(parts, tmp_path):
    first = bundle.bundle(tmp_path/'a.zip', **parts).read_bytes()
    for path in parts['site'].rglob('*'): path.touch()
    assert bundle.bundle(tmp_path/'b.zip', **parts).read_bytes() == first
    (parts['site']/'index.html').write_text('y')
    assert bundle.bundle(tmp_path/'c.zip', **parts).read_bytes() != first

def test_without_a_site(parts, tmp_path):
    (parts['site']/'index.html').unlink()
    with pytest.raises(SystemExit, match='make site'): bundle.bundle(tmp_path/'a.zip', **parts)

@pytest.mark.proof
def test_the_wheel_is_the_same_again(tmp_path):
    first, again = (bundle.wheel(tmp_path/d) for d in 'ab')
    assert first.read_bytes() == again.read_bytes()
    assert first.name.startswith(f'{bundle.NAME}-')
