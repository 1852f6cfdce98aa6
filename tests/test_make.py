"What `make` says when something is missing: what is wrong, and what to type."
import os, shutil, subprocess, sys

import pytest

from conftest import ROOT

@pytest.fixture
def make(tmp_path):
    "A function that runs make in a copy of the folder's top level, without an environment."
    if not shutil.which('make'): pytest.skip('make is not installed')
    for name in ('Makefile', 'settings.ini', 'setup.py', 'constraints.txt'):
        shutil.copy(ROOT/name, tmp_path/name)
    def run(*args):
        env = {k: v for k, v in os.environ.items() if not k.startswith('MAKE')}
        done = subprocess.run(['make', *args], cwd=tmp_path, env=env, capture_output=True,
                              text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr
    run.folder = tmp_path
    return run

def script(path, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(['#!/bin/sh', *lines]) + '\n'); path.chmod(0o755)
    return path

def test_python_that_is_too_old(make):
    pretend = 'import sys; sys.version_info = (3, 9, 1); exec(sys.argv[2])'
    old = script(make.folder/'old', f'exec {sys.executable} -c "{pretend}" "$@"')
    code, said = make('run', f'PYTHON={old}')
    assert code and 'needs Python 3.11 or later' in said and 'is 3.9' in said
    assert 'make PYTHON=python3.12 run' in said
    assert not (make.folder/'.venv').exists()

def test_no_venv_module(make):
    python = script(make.folder/'python', f'[ "$1" = -m ] && exit 1; exec {sys.executable} "$@"')
    code, said = make('run', f'PYTHON={python}')
    assert code and 'apt install python3-venv' in said and not (make.folder/'.venv').exists()

def test_half_installed_environment_is_begun_again(make):
    "Without its stamp, whatever lies in .venv is removed first."
    script(make.folder/'.venv'/'bin'/'python', 'exit 3')
    said = make('-n', 'learn')[1]
    assert 'venv --clear .venv' in said

@pytest.mark.parametrize('target, stamps', [('run', ['learn']), ('quick', ['learn', 'dev'])])
def test_broken_environment(make, target, stamps):
    script(make.folder/'.venv'/'bin'/'python', 'exit 3')
    for name in stamps: (make.folder/'.venv'/name).touch()
    code, said = make(target)
    assert code and 'make clean, then the same make again' in said

def test_first_line_says_what_will_be_downloaded(make):
    assert 'MB to download' in make('-n', 'learn')[1].splitlines()[1]

def test_help_lists_every_command(make):
    for name in ('run', 'lab', 'quick', 'test', 'proof', 'processors', 'sweep', 'bench', 'clean'):
        assert f'make {name} ' in make('help')[1]
