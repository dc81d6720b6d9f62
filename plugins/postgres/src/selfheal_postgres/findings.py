"""What a proof without acting finds: whether the role may do what is configured, and what to type where it may not."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True)
class Finding:
    """One thing that is needed. `remedy` is the exact statement for an administrator, empty where all is well."""

    what: str
    granted: bool
    remedy: str = ""
