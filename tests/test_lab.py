"A learner's own copies of the lessons: without answers, never overwritten, unseen by git."
import json, subprocess

import pytest

import instep, lab
from conftest import ROOT, edit

@pytest.fixture
def copies(tmp_path):
    "Where copies are made of two lessons, and the folder of those lessons."
    for name in ('01_core.ipynb', 'index.ipynb', 'matplotlibrc', 'glossary.md', 'summary.md',
                 'measured.md', 'explorer.html', 'references.bib'):
        (tmp_path/'nbs').mkdir(exist_ok=True)
        (tmp_path/'nbs'/name).write_bytes((ROOT/'nbs'/name).read_bytes())
    for name in ('images', 'experiments'): (tmp_path/'nbs'/name).mkdir()
    assert lab.refresh(tmp_path/'nbs', tmp_path/'lab') == []
    return tmp_path/'lab', tmp_path/'nbs'

def test_copies_give_nothing_away(copies):
    nb = lab.read(copies[0]/'01_core.ipynb')
    code = [c for c in nb['cells'] if c['cell_type'] == 'code']
    assert len(code) > 20 and not any(c['outputs'] for c in code)
    assert not any(line.startswith('#|') for c in code for line in c['source'].splitlines())
    assert any(c['metadata'].get('jupyter') == dict(source_hidden=True) for c in code)

def test_what_is_there_is_never_touched_and_a_newer_edition_is_announced(copies):
    own, nbs = copies
    edit(own/'01_core.ipynb', lambda nb: nb['cells'][0].update(source=['my own thoughts']))
    before = (own/'01_core.ipynb').read_bytes()
    assert lab.refresh(nbs, own) == []
    edit(nbs/'01_core.ipynb', lambda nb: nb['cells'][1].update(source=['# A better title']))
    assert lab.refresh(nbs, own) == [own/'01_core.ipynb']
    assert (own/'01_core.ipynb').read_bytes() == before
    (own/'01_core.ipynb').rename(own/'mine.ipynb')
    assert lab.refresh(nbs, own) == [] and 'A better title' in (own/'01_core.ipynb').read_text()

@pytest.mark.parametrize('text', ['', 'not json', '[]', '{}', '{"metadata": null}'])
def test_a_broken_copy_is_left_alone(copies, text):
    (copies[0]/'01_core.ipynb').write_text(text)
    assert lab.refresh(copies[1], copies[0]) == []
    assert (copies[0]/'01_core.ipynb').read_text() == text

def test_git_does_not_see_them():
    done = subprocess.run(['git', 'check-ignore', 'lab/01_core.ipynb'], cwd=ROOT,
                          capture_output=True)
    assert done.returncode == 0

def test_what_the_site_folds_is_folded_in_the_lesson_itself():
    for path in instep.notebooks_in(ROOT/'nbs'):
        assert list(instep.badly_folded(path, lab.read(path))) == []

@pytest.mark.slow
def test_a_cell_that_is_folded_in_one_place_only_is_found(copy):
    def unfold(nb):
        next(c for c in nb['cells'] if 'jupyter' in c['metadata'])['metadata'].clear()
    edit(copy/'nbs'/'01_core.ipynb', unfold)
    assert any('01_core' in p and 'folded' in p for p in instep.problems(copy))
