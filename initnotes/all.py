"Everything that the lessons export, for `from initnotes.all import *` in a notebook."
from .core import *
from .data import *
from .why_sqrt5 import *
