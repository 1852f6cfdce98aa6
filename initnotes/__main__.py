"The command `initnotes`, which `python -m initnotes` runs as well."
import sys
from .audit import main

if __name__ == '__main__': sys.exit(main())
