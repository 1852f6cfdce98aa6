"`import initnotes` against `import torch`, each in a fresh process."
import subprocess, sys
from ratios import report

def fresh(module):
    return lambda: subprocess.run([sys.executable, '-c', f'import {module}'], check=True)

report('import initnotes against import torch', fresh('initnotes'), fresh('torch'), 1.05)
