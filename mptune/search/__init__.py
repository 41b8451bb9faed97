"""The application: runs, their stages, and what is decided in them.

`mptune.search(spec)` is a call although `mptune.search` is this package: the module is callable.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mptune.search.run import Run


class SearchModule(ModuleType):
    """This package, which calls `mptune.search.application.search`."""

    def __call__(self, *args: Any, **options: Any) -> Run:
        """See `mptune.search.application.search`; progress is shown unless `observer` is given."""
        from mptune import with_progress
        from mptune.search.application import search

        return search(*args, **with_progress(options))


sys.modules[__name__].__class__ = SearchModule
