"""``python -m trilake.platform.requirements``: prints the path of the lock for a project outside this repository.

It needs only the package itself. Run ``pip install --no-deps trilake`` first.
"""

from __future__ import annotations

from trilake.platform.package_files import package_file

print(package_file("platform", "requirements", "project.txt"))
