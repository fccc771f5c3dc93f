"""Distributions with a plugin that exist in metadata and as a module, for a host of one's own."""

from __future__ import annotations

from importlib_metadata import Distribution

from ebmcore.host.manager import PluginManager

GOOD = """\
import ebmcore
@ebmcore.hookimpl
def ebmcore_register(register):
    register.sampler("identity", "ebmcore.testing:Identity")
"""


class Installed(Distribution):
    """A distribution with one plugin, that exists in metadata only."""

    def __init__(self, name, module, requires=(), version="1.2"):
        lines = [f"Name: {name}", f"Version: {version}", "Summary: a test", *(f"Requires-Dist: {r}" for r in requires)]
        self.files_ = {"METADATA": "\n".join(lines), "entry_points.txt": f"[ebmcore]\n{name} = {module}\n"}

    def read_text(self, filename):
        return self.files_.get(filename)

    def locate_file(self, path):
        return path


def manager(*entry_points, **environ):
    return PluginManager(entry_points, environ)
