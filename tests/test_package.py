"The package as users get it: the wheel, its data, its imports, and the README's claims."
import configparser, inspect, os, re, shutil, subprocess, sys, sysconfig, zipfile

import pytest, torch

from conftest import ROOT

INI = configparser.ConfigParser(delimiters=['='])
INI.read(ROOT/'settings.ini', encoding='utf-8')
CFG = INI['DEFAULT']

def python(code, **env):
    done = subprocess.run([sys.executable, '-W', 'error', '-c', code], capture_output=True,
                          text=True, env={**os.environ, **env}, cwd='/')
    assert done.returncode == 0, done.stderr
    return done.stdout

@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    "The wheel, built offline from a copy, and where it is unpacked."
    tmp = tmp_path_factory.mktemp('wheel')
    shutil.copytree(ROOT, tmp/'src', ignore=shutil.ignore_patterns('.*', '_build', '_site', 'nbs',
                                                                   'lab', 'tests', '__pycache__'))
    for path in [tmp/'src', *(tmp/'src').rglob('*')]:   # as from a read-only source
        path.chmod(path.stat().st_mode & ~0o222)
    before = sorted((tmp/'src').rglob('*'))
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--disable-pip-version-check',
                    '--no-deps', '--no-index', '--no-build-isolation', '-w', tmp, tmp/'src'],
                   check=True, env={**os.environ, 'PYTHONDONTWRITEBYTECODE': '1'})
    assert sorted((tmp/'src').rglob('*')) == before  # root may write everywhere: nothing was
    for path in [tmp/'src', *(tmp/'src').rglob('*')]:
        path.chmod(path.stat().st_mode | 0o200)
    path, = tmp.glob('*.whl')
    zipfile.ZipFile(path).extractall(tmp/'unpacked')
    return path, tmp/'unpacked'

@pytest.mark.slow
def test_wheel_holds_code_data_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel[0]).namelist())
    for f in sorted((ROOT/'initnotes').rglob('*')):
        if f.is_file() and '__pycache__' not in f.parts:
            assert f.relative_to(ROOT).as_posix() in names
    assert not any(n.split('/')[0] in ('tests', 'tools', 'nbs', 'lab') for n in names)
    assert 'initnotes/py.typed' in names
    assert wheel[0].name.startswith(f"initnotes-{CFG['version']}-")

@pytest.mark.slow
def test_wheel_says_both_licences_and_has_their_texts(wheel):
    meta = next(wheel[1].glob('*.dist-info/METADATA')).read_text(encoding='utf-8')
    assert 'License-Expression: Apache-2.0 AND CC-BY-SA-3.0' in meta
    files = re.findall(r'^License-File: (.*)$', meta, re.M)
    texts = [next(wheel[1].glob(f'*.dist-info/licenses/{f}')).read_text(encoding='utf-8')
             for f in files]
    assert ['Apache License' in texts[0], 'Attribution-ShareAlike 3.0' in texts[1]] == [True, True]
    assert len(files) == 2

@pytest.mark.slow
def test_extras(wheel):
    "What a learner installs holds nothing that only maintainers need; `dev` is all of it."
    meta = next(wheel[1].glob('*.dist-info/METADATA')).read_text(encoding='utf-8')
    extras = {e: set(re.findall(rf'^Requires-Dist: ([\w-]+).*extra == "{e}"$', meta, re.M))
              for e in ('learn', 'test', 'site', 'dev')}
    assert extras['dev'] == extras['learn'] | extras['test'] | extras['site']
    assert extras['learn'] == {'jupyterlab', 'ipywidgets', 'nbclient', 'nbdev', 'execnb',
                               'fastcore'}
    assert 'pytest' in extras['test'] and 'sphinx' in extras['site']

@pytest.mark.slow
def test_requirements_have_no_upper_bound(wheel):
    meta = next(wheel[1].glob('*.dist-info/METADATA')).read_text()
    needs = [l for l in meta.splitlines() if l.startswith('Requires-Dist') and 'extra' not in l]
    assert {re.match(r'Requires-Dist: (\w+)', l)[1]
            for l in needs} == {'torch', 'fastcore', 'matplotlib', 'tqdm'}
    assert not any('<' in l or '==' in l for l in needs)

@pytest.mark.slow
@pytest.mark.parametrize('version', CFG['fastcore_peers'].split())
def test_wheel_works_with_either_fastcore(wheel, version):
    "Beside fastcore 1 and fastcore 2, as `make env` fetched them."
    peer = ROOT/'.venv'/'peers'/f'fastcore-{version}'
    if not peer.exists():
        pytest.fail(f'no fastcore {version} in {peer}: run `make env`')
    code = f"""
import fastcore, initnotes, initnotes.all as a
assert fastcore.__version__ == {version!r}, fastcore.__version__
assert initnotes.__file__.startswith({str(wheel[1])!r}), initnotes.__file__
led = a.Ledger('x'); led.check('y', 1, 1, tol=0)
assert initnotes.mnist().x_train.shape == (50000, 784) and 'y' in led.to_markdown()
print(initnotes.__version__)"""
    path = os.pathsep.join([str(wheel[1]), str(peer)])
    assert python(code, PYTHONPATH=path).strip() == CFG['version']

@pytest.mark.slow
def test_import_loads_nothing_that_torch_does_not():
    "No module beyond torch's own, the standard library, fastcore's basics and ours; no plotting."
    new = python("""
import sys, torch
before = set(sys.modules)
import initnotes
new = {m for m in set(sys.modules) - before if m.split('.')[0] not in sys.stdlib_module_names}
print(*sorted(new))""").split()
    allowed = {'fastcore', 'fastcore.basics', 'fastcore.imports'}
    others = {m for m in new if not m.startswith(('initnotes', '__editable__', 'torch'))}
    assert others <= allowed, new

def test_public_names_are_documented():
    import initnotes
    for name in initnotes.__all__:
        assert (getattr(initnotes, name).__doc__ or '').strip(), name

def public_callables():
    "Every function, class and public method that a lesson exports, but torch's own."
    import importlib
    for path in (ROOT/'initnotes').glob('[a-z]*.py'):
        module = importlib.import_module(f'initnotes.{path.stem}')
        for name in getattr(module, '__all__', ()) if path.stem != 'all' else ():
            x = getattr(module, name)
            if getattr(x, '__module__', None) != module.__name__: continue
            if inspect.isfunction(x): yield f'{module.__name__}.{name}', x
            if not inspect.isclass(x): continue
            for key, f in vars(x).items():
                f = getattr(f, '__func__', getattr(f, 'fget', f))
                public = key == '__init__' or not key.startswith('_')
                if inspect.isfunction(f) and public and f.__qualname__.startswith(name):
                    yield f'{module.__name__}.{name}.{key}', f

def test_every_public_parameter_has_a_type():
    bare = [f'{where}({p.name})' for where, f in public_callables()
            for p in inspect.signature(f).parameters.values()
            if p.annotation is p.empty and p.name not in ('self', 'cls')]
    assert bare == []

def test_torchs_own_functions_say_so():
    import initnotes
    for name in ('orthogonal_', 'trunc_normal_'):
        assert getattr(initnotes, name) is getattr(torch.nn.init, name)

def test_versions_in_constraints_are_plain():
    lines = (ROOT/'constraints.txt').read_text().splitlines()
    pins = [l for l in lines if l and not l.startswith('#')]
    assert all(re.fullmatch(r'[\w.-]+==[\w.]+', p) for p in pins)
    assert len(pins) == len({p.split('==')[0].lower() for p in pins})

@pytest.mark.slow
def test_readme_code_runs():
    "The README's examples for practitioners, as they stand."
    readme = (ROOT/'README.md').read_text(encoding='utf-8')
    blocks = re.findall(r'```python\n(.*?)```', readme, re.S)
    code = '\n'.join(b for b in blocks if not re.match(r'# \w+\.py\n', b))    # but files
    python(code)
    import initnotes
    name, figure = re.search(r'ini\.(gain)\(.*: ([\d.]+)\n', code).groups()
    assert round(getattr(initnotes, name)(lambda z: z*torch.sigmoid(2*z)),
                 len(figure) - 2) == float(figure)

def as_pasted(section, folder, run):
    """Do what a reader of a section does: write its files, type its commands.

    Yields what each command line prints, and with which exit code."""
    for kind, block in re.findall(r'```(\w+)\n(.*?)```', section, re.S):
        if kind == 'python': (folder/re.match(r'# (\w+\.py)\n', block)[1]).write_text(block)
        if kind == 'text': yield 'shown', block
        for line in block.splitlines() if kind == 'sh' else ():
            if not line.startswith('pip '): yield line, run(line)

@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
    "A fresh environment's programs: the wheel is installed, what it needs is found beside it."
    env = tmp_path_factory.mktemp('venv')
    subprocess.run([sys.executable, '-m', 'venv', '--without-pip', env], check=True)
    python = env/'bin'/'python'
    subprocess.run([sys.executable, '-m', 'pip', '--python', python, 'install', '--quiet',
                    '--disable-pip-version-check', '--no-deps', '--no-index', wheel[0]], check=True)
    site, = (env/'lib').glob('python*/site-packages')
    (site/'beside.pth').write_text(sysconfig.get_path('purelib'))
    return env/'bin'

@pytest.mark.slow
def test_five_minutes_from_the_wheel(installed, tmp_path):
    "The README's section, as pasted, in a folder of its own: broken, repaired, kept."
    text = (ROOT/'README.md').read_text(encoding='utf-8')
    section = re.search(r'^## Five minutes.*?(?=^## )', text, re.M | re.S)[0]
    env = {k: v for k, v in os.environ.items() if k != 'PYTHONPATH'}
    env['PATH'] = os.pathsep.join([str(installed), env['PATH']])
    def run(line):
        done = subprocess.run(line, shell=True, cwd=tmp_path, env=env, capture_output=True,
                              text=True)
        return done.returncode, done.stdout, done.stderr
    (_, broken), (_, shown), (_, healthy), (_, tested) = as_pasted(section, tmp_path, run)
    assert broken[0] == 1 and broken[2] == '', broken
    def masked(text): return re.sub(r'[\d.e+-]*\d', '#', re.sub(' +', ' ', text))
    for part in shown.split('…\n'): assert masked(part) in masked(broken[1]), part
    assert 'fix' not in shown and "ini.init_(model, nonlinearity='relu')" in shown
    assert healthy[0] == 0 and not re.search(r'error|warning', healthy[1].split('\nLooked')[0])
    assert tested[0] == 0 and '1 passed' in tested[1], tested
    where = run('python -c "import initnotes; print(initnotes.__file__)"')[1]
    assert where.startswith(str(installed.parent)), where
    (tmp_path/'net.py').write_text('def make(): return 1\n')
    code, out, err = run('python -m initnotes audit net:make --input 128,64')
    assert (code, out, err.count('\n')) == (2, '', 1)

def test_readme_names_every_command():
    readme, makefile = ((ROOT/f).read_text(encoding='utf-8') for f in ('README.md', 'Makefile'))
    for target in re.findall(r'make (\w+)', readme):
        assert re.search(rf'^{target}:', makefile, re.M), target

def test_moved_names_are_found_in_their_old_places():
    "As the changelog's table says."
    import importlib
    changes = (ROOT/'CHANGELOG.md').read_text(encoding='utf-8')
    rows = re.findall(r'^\| (`.*) \| `([\w.]+)` \| `([\w.]+)` \|$', changes, re.M)
    assert len(rows) > 6
    for names, was, now in rows:
        for name in re.findall(r'`(\w+)`', names):
            found = [getattr(importlib.import_module(m), name) for m in (was, now)]
            assert found[0] is found[1], name
        with pytest.raises(AttributeError): importlib.import_module(was).no_such_name
