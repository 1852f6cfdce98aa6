"""Open your own copies of the lessons in JupyterLab: `python tools/lab.py [JUPYTERLAB'S OPTIONS]`.

The copies lie in lab/, which git ignores. They have no outputs, so that no answer is given away,
and what the site folds is folded. One that is there is never touched: rename it to get it anew."""
import hashlib, json, os, shutil, sys
from pathlib import Path

from instep import code, notebooks_in, read, source

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = ('--LabApp.default_url=/lab/tree/index.ipynb', '--LabApp.news_url=None',
           '--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate')

def edition(nb):
    "Tells one text of a lesson from another."
    return hashlib.sha256('\0'.join(map(source, nb['cells'])).encode()).hexdigest()[:16]

def learners_copy(nb):
    "The notebook without outputs and directive lines, and of which edition it is."
    cells = [{**c, 'source': code(c), 'outputs': [], 'execution_count': None}
             if c['cell_type'] == 'code' else c for c in nb['cells']]
    cells = [c for c in cells if source(c).strip()]
    return {**nb, 'cells': cells, 'metadata': {**nb['metadata'], 'initnotes': edition(nb)}}

def edition_copied(path):
    "Of which edition the copy at `path` is; None where that cannot be told."
    try: return read(path)['metadata'].get('initnotes')
    except (ValueError, KeyError, TypeError, AttributeError):
        return None

def refresh(nbs, lab):
    "Copy what is not there yet; return the copies of which there is a newer edition."
    lab.mkdir(exist_ok=True)
    names = ('images', 'experiments', 'matplotlibrc', 'glossary.md', 'summary.md', 'measured.md',
             'explorer.html', 'references.bib')
    for name in names:   # not the reader's
        if (nbs/name).is_dir():
            shutil.copytree(nbs/name, lab/name, dirs_exist_ok=True)
        else: shutil.copy(nbs/name, lab/name)
    old = []
    (lab/'howto').mkdir(exist_ok=True)
    for path in notebooks_in(nbs):
        copy, nb = lab/path.relative_to(nbs), read(path)
        if not copy.exists():
            copy.write_text(json.dumps(learners_copy(nb), indent=1), encoding='utf-8')
        elif edition_copied(copy) not in (None, edition(nb)): old.append(copy)
    return old

def no_popups():
    "Switch off JupyterLab's question about news, in this virtual environment alone."
    if sys.prefix == sys.base_prefix: return
    config = Path(sys.prefix)/'etc'/'jupyter'/'labconfig'/'page_config.json'
    if config.exists(): return
    config.parent.mkdir(parents=True, exist_ok=True)
    news = {'@jupyterlab/apputils-extension:announcements': True}
    config.write_text(json.dumps({'disabledExtensions': news}), encoding='utf-8')

def main():
    no_popups()
    for copy in refresh(ROOT/'nbs', ROOT/'lab'):
        print(f'There is a newer {copy.name}: to get it, rename yours and type make lab again.')
    os.execv(sys.executable, [sys.executable, '-m', 'jupyterlab',
                              f'--ServerApp.root_dir={ROOT/"lab"}', *OPTIONS, *sys.argv[1:]])

if __name__ == '__main__': main()
