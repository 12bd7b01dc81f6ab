"""The one loop that acts, and what brings facts to it. Decisions are asked of `core`; nothing here has an `if` about a state.

loop.py     inbox -> step -> perform, the single writer        hostlink.py  keep one host reachable; its runs as facts
perform.py  from action to effect; starts work, never waits    watch.py     look at readiness -> Probed
parse.py    what a host says -> facts                          views.py     what frontends show, asked once for all
"""
