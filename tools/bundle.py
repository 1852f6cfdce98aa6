"""A release in one file: `make bundle` writes _build/initnotes-VERSION.zip from _site.

It holds the site, the lessons as `make lab` hands them out, the notebooks with their outputs, the
wheel, and START.html, which says how to begin. The same files give the same bytes."""
import os, shutil, subprocess, sys, tempfile, zipfile
from pathlib import Path

import lab, website

ROOT = Path(__file__).resolve().parent.parent
VERSION = website.CFG['version']
NAME = f'initnotes-{VERSION}'
LONG_AGO = 315532800        # 1980, with which zip begins to count

START = f'''<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>initnotes {VERSION}: start here</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ color-scheme: light dark }}
body {{ font: 1.1em/1.6 system-ui, sans-serif; max-width: 42em; margin: 2em auto; padding: 0 1em }}
pre {{ background: #8882; padding: .7em; white-space: pre-wrap }}</style>
</head><body><h1>initnotes {VERSION}</h1>
<p><strong>To read</strong>, open <a href="site/index.html">the course</a>. All of it is in this
folder: nothing is loaded from elsewhere, and no network is needed.</p>
<p><strong>To run the lessons</strong>, you need Python {website.CFG['min_python']} or later. This
installs PyTorch, JupyterLab and the library, and is the one step that needs a network:</p>
<pre>python3 -m venv .venv
.venv/bin/pip install "./WHEEL[learn]"
.venv/bin/jupyter lab --notebook-dir lessons</pre>
<p>Without a network, bring the packages along: on a machine of the same kind that has one, type
<code>pip download --dest packages "./WHEEL[learn]"</code>, and add
<code>--no-index --find-links packages</code> to the second line above.</p>
<p><strong>In this folder:</strong> <code>site</code>, the course as web pages;
<code>lessons</code>, notebooks without answers, for you to run and change; <code>notebooks</code>,
the same with their outputs, as they were published; <code>WHEEL</code>, the library.</p>
</body></html>
'''

def wheel(folder, root=ROOT):
    "Build the wheel into `folder`, from what is installed; return its path."
    env = {**os.environ, 'SOURCE_DATE_EPOCH': str(LONG_AGO)}
    subprocess.run([sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-index',
                    '--disable-pip-version-check', '--no-build-isolation', '--wheel-dir', folder,
                    root], check=True, env=env)
    return next(Path(folder).glob('*.whl'))

def lay_out(folder, site, nbs, built):
    "What the archive shall hold, as files in `folder`."
    shutil.copytree(site, folder/'site')
    lab.refresh(nbs, folder/'lessons')
    shutil.copytree(nbs, folder/'notebooks', ignore=shutil.ignore_patterns('.*'))
    for path in (built, ROOT/'LICENSE', ROOT/'CHANGELOG.md'):
        shutil.copy(path, folder)
    (folder/'START.html').write_text(START.replace('WHEEL', built.name), encoding='utf-8')

def pack(folder, archive):
    "The folder as an archive that knows neither times nor owners."
    with zipfile.ZipFile(archive, 'w', zipfile.ZIP_DEFLATED) as z:
        for path in sorted(p for p in folder.rglob('*') if p.is_file()):
            info = zipfile.ZipInfo(path.relative_to(folder.parent).as_posix())
            info.compress_type, info.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            z.writestr(info, path.read_bytes())

def bundle(archive, site=ROOT/'_site', nbs=ROOT/'nbs', built=None):
    if not (site/'index.html').is_file(): raise SystemExit(f'{site} holds no site: make site')
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp)/NAME
        lay_out(folder, site, nbs, built or wheel(tmp))
        pack(folder, archive)
    return archive

if __name__ == '__main__':
    archive = ROOT/'_build'/f'{NAME}.zip'
    archive.parent.mkdir(exist_ok=True)
    print(f'{bundle(archive)}: {archive.stat().st_size/2**20:.0f} MB')
