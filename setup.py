"The package's metadata, read from settings.ini."
import atexit, shutil, tempfile
from configparser import ConfigParser
from pathlib import Path

from setuptools import setup, find_packages

here = Path(__file__).parent
ini = ConfigParser(delimiters=['='])
ini.read(here/'settings.ini', encoding='utf-8')
cfg = ini['DEFAULT']

# Building leaves nothing in the tree, which may be read-only.
scratch = tempfile.mkdtemp()
atexit.register(shutil.rmtree, scratch, ignore_errors=True)

def extra(name): return cfg[f'{name}_requirements'].split()

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    long_description=(here/'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author=cfg['author'], keywords=cfg['keywords'],
    license_expression='Apache-2.0 AND CC-BY-SA-3.0',    # code and text; the data in _mnist
    license_files=['LICENSE', 'initnotes/_mnist/LICENSE'],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg['lib_path'], cfg['lib_path']+'.*']),
    package_data={cfg['lib_path']: ['_mnist/*', 'py.typed']},
    install_requires=cfg['requirements'].split(),
    extras_require={'learn': extra('learn'), 'test': extra('test'), 'site': extra('site'),
                    'dev': extra('learn') + extra('test') + extra('site')},
    entry_points={'console_scripts': cfg['console_scripts'].split()},
    options={'egg_info': {'egg_base': scratch}, 'build': {'build_base': scratch}},
    zip_safe=False,
)
