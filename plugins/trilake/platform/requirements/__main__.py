"""``python -m trilake.platform.requirements``: the path of the lock that a project of its own is installed by.

It needs nothing but the package itself: ``pip install --no-deps trilake`` comes first.
"""

from __future__ import annotations

from trilake.platform.package_files import package_file

print(package_file("platform", "requirements", "project.txt"))
