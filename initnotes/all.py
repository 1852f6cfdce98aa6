"Everything that the lessons export, for `from initnotes.all import *` in a notebook."
from .report import *
from .core import *
from .data import *
from .foundations import *
from .modules import *
from .why_sqrt5 import *
from .layers import *
from .undisturbed import *
from .kaiming import *
from .init import *
from .training import *
from .learner import *
from .hooks import *
from .watch import *
from .lsuv import *
from .solve import *
from .calibrate import *
