"""Check an installed unskew from outside a checkout.

    python -I installed.py VERSION FOLDER

``FOLDER``: a folder of definitions.
"""

import subprocess
import sys
from importlib.metadata import metadata
from importlib.resources import files
from pathlib import Path

import unskew
from unskew.demo.journey import HOME

version, folder = sys.argv[1], Path(sys.argv[2])
home = Path(unskew.__file__).parent
assert home.is_relative_to(sys.prefix), f"unskew comes from {home}, not from this environment"
assert not (home / "demo" / "complete_journey").is_symlink(), "the example is a link into a checkout"

for definitions in (HOME, folder):
    assert unskew.load(definitions).views, f"{definitions} has no views"

output = subprocess.run(
    [Path(sys.executable).parent / "unskew", "--version"], check=True, capture_output=True, text=True
).stdout
assert output == f"unskew {version}\n", f"the command says {output!r}"
assert unskew.__version__ == version, f"the module says {unskew.__version__}"

assert (files("unskew") / "py.typed").is_file(), "py.typed is not installed: type checkers treat everything as Any"
about = metadata("unskew")
assert about["License-Expression"] == "Apache-2.0", "the metadata does not name the licence"
assert about.get_all("License-File") == ["LICENSE"], "the licence's text is not in the wheel"
print(f"unskew {version}: imported from {home}; examples compile; command, types and licence are correct")
