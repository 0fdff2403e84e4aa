"""The AT Protocol, pure. Runs compiled or as Python source, which is decided here, when it is first imported.

`tools/compile_protocol.py` compiles the sources with mypyc into `.compiled/DIGEST/`, beside the package. DIGEST covers every
source of `protocol/` and the interpreter's ABI. So compiled modules of other sources are never found: after an edit, the edited
source runs. Reading and hashing the sources takes about 1.5 ms.
"""

import os
import sys
from collections.abc import Sequence
from hashlib import sha256
from importlib import import_module
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

SOURCES = Path(__file__).parent
COMPILED = SOURCES.parent / ".compiled"
PURE = "SLUICE_PURE"
"""The environment variable that selects the Python sources; for tests and measurements."""
NEVER_COMPILED = ("__init__", "account_status")  # tests mutate functions of the latter
SHARED = "protocol__mypyc"
"""The extension module with the code of all modules; the others are entry points into it."""


class CompiledFinder:
    """Finds modules in `.compiled`. `files`: name of the module → path."""

    def __init__(self, files: dict[str, str]) -> None:
        self._files = files

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of a compiled module; None for any other module."""
        file = self._files.get(name)
        return None if file is None else spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))


def digest(sources: Path = SOURCES) -> str:
    """The digest of the names and contents of all sources and of the interpreter's ABI. Raises OSError."""
    found = sha256(EXTENSION_SUFFIXES[0].encode())
    for path in sorted(sources.rglob("*.py")):
        name = path.relative_to(sources)
        if any(part.startswith(".") for part in name.parts):
            continue  # an editor's, which may be a link to nothing
        source = path.read_bytes()
        found.update(f"\0{name}\0{len(source)}\0".encode())
        found.update(source)
    return found.hexdigest()


def use_compiled() -> bool:
    """Import the compiled modules from now on, if there are any of these sources that load. Returns whether there are."""
    if os.environ.get(PURE) or not COMPILED.is_dir():
        return False
    try:
        folder = COMPILED / digest()
    except OSError:
        return False
    files = {
        ".".join((*path.parent.relative_to(folder).parts, path.name.partition(".")[0])): str(path)
        for path in folder.rglob("*.so")
    }
    if SHARED not in files:
        return False
    finder = CompiledFinder(files)
    sys.meta_path.insert(0, finder)
    try:
        import_module(SHARED)
    except ImportError as err:
        sys.meta_path.remove(finder)
        sys.stderr.write(f"sluice: protocol/ runs as Python at half the speed; `make setup` compiles it again: {err}\n")
        return False
    return True


IS_COMPILED = use_compiled()
