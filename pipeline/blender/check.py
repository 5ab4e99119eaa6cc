"""Check that Blender's module can be loaded here, and list the Debian packages it lacks: `python -I check.py` in its
own interpreter, as `make blender` ends with. Standard library alone."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

PACKAGES = {
    "libX11.so": "libx11-6",
    "libXrender.so": "libxrender1",
    "libXfixes.so": "libxfixes3",
    "libXi.so": "libxi6",
    "libXext.so": "libxext6",
    "libxkbcommon.so": "libxkbcommon0",
    "libSM.so": "libsm6",
    "libICE.so": "libice6",
    "libGL.so": "libgl1",
    "libEGL.so": "libegl1",
}
"""Debian's and Ubuntu's package of each shared library that the wheel expects of the system."""


def main() -> int:
    spec = importlib.util.find_spec("bpy")
    if spec is None or spec.origin is None:
        sys.stderr.write("bpy is not installed in this environment\n")
        return 1
    missing = missing_libraries(Path(spec.origin))
    if not missing:
        import bpy

        sys.stdout.write(f"Blender {bpy.app.version_string} is ready: --blender.python {sys.executable}\n")
        return 0
    packages = sorted({PACKAGES.get(re.sub(r"\.so.*", ".so", name), name) for name in missing})
    sys.stderr.write(f"Blender lacks {', '.join(missing)}:\n  apt-get install --yes {' '.join(packages)}\n")
    return 1


def missing_libraries(module: Path) -> list[str]:
    """Shared libraries that the dynamic loader does not find for a compiled module."""
    listed = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=False).stdout
    return sorted(set(re.findall(r"(\S+) => not found", listed)))


if __name__ == "__main__":
    sys.exit(main())
