"""The methods of the field: a file each, with its rules and its presets; a new file here is found by itself."""

from importlib import import_module
from pkgutil import iter_modules

for _module in sorted(module.name for module in iter_modules(__path__)):
    import_module(f"{__name__}.{_module}")
